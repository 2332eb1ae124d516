//! Escaping for HTML, for the templates of pages (`askama.toml`).

use std::fmt;

use askama::filters::Escaper;

/// Escapes a text for HTML, in content and in quoted attributes, with names that people know: `&lt;`.
#[derive(Clone, Copy, Debug)]
pub struct HtmlText;

impl Escaper for HtmlText {
    fn write_escaped_str<W: fmt::Write>(&self, mut to: W, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(['&', '<', '>', '"', '\'']) {
            let reference = match rest.as_bytes()[at] {
                b'&' => "&amp;",
                b'<' => "&lt;",
                b'>' => "&gt;",
                b'"' => "&quot;",
                _ => "&#39;",
            };
            to.write_str(&rest[..at])?;
            to.write_str(reference)?;
            rest = &rest[at + 1..];
        }
        to.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_is_markup() {
        for (text, expected) in [
            ("", ""),
            ("plain é", "plain é"),
            ("<a href=\"x\" title='y'>&amp;", "&lt;a href=&quot;x&quot; title=&#39;y&#39;&gt;&amp;amp;"),
            ("é<é>", "é&lt;é&gt;"),
        ] {
            let mut escaped = String::new();
            HtmlText.write_escaped_str(&mut escaped, text).unwrap();
            assert_eq!(escaped, expected);
        }
    }
}
