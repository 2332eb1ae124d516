//! The HTTP client: one connection pool, no redirects, bounded answers.

use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect;
use secrecy::ExposeSecret;
use url::Url;

use super::sign::{KEY_HEADER, SIGN_HEADER, TIMESTAMP_HEADER, sign};
use super::verdict::Answer;
use crate::config::{Credential, is_loopback};

/// Path of "Import Account Balances".
pub const IMPORT_PATH: &str = "/open/v3/account/treasuryBalance";
/// An answer is read up to this many bytes; the documented ones are far shorter.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client for one API address.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    import_url: Url,
}

/// The headers of one attempt. Made right before sending: a signature ages.
#[derive(Debug)]
pub struct Signed(HeaderMap);

impl Client {
    /// Builds a client. Proxies from the environment are honoured, except for loopback.
    pub fn new(api_url: &Url, timeout: Duration) -> Result<Self, reqwest::Error> {
        // Another part of the process may have installed the same provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("elven-sync/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(timeout)
            .tcp_nodelay(true);
        if is_loopback(api_url) {
            http = http.no_proxy();
        }
        let mut import_url = api_url.clone();
        import_url.set_path(IMPORT_PATH);
        Ok(Self { http: http.build()?, import_url })
    }

    /// Signs an import with the present time.
    ///
    /// # Errors
    /// Key or signature are not fit for a header. The message does not repeat them.
    pub fn sign_import(
        &self,
        credential: &Credential,
    ) -> Result<Signed, reqwest::header::InvalidHeaderValue> {
        let timestamp_ms = Utc::now().timestamp_millis();
        let signature = sign(&credential.secret, timestamp_ms, "POST", IMPORT_PATH);
        let mut headers = HeaderMap::with_capacity(4);
        for (name, value) in [
            (KEY_HEADER, credential.key.expose_secret()),
            (TIMESTAMP_HEADER, timestamp_ms.to_string().as_str()),
            (SIGN_HEADER, signature.as_str()),
        ] {
            let mut value = HeaderValue::from_str(value)?;
            value.set_sensitive(true);
            headers.insert(HeaderName::from_static(name), value);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(Signed(headers))
    }

    /// Sends one import and waits for its answer. Never fails: what went wrong is the answer.
    pub async fn import(&self, signed: Signed, body: Bytes) -> Answer {
        let request = self.http.post(self.import_url.clone()).headers(signed.0).body(body);
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(problem) if problem.is_connect() => {
                return Answer::NotSent(crate::output::chain(&problem.without_url()));
            }
            Err(problem) => return Answer::Lost(crate::output::chain(&problem.without_url())),
        };
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while body.len() < ANSWER_BYTES_MAX {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    let room = ANSWER_BYTES_MAX - body.len();
                    body.extend_from_slice(&chunk[..chunk.len().min(room)]);
                }
                // The status line came, but what it says of the records may be in the rest.
                Err(problem) if status < 300 => {
                    return Answer::Lost(crate::output::chain(&problem.without_url()));
                }
                Ok(None) | Err(_) => break,
            }
        }
        Answer::Response { status, body }
    }
}
