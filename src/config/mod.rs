//! Configuration. Flags take precedence over environment variables, and these over `elven-sync.toml`. No other module
//! reads the environment.
//!
//! Each setting of the file can also be given as `ELVEN_SYNC_<SECTION>__<KEY>`, e.g. `ELVEN_SYNC_RETRY__INITIAL=50ms`.

mod addresses;
mod api_version;
mod codes;
mod credentials;
mod environment;
mod error;
mod files;
mod ledger;
mod log_format;
mod mistake;
mod notify;
mod number;
mod on_invalid_start;
mod origins;
mod overlay;
pub mod reference;
mod settings;
mod sources;
mod switch;
mod time;
mod variables;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use url::Url;

pub use addresses::is_loopback;
pub use api_version::ApiVersion;
pub use credentials::Credential;
pub use environment::Environment;
pub use error::ConfigError;
pub use files::read_secret;
pub use ledger::{Columns, LedgerSettings};
pub use log_format::LogFormat;
pub use notify::{NotifySettings, SecretUrl, Severity, Webhook};
pub use on_invalid_start::OnInvalidStart;
pub use origins::Origins;
pub use settings::{
    ApiSettings, BATCH_ROWS_MAX, CredentialSource, DatabaseSettings, OnAmbiguous, RetrySettings, SyncSettings,
};
pub use sources::Sources;
pub use time::TimeSettings;

use addresses::{DEFAULT_API_URL, check_api_url};
use error::error;
use mistake::Source;
use overlay::overlay;
use settings::File;

use crate::align::{CurrencyKind, Zones};

/// Settings that are flags of every command.
#[allow(clippy::doc_markdown, rustdoc::bare_urls, reason = "clap shows these comments as they stand")]
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// Configuration file [env: ELVEN_SYNC_CONFIG; default: ./elven-sync.toml if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Database with ledger and sync tables [env: DATABASE_URL]
    #[arg(long, global = true, value_name = "URL", hide_default_value = true)]
    pub database_url: Option<String>,
    /// URL of the API [env: ELVEN_API_URL; default: https://openapi.elven.com]
    #[arg(long, global = true, value_name = "URL")]
    pub api_url: Option<String>,
    /// What the process does, in a word or two. It names the sessions in the database.
    #[arg(skip)]
    pub activity: String,
}

/// All settings of a process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The primary, with ledger and sync tables. A secret, since the URL may contain a password.
    pub database_url: Option<SecretString>,
    /// The file that the URL was read from, and is read from again for each new connection.
    pub database_url_file: Option<PathBuf>,
    /// A standby of the primary, from which pages of the ledger are read.
    pub ledger_url: Option<SecretString>,
    /// The file that the URL of the standby was read from.
    pub ledger_url_file: Option<PathBuf>,
    /// The API: scheme, host and port.
    pub api_url: Url,
    /// The places of the credentials by name. They are not read yet.
    pub credentials: BTreeMap<String, CredentialSource>,
    /// `[ledger]`.
    pub ledger: LedgerSettings,
    /// `[database]`.
    pub database: DatabaseSettings,
    /// `[sync]`.
    pub sync: SyncSettings,
    /// `[api]`.
    pub api: ApiSettings,
    /// `[retry]`.
    pub retry: RetrySettings,
    /// `[notify]`.
    pub notify: NotifySettings,
    /// The zone rules in use.
    pub zones: Zones,
    /// The environment, which may hold credentials.
    pub environment: Environment,
    /// What the process does, in a word or two. It names the sessions in the database.
    pub activity: String,
    /// What the settings were read from.
    pub sources: Sources,
}

const DEFAULT_FILE: &str = "elven-sync.toml";
/// The largest number that a setting can have: the database compares some of them with its own, and none is useful
/// beyond it.
const NUMBER_MAX: usize = 2_147_483_647;
/// The longest pause between two attempts that can be set.
const PAUSE_MAX: Duration = Duration::from_hours(24);

