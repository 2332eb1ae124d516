//! Batches as they were recorded, for recovery.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::batch_state::BatchState;
use super::problem::rejections;
use super::{Journal, JournalError, OpenWork, WorkKind};
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
    /// The version of the maps by which its names were made.
    pub map_version: Option<i64>,
    /// The version of the import that the body was made for, if it was recorded.
    pub api_version: Option<i32>,
    /// The source that its records name.
    pub source_id: Option<String>,
    /// Its state.
    pub state: BatchState,
    /// An attempt of the batch, or of one that it is a part of, has an unknown outcome.
    pub ambiguous: bool,
    /// The number of its attempts.
    pub attempts: i32,
    /// Runs in which its outcome stayed unknown.
    pub unknown_runs: i32,
    /// Whether the cursor has passed it.
    pub side: Side,
}

impl RecordedBatch {
    /// Whether the API may have imported it: by an attempt of its own, or, if it is a part that was not sent yet, by
    /// one of the batch that it is a part of.
    pub fn may_be_imported(&self) -> bool {
        self.state.may_have_arrived() || (self.state == BatchState::Queued && self.ambiguous)
    }
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
    map_version: Option<i64>,
    api_version: Option<i32>,
    source_id: Option<String>,
    status: String,
    ambiguous: bool,
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
            map_version: self.map_version,
            api_version: self.api_version,
            source_id: self.source_id,
            state,
            ambiguous: self.ambiguous,
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
        let rows = match pass.work {
            WorkKind::Pass(pass_id) => self.recorded_in_pass(pass_id, &pass.lease.entity_id).await?,
            WorkKind::Backfill(backfill_id) => {
                self.recorded_in_backfill(backfill_id, &pass.lease.entity_id).await?
            }
            WorkKind::Retry => Vec::new(),
        };
        Ok(rows.into_iter().map(BatchRow::into_recorded).collect::<Result<_, _>>()?)
    }

    async fn recorded_in_pass(&self, pass_id: i64, entity_id: &str) -> Result<Vec<BatchRow>, sqlx::Error> {
        let recorded = || {
            sqlx::query_as!(
                BatchRow,
                r#"select b.batch_id as "batch_id!", b.parent_id, b.before_xid::text, b.before_at, b.before_id,
                          b.last_xid::text, b.last_at, b.last_id as "last_id!", b.body_sha256 as "body_sha256!",
                          b.status as "status!", b.ambiguous as "ambiguous!", b.zone_rules, b.map_version, b.api_version,
                          b.source_id,
                          b.row_count as "row_count!", b.attempts as "attempts!", b.unknown_runs as "unknown_runs!",
                          b.batch_id <= passed.batch_id as "is_passed!",
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
                          b.status as "status!", b.ambiguous as "ambiguous!", b.zone_rules, b.map_version, b.api_version,
                          b.source_id,
                          b.row_count as "row_count!", b.attempts as "attempts!", b.unknown_runs as "unknown_runs!",
                          b.batch_id <= passed.batch_id as "is_passed!",
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
