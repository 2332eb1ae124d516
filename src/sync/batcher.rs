//! Cuts the rows of a pass or a range into batches, and reads the next page meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tracing::Instrument;

use super::RunError;
use super::backfill::superseding::SupersedingRows;
use super::invalid_start::{InvalidStart, Start};
use crate::batch::{self, Batch, RecordRules};
use crate::ledger::{LaneLedger, Ledger, LedgerError, Pages, PassRead, Range, Row};
use crate::watermark::{Cursor, Order};

/// The task that reads the next page. It returns the pages that are left, and the page. `None`: no page is left.
type ReadAhead = JoinHandle<(Box<dyn Pages>, Result<Option<Vec<Row>>, LedgerError>)>;

fn read_ahead(mut pages: Box<dyn Pages>) -> ReadAhead {
    let reading = async move {
        let page = pages.next_page().await;
        (pages, page)
    };
    tokio::spawn(reading.in_current_span())
}

/// The largest size of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchLimits {
    /// Rows, including rows that become no record.
    pub records: usize,
    /// Bytes of the body.
    pub bytes: Option<usize>,
}

/// The source from which a lane reads.
pub(super) enum ReadSource<'a> {
    /// A pass.
    Pass(&'a dyn LaneLedger, PassRead<'a>),
    /// The range of a backfill, and the rows per page.
    Range(&'a Ledger, Arc<Range>, usize),
}

impl ReadSource<'_> {
    /// Reads the rows after a cursor, up to and including another one.
    pub(super) async fn read(
        &self,
        after: Option<Cursor>,
        until: Option<Cursor>,
    ) -> Result<Box<dyn Pages>, LedgerError> {
        Ok(match self {
            ReadSource::Pass(ledger, pass) => ledger.pages(PassRead { after, until, ..pass.clone() }).await?,
            ReadSource::Range(ledger, range, page_rows) => {
                Box::new(ledger.range(range.clone(), after, until, *page_rows))
            }
        })
    }
}

/// Cuts rows into batches. The next page is read while a batch is in flight.
pub(super) struct Batcher {
    order: Order,
    /// In a backfill: finds newer rows with the keys of a batch, outside the batch.
    rivals: Option<Arc<SupersedingRows>>,
    /// Rows that were read and are not in a batch yet.
    waiting: VecDeque<Row>,
    ahead: Option<ReadAhead>,
    /// Checks whether the first rows that the lane reads are all invalid.
    start: Arc<InvalidStart>,
    /// Batches that were held back until a valid row was read, and the batch with that row.
    held: VecDeque<Batch>,
}

impl Batcher {
    /// Returns a batcher of these pages. With `rivals` it leaves superseded rows out of the batches.
    pub(super) fn of(
        pages: Box<dyn Pages>,
        rivals: Option<Arc<SupersedingRows>>,
        start: Arc<InvalidStart>,
    ) -> Self {
        let (order, waiting, held) = (pages.order(), VecDeque::new(), VecDeque::new());
        Self { order, rivals, waiting, ahead: Some(read_ahead(pages)), start, held }
    }

    /// Returns the next batch, which begins after `before`, where the last batch ended. `None`: no row is left.
    ///
    /// A batch with only invalid rows is held back until a valid row was read after it, or no row is left.
    pub(super) async fn next_batch(
        &mut self,
        before: Option<Cursor>,
        rules: &RecordRules,
        limits: BatchLimits,
    ) -> Result<Option<Batch>, RunError> {
        let is_holding = !self.held.is_empty();
        let mut before = before;
        while !is_holding && let Some(batch) = self.cut_batch(before, rules, limits).await? {
            before = Some(batch.last.clone());
            self.held.push_back(batch);
            if self.start.look(self.held.iter())? == Start::Valid {
                break;
            }
        }
        let Some(batch) = self.held.pop_front() else { return Ok(None) };
        // A smaller limit for the body may have been learned meanwhile. Of the held batches only the last one has
        // records.
        if is_holding && batch.body.len() > limits.bytes.unwrap_or(usize::MAX) {
            let before = batch.before.clone();
            self.put_back(batch);
            return self.cut_batch(before, rules, limits).await;
        }
        self.start.let_through(&batch);
        Ok(Some(batch))
    }

    /// Cuts a batch from the rows that were read. `None`: no row is left.
    async fn cut_batch(
        &mut self,
        before: Option<Cursor>,
        rules: &RecordRules,
        limits: BatchLimits,
    ) -> Result<Option<Batch>, RunError> {
        // One row more than the batch has, so that most batches need no query for rivals.
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
                    "more than {records_max} rows of the ledger share one {order} and id; hint: [ledger.columns] id \
                     must name a key"
                ))));
            };
            let mut batch = Batch::build(before.clone(), self.waiting.drain(..count).collect(), rules);
            if let Some(last) = batch.rows.last().filter(|_| self.order != Order::ChangeXid) {
                batch.last = last.cursor(self.order);
            }
            if let Some(rivals) = &self.rivals {
                batch = rivals.exclude_superseded(batch, &self.waiting).await?;
            }
            let (bytes, bytes_max) = (batch.body.len(), limits.bytes.unwrap_or(usize::MAX));
            // As many rows as would fit if all had the same size. A tie (rows with the same place in the order) is
            // never cut, even if its body is too large.
            let fewer = (count * bytes_max.min(bytes) / bytes).max(1);
            if bytes <= bytes_max || fewer >= count || batch::cut(self.order, &batch.rows, fewer).is_none() {
                return Ok(Some(batch));
            }
            self.put_back(batch);
            records_max = fewer;
        }
    }

    /// Puts the rows of the latest batch back in front of the waiting rows.
    pub(super) fn put_back(&mut self, batch: Batch) {
        let later = std::mem::replace(&mut self.waiting, batch.rows.into());
        self.waiting.extend(later);
    }

    /// Returns all rows that are left.
    pub(super) async fn all(&mut self) -> Result<Vec<Row>, LedgerError> {
        while self.read_page().await? {}
        Ok(std::mem::take(&mut self.waiting).into())
    }

    /// Adds the page that was read ahead to the waiting rows. `false`: no page is left.
    async fn read_page(&mut self) -> Result<bool, LedgerError> {
        // The task stays in `ahead` while it is awaited, so that its page is not lost when this future is dropped.
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
    /// Stops reading ahead.
    fn drop(&mut self) {
        if let Some(ahead) = &self.ahead {
            ahead.abort();
        }
    }
}
