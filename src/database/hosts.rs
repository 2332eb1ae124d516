//! The servers of an address, and the parameters of libpq that have an effect, have none, or are refused.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _};
use url::form_urlencoded;

use super::connection_string::{Parameters, refused};
use super::tls::explained;
use super::transient::within;

/// Parameters with an effect, and the name that sqlx has for them.
const KNOWN: [(&str, &str); 15] = [
    ("sslrootcert", "sslrootcert"),
    ("ssl-root-cert", "sslrootcert"),
    ("ssl-ca", "sslrootcert"),
    ("sslcert", "sslcert"),
    ("ssl-cert", "sslcert"),
    ("sslkey", "sslkey"),
    ("ssl-key", "sslkey"),
    ("sslmode", "sslmode"),
    ("ssl-mode", "sslmode"),
    ("statement-cache-capacity", "statement-cache-capacity"),
    ("dbname", "dbname"),
    ("user", "user"),
    ("password", "password"),
    ("application_name", "application_name"),
    ("options", "options"),
];

/// Further parameters that libpq knows. Only these names are shown in the warning: any other name may be part of a
/// password.
const WITHOUT_EFFECT: [&str; 17] = [
    "connect_timeout",
    "fallback_application_name",
    "gsslib",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "max_protocol_version",
    "min_protocol_version",
    "passfile",
    "scram_client_key",
    "sslcompression",
    "sslkeylogfile",
    "sslpassword",
    "sslsni",
    "tcp_user_timeout",
];

/// Parameters that ask for something that is not supported, the values that ask for nothing, and what to write instead.
/// To ignore them would make the connection less safe than asked for, or lead to another server.
const REFUSED: [(&str, &[&str], &str); 13] = [
    ("channel_binding", &["", "prefer", "disable"], "remove it, and use sslmode=verify-full"),
    (
        "client_encoding",
        &["", "auto", "UTF8", "utf8", "UTF-8", "utf-8"],
        "remove it; the connector uses UTF-8",
    ),
    ("gssdelegation", &["", "0"], "remove it"),
    ("gssencmode", &["", "prefer", "disable"], "use sslmode=verify-full instead"),
    ("replication", &["", "0", "false", "off", "no"], "remove it"),
    ("require_auth", &[""], "remove it, and use sslmode=verify-full"),
    ("requirepeer", &[""], "remove it; the folder of the socket has to be safe"),
    ("requiressl", &["", "0"], "use sslmode=require instead"),
    ("service", &[""], "write host, port, dbname and user instead of the name of a service"),
    ("sslcrl", &[""], "remove it; revoked certificates cannot be detected"),
    ("sslcrldir", &[""], "remove it; revoked certificates cannot be detected"),
    (
        "sslnegotiation",
        &["", "postgres"],
        "remove it; the connector asks for TLS as PostgreSQL before 17 does",
    ),
    (
        "ssl_min_protocol_version",
        &["", "TLSv1", "TLSv1.1", "TLSv1.2"],
        "remove it, and set ssl_min_protocol_version on the server",
    ),
];

/// The kind of server that is wanted (`target_session_attrs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Any,
    Writable,
    ReadOnly,
    Primary,
    Standby,
    StandbyIfAny,
}

impl Target {
    fn of(value: &str) -> Result<Self, sqlx::Error> {
        Ok(match value {
            "any" => Target::Any,
            "read-write" => Target::Writable,
            "read-only" => Target::ReadOnly,
            "primary" => Target::Primary,
            "standby" => Target::Standby,
            "prefer-standby" => Target::StandbyIfAny,
            _ => {
                return Err(refused(
                    "target_session_attrs is none of any, read-write, read-only, primary, standby, prefer-standby",
                ));
            }
        })
    }

