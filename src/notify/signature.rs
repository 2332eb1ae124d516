//! Signatures of messages: Standard Webhooks 1.0.0, symmetric.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretBox};
use sha2::Sha256;

/// Returns the value of `webhook-signature`: a signature by each secret. `timestamp_s`: the Unix time of the attempt.
pub(super) fn signatures(secrets: &[SecretBox<[u8]>], id: &str, timestamp_s: i64, body: &str) -> String {
    let signed = |secret: &SecretBox<[u8]>| {
        #[expect(clippy::expect_used, reason = "HMAC takes a key of any length (RFC 2104)")]
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret()).expect("any key length");
        mac.update(format!("{id}.{timestamp_s}.{body}").as_bytes());
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    };
    secrets.iter().map(signed).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(base64: &str) -> SecretBox<[u8]> {
        SecretBox::new(STANDARD.decode(base64).unwrap().into_boxed_slice())
    }

    /// The vector of the libraries of Standard Webhooks.
    #[test]
    fn published_vector() {
        let secrets = [secret("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")];
        let signed =
            signatures(&secrets, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn each_secret_signs() {
        let secrets =
            [secret("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), secret("bmV3LXNlY3JldC1vZi0yNC1ieXRlcy4u")];
        let both = signatures(&secrets, "msg_1", 1, "{}");
        let each: Vec<String> =
            secrets.iter().map(|one| signatures(std::slice::from_ref(one), "msg_1", 1, "{}")).collect();
        assert_eq!(both, each.join(" "));
        assert_ne!(each[0], each[1]);
    }
}
