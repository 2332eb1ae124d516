//! The refusals of the sandbox and their codes.
//!
//! The API documents the form of a failure, `{"status":"failed","data":{"code":N,"message":"..."}}` with a 4xx status,
//! but hardly any code. **The codes here are the sandbox's own**: the HTTP status followed by two digits. Only people
//! and the sandbox's tests may rely on them.

use std::fmt;

use axum::http::StatusCode;
use serde_json::json;

/// The most characters of a message or a path that are kept. A refusal quotes the refused value, and a hostile body
/// must not fill the memory.
const TEXT_CHARS_MAX: usize = 300;
/// The most characters of a refused value that a message quotes.
const QUOTE_CHARS_MAX: usize = 60;

/// Why a request was refused. The first three digits of the number are the HTTP status of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Code {
    /// The body is not JSON, or not an array.
    NotAnArray = 40_001,
    /// The array has no record.
    BatchEmpty = 40_002,
    /// The array has more than 1000 records.
    BatchTooLong = 40_003,
    /// A record is not an object, or a field of it is missing, unknown, repeated or of the wrong type.
    RecordShape = 40_004,
    /// `entityAccountId` is empty or only white space.
    AccountBlank = 40_005,
    /// `entityAccountId` is not an account of this sandbox.
    AccountUnknown = 40_006,
    /// `currency` is empty or only white space.
    CurrencyBlank = 40_007,
    /// `currency` is not listed, letter case included.
    CurrencyUnknown = 40_008,
    /// `datetime` is not `YYYY-MM-DD HH:mm:ss`, or not a real time.
    Datetime = 40_009,
    /// `balance` is not a JSON number.
    Balance = 40_010,
    /// `page` or `limit` of a list cannot be used.
    Paging = 40_011,
    /// The body ended before it was complete.
    BodyIncomplete = 40_012,
    /// A standing fault refuses the request.
    Fault = 40_013,
    /// A standing fault refuses a record that is kept already.
    Repeated = 40_014,
    /// `sourceId` is not a source of the sandbox for balances.
    SourceUnknown = 40_015,
    /// A source cannot be created as asked.
    SourceInvalid = 40_016,
    /// One of the three headers is absent, repeated or not ASCII.
    HeaderMissing = 40_101,
    /// The API key is not one of the sandbox's.
    KeyUnknown = 40_102,
    /// The timestamp is not a plain whole number.
    TimestampMalformed = 40_103,
    /// The timestamp is too far from the sandbox's clock.
    TimestampStale = 40_104,
    /// The signature is not valid for this timestamp, method and path.
    SignatureWrong = 40_105,
    /// The API key is revoked.
    KeyRevoked = 40_106,
    /// The API key has no permission for this.
    Forbidden = 40_301,
    /// The API has no such path.
    PathUnknown = 40_401,
    /// The path exists only for another method.
    MethodWrong = 40_501,
    /// The body has more bytes than are accepted.
    BodyTooLarge = 41_301,
    /// The content type is not `application/json`.
    ContentTypeWrong = 41_501,
    /// Too many requests.
    Throttled = 42_901,
}

/// The refusal of a request, of which nothing is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The rule that was broken.
    pub(super) code: Code,
    /// The description of the problem.
    pub(super) message: String,
    /// The wrong record, counted from 0. `None`: the request as a whole is wrong.
    pub(super) index: Option<usize>,
}

impl Refusal {
    pub(super) fn new(code: Code, message: impl AsRef<str>) -> Self {
        Self { code, message: clip(message.as_ref(), TEXT_CHARS_MAX), index: None }
    }

    /// Names the record that the refusal is about.
    pub(super) fn at(self, index: usize) -> Self {
        Self { index: Some(index), ..self }
    }

    /// The HTTP status of the answer.
    pub(super) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.code as u16 / 100).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The documented failure body.
    ///
    /// The message names the wrong record for people. The documentation does not say whether the real API does this, so
    /// a client has to find refused records without it.
    pub(super) fn body(&self) -> String {
        json!({"status": "failed", "data": {"code": self.code as u16, "message": self.to_string()}})
            .to_string()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(index) = self.index {
            write!(f, "record {index} (counted from 0): ")?;
        }
        f.write_str(&self.message)
    }
}

/// Quotes a refused value for a message: escaped, in quotation marks, and clipped.
pub(super) fn quote(value: &str) -> String {
    format!("{:?}", clip(value, QUOTE_CHARS_MAX))
}

/// Clips a path for the list of requests.
pub(super) fn clip_path(path: &str) -> String {
    clip(path, TEXT_CHARS_MAX)
}

fn clip(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_body_as_documented() {
        let refusal = Refusal::new(Code::CurrencyUnknown, r#"currency "btc""#).at(7);
        assert_eq!(refusal.status(), 400);
        assert_eq!(
            refusal.body(),
            r#"{"data":{"code":40008,"message":"record 7 (counted from 0): currency \"btc\""},"status":"failed"}"#
        );
    }

    #[test]
    fn long_values_are_clipped_at_a_character() {
        assert_eq!(clip("åäö", 3), "åäö");
        assert_eq!(clip("åäö!", 3), "åäö…");
        assert!(quote(&"x".repeat(10_000)).len() < 100);
    }
}