impl Settings {
    /// Reads the settings from all sources, and checks them.
    pub fn load(flags: &Flags, environment: Environment) -> Result<Self, ConfigError> {
        let (path, text) = read_file(flags, &environment)?;
        let source =
            Source { file: text.as_deref().map(|text| (path.as_path(), text)), environment: &environment };
        let in_file = source.parse()?;
        let used = (!in_file.is_empty()).then(|| path.clone());
        let file = overlay(in_file, &environment)?;
        let zones = file.time.zones(environment.get("TZDIR")).map_err(|problem| source.located(problem))?;
        check(&file, &zones).map_err(|problem| source.located(problem))?;
        let api_url =
            flags.api_url.as_deref().or(environment.get("ELVEN_API_URL")).unwrap_or(DEFAULT_API_URL);
        let (database_url, database_url_file) = match flags.database_url.as_deref() {
            Some(url) => (Some(SecretString::from(url)), None),
            None => url_of(&environment, "DATABASE_URL", "DATABASE_URL_FILE")?,
        };
        let (ledger_url, ledger_url_file) =
            url_of(&environment, "ELVEN_SYNC_LEDGER_URL", "ELVEN_SYNC_LEDGER_URL_FILE")?;
        let urls = [&database_url, &ledger_url];
        let urls = urls.map(|url| url.as_ref().map(ExposeSecret::expose_secret));
        let sources =
            Sources::new(used, [text.as_deref(), Some(zones.version().as_str())].into_iter().chain(urls));
        Ok(Self {
            database_url,
            database_url_file,
            ledger_url,
            ledger_url_file,
            api_url: check_api_url(api_url)?,
            credentials: file.credentials,
            ledger: file.ledger,
            database: file.database,
            sync: file.sync,
            api: file.api,
            retry: file.retry,
            notify: file.notify,
            zones,
            environment,
            activity: flags.activity.clone(),
            sources,
        })
    }

    /// Returns the most connections that a run opens at once. Each of the entities worked on at once needs a connection
    /// for the page that is read ahead, one for the batch that is announced and one for the batch that is settled; the
    /// heartbeat needs another.
    pub fn connections_max(&self) -> usize {
        self.sync.entities_at_once.saturating_mul(3).saturating_add(2).min(64)
    }

    /// Returns the database URL, or an error that says how to set it.
    pub fn database_url(&self) -> Result<&SecretString, ConfigError> {
        self.database_url.as_ref().ok_or_else(|| {
            error(format!(
                "DATABASE_URL {}, which names the PostgreSQL database with the ledger; hint: export \
                 DATABASE_URL=postgres://user:password@host/database",
                self.environment.why_missing("DATABASE_URL")
            ))
        })
    }
}

/// Reads the URL of a database from the file that a variable names, or from another variable. Returns the file, too.
fn url_of(
    environment: &Environment,
    variable: &str,
    file_variable: &str,
) -> Result<(Option<SecretString>, Option<PathBuf>), ConfigError> {
    let Some(file) = environment.get(file_variable).map(PathBuf::from) else {
        return Ok((environment.get(variable).map(SecretString::from), None));
    };
    let text = read_secret(&file)
        .map_err(|problem| error(format!("the file that {file_variable} names cannot be read: {problem}")))?;
    let text = text.expose_secret();
    if text.trim().is_empty() {
        return Err(error(format!(
            "the file that {file_variable} names is empty; hint: write the URL into it"
        )));
    }
    Ok((Some(SecretString::from(text.trim())), Some(file)))
}

/// Checks the values beyond their types. Each message begins with the setting.
fn check(file: &File, zones: &Zones) -> Result<(), ConfigError> {
    if !(1..=BATCH_ROWS_MAX).contains(&file.sync.batch_rows) {
        return Err(error(format!(
            "[sync] batch_rows = {} is not possible: a request has 1 to {BATCH_ROWS_MAX} records; hint: remove the \
             setting for {BATCH_ROWS_MAX}",
            file.sync.batch_rows
        )));
    }
    for (name, value) in [
        ("[sync] entities_at_once", file.sync.entities_at_once),
        ("[sync] requests_in_flight", file.sync.requests_in_flight),
        ("[sync] batch_bytes", file.sync.batch_bytes.unwrap_or(1)),
        ("[api] requests_per_second", file.api.requests_per_second.map_or(1, |rate| rate as usize)),
        ("[retry] attempts", file.retry.attempts as usize),
    ] {
        if value == 0 {
            return Err(error(format!("{name} must not be 0; hint: remove the setting for the default")));
        }
    }
    for (name, value) in [
        ("[sync] entities_at_once", file.sync.entities_at_once),
        ("[sync] requests_in_flight", file.sync.requests_in_flight),
        ("[sync] max_rejections", file.sync.max_rejections),
        ("[sync] batch_bytes", file.sync.batch_bytes.unwrap_or(1)),
        ("[api] requests_per_second", file.api.requests_per_second.map_or(1, |rate| rate as usize)),
        ("[retry] attempts", file.retry.attempts as usize),
    ] {
        if value > NUMBER_MAX {
            return Err(error(format!("{name} must be at most {NUMBER_MAX}; hint: use a smaller number")));
        }
    }
    for (name, value) in [("[retry] initial", file.retry.initial), ("[retry] max", file.retry.max)] {
        if value > PAUSE_MAX {
            return Err(error(format!("{name} must be at most 24h; hint: use a shorter time")));
        }
    }
    for (name, value) in [
        ("[database] reconnect_timeout", file.database.reconnect_timeout),
        ("[sync] lease", file.sync.lease),
        ("[sync] shutdown_grace", file.sync.shutdown_grace),
        ("[api] timeout", file.api.timeout),
        ("[api] signature_window", file.api.signature_window),
    ] {
        if value.is_zero() || value > Duration::from_hours(1) {
            return Err(error(format!("{name} must be more than 0 and at most 1h, e.g. \"30s\"")));
        }
    }
    if file.ledger.currency_kind == CurrencyKind::AssetId && file.api.version == ApiVersion::V3 {
        return Err(error(
            "[ledger] currency_kind = \"asset_id\" needs [api] version = 4, because a record of version 3 has no \
             assetID; hint: set [api] version = 4, or remove currency_kind",
        ));
    }
    file.notify.check()?;
    file.ledger.check(zones)
}

