//! Rows that supersede: newer rows of the keys of a batch that are not in it.
//!
//! A backfill sends in the order `(captured_at, id)`. What has the same account, currency and local second as a row of a
//! batch and lies behind the batch is newer, and may have arrived already: the older one is not sent after it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use tokio::sync::Mutex;

use super::super::{RunError, Worker};
use crate::align::{Clock, Zone};
use crate::batch::{Batch, key_hash};
use crate::journal::Skipped;
use crate::ledger::{Range, RangePages, Row, instant, instant_us};
use crate::watermark::{Cursor, Order};

/// Rows that are kept while many batches have the same rows behind them, as when all accounts are captured at one
/// instant. Where there are more they are read again for each batch.
const ROWS_KEPT_MAX: usize = 100_000;

/// Looks for the rivals of the batches of a range. Also beyond its end, which may cut a second or an hour that repeats.
pub(in crate::sync) struct SupersedingRows {
    worker: Worker,
    range: Arc<Range>,
    behind: Mutex<Option<Behind>>,
    /// Asked for once: nobody else sends rows of the entity while it has the lease.
    skipped: OnceLock<Skipped>,
}

/// The rows behind a batch, up to an instant; of use for the batches that follow and look as far.
struct Behind {
    until: i64,
    /// By the hash of their keys. `None`: there are too many.
    rows: Option<HashMap<u64, Vec<Row>>>,
}

impl SupersedingRows {
    pub(in crate::sync) fn new(worker: Worker, range: Arc<Range>) -> Self {
        Self { worker, range, behind: Mutex::new(None), skipped: OnceLock::new() }
    }

    /// The batch without the rows that are superseded by rows behind it: by those that wait to be cut, which are without
    /// a gap, or by those of the ledger behind these.
    pub(in crate::sync) async fn exclude_superseded(
        &self,
        batch: Batch,
        waiting: &VecDeque<Row>,
    ) -> Result<Batch, RunError> {
        let instant_of = |row: Option<&Row>| row.and_then(|row| row.captured_at_us);
        let (Some(first), Some(last)) = (instant_of(batch.rows.first()), instant_of(batch.rows.last()))
        else {
            return Ok(batch);
        };
        let until = Clock::of(&batch.zone).repeats_until(first, last);
        let is_before = |row: &&Row| row.captured_at_us.is_some_and(|at| at < until);
        let rivals = if waiting.back().as_ref().is_none_or(is_before) {
            self.in_ledger(&batch, waiting, until).await?
        } else {
            superseding(&batch, waiting.iter().take_while(is_before))
        };
        if rivals.is_empty() {
            return Ok(batch);
        }
        let rivals = self.worker.not_set_aside(&self.range.entity_id, rivals).await?;
        let rivals = self.not_skipped(rivals).await?;
        Ok(if rivals.is_empty() { batch } else { batch.with_newer_rows(rivals) })
    }

    /// Of these rows those that Elven has or will have: not what a registration from now on has skipped, unless it lies in
    /// the range, and so is sent by the backfill itself.
    async fn not_skipped(&self, mut rivals: Vec<Row>) -> Result<Vec<Row>, RunError> {
        let end = instant_us(self.range.to);
        let is_in_range = |row: &Row| row.captured_at_us.is_some_and(|at| at < end);
        if !rivals.iter().all(is_in_range) {
            let skipped = if let Some(skipped) = self.skipped.get() {
                skipped
            } else {
                let asked = self.worker.journal.skipped(&self.range.entity_id).await?;
                self.skipped.get_or_init(|| asked)
            };
            rivals.retain(|row| is_in_range(row) || !skipped.has(row));
        }
        Ok(rivals)
    }

    /// The rivals of a batch among the rows that wait, and all that the ledger has behind these up to an instant.
    async fn in_ledger(
        &self,
        batch: &Batch,
        waiting: &VecDeque<Row>,
        until: i64,
    ) -> Result<Vec<Row>, RunError> {
        let mut behind = self.behind.lock().await;
        let after = waiting.back().map_or(batch.last.clone(), |row| row.cursor(Order::CapturedAt));
        if behind.as_ref().is_none_or(|behind| behind.until != until) {
            let rows = self.keep(waiting, self.pages(after.clone(), until), &batch.zone).await?;
            *behind = Some(Behind { until, rows });
        }
        if let Some(Behind { rows: Some(rows), .. }) = behind.as_ref() {
            let same_key = batch.keys.iter().filter_map(|key| rows.get(key)).flatten();
            // Of these the batch that they were read for may have had some: it was too large, and was cut again.
            return Ok(superseding(batch, same_key.chain(waiting)));
        }
        let mut rivals = superseding(batch, waiting.iter());
        let mut pages = self.pages(after, until);
        while let Some(rows) = pages.next_page().await? {
            rivals.extend(superseding(batch, rows.iter()));
        }
        Ok(rivals)
    }

    fn pages(&self, after: Cursor, until: i64) -> RangePages {
        let behind = Arc::new(Range { to: instant(until), ..Range::clone(&self.range) });
        self.worker.ledger.range(behind, Some(after), None, self.worker.page_rows())
    }

    /// Rows by their keys. `None`: there are too many to keep.
    async fn keep(
        &self,
        waiting: &VecDeque<Row>,
        mut pages: RangePages,
        zone: &Zone,
    ) -> Result<Option<HashMap<u64, Vec<Row>>>, RunError> {
        let mut clock = Clock::of(zone);
        let mut kept: HashMap<u64, Vec<Row>> = HashMap::new();
        let mut keep = |row: &Row| {
            if let Some(key) = key_hash(row, &mut clock) {
                kept.entry(key).or_default().push(row.clone());
            }
        };
        waiting.iter().for_each(&mut keep);
        let mut count = waiting.len();
        while let Some(rows) = pages.next_page().await? {
            count += rows.len();
            if count > ROWS_KEPT_MAX {
                return Ok(None);
            }
            rows.iter().for_each(&mut keep);
        }
        Ok(Some(kept))
    }
}

/// Those of some rows that supersede records of a batch.
fn superseding<'r>(batch: &Batch, rows: impl Iterator<Item = &'r Row>) -> Vec<Row> {
    batch.superseded_by(rows).into_iter().cloned().collect()
}
