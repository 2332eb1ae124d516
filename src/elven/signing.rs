//! The request signature: base64 of HMAC-SHA256 over `timestamp + METHOD + path`.
//!
//! The body is not covered (see the API's page on authentication), so a signature proves who sent a request and when,
//! not what it contains. It expires: the API refuses a timestamp that differs by more than 30 s (an older page says 5
//! s) from its own clock. So every attempt is signed again.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

/// The header with the API key.
pub const KEY_HEADER: &str = "elven-api-key";
/// The header with the Unix time of the signature, in milliseconds.
pub const TIMESTAMP_HEADER: &str = "elven-api-timestamp";
/// The header with the signature.
pub const SIGN_HEADER: &str = "elven-api-sign";

/// Signs one request.
///
/// `timestamp_ms` is Unix time in milliseconds, `method` is upper case, and `path` begins with `/`, has no host and
/// includes the query string if there is one.
pub fn sign(secret: &SecretString, timestamp_ms: i64, method: &str, path: &str) -> String {
    let mac = mac(secret, timestamp_ms, method, path);
    STANDARD.encode(mac.finalize().into_bytes())
}

/// Returns whether `signature` is the result of [`sign`], in time that does not depend on how much of it matches.
pub fn verify(secret: &SecretString, timestamp_ms: i64, method: &str, path: &str, signature: &str) -> bool {
    STANDARD
        .decode(signature)
        .is_ok_and(|tag| mac(secret, timestamp_ms, method, path).verify_slice(&tag).is_ok())
}

fn mac(secret: &SecretString, timestamp_ms: i64, method: &str, path: &str) -> Hmac<Sha256> {
    #[expect(clippy::expect_used, reason = "HMAC takes a key of any length (RFC 2104)")]
    let mut mac = Hmac::new_from_slice(secret.expose_secret().as_bytes()).expect("any key length");
    for part in [timestamp_ms.to_string().as_str(), method, path] {
        mac.update(part.as_bytes());
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vector that the vendor publishes.
    #[test]
    fn published_vector() {
        let secret = SecretString::from("BjGiqCWfHGCrl065dlEBWFO5vLj7Hqie");
        let expected = "LVT5aXA9064gpgZrPXPLJB/Aq9r45yMF10sTZQTteyE=";
        assert_eq!(sign(&secret, 1_721_209_655_047, "POST", "/open/v3/businessData"), expected);
        assert!(verify(&secret, 1_721_209_655_047, "POST", "/open/v3/businessData", expected));
    }

    #[test]
    fn every_part_is_covered() {
        let secret = SecretString::from("secret");
        let signature = sign(&secret, 1, "GET", "/a?page=1");
        assert!(verify(&secret, 1, "GET", "/a?page=1", &signature));
        assert!(!verify(&secret, 2, "GET", "/a?page=1", &signature));
        assert!(!verify(&secret, 1, "POST", "/a?page=1", &signature));
        assert!(!verify(&secret, 1, "GET", "/a?page=2", &signature));
        assert!(!verify(&SecretString::from("other"), 1, "GET", "/a?page=1", &signature));
        assert!(!verify(&secret, 1, "GET", "/a?page=1", "not base64"));
    }
}
