//! Errors that end a whole run.

use crate::config::ConfigError;
use crate::database::Transient;
use crate::journal::JournalError;
use crate::ledger::LedgerError;

/// An error that ends a whole run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The sync tables cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Transient for RunError {
    fn is_transient(&self) -> bool {
        match self {
            RunError::Ledger(problem) => problem.is_transient(),
            RunError::Journal(problem) => problem.is_transient(),
            RunError::Config(_) => false,
        }
    }
}
