//! Texts: those that the API could not mean are refused, the others become JSON strings.

use super::Invalid;

/// A text that can be sent.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    text: &'a str,
    /// It is the same in JSON.
    verbatim: bool,
}

impl<'a> Text<'a> {
    /// Refuses what is NULL, empty or blank, or has a control character (C0, DEL, C1). `name` says what it is.
    ///
    /// # Errors
    /// Texts that are refused.
    pub fn read(name: &str, text: Option<&'a str>) -> Result<Self, Invalid> {
        let text = text.ok_or_else(|| Invalid(format!("{name} is NULL")))?;
        // Nearly all are of printable ASCII, with nothing in them that JSON would escape. Without a way out of the loop,
        // so that many bytes are looked at in one step.
        let is_odd = |byte: u8| !matches!(byte, b' '..=b'~') || byte == b'"' || byte == b'\\';
        let verbatim = !text.bytes().fold(false, |odd, byte| odd | is_odd(byte));
        if text.trim().is_empty() {
            return Err(Invalid(format!("{name} is blank")));
        }
        if !verbatim && text.chars().any(char::is_control) {
            return Err(Invalid(format!("{name} has a control character")));
        }
        Ok(Self { text, verbatim })
    }

    /// The text itself.
    pub fn as_str(self) -> &'a str {
        self.text
    }

    /// Appends the text as a JSON string.
    pub fn write(self, out: &mut Vec<u8>) {
        if self.verbatim {
            out.push(b'"');
            out.extend_from_slice(self.text.as_bytes());
            out.push(b'"');
        } else {
            write_escaped(out, self.text);
        }
    }
}

fn write_escaped(out: &mut Vec<u8>, text: &str) {
    #[expect(clippy::expect_used, reason = "a string always serialises, and writing to a Vec cannot fail")]
    serde_json::to_writer(out, text).expect("a string is JSON");
}
