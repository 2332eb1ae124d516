//! Reads the body of an answer, in any of the documented envelopes.
//!
//! The API's pages disagree about the envelope: `{"success": true}`, `{"status": "success", "data": {...}}`, or
//! `"success": "success"` next to a boolean `data`. All of them are read. Only the few fields that matter are kept, so
//! that an answer of 8 MiB costs no more than its bytes.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The API's code and message for a failure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reason {
    /// `code` of the failure body.
    pub code: Option<String>,
    /// `message`.
    pub message: Option<String>,
}

impl Reason {
    /// Replaces secrets, then cuts the texts to [`MESSAGE_CHARS_MAX`]. In this order, a secret that is cut in two
    /// cannot be missed. A short secret is not searched for, because it would match parts of most messages by chance.
    pub fn without(&mut self, secrets: &[&str]) {
        for text in [&mut self.code, &mut self.message].into_iter().flatten() {
            for secret in secrets.iter().filter(|secret| secret.len() >= SECRET_BYTES_MIN) {
                *text = text.replace(secret, "[hidden]");
            }
            *text = text.chars().take(MESSAGE_CHARS_MAX).collect();
        }
    }
}

/// A secret shorter than this, in bytes, is not searched for in a message.
const SECRET_BYTES_MIN: usize = 8;

/// The maximum length of a recorded message of the API, in characters.
pub const MESSAGE_CHARS_MAX: usize = 500;

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.message, &self.code) {
            (Some(message), Some(code)) => write!(f, "\"{message}\" (code {code})"),
            (Some(message), None) => write!(f, "\"{message}\""),
            (None, Some(code)) => write!(f, "code {code}"),
            (None, None) => f.write_str("no reason given"),
        }
    }
}

/// Some servers send it before their JSON.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// The fields of an answer that are read, at the top level and under `data`.
const FIELDS: [&str; 7] = ["success", "status", "data", "code", "message", "list", "total"];
/// The maximum length of a message before its secrets are replaced, in characters. It is cut to the recorded length
/// after that.
const TEXT_CHARS_MAX: usize = 64 * 1024;

/// Whether an answer says that the request succeeded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Says {
    /// It succeeded, and nothing in the answer contradicts that.
    Yes,
    /// It failed.
    No,
    /// Neither, or the answer is no JSON object.
    #[default]
    Nothing,
    /// The answer could not be read, for this reason.
    Unreadable(&'static str),
}

/// The meaning of an answer's body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Envelope {
    /// Whether it says that the request succeeded.
    pub says: Says,
    /// Code and message under `data`, or at the top level where `data` has neither.
    pub reason: Reason,
    /// It has the documented shape of a failure: a code or a message under `data`, or a field that says that it
    /// failed.
    pub is_failure: bool,
    /// It has a `list`, at the top level or under `data`, as documented for calls that read.
    pub is_list: bool,
    /// The list is under `data`, as some pages of the API document it.
    pub is_wrapped: bool,
    /// It is an HTML page, which comes from a proxy or a firewall: the API answers in JSON.
    pub is_page: bool,
}

impl Envelope {
    /// Reads a body. Never fails: a body that is not understood gives [`Says::Nothing`].
    pub fn read(body: &[u8], content_type: Option<&str>) -> Self {
        let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body).trim_ascii();
        // A message that is not UTF-8 must not make the other fields unreadable.
        let text = String::from_utf8_lossy(body);
        let mut fields = Fields::default();
        let is_object = each_field(&text, |name, value| fields.top(name, value)).is_some();
        let is_html = content_type.is_some_and(|kind| starts_with(kind, "text/html"));
        let is_page = body.starts_with(b"<") || is_html && !is_object && !body.is_empty();
        if !is_object {
            return Self { is_page, ..Self::default() };
        }
        let says = match (fields.no, fields.yes) {
            (true, _) => Says::No,
            (false, true) => Says::Yes,
            (false, false) => Says::Nothing,
        };
        let has_reason = fields.of_data != Reason::default();
        Self {
            is_failure: has_reason || says == Says::No,
            says,
            reason: if has_reason { fields.of_data } else { fields.of_top },
            is_list: fields.is_list && !fields.no,
            is_wrapped: fields.is_wrapped,
            is_page,
        }
    }

    /// Reads the beginning of a body whose rest could not be read for the reason `why`.
    pub fn unreadable(beginning: &[u8], content_type: Option<&str>, why: &'static str) -> Self {
        Self {
            says: Says::Unreadable(why),
            is_page: Self::read(beginning, content_type).is_page,
            ..Self::default()
        }
    }
}

