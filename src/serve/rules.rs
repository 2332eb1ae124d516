//! Which requests are answered. Pure.

use std::net::IpAddr;

use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{Method, StatusCode, header};

/// What the server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// Whether the process should be restarted.
    Healthz,
    /// Whether the process does its work.
    Readyz,
    /// Metrics for Prometheus.
    Metrics,
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
}

impl Refusal {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Host => StatusCode::MISDIRECTED_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Path | Self::PageElsewhere => StatusCode::NOT_FOUND,
        }
    }

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Host => {
                "the request names a host that this server does not know; hint: elven-sync serve --host NAME\n"
            }
            Self::Method => "only GET and HEAD are possible here\n",
            Self::Path => "elven-sync has /healthz, /readyz and /metrics here\n",
            Self::PageElsewhere => {
                "elven-sync has /healthz, /readyz and /metrics here; the page is served on a loopback address, or \
                 with --page\n"
            }
        }
    }
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
            _ if !self.page && !self.listen.to_canonical().is_loopback() => Err(Refusal::PageElsewhere),
            // The page will be here.
            _ => Err(Refusal::Path),
        }
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
            ("127.0.0.1", "127.0.0.1:9464", ours),
            ("127.0.0.1", "localhost:9464", ours),
            ("127.0.0.1", "LOCALHOST.", ours),
            ("127.0.0.1", "[::1]:9464", ours),
            ("127.0.0.1", "127.9.9.9", ours),
            ("127.0.0.1", "metrics.INTERNAL:1", ours),
            ("127.0.0.1", "10.0.0.1:9464", theirs),
            ("127.0.0.1", "evil.example", theirs),
            ("127.0.0.1", "evil.example:9464", theirs),
            ("127.0.0.1", "localhost.evil.example", theirs),
            ("127.0.0.1", "127.0.0.1.evil.example", theirs),
            ("127.0.0.1", "localhost@evil.example", theirs),
            ("127.0.0.1", "", theirs),
            ("10.0.0.1", "10.0.0.1:9464", ours),
            ("10.0.0.1", "10.0.0.2", theirs),
            ("10.0.0.1", "evil.example", theirs),
            ("0.0.0.0", "10.0.0.2:9464", ours),
            ("::", "[fd00::1]:9464", ours),
            ("0.0.0.0", "evil.example", theirs),
        ] {
            assert_eq!(asked(listen, false, "GET", "/healthz", &[host]), expected, "{host} at {listen}");
        }
        assert_eq!(asked("127.0.0.1", false, "GET", "/healthz", &[]), theirs);
        assert_eq!(asked("127.0.0.1", false, "GET", "/healthz", &["localhost", "localhost"]), theirs);
        assert_eq!(asked("127.0.0.1", false, "GET", "http://evil.example/healthz", &["localhost"]), theirs);
    }

    #[test]
    fn other_addresses_than_loopback_have_three_paths_unless_the_page_is_asked_for() {
        for (listen, page, path, expected) in [
            ("127.0.0.1", false, "/metrics?x=1", Ok(Endpoint::Metrics)),
            ("127.0.0.1", false, "/", Err(Refusal::Path)),
            ("::ffff:127.0.0.1", false, "/", Err(Refusal::Path)),
            ("::1", false, "/entities/acme", Err(Refusal::Path)),
            ("10.0.0.1", false, "/readyz", Ok(Endpoint::Readyz)),
            ("10.0.0.1", false, "/metrics", Ok(Endpoint::Metrics)),
            ("10.0.0.1", false, "/", Err(Refusal::PageElsewhere)),
            ("0.0.0.0", false, "/entities/acme", Err(Refusal::PageElsewhere)),
            ("10.0.0.1", true, "/", Err(Refusal::Path)),
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
}
