//! URLs that requests are sent to.

use url::{Host, Url};

use super::error::{ConfigError, error};

pub(super) const DEFAULT_API_URL: &str = "https://openapi.elven.com";

/// Accepts only scheme, host and port, and plain HTTP only for loopback addresses: the headers carry the key and a
/// signature, which a network could read.
pub(super) fn check_api_url(text: &str) -> Result<Url, ConfigError> {
    let url = Url::parse(text).map_err(|problem| {
        error(format!("ELVEN_API_URL is not a URL ({problem}); hint: {DEFAULT_API_URL}"))
    })?;
    let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if url.path() != "/" || !bare || url.fragment().is_some() {
        return Err(error(format!(
            "ELVEN_API_URL must be only scheme, host and port, without path and user; hint: {DEFAULT_API_URL}"
        )));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        "http" => Err(error(format!(
            "ELVEN_API_URL={url} would send the API key unencrypted; plain http is accepted only for loopback \
             addresses; hint: use https"
        ))),
        other => Err(error(format!("ELVEN_API_URL begins with {other}://; hint: use https"))),
    }
}

/// Returns whether the host of the URL is a loopback address.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}
