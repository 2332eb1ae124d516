//! The rows of the sync tables in memory, and what happens to all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use elven_sync::batch::unpack_ids;
use elven_sync::journal::{
    BatchRecord, BatchState, Fence, HeldRows, JournalError, Kind, Lane, Lease, NewPass, Opened, Problem,
    SealState,
};
use elven_sync::watermark::{Cursor, Snapshot};

use super::super::ledger::CLUSTER;
use super::super::world::{LEASE, Sabotage, State, World};

/// The most transactions that a failover loses.
const FAILOVER_MAX: usize = 6;

/// A row of `sync_state`.
#[derive(Clone, Debug, Default)]
pub struct LaneRow {
    pub settled: Option<Snapshot>,
    pub open: Option<(i64, Snapshot)>,
    pub cursor: Option<Cursor>,
    pub mapping: Option<String>,
    pub owner: Option<String>,
    pub epoch: i64,
    pub expires_at: Option<Instant>,
    pub fence_until: Option<Instant>,
    pub not_before: Option<Instant>,
    pub last_error: Option<String>,
}

/// A row of `sync_batches`.
#[derive(Clone, Debug)]
pub struct BatchRow {
    pub batch_id: i64,
    pub parent_id: Option<i64>,
    pub run_id: i64,
    pub pass_id: Option<i64>,
    pub entity_id: String,
    pub before: Option<Cursor>,
    pub last: Cursor,
    pub ids: Vec<i64>,
    pub row_count: i32,
    pub sha256: String,
    pub status: &'static str,
    pub attempts: i32,
    pub ambiguous: bool,
    pub unknown_runs: i32,
    pub set_aside: Vec<i64>,
}

impl BatchRow {
    pub fn state(&self) -> BatchState {
        BatchState::decode(self.status, self.row_count, self.attempts).unwrap()
    }

    /// The status after an answer: a batch with records that was ever unknown stays unknown until it is accepted.
    pub(super) fn status_after(&self, status: &'static str) -> &'static str {
        let stays_unknown = status == "rejected" && self.ambiguous && self.row_count > 0;
        if stays_unknown { "unknown" } else { status }
    }

    pub(super) fn is_of_retry(&self, entity_id: &str) -> bool {
        self.pass_id.is_none() && self.entity_id == entity_id
    }

    pub(super) fn rewrite(&mut self, record: &BatchRecord) {
        self.ids = ids_of(&record.row_ids);
        self.row_count = record.row_count;
        self.sha256.clone_from(&record.body_sha256);
    }
}

pub(super) fn ids_of(packed: &[u8]) -> Vec<i64> {
    unpack_ids(packed).unwrap().iter().map(|id| id.to_string().parse().unwrap()).collect()
}

/// The sync tables.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    pub lanes: BTreeMap<String, LaneRow>,
    pub batches: Vec<BatchRow>,
    pub passes: i64,
    /// The watermark before each pass.
    pub(super) settled: BTreeMap<i64, Option<Snapshot>>,
    pub runs: i64,
    /// Open errors of rows, by entity and row: the kind, and the batch.
    pub errors: BTreeMap<(String, i64), (Kind, Option<i64>)>,
    /// The batches whose leaves are chained, by pass, in the order of the chain.
    pub chained: BTreeMap<i64, Vec<i64>>,
}

impl Tables {
    pub(super) fn lane(&mut self, entity_id: &str) -> &mut LaneRow {
        self.lanes.entry(entity_id.to_owned()).or_default()
    }

    /// The lane of a lease, if the lease is still in force.
    pub(super) fn held(&mut self, lease: &Lease) -> Result<&mut LaneRow, JournalError> {
        let lane = self.lane(&lease.entity_id);
        let is_held = lane.owner.as_ref() == Some(&lease.owner) && lane.epoch == lease.epoch;
        if is_held { Ok(lane) } else { Err(JournalError::LeaseLost) }
    }

    pub fn of_pass(&self, pass_id: i64) -> impl Iterator<Item = &BatchRow> {
        self.batches.iter().filter(move |batch| batch.pass_id == Some(pass_id))
    }

    pub(super) fn rejected(&self, entity_id: &str) -> BTreeSet<i64> {
        let of_entity = self
            .errors
            .iter()
            .filter(|((entity, _), (kind, _))| entity == entity_id && *kind == Kind::RejectedRow);
        of_entity.map(|((_, id), _)| *id).collect()
    }

    /// Records a batch that is about to be sent, or a part that is sent later.
    pub(super) fn insert(
        &mut self,
        (run_id, pass_id): (i64, Option<i64>),
        entity_id: &str,
        parent_id: Option<i64>,
        record: &BatchRecord,
    ) -> &mut BatchRow {
        let batch_id = i64::try_from(self.batches.len()).unwrap() + 1;
        self.batches.push(BatchRow {
            batch_id,
            parent_id,
            run_id,
            pass_id,
            entity_id: entity_id.to_owned(),
            before: record.before.clone(),
            last: record.last.clone(),
            ids: ids_of(&record.row_ids),
            row_count: record.row_count,
            sha256: record.body_sha256.clone(),
            status: "sending",
            attempts: i32::from(parent_id.is_none()),
            ambiguous: false,
            unknown_runs: 0,
            set_aside: Vec::new(),
        });
        self.batches.last_mut().unwrap()
    }

