//! The counters of a run.

use strum::AsRefStr;

use super::AttemptResult;
use crate::batch::Batch;

/// `sync_runs.status` of a run that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, AsRefStr)]
#[strum(serialize_all = "snake_case")]
pub enum RunStatus {
    /// Everything was processed.
    Succeeded,
    /// It ended, but a person has to act.
    Incomplete,
    /// It could not work.
    Failed,
    /// It was stopped by a signal, and finished the requests in flight.
    Interrupted,
}

/// The counters of a run, as in its row.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Counters {
    /// Ledger rows that were processed.
    pub rows_read: i64,
    /// Records that the API accepted.
    pub rows_uploaded: i64,
    /// Rows set aside.
    pub rows_rejected: i64,
    /// Rows that were superseded.
    pub rows_superseded: i64,
    /// Uploads sent.
    pub requests: i64,
    /// Uploads that retried an earlier one.
    pub retries: i64,
    /// Bytes of bodies sent.
    pub bytes_sent: i64,
    /// Accepted records whose amount would be rounded by a reader that parses numbers as doubles.
    pub rows_beyond_double: i64,
}

impl Counters {
    /// Counts a batch as if it had been sent and accepted.
    pub(crate) fn rehearse(&mut self, batch: &Batch) {
        let result = AttemptResult { sent: !batch.records.is_empty(), ..AttemptResult::default() };
        let all = Done { uploaded: batch.records.len(), rejected: batch.invalid.len(), of: Some(batch) };
        *self += &Self::of(batch, result, all);
    }
}

impl std::ops::AddAssign<&Counters> for Counters {
    fn add_assign(&mut self, more: &Self) {
        self.rows_read += more.rows_read;
        self.rows_uploaded += more.rows_uploaded;
        self.rows_rejected += more.rows_rejected;
        self.rows_superseded += more.rows_superseded;
        self.requests += more.requests;
        self.retries += more.retries;
        self.bytes_sent += more.bytes_sent;
        self.rows_beyond_double += more.rows_beyond_double;
    }
}

/// The outcome of the rows of a processed batch. `of`: `None` while the batch is not processed.
#[derive(Clone, Copy)]
pub(super) struct Done<'a> {
    pub uploaded: usize,
    pub rejected: usize,
    pub of: Option<&'a Batch>,
}

impl Counters {
    /// Returns the counters of one answer to a batch, and of the outcome of its rows.
    pub(super) fn of(batch: &Batch, result: AttemptResult, done: Done<'_>) -> Self {
        let large = |number: usize| i64::from(count(number));
        Self {
            rows_read: large(done.of.map_or(0, |batch| batch.rows.len())),
            rows_uploaded: large(done.uploaded),
            rows_rejected: large(done.rejected),
            rows_superseded: large(done.of.map_or(0, |batch| batch.superseded)),
            requests: i64::from(result.sent),
            retries: i64::from(result.sent && result.repeated),
            bytes_sent: if result.sent { large(batch.body.len()) } else { 0 },
            rows_beyond_double: if done.uploaded > 0 { large(batch.beyond_double) } else { 0 },
        }
    }
}

/// Converts a count. A batch has at most 1000 records of bounded size, so its counts fit into an `i32`.
pub(super) fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
