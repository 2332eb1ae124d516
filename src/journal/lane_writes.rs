//! What a lane records of its batches: each is announced before it is sent, and its answer is recorded together with
//! the move of the cursor.

use std::collections::HashSet;

use super::batch_record::{AnsweredBatch, BatchRecord};
use super::counters::{Done, count};
use super::digests::kinds_in_order;
use super::writer::{
    Answer, Conclusions, Consequence, Emptying, JournalWrite, PassClosing, Repetition, Written,
};
use super::{
    AttemptResult, Counters, CursorAdvance, HeldRows, JournalError, Kind, LaneStore, PendingWrite, Problem,
    RecordedBatch, Resolution, WorkContext, WorkKind, invalid,
};
use crate::batch::{Batch, pack_ids};
use crate::watermark::{Cursor, LedgerId};

/// What follows from the acceptance of a batch.
#[derive(Debug)]
pub struct Settled<'a> {
    /// How far the cursor moves.
    pub advance: Option<CursorAdvance>,
    /// Rows of the entity are set aside, and the batch may have newer versions of them, which resolve their errors.
    pub resolves: bool,
    /// The refusal that counts as acceptance, because the API has the records already.
    pub error: Option<&'a str>,
    /// What resolves the errors of the rows that were uploaded.
    pub why: &'static str,
}

/// Why a batch is split.
#[derive(Clone, Copy, Debug)]
pub struct Split<'a> {
    /// What was wrong with the batch.
    pub error: &'a str,
    /// The API may have imported the rows of the parts.
    pub ambiguous: bool,
    /// The batch was announced and not sent.
    pub withdrawn: bool,
}

/// The rows of a batch that are held, and what follows.
#[derive(Debug)]
pub struct Hold {
    /// The rows, by name.
    pub held: Vec<HeldRows>,
    /// How far the cursor moves.
    pub advance: Option<CursorAdvance>,
    /// The batch was announced and not sent.
    pub withdrawn: bool,
}

/// The records of a batch that the API refused.
#[derive(Clone, Copy, Debug)]
pub struct RefusedRows<'a> {
    /// What was wrong, one for each record.
    pub problems: &'a [Problem],
    /// The most rows of the entity that may be set aside because the API refused them.
    pub rejections_max: usize,
}

