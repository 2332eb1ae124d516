//! A connection to the primary that lasts for many runs.

use std::time::Duration;

use secrecy::ExposeSecret;

use crate::config::{ConfigError, Settings};
use crate::database::{Address, Database};
use crate::sync::{ConnectError, primary};

/// How a database is connected to.
#[derive(Clone, Debug)]
pub(super) struct Target {
    address: Address,
    connections_max: usize,
    reconnect_timeout: Duration,
}

impl Target {
    /// Returns how a worker connects to the primary.
    pub(super) fn of_worker(settings: &Settings) -> Result<Self, ConfigError> {
        Ok(Self {
            address: primary(settings)?,
            connections_max: settings.connections_max(),
            reconnect_timeout: settings.database.reconnect_timeout,
        })
    }

    /// Returns how something that must not wait long connects to the primary.
    pub(super) fn impatient(
        settings: &Settings,
        connections_max: usize,
        reconnect_timeout: Duration,
    ) -> Result<Self, ConfigError> {
        Ok(Self { address: primary(settings)?, connections_max, reconnect_timeout })
    }

    fn is(&self, other: &Self) -> bool {
        let (one, two) = (&self.address, &other.address);
        one.url.expose_secret() == two.url.expose_secret()
            && one.file == two.file
            && one.password_command == two.password_command
            && self.connections_max == other.connections_max
            && self.reconnect_timeout == other.reconnect_timeout
    }

    async fn connect(self) -> Result<Connected, ConnectError> {
        let Self { address, connections_max, reconnect_timeout } = self.clone();
        let database = Database::connect(address, connections_max, reconnect_timeout)
            .await
            .map_err(ConnectError::from)?;
        Ok(Connected { target: self, database })
    }
}

/// A database, and how it was connected to.
#[derive(Clone, Debug)]
pub(super) struct Connected {
    target: Target,
    pub database: Database,
}

/// Returns the connection that there is, if it is one to this target, and a new one otherwise.
pub(super) async fn connect_to(
    target: Target,
    current: Option<Connected>,
) -> Result<Connected, ConnectError> {
    match current {
        Some(current) if current.target.is(&target) => Ok(current),
        other => {
            let connected = target.connect().await?;
            if let Some(other) = other {
                other.database.close().await;
            }
            Ok(connected)
        }
    }
}
