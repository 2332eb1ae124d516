//! Names and values as SQL text.

/// Quotes a name.
pub(crate) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a text as an SQL literal that does not depend on `standard_conforming_strings` (manual, "String Constants
/// with C-Style Escapes").
pub(crate) fn quote_literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Quotes texts as an SQL literal of an array.
pub(crate) fn quote_array<'a>(texts: impl IntoIterator<Item = Option<&'a str>>) -> String {
    let quoted = texts.into_iter().map(|text| match text {
        Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        None => "NULL".to_owned(),
    });
    format!("{}::text[]", quote_literal(&format!("{{{}}}", quoted.collect::<Vec<_>>().join(","))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_cannot_be_broken_out_of() {
        assert_eq!(quote_literal(r"a'b\"), r"E'a''b\\'");
        assert_eq!(quote_identifier(r#"a"b"#), r#""a""b""#);
        assert_eq!(quote_array([Some(r#"a'"\"#), None]), r#"E'{"a''\\"\\\\",NULL}'::text[]"#);
    }
}
