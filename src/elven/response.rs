//! Classifies an answer: a pure function of the answer.

use std::time::Duration;

use chrono::TimeDelta;

use super::envelope::{Envelope, Reason, Says};

/// The result of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An HTTP response.
    Response {
        /// The HTTP status.
        status: u16,
        /// The meaning of its body.
        envelope: Envelope,
        /// How long the API asks to wait (`Retry-After`, RFC 9110).
        retry_after: Option<Duration>,
        /// How far the API's clock (`Date`) is ahead of the clock that signed the request.
        ahead: Option<TimeDelta>,
    },
    /// The connection could not be opened: nothing was sent.
    NotSent(String),
    /// The connection opened late: nothing was sent. It is kept open for the next signed request.
    OpenedLate,
    /// A time-out or a broken connection after the request may have been written: the outcome is unknown.
    Lost(String),
}

/// The class of an answer; one variant for each reaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResponseClass {
    /// The records were imported.
    Accepted,
    /// The content was refused.
    Refused(Reason),
    /// The body is too large.
    TooLarge,
    /// The key, the signature, a permission or the clock is wrong; with how far the API's clock is ahead.
    Unauthorized(Reason, Option<TimeDelta>),
    /// The URL is wrong, or the API changed.
    UnexpectedApi,
    /// A proxy or a firewall answered with a page instead of the API.
    Intercepted,
    /// Throttled: not imported; send again later.
    Throttled(Option<Duration>),
    /// Nothing was sent, or the service processed nothing.
    NotSent(String),
    /// It is unknown whether the records were imported.
    Unknown(String),
}

