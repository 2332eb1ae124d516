//! One write of a lane, on its way to the transaction that it shares with others.

use std::time::Instant;

use tokio::sync::oneshot;

use super::super::batch_record::{AnsweredBatch, BatchRecord};
use super::super::{Counters, CursorAdvance, JournalError, OpenWork, Problem, WorkContext};
use crate::watermark::Cursor;

/// What a lane has to record.
#[derive(Debug)]
pub(in crate::journal) enum JournalWrite {
    /// A batch is about to be sent.
    Announcement(BatchRecord),
    /// An answer came.
    Answer(Box<Answer>),
    /// The pass is through.
    PassClosing(PassClosing),
    /// Nothing: it is waited for all that was handed in before.
    Nothing,
}

/// An answer to a batch, and what follows from it.
#[derive(Debug)]
pub(in crate::journal) struct Answer {
    pub answered: AnsweredBatch,
    /// How far the cursor moves.
    pub advance: Option<CursorAdvance>,
    pub counted: Counters,
    /// Rows that were set aside before sending.
    pub problems: Vec<Problem>,
    /// Rows of which older versions may be set aside.
    pub resolves: Vec<String>,
    /// What the batch consists of, when that is not what was announced.
    pub rewritten: Option<BatchRecord>,
}

/// The end of a pass.
#[derive(Debug)]
pub(in crate::journal) struct PassClosing {
    /// Where its last batch ends. `None`: it had none.
    pub last: Option<Cursor>,
    /// The entity is up to date with that.
    pub ends: bool,
}

/// Something that was handed in. It is written whether or not it is waited for.
#[derive(Debug)]
pub struct PendingWrite(pub(super) oneshot::Receiver<Result<i64, JournalError>>);

impl PendingWrite {
    /// Waits until it is written. Returns the number of the batch.
    pub async fn written(self) -> Result<i64, JournalError> {
        self.0.await.unwrap_or_else(|_| Err(sqlx::Error::WorkerCrashed.into()))
    }
}

/// Something that was handed in, on its way.
#[derive(Debug)]
pub(super) struct WriteRequest {
    pub(super) pass: OpenWork,
    pub(super) run_id: i64,
    pub(super) writing: JournalWrite,
    /// Since when its lane has been found locked.
    pub(super) locked_since: Option<Instant>,
    pub(super) reply: oneshot::Sender<Result<i64, JournalError>>,
}

impl WriteRequest {
    pub(super) fn entity_id(&self) -> &str {
        &self.pass.lease.entity_id
    }

    pub(super) fn doing(&self) -> WorkContext<'_> {
        WorkContext { pass: &self.pass, run_id: self.run_id }
    }

    pub(super) fn answer(&self) -> Option<&Answer> {
        if let JournalWrite::Answer(answer) = &self.writing { Some(answer) } else { None }
    }

    pub(super) fn contents(&self) -> Option<&BatchRecord> {
        if let JournalWrite::Announcement(contents) = &self.writing { Some(contents) } else { None }
    }

    pub(super) fn closing(&self) -> Option<&PassClosing> {
        if let JournalWrite::PassClosing(closing) = &self.writing { Some(closing) } else { None }
    }

    /// Why it is not to be written, if there is a reason: an announcement of the pass before it was not; or it is the
    /// end of the pass, and an answer was not. (Answers are, without moving the cursor.)
    pub(super) fn is_too_late(&self) -> Option<JournalError> {
        match self.writing {
            JournalWrite::Announcement(_) => self.pass.stopped.reason(),
            JournalWrite::PassClosing(_) => self.pass.unwritten.reason(),
            JournalWrite::Answer(_) | JournalWrite::Nothing => None,
        }
    }

    /// How far the cursor moves with it: nowhere, once an answer of the pass could not be written.
    pub(super) fn advance(&self) -> Option<&CursorAdvance> {
        let advance = self.answer()?.advance.as_ref();
        advance.filter(|_| self.pass.unwritten.reason().is_none())
    }

    pub(super) fn reply_with(self, outcome: Result<i64, JournalError>) {
        let outcome = outcome.map_err(|problem| match self.writing {
            JournalWrite::Announcement(_) => self.pass.stopped.by(problem),
            JournalWrite::Answer(_) => self.pass.unwritten.by(problem),
            JournalWrite::PassClosing(_) | JournalWrite::Nothing => problem,
        });
        // Nobody may wait for it any more.
        let _ = self.reply.send(outcome);
    }
}
