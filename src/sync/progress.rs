//! The progress of a run or a backfill, for display.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// The progress of a run or a backfill; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// How long after its start the rows of a run are counted. Set only if the progress is displayed.
    counted_after: OnceLock<Duration>,
    /// The steps that the work has made: requests that ended, and changes of an entity.
    steps: AtomicU64,
    /// The ledger was asked for new rows.
    has_polled: AtomicBool,
    /// The steps among them that are polls.
    poll_steps: AtomicU64,
    /// The polls after the first that have succeeded.
    polls_again: watch::Sender<u64>,
    entities: Mutex<BTreeMap<String, EntityProgress>>,
}

/// The progress of one entity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntityProgress {
    /// The entity.
    pub entity_id: String,
    /// Rows processed, including those of earlier runs of a backfill.
    pub rows_done: i64,
    /// Rows processed by this process.
    pub rows_done_here: i64,
    /// The approximate number of rows to process in all. `None`: not counted.
    pub rows_total: Option<i64>,
    /// When this process began to work on the entity.
    pub begun_at: Option<Instant>,
    /// The lane has ended.
    pub has_ended: bool,
}

impl Progress {
    /// Announces that the progress is displayed. Then the rows are counted once the run has lasted for this time; most
    /// runs end earlier, and the count costs a query.
    pub fn watch(&self, counted_after: Duration) {
        self.0.counted_after.get_or_init(|| counted_after);
    }

    /// The progress of each entity that was worked on, ordered by id.
    pub fn entities(&self) -> Vec<EntityProgress> {
        self.lock().values().cloned().collect()
    }

    /// Returns how many steps the work has made. Work that is stuck makes none.
    pub fn steps(&self) -> u64 {
        self.0.steps.load(Ordering::Relaxed)
    }

    /// Returns whether the ledger was asked for new rows of all entities.
    pub fn has_polled(&self) -> bool {
        self.0.has_polled.load(Ordering::Relaxed)
    }

    /// Returns how many steps the lanes have made.
    pub fn lane_steps(&self) -> u64 {
        self.steps().saturating_sub(self.0.poll_steps.load(Ordering::Relaxed))
    }

    /// Returns the number of polls after the first that have succeeded.
    pub fn polls(&self) -> watch::Receiver<u64> {
        self.0.polls_again.subscribe()
    }

    /// Notes that the work has made a step.
    pub(super) fn step(&self) {
        self.0.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the ledger was asked for new rows of all entities.
    pub(super) fn note_poll(&self) {
        self.0.has_polled.store(true, Ordering::Relaxed);
        self.0.poll_steps.fetch_add(1, Ordering::Relaxed);
        self.step();
    }

    /// Notes that a poll after the first one has succeeded, and that what it saw is recorded.
    pub(super) fn note_polled_again(&self) {
        self.0.polls_again.send_modify(|polls| *polls += 1);
    }

    /// Sets the number of rows of an entity, and how many of them earlier runs processed.
    pub(super) fn expect(&self, entity_id: &str, rows_total: i64, rows_done: i64) {
        self.change(entity_id, |entity| {
            entity.rows_total = Some(rows_total);
            entity.rows_done += rows_done;
        });
    }

    pub(super) fn begin(&self, entity_id: &str) {
        self.change(entity_id, |entity| {
            entity.begun_at.get_or_insert_with(Instant::now);
            // An earlier lane of the entity may have ended.
            entity.has_ended = false;
        });
    }

    pub(super) fn add(&self, entity_id: &str, rows: i64) {
        self.change(entity_id, |entity| {
            entity.rows_done += rows;
            entity.rows_done_here += rows;
        });
    }

    pub(super) fn end(&self, entity_id: &str) {
        self.change(entity_id, |entity| entity.has_ended = true);
    }

    pub(super) fn change(&self, entity_id: &str, change: impl FnOnce(&mut EntityProgress)) {
        self.step();
        let mut entities = self.lock();
        let entity = entities.entry(entity_id.to_owned()).or_insert_with(|| EntityProgress {
            entity_id: entity_id.to_owned(),
            ..EntityProgress::default()
        });
        change(entity);
    }

    /// How long after its start the rows of a run are counted. `None`: the progress is not displayed.
    pub(super) fn counted_after(&self) -> Option<Duration> {
        self.0.counted_after.get().copied()
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, EntityProgress>> {
        self.0.entities.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