/// Classifies an answer by the table of the contract. The status decides first, because a proxy may have written any
/// body.
pub fn classify(answer: &Answer) -> ResponseClass {
    let (status, envelope, retry_after, ahead) = match answer {
        Answer::Response { status, envelope, retry_after, ahead } => {
            (*status, envelope, *retry_after, *ahead)
        }
        Answer::NotSent(reason) => return ResponseClass::NotSent(reason.clone()),
        Answer::OpenedLate => return ResponseClass::NotSent("connecting took too long".to_owned()),
        Answer::Lost(reason) => return ResponseClass::Unknown(reason.clone()),
    };
    let reason = || envelope.reason.clone();
    match status {
        200..300 => match envelope.says {
            Says::Yes => ResponseClass::Accepted,
            Says::No => ResponseClass::Refused(reason()),
            Says::Nothing => ResponseClass::Unknown("the answer is not the documented JSON".to_owned()),
            Says::Unreadable(why) => ResponseClass::Unknown(why.to_owned()),
        },
        404 | 405 | 407 | 410 | 451 => ResponseClass::UnexpectedApi,
        400 | 401 | 403 | 422 if envelope.is_page => ResponseClass::Intercepted,
        413 => ResponseClass::TooLarge,
        408 | 425 | 429 => ResponseClass::Throttled(retry_after),
        503 if retry_after.is_some() => ResponseClass::Throttled(retry_after),
        503 => ResponseClass::NotSent("the service is unavailable".to_owned()),
        401 | 403 => ResponseClass::Unauthorized(reason(), ahead),
        400 | 422 => ResponseClass::Refused(reason()),
        400..500 if envelope.is_failure => ResponseClass::Refused(reason()),
        500..600 => ResponseClass::Unknown("the service failed".to_owned()),
        _ => ResponseClass::UnexpectedApi,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elven::envelope::MESSAGE_CHARS_MAX;

    fn response(status: u16, body: &str) -> Answer {
        let envelope = Envelope::read(body.as_bytes(), None);
        Answer::Response { status, envelope, retry_after: None, ahead: None }
    }

    fn response_later(status: u16, body: &str) -> Answer {
        let envelope = Envelope::read(body.as_bytes(), None);
        Answer::Response { status, envelope, retry_after: Some(LATER), ahead: None }
    }

    const LATER: Duration = Duration::from_secs(7);

    const FAILURE: &str = r#"{"status":"failed","data":{"code":19734,"message":"The address is invalid"}}"#;
    const PAGE: &str = " \n<html>blocked</html>";
    const TOP: &str = r#"{"code":5,"message":"no"}"#;

    fn reason() -> Reason {
        Reason { code: Some("19734".into()), message: Some("The address is invalid".into()) }
    }

    fn of_top() -> Reason {
        Reason { code: Some("5".into()), message: Some("no".into()) }
    }

    #[test]
    fn every_row_of_the_table_for_a_2xx() {
        let nothing = || ResponseClass::Refused(Reason::default());
        let unknown_json = || ResponseClass::Unknown("the answer is not the documented JSON".into());
        let table = [
            (response(200, r#"{"success":true}"#), ResponseClass::Accepted),
            (response(201, r#"{"success": true, "more": 1}"#), ResponseClass::Accepted),
            (response(200, r#"{"success":"true"}"#), ResponseClass::Accepted),
            (response(202, r#"{"status":"success","data":{}}"#), ResponseClass::Accepted),
            (response(200, r#"{"success":"success","data":true}"#), ResponseClass::Accepted),
            (response_later(200, r#"{"success":true}"#), ResponseClass::Accepted),
            (response(200, r#"{"success":false}"#), nothing()),
            (response(200, r#"{"status":"error","data":{}}"#), nothing()),
            (response(200, r#"{"success":"success","data":false}"#), nothing()),
            (response(200, FAILURE), ResponseClass::Refused(reason())),
            (response(200, r#"{"success":false,"code":5,"message":"no"}"#), ResponseClass::Refused(of_top())),
            (response(200, r#"{"data":{"success":true}}"#), unknown_json()),
            (response(200, "<html>welcome</html>"), unknown_json()),
            (response(204, ""), unknown_json()),
        ];
        for (answer, expected) in table {
            assert_eq!(classify(&answer), expected, "{answer:?}");
        }
    }

    #[test]
    fn every_other_row_of_the_table() {
        let (reason, of_top) = (reason(), of_top());
        let refused = || ResponseClass::Refused(reason.clone());
        let nothing = || ResponseClass::Refused(Reason::default());
        let unknown_service = || ResponseClass::Unknown("the service failed".into());
        let unavailable = || ResponseClass::NotSent("the service is unavailable".into());
        let table = [
            (response(301, ""), ResponseClass::UnexpectedApi),
            (response(308, r#"{"success":true}"#), ResponseClass::UnexpectedApi),
            (response(404, "<html>"), ResponseClass::UnexpectedApi),
            (response(404, r#"{"success":true}"#), ResponseClass::UnexpectedApi),
            (response(404, FAILURE), ResponseClass::UnexpectedApi),
            (response(405, FAILURE), ResponseClass::UnexpectedApi),
            (response(407, FAILURE), ResponseClass::UnexpectedApi),
            (response(410, FAILURE), ResponseClass::UnexpectedApi),
            (response(451, FAILURE), ResponseClass::UnexpectedApi),
            (response(400, PAGE), ResponseClass::Intercepted),
            (response(401, PAGE), ResponseClass::Intercepted),
            (response(403, PAGE), ResponseClass::Intercepted),
            (response(422, PAGE), ResponseClass::Intercepted),
            (response(413, PAGE), ResponseClass::TooLarge),
            (response(413, FAILURE), ResponseClass::TooLarge),
            (response(408, ""), ResponseClass::Throttled(None)),
            (response(425, PAGE), ResponseClass::Throttled(None)),
            (response(429, FAILURE), ResponseClass::Throttled(None)),
            (response_later(429, ""), ResponseClass::Throttled(Some(LATER))),
            (response_later(503, PAGE), ResponseClass::Throttled(Some(LATER))),
            (response(503, FAILURE), unavailable()),
            (response(503, PAGE), unavailable()),
            (response(503, r#"{"success":true}"#), unavailable()),
            (response(401, FAILURE), ResponseClass::Unauthorized(reason.clone(), None)),
            (response(403, ""), ResponseClass::Unauthorized(Reason::default(), None)),
            (response(403, TOP), ResponseClass::Unauthorized(of_top.clone(), None)),
            (response(400, FAILURE), refused()),
            (response(400, ""), nothing()),
            (response(400, TOP), ResponseClass::Refused(of_top)),
            (response(422, r#"{"success":true}"#), nothing()),
            (response(402, FAILURE), refused()),
            (response(409, FAILURE), refused()),
            (response(418, r#"{"success":false}"#), nothing()),
            (response(409, TOP), ResponseClass::UnexpectedApi),
            (response(409, PAGE), ResponseClass::UnexpectedApi),
            (response(402, ""), ResponseClass::UnexpectedApi),
            (response(500, r#"{"success":true}"#), unknown_service()),
            (response(502, "<html>"), unknown_service()),
            (response(504, ""), unknown_service()),
            (response_later(500, ""), unknown_service()),
            (Answer::NotSent("refused".into()), ResponseClass::NotSent("refused".into())),
            (Answer::OpenedLate, ResponseClass::NotSent("connecting took too long".into())),
            (Answer::Lost("timed out".into()), ResponseClass::Unknown("timed out".into())),
        ];
        for (answer, expected) in table {
            assert_eq!(classify(&answer), expected, "{answer:?}");
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
    fn a_short_key_garbles_no_message() {
        let mut reason = Reason { code: None, message: Some("no such key".to_owned()) };
        reason.without(&["k", "such"]);
        assert_eq!(reason.message.as_deref(), Some("no such key"));
    }

    #[test]
    fn a_foreign_message_is_cut_and_cleaned() {
        let body = format!(r#"{{"data":{{"message":"a\n{}"}}}}"#, "x".repeat(1000));
        let ResponseClass::Refused(mut reason) = classify(&response(400, &body)) else { panic!("refused") };
        reason.without(&[]);
        let message = reason.message.unwrap();
        assert_eq!(message.len(), MESSAGE_CHARS_MAX);
        assert!(!message.contains('\n'));
    }
}
