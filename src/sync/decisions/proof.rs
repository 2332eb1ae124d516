//! When a credential is proven good.

use crate::elven::{Answer, ResponseClass};

/// The most requests that a run sends for an entity after a batch was refused, as long as nothing is accepted.
const REQUESTS_MAX: u32 = 20;

/// Why the credential and the endpoint are not known to be good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sync) enum Unproven {
    /// The probe failed for now: its answer, and the HTTP status.
    Later(ResponseClass, Option<i32>),
    /// The probe was answered with this 4xx status: the key may be permitted to import only.
    NoList(u16),
    /// The probe was answered in another way than is documented.
    Otherwise(String),
}

/// Decides what the answer to the probe proves, a signed call that only reads. `class`: the class of the answer.
pub(in crate::sync) fn of_probe(answer: &Answer, class: ResponseClass) -> Result<(), Unproven> {
    let status = match answer {
        Answer::Response { status: 200..300, envelope, .. } if envelope.is_list => return Ok(()),
        Answer::Response { status, .. } => Some(*status),
        Answer::NotSent(_) | Answer::OpenedLate | Answer::Lost(_) => None,
    };
    Err(match (class, status) {
        (class @ (ResponseClass::Throttled(_) | ResponseClass::NotSent(_)), _) => {
            Unproven::Later(class, status.map(i32::from))
        }
        (class @ ResponseClass::Unknown(_), status) if status.is_none_or(|status| status >= 500) => {
            Unproven::Later(class, status.map(i32::from))
        }
        (_, Some(status @ 400..500)) => Unproven::NoList(status),
        (_, status) => {
            Unproven::Otherwise(status.map_or_else(String::new, |status| format!("HTTP {status}")))
        }
    })
}

/// Whether one more part may be sent to prove a credential, after so many requests. One request is reserved for a
/// record that was accepted before.
pub(in crate::sync) fn allows_more(requests: u32) -> bool {
    requests + 1 < REQUESTS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elven::{Envelope, classify};

    fn probed(status: u16, body: &str) -> Result<(), Unproven> {
        let envelope = Envelope::read(body.as_bytes(), Some("application/json"));
        let answer = Answer::Response { status, envelope, retry_after: None, ahead: None };
        of_probe(&answer, classify(&answer))
    }

    #[test]
    fn only_a_list_proves_the_credential() {
        let list = r#"{"data":{"list":[]}}"#;
        assert_eq!(probed(200, list), Ok(()));
        for status in [400, 401, 403, 404, 422] {
            assert_eq!(probed(status, "{}"), Err(Unproven::NoList(status)));
        }
        for (status, body) in [(200, "{}"), (302, list)] {
            assert_eq!(probed(status, body), Err(Unproven::Otherwise(format!("HTTP {status}"))));
        }
        for status in [429, 500, 503] {
            assert!(matches!(probed(status, list), Err(Unproven::Later(..))), "{status}");
        }
        let cut = Answer::Lost("cut".to_owned());
        assert!(matches!(of_probe(&cut, classify(&cut)), Err(Unproven::Later(_, None))));
    }

    #[test]
    fn a_proof_sends_at_most_20_requests() {
        assert!(allows_more(18) && !allows_more(19));
    }
}
