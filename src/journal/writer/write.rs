//! One write of a lane, on its way to the transaction that it shares with others.

use std::borrow::Cow;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::batch_record::{AnsweredBatch, BatchRecord};
use super::super::{
    Counters, CursorAdvance, HeldRows, JournalError, OpenWork, Problem, Resolution, WorkContext,
};
use crate::watermark::Cursor;

/// What a lane has to record.
#[derive(Debug)]
pub enum JournalWrite {
    /// A new batch is about to be sent.
    Announcement(BatchRecord),
    /// A recorded batch is about to be sent again.
    Repetition(Box<Repetition>),
    /// An answer to a batch, and what follows from it.
    Answer(Box<Answer>),
    /// No row of a recorded batch is left to send.
    Emptying(Emptying),
    /// The cursor moves over batches that were done before.
    Passage(CursorAdvance),
    /// Batches that were being sent when their worker stopped have an unknown outcome.
    Recovery,
    /// A run ends with the outcome of a batch unknown.
    UnknownRun(i64),
    /// What was found out about rows that are set aside, without an answer to a batch.
    Conclusions(Conclusions),
    /// The end of a pass.
    PassClosing(PassClosing),
}

/// A recorded batch that is about to be sent again.
#[derive(Debug)]
pub struct Repetition {
    /// The batch.
    pub batch_id: i64,
    /// The batch as it is sent now: its rows may have changed since it was recorded.
    pub record: BatchRecord,
    /// The outcome of an earlier attempt is unknown.
    pub lost: bool,
}

/// What was found out about rows that are set aside.
#[derive(Debug, Default)]
pub struct Conclusions {
    /// The rows whose errors are resolved.
    pub resolved: Vec<Resolution>,
    /// What is still wrong with the others.
    pub problems: Vec<Problem>,
}

/// A recorded batch of which no row is left to send.
#[derive(Debug)]
pub struct Emptying {
    /// The batch.
    pub batch_id: i64,
    /// How far the cursor moves.
    pub advance: Option<CursorAdvance>,
}

/// What an answer means for the batch besides its new state.
#[derive(Debug)]
pub enum Consequence {
    /// Nothing else.
    None,
    /// Two parts take the place of the batch.
    Parts {
        /// The parts.
        parts: Box<[BatchRecord; 2]>,
        /// The API may have imported their rows.
        ambiguous: bool,
    },
    /// Its records are set aside, unless the entity would have more than `rejections_max` rows that the API refused.
    SetAside {
        /// The packed ids of the rows that are set aside.
        rejected_ids: Vec<u8>,
        /// Why they are, in the same order (`sync_batches.rejected_kinds`).
        rejected_kinds: Option<String>,
        /// The ids of the rows that the API refused.
        refused: Vec<String>,
        /// The most rows of the entity that the API refused and that may be set aside.
        rejections_max: usize,
        /// The number of `rejected_ids`, if the rows that the records supersede are set aside, too.
        held: Option<i32>,
    },
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// A batch, new or known.
    Batch(i64),
    /// The parts of a batch.
    Parts([i64; 2]),
    /// Something that concerns no single batch.
    Work,
    /// Nothing: the entity would have too many rows that the API refused.
    TooManyRejections,
}

/// An answer to a batch, and what follows from it.
#[derive(Debug)]
pub struct Answer {
    /// The batch, and the answer to it.
    pub answered: AnsweredBatch,
    /// How far the cursor moves.
    pub advance: Option<CursorAdvance>,
    /// What it adds to the counters.
    pub counted: Counters,
    /// Rows that were set aside before sending.
    pub problems: Vec<Problem>,
    /// Rows that are held because of their names.
    pub held: Vec<HeldRows>,
    /// Rows that may be set aside, whose errors it resolves.
    pub resolves: Vec<Resolution>,
    /// The batch consists of something else than what was announced.
    pub is_rewritten: bool,
    /// What it means for the batch besides its new state.
    pub consequence: Consequence,
}

impl Answer {
    /// Returns whether all rows of the batch have a final outcome with it. Parts may still take the place of the batch.
    pub(super) fn is_final(&self) -> bool {
        let is_set_aside = matches!(self.consequence, Consequence::SetAside { .. });
        self.answered.status == "accepted" || is_set_aside
    }