fn starts_with(text: &str, prefix: &str) -> bool {
    text.trim_start().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// The fields found so far. A field that occurs twice counts twice.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Fields {
    yes: bool,
    no: bool,
    is_list: bool,
    is_wrapped: bool,
    of_data: Reason,
    of_top: Reason,
}

impl Fields {
    fn top(&mut self, name: &str, value: &RawValue) {
        match name {
            "success" => {
                let said = word(value);
                self.no |= said.as_deref() == Some("false");
                self.yes |= matches!(said.as_deref(), Some("true" | "success"));
            }
            // Only a text counts: `"status": 200` has no meaning here.
            "status" if is_text(value) => {
                let said = word(value);
                self.no |= matches!(said.as_deref(), Some("failed" | "error" | "fail"));
                self.yes |= said.as_deref() == Some("success");
            }
            "data" if value.get() == "false" => self.no = true,
            "data" => {
                // `data` may have any type; only an object has fields.
                let _ = each_field(value.get(), |name, value| self.data(name, value));
            }
            _ => self.is_list |= common(&mut self.of_top, name, value),
        }
    }

    fn data(&mut self, name: &str, value: &RawValue) {
        if name == "success" {
            self.no |= word(value).as_deref() == Some("false");
        } else {
            let is_list = common(&mut self.of_data, name, value);
            self.is_list |= is_list;
            self.is_wrapped |= is_list;
        }
    }
}

/// Reads a field that has the same meaning at both levels; returns whether it is a list.
fn common(reason: &mut Reason, name: &str, value: &RawValue) -> bool {
    match name {
        "code" if is_text(value) || value.get().starts_with(|c: char| c == '-' || c.is_ascii_digit()) => {
            reason.code = word(value);
        }
        "message" if is_text(value) => reason.message = word(value),
        _ => return name == "list" && value.get().starts_with('['),
    }
    false
}

fn is_text(value: &RawValue) -> bool {
    value.get().starts_with('"')
}

/// Returns a text without its quotation marks and control characters, and any other value as it is written.
fn word(value: &RawValue) -> Option<String> {
    if is_text(value) {
        let text: String = serde_json::from_str(value.get()).ok()?;
        return Some(text.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect());
    }
    Some(value.get().chars().take(TEXT_CHARS_MAX).collect())
}

/// Calls `take` with each of the [`FIELDS`] of an object, and skips the others. `None`: the text is not a JSON object;
/// then ignore the fields that were taken.
pub(super) fn each_field(text: &str, take: impl FnMut(&str, &RawValue)) -> Option<()> {
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(Object(take)).ok()?;
    json.end().ok()
}

struct Object<F>(F);

