//! The rows of a pass on their way into batches, with the next page being read meanwhile.

use std::collections::VecDeque;

use chrono_tz::Tz;
use tokio::task::JoinHandle;

use crate::batch::{self, Batch};
use crate::ledger::{LedgerError, Pass, Row};
use crate::watermark::Cursor;

type Ahead = JoinHandle<(Pass, Result<Option<Vec<Row>>, LedgerError>)>;

fn read_ahead(mut pass: Pass) -> Ahead {
    tokio::spawn(async move {
        let page = pass.next_page().await;
        (pass, page)
    })
}

/// How large a batch may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Records, or rows that become none.
    pub records: usize,
    /// Bytes of the body.
    pub bytes: Option<usize>,
}

/// The rows of a pass, with the next page being read while a batch is under way.
pub(super) struct Rows {
    waiting: VecDeque<Row>,
    ahead: Option<Ahead>,
}

impl Rows {
    /// The rows of a pass, from where it stands.
    pub(super) fn of(pass: Pass) -> Self {
        Self { waiting: VecDeque::new(), ahead: Some(read_ahead(pass)) }
    }

    /// The next batch, cut from where the last one ended. `None` when the pass is through.
    pub(super) async fn next_batch(
        &mut self,
        before: Option<Cursor>,
        zone: Tz,
        limits: Limits,
    ) -> Result<Option<Batch>, LedgerError> {
        while self.waiting.len() < limits.records && self.read_page().await? {}
        let mut records_max = limits.records;
        loop {
            if self.waiting.is_empty() {
                return Ok(None);
            }
            let Some(count) = batch::cut(self.waiting.make_contiguous(), records_max) else {
                return Err(LedgerError::Shape(format!(
                    "more than {records_max} rows of the ledger share one change_xid and id; hint: [ledger.columns] id \
                     has to name a key"
                )));
            };
            let batch = Batch::build(before.clone(), self.waiting.drain(..count).collect(), zone);
            let (bytes, bytes_max) = (batch.body.len(), limits.bytes.unwrap_or(usize::MAX));
            // As many rows as would fit if all were alike; a tie that is too long for that goes as it is.
            let fewer = (count * bytes_max.min(bytes) / bytes).max(1);
            if bytes <= bytes_max || fewer >= count || batch::cut(&batch.rows, fewer).is_none() {
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
        let (pass, page) = read.map_err(|_| LedgerError::Decode("the reader stopped"))?;
        let Some(rows) = page? else { return Ok(false) };
        if self.waiting.is_empty() {
            self.waiting = rows.into();
        } else {
            self.waiting.extend(rows);
        }
        self.ahead = Some(read_ahead(pass));
        Ok(true)
    }
}

impl Drop for Rows {
    /// A page that nobody waits for any more is not waited for.
    fn drop(&mut self) {
        if let Some(ahead) = &self.ahead {
            ahead.abort();
        }
    }
}