    /// Returns what is recorded of the batch after this answer.
    pub(super) fn contents(&self) -> Cow<'_, BatchRecord> {
        let contents = &self.answered.contents;
        let Consequence::SetAside { rejected_ids, rejected_kinds, held, .. } = &self.consequence else {
            return Cow::Borrowed(contents);
        };
        Cow::Owned(contents.clone().set_aside(rejected_ids.clone(), rejected_kinds.clone(), *held))
    }

    /// Returns an answer from which nothing else follows.
    pub(in crate::journal) fn of(answered: AnsweredBatch, counted: Counters) -> Self {
        Self {
            answered,
            advance: None,
            counted,
            problems: Vec::new(),
            held: Vec::new(),
            resolves: Vec::new(),
            is_rewritten: false,
            consequence: Consequence::None,
        }
    }
}

/// The end of a pass.
#[derive(Debug)]
pub struct PassClosing {
    /// Where its last batch ends. `None`: it had none.
    pub last: Option<Cursor>,
    /// The entity is up to date with that.
    pub ends: bool,
}

/// A request that was submitted. It is written whether or not the caller waits for it.
#[derive(Debug)]
pub struct PendingWrite(pub(super) oneshot::Receiver<Result<Written, JournalError>>);

impl PendingWrite {
    /// Waits until it is written. Returns the number of the batch; 0 for the end of a pass.
    pub async fn written(self) -> Result<i64, JournalError> {
        match self.outcome().await? {
            Written::Batch(batch_id) => Ok(batch_id),
            Written::Parts(_) | Written::Work | Written::TooManyRejections => Ok(0),
        }
    }

    /// Waits until it is written, and returns what was.
    pub(in crate::journal) async fn outcome(self) -> Result<Written, JournalError> {
        self.0.await.unwrap_or_else(|_| Err(sqlx::Error::WorkerCrashed.into()))
    }
}

/// A request that was submitted and is not written yet.
#[derive(Debug)]
pub struct WriteRequest {
    /// The work that it belongs to, under its lease.
    pub pass: OpenWork,
    /// The run.
    pub run_id: i64,
    /// What is written.
    pub writing: JournalWrite,
    /// Since when its lane has been found locked.
    pub(super) locked_since: Option<Instant>,
    reply: oneshot::Sender<Result<Written, JournalError>>,
}

impl WriteRequest {
    /// Returns a request, and what its caller waits for.
    pub fn new(context: WorkContext<'_>, writing: JournalWrite) -> (Self, PendingWrite) {
        let (reply, pending) = oneshot::channel();
        let WorkContext { pass, run_id } = context;
        (Self { pass: pass.clone(), run_id, writing, locked_since: None, reply }, PendingWrite(pending))
    }

    /// Returns the entity of the lane.
    pub fn entity_id(&self) -> &str {
        &self.pass.lease.entity_id
    }

