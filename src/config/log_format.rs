//! `ELVEN_SYNC_LOG_FORMAT`: the form of the log.

use super::environment::Environment;
use super::error::{ConfigError, error};

/// The form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// Reads the form that the environment names.
    pub fn of(environment: &Environment) -> Result<Self, ConfigError> {
        match environment.get("ELVEN_SYNC_LOG_FORMAT") {
            None | Some("text") => Ok(Self::Text),
            Some("json") => Ok(Self::Json),
            Some(_) => Err(error(
                "ELVEN_SYNC_LOG_FORMAT is neither `text` nor `json`; hint: export ELVEN_SYNC_LOG_FORMAT=json, or unset it",
            )),
        }
    }
}
