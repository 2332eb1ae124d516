//! The address of a database. It contains secrets, so errors about it do not show its values.

use std::str::FromStr;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;
use url::Url;

/// The parameters of an address that sqlx knows. sqlx logs any other parameter together with its value.
const KNOWN: [&str; 17] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
];

/// Further parameters that libpq knows. Only these names are shown in the warning: any other name may be part of a
/// password.
const OF_LIBPQ: [&str; 24] = [
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "fallback_application_name",
    "gssencmode",
    "gsslib",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "passfile",
    "replication",
    "require_auth",
    "requirepeer",
    "service",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslnegotiation",
    "sslpassword",
    "target_session_attrs",
    "tcp_user_timeout",
];

/// Reads the address of a database. Unknown parameters are dropped with a warning that does not show their values.
///
/// # Errors
/// The address is not a URL, or a parameter has a wrong value. The message does not repeat the value.
pub fn options(url: &SecretString) -> Result<PgConnectOptions, sqlx::Error> {
    let mut url = Url::parse(url.expose_secret()).map_err(sqlx::Error::config)?;
    let (known, ignored): (Vec<_>, Vec<_>) =
        url.query_pairs().into_owned().partition(|(name, _)| is_known(name));
    if !ignored.is_empty() {
        for (name, _) in &ignored {
            let name = OF_LIBPQ.iter().find(|of_libpq| *of_libpq == name).unwrap_or(&"(not shown)");
            tracing::warn!(
                parameter = name,
                "ignored an unsupported parameter in the address of the database"
            );
        }
        url.set_query(None);
        if !known.is_empty() {
            url.query_pairs_mut().extend_pairs(known);
        }
    }
    PgConnectOptions::from_str(url.as_str()).map_err(|problem| match problem {
        // The message of sqlx repeats the value.
        sqlx::Error::Configuration(_) => sqlx::Error::Configuration(
            "one of sslmode, host, hostaddr, port or the user has a wrong value".into(),
        ),
        other => other,
    })
}

fn is_known(name: &str) -> bool {
    KNOWN.contains(&name) || name == "options" || name.starts_with("options[")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<PgConnectOptions, sqlx::Error> {
        options(&SecretString::from(url))
    }

    #[test]
    fn what_is_known_is_kept_as_it_is() {
        let url =
            "postgres://u:p%40ss@h:5433/d?sslpassword=x&application_name=a%26b&options=-c%20a=b&no_such=1";
        let options = read(url).unwrap();
        assert_eq!((options.get_host(), options.get_port(), options.get_username()), ("h", 5433, "u"));
        assert_eq!((options.get_application_name(), options.get_options()), (Some("a&b"), Some("-c a=b")));
    }

    #[test]
    fn a_wrong_address_is_refused_without_its_values() {
        for url in [
            "postgres://h/d?sslmode=s3cret",
            "postgres://h/d?port=s3cret",
            "postgres://u:s3cret?@h:p/d",
            "s3cret",
        ] {
            let said = format!("{0} {0:?}", read(url).unwrap_err());
            assert!(!said.contains("s3cret"), "{url}: {said}");
        }
    }
}
