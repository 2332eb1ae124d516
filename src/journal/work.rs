//! What is worked on under a lease: a pass or a backfill, and what is recorded of its batches.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use super::{JournalError, Lane, Lease};
use crate::watermark::Cursor;

/// What a lane goes through, and what its batches belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkKind {
    /// A pass.
    Pass(i64),
    /// The entity's lane of a backfill.
    Backfill(i64),
}

impl WorkKind {
    /// The pass, if it is one.
    pub fn pass_id(self) -> Option<i64> {
        if let WorkKind::Pass(pass_id) = self { Some(pass_id) } else { None }
    }

    /// The backfill, if it is one.
    pub fn backfill_id(self) -> Option<i64> {
        if let WorkKind::Backfill(backfill_id) = self { Some(backfill_id) } else { None }
    }
}

/// A pass, or an entity's lane of a backfill, that is open under a lease. Every write of it names both.
#[derive(Clone, Debug)]
pub struct OpenWork {
    /// The lease.
    pub lease: Lease,
    /// What is open.
    pub course: WorkKind,
    pub(super) stopped: Stopped,
    pub(super) unwritten: Unwritten,
    pub(super) unwanted: watch::Sender<bool>,
}

impl OpenWork {
    /// What was opened, or found open, under the lease.
    pub fn new(lease: Lease, course: WorkKind) -> Self {
        Self {
            lease,
            course,
            stopped: Stopped::default(),
            unwritten: Unwritten::default(),
            unwanted: watch::Sender::new(false),
        }
    }

    /// Turns true once a backfill ought to give the lease back: somebody waits for it, or the backfill was cancelled.
    pub fn unwanted(&self) -> watch::Receiver<bool> {
        self.unwanted.subscribe()
    }
}

/// A pass to be opened.
#[derive(Clone, Copy, Debug)]
pub struct NewPass<'a> {
    /// The run.
    pub run_id: i64,
    /// Where the entity was seen: the pass begins behind that.
    pub seen: &'a Lane,
    /// The ledger's table.
    pub ledger_table: &'a str,
    /// Its oid: by that name there has to be this table still.
    pub relation: i64,
    /// How it is read, as JSON.
    pub mapping: &'a str,
}

/// What is done to a lane in a run.
#[derive(Clone, Copy, Debug)]
pub struct WorkContext<'a> {
    /// The pass or the backfill, under its lease.
    pub pass: &'a OpenWork,
    /// The run.
    pub run_id: i64,
}

/// The answer to a batch, as it is recorded.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttemptResult {
    /// Status of the answer. `None`: none came.
    pub http_status: Option<i32>,
    /// From sending to the answer.
    pub duration_ms: Option<i64>,
    /// A request went out.
    pub sent: bool,
    /// It was not the first one for this batch.
    pub repeated: bool,
}

/// How far the cursor moves when a batch is done: over all that is done behind it.
#[derive(Clone, Debug)]
pub struct CursorAdvance {
    /// Where it stands.
    pub before: Option<Cursor>,
    /// Where it goes.
    pub last: Cursor,
}

/// Why no more of a kind is written for a pass, once something of it could not be: for announcements, why no more
/// batches are announced.
#[derive(Clone, Debug, Default)]
pub(super) struct Stopped(Arc<OnceLock<Arc<JournalError>>>);

/// Why the cursor of a pass moves no further, once an answer of it could not be written. The window that says how far
/// it may move takes an answer for recorded when it is handed in.
pub(super) type Unwritten = Stopped;

impl Stopped {
    /// Takes a problem for the reason, unless there is one; returns the reason.
    pub(super) fn by(&self, problem: JournalError) -> JournalError {
        shared(self.0.get_or_init(|| Arc::new(problem)))
    }

    pub(super) fn reason(&self) -> Option<JournalError> {
        self.0.get().map(shared)
    }
}

/// The same problem for one more.
pub(super) fn shared(problem: &Arc<JournalError>) -> JournalError {
    match **problem {
        JournalError::LeaseLost => JournalError::LeaseLost,
        _ => JournalError::Stopped(problem.clone()),
    }
}
