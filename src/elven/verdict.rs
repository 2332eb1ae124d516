//! What an answer means: a pure function of what came back.

use std::fmt;
use std::time::Duration;

use chrono::TimeDelta;
use serde_json::Value;

/// What came back for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An HTTP response, its body read up to a limit.
    Response {
        /// The HTTP status.
        status: u16,
        /// The body's first bytes; a documented answer is short.
        body: Vec<u8>,
        /// How long it asks to wait (`Retry-After`, RFC 9110).
        retry_after: Option<Duration>,
        /// How far the API's clock is ahead of the one that the request was signed by (`Date`).
        ahead: Option<TimeDelta>,
    },
    /// The connection could not be made: nothing was sent.
    NotSent(String),
    /// The connection took long to open: nothing was sent, and it is open for the request that is signed next.
    OpenedLate,
    /// Time-out or cut after the request may have been written: nobody knows what happened.
    Lost(String),
}

/// What an answer means; one variant for each thing that somebody does about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The records are in.
    Accepted,
    /// The content is refused.
    Refused(Reason),
    /// The body is too large.
    TooLarge,
    /// Key, signature, permission or clock; and how far the API's clock is ahead.
    Unauthorized(Reason, Option<TimeDelta>),
    /// Wrong URL, or the API changed.
    Misdirected,
    /// Not now, but after some time; not delivered.
    Throttled(Option<Duration>),
    /// Nothing was sent.
    NotDelivered(String),
    /// Whether the records are in is unknown.
    Unknown(String),
}

/// The API's own words for a failure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reason {
    /// `data.code` of the documented failure body.
    pub code: Option<String>,
    /// `data.message`.
    pub message: Option<String>,
}

impl Reason {
    /// Leaves secrets out, then cuts the words to [`MESSAGE_CHARS_MAX`]: what is cut first hides no more.
    pub fn without(&mut self, secrets: &[&str]) {
        for text in [&mut self.code, &mut self.message].into_iter().flatten() {
            for secret in secrets {
                *text = text.replace(secret, "[hidden]");
            }
            *text = text.chars().take(MESSAGE_CHARS_MAX).collect();
        }
    }
}

/// A message of the API is kept up to this many characters.
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

/// Judges an answer by the contract's table.
///
/// Documented are 2xx with `{"success": <boolean>}` and, with a 4xx, a body with `data.code` and
/// `data.message` (API page, "Errors"). Everything else is judged by its status alone, since a proxy
/// may have written it.
pub fn judge(answer: &Answer) -> Verdict {
    let (status, body, retry_after, ahead) = match answer {
        Answer::Response { status, body, retry_after, ahead } => (*status, body, *retry_after, *ahead),
        Answer::NotSent(reason) => return Verdict::NotDelivered(reason.clone()),
        Answer::OpenedLate => return Verdict::NotDelivered("connecting took too long".to_owned()),
        Answer::Lost(reason) => return Verdict::Unknown(reason.clone()),
    };
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let success = json.as_ref().and_then(|json| json.get("success")).and_then(Value::as_bool);
    let reason = json.as_ref().and_then(failure);
    match status {
        200..300 => match success {
            Some(true) => Verdict::Accepted,
            Some(false) => Verdict::Refused(reason.unwrap_or_default()),
            None => Verdict::Unknown("the answer is not the documented JSON".to_owned()),
        },
        400 | 422 => Verdict::Refused(reason.unwrap_or_default()),
        401 | 403 => Verdict::Unauthorized(reason.unwrap_or_default(), ahead),
        413 => Verdict::TooLarge,
        408 | 425 | 429 | 503 => Verdict::Throttled(retry_after),
        400..500 => reason.map_or(Verdict::Misdirected, Verdict::Refused),
        500..600 => Verdict::Unknown("the service failed".to_owned()),
        _ => Verdict::Misdirected,
    }
}

