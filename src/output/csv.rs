//! CSV as RFC 4180 describes it, with line feeds.

use crate::text::escaped;

/// Returns a line of CSV with its line feed. Control characters are escaped as everywhere in the output, so that a
/// record is one line, without effect on a terminal. A field without a value is empty.
pub(super) fn record<'a>(fields: impl IntoIterator<Item = Option<&'a str>>) -> String {
    let fields: Vec<String> =
        fields.into_iter().map(|field| field.map_or_else(String::new, quoted)).collect();
    format!("{}\n", fields.join(","))
}

fn quoted(field: &str) -> String {
    let field = escaped(field);
    if field.contains([',', '"']) || field.starts_with(' ') || field.ends_with(' ') {
        return format!("\"{}\"", field.replace('"', "\"\""));
    }
    field
}

#[cfg(test)]
mod tests {
    use super::record;

    #[test]
    fn fields_are_quoted_where_they_need_it_and_have_no_control_characters() {
        let fields = [Some("plain"), None, Some("a,b"), Some("say \"no\""), Some("x\r\ny\u{1b}"), Some(" ")];
        assert_eq!(record(fields), "plain,,\"a,b\",\"say \"\"no\"\"\",x\\r\\ny\\u{1b},\" \"\n");
    }
}
