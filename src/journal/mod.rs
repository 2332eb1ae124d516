//! The journal: all SQL about the sync tables.
//!
//! SQL enforces that progress is monotonic: a write of a lane names the lease it holds and the cursor it starts from,
//! and changes nothing when either has changed.

mod accepted;
mod actions;
pub mod audit;
mod backfill_rows;
mod backfills;
mod batch_record;
mod batch_state;
mod batches;
mod blockers;
pub mod chain_records;
mod configuration_fact;
mod counters;
mod counting;
mod cursor_columns;
mod digests;
mod done_batches;
mod entities;
mod error;
mod error_causes;
mod errors;
mod facts;
mod fence;
mod guard_gap;
mod held_reads;
mod held_rows;
mod known_names;
mod lane;
mod lane_store;
mod lane_writes;
mod lease;
mod lease_check;
mod leases;
mod leaves;
mod links;
pub mod metrics;
mod migrate;
mod name_maps;
mod name_remedy;
mod notifications;
mod passes;
mod pending;
pub mod period;
mod preflight;
mod prints;
mod privileges;
mod problem;
pub mod prune;
mod release;
mod request_counts;
mod retry;
pub mod row_history;
mod runs;
mod skipped;
pub mod status_page;
mod storable_text;
mod unregistered;
mod watermark_changes;
mod work;
mod writer;
mod zone_rules;

use std::time::Duration;

pub use accepted::Accepted;
pub use actions::client_name;
pub use backfill_rows::{Asked, Backfill, BackfillStatus, Cancelled};
pub use backfills::{BackfillLane, BackfillPosition, Begun};
pub use batch_record::{AnsweredBatch, BatchRecord};
pub use batch_state::BatchState;
pub use batches::{RecordedBatch, Side};
pub use blockers::Blocker;
pub use configuration_fact::{is_configuration_broken, note_configuration};
pub use counters::{Counters, RunStatus};
pub use digests::{Digest, chained};
pub use entities::{Entity, Health, registering, unknown_entity};
pub use error::JournalError;
pub use error_causes::ErrorCause;
pub use errors::{ErrorGroup, RecordedError, Wanted};
pub use facts::{Fact, Subject, Verified, note_facts, note_verified};
pub use fence::Fence;
pub use guard_gap::{close_guard_gap, guard_gap};
pub use held_reads::{HeldName, HeldNow};
pub use held_rows::{HeldRows, correct_hint};
pub use known_names::{KnownName, StoredList};
pub use lane::{Lane, RecordedMapping, SealState};
pub use lane_store::{LaneStore, Reply};
pub use lane_writes::{Hold, RefusedRows, Settled, Split};
pub use lease::Lease;
pub use leases::{Holder, Lasts, Opened, Purpose, Take, Taken};
pub use leaves::RecordedLeaf;
pub use links::ACTIONS;
pub use migrate::{Part, apply, check as check_schema, migrate, migrate_ledger, publications};
pub use name_maps::{ALL_ENTITIES, MapEntry, MapHistory, MapKind, Mapped, NAME_TO_CHOOSE};
pub use name_remedy::{Remedy, UnknownName};
pub use notifications::{
    Alert, AlertsNow, ClaimedMessage, MessageKind, Notification, Told, claim_message, keep_subjects,
    record_message, undelivered_message,
};
pub use pending::Poll;
pub use preflight::{AlertCount, EntityFact, FilesValue, JournalFacts, LastRun, RecordedFiles};
pub use prints::{ChainEnd, Head, OpenHead, Print, PrintLine, prints};
pub use privileges::{MissingGrants, missing_grants};
pub(crate) use problem::invalid;
pub use problem::{Kind, Problem, Resolution};
pub use request_counts::RequestCounts;
pub use retry::{ErrorNow, RowError, SetAside};
pub use runs::failure_of_last_run;
pub use skipped::Skipped;
pub use unregistered::Registration;
pub use watermark_changes::{ClusterMatch, FromNow, PastWatermark, Rebound, UnfinishedWork};
pub use work::{AttemptResult, CursorAdvance, NewPass, OpenWork, WorkContext, WorkKind};
pub use writer::{
    Answer, Conclusions, Consequence, Emptying, JournalWrite, LockedLane, PassClosing, PendingWrite,
    Repetition, WorkPosition, WriteRequest, Written,
};
pub use zone_rules::{EarlierRules, RulesFact, RulesSeen, ServerDifference};

use self::writer::Group;
use crate::database::Database;

/// Refuses a standby. A server that becomes read-only during a run is waited for; a run or a command that starts on a
/// standby has the wrong address.
pub async fn refuse_standby(database: &Database) -> Result<(), JournalError> {
    // A server that became a standby later refuses writes.
    if database.was_primary() {
        return Ok(());
    }
    let query = || sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(database.single_round_trip());
    if database.retry(query).await? { Err(JournalError::Standby) } else { Ok(()) }
}

/// The sync tables of one installation, used by one worker.
#[derive(Clone, Debug)]
pub struct Journal {
    database: Database,
    worker: String,
    lease: Duration,
    signature_window: Duration,
    group: Group,
}

impl Journal {
    /// Opens the sync tables and checks that they have the version of this program.
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