    /// Returns whether a server is one of the wanted kind.
    async fn is(self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        if self == Target::Any {
            return Ok(true);
        }
        let ask = "select pg_is_in_recovery(), current_setting('default_transaction_read_only') = 'on'";
        let row = connection.fetch_one(sqlx::raw_sql(ask)).await?;
        let (standby, read_only): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
        Ok(match self {
            Target::Any => true,
            Target::Writable => !standby && !read_only,
            Target::ReadOnly => standby || read_only,
            Target::Primary => !standby,
            Target::Standby | Target::StandbyIfAny => standby,
        })
    }
}

/// The servers of an address, in the order in which they are tried.
#[derive(Clone)]
pub(super) struct Hosts {
    options: Vec<PgConnectOptions>,
    target: Target,
    /// `load_balance_hosts=random`.
    shuffled: bool,
}

impl std::fmt::Debug for Hosts {
    /// Leaves out the options, because they hold the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hosts").field("target", &self.target).finish_non_exhaustive()
    }
}

impl From<PgConnectOptions> for Hosts {
    fn from(options: PgConnectOptions) -> Self {
        Self { options: vec![quiet(options)], target: Target::Any, shuffled: false }
    }
}

impl Hosts {
    /// Returns the servers that the parameters name. `warn`: name the parameters that have no effect.
    pub(super) fn of(parameters: Parameters, warn: bool) -> Result<Self, sqlx::Error> {
        let mut kept = Parameters::new();
        let (mut hosts, mut addresses, mut ports) = (None, None, None);
        let (mut target, mut shuffled) = (Target::Any, false);
        for (name, value) in parameters {
            match name.as_str() {
                "host" => hosts = Some(value),
                "hostaddr" => addresses = Some(value),
                "port" => ports = Some(value),
                "target_session_attrs" => target = Target::of(&value)?,
                "load_balance_hosts" => shuffled = value == "random",
                "ssl" if value == "true" => kept.push(("sslmode".to_owned(), "require".to_owned())),
                known => match KNOWN.iter().find(|(name, _)| *name == known) {
                    Some((_, name)) => kept.push(((*name).to_owned(), value)),
                    None if known.starts_with("options[") => kept.push((name, value)),
                    None => check(known, &value, warn)?,
                },
            }
        }
        check_tls(&mut kept)?;
        let split = |list: Option<String>| -> Vec<String> {
            list.map(|list| list.split(',').map(|part| part.trim().to_owned()).collect()).unwrap_or_default()
        };
        let (hosts, addresses, ports) = (split(hosts), split(addresses), split(ports));
        let count = hosts.len().max(addresses.len()).max(1);
        let fit = [0, count].contains(&addresses.len()) && [0, count].contains(&hosts.len());
        if !fit || ![0, 1, count].contains(&ports.len()) {
            return Err(refused(
                "the numbers of hosts, hostaddrs and ports differ; hint: one port for all hosts, or one for each",
            ));
        }
        let options =
            (0..count).map(|n| server(&kept, part(&hosts, n), part(&addresses, n), part(&ports, n)));
        Ok(Self { options: options.collect::<Result<_, _>>()?, target, shuffled })
    }

    /// Returns the first server.
    pub(super) fn first(&self) -> &PgConnectOptions {
        &self.options[0]
    }

    pub(super) fn with_password(self, password: &str) -> Self {
        self.with(|options| options.password(password))
    }

    /// Changes the options of each server.
    pub(super) fn with(mut self, change: impl Fn(PgConnectOptions) -> PgConnectOptions) -> Self {
        self.options = self.options.into_iter().map(change).collect();
        self
    }

