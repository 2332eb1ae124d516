//! The error of a configuration that cannot be used.

/// The configuration cannot be used. The message names the setting and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

pub(super) fn error(message: impl Into<String>) -> ConfigError {
    ConfigError(message.into())
}
