//! The connection to the primary.

use crate::config::{ConfigError, Settings};
use crate::database::{Address, Database};

/// Why there is no connection to the primary.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The configuration does not say where the primary is.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The primary cannot be reached.
    #[error(
        "the database cannot be reached; hint: check DATABASE_URL (postgres://user:password@host/database)"
    )]
    Unreachable(#[source] sqlx::Error),
}

/// Returns the address of the primary.
pub fn primary(settings: &Settings) -> Result<Address, ConfigError> {
    Ok(Address {
        url: settings.database_url()?.clone(),
        file: settings.database_url_file.clone(),
        password_command: settings.database.password_command.clone(),
    })
}

/// Returns the address of the standby from which pages are read, if there is one.
pub fn standby_address(settings: &Settings) -> Option<Address> {
    settings.ledger_url.as_ref().map(|url| Address {
        url: url.clone(),
        file: settings.ledger_url_file.clone(),
        password_command: settings.database.password_command.clone(),
    })
}

/// Connects to the primary.
pub async fn connect(settings: &Settings) -> Result<Database, ConnectError> {
    let address = primary(settings)?;
    Database::connect(address, settings.connections_max(), settings.database.reconnect_timeout)
        .await
        .map_err(ConnectError::Unreachable)
}