    /// Connects to the first server of the wanted kind. Several of them have the time limit together; the caller limits
    /// the time for a single one.
    pub(super) async fn connect(&self, limit: Duration) -> Result<PgConnection, sqlx::Error> {
        let each = match self.options.len() {
            1 => Duration::MAX,
            several => limit / u32::try_from(several).unwrap_or(u32::MAX),
        };
        let mut servers: Vec<&PgConnectOptions> = self.options.iter().collect();
        if self.shuffled {
            fastrand::shuffle(&mut servers);
        }
        let (mut problem, mut other) = (None, None);
        for options in servers {
            let connected = within(each, async {
                let mut connection = PgConnection::connect_with(options).await?;
                let is_wanted = self.target.is(&mut connection).await?;
                Ok::<_, sqlx::Error>((connection, is_wanted))
            });
            match connected.await {
                Ok((connection, true)) => return Ok(connection),
                Ok((connection, false)) => other = Some(connection),
                Err(error) => problem = problem.or(Some(explained(error, options.get_ssl_mode()))),
            }
        }
        match (self.target, other, problem) {
            (Target::StandbyIfAny, Some(connection), _) => Ok(connection),
            (_, None, Some(problem)) => Err(problem),
            // As in the middle of a failover.
            _ => Err(sqlx::Error::Io(std::io::Error::other(
                "no server of the address is of the kind that target_session_attrs asks for",
            ))),
        }
    }
}

/// Switches off the log of statements: sqlx logs slow ones with their text, which contains values of the ledger.
fn quiet(options: PgConnectOptions) -> PgConnectOptions {
    options.disable_statement_logging()
}

/// Refuses a parameter that cannot be obeyed and should be, or warns of one that has no effect.
fn check(name: &str, value: &str, warn: bool) -> Result<(), sqlx::Error> {
    if let Some((_, harmless, instead)) = REFUSED.iter().find(|(refused, ..)| *refused == name) {
        if harmless.contains(&value) {
            return Ok(());
        }
        return Err(refused(format!(
            "the parameter {name} is not supported with this value; hint: {instead}"
        )));
    }
    if warn {
        let name = WITHOUT_EFFECT.iter().find(|known| **known == name).unwrap_or(&"(not shown)");
        tracing::warn!(parameter = name, "ignored an unsupported parameter in the address of the database");
    }
    Ok(())
}

/// Gives the parameters of TLS the meaning that they have in libpq.
fn check_tls(kept: &mut Parameters) -> Result<(), sqlx::Error> {
    let last = |kept: &Parameters, name: &str| {
        kept.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    };
    let mode = last(kept, "sslmode");
    let root = last(kept, "sslrootcert");
    if root.as_deref() == Some("system") {
        // The certificates of the system are trusted anyway.
        kept.retain(|(name, _)| name != "sslrootcert");
        match mode.as_deref() {
            None => kept.push(("sslmode".to_owned(), "verify-full".to_owned())),
            Some("verify-full") => {}
            Some(_) => {
                return Err(refused(
                    "sslrootcert=system needs sslmode=verify-full; hint: change or remove sslmode",
                ));
            }
        }
    } else if root.is_some() && mode.as_deref() == Some("require") {
        kept.push(("sslmode".to_owned(), "verify-ca".to_owned()));
    }
    Ok(())
}

/// Returns the part of a list for the server with this number. A list of one part is for all servers.
fn part(list: &[String], number: usize) -> Option<&str> {
    let one = list.first().filter(|_| list.len() == 1);
    list.get(number).or(one).map(String::as_str).filter(|part| !part.is_empty())
}

