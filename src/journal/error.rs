//! Why the journal could not be read or written.

use std::sync::Arc;

use crate::database::Transient;

/// The journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The lease went to another worker, or ran out: this worker may move nothing.
    #[error("the lease of the entity was lost to another worker, or ran out")]
    LeaseLost,
    /// All of a pass was read, and yet a batch of it has no answer: it is not closed over that.
    #[error(
        "pass {0} has a batch without an answer behind its cursor, so it cannot be closed; hint: `elven-sync run` \
         sends it again"
    )]
    Unfinished(i64),
    /// All of a range was read, and yet a batch of it has no answer: it is not finished over that.
    #[error(
        "backfill {0} has a batch without an answer behind its cursor, so it is not finished; hint: look at \
         elven_sync.sync_batches; `elven-sync backfill --resume {0}` sends it again"
    )]
    UnfinishedRange(i64),
    /// The run's row is not there, or is another worker's: nothing can be said of the run.
    #[error("the row of the run is gone; was the database restored, or failed over?")]
    RunLost,
    /// The server only replays what another one writes.
    #[error(
        "DATABASE_URL leads to a standby, which cannot be written; hint: name the primary there, and a standby to read pages          from in ELVEN_SYNC_LEDGER_URL"
    )]
    Standby,
    /// The sync schema is missing or older or newer than this program.
    #[error("{0}")]
    Schema(String),
    /// Something that belongs before it could not be recorded.
    #[error(transparent)]
    Stopped(Arc<JournalError>),
    /// PostgreSQL refused or went away.
    #[error("the sync tables could not be used")]
    Database(#[from] sqlx::Error),
    /// A migration failed.
    #[error("the schema could not be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
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
