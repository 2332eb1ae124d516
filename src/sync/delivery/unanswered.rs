//! Batches without a recorded answer that the cursor has passed. Versions before 0.1.1 left them: an answer that could
//! not be written did not keep the cursor from moving.

use std::collections::{BTreeMap, HashSet};

use tracing::Instrument;

use super::super::batcher::{Batcher, ReadSource};
use super::super::lane::exit::LaneExit;
use super::super::log::batch_span;
use super::super::messages;
use super::Delivery;
use super::batch_task::Redelivery;
use crate::batch::{Batch, key_hash};
use crate::journal::{Kind, Problem, RecordedBatch, Side, WorkKind};
use crate::ledger::Row;
use crate::watermark::Cursor;

/// Separates the batches beyond the cursor from the unanswered batches that the cursor has passed.
pub(super) fn apart(recorded: Vec<RecordedBatch>) -> (Vec<RecordedBatch>, Vec<RecordedBatch>) {
    let places: BTreeMap<i64, (Option<i64>, Side)> =
        recorded.iter().map(|batch| (batch.batch_id, (batch.parent_id, batch.side))).collect();
    // A part belongs to the side of its root. The root is not listed if it was split before the cursor passed it.
    let is_beyond = |batch: &RecordedBatch| {
        let mut place = (batch.parent_id, batch.side);
        while let (Some(parent_id), _) = place {
            let Some(whole) = places.get(&parent_id) else { return false };
            place = *whole;
        }
        place.1 == Side::Beyond
    };
    let beyond: Vec<bool> = recorded.iter().map(is_beyond).collect();
    let mut beyond = beyond.into_iter();
    let (beyond, passed): (Vec<_>, Vec<_>) =
        recorded.into_iter().partition(|_| beyond.next().unwrap_or_default());
    (beyond, passed.into_iter().filter(|batch| batch.state.is_open()).collect())
}

impl Delivery {
    /// Sends unanswered batches again, before any other batch. Stops the lane if another row of one of their keys was
    /// read after the batch: that row may have been uploaded, and the older one must not be uploaded after it.
    pub(super) async fn redo_passed_over(
        &self,
        source: &ReadSource<'_>,
        passed: &[RecordedBatch],
    ) -> Result<(), LaneExit> {
        let mut window = self.window.lock().await;
        let Some(cursor) = window.cursor.clone().filter(|_| !passed.is_empty()) else { return Ok(()) };
        // As one root that ends at the cursor, so that the cursor does not move before they are processed.
        let whole = passed.iter().map(|leaf| leaf.batch_id).collect();
        let number = window.push(cursor.clone(), passed.len(), whole);
        drop(window);
        for leaf in passed {
            let interval = source.read(leaf.before.clone(), Some(leaf.last.clone())).await?;
            let rows = self.unless_halted(Batcher::of(interval, None, self.start.clone()).all()).await??;
            let rows: Vec<Row> =
                rows.into_iter().filter(|row| leaf.ids.contains(&row.id.to_string())).collect();
            if self.is_followed(source, leaf, &rows, &cursor).await? {
                let message = messages::followed(leaf.batch_id, &self.pass.lease.entity_id);
                return Err(LaneExit::problem(Problem::of_lane(Kind::Watermark, message)));
            }
            let span = batch_span(leaf.batch_id);
            span.in_scope(|| {
                tracing::warn!(
                    "the cursor has passed this batch, but no answer is recorded; it is sent again"
                );
            });
            let build = |rows| Batch::build(leaf.before.clone(), rows, &self.rules_of(leaf));
            let batch = if rows.is_empty() { None } else { Some(build(rows)) };
            let redo = self.redo(Redelivery { root: number, whole: leaf, leaf, batch });
            if let Some(task) = redo.instrument(span).await? {
                self.waiting(self.deliver(task)).await?;
            }
        }
        self.conclude(number).await
    }

    /// Whether a pass has a row with a key of the batch between the batch and the cursor. A backfill looks for such
    /// rows with each batch.
    async fn is_followed(
        &self,
        source: &ReadSource<'_>,
        leaf: &RecordedBatch,
        rows: &[Row],
        cursor: &Cursor,
    ) -> Result<bool, LaneExit> {
        if matches!(self.pass.work, WorkKind::Backfill(_)) {
            return Ok(false);
        }
        let mut aligner = self.rules.aligner();
        let keys: HashSet<u64> = rows.iter().filter_map(|row| key_hash(row, &mut aligner)).collect();
        let mut pages = source.read(Some(leaf.last.clone()), Some(cursor.clone())).await?;
        while let Some(page) = self.unless_halted(pages.next_page()).await?? {
            if page.iter().filter_map(|row| key_hash(row, &mut aligner)).any(|key| keys.contains(&key)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
