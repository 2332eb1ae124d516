//! How far the work is, for whoever watches it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::worker::progress;
use super::{RunError, Worker};

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

    fn change(&self, entity_id: &str, change: impl FnOnce(&mut EntityProgress)) {
        let mut entities = self.lock();
        let entity = entities.entry(entity_id.to_owned()).or_insert_with(|| EntityProgress {
            entity_id: entity_id.to_owned(),
            ..EntityProgress::default()
        });
        change(entity);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, EntityProgress>> {
        self.0.entities.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// How far the work is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Works, and meanwhile counts what there is.
    pub(super) async fn counted_meanwhile<T>(
        &self,
        entity_ids: &[String],
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            biased;
            worked = &mut work => return worked,
            counted = self.count_for_progress(entity_ids) => if let Err(problem) = counted {
                let error = crate::text::chain(&problem);
                tracing::warn!(error, "what there is to do could not be counted; it is done all the same");
            }
        }
        work.await
    }

    /// Counts what waits for these entities, once a run has lasted for a while and if somebody watches it.
    async fn count_for_progress(&self, entity_ids: &[String]) -> Result<(), RunError> {
        let Some(&counted_after) = self.progress.0.counted_after.get() else { return Ok(()) };
        tokio::time::sleep(counted_after).await;
        // Before the cursors are read: what is done while the rest is counted is part of that.
        let done: BTreeMap<String, i64> =
            self.progress.lock().iter().map(|(id, entity)| (id.clone(), entity.rows_done)).collect();
        let lanes = self.journal.lanes(entity_ids, &self.mapping).await?;
        for (entity_id, rows) in self.ledger.rows_pending(&progress(&lanes)).await? {
            let done = done.get(&entity_id).copied().unwrap_or(0);
            self.progress.change(&entity_id, |entity| entity.rows_total = Some(done + rows));
        }
        Ok(())
    }
}
