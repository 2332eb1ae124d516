//! Superseding rows in a backfill: newer rows of the keys of a batch that are not in the batch.
//!
//! A backfill sends rows in the order `(captured_at, id)`. A row after the batch with the same account, currency and
//! local second as a row of the batch is newer, and may be uploaded already. So the older row is not sent.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use tokio::sync::Mutex;

use super::super::{RunError, Worker};
use crate::align::Clock;
use crate::batch::{Batch, key_hash};
use crate::journal::Skipped;
use crate::ledger::{Range, RangePages, Row, instant, instant_us};
use crate::watermark::{Cursor, Order};

/// The most superseding rows to keep in memory while many batches are followed by the same rows, as when all accounts
/// are captured at one instant.
const ROWS_KEPT_MAX: usize = 100_000;

/// The most keys for which superseding rows are kept at once. Batches beyond them read the rows behind them again.
const KEYS_MAX: usize = 500_000;

/// Finds the superseding rows for the batches of a range. It also looks beyond the end of the range, which may lie
/// within a second, or within an hour that the time zone repeats.
pub(in crate::sync) struct SupersedingRows {
    worker: Worker,
    range: Arc<Range>,
    behind: Mutex<Option<Behind>>,
    /// Read once, because no other worker changes it while this one has the lease.
    skipped: OnceLock<Skipped>,
}

/// The rows after a batch up to an instant that can supersede one of the rows before them. Later batches that look up
/// to the same instant use them, too.
struct Behind {
    until: i64,
    /// `None`: too many rows supersede the records of a single page, so each batch reads them again.
    kept: Option<Kept>,
}

/// The rows that repeat a key, and the keys for which they are complete.
#[derive(Debug, Default)]
struct Kept {
    /// The keys that occur, each with the number of the page in which it occurs first.
    keys: HashMap<u64, usize>,
    /// The rows whose key occurs before them, by the hash of their key. The first row of a key supersedes none.
    rows: HashMap<u64, Vec<Row>>,
    count: usize,
    /// The number of pages of which all keys are known. `None`: all pages so far.
    pages: Option<usize>,
}

impl Kept {
    /// Returns whether all superseding rows of a batch are kept.
    fn covers(&self, batch: &Batch) -> bool {
        batch.keys.iter().all(|key| self.keys.contains_key(key))
    }

    /// Adds the next row, of a page with this number. Returns whether there is still room.
    fn add(&mut self, page: usize, key: u64, row: &Row) -> bool {
        if self.keys.contains_key(&key) {
            self.rows.entry(key).or_default().push(row.clone());
            self.count += 1;
            return self.count <= ROWS_KEPT_MAX || self.shrink(page);
        }
        if self.pages.is_none() {
            self.keys.insert(key, page);
            if self.keys.len() >= KEYS_MAX {
                self.pages = Some(page + 1);
            }
        }
        true
    }

    /// Forgets the keys of the later half of the pages. Returns whether that makes room.
    fn shrink(&mut self, page: usize) -> bool {
        let pages = self.pages.unwrap_or(page + 1) / 2;
        self.pages = Some(pages);
        self.keys.retain(|_, first| *first < pages);
        self.rows.retain(|key, _| self.keys.contains_key(key));
        self.count = self.rows.values().map(Vec::len).sum();
        pages > 0
    }
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
        let until = Clock::of(&batch.rules.zone).repeats_until(first, last);
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
        let serves = |behind: &Behind| {
            behind.until == until && behind.kept.as_ref().is_none_or(|kept| kept.covers(batch))
        };
        if !behind.as_ref().is_some_and(serves) {
            let kept = self.keep(batch, waiting, self.pages(after.clone(), until)).await?;
            *behind = Some(Behind { until, kept });
        }
        if let Some(Behind { kept: Some(kept), .. }) = behind.as_ref() {
            let same_key = batch.keys.iter().filter_map(|key| kept.rows.get(key)).flatten();
            // Some waiting rows may not be kept: they were in a larger batch, which was cut again.
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

    /// Reads the rows behind a batch once, and keeps those whose key occurs before them. `None`: there are too many.
    async fn keep(
        &self,
        batch: &Batch,
        waiting: &VecDeque<Row>,
        mut pages: RangePages,
    ) -> Result<Option<Kept>, RunError> {
        let mut aligner = batch.rules.aligner();
        let mut kept = Kept { keys: batch.keys.iter().map(|key| (*key, 0)).collect(), ..Kept::default() };
        let mut add =
            |page: usize, row: &Row| key_hash(row, &mut aligner).is_none_or(|key| kept.add(page, key, row));
        if !waiting.iter().all(|row| add(0, row)) {
            return Ok(None);
        }
        let mut page = 1;
        while let Some(rows) = pages.next_page().await? {
            if !rows.iter().all(|row| add(page, row)) {
                return Ok(None);
            }
            page += 1;
        }
        Ok(Some(kept))
    }
}

/// Keeps the rows that supersede records of a batch.
fn superseding<'r>(batch: &Batch, rows: impl Iterator<Item = &'r Row>) -> Vec<Row> {
    batch.superseded_by(rows).into_iter().cloned().collect()
}
