//! Errors of the journal.

use std::io::ErrorKind;
use std::sync::Arc;

use crate::database::Transient;

/// SQLSTATEs of a statement that waited too long for a lock: by `lock_timeout`, and by `statement_timeout`.
const LOCK_TIMEOUT: &str = "55P03";
const CANCELLED: &str = "57014";

/// An error of the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The lease was taken over or has expired, so this worker may write nothing.
    #[error("the lease of the entity was taken over by another worker, or expired")]
    LeaseLost,
    /// The pass was read to its end, but a batch of it has no recorded answer, so it is not closed.
    #[error(
        "pass {0} has a batch without a recorded answer, so it cannot be closed; hint: `elven-sync run` sends it again"
    )]
    Unfinished(i64),
    /// The range was read to its end, but a batch of it has no recorded answer, so it is not finished.
    #[error(
        "backfill {0} has a batch without a recorded answer, so it is not finished; hint: \
         `elven-sync backfill --resume {0}` sends it again"
    )]
    UnfinishedRange(i64),
    /// The row of the run is missing or belongs to another worker, so its result cannot be recorded.
    #[error("the row of the run is missing; the database may have been restored or failed over")]
    RunLost,
    /// Another session has locked the state of the entity for longer than `reconnect_timeout`.
    #[error(
        "the row of entity `{0}` in elven_sync.sync_state is locked by another session; hint: select pid, \
         pg_blocking_pids(pid) from pg_stat_activity where wait_event_type = 'Lock'"
    )]
    Locked(String),
    /// The server is a standby.
    #[error(
        "DATABASE_URL leads to a standby, which is read-only; hint: set it to the primary, and ELVEN_SYNC_LEDGER_URL \
         to a standby for reading"
    )]
    Standby,
    /// The sync schema is missing, or older or newer than this program.
    #[error("{0}")]
    Schema(String),
    /// The database refused a change, with this reason.
    #[error("{0}")]
    Refused(String),
    /// An earlier write could not be recorded.
    #[error(transparent)]
    Stopped(Arc<JournalError>),
    /// PostgreSQL refused a statement, or the connection was lost.
    #[error("a statement about the sync tables failed")]
    Database(#[from] sqlx::Error),
    /// A migration failed.
    #[error("the migration of the schema failed")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}

impl JournalError {
    /// Returns whether another session has locked the state of the entity.
    pub fn is_locked(&self) -> bool {
        match self {
            JournalError::Locked(_) => true,
            JournalError::Stopped(problem) => problem.is_locked(),
            _ => false,
        }
    }

    /// Returns whether another session may have locked rows: the state of the entity, or rows for whose lock a
    /// statement waited in vain.
    pub fn may_be_locked(&self) -> bool {
        match self {
            problem if problem.is_locked() => true,
            JournalError::Stopped(problem) => problem.may_be_locked(),
            JournalError::Database(sqlx::Error::Io(problem)) => problem.kind() == ErrorKind::TimedOut,
            JournalError::Database(sqlx::Error::Database(refused)) => {
                refused.code().is_some_and(|code| [LOCK_TIMEOUT, CANCELLED].contains(&code.as_ref()))
            }
            _ => false,
        }
    }
}

impl Transient for JournalError {
    fn is_transient(&self) -> bool {
        match self {
            JournalError::Database(problem) => problem.is_transient(),
            JournalError::Stopped(problem) => problem.is_transient(),
            _ => false,
        }
    }
}
