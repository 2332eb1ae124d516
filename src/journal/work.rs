//! The work under a lease (a pass, a backfill or a retry), and the results that are recorded for its batches.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::watch;

use super::digests::Digest;
use super::{JournalError, Lane, Lease};
use crate::watermark::Cursor;

/// The running digest of the work as this worker has written it last. `None`: it has written none.
#[derive(Clone, Debug, Default)]
pub(super) struct Running(Arc<Mutex<Option<Digest>>>);

impl Running {
    /// Returns whether this is the digest that was written last, or none was.
    pub(super) fn is_last(&self, recorded: Option<&Digest>) -> bool {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().is_none_or(|last| Some(last) == recorded)
    }

    /// Notes what was written.
    pub(super) fn note(&self, written: Digest) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(written);
    }
}

/// The kind of work of a lane, to which its batches belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkKind {
    /// A pass.
    Pass(i64),
    /// The entity's lane of a backfill.
    Backfill(i64),
    /// Rows that were set aside, or a record that was accepted before, are sent again. No cursor moves.
    Retry,
}

impl WorkKind {
    /// Returns the pass, if it is one.
    pub fn pass_id(self) -> Option<i64> {
        if let WorkKind::Pass(pass_id) = self { Some(pass_id) } else { None }
    }

    /// Returns the backfill, if it is one.
    pub fn backfill_id(self) -> Option<i64> {
        if let WorkKind::Backfill(backfill_id) = self { Some(backfill_id) } else { None }
    }
}

/// A pass, an entity's lane of a backfill, or a slice of a retry, that is open under a lease. Every write of the work
/// names the lease and the work.
#[derive(Clone, Debug)]
pub struct OpenWork {
    /// The lease.
    pub lease: Lease,
    /// The work.
    pub work: WorkKind,
    pub(super) stopped: Stopped,
    pub(super) unwritten: Unwritten,
    pub(super) answered: Answered,
    pub(super) unwanted: watch::Sender<bool>,
    pub(super) running: Running,
}

impl OpenWork {
    /// Returns the work that was opened, or found open, under the lease.
    pub fn new(lease: Lease, work: WorkKind) -> Self {
        Self {
            lease,
            work,
            stopped: Stopped::default(),
            unwritten: Unwritten::default(),
            answered: Answered::default(),
            unwanted: watch::Sender::new(false),
            running: Running::default(),
        }
    }

    /// Returns a receiver that becomes true when a backfill or a retry has to release its lease: another worker waits
    /// for it, or the backfill was cancelled.
    pub fn unwanted(&self) -> watch::Receiver<bool> {
        self.unwanted.subscribe()
    }
}

/// The parameters of a pass that is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct NewPass<'a> {
    /// The run.
    pub run_id: i64,
    /// The state of the entity that the probe saw: the pass begins after it.
    pub seen: &'a Lane,
    /// The ledger's table.
    pub ledger_table: &'a str,
    /// Its oid: the name must still belong to this table.
    pub relation: i64,
    /// Its mapping, as JSON.
    pub mapping: &'a str,
}

/// The work of a lane within a run.
#[derive(Clone, Copy, Debug)]
pub struct WorkContext<'a> {
    /// The pass, the backfill or the retry, under its lease.
    pub pass: &'a OpenWork,
    /// The run.
    pub run_id: i64,
}

/// The result of an attempt, as it is recorded.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttemptResult {
    /// HTTP status of the answer. `None`: no answer came.
    pub http_status: Option<i32>,
    /// The time from sending to the answer, in milliseconds.
    pub duration_ms: Option<i64>,
    /// A request was sent.
    pub sent: bool,
    /// It was not the first attempt for this batch.
    pub repeated: bool,
}

/// How far the cursor moves when a batch is processed: over all processed batches that follow it.
#[derive(Clone, Debug)]
pub struct CursorAdvance {
    /// The cursor before the move.
    pub before: Option<Cursor>,
    /// The cursor after the move.
    pub last: Cursor,
    /// The batches that it moves over, in order. A batch that was split stands for its parts.
    pub batch_ids: Vec<i64>,
}

/// The error after which no more writes of a kind are accepted for a pass. For announcements: why no more batches are
/// announced.
#[derive(Clone, Debug, Default)]
pub(super) struct Stopped(Arc<OnceLock<Arc<JournalError>>>);

/// The error after which the cursor of a pass does not move any more, because an answer could not be written. The
/// in-memory window treats an answer as recorded when it is submitted, so later moves must fail, too.
pub(super) type Unwritten = Stopped;

impl Stopped {
    /// Sets the error, unless there is one already; returns the error that is set.
    pub(super) fn by(&self, problem: JournalError) -> JournalError {
        shared(self.0.get_or_init(|| Arc::new(problem)))
    }

    pub(super) fn reason(&self) -> Option<JournalError> {
        self.0.get().map(shared)
    }
}

/// The batches whose final answers the last transaction with such answers has recorded. Whatever is written next relies
/// on them. A failover may have lost them, while the lease and the batches survived.
///
/// The last answers suffice: a failover that loses earlier ones loses them, too.
#[derive(Clone, Debug, Default)]
pub(super) struct Answered(Arc<Mutex<Vec<i64>>>);

impl Answered {
    pub(super) fn change(&self, change: impl FnOnce(&mut Vec<i64>)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn ids(&self) -> Vec<i64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Returns a copy of a shared error.
pub(super) fn shared(problem: &Arc<JournalError>) -> JournalError {
    match **problem {
        JournalError::LeaseLost => JournalError::LeaseLost,
        _ => JournalError::Stopped(problem.clone()),
    }
}
