//! Batches: each is announced before it is sent, and its answer is recorded together with the move of the cursor.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::batch_record::{AnsweredBatch, BatchRecord};
use super::batch_state::BatchState;
use super::counters::Done;
use super::problem::rejections;
use super::writer::{Answer, Consequence, Emptying, JournalWrite, Repetition, Written};
use super::{
    AttemptResult, Counters, CursorAdvance, Journal, JournalError, LaneStore, OpenWork, PendingWrite,
    Problem, WorkContext, WorkKind, invalid,
};
use crate::batch::Batch;
use crate::ledger::instant_us;
use crate::watermark::{At, Cursor};

/// A batch of an open pass or backfill, as it was recorded.
#[derive(Debug)]
pub struct RecordedBatch {
    /// Its id.
    pub batch_id: i64,
    /// The batch of which it is a part.
    pub parent_id: Option<i64>,
    /// Where its interval begins.
    pub before: Option<Cursor>,
    /// Where its interval ends.
    pub last: Cursor,
    /// Ids of its rows. Empty if all of them are processed.
    pub ids: BTreeSet<String>,
    /// SHA-256 of the body that was sent, in hex.
    pub body_sha256: String,
    /// The zone rules by which the body was made, if they were recorded.
    pub zone_rules: Option<String>,
    /// Its state.
    pub state: BatchState,
    /// The number of its attempts.
    pub attempts: i32,
    /// Runs in which its outcome stayed unknown.
    pub unknown_runs: i32,
    /// Whether the cursor has passed it.
    pub side: Side,
}

/// The position of a batch relative to the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It is after the cursor.
    Beyond,
    /// The cursor has passed it.
    Passed,
}

/// A row of `sync_batches` as the query returns it.
struct BatchRow {
    batch_id: i64,
    parent_id: Option<i64>,
    before_xid: Option<String>,
    before_at: Option<DateTime<Utc>>,
    before_id: Option<String>,
    last_xid: Option<String>,
    last_at: Option<DateTime<Utc>>,
    last_id: String,
    body_sha256: String,
    zone_rules: Option<String>,
    status: String,
    row_count: i32,
    attempts: i32,
    unknown_runs: i32,
    is_passed: bool,
    ids: Vec<String>,
}

impl BatchRow {
    fn into_recorded(self) -> Result<RecordedBatch, sqlx::Error> {
        let position = |xid: Option<String>, at: Option<DateTime<Utc>>| {
            let xid = xid.and_then(|xid| xid.parse().ok()).map(At::Xid);
            xid.or_else(|| at.map(|at| At::Instant(instant_us(at))))
        };
        let before = position(self.before_xid, self.before_at).zip(self.before_id);
        let at = position(self.last_xid, self.last_at)
            .ok_or_else(|| sqlx::Error::Decode("neither an xid8 nor an instant".into()))?;
        let state = BatchState::decode(&self.status, self.row_count, self.attempts)?;
        Ok(RecordedBatch {
            batch_id: self.batch_id,
            parent_id: self.parent_id,
            before: before.map(|(at, id)| Cursor { at, id }),
            last: Cursor { at, id: self.last_id },
            ids: self.ids.into_iter().collect(),
            body_sha256: self.body_sha256,
            zone_rules: self.zone_rules,
            state,
            attempts: self.attempts,
            unknown_runs: self.unknown_runs,
            side: if self.is_passed { Side::Passed } else { Side::Beyond },
        })
    }
}

impl Journal {
    /// Reads the batches of an open pass or backfill after its cursor, and those before the cursor that have no answer,
    /// in the order in which they were announced. A part comes after the batch of which it is a part.
    pub(super) async fn batches(&self, pass: &OpenWork) -> Result<Vec<RecordedBatch>, JournalError> {
        let rows = match pass.course {
            WorkKind::Pass(pass_id) => self.recorded_in_pass(pass_id, &pass.lease.entity_id).await?,
            WorkKind::Backfill(backfill_id) => {
                self.recorded_in_backfill(backfill_id, &pass.lease.entity_id).await?
            }
        };
        Ok(rows.into_iter().map(BatchRow::into_recorded).collect::<Result<_, _>>()?)
    }