    pub(super) fn context(&self) -> WorkContext<'_> {
        WorkContext { pass: &self.pass, run_id: self.run_id }
    }

    /// Returns the answer, if it is one.
    pub fn answer(&self) -> Option<&Answer> {
        if let JournalWrite::Answer(answer) = &self.writing { Some(answer) } else { None }
    }

    /// Returns the batch, if it announces one.
    pub fn contents(&self) -> Option<&BatchRecord> {
        if let JournalWrite::Announcement(contents) = &self.writing { Some(contents) } else { None }
    }

    /// Returns the end of a pass, if it is one.
    pub fn closing(&self) -> Option<&PassClosing> {
        if let JournalWrite::PassClosing(closing) = &self.writing { Some(closing) } else { None }
    }

    /// The reason not to write the request: an earlier announcement of the pass was not written, so no later one is; or
    /// an earlier answer was not, so the pass is not closed, and nothing that moves its cursor by itself is written.
    /// (Other answers are written without moving the cursor.)
    pub fn is_too_late(&self) -> Option<JournalError> {
        match &self.writing {
            JournalWrite::Announcement(_) => self.pass.stopped.reason(),
            JournalWrite::PassClosing(_) | JournalWrite::Passage(_) => self.pass.unwritten.reason(),
            JournalWrite::Emptying(Emptying { advance, .. }) => {
                advance.as_ref().and_then(|_| self.pass.unwritten.reason())
            }
            JournalWrite::Answer(answer) => match (&answer.consequence, &answer.advance) {
                (Consequence::SetAside { .. }, Some(_)) => self.pass.unwritten.reason(),
                _ => None,
            },
            JournalWrite::Repetition(_)
            | JournalWrite::Recovery
            | JournalWrite::UnknownRun(_)
            | JournalWrite::Conclusions(_) => None,
        }
    }

    /// The batch of which nothing is left to send, if it is one.
    pub(super) fn emptied(&self) -> Option<i64> {
        if let JournalWrite::Emptying(emptying) = &self.writing { Some(emptying.batch_id) } else { None }
    }

    /// How far the cursor moves with it: nowhere, once an answer of the pass could not be written.
    pub fn advance(&self) -> Option<&CursorAdvance> {
        let advance = match &self.writing {
            JournalWrite::Answer(answer) => answer.advance.as_ref(),
            JournalWrite::Emptying(emptying) => emptying.advance.as_ref(),
            JournalWrite::Passage(advance) => Some(advance),
            JournalWrite::Announcement(_)
            | JournalWrite::Repetition(_)
            | JournalWrite::Recovery
            | JournalWrite::UnknownRun(_)
            | JournalWrite::Conclusions(_)
            | JournalWrite::PassClosing(_) => None,
        };
        advance.filter(|_| self.pass.unwritten.reason().is_none())
    }

    /// The batch whose last answer it is, if it is one: its leaf is made from its recorded state.
    pub(super) fn finishes(&self) -> Option<i64> {
        self.answer().filter(|answer| answer.is_final()).map(|answer| answer.answered.batch_id)
    }

    /// The batch whose final answer this is, if it is one: all its rows are done, or parts have taken its place.
    fn final_answer(&self) -> Option<i64> {
        match &self.writing {
            JournalWrite::Answer(answer) => {
                let is_final =
                    answer.answered.status == "accepted" || !matches!(answer.consequence, Consequence::None);
                is_final.then_some(answer.answered.batch_id)
            }
            JournalWrite::Emptying(emptying) => Some(emptying.batch_id),
            JournalWrite::Announcement(_)
            | JournalWrite::Passage(_)
            | JournalWrite::Repetition(_)
            | JournalWrite::Recovery
            | JournalWrite::UnknownRun(_)
            | JournalWrite::Conclusions(_)
            | JournalWrite::PassClosing(_) => None,
        }
    }

    /// Returns the batches whose answers must still be recorded when this is written. The end of a pass relies on all
    /// answers of the pass, which is checked when it is closed.
    pub fn relies_on(&self) -> Vec<i64> {
        if self.closing().is_some() { Vec::new() } else { self.pass.answered.ids() }
    }

    /// Notes that a transaction with this request has committed: what is written next relies on the final answers of
    /// that transaction, and no longer on those before. Call it for all requests of a transaction before the replies.
    pub fn supersedes_answers(&self, written: Written) {
        if self.final_answer().is_some() && written != Written::TooManyRejections {
            self.pass.answered.change(Vec::clear);
        }
    }

    /// Replies to the caller. After an announcement or an answer that could not be written, later writes of the pass
    /// are refused accordingly.
    pub fn reply_with(self, outcome: Result<Written, JournalError>) {
        if let (Ok(Written::Batch(_) | Written::Parts(_)), Some(batch_id)) = (&outcome, self.final_answer()) {
            self.pass.answered.change(|answered| answered.push(batch_id));
        }
        let outcome = outcome.map_err(|problem| match self.writing {
            JournalWrite::Announcement(_) => self.pass.stopped.by(problem),
            JournalWrite::Answer(_) | JournalWrite::Emptying(_) | JournalWrite::Passage(_) => {
                self.pass.unwritten.by(problem)
            }
            JournalWrite::Repetition(_)
            | JournalWrite::Recovery
            | JournalWrite::UnknownRun(_)
            | JournalWrite::Conclusions(_)
            | JournalWrite::PassClosing(_) => problem,
        });
        // It is no error if no caller waits for the reply any more.
        let _ = self.reply.send(outcome);
    }
}
