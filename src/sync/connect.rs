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
    /// The server answered, and refused the connection or its first statement.
    #[error("the database server refused the connection; hint: {hint}")]
    Refused {
        /// What helps.
        hint: &'static str,
        /// What the server said.
        #[source]
        problem: sqlx::Error,
    },
}

impl From<sqlx::Error> for ConnectError {
    /// Tells a server that answers from one that cannot be reached.
    fn from(problem: sqlx::Error) -> Self {
        let code = problem.as_database_error().and_then(sqlx::error::DatabaseError::code);
        let hint = match code.as_deref() {
            // query_canceled
            Some("57014") => {
                "the statement_timeout of the role or the database is too short; as the owner: alter role NAME set \
                 statement_timeout = '1min';"
            }
            Some("28000" | "28P01") => {
                "check user and password in DATABASE_URL, and pg_hba.conf of the server"
            }
            // insufficient_privilege
            Some("42501") => "as the owner: grant connect on database NAME to ROLE;",
            // invalid_catalog_name
            Some("3D000") => "check the database in DATABASE_URL (postgres://user:password@host/database)",
            Some("53300") => {
                "raise max_connections (or the limit of the role or the database), or use a pooler"
            }
            _ => return Self::Unreachable(problem),
        };
        Self::Refused { hint, problem }
    }
}

/// Returns the address of the primary.
pub fn primary(settings: &Settings) -> Result<Address, ConfigError> {
    Ok(Address {
        url: settings.database_url()?.clone(),
        file: settings.database_url_file.clone(),
        password_command: settings.database.password_command.clone(),
        activity: settings.activity.clone(),
    })
}

/// Returns the address of the standby from which pages are read, if there is one.
pub fn standby_address(settings: &Settings) -> Option<Address> {
    settings.ledger_url.as_ref().map(|url| Address {
        url: url.clone(),
        file: settings.ledger_url_file.clone(),
        password_command: settings.database.password_command.clone(),
        activity: settings.activity.clone(),
    })
}

/// Connects to the primary.
pub async fn connect(settings: &Settings) -> Result<Database, ConnectError> {
    let address = primary(settings)?;
    Database::connect(address, settings.connections_max(), settings.database.reconnect_timeout)
        .await
        .map_err(ConnectError::from)
}