/// Returns the options of one server.
fn server(
    kept: &Parameters,
    host: Option<&str>,
    address: Option<&str>,
    port: Option<&str>,
) -> Result<PgConnectOptions, sqlx::Error> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(kept);
    let is_socket = address.is_none() && host.is_some_and(|host| host.starts_with('/'));
    if host.is_some_and(|host| host.starts_with('@')) {
        return Err(refused(
            "sockets without a file are not supported; hint: the folder of the socket as host",
        ));
    }
    if let Some(port) = port {
        if port.parse::<u16>().is_err() {
            return Err(refused("a port is no number from 0 to 65535"));
        }
        query.append_pair("port", port);
    }
    let is_verified = kept.iter().any(|(name, value)| name == "sslmode" && value == "verify-full");
    if host.is_some() && address.is_some() && is_verified {
        return Err(refused(
            "hostaddr is not supported together with host and sslmode=verify-full; hint: remove hostaddr",
        ));
    }
    match (address, host) {
        (Some(address), _) if address.parse::<std::net::IpAddr>().is_err() => {
            return Err(refused("hostaddr is no IP address; hint: use host"));
        }
        (Some(address), _) => query.append_pair("host", address),
        (None, Some(host)) => query.append_pair("host", host),
        (None, None) => &mut query,
    };
    // sqlx reads the password file when it reads a URL, by the host, port, database and user in it.
    let options = PgConnectOptions::from_str(&format!("postgres:///?{}", query.finish()));
    let options = options.map_err(|problem| match problem {
        // The message of sqlx repeats the value.
        sqlx::Error::Configuration(_) => refused(
            "one of sslmode (disable, allow, prefer, require, verify-ca, verify-full) and statement-cache-capacity \
             has a wrong value",
        ),
        other => other,
    })?;
    // As in libpq, there is no TLS over a socket.
    Ok(quiet(if is_socket { options.ssl_mode(PgSslMode::Disable) } else { options }))
}

#[cfg(test)]
mod tests {
    use super::super::connection_string::parameters;
    use super::*;

    fn read(url: &str) -> Result<PgConnectOptions, sqlx::Error> {
        Ok(Hosts::of(parameters(url)?, true)?.first().clone())
    }

    #[test]
    fn what_is_known_is_kept_as_it_is() {
        let url =
            "postgres://u:p%40ss@h:5433/d?sslpassword=x&application_name=a%26b&options=-c%20a=b&no_such=1";
        let options = read(url).unwrap();
        assert_eq!((options.get_host(), options.get_port(), options.get_username()), ("h", 5433, "u"));
        assert_eq!((options.get_application_name(), options.get_options()), (Some("a&b"), Some("-c a=b")));
        let nothing = PgConnectOptions::new_without_pgpass();
        let default = read("postgres://").unwrap();
        assert_eq!((default.get_host(), default.get_port()), (nothing.get_host(), nothing.get_port()));
    }

    #[test]
    fn tls_parameters_mean_what_they_mean_in_libpq() {
        let mode = |url: &str| format!("{:?}", read(url).unwrap().get_ssl_mode());
        for (url, expected) in [
            ("postgres://h/d?sslrootcert=system", "VerifyFull"),
            ("postgres://h/d?sslrootcert=system&sslmode=verify-full", "VerifyFull"),
            ("postgres://h/d?sslmode=require&sslrootcert=/ca.pem", "VerifyCa"),
            ("postgres://h/d?sslmode=require", "Require"),
            ("postgres://h/d?ssl=true", "Require"),
            ("postgres:///d?host=/run/postgresql&sslmode=require", "Disable"),
            ("postgres://%2Frun%2Fpostgresql/d?sslmode=verify-full", "Disable"),
        ] {
            assert_eq!(mode(url), expected, "{url}");
        }
    }

    #[test]
    fn what_is_not_supported_is_named_with_what_to_write() {
        for (query, said) in [
            ("channel_binding=require", "channel_binding is not supported"),
            ("sslnegotiation=direct", "sslnegotiation is not supported"),
            ("service=main", "write host, port"),
            ("sslrootcert=system&sslmode=require", "needs sslmode=verify-full"),
            ("target_session_attrs=master", "none of any, read-write"),
            ("sslmode=full", "verify-ca, verify-full"),
            ("hostaddr=127.0.0.1&sslmode=verify-full", "remove hostaddr"),
            ("hostaddr=localhost", "use host"),
            ("host=a,b,c&port=1,2", "one port for all hosts"),
            ("host=@abstract", "folder of the socket"),
        ] {
            let problem = read(&format!("postgres://h/d?{query}")).unwrap_err().to_string();
            assert!(problem.contains(said), "{query}: {problem}");
        }
        for harmless in ["channel_binding=prefer", "gssencmode=disable", "sslnegotiation=postgres"] {
            assert!(read(&format!("postgres://h/d?{harmless}")).is_ok(), "{harmless}");
        }
    }
}