/// Returns the path of the configuration file, and its text if the file exists.
fn read_file(flags: &Flags, environment: &Environment) -> Result<(PathBuf, Option<String>), ConfigError> {
    let named = flags.config.as_deref().or(environment.get("ELVEN_SYNC_CONFIG").map(Path::new));
    let path = named.unwrap_or(Path::new(DEFAULT_FILE));
    match files::read_configuration(path) {
        Ok(text) => Ok((path.to_owned(), Some(text))),
        Err(problem) if named.is_none() && problem.kind() == std::io::ErrorKind::NotFound => {
            Ok((path.to_owned(), None))
        }
        Err(problem) => Err(error(format!(
            "the configuration file {} cannot be read: {problem}; hint: name a file with --config or ELVEN_SYNC_CONFIG",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        let environment =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Settings::load(&Flags::default(), environment)
    }

    #[test]
    fn flags_take_precedence_over_the_environment_and_the_environment_over_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.toml");
        std::fs::write(&path, "[sync]\nbatch_rows = 7\nentities_at_once = 2\n").unwrap();
        let environment: Environment = [
            ("ELVEN_SYNC_CONFIG", path.to_str().unwrap()),
            ("ELVEN_SYNC_SYNC__BATCH_ROWS", "9"),
            ("ELVEN_SYNC_API__TIMEOUT", "50ms"),
            ("ELVEN_SYNC_LEDGER__COLUMNS__ID", "snapshot_id"),
            ("ELVEN_API_URL", "https://env.example"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        let flags = Flags { api_url: Some("http://127.0.0.1:1".to_owned()), ..Flags::default() };
        let settings = Settings::load(&flags, environment).unwrap();
        assert_eq!((settings.sync.batch_rows, settings.sync.entities_at_once), (9, 2));
        assert_eq!(settings.api.timeout, Duration::from_millis(50));
        assert_eq!(settings.ledger.columns.get("id"), "snapshot_id");
        assert_eq!(settings.ledger.columns.get("balance"), "balance");
        assert_eq!(settings.api_url.as_str(), "http://127.0.0.1:1/");
    }

    #[test]
    fn codes_are_a_list_of_numbers_and_texts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.toml");
        let codes = |text: &str| {
            std::fs::write(&path, format!("[api]\nalready_imported_codes = {text}\n")).unwrap();
            Ok::<_, ConfigError>(
                load(&[("ELVEN_SYNC_CONFIG", path.to_str().unwrap())])?.api.already_imported_codes,
            )
        };
        assert_eq!(codes("[]").unwrap(), [""; 0]);
        assert_eq!(codes(r#"[19734, "E-1", " 7 ", -5]"#).unwrap(), ["19734", "E-1", "7", "-5"]);
        for wrong in ["[\"\"]", "\"\"", "[[1]]", "[1.5]", "5", "true"] {
            let message = codes(wrong).unwrap_err().to_string();
            assert!(
                message.contains("[api] already_imported_codes") && message.contains("a list of codes"),
                "{message}"
            );
        }
        for text in ["19734, E1", "[19734, \"E1\"]", " [\"19734\",\"E1\"] "] {
            let settings = load(&[("ELVEN_SYNC_API__ALREADY_IMPORTED_CODES", text)]).unwrap();
            assert_eq!(settings.api.already_imported_codes, ["19734", "E1"], "{text}");
        }
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (name, value, expected) in [
            ("ELVEN_SYNC_SYNC__BATCH_ROWS", "0", "batch_rows = 0"),
            ("ELVEN_SYNC_SYNC__BATCH_ROWS", "1001", "1 to 1000"),
            ("ELVEN_SYNC_SYNC__BATCH_ROWS", "many", "ELVEN_SYNC_SYNC__BATCH_ROWS"),
            ("ELVEN_SYNC_SYNC__BATCH_ROW", "1", "unknown field"),
            ("ELVEN_SYNC_SYNC__LEASE", "0s", "[sync] lease"),
            (
                "ELVEN_SYNC_SYNC__MAX_REJECTIONS",
                "18446744073709551615",
                "[sync] max_rejections must be at most",
            ),
            ("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "9223372036854775808", "at most 2147483647"),
            (
                "ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT",
                "2147483648",
                "[sync] requests_in_flight must be at most",
            ),
            ("ELVEN_SYNC_SYNC__BATCH_BYTES", "2147483648", "[sync] batch_bytes must be at most"),
            (
                "ELVEN_SYNC_API__REQUESTS_PER_SECOND",
                "4294967295",
                "[api] requests_per_second must be at most",
            ),
            ("ELVEN_SYNC_RETRY__ATTEMPTS", "4294967295", "[retry] attempts must be at most"),
            ("ELVEN_SYNC_RETRY__INITIAL", "25h", "[retry] initial must be at most 24h"),
            ("ELVEN_SYNC_RETRY__MAX", "18446744073709551615s", "[retry] max must be at most 24h"),
            (
                "ELVEN_SYNC_API__VERSION",
                "5",
                "ELVEN_SYNC_API__VERSION: the value cannot be used; expected 3 or 4",
            ),
            ("ELVEN_SYNC_API__VERSION", "four", "ELVEN_SYNC_API__VERSION"),
            ("ELVEN_SYNC_LEDGER__CURRENCY_KIND", "asset_id", "[ledger] currency_kind"),
            ("ELVEN_SYNC_LEDGER__CURRENCY_KIND", "asset_id", "[api] version = 4"),
            ("ELVEN_SYNC_LEDGER__CURRENCY_KIND", "assetID", "expected `symbol` or `asset_id`"),
            ("ELVEN_SYNC_LEDGER__COLUMNS__AMOUNT", "x", "amount"),
            ("ELVEN_SYNC_LEDGER__TABLE", "balances", "schema.table"),
            ("ELVEN_SYNC_LEDGER__TABLE", "a.b.c", "schema.table"),
            ("ELVEN_SYNC_LEDGER__TABLE", "\"a.b", "double quote"),
            ("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "101", "0 to 100"),
            ("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "-1", "BALANCE_SCALE"),
            ("ELVEN_SYNC_LEDGER__CAPTURED_AT_ZONE", "Europe/Zürich", "Europe/Zurich"),
            ("ELVEN_SYNC_LEDGER__ENTITY", " ", "[ledger] entity"),
            ("ELVEN_SYNC_API__ALREADY_IMPORTED_CODES", "19734,", "expected a list of codes"),
            ("ELVEN_SYNC_API__ALREADY_IMPORTED_CODES", "[19734", "expected a list of codes"),
            ("ELVEN_SYNC_API__ALREADY_IMPORTED_CODES", "'19734'", "expected a list of codes"),
            ("ELVEN_SYNC_API__ALREADY_IMPORTED_CODES", "19734;E1", "expected a list of codes"),
            ("ELVEN_API_URL", "http://openapi.elven.com", "https"),
            ("ELVEN_API_URL", "http://127.0.0.1.example.com", "https"),
            ("ELVEN_API_URL", "ftp://x", "ftp"),
            ("ELVEN_API_URL", "https://user@host", "only scheme, host and port"),
            ("ELVEN_API_URL", "https://host/path", "only scheme, host and port"),
            ("ELVEN_API_URL", "nonsense", "not a URL"),
            ("ELVEN_SYNC_CONFIG", "/nonexistent/x.toml", "cannot be read"),
            ("ELVEN_SYNC_TIME__ZONEINFO", "/nonexistent", "[time] zoneinfo"),
            ("ELVEN_SYNC_TIME__ZONE", "UTC", "unknown field"),
        ] {
            let message = load(&[(name, value)]).unwrap_err().to_string();
            assert!(message.contains(expected), "{name}={value}: {message}");
        }
        for url in ["http://localhost:80", "http://[::1]:80", "http://127.9.9.9", "https://openapi.elven.com"]
        {
            assert!(load(&[("ELVEN_API_URL", url)]).is_ok(), "{url}");
        }
    }
}