    async fn recorded_in_pass(&self, pass_id: i64, entity_id: &str) -> Result<Vec<BatchRow>, sqlx::Error> {
        let recorded = || {
            sqlx::query_as!(
                BatchRow,
                r#"select b.batch_id as "batch_id!", b.parent_id, b.before_xid::text, b.before_at, b.before_id,
                          b.last_xid::text, b.last_at, b.last_id as "last_id!", b.body_sha256 as "body_sha256!",
                          b.status as "status!", b.zone_rules, b.row_count as "row_count!", b.attempts as "attempts!",
                          b.unknown_runs as "unknown_runs!", b.batch_id <= passed.batch_id as "is_passed!",
                          case when elven_sync.is_open(b.status, b.row_count)
                               then array(select elven_sync.batch_row_ids(b.batch_id)) else '{}' end as "ids!"
                     from elven_sync.sync_state s
                    cross join lateral (
                          select coalesce((
                              select d.batch_id from elven_sync.sync_batches d
                               where d.pass_id between s.pass_id and s.pass_id and d.parent_id is null
                                 and d.last_xid = s.cursor_xid and d.last_id = s.cursor_id
                               order by d.pass_id desc, d.batch_id desc limit 1), 0) as batch_id) passed
                    cross join lateral (
                          select * from elven_sync.sync_batches beyond
                           where beyond.pass_id = s.pass_id and beyond.batch_id > passed.batch_id
                          union all
                          select * from elven_sync.sync_batches behind
                           where behind.entity_id = s.entity_id and elven_sync.is_open(behind.status, behind.row_count)
                             and behind.pass_id = s.pass_id and behind.batch_id <= passed.batch_id) b
                    where s.entity_id = $2 and s.pass_id = $1
                    order by b.batch_id"#,
                pass_id,
                entity_id
            )
            .fetch_all(&self.database)
        };
        self.database.retry(recorded).await
    }

    async fn recorded_in_backfill(
        &self,
        backfill_id: i64,
        entity_id: &str,
    ) -> Result<Vec<BatchRow>, sqlx::Error> {
        let recorded = || {
            sqlx::query_as!(
                BatchRow,
                r#"select b.batch_id as "batch_id!", b.parent_id, b.before_xid::text, b.before_at, b.before_id,
                          b.last_xid::text, b.last_at, b.last_id as "last_id!", b.body_sha256 as "body_sha256!",
                          b.status as "status!", b.zone_rules, b.row_count as "row_count!", b.attempts as "attempts!",
                          b.unknown_runs as "unknown_runs!", b.batch_id <= passed.batch_id as "is_passed!",
                          case when elven_sync.is_open(b.status, b.row_count)
                               then array(select elven_sync.batch_row_ids(b.batch_id)) else '{}' end as "ids!"
                     from elven_sync.sync_backfill_lanes l
                    cross join lateral (
                          select coalesce((
                              select d.batch_id from elven_sync.sync_batches d
                               where d.backfill_id = l.backfill_id
                                 and d.entity_id between l.entity_id and l.entity_id and d.parent_id is null
                                 and d.last_at = l.cursor_at and d.last_id = l.cursor_id
                               order by d.entity_id desc, d.batch_id desc limit 1), 0) as batch_id) passed
                    cross join lateral (
                          select * from elven_sync.sync_batches beyond
                           where beyond.backfill_id = l.backfill_id and beyond.entity_id = l.entity_id
                             and beyond.batch_id > passed.batch_id
                          union all
                          select * from elven_sync.sync_batches behind
                           where behind.entity_id = l.entity_id and elven_sync.is_open(behind.status, behind.row_count)
                             and behind.backfill_id = l.backfill_id and behind.batch_id <= passed.batch_id) b
                    where l.backfill_id = $1 and l.entity_id = $2
                    order by b.batch_id"#,
                backfill_id,
                entity_id
            )
            .fetch_all(&self.database)
        };
        self.database.retry(recorded).await
    }

