//! How each HTTP client of the program is set up, and what all answers have in common.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::header::{HeaderName, RETRY_AFTER};
use reqwest::redirect;
use url::Url;

use crate::config::is_loopback;

/// The longest `Retry-After` that is obeyed.
pub const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns a client for one URL. It uses the proxies of the environment, except for loopback addresses, and follows no
/// redirect. `timeout`: the time limit of a request, including its answer.
pub fn client_builder(url: &Url, timeout: Duration) -> reqwest::ClientBuilder {
    // Another part of the process may have installed the same provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut http = reqwest::Client::builder()
        .user_agent(concat!("elven-sync/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(timeout)
        .tcp_nodelay(true);
    if is_loopback(url) {
        http = http.no_proxy();
    }
    if url.scheme() == "http" {
        // Without encryption, the certificates of the system are not needed.
        http = http.tls_certs_only([]);
    }
    http
}

/// Returns how long an answer asks to wait. `said_at`: when it was made, by the clock of its date.
pub fn retry_after(response: &reqwest::Response, said_at: DateTime<Utc>) -> Option<Duration> {
    header(response, &RETRY_AFTER).and_then(|text| wait(text, said_at))
}

pub(super) fn header<'a>(response: &'a reqwest::Response, name: &HeaderName) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

pub(super) fn date(text: &str) -> Option<DateTime<Utc>> {
    httpdate::parse_http_date(text.trim()).ok().map(DateTime::from)
}

/// Parses `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3). `said_at`: when the answer was made, by the
/// clock that also made the date.
fn wait(text: &str, said_at: DateTime<Utc>) -> Option<Duration> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let wait = if is_number {
        // A number that is too large for the type is longer than the longest wait.
        text.parse().map_or(Duration::MAX, Duration::from_secs)
    } else {
        (date(text)? - said_at).to_std().unwrap_or_default()
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        let said_at = DateTime::parse_from_rfc3339("2026-01-01T12:00:00Z").unwrap().to_utc();
        for (text, expected) in [
            ("0", Some(0)),
            (" 7 ", Some(7)),
            ("99999999", Some(3600)),
            ("99999999999999999999999", Some(3600)),
            ("Thu, 01 Jan 2026 12:00:09 GMT", Some(9)),
            ("Thu, 01 Jan 2026 11:00:00 GMT", Some(0)),
            ("Fri, 02 Jan 2026 12:00:00 GMT", Some(3600)),
            ("soon", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(wait(text, said_at), expected.map(Duration::from_secs), "{text:?}");
        }
    }
}
