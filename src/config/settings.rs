//! The sections of the configuration file with their defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{LedgerSettings, OnInvalidStart, TimeSettings, number};

/// The most records that the API accepts in one request (ELVEN: import of balances).
pub const BATCH_ROWS_MAX: usize = 1000;

/// What `elven-sync.toml` may say.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section")]
pub(super) struct File {
    pub(super) credentials: BTreeMap<String, CredentialSource>,
    pub(super) ledger: LedgerSettings,
    pub(super) database: DatabaseSettings,
    pub(super) sync: SyncSettings,
    pub(super) api: ApiSettings,
    pub(super) retry: RetrySettings,
    pub(super) time: TimeSettings,
}

/// `[database]`: how the database is used.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section")]
pub struct DatabaseSettings {
    /// How long a run waits for a database that went away before it fails.
    #[serde(with = "humantime_serde")]
    pub reconnect_timeout: Duration,
}

impl Default for DatabaseSettings {
    fn default() -> Self {
        Self { reconnect_timeout: Duration::from_mins(1) }
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
    /// Requests of one entity on their way at once.
    #[serde(deserialize_with = "number::from_text_or_number")]
    pub requests_in_flight: usize,
    /// Rows of an entity that may be set aside because the API refused them, before the entity stops.
    #[serde(deserialize_with = "number::from_text_or_number")]
    pub max_rejections: usize,
    /// The most bytes that a request's body may have; learned from the API when it is not said.
    #[serde(deserialize_with = "number::from_text_or_number_if_any")]
    pub batch_bytes: Option<usize>,
    /// What is done about a batch of which nobody knows whether it arrived.
    pub on_ambiguous: OnAmbiguous,
    /// What is done when the first 1,000 rows that a lane reads in a run are all invalid.
    pub on_invalid_start: OnInvalidStart,
    /// How long a worker that stopped renewing keeps an entity.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long what is in flight may take once the process was asked to stop.
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
    /// Send it again, the same bytes.
    Resend,
    /// Stop the entity, until a person decides.
    Hold,
}

/// `[api]`: how the API is called.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section")]
pub struct ApiSettings {
    /// The longest a request may take in all.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// How far a signature's timestamp may be from the API's clock.
    #[serde(with = "humantime_serde")]
    pub signature_window: Duration,
    /// The most requests in a second with one credential; unlimited when it is not said.
    #[serde(deserialize_with = "number::from_text_or_number_if_any")]
    pub requests_per_second: Option<u32>,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            signature_window: Duration::from_secs(30),
            requests_per_second: None,
        }
    }
}

/// `[retry]`: how a request is repeated.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section")]
pub struct RetrySettings {
    /// Attempts in all.
    #[serde(deserialize_with = "number::from_text_or_number")]
    pub attempts: u32,
    /// The first pause.
    #[serde(with = "humantime_serde")]
    pub initial: Duration,
    /// The longest pause.
    #[serde(with = "humantime_serde")]
    pub max: Duration,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self { attempts: 6, initial: Duration::from_millis(500), max: Duration::from_secs(30) }
    }
}

/// `[credentials.NAME]`: an environment variable or a file for each half.
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
