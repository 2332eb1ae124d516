//! Connection strings in both forms that psql accepts: a URL, and `name=value` pairs. They contain secrets, so errors
//! about them do not show their values.

/// Returns an error about an address. `what` must not contain a value of it.
pub(super) fn refused(what: impl Into<String>) -> sqlx::Error {
    sqlx::Error::Configuration(what.into().into())
}

/// The parameters of an address in their order, by the names of libpq. A later one counts.
pub(super) type Parameters = Vec<(String, String)>;

/// Splits an address into its parameters (PostgreSQL manual, "Connection Strings").
pub(super) fn parameters(address: &str) -> Result<Parameters, sqlx::Error> {
    let url = ["postgres://", "postgresql://"].iter().find_map(|scheme| address.strip_prefix(scheme));
    match url {
        Some(url) => of_url(url),
        None if address.contains('=') && !address.contains("://") => of_pairs(address),
        None => Err(refused(
            "the address is neither a URL that begins with postgres:// nor pairs such as host=HOST dbname=DATABASE",
        )),
    }
}

fn of_url(url: &str) -> Result<Parameters, sqlx::Error> {
    let mut found = Parameters::new();
    let mut add = |name: &str, value: String| found.push((name.to_owned(), value));
    // As in libpq, a question mark may be part of a password; further, an `@` before the host may be.
    let before_path = url.split('/').next().unwrap_or_default();
    let before_query = before_path.split('?').next().unwrap_or_default();
    let rest = match before_query.rfind('@').or_else(|| before_path.find('@')) {
        Some(at) => {
            let (user, password) = match url[..at].split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (&url[..at], None),
            };
            if !user.is_empty() {
                add("user", decoded(user)?);
            }
            if let Some(password) = password {
                add("password", decoded(password)?);
            }
            &url[at + 1..]
        }
        None => url,
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (hosts, database) = rest.split_once('/').unwrap_or((rest, ""));
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for host in hosts.split(',') {
        let (name, port) = host_and_port(host)?;
        names.push(decoded(name)?);
        ports.push(decoded(port)?);
    }
    if names.iter().any(|name| !name.is_empty()) {
        add("host", names.join(","));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        add("port", ports.join(","));
    }
    if !database.is_empty() {
        add("dbname", decoded(database)?);
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(refused("a parameter of the URL has no value"));
        };
        add(&decoded(name)?, decoded(value)?);
    }
    Ok(found)
}

/// Splits a host of a URL from its port. An IPv6 address is in brackets.
fn host_and_port(host: &str) -> Result<(&str, &str), sqlx::Error> {
    let wrong = || refused("a host of the URL is not HOST:PORT; hint: write %3A for a colon in a password");
    if let Some(address) = host.strip_prefix('[') {
        let (address, port) = address.split_once(']').ok_or_else(wrong)?;
        return match port.strip_prefix(':') {
            Some(port) => Ok((address, port)),
            None if port.is_empty() => Ok((address, "")),
            None => Err(wrong()),
        };
    }
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    if port.contains(':') { Err(wrong()) } else { Ok((name, port)) }
}

/// Replaces `%xx`. A plus sign stays, as in libpq.
fn decoded(text: &str) -> Result<String, sqlx::Error> {
    let wrong = || refused("the URL has a wrong %-escape; hint: write %25 for a percent sign");
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
    for part in parts {
        let code = part.get(..2).and_then(|code| u8::from_str_radix(code, 16).ok()).ok_or_else(wrong)?;
        bytes.push(code);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

/// Reads pairs such as `host=localhost password='it''s'`, with a backslash before a quote or a backslash.
fn of_pairs(text: &str) -> Result<Parameters, sqlx::Error> {
    let mut found = Parameters::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let Some((name, value)) = rest.split_once('=') else {
            return Err(refused("a parameter of the address has no value"));
        };
        let mut value = value.trim_start().chars();
        let mut quoted = false;
        let mut read = String::new();
        if value.as_str().starts_with('\'') {
            quoted = true;
            value.next();
        }
        loop {
            match value.next() {
                Some('\\') => read.extend(value.next()),
                Some('\'') if quoted => break,
                None if quoted => return Err(refused("a quoted value of the address has no end")),
                None => break,
                Some(space) if space.is_whitespace() && !quoted => break,
                Some(other) => read.push(other),
            }
        }
        found.push((name.trim().to_owned(), read));
        rest = value.as_str().trim_start();
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Vec<(String, String)> {
        parameters(url).unwrap()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn each_form_that_psql_accepts_is_read() {
        let hosts = [("user", "u"), ("host", "a,b"), ("port", "1,"), ("dbname", "d")];
        assert_eq!(read("postgresql://u@a:1,b/d"), pairs(&hosts));
        assert_eq!(read("postgres://"), pairs(&[]));
        assert_eq!(read("postgres:///d?host=/run/p"), pairs(&[("dbname", "d"), ("host", "/run/p")]));
        assert_eq!(read("postgres://u@/d"), pairs(&[("user", "u"), ("dbname", "d")]));
        assert_eq!(read("postgres://%2Frun%2Fp:7"), pairs(&[("host", "/run/p"), ("port", "7")]));
        assert_eq!(read("postgres://[::1]:7/"), pairs(&[("host", "::1"), ("port", "7")]));
        let password = [("user", "u"), ("password", "a?c:d+e é"), ("host", "h")];
        assert_eq!(read("postgres://u:a?c:d+e%20%C3%A9@h"), pairs(&password));
        let at = [("user", "u"), ("password", "a@b"), ("host", "h"), ("user", "v@w")];
        assert_eq!(read("postgres://u:a@b@h/?user=v@w"), pairs(&at));
        let quoted = [("host", "h"), ("password", "it's \\ so"), ("dbname", "d"), ("options", "")];
        assert_eq!(read(r"host=h password = 'it\'s \\ so' dbname=d options=''"), pairs(&quoted));
        assert_eq!(read(r"user=a\ b"), pairs(&[("user", "a b")]));
    }
}