/// The documented failure body: `{"status": "failed", "data": {"code": 19734, "message": "..."}}`.
fn failure(json: &Value) -> Option<Reason> {
    let data = json.get("data")?;
    let code = data.get("code").and_then(|code| match code {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(shown(text)),
        _ => None,
    });
    let message = data.get("message").and_then(Value::as_str).map(shown);
    (code.is_some() || message.is_some()).then_some(Reason { code, message })
}

/// A foreign text, fit for a log line and a table: no control characters.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, body: &str) -> Answer {
        Answer::Response { status, body: body.as_bytes().to_vec(), retry_after: None, ahead: None }
    }

    #[test]
    fn every_row_of_the_table() {
        const FAILURE: &str =
            r#"{"status":"failed","data":{"code":19734,"message":"The address is invalid"}}"#;
        let reason = Reason { code: Some("19734".into()), message: Some("The address is invalid".into()) };
        let unknown_json = Verdict::Unknown("the answer is not the documented JSON".into());
        let unknown_service = Verdict::Unknown("the service failed".into());
        let table = [
            (response(200, r#"{"success":true}"#), Verdict::Accepted),
            (response(201, r#"{"success": true, "more": 1}"#), Verdict::Accepted),
            (response(200, r#"{"success":false}"#), Verdict::Refused(Reason::default())),
            (response(200, r#"{"success":"true"}"#), unknown_json.clone()),
            (response(200, "<html>welcome</html>"), unknown_json.clone()),
            (response(204, ""), unknown_json),
            (response(400, FAILURE), Verdict::Refused(reason.clone())),
            (response(422, "<html>"), Verdict::Refused(Reason::default())),
            (response(409, FAILURE), Verdict::Refused(reason.clone())),
            (response(413, "<html>"), Verdict::TooLarge),
            (response(401, FAILURE), Verdict::Unauthorized(reason.clone(), None)),
            (response(403, ""), Verdict::Unauthorized(Reason::default(), None)),
            (response(404, "<html>"), Verdict::Misdirected),
            (response(404, r#"{"success":true}"#), Verdict::Misdirected),
            (response(301, ""), Verdict::Misdirected),
            (response(308, r#"{"success":true}"#), Verdict::Misdirected),
            (response(408, ""), Verdict::Throttled(None)),
            (response(425, ""), Verdict::Throttled(None)),
            (response(429, FAILURE), Verdict::Throttled(None)),
            (response(503, ""), Verdict::Throttled(None)),
            (response(500, r#"{"success":true}"#), unknown_service.clone()),
            (response(502, "<html>"), unknown_service.clone()),
            (response(504, ""), unknown_service),
            (Answer::NotSent("refused".into()), Verdict::NotDelivered("refused".into())),
            (Answer::OpenedLate, Verdict::NotDelivered("connecting took too long".into())),
            (Answer::Lost("timed out".into()), Verdict::Unknown("timed out".into())),
        ];
        for (answer, expected) in table {
            assert_eq!(judge(&answer), expected, "{answer:?}");
        }
    }

    #[test]
    fn a_secret_at_the_cut_is_left_out_whole() {
        let message = Some(format!("{} the-secret-key", "x".repeat(MESSAGE_CHARS_MAX - 8)));
        let mut reason = Reason { code: Some("the-secret-key".to_owned()), message };
        reason.without(&["the-secret-key"]);
        assert_eq!(reason.code.as_deref(), Some("[hidden]"));
        assert!(reason.message.is_some_and(|message| message.ends_with("x [hidden")));
    }

    #[test]
    fn a_foreign_message_is_cut_and_cleaned() {
        let body = format!(r#"{{"data":{{"message":"a\n{}"}}}}"#, "x".repeat(1000));
        let Verdict::Refused(mut reason) = judge(&response(400, &body)) else { panic!("refused") };
        reason.without(&[]);
        let message = reason.message.unwrap();
        assert_eq!(message.len(), MESSAGE_CHARS_MAX);
        assert!(!message.contains('\n'));
    }
}