impl<'de, F: FnMut(&str, &RawValue)> Visitor<'de> for Object<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if FIELDS.contains(&name.as_str()) {
                self.0(&name, map.next_value::<&RawValue>()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_envelope_says_yes_no_or_nothing() {
        for (body, expected) in [
            (r#"{"success":true}"#, Says::Yes),
            (r#"{"success":"true"}"#, Says::Yes),
            (r#"{"success":"success"}"#, Says::Yes),
            (r#"{"success":"success","data":true}"#, Says::Yes),
            (r#"{"status":"success"}"#, Says::Yes),
            (r#"{"status":"success","data":{"more":[1,{"success":false}]}}"#, Says::Yes),
            (r#"{"status":"success","data":null}"#, Says::Yes),
            (r#"{"status":"success","data":[false]}"#, Says::Yes),
            (r#"{"status":"success","data":"false"}"#, Says::Yes),
            (r#"{"status":200,"success":true}"#, Says::Yes),
            (r#" {"more":{"success":false},"success" : true} "#, Says::Yes),
            ("\u{feff}{\"success\":true}", Says::Yes),
            ("\u{feff}\n{\"success\":true}\n", Says::Yes),
            (r#"{"success":true,"message":"\ud800"}"#, Says::Yes),
            (r#"{"success":false}"#, Says::No),
            (r#"{"success":"false"}"#, Says::No),
            (r#"{"status":"failed"}"#, Says::No),
            (r#"{"status":"fail"}"#, Says::No),
            (r#"{"status":"error","data":{}}"#, Says::No),
            (r#"{"data":false}"#, Says::No),
            (r#"{"data":{"success":false}}"#, Says::No),
            // A success does not count next to a failure, in any order and number.
            (r#"{"success":true,"status":"failed"}"#, Says::No),
            (r#"{"status":"failed","success":true}"#, Says::No),
            (r#"{"success":"success","data":false}"#, Says::No),
            (r#"{"status":"success","data":{"success":false}}"#, Says::No),
            (r#"{"success":false,"success":true}"#, Says::No),
            (r#"{"success":true,"success":false}"#, Says::No),
            (r#"{"success":true,"data":{"success":false,"success":true}}"#, Says::No),
            (r#"{"data":{"success":true}}"#, Says::Nothing),
            (r#"{"data":true}"#, Says::Nothing),
            (r#"{"success":1}"#, Says::Nothing),
            (r#"{"success":null}"#, Says::Nothing),
            (r#"{"success":"yes"}"#, Says::Nothing),
            (r#"{"status":true}"#, Says::Nothing),
            ("{}", Says::Nothing),
            ("true", Says::Nothing),
            (r#""success""#, Says::Nothing),
            (r#"[{"success":true}]"#, Says::Nothing),
            (r#"{"success":true"#, Says::Nothing),
            (r#"{"success":true} and more"#, Says::Nothing),
            (r#"{"success":true}{"success":true}"#, Says::Nothing),
            ("", Says::Nothing),
        ] {
            assert_eq!(Envelope::read(body.as_bytes(), None).says, expected, "{body}");
        }
        let foreign = b"{\"success\":true,\"message\":\"\xd5\xcb\xbb\xa7\"}";
        assert_eq!(Envelope::read(foreign, None).says, Says::Yes, "a message in GBK");
        let deep = format!(r#"{{"success":true,"data":{}1{}}}"#, "[".repeat(5000), "]".repeat(5000));
        assert_eq!(Envelope::read(deep.as_bytes(), None).says, Says::Yes, "deeper than serde_json recurses");
    }

    #[test]
    fn a_reason_is_found_under_data_or_at_the_top() {
        let reason = |code: Option<&str>, message: Option<&str>| Reason {
            code: code.map(str::to_owned),
            message: message.map(str::to_owned),
        };
        for (body, expected, is_failure) in [
            (
                r#"{"status":"failed","data":{"code":19734,"message":"no"}}"#,
                reason(Some("19734"), Some("no")),
                true,
            ),
            (r#"{"data":{"code":"E1"}}"#, reason(Some("E1"), None), true),
            (r#"{"code":5,"data":{"message":"no"}}"#, reason(None, Some("no")), true),
            (r#"{"success":false,"code":5,"message":"no"}"#, reason(Some("5"), Some("no")), true),
            (r#"{"code":-5,"message":"no","data":{}}"#, reason(Some("-5"), Some("no")), false),
            (r#"{"data":{"code":null,"message":{}}}"#, Reason::default(), false),
            (r#"{"data":[{"code":1}]}"#, Reason::default(), false),
            (r#"{"status":"error"}"#, Reason::default(), true),
            ("{}", Reason::default(), false),
        ] {
            let envelope = Envelope::read(body.as_bytes(), None);
            assert_eq!((envelope.reason, envelope.is_failure), (expected, is_failure), "{body}");
        }
    }

    #[test]
    fn a_list_is_found_at_the_top_or_under_data() {
        for (body, expected) in [
            (r#"{"total":0,"list":[]}"#, true),
            (r#"{"status":"success","data":{"total":1,"list":[{}]}}"#, true),
            (r#"{"success":"success","data":{"list":[1],"total":1}}"#, true),
            (r#"{"data":{"data":{"list":[]}}}"#, false),
            (r#"{"status":"error","data":{"list":[]}}"#, false),
            (r#"{"list":{}}"#, false),
            (r#"{"success":true}"#, false),
            ("[]", false),
        ] {
            assert_eq!(Envelope::read(body.as_bytes(), None).is_list, expected, "{body}");
        }
    }

    #[test]
    fn a_page_begins_with_an_angle_bracket_or_says_that_it_is_html() {
        for (body, content_type, expected) in [
            ("<html>", None, true),
            ("\u{feff} \r\n<!doctype html>", Some("application/json"), true),
            ("Access denied", Some("Text/HTML; charset=utf-8"), true),
            ("Access denied", Some("text/plain"), false),
            ("", Some("text/html"), false),
            (r#"{"success":false}"#, Some("text/html"), false),
            ("", None, false),
        ] {
            let envelope = Envelope::read(body.as_bytes(), content_type);
            assert_eq!(envelope.is_page, expected, "{body} {content_type:?}");
        }
    }
}
