//! Why the ledger could not be read.

use crate::database::Transient;

/// The ledger could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The table or view is missing or has not the columns that it should have.
    #[error("{0}")]
    Shape(String),
    /// A row came in a form that the reader does not know.
    #[error("a row of the ledger cannot be decoded: {0}")]
    Decode(&'static str),
    /// The standby cannot show the pages that are asked for.
    #[error("{0}")]
    Standby(String),
    /// PostgreSQL could not read the rows of an entity: a failed cast, a timeout, a damaged block.
    #[error(transparent)]
    Unreadable(Unreadable),
    /// PostgreSQL refused or went away.
    #[error("reading the ledger failed")]
    Database(#[from] sqlx::Error),
}

impl Transient for LedgerError {
    fn is_transient(&self) -> bool {
        // What a standby is behind with is waited for elsewhere.
        matches!(self, LedgerError::Database(problem) if problem.is_transient() && !is_behind(self))
    }
}

/// PostgreSQL could not read the rows of an entity.
#[derive(Clone, Debug, thiserror::Error)]
#[error("entity `{entity_id}`: {message}")]
pub struct Unreadable {
    /// The entity.
    pub entity_id: String,
    /// What PostgreSQL says, the row if it is known, and what to do.
    pub message: String,
}

/// Raised by `elven_sync.require_pass`.
const PASS_NOT_SEEN: &str = "EL001";

/// A standby on which not even the migration has arrived: no function, no table, no schema.
const NOT_MIGRATED: [&str; 3] = ["42883", "42P01", "3F000"];

/// The page was cancelled because replay needed the rows gone (manual, "Handling Query Conflicts").
const RECOVERY_CONFLICT: &str = "40001";

/// Says whether a page failed for a reason that replaying more takes away.
pub(super) fn is_behind(problem: &LedgerError) -> bool {
    let LedgerError::Database(sqlx::Error::Database(refused)) = problem else { return false };
    refused.code().is_some_and(|code| {
        [PASS_NOT_SEEN, RECOVERY_CONFLICT].contains(&code.as_ref()) || NOT_MIGRATED.contains(&code.as_ref())
    })
}