    /// Counts the rows of an entity that the API refused and that are still set aside.
    pub async fn rejections(&self, entity_id: &str) -> Result<usize, JournalError> {
        Ok(self.database.retry(|| rejections(&self.database, entity_id)).await?)
    }
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
    /// `resolves`: rows of the entity are set aside, and the batch may have newer versions of them, which resolve their
    /// errors.
    pub fn settle(
        &self,
        context: WorkContext<'_>,
        batch_id: i64,
        batch: &Batch,
        result: AttemptResult,
        (advance, resolves): (Option<CursorAdvance>, bool),
    ) -> PendingWrite {
        let done = Done { uploaded: batch.records.len(), rejected: batch.invalid.len(), of: Some(batch) };
        // Only the rows that were uploaded resolve errors. Superseded rows do not: the row that supersedes them may
        // still be refused.
        let uploaded = batch.records.iter().filter_map(|&row| batch.rows.get(row));
        let ids = || uploaded.map(|row| row.id.to_string()).collect();
        let answer = Answer {
            answered: AnsweredBatch::new(context, (batch_id, batch), "accepted", result),
            advance,
            counted: Counters::of(batch, result, done),
            problems: batch.invalid.iter().map(|row| invalid(Some(batch_id), row)).collect(),
            resolves: if resolves { ids() } else { Vec::new() },
            rewritten: (!result.sent).then(|| batch.into()),
            consequence: Consequence::None,
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
        let answered = AnsweredBatch::new(context, (batch_id, batch), status, result).because(Some(error));
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
            AnsweredBatch::new(context, (batch_id, batch), "rejected", no_attempt).because(Some(why));
        self.submit_without_rows(context, batch, answered.withdrawn())
    }

    /// Submits an answer that does not change the state of any row.
    fn submit_without_rows(
        &self,
        context: WorkContext<'_>,
        batch: &Batch,
        answered: AnsweredBatch,
    ) -> PendingWrite {
        let done = Done { uploaded: 0, rejected: 0, of: None };
        let answer = Answer {
            advance: None,
            counted: Counters::of(batch, answered.result, done),
            problems: Vec::new(),
            resolves: Vec::new(),
            rewritten: None,
            consequence: Consequence::None,
            answered,
        };
        self.write(context, JournalWrite::Answer(answer.into()))
    }

    /// Records that the outcome of a batch is unknown at the end of a run.
    pub async fn count_unknown_run(
        &self,
        context: WorkContext<'_>,
        batch_id: i64,
    ) -> Result<(), JournalError> {
        self.write(context, JournalWrite::UnknownRun(batch_id)).written().await.map(drop)
    }

    /// Replaces a batch by its parts. `ambiguous`: the API may have imported their rows.
    pub async fn split(
        &self,
        context: WorkContext<'_>,
        batch_id: i64,
        batch: &Batch,
        parts: &[Batch; 2],
        result: AttemptResult,
        (error, ambiguous): (&str, bool),
    ) -> Result<[i64; 2], JournalError> {
        let parts = Box::new([BatchRecord::from(&parts[0]), BatchRecord::from(&parts[1])]);
        let answer = Answer {
            answered: AnsweredBatch::new(context, (batch_id, batch), "split", result).because(Some(error)),
            advance: None,
            counted: Counters::of(batch, result, Done { uploaded: 0, rejected: 0, of: None }),
            problems: Vec::new(),
            resolves: Vec::new(),
            rewritten: None,
            consequence: Consequence::Parts { parts, ambiguous },
        };
        match self.write(context, JournalWrite::Answer(answer.into())).outcome().await? {
            Written::Parts(parts) => Ok(parts),
            other => Err(sqlx::Error::Protocol(format!("a split was written as {other:?}")).into()),
        }
    }

    /// Sets aside the records and the invalid rows of a refused batch, and moves the cursor past them. Returns `false`,
    /// and records nothing, if the entity would have more than `rejections_max` rows that the API refused.
    pub async fn set_aside(
        &self,
        context: WorkContext<'_>,
        batch_id: i64,
        batch: &Batch,
        (refused, rejections_max): (&[Problem], usize),
        result: AttemptResult,
        advance: Option<CursorAdvance>,
    ) -> Result<bool, JournalError> {
        let mut problems: Vec<Problem> =
            batch.invalid.iter().map(|row| invalid(Some(batch_id), row)).collect();
        problems.extend(refused.iter().cloned());
        let error = refused.first().map(|problem| problem.message.as_str());
        let done = Done { uploaded: 0, rejected: problems.len(), of: Some(batch) };
        let consequence = Consequence::SetAside {
            rejected_ids: batch.ids_not_superseded(),
            refused: refused.iter().filter_map(|problem| problem.ledger_id.clone()).collect(),
            rejections_max,
        };
        let answer = Answer {
            answered: AnsweredBatch::new(context, (batch_id, batch), "rejected", result).because(error),
            advance,
            counted: Counters::of(batch, result, done),
            problems,
            resolves: Vec::new(),
            rewritten: None,
            consequence,
        };
        let written = self.write(context, JournalWrite::Answer(answer.into())).outcome().await?;
        Ok(written != Written::TooManyRejections)
    }
}
