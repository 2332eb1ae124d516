//! The rows of a pass or a range on their way into batches, with the next page being read meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tracing::Instrument;

use super::RunError;
use super::backfill::superseding::SupersedingRows;
use super::invalid_start::{InvalidStart, Start};
use crate::align::Zone;
use crate::batch::{self, Batch};
use crate::ledger::{Ledger, LedgerError, Pages, PassRead, Range, Row};
use crate::watermark::{Cursor, Order};

type Ahead = JoinHandle<(Pages, Result<Option<Vec<Row>>, LedgerError>)>;

fn read_ahead(mut pages: Pages) -> Ahead {
    let reading = async move {
        let page = pages.next_page().await;
        (pages, page)
    };
    tokio::spawn(reading.in_current_span())
}

/// How large a batch may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchLimits {
    /// Records, or rows that become none.
    pub records: usize,
    /// Bytes of the body.
    pub bytes: Option<usize>,
}

/// What a lane reads.
pub(super) enum ReadSource<'a> {
    /// A pass.
    Pass(&'a Ledger, PassRead<'a>),
    /// A range, for a backfill, in pages of so many rows.
    Range(&'a Ledger, Arc<Range>, usize),
}

impl ReadSource<'_> {
    /// What of it lies behind a place, up to and including another one.
    pub(super) async fn read(
        &self,
        after: Option<Cursor>,
        until: Option<Cursor>,
    ) -> Result<Pages, LedgerError> {
        Ok(match self {
            ReadSource::Pass(ledger, pass) => {
                Pages::Pass(ledger.pass(PassRead { after, until, ..pass.clone() }).await?)
            }
            ReadSource::Range(ledger, range, page_rows) => {
                Pages::Range(ledger.range(range.clone(), after, until, *page_rows))
            }
        })
    }
}

/// The rows of a pass or a range, with the next page being read while a batch is under way.
pub(super) struct Batcher {
    order: Order,
    /// In a backfill.
    rivals: Option<Arc<SupersedingRows>>,
    waiting: VecDeque<Row>,
    ahead: Option<Ahead>,
    start: Arc<InvalidStart>,
    /// Batches that were held back until a valid row was read, and the one that has it.
    held: VecDeque<Batch>,
}

impl Batcher {
    /// The rows of these pages. With `rivals` the batches are without what those supersede.
    pub(super) fn of(pages: Pages, rivals: Option<Arc<SupersedingRows>>, start: Arc<InvalidStart>) -> Self {
        let (order, waiting, held) = (pages.order(), VecDeque::new(), VecDeque::new());
        Self { order, rivals, waiting, ahead: Some(read_ahead(pages)), start, held }
    }

    /// The next batch, cut from where the last one ended. `None` when all is through.
    ///
    /// Batches of invalid rows alone come once a valid row was read behind them, or nothing is left to read.
    pub(super) async fn next_batch(
        &mut self,
        before: Option<Cursor>,
        zone: &Zone,
        limits: BatchLimits,
    ) -> Result<Option<Batch>, RunError> {
        let are_held = !self.held.is_empty();
        let mut before = before;
        while !are_held && let Some(batch) = self.cut_batch(before, zone, limits).await? {
            before = Some(batch.last.clone());
            self.held.push_back(batch);
            if self.start.look(self.held.iter())? == Start::Valid {
                break;
            }
        }
        let Some(batch) = self.held.pop_front() else { return Ok(None) };
        // The limit may have been learned while it was held back. Of those the last one alone has records.
        if are_held && batch.body.len() > limits.bytes.unwrap_or(usize::MAX) {
            let before = batch.before.clone();
            self.put_back(batch);
            return self.cut_batch(before, zone, limits).await;
        }
        self.start.let_through(&batch);
        Ok(Some(batch))
    }

    /// Cuts a batch from the rows that are read. `None` when all is through.
    async fn cut_batch(
        &mut self,
        before: Option<Cursor>,
        zone: &Zone,
        limits: BatchLimits,
    ) -> Result<Option<Batch>, RunError> {
        // With a row behind the batch, so that the rivals of most need not be asked for.
        let wanted = limits.records + usize::from(self.rivals.is_some());
        while self.waiting.len() < wanted && self.read_page().await? {}
        let mut records_max = limits.records;
        loop {
            if self.waiting.is_empty() {
                return Ok(None);
            }
            let Some(count) = batch::cut(self.order, self.waiting.make_contiguous(), records_max) else {
                let order = if self.order == Order::ChangeXid { "change_xid" } else { "captured_at" };
                return Err(RunError::Ledger(LedgerError::Shape(format!(
                    "more than {records_max} rows of the ledger share one {order} and id; hint: [ledger.columns] id has \
                     to name a key"
                ))));
            };
            let mut batch = Batch::build(before.clone(), self.waiting.drain(..count).collect(), zone);
            if let Some(last) = batch.rows.last().filter(|_| self.order != Order::ChangeXid) {
                batch.last = last.cursor(self.order);
            }
            if let Some(rivals) = &self.rivals {
                batch = rivals.exclude_superseded(batch, &self.waiting).await?;
            }
            let (bytes, bytes_max) = (batch.body.len(), limits.bytes.unwrap_or(usize::MAX));
            // As many rows as would fit if all were alike; a tie that is too long for that goes as it is.
            let fewer = (count * bytes_max.min(bytes) / bytes).max(1);
            if bytes <= bytes_max || fewer >= count || batch::cut(self.order, &batch.rows, fewer).is_none() {
                return Ok(Some(batch));
            }
            self.put_back(batch);
            records_max = fewer;
        }
    }

    /// Takes back the rows of the latest batch.
    pub(super) fn put_back(&mut self, batch: Batch) {
        let behind = std::mem::replace(&mut self.waiting, batch.rows.into());
        self.waiting.extend(behind);
    }

    /// All rows that are left.
    pub(super) async fn all(&mut self) -> Result<Vec<Row>, LedgerError> {
        while self.read_page().await? {}
        Ok(std::mem::take(&mut self.waiting).into())
    }

    /// Takes in the page that was read ahead. `false` when there was none.
    async fn read_page(&mut self) -> Result<bool, LedgerError> {
        // Left in its place while it is waited for, so that it is not forgotten when the waiting ends early.
        let Some(ahead) = &mut self.ahead else { return Ok(false) };
        let read = ahead.await;
        self.ahead = None;
        let (pages, page) = read.map_err(|_| LedgerError::Decode("the reader stopped"))?;
        let Some(rows) = page? else { return Ok(false) };
        if self.waiting.is_empty() {
            self.waiting = rows.into();
        } else {
            self.waiting.extend(rows);
        }
        self.ahead = Some(read_ahead(pages));
        Ok(true)
    }
}

impl Drop for Batcher {
    /// A page that nobody waits for any more is not waited for.
    fn drop(&mut self) {
        if let Some(ahead) = &self.ahead {
            ahead.abort();
        }
    }
}