    pub(super) fn batch(&mut self, batch_id: i64, entity_id: &str) -> Result<&mut BatchRow, JournalError> {
        let found =
            self.batches.iter_mut().find(|batch| batch.batch_id == batch_id && batch.entity_id == entity_id);
        found.ok_or(JournalError::LeaseLost)
    }

    pub(super) fn hold(&mut self, entity_id: &str, batch_id: i64, held: &[HeldRows]) {
        for (held, id) in held.iter().flat_map(|held| held.ids.iter().map(move |id| (held, id))) {
            let key = (entity_id.to_owned(), id.to_string().parse().unwrap());
            self.errors.insert(key, (held.kind, Some(batch_id)));
        }
    }

    pub(super) fn record(&mut self, entity_id: &str, problems: &[Problem]) {
        for problem in problems {
            if let Some(id) = problem.ledger_id.as_ref().and_then(|id| id.parse().ok()) {
                self.errors.insert((entity_id.to_owned(), id), (problem.kind, problem.batch_id));
            }
        }
    }
}

/// Records the fence of a lease that ends. Returns whether there is one: a failover that lost it would lose the fence.
pub(super) fn note_fence(world: &World, lane: &mut LaneRow, fence: &Fence) -> bool {
    if let Some(left) = fence.seconds_left()
        && !world.is(Sabotage::FenceForgotten)
    {
        lane.fence_until = lane.fence_until.max(Some(Instant::now() + Duration::from_secs_f64(left)));
        return true;
    }
    false
}

impl State {
    /// Keeps the tables as they are, for a failover.
    pub(super) fn keep(&mut self) {
        if !self.may_fail_over {
            return;
        }
        self.kept.truncate(FAILOVER_MAX - 1);
        self.kept.insert(0, self.tables.clone());
    }

    /// No failover of the simulation loses a fence: the next worker could not know of it.
    pub(super) fn keeps_fence(&mut self, is_fenced: bool) {
        if is_fenced {
            self.kept.clear();
        }
    }

    /// A failover loses the last transactions. Runs keep their numbers, which the simulation itself gives out.
    pub fn fail_over(&mut self, world: &World) {
        let count = u64::try_from(self.kept.len()).unwrap();
        if count > 0 {
            let index = usize::try_from(world.below(count)).unwrap();
            let runs = self.tables.runs;
            self.tables = self.kept.swap_remove(index);
            self.tables.runs = runs;
            self.kept.clear();
            self.failovers += 1;
            world.log(|| format!("failover: the last {} transactions are lost", index + 1));
        }
    }

    /// Renews the leases of a process.
    pub fn renew(&mut self, owner: &str) {
        for lane in self.tables.lanes.values_mut().filter(|lane| lane.owner.as_deref() == Some(owner)) {
            lane.expires_at = Some(Instant::now() + LEASE);
        }
    }

    /// Returns the state of a lane as a worker reads it.
    pub fn lane(&self, entity_id: &str) -> Lane {
        let row = self.tables.lanes.get(entity_id).cloned().unwrap_or_default();
        let now = Instant::now();
        let is_bound = row.settled.is_some() || row.open.is_some();
        Lane {
            lease_epoch: 0,
            read_at: None,
            settled: row.settled,
            open: row.open,
            cursor: row.cursor,
            system_identifier: is_bound.then_some(CLUSTER),
            ledger_table: is_bound.then(|| "ledger.balance_snapshots".to_owned()),
            mapping: row.mapping.map(Into::into),
            seal: SealState::Whole,
            not_before: row.not_before.map(|at| at.saturating_duration_since(now)),
            has_rows_set_aside: self.tables.errors.keys().any(|(entity, _)| entity == entity_id),
        }
    }

    pub(super) fn open(&mut self, world: &World, entity_id: &str, opening: NewPass<'_>) -> Option<Opened> {
        let mut target = self.snapshot();
        if world.is(Sabotage::TargetTooNew) {
            target = format!("{0}:{0}:", target.xmax()).parse().unwrap();
        }
        let pass_id = self.tables.passes + 1;
        let lane = self.tables.lane(entity_id);
        if lane.open.is_some() || lane.settled != opening.seen.settled {
            return None;
        }
        lane.open = Some((pass_id, target));
        lane.mapping = Some(opening.mapping.to_owned());
        let opened = lane.open.clone();
        self.tables.passes = pass_id;
        self.tables.settled.insert(pass_id, opening.seen.settled.clone());
        opened
    }
}
