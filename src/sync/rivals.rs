//! Rivals: newer rows of the keys of a batch that are not in it.
//!
//! A backfill sends in the order `(captured_at, id)`. What has the same account, currency and local second as a row of a
//! batch and lies behind the batch is newer, and may have arrived already: the older one is not sent after it.

use std::collections::VecDeque;
use std::sync::Arc;

use chrono_tz::Tz;

use super::{RunError, Worker};
use crate::align::Clock;
use crate::batch::Batch;
use crate::ledger::{Range, Row, instant};
use crate::watermark::Order;

/// Looks for the rivals of the batches of a range. Also beyond its end, which may cut a second or an hour that repeats.
pub(super) struct Rivals {
    worker: Worker,
    range: Arc<Range>,
}

impl Rivals {
    pub(super) fn new(worker: Worker, range: Arc<Range>) -> Self {
        Self { worker, range }
    }

    /// The batch without the rows that are superseded by rows behind it: by those that wait to be cut, which are without
    /// a gap, or by those of the ledger behind these.
    pub(super) async fn apart(
        &self,
        batch: Batch,
        waiting: &VecDeque<Row>,
        zone: Tz,
    ) -> Result<Batch, RunError> {
        let instant_of = |row: Option<&Row>| row.and_then(|row| row.captured_at_us);
        let (Some(first), Some(last)) = (instant_of(batch.rows.first()), instant_of(batch.rows.last()))
        else {
            return Ok(batch);
        };
        let until = Clock::of(zone).repeats_until(first, last);
        let is_before = |row: &&Row| row.captured_at_us.is_some_and(|at| at < until);
        let mut rivals: Vec<Row> =
            batch.superseded_by(waiting.iter().take_while(is_before), zone).into_iter().cloned().collect();
        if waiting.back().as_ref().is_none_or(is_before) {
            let after = waiting.back().map_or(batch.last.clone(), |row| row.cursor(Order::CapturedAt));
            let behind = Arc::new(Range { to: instant(until), ..Range::clone(&self.range) });
            let mut pages = self.worker.ledger.range(behind, Some(after), None, self.worker.page_rows());
            while let Some(rows) = pages.next_page().await? {
                rivals.extend(batch.superseded_by(rows.iter(), zone).into_iter().cloned());
            }
        }
        if rivals.is_empty() {
            return Ok(batch);
        }
        let rivals = self.worker.not_set_aside(&self.range.entity_id, rivals).await?;
        Ok(if rivals.is_empty() { batch } else { batch.beside(rivals, zone) })
    }
}
