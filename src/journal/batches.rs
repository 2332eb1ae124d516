//! Batches: announced before they are sent, settled together with the watermark.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::batch_record::{AnsweredBatch, BatchRecord};
use super::batch_state::BatchState;
use super::counters::Done;
use super::problem::rejections;
use super::writer::{Answer, Consequence, Emptying, JournalWrite, Repetition, Written};
use super::{
    AttemptResult, Counters, CursorAdvance, Journal, JournalError, PendingWrite, Problem, WorkContext,
    WorkKind, invalid,
};
use crate::batch::Batch;
use crate::ledger::instant_us;
use crate::watermark::{At, Cursor};

/// A batch of an open pass or backfill, as it was recorded.
#[derive(Debug)]
pub struct RecordedBatch {
    /// The batch.
    pub batch_id: i64,
    /// The batch that it is a part of.
    pub parent_id: Option<i64>,
    /// Where its interval begins.
    pub before: Option<Cursor>,
    /// Where its interval ends.
    pub last: Cursor,
    /// Ids of its rows, when they are not all dealt with.
    pub ids: BTreeSet<String>,
    /// SHA-256 of the body that was sent, in hex.
    pub body_sha256: String,
    /// The rules of its zone that the body was made with, if they were noted.
    pub zone_rules: Option<String>,
    /// What is known of it.
    pub state: BatchState,
    /// It was sent before.
    pub attempts: i32,
    /// Runs in which its outcome stayed unknown.
    pub unknown_runs: i32,
    /// Where it lies.
    pub side: Side,
}

/// Where a batch lies, seen from the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Beyond it.
    Beyond,
    /// The cursor has passed it.
    Passed,
}

