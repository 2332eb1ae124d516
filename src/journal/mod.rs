//! The journal: every statement about the sync tables is here, and nowhere else.
//!
//! Progress is monotonic and SQL enforces it: a write of a lane names the lease it holds and the
//! cursor it starts from, and changes nothing when either is not so any more.

mod accepted;
mod actions;
mod backfill_rows;
mod backfills;
mod batches;
pub mod carried;
mod contents;
mod entities;
mod errors;
mod fence;
mod group;
mod lanes;
mod leases;
mod migrate;
mod moves;
mod pending;
mod problems;
pub mod proof;
pub mod prune;
mod recovery;
mod runs;
mod skipped;
mod steps;
mod texts;
mod zones;

use std::sync::Arc;
use std::time::Duration;

pub use backfill_rows::{Backfill, Cancelled};
pub use backfills::{Asked, BackfillLane, BackfillStatus, Begun};
pub use batches::{Advance, Doing, Recorded, Settlement, Side};
pub use entities::{Entity, Health, registering, unknown_entity};
pub use errors::{Kind, Problem};
pub use fence::Fence;
pub use group::Handed;
pub use lanes::{Course, Lane, Lease, OpenPass, Opening, RecordedMapping};
pub use leases::{Holder, Lasts, Purpose, Take};
pub use migrate::{check as check_schema, migrate, migrate_ledger};
pub use moves::{Earlier, FromNow, OpenWork, Rebound, Seal, Sealed};
pub use problems::{LastAnswer, RecordedError, Tried, Wanted};
pub use runs::{Counters, RunStatus};
pub use skipped::Skipped;
pub(crate) use steps::invalid;
pub use zones::{EarlierRules, RulesFact, RulesSeen, ServerDifference};

use self::group::Group;
use crate::database::{Database, Passing};

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

/// Makes sure that the server can be written. One that is read-only for a while in the middle of a run is waited for; a
/// run or a command that would begin on a standby is not meant for it.
pub async fn refuse_standby(database: &Database) -> Result<(), JournalError> {
    // One that became a standby since refuses what is written.
    if database.was_primary() {
        return Ok(());
    }
    let look = || sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(database.at_once());
    if database.again(look).await? { Err(JournalError::Standby) } else { Ok(()) }
}

impl Passing for JournalError {
    fn is_passing(&self) -> bool {
        match self {
            JournalError::Database(problem) => problem.is_passing(),
            JournalError::Stopped(problem) => problem.is_passing(),
            _ => false,
        }
    }
}

/// The sync tables of one installation, for one worker.
#[derive(Clone, Debug)]
pub struct Journal {
    database: Database,
    worker: String,
    lease: Duration,
    signature_window: Duration,
    group: Group,
}

impl Journal {
    /// Opens the sync tables and makes sure that this program knows their version.
    pub async fn open(
        database: Database,
        worker: String,
        lease: Duration,
        signature_window: Duration,
    ) -> Result<Self, JournalError> {
        migrate::check(&database).await?;
        let group = Group::start(database.clone(), lease);
        Ok(Self { database, worker, lease, signature_window, group })
    }

    fn lease_seconds(&self) -> f64 {
        self.lease.as_secs_f64()
    }
}
