//! The sections of the configuration file with their defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ApiVersion, LedgerSettings, NotifySettings, OnInvalidStart, TimeSettings, codes, number};

/// The most records that the API accepts in one request (documentation of *Import Account Balances*).
pub const BATCH_ROWS_MAX: usize = 1000;

/// The content of `elven-sync.toml`.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section")]
pub(super) struct File {
    pub(super) credentials: BTreeMap<String, CredentialSource>,
    pub(super) ledger: LedgerSettings,
    pub(super) database: DatabaseSettings,
    pub(super) sync: SyncSettings,
    pub(super) api: ApiSettings,
    pub(super) retry: RetrySettings,
    pub(super) notify: NotifySettings,
    pub(super) time: TimeSettings,
}

/// `[database]`: how the database is used.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section")]
pub struct DatabaseSettings {
    /// How long a command waits for a database that restarts or fails over before it fails.
    #[serde(with = "humantime_serde")]
    pub reconnect_timeout: Duration,
    /// A shell command that prints the password. It is run for each new connection.
    pub password_command: Option<String>,
}

impl std::fmt::Debug for DatabaseSettings {
    /// Leaves out the command, because it may hold a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatabaseSettings")
            .field("reconnect_timeout", &self.reconnect_timeout)
            .finish_non_exhaustive()
    }
}

impl Default for DatabaseSettings {
    fn default() -> Self {
        Self { reconnect_timeout: Duration::from_mins(1), password_command: None }
    }
}

/// `[sync]`: how runs work.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section")]
pub struct SyncSettings {
    /// Records in a request, 1 to 1000.
    #[serde(deserialize_with = "number::from_text_or_number")]
    pub batch_rows: usize,
    /// Entities worked on at once.
    #[serde(deserialize_with = "number::from_text_or_number")]
    pub entities_at_once: usize,
    /// Requests of one entity in flight at once.
    #[serde(deserialize_with = "number::from_text_or_number")]
    pub requests_in_flight: usize,
    /// Rows of an entity that may be set aside and open because the API refused them, before the entity stops.
    #[serde(deserialize_with = "number::from_text_or_number")]
    pub max_rejections: usize,
    /// The most bytes of a request's body; if it is not set, the limit is learned from the API's answers.
    #[serde(deserialize_with = "number::from_text_or_number_if_any")]
    pub batch_bytes: Option<usize>,
    /// The reaction to a batch with an unknown outcome.
    pub on_ambiguous: OnAmbiguous,
    /// The reaction to a lane whose first 1,000 rows in a run are all invalid.
    pub on_invalid_start: OnInvalidStart,
    /// How long an entity stays with a worker that no longer renews its lease.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long requests in flight may take to finish after a stop request.
    #[serde(with = "humantime_serde")]
    pub shutdown_grace: Duration,
}

impl Default for SyncSettings {
    fn default() -> Self {
        Self {
            batch_rows: BATCH_ROWS_MAX,
            entities_at_once: 4,
            requests_in_flight: 4,
            max_rejections: 100,
            batch_bytes: None,
            on_ambiguous: OnAmbiguous::Resend,
            on_invalid_start: OnInvalidStart::Stop,
            lease: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(25),
        }
    }
}

/// `[sync] on_ambiguous`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnAmbiguous {
    /// Send the batch again.
    Resend,
    /// Stop the entity until a person decides.
    Hold,
}

/// `[api]`: how the API is called.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section")]
pub struct ApiSettings {
    /// The version of the import.
    pub version: ApiVersion,
    /// The longest time that a request may take.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// How far a signature's timestamp may be from the API's clock.
    #[serde(with = "humantime_serde")]
    pub signature_window: Duration,
    /// The most requests per second with one credential; no limit if it is not set.
    #[serde(deserialize_with = "number::from_text_or_number_if_any")]
    pub requests_per_second: Option<u32>,
    /// Codes of refusals that say that the API has the records already.
    #[serde(deserialize_with = "codes::from_list_or_text")]
    pub already_imported_codes: Vec<String>,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            version: ApiVersion::default(),
            timeout: Duration::from_secs(30),
            signature_window: Duration::from_secs(30),
            requests_per_second: None,
            already_imported_codes: Vec::new(),
        }
    }
}

/// `[retry]`: how a request is repeated.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section")]
pub struct RetrySettings {
    /// Attempts in one run, the first one included.
    #[serde(deserialize_with = "number::from_text_or_number")]
    pub attempts: u32,
    /// The longest wait before the second attempt.
    #[serde(with = "humantime_serde")]
    pub initial: Duration,
    /// The longest wait between two attempts.
    #[serde(with = "humantime_serde")]
    pub max: Duration,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self { attempts: 6, initial: Duration::from_millis(500), max: Duration::from_secs(30) }
    }
}

/// `[credentials.NAME]`: an environment variable or a file for each of key and secret.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(
    deny_unknown_fields,
    default,
    expecting = "a section with key_env or key_file, and secret_env or secret_file"
)]
pub struct CredentialSource {
    /// Environment variable that holds the key.
    pub key_env: Option<String>,
    /// File that holds the key.
    pub key_file: Option<PathBuf>,
    /// Environment variable that holds the secret.
    pub secret_env: Option<String>,
    /// File that holds the secret.
    pub secret_file: Option<PathBuf>,
}
