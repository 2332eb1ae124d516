//! Texts: refuses texts that cannot be meant, and writes the others as JSON strings.

use super::Invalid;

/// A text that can be sent.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    text: &'a str,
    /// The text needs no escape in JSON.
    verbatim: bool,
}

impl<'a> Text<'a> {
    /// Reads a text. Refuses NULL, empty and blank texts, and texts with a control character (C0, DEL, C1). `name`
    /// names the column in the message.
    ///
    /// # Errors
    /// The text is refused.
    pub fn read(name: &str, text: Option<&'a str>) -> Result<Self, Invalid> {
        let text = text.ok_or_else(|| Invalid(format!("{name} is NULL")))?;
        // Nearly all texts are printable ASCII without a character that JSON escapes. The loop has no early exit, so
        // that the compiler can check many bytes in one step.
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

    /// Returns the text itself.
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