/// A row of `sync_batches` as it comes.
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
        let place = |xid: Option<String>, at: Option<DateTime<Utc>>| {
            let xid = xid.and_then(|xid| xid.parse().ok()).map(At::Xid);
            xid.or_else(|| at.map(|at| At::Instant(instant_us(at))))
        };
        let before = place(self.before_xid, self.before_at).zip(self.before_id);
        let at = place(self.last_xid, self.last_at)
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
    /// The batches of an open pass or backfill beyond its cursor, and those before it that have no answer, in the order
    /// in which they were announced, parts behind what they are parts of.
    ///
    /// One that was being sent when its worker stopped becomes `unknown` here.
    pub async fn recorded(&self, doing: WorkContext<'_>) -> Result<Vec<RecordedBatch>, JournalError> {
        self.group.submit(doing, JournalWrite::Recovery).written().await?;
        let pass = doing.pass;
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

    /// Hands in a batch that is about to be sent. Once that is written the lease was checked.
    pub fn announce(&self, doing: WorkContext<'_>, batch: &Batch) -> PendingWrite {
        self.group.submit(doing, JournalWrite::Announcement(batch.into()))
    }

    /// Records that a recorded batch is about to be sent again, and checks the lease by doing so. `lost`: the outcome of an
    /// earlier attempt is unknown.
    pub async fn announce_again(
        &self,
        doing: WorkContext<'_>,
        batch_id: i64,
        batch: &Batch,
        lost: bool,
    ) -> Result<(), JournalError> {
        let repetition = Repetition { batch_id, record: batch.into(), lost };
        self.group.submit(doing, JournalWrite::Repetition(repetition.into())).written().await.map(drop)
    }

    /// Records a batch whose rows are gone or have newer versions: nothing of it is left to send.
    pub async fn emptied(
        &self,
        doing: WorkContext<'_>,
        batch_id: i64,
        advance: Option<CursorAdvance>,
    ) -> Result<(), JournalError> {
        let emptying = Emptying { batch_id, advance };
        self.group.submit(doing, JournalWrite::Emptying(emptying)).written().await.map(drop)
    }

    /// Hands in that a batch was accepted: batch, watermark, counters and the rows set aside, in one transaction.
    /// `resolves`: the entity has rows set aside, some of which it may answer.
    pub fn settle(
        &self,
        doing: WorkContext<'_>,
        batch_id: i64,
        batch: &Batch,
        settlement: AttemptResult,
        (advance, resolves): (Option<CursorAdvance>, bool),
    ) -> PendingWrite {
        let all = Done { uploaded: batch.records.len(), rejected: batch.invalid.len(), of: Some(batch) };
        // Not of rows that were superseded: the row that supersedes them may be refused yet.
        let uploaded = batch.records.iter().filter_map(|&row| batch.rows.get(row));
        let ids = || uploaded.map(|row| row.id.to_string()).collect();
        let answer = Answer {
            answered: AnsweredBatch::new(doing, (batch_id, batch), "accepted", settlement),
            advance,
            counted: Counters::of(batch, settlement, all),
            problems: batch.invalid.iter().map(|row| invalid(Some(batch_id), row)).collect(),
            resolves: if resolves { ids() } else { Vec::new() },
            rewritten: (!settlement.sent).then(|| batch.into()),
            consequence: Consequence::None,
        };
        self.group.submit(doing, JournalWrite::Answer(answer.into()))
    }

    /// Hands in an answer that is not the last word on a batch: it is sent again, by this run or a later one.
    ///
    /// `status` is `unknown` when the batch may have arrived, else `rejected`; one that was ever unknown
    /// stays so, because an earlier attempt may have arrived.
    pub fn answered(
        &self,
        doing: WorkContext<'_>,
        batch_id: i64,
        batch: &Batch,
        status: &'static str,
        settlement: AttemptResult,
        error: &str,
    ) -> PendingWrite {
        let answered = AnsweredBatch::new(doing, (batch_id, batch), status, settlement).because(Some(error));
        self.submit_without_rows(doing, batch, answered)
    }

    /// Hands in that a batch which was announced is not sent now: that was no attempt.
    pub fn withdraw(&self, doing: WorkContext<'_>, batch_id: i64, batch: &Batch, why: &str) -> PendingWrite {
        let nothing = AttemptResult::default();
        let answered = AnsweredBatch::new(doing, (batch_id, batch), "rejected", nothing).because(Some(why));
        self.submit_without_rows(doing, batch, answered.withdrawn())
    }

    /// Hands in an answer by which nothing becomes of the rows.
    fn submit_without_rows(
        &self,
        doing: WorkContext<'_>,
        batch: &Batch,
        answered: AnsweredBatch,
    ) -> PendingWrite {
        let nothing = Done { uploaded: 0, rejected: 0, of: None };
        let answer = Answer {
            advance: None,
            counted: Counters::of(batch, answered.settlement, nothing),
            problems: Vec::new(),
            resolves: Vec::new(),
            rewritten: None,
            consequence: Consequence::None,
            answered,
        };
        self.group.submit(doing, JournalWrite::Answer(answer.into()))
    }

    /// Records that a run ends with the outcome of a batch unknown.
    pub async fn count_unknown_run(&self, doing: WorkContext<'_>, batch_id: i64) -> Result<(), JournalError> {
        self.group.submit(doing, JournalWrite::UnknownRun(batch_id)).written().await.map(drop)
    }

    /// Records parts in the place of a batch. `ambiguous`: the API may have imported their rows.
    pub async fn split(
        &self,
        doing: WorkContext<'_>,
        batch_id: i64,
        batch: &Batch,
        parts: &[Batch; 2],
        settlement: AttemptResult,
        (error, ambiguous): (&str, bool),
    ) -> Result<[i64; 2], JournalError> {
        let parts = Box::new([BatchRecord::from(&parts[0]), BatchRecord::from(&parts[1])]);
        let answer = Answer {
            answered: AnsweredBatch::new(doing, (batch_id, batch), "split", settlement).because(Some(error)),
            advance: None,
            counted: Counters::of(batch, settlement, Done { uploaded: 0, rejected: 0, of: None }),
            problems: Vec::new(),
            resolves: Vec::new(),
            rewritten: None,
            consequence: Consequence::Parts { parts, ambiguous },
        };
        match self.group.submit(doing, JournalWrite::Answer(answer.into())).outcome().await? {
            Written::Parts(parts) => Ok(parts),
            other => Err(sqlx::Error::Protocol(format!("a split was written as {other:?}")).into()),
        }
    }

    /// Sets the records of a refused batch aside, and what of it could not be sent anyway; the watermark goes
    /// past them. `false`, and nothing is recorded, when the entity would have more than `rejections_max` rows
    /// that the API refused.
    pub async fn set_aside(
        &self,
        doing: WorkContext<'_>,
        batch_id: i64,
        batch: &Batch,
        (refused, rejections_max): (&[Problem], usize),
        settlement: AttemptResult,
        advance: Option<CursorAdvance>,
    ) -> Result<bool, JournalError> {
        let mut problems: Vec<Problem> =
            batch.invalid.iter().map(|row| invalid(Some(batch_id), row)).collect();
        problems.extend(refused.iter().cloned());
        let error = refused.first().map(|problem| problem.message.as_str());
        let all = Done { uploaded: 0, rejected: problems.len(), of: Some(batch) };
        let consequence = Consequence::SetAside {
            rejected_ids: batch.ids_not_superseded(),
            refused: refused.iter().filter_map(|problem| problem.ledger_id.clone()).collect(),
            rejections_max,
        };
        let answer = Answer {
            answered: AnsweredBatch::new(doing, (batch_id, batch), "rejected", settlement).because(error),
            advance,
            counted: Counters::of(batch, settlement, all),
            problems,
            resolves: Vec::new(),
            rewritten: None,
            consequence,
        };
        let written = self.group.submit(doing, JournalWrite::Answer(answer.into())).outcome().await?;
        Ok(written != Written::TooManyRejections)
    }

    /// Rows of an entity that the API refused and that are still set aside.
    pub async fn rejections(&self, entity_id: &str) -> Result<usize, JournalError> {
        Ok(self.database.retry(|| rejections(&self.database, entity_id)).await?)
    }
}
