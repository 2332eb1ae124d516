//! Errors of reading the ledger.

use futures_util::future::BoxFuture;

use crate::database::Transient;

/// What the ledger returns, when it has come.
pub type Read<'a, T> = BoxFuture<'a, Result<T, LedgerError>>;

/// An error of reading the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The table or view is missing or does not have the required columns.
    #[error("{0}")]
    Shape(String),
    /// A row has a binary form that the reader does not know.
    #[error("a row of the ledger cannot be decoded: {0}")]
    Decode(&'static str),
    /// The standby cannot be used, or did not replay a pass in time.
    #[error("{0}")]
    Standby(String),
    /// PostgreSQL could not read the rows of an entity, e.g. because of a failed cast, a timeout or a damaged block.
    #[error(transparent)]
    Unreadable(Unreadable),
    /// PostgreSQL refused a statement, or the connection was lost.
    #[error("reading the ledger failed")]
    Database(#[from] sqlx::Error),
}

impl Transient for LedgerError {
    fn is_transient(&self) -> bool {
        // A standby that is behind is waited for in `standby::replayed`.
        matches!(self, LedgerError::Database(problem) if problem.is_transient() && !is_behind(self))
    }
}

/// The reason why PostgreSQL could not read the rows of an entity.
#[derive(Clone, Debug, thiserror::Error)]
#[error("entity `{entity_id}`: {message}")]
pub struct Unreadable {
    /// The entity.
    pub entity_id: String,
    /// The error of PostgreSQL, the row if it is known, and a hint.
    pub message: String,
}

/// The SQLSTATE that `elven_sync.require_pass` raises.
const PASS_NOT_SEEN: &str = "EL001";

/// SQLSTATEs of a standby that has not replayed the migration yet: no function, no table, no schema.
const NOT_MIGRATED: [&str; 3] = ["42883", "42P01", "3F000"];

/// The SQLSTATE of a page that was cancelled because replay had to remove rows (manual, "Handling Query Conflicts").
const RECOVERY_CONFLICT: &str = "40001";

/// Returns whether a page failed because the standby is behind, so that it succeeds after more replay.
pub(super) fn is_behind(problem: &LedgerError) -> bool {
    let LedgerError::Database(sqlx::Error::Database(refused)) = problem else { return false };
    refused.code().is_some_and(|code| {
        [PASS_NOT_SEEN, RECOVERY_CONFLICT].contains(&code.as_ref()) || NOT_MIGRATED.contains(&code.as_ref())
    })
}
