//! Authentication: checks the three headers of a request in a fixed order; pure.

use std::time::Duration;

use axum::http::HeaderMap;
use secrecy::{ExposeSecret, SecretString};

use super::refusal::{Code, Refusal};
use crate::elven::signing::{KEY_HEADER, SIGN_HEADER, TIMESTAMP_HEADER, verify};

/// An API key that the sandbox knows. Key and secret are never shown.
#[derive(Clone, Debug)]
pub struct Credential {
    /// The label of the key's requests and records; not secret.
    pub label: String,
    /// The API key.
    pub key: SecretString,
    /// The secret that signs requests.
    pub secret: SecretString,
}

impl Credential {
    /// A key with its secret, shown as `label`.
    pub fn new(label: &str, key: &str, secret: &str) -> Self {
        Self { label: label.to_owned(), key: key.into(), secret: secret.into() }
    }
}

/// Checks the credentials and signatures of requests.
pub(super) struct Gatekeeper<'s> {
    pub(super) credentials: &'s [Credential],
    /// The server's clock, Unix time in milliseconds.
    pub(super) now_ms: i64,
    /// The largest difference between a timestamp and that clock, in both directions.
    pub(super) window: Duration,
}

impl Gatekeeper<'_> {
    /// Returns the credential that a request names, without a check of the signature.
    pub(super) fn named(&self, headers: &HeaderMap) -> Option<&Credential> {
        let key = single(headers, KEY_HEADER).ok()?;
        self.credentials.iter().find(|known| known.key.expose_secret() == key)
    }

    /// Checks, in this order: the headers are present, the key is known, the timestamp is within the window, and the
    /// signature is valid for this timestamp, method and path (with the query string, as received).
    pub(super) fn admit(&self, headers: &HeaderMap, method: &str, path: &str) -> Result<(), Refusal> {
        single(headers, KEY_HEADER)?;
        let timestamp = single(headers, TIMESTAMP_HEADER)?;
        let signature = single(headers, SIGN_HEADER)?;
        let credential = self
            .named(headers)
            .ok_or_else(|| Refusal::new(Code::KeyUnknown, format!("the key in {KEY_HEADER} is not known")))?;
        let timestamp_ms = self.fresh(timestamp)?;
        if verify(&credential.secret, timestamp_ms, method, path, signature) {
            return Ok(());
        }
        let message =
            format!("{SIGN_HEADER} is not the signature of this timestamp, {method} and path and query");
        Err(Refusal::new(Code::SignatureWrong, message))
    }

    fn fresh(&self, timestamp: &str) -> Result<i64, Refusal> {
        // The signature covers the text of the header, but is checked with the number. So other spellings of the number
        // ("+1", "01") are refused.
        let timestamp_ms = timestamp
            .parse::<i64>()
            .ok()
            .filter(|timestamp_ms| timestamp_ms.to_string() == timestamp)
            .ok_or_else(|| {
                Refusal::new(Code::TimestampMalformed, format!("{TIMESTAMP_HEADER} is not a whole number"))
            })?;
        let off_ms = timestamp_ms.abs_diff(self.now_ms);
        if u128::from(off_ms) <= self.window.as_millis() {
            return Ok(timestamp_ms);
        }
        let message = format!(
            "{TIMESTAMP_HEADER} is {off_ms} ms from the server's clock, {} ms are allowed; its unit is milliseconds",
            self.window.as_millis()
        );
        Err(Refusal::new(Code::TimestampStale, message))
    }
}

/// Returns the only value of a header.
fn single<'h>(headers: &'h HeaderMap, name: &str) -> Result<&'h str, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next().map(|value| value.to_str()), values.next()) {
        (Some(Ok(value)), None) if !value.is_empty() => Ok(value),
        _ => {
            Err(Refusal::new(Code::HeaderMissing, format!("{name} is missing, empty, repeated or not ASCII")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elven::signing::sign;

    const NOW_MS: i64 = 1_721_209_655_047;

    /// The code with which a correctly signed request is refused after `change` altered its headers.
    fn judge(timestamp_ms: i64, change: impl FnOnce(&mut HeaderMap)) -> Option<Code> {
        let credentials = [Credential::new("acme", "key", "secret")];
        let gate = Gatekeeper { credentials: &credentials, now_ms: NOW_MS, window: Duration::from_secs(30) };
        let signature = sign(&credentials[0].secret, timestamp_ms, "GET", "/open?page=1");
        let mut headers = HeaderMap::new();
        headers.insert(KEY_HEADER, "key".parse().unwrap());
        headers.insert(TIMESTAMP_HEADER, timestamp_ms.to_string().parse().unwrap());
        headers.insert(SIGN_HEADER, signature.parse().unwrap());
        change(&mut headers);
        gate.admit(&headers, "GET", "/open?page=1").err().map(|refusal| refusal.code)
    }

    #[test]
    fn the_window_is_inclusive_and_works_both_ways() {
        for off_ms in [0, 30_000, -30_000] {
            assert_eq!(judge(NOW_MS + off_ms, |_| ()), None, "{off_ms}");
        }
        for off_ms in [30_001, -30_001, -NOW_MS, NOW_MS / 1000 - NOW_MS] {
            assert_eq!(judge(NOW_MS + off_ms, |_| ()), Some(Code::TimestampStale), "{off_ms}");
        }
        for timestamp_ms in [i64::MIN, i64::MAX] {
            assert_eq!(judge(timestamp_ms, |_| ()), Some(Code::TimestampStale));
        }
    }

    #[test]
    fn every_header_is_needed_once() {
        for name in [KEY_HEADER, TIMESTAMP_HEADER, SIGN_HEADER] {
            assert_eq!(
                judge(NOW_MS, |headers| drop(headers.remove(name))),
                Some(Code::HeaderMissing),
                "{name}"
            );
            let empty = |headers: &mut HeaderMap| drop(headers.insert(name, "".parse().unwrap()));
            assert_eq!(judge(NOW_MS, empty), Some(Code::HeaderMissing), "{name}");
            let twice = |headers: &mut HeaderMap| {
                let value = headers[name].clone();
                headers.append(name, value);
            };
            assert_eq!(judge(NOW_MS, twice), Some(Code::HeaderMissing), "{name}");
        }
    }

    #[test]
    fn other_spellings_of_a_timestamp_are_refused() {
        for text in [format!("+{NOW_MS}"), format!("0{NOW_MS}"), format!("{NOW_MS}.0"), "now".to_owned()] {
            let change =
                |headers: &mut HeaderMap| drop(headers.insert(TIMESTAMP_HEADER, text.parse().unwrap()));
            assert_eq!(judge(NOW_MS, change), Some(Code::TimestampMalformed), "{text}");
        }
    }

    #[test]
    fn the_checks_have_an_order() {
        let set = |name: &'static str, value: &'static str| {
            move |headers: &mut HeaderMap| drop(headers.insert(name, value.parse().unwrap()))
        };
        assert_eq!(judge(0, set(KEY_HEADER, "another")), Some(Code::KeyUnknown), "before the timestamp");
        assert_eq!(judge(0, set(SIGN_HEADER, "wrong")), Some(Code::TimestampStale), "before the signature");
        assert_eq!(judge(NOW_MS, set(SIGN_HEADER, "wrong")), Some(Code::SignatureWrong));
    }
}
