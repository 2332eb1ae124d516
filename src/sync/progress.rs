//! How far the work is, for whoever watches it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How far a run or a backfill is; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// When the rows of a run are counted, if somebody watches.
    counted_after: OnceLock<Duration>,
    entities: Mutex<BTreeMap<String, EntityProgress>>,
}

/// How far an entity is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntityProgress {
    /// The entity.
    pub entity_id: String,
    /// Rows dealt with, by earlier runs of a backfill too.
    pub rows_done: i64,
    /// Of them in this process.
    pub rows_done_here: i64,
    /// About how many there are in all. `None`: not counted.
    pub rows_total: Option<i64>,
    /// When it was begun with here.
    pub begun_at: Option<Instant>,
    /// There is nothing more to come.
    pub has_ended: bool,
}

impl Progress {
    /// Says that somebody watches: then it is worth to count what there is, once a run has lasted so long. Of most runs
    /// there is nothing to watch.
    pub fn watch(&self, counted_after: Duration) {
        self.0.counted_after.get_or_init(|| counted_after);
    }

    /// How far each entity is that was worked on, by id.
    pub fn entities(&self) -> Vec<EntityProgress> {
        self.lock().values().cloned().collect()
    }

    /// Says of an entity how many rows there are, and how many of them earlier runs have dealt with.
    pub(super) fn expect(&self, entity_id: &str, rows_total: i64, rows_done: i64) {
        self.change(entity_id, |entity| {
            entity.rows_total = Some(rows_total);
            entity.rows_done += rows_done;
        });
    }

    pub(super) fn begin(&self, entity_id: &str) {
        self.change(entity_id, |entity| _ = entity.begun_at.get_or_insert_with(Instant::now));
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
        let mut entities = self.lock();
        let entity = entities.entry(entity_id.to_owned()).or_insert_with(|| EntityProgress {
            entity_id: entity_id.to_owned(),
            ..EntityProgress::default()
        });
        change(entity);
    }

    /// When the rows of a run are counted. `None`: nobody watches.
    pub(super) fn counted_after(&self) -> Option<Duration> {
        self.0.counted_after.get().copied()
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, EntityProgress>> {
        self.0.entities.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
