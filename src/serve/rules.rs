//! Which requests are answered. Pure.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{Method, StatusCode, header};
use percent_encoding::percent_decode_str;

/// The times after which the browser may ask again.
const REFRESH_S: RangeInclusive<u32> = 5..=3600;

/// What the server has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// Whether the process should be restarted.
    Healthz,
    /// Whether the process does its work.
    Readyz,
    /// Metrics for Prometheus.
    Metrics,
    /// The status page.
    Page,
    /// Its data as JSON.
    StatusJson,
    /// The page of an entity.
    Entity(String),
}

/// A request that is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It names a host that is not this server.
    Host,
    /// Its method is neither GET nor HEAD.
    Method,
    /// The path does not exist.
    Path,
    /// The page is not served on this address.
    PageElsewhere,
    /// The time after which the browser asks again is not one.
    Refresh,
}

impl Refusal {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Host => StatusCode::MISDIRECTED_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Path | Self::PageElsewhere => StatusCode::NOT_FOUND,
            Self::Refresh => StatusCode::BAD_REQUEST,
        }
    }

    /// What is wrong, in a line.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Host => {
                "the request names a host that this server does not know; hint: elven-sync serve --host NAME"
            }
            Self::Method => "only GET and HEAD are possible here",
            Self::Path => "elven-sync has /, /entities/ID, /status.json, /healthz, /readyz and /metrics here",
            Self::Refresh => "refresh takes whole seconds from 5 to 3600; hint: /?refresh=30",
            Self::PageElsewhere => {
                "elven-sync has /healthz, /readyz and /metrics here; the page is served on a loopback address, or \
                 with --page"
            }
        }
    }
}

/// Returns the time in seconds after which the browser asks again, if the query of a request names one.
pub(super) fn refresh_s(query: Option<&str>) -> Result<Option<u32>, Refusal> {
    let mut named = query.unwrap_or_default().split('&').filter_map(|pair| pair.strip_prefix("refresh="));
    let Some(seconds) = named.next() else { return Ok(None) };
    let is_whole = seconds.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = seconds.parse().ok().filter(|seconds| is_whole && REFRESH_S.contains(seconds));
    if named.next().is_none() && seconds.is_some() { Ok(seconds) } else { Err(Refusal::Refresh) }
}

/// What a server answers.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// The address on which it listens.
    pub listen: IpAddr,
    /// Other host names that requests may name.
    pub hosts: Vec<String>,
    /// The page is served on any address.
    pub page: bool,
}

impl Rules {
    /// Returns what a request asks for.
    pub(super) fn endpoint(&self, head: &Parts) -> Result<Endpoint, Refusal> {
        if !self.is_ours(head) {
            return Err(Refusal::Host);
        }
        if head.method != Method::GET && head.method != Method::HEAD {
            return Err(Refusal::Method);
        }
        match head.uri.path() {
            "/healthz" => Ok(Endpoint::Healthz),
            "/readyz" => Ok(Endpoint::Readyz),
            "/metrics" => Ok(Endpoint::Metrics),
            _ if !self.has_page() => Err(Refusal::PageElsewhere),
            "/" => Ok(Endpoint::Page),
            "/status.json" => Ok(Endpoint::StatusJson),
            path => {
                // An id can contain a slash, so the rest of the path is the id.
                let id = path.strip_prefix("/entities/").filter(|id| !id.is_empty());
                let id = id.and_then(|id| percent_decode_str(id).decode_utf8().ok());
                id.map(|id| Endpoint::Entity(id.into_owned())).ok_or(Refusal::Path)
            }
        }
    }

    /// Returns whether the page is served on this address.
    pub(super) fn has_page(&self) -> bool {
        self.page || self.listen.to_canonical().is_loopback()
    }

    /// Returns whether the request is meant for this server.
    ///
    /// A page of another site can let its own host name lead to this address (DNS rebinding). The browser then lets the
    /// page read the answers, but names that host name.
    fn is_ours(&self, head: &Parts) -> bool {
        let mut named = head.headers.get_all(header::HOST).iter();
        let (Some(host), None) = (named.next(), named.next()) else { return false };
        let in_header = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
        in_header.is_some_and(|authority| self.allows(&authority))
            && head.uri.authority().is_none_or(|authority| self.allows(authority))
    }