impl dyn LaneStore + '_ {
    /// Returns the batches of an open pass or backfill after its cursor, and those before the cursor that have no
    /// answer, in the order in which they were announced. A part comes after the batch of which it is a part.
    ///
    /// A batch that was being sent when its worker stopped gets the status `unknown` here.
    pub async fn recorded(&self, context: WorkContext<'_>) -> Result<Vec<RecordedBatch>, JournalError> {
        self.write(context, JournalWrite::Recovery).written().await?;
        self.batches(context.pass).await
    }

    /// Submits a batch that is about to be sent. When that is written, the lease was checked.
    pub fn announce(&self, context: WorkContext<'_>, batch: &Batch) -> PendingWrite {
        self.write(context, JournalWrite::Announcement(batch.into()))
    }

    /// Records that a recorded batch is about to be sent again, and thereby checks the lease. `lost`: the outcome of an
    /// earlier attempt is unknown.
    pub async fn announce_again(
        &self,
        context: WorkContext<'_>,
        batch_id: i64,
        batch: &Batch,
        lost: bool,
    ) -> Result<(), JournalError> {
        let repetition = Repetition { batch_id, record: batch.into(), lost };
        self.write(context, JournalWrite::Repetition(repetition.into())).written().await.map(drop)
    }

    /// Records a batch of which nothing is left to send, because its rows are gone or have newer versions.
    pub async fn emptied(
        &self,
        context: WorkContext<'_>,
        batch_id: i64,
        advance: Option<CursorAdvance>,
    ) -> Result<(), JournalError> {
        let emptying = Emptying { batch_id, advance };
        self.write(context, JournalWrite::Emptying(emptying)).written().await.map(drop)
    }

    /// Submits that a batch was accepted: batch, cursor, counters and the rows set aside, in one transaction.
    /// `resolves`: rows of the entity are set aside, and the batch may have newer versions of them, or in a retry the
    /// rows themselves, which resolve their errors.
    pub fn settle(
        &self,
        context: WorkContext<'_>,
        batch_id: i64,
        batch: &Batch,
        result: AttemptResult,
        Settled { advance, resolves, error, why }: Settled<'_>,
    ) -> PendingWrite {
        let done = Done { uploaded: batch.records.len(), rejected: batch.invalid.len(), of: Some(batch) };
        let answered = AnsweredBatch::new(context, batch_id, batch, "accepted", result).because(error);
        let answer = Answer {
            advance,
            problems: batch.invalid.iter().map(|row| invalid(Some(batch_id), row)).collect(),
            resolves: if resolves { resolutions(context.pass.work, batch, why) } else { Vec::new() },
            is_rewritten: !result.sent,
            ..Answer::of(answered, Counters::of(batch, result, done))
        };
        self.write(context, JournalWrite::Answer(answer.into()))
    }

    /// Submits an answer that is not final: this run or a later one sends the batch again.
    ///
    /// `status` is `unknown` if the batch may have arrived, otherwise `rejected`. A batch that was ever unknown stays
    /// unknown, because an earlier attempt may have arrived.
    pub fn answered(
        &self,
        context: WorkContext<'_>,
        batch_id: i64,
        batch: &Batch,
        status: &'static str,
        result: AttemptResult,
        error: &str,
    ) -> PendingWrite {
        let answered = AnsweredBatch::new(context, batch_id, batch, status, result).because(Some(error));
        self.submit_without_rows(context, batch, answered)
    }

    /// Submits that an announced batch is not sent now. It does not count as an attempt.
    pub fn withdraw(
        &self,
        context: WorkContext<'_>,
        batch_id: i64,
        batch: &Batch,
        why: &str,
    ) -> PendingWrite {
        let no_attempt = AttemptResult::default();
        let answered =
            AnsweredBatch::new(context, batch_id, batch, "rejected", no_attempt).because(Some(why));
        self.submit_without_rows(context, batch, answered.withdrawn())
    }

    /// Submits an answer that does not change the state of any row.
    fn submit_without_rows(
        &self,
        context: WorkContext<'_>,
        batch: &Batch,
        answered: AnsweredBatch,
    ) -> PendingWrite {
        let counted = Counters::of(batch, answered.result, Done { uploaded: 0, rejected: 0, of: None });
        self.write(context, JournalWrite::Answer(Answer::of(answered, counted).into()))
    }

    /// Records that the outcome of a batch is unknown at the end of a run.
    pub async fn count_unknown_run(
        &self,
        context: WorkContext<'_>,
        batch_id: i64,
    ) -> Result<(), JournalError> {
        self.write(context, JournalWrite::UnknownRun(batch_id)).written().await.map(drop)
    }

    /// Replaces a batch by its parts.
    pub async fn split(
        &self,
        context: WorkContext<'_>,
        batch_id: i64,
        batch: &Batch,
        parts: &[Batch; 2],
        result: AttemptResult,
        split: Split<'_>,
    ) -> Result<[i64; 2], JournalError> {
        let Split { error, ambiguous, withdrawn } = split;
        let parts = Box::new([BatchRecord::from(&parts[0]), BatchRecord::from(&parts[1])]);
        let answered = AnsweredBatch::new(context, batch_id, batch, "split", result).because(Some(error));
        let answered = AnsweredBatch { withdrawn, ..answered };
        let counted = Counters::of(batch, result, Done { uploaded: 0, rejected: 0, of: None });
        let consequence = Consequence::Parts { parts, ambiguous };
        let answer = Answer { consequence, ..Answer::of(answered, counted) };
        match self.write(context, JournalWrite::Answer(answer.into())).outcome().await? {
            Written::Parts(parts) => Ok(parts),
            other => Err(sqlx::Error::Protocol(format!("a split was written as {other:?}")).into()),
        }
    }

    /// Sets aside the records and the invalid rows of a refused batch, and moves the cursor past them. Returns `false`,
    /// and records nothing, if the entity would have too many rows that the API refused.
    pub async fn set_aside(
        &self,
        context: WorkContext<'_>,
        batch_id: i64,
        batch: &Batch,
        refused: RefusedRows<'_>,
        result: AttemptResult,
        advance: Option<CursorAdvance>,
    ) -> Result<bool, JournalError> {
        let RefusedRows { problems: refused, rejections_max } = refused;
        let mut problems: Vec<Problem> =
            batch.invalid.iter().map(|row| invalid(Some(batch_id), row)).collect();
        problems.extend(refused.iter().cloned());
        let error = refused.first().map(|problem| problem.message.as_str());
        let kinds = problems.iter().map(|problem| (problem.kind, problem.api_code.as_deref()));
        let rejected_kinds = kinds_in_order(kinds);
        // The rows of a retry were set aside before.
        let is_retry = context.pass.work == WorkKind::Retry;
        let rejected = if is_retry { 0 } else { problems.len() };
        let done = Done { uploaded: 0, rejected, of: (!is_retry).then_some(batch) };
        let consequence = Consequence::SetAside {
            rejected_ids: batch.ids_not_superseded(),
            rejected_kinds,
            refused: refused.iter().filter_map(|problem| problem.ledger_id.clone()).collect(),
            rejections_max,
            held: None,
        };
        let answered = AnsweredBatch::new(context, batch_id, batch, "rejected", result).because(error);
        let counted = Counters::of(batch, result, done);
        let answer = Answer { advance, problems, consequence, ..Answer::of(answered, counted) };
        let written = self.write(context, JournalWrite::Answer(answer.into())).outcome().await?;
        Ok(written != Written::TooManyRejections)
    }

    /// Holds the rows of a batch, also those that they supersede, sets its invalid rows aside, and moves the cursor past
    /// all of them.
    pub async fn hold(
        &self,
        context: WorkContext<'_>,
        batch_id: i64,
        batch: &Batch,
        result: AttemptResult,
        hold: Hold,
    ) -> Result<(), JournalError> {
        let Hold { held, advance, withdrawn } = hold;
        let is_own: HashSet<&LedgerId> = batch.rows.iter().map(|row| &row.id).collect();
        let own = held.iter().flat_map(|held| held.ids.iter().map(move |id| (id, held)));
        let own: Vec<(&LedgerId, &HeldRows)> = own.filter(|(id, _)| is_own.contains(id)).collect();
        let kinds = own.iter().map(|(_, held)| (held.kind, held.api_code.as_deref()));
        let invalid_kinds = batch.invalid.iter().map(|_| (Kind::InvalidRow, None));
        let rejected_kinds = kinds_in_order(invalid_kinds.chain(kinds));
        let ids: Vec<&LedgerId> =
            batch.invalid.iter().map(|row| &row.id).chain(own.iter().map(|(id, _)| *id)).collect();
        let is_retry = context.pass.work == WorkKind::Retry;
        let done = Done {
            uploaded: 0,
            rejected: if is_retry { 0 } else { ids.len() },
            of: (!is_retry).then_some(batch),
        };
        let mut counted = Counters::of(batch, result, done);
        counted.rows_superseded = counted.rows_read - counted.rows_rejected;
        let error = held.first().map(|held| held.message.as_str());
        let answered = AnsweredBatch::new(context, batch_id, batch, "rejected", result).because(error);
        let answer = Answer {
            advance,
            problems: batch.invalid.iter().map(|row| invalid(Some(batch_id), row)).collect(),
            consequence: Consequence::SetAside {
                rejected_ids: pack_ids(ids.iter().copied()),
                rejected_kinds,
                refused: Vec::new(),
                rejections_max: usize::MAX,
                held: Some(count(ids.len())),
            },
            held,
            ..Answer::of(AnsweredBatch { withdrawn, ..answered }, counted)
        };
        self.write(context, JournalWrite::Answer(answer.into())).written().await.map(drop)
    }

    /// Moves the cursor over batches that are done.
    pub async fn pass_over(
        &self,
        context: WorkContext<'_>,
        advance: CursorAdvance,
    ) -> Result<(), JournalError> {
        self.write(context, JournalWrite::Passage(advance)).written().await.map(drop)
    }

    /// Records what was found out about rows that are set aside.
    pub async fn conclude(
        &self,
        context: WorkContext<'_>,
        conclusions: Conclusions,
    ) -> Result<(), JournalError> {
        self.write(context, JournalWrite::Conclusions(conclusions)).written().await.map(drop)
    }

    /// Submits the closing of a pass whose last batch ends at `last`: its target becomes the watermark. With `ends`
    /// the same transaction also records that the entity is up to date, as [`Journal::lane_succeeded`] does.
    pub fn close_pass(&self, context: WorkContext<'_>, last: Option<Cursor>, ends: bool) -> PendingWrite {
        self.write(context, JournalWrite::PassClosing(PassClosing { last, ends }))
    }
}

/// The errors that an accepted batch resolves: those of the rows that were uploaded. In a retry also those of the rows
/// that they supersede. A run leaves these open for a retry, which looks for still newer rows first.
fn resolutions(work: WorkKind, batch: &Batch, why: &'static str) -> Vec<Resolution> {
    let uploaded = batch.records.iter().filter_map(|&row| batch.rows.get(row));
    let mut resolved: Vec<Resolution> = uploaded.map(|row| Resolution::new(&row.id, why)).collect();
    if work != WorkKind::Retry {
        return resolved;
    }
    for (older, newer) in batch.superseded_rows() {
        // Rows may share an id.
        if older.id != newer.id {
            resolved.push(Resolution::superseded(&older.id, &newer.id));
        }
    }
    resolved
}
