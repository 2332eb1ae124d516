//! Superseding rows in a backfill: newer rows of the keys of a batch that are not in the batch.
//!
//! A backfill sends rows in the order `(captured_at, id)`. A row after the batch with the same account, currency and
//! local second as a row of the batch is newer, and may be uploaded already. So the older row is not sent.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use tokio::sync::Mutex;

use super::super::{RunError, Worker};
use crate::align::{Clock, Zone};
use crate::batch::{Batch, key_hash};
use crate::journal::Skipped;
use crate::ledger::{Range, RangePages, Row, instant, instant_us};
use crate::watermark::{Cursor, Order};

/// The most rows to keep in memory while many batches are followed by the same rows, as when all accounts are captured
/// at one instant. If there are more, they are read again for each batch.
const ROWS_KEPT_MAX: usize = 100_000;

/// Finds the superseding rows for the batches of a range. It also looks beyond the end of the range, which may lie
/// within a second, or within an hour that the time zone repeats.
pub(in crate::sync) struct SupersedingRows {
    worker: Worker,
    range: Arc<Range>,
    behind: Mutex<Option<Behind>>,
    /// Read once, because no other worker changes it while this one has the lease.
    skipped: OnceLock<Skipped>,
}

/// The rows after a batch up to an instant. Later batches that look up to the same instant use them, too.
struct Behind {
    until: i64,
    /// The rows by the hash of their key. `None`: there are too many.
    rows: Option<HashMap<u64, Vec<Row>>>,
}

impl SupersedingRows {
    pub(in crate::sync) fn new(worker: Worker, range: Arc<Range>) -> Self {
        Self { worker, range, behind: Mutex::new(None), skipped: OnceLock::new() }
    }

    /// Removes the rows from a batch that are superseded by later rows. `waiting`: the rows right after the batch that
    /// are read already, without a gap; rows after these are read from the ledger if needed.
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

    /// Keeps the rows that were or will be uploaded: not the rows that `--from-now` skipped, except those in the range,
    /// which the backfill itself sends.
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

    /// Returns the superseding rows among the waiting rows, and among the later rows of the ledger up to an instant.
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
            // Some waiting rows may not be in `rows`: they were in a larger batch, which was cut again.
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

    /// Reads rows, and groups them by key. `None`: there are too many to keep.
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

/// Keeps the rows that supersede records of a batch.
fn superseding<'r>(batch: &Batch, rows: impl Iterator<Item = &'r Row>) -> Vec<Row> {
    batch.superseded_by(rows).into_iter().cloned().collect()
}