    /// Returns whether a host is this server. The port is not compared: it may be forwarded from another one.
    fn allows(&self, authority: &Authority) -> bool {
        let host = authority.host();
        let host = host.strip_suffix('.').unwrap_or(host);
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = literal.parse::<IpAddr>() {
            let (address, listen) = (address.to_canonical(), self.listen.to_canonical());
            // On all addresses, each address of the machine is the address; nobody can rebind a number.
            return address.is_loopback()
                || address == listen
                || listen.is_unspecified()
                || self.hosts.iter().any(|known| known.parse() == Ok(address));
        }
        host.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|known| host.eq_ignore_ascii_case(known))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn asked(listen: &str, page: bool, method: &str, uri: &str, hosts: &[&str]) -> Result<Endpoint, Refusal> {
        let rules =
            Rules { listen: listen.parse().unwrap(), hosts: vec!["metrics.internal".to_owned()], page };
        let request = Request::builder().method(method).uri(uri);
        let request = hosts.iter().fold(request, |request, host| request.header("host", *host));
        rules.endpoint(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn only_hosts_of_this_server_are_answered() {
        let (ours, theirs) = (Ok(Endpoint::Healthz), Err(Refusal::Host));
        for (listen, host, expected) in [
            ("127.0.0.1", "127.0.0.1:9464", &ours),
            ("127.0.0.1", "localhost:9464", &ours),
            ("127.0.0.1", "LOCALHOST.", &ours),
            ("127.0.0.1", "[::1]:9464", &ours),
            ("127.0.0.1", "127.9.9.9", &ours),
            ("127.0.0.1", "metrics.INTERNAL:1", &ours),
            ("127.0.0.1", "10.0.0.1:9464", &theirs),
            ("127.0.0.1", "evil.example", &theirs),
            ("127.0.0.1", "evil.example:9464", &theirs),
            ("127.0.0.1", "localhost.evil.example", &theirs),
            ("127.0.0.1", "127.0.0.1.evil.example", &theirs),
            ("127.0.0.1", "localhost@evil.example", &theirs),
            ("127.0.0.1", "", &theirs),
            ("10.0.0.1", "10.0.0.1:9464", &ours),
            ("10.0.0.1", "10.0.0.2", &theirs),
            ("10.0.0.1", "evil.example", &theirs),
            ("0.0.0.0", "10.0.0.2:9464", &ours),
            ("::", "[fd00::1]:9464", &ours),
            ("0.0.0.0", "evil.example", &theirs),
        ] {
            assert_eq!(&asked(listen, false, "GET", "/healthz", &[host]), expected, "{host} at {listen}");
        }
        assert_eq!(&asked("127.0.0.1", false, "GET", "/healthz", &[]), &theirs);
        assert_eq!(&asked("127.0.0.1", false, "GET", "/healthz", &["localhost", "localhost"]), &theirs);
        assert_eq!(&asked("127.0.0.1", false, "GET", "http://evil.example/healthz", &["localhost"]), &theirs);
    }

    #[test]
    fn other_addresses_than_loopback_have_three_paths_unless_the_page_is_asked_for() {
        for (listen, page, path, expected) in [
            ("127.0.0.1", false, "/metrics?x=1", Ok(Endpoint::Metrics)),
            ("127.0.0.1", false, "/", Ok(Endpoint::Page)),
            ("::ffff:127.0.0.1", false, "/", Ok(Endpoint::Page)),
            ("::1", false, "/entities/acme", Ok(Endpoint::Entity("acme".to_owned()))),
            ("::1", false, "/entities/a%2Fb/c%20%25", Ok(Endpoint::Entity("a/b/c %".to_owned()))),
            ("::1", false, "/entities/%FF", Err(Refusal::Path)),
            ("::1", false, "/entities/", Err(Refusal::Path)),
            ("::1", false, "/status.json", Ok(Endpoint::StatusJson)),
            ("::1", false, "/other", Err(Refusal::Path)),
            ("10.0.0.1", false, "/status.json", Err(Refusal::PageElsewhere)),
            ("10.0.0.1", false, "/readyz", Ok(Endpoint::Readyz)),
            ("10.0.0.1", false, "/metrics", Ok(Endpoint::Metrics)),
            ("10.0.0.1", false, "/", Err(Refusal::PageElsewhere)),
            ("0.0.0.0", false, "/entities/acme", Err(Refusal::PageElsewhere)),
            ("10.0.0.1", true, "/", Ok(Endpoint::Page)),
        ] {
            assert_eq!(asked(listen, page, "GET", path, &["localhost"]), expected, "{path} at {listen}");
        }
    }

    #[test]
    fn only_get_and_head_are_answered() {
        for method in ["GET", "HEAD"] {
            assert!(asked("127.0.0.1", false, method, "/healthz", &["localhost"]).is_ok(), "{method}");
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "PATCH", "get"] {
            let refused = asked("127.0.0.1", false, method, "/healthz", &["localhost"]);
            assert_eq!(refused, Err(Refusal::Method), "{method}");
        }
    }

    #[test]
    fn refresh_takes_5_seconds_to_an_hour() {
        for (query, expected) in [
            (None, Ok(None)),
            (Some(""), Ok(None)),
            (Some("other=1"), Ok(None)),
            (Some("refresh=30"), Ok(Some(30))),
            (Some("a=b&refresh=5"), Ok(Some(5))),
            (Some("refresh=3600"), Ok(Some(3600))),
            (Some("refresh=4"), Err(Refusal::Refresh)),
            (Some("refresh=3601"), Err(Refusal::Refresh)),
            (Some("refresh=+30"), Err(Refusal::Refresh)),
            (Some("refresh=30;url=//evil"), Err(Refusal::Refresh)),
            (Some("refresh="), Err(Refusal::Refresh)),
            (Some("refresh=30&refresh=40"), Err(Refusal::Refresh)),
        ] {
            assert_eq!(refresh_s(query), expected, "{query:?}");
        }
    }
}
