//! Rows of `sync_batches`: what is recorded about a batch, and about the answer to it. One statement writes many rows.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::counters::count;
use super::cursor_columns::{at, xid};
use super::digests::{Digest, kinds_in_order};
use super::storable_text::storable;
use super::{AttemptResult, Kind, WorkContext};
use crate::batch::Batch;
use crate::database::Transaction;
use crate::watermark::Cursor;

/// What is recorded about a batch. Its rows and its body are not recorded.
#[derive(Clone, Debug)]
pub struct BatchRecord {
    /// Where its interval begins.
    pub before: Option<Cursor>,
    /// Where its interval ends.
    pub last: Cursor,
    /// The packed ids of its rows.
    pub row_ids: Vec<u8>,
    pub(super) rows_read: i32,
    /// The number of its records.
    pub row_count: i32,
    pub(super) rows_rejected: i32,
    pub(super) rows_superseded: i32,
    pub(super) rows_beyond_double: i32,
    pub(super) body_bytes: i32,
    /// SHA-256 of its body, in hex.
    pub body_sha256: String,
    pub(super) rejected_ids: Option<Vec<u8>>,
    /// Why the rows of `rejected_ids` are set aside, see [`kinds_in_order`].
    pub(super) rejected_kinds: Option<String>,
    pub(super) timezone: Option<String>,
    pub(super) zone_rules: Option<String>,
    pub(super) map_version: Option<i64>,
    pub(super) api_version: Option<i32>,
    pub(super) source_id: Option<String>,
}

impl From<&Batch> for BatchRecord {
    fn from(batch: &Batch) -> Self {
        Self {
            before: batch.before.clone(),
            last: batch.last.clone(),
            row_ids: batch.row_ids.clone(),
            rows_read: count(batch.rows.len()),
            row_count: count(batch.records.len()),
            rows_rejected: count(batch.invalid.len()),
            rows_superseded: count(batch.superseded),
            rows_beyond_double: count(batch.beyond_double),
            body_bytes: count(batch.body.len()),
            body_sha256: batch.body_sha256.clone(),
            rejected_ids: batch.rejected_ids(),
            rejected_kinds: kinds_in_order(batch.invalid.iter().map(|_| (Kind::InvalidRow, None))),
            timezone: Some(batch.rules.zone.name().to_owned()),
            zone_rules: Some(batch.rules.zone.rules().to_owned()),
            map_version: batch.rules.names.version,
            api_version: Some(batch.rules.form.version().number()),
            source_id: batch.rules.form.source().map(|source| source.id().to_owned()),
        }
    }
}

impl BatchRecord {
    /// Returns the batch after its records are set aside, too. `held`: the number of these rows, if those that the
    /// records supersede are among them.
    pub(super) fn set_aside(
        self,
        rejected_ids: Vec<u8>,
        rejected_kinds: Option<String>,
        held: Option<i32>,
    ) -> Self {
        Self {
            row_count: 0,
            rows_rejected: held.unwrap_or(self.rows_rejected + self.row_count),
            rows_superseded: held.map_or(self.rows_superseded, |held| self.rows_read - held),
            rejected_ids: Some(rejected_ids),
            rejected_kinds,
            ..self
        }
    }
}

/// A batch that is recorded for the first time. `attempts`: 1 if it is about to be sent, 0 if it is a part that is sent
/// later.
pub(super) struct NewBatch<'a> {
    /// The run and the work to which it belongs.
    pub context: WorkContext<'a>,
    /// The batch of which it is a part.
    pub parent_id: Option<i64>,
    pub contents: &'a BatchRecord,
    pub attempts: i32,
}

/// Records batches. Returns their ids, which ascend in the order of `new`.
pub(super) async fn insert_all(
    transaction: &mut Transaction,
    new: &[NewBatch<'_>],
) -> Result<Vec<i64>, sqlx::Error> {
    if new.is_empty() {
        return Ok(Vec::new());
    }
    let before = |new: &NewBatch<'_>| new.contents.before.clone();
    sqlx::query_scalar!(
        "insert into elven_sync.sync_batches
                (run_id, pass_id, entity_id, parent_id, attempts, before_xid, before_id, last_xid, last_id, row_ids,
                 rows_read, row_count, rows_rejected, rows_superseded, rows_beyond_double, body_bytes, body_sha256,
                 backfill_id, before_at, last_at, rejected_ids, timezone, zone_rules,
                 map_version, api_version, source_id, rejected_kinds)
         select run_id, pass_id, entity_id, parent_id, attempts, before_xid::xid8, before_id, last_xid::xid8, last_id,
                row_ids, rows_read, row_count, rows_rejected, rows_superseded, rows_beyond_double, body_bytes,
                body_sha256, backfill_id, before_at, last_at, rejected_ids, timezone, zone_rules,
                map_version, api_version, source_id, rejected_kinds
           from unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::integer[], $6::text[], $7::text[],
                       $8::text[], $9::text[], $10::bytea[], $11::integer[], $12::integer[], $13::integer[],
                       $14::integer[], $15::integer[], $16::integer[], $17::text[], $18::bigint[],
                       $19::timestamptz[], $20::timestamptz[], $21::bytea[], $22::text[], $23::text[], $24::bigint[],
                       $25::integer[], $26::text[], $27::text[])
                with ordinality b (run_id, pass_id, entity_id, parent_id, attempts, before_xid, before_id, last_xid,
                                   last_id, row_ids, rows_read, row_count, rows_rejected, rows_superseded,
                                   rows_beyond_double, body_bytes, body_sha256, backfill_id, before_at, last_at,
                                   rejected_ids, timezone, zone_rules, map_version, api_version, source_id,
                                   rejected_kinds, place)
          order by place
      returning batch_id",
        &column(new, |new| new.context.run_id),
        &column(new, |new| new.context.pass.work.pass_id()) as &[Option<i64>],
        &column(new, |new| new.context.pass.lease.entity_id.clone()),
        &column(new, |new| new.parent_id) as &[Option<i64>],
        &column(new, |new| new.attempts),
        &column(new, |new| before(new).as_ref().and_then(xid)) as &[Option<String>],
        &column(new, |new| before(new).map(|cursor| cursor.id)) as &[Option<String>],
        &column(new, |new| xid(&new.contents.last)) as &[Option<String>],
        &column(new, |new| new.contents.last.id.clone()),
        &column(new, |new| new.contents.row_ids.clone()),
        &column(new, |new| new.contents.rows_read),
        &column(new, |new| new.contents.row_count),
        &column(new, |new| new.contents.rows_rejected),
        &column(new, |new| new.contents.rows_superseded),
        &column(new, |new| new.contents.rows_beyond_double),
        &column(new, |new| new.contents.body_bytes),
        &column(new, |new| new.contents.body_sha256.clone()),
        &column(new, |new| new.context.pass.work.backfill_id()) as &[Option<i64>],
        &column(new, |new| before(new).as_ref().and_then(at)) as &[Option<DateTime<Utc>>],
        &column(new, |new| at(&new.contents.last)) as &[Option<DateTime<Utc>>],
        &column(new, |new| new.contents.rejected_ids.clone()) as &[Option<Vec<u8>>],
        &column(new, |new| new.contents.timezone.clone()) as &[Option<String>],
        &column(new, |new| new.contents.zone_rules.clone()) as &[Option<String>],
        &column(new, |new| new.contents.map_version) as &[Option<i64>],
        &column(new, |new| new.contents.api_version) as &[Option<i32>],
        &column(new, |new| new.contents.source_id.clone()) as &[Option<String>],
        &column(new, |new| new.contents.rejected_kinds.clone()) as &[Option<String>]
    )
    .fetch_all(&mut *transaction)
    .await
}

/// Records that the rows of new parts may have arrived, by an attempt for the batch that was split.
pub(super) async fn mark_ambiguous(
    transaction: &mut Transaction,
    batch_ids: &[i64],
) -> Result<(), sqlx::Error> {
    sqlx::query!("update elven_sync.sync_batches set ambiguous = true where batch_id = any ($1)", batch_ids)
        .execute(&mut *transaction)
        .await?;
    Ok(())
}

/// Marks batches of retries as ambiguous if they have a row of an earlier one with an unknown outcome.
pub(super) async fn mark_repeated(
    transaction: &mut Transaction,
    batch_ids: &[i64],
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update elven_sync.sync_batches b set ambiguous = true
          where b.batch_id = any ($1)
            and exists (select from elven_sync.sync_batches u
                         where u.entity_id = b.entity_id and u.pass_id is null and u.backfill_id is null
                           and elven_sync.is_open(u.status, u.row_count) and u.status = 'unknown'
                           and exists (select from elven_sync.batch_row_ids(u.batch_id) id
                                        where id in (select elven_sync.batch_row_ids(b.batch_id))))",
        batch_ids
    )
    .execute(&mut *transaction)
    .await?;
    Ok(())
}

/// Records the contents of a batch again, because its rows may have changed since it was recorded.
pub(super) async fn rewrite(
    transaction: &mut Transaction,
    batch_id: i64,
    contents: &BatchRecord,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update elven_sync.sync_batches
            set row_ids = $2, rows_read = $3, row_count = $4, rows_rejected = $5, rows_superseded = $6,
                body_bytes = $7, body_sha256 = $8, rows_beyond_double = $9, rejected_ids = $10, timezone = $11,
                zone_rules = $12, map_version = $13, api_version = $14, source_id = $15, rejected_kinds = $16
          where batch_id = $1",
        batch_id,
        contents.row_ids,
        contents.rows_read,
        contents.row_count,
        contents.rows_rejected,
        contents.rows_superseded,
        contents.body_bytes,
        contents.body_sha256,
        contents.rows_beyond_double,
        contents.rejected_ids,
        contents.timezone,
        contents.zone_rules,
        contents.map_version,
        contents.api_version,
        contents.source_id,
        contents.rejected_kinds
    )
    .execute(&mut *transaction)
    .await?;
    Ok(())
}

/// The answer to a batch.
///
/// The batch is identified by its contents, too: a failover that loses the last transactions loses announced batches,
/// and their ids are then given to other batches.
#[derive(Clone, Debug)]
pub struct AnsweredBatch {
    /// The id of the batch.
    pub batch_id: i64,
    /// Its entity.
    pub entity_id: String,
    /// What was announced, or is written instead (`Answer::rewritten`).
    pub contents: BatchRecord,
    /// `sync_batches.status`.
    pub status: &'static str,
    /// The result of the attempt.
    pub result: AttemptResult,
    /// What was wrong.
    pub error: Option<String>,
    /// The batch was announced and not sent, which does not count as an attempt.
    pub withdrawn: bool,
}

impl AnsweredBatch {
    pub(super) fn new(
        context: WorkContext<'_>,
        batch_id: i64,
        batch: &Batch,
        status: &'static str,
        result: AttemptResult,
    ) -> Self {
        Self {
            batch_id,
            entity_id: context.pass.lease.entity_id.clone(),
            contents: batch.into(),
            status,
            result,
            error: None,
            withdrawn: false,
        }
    }

    /// Marks the batch as announced and not sent.
    pub(super) fn withdrawn(self) -> Self {
        Self { withdrawn: true, ..self }
    }

    pub(super) fn because(self, error: Option<&str>) -> Self {
        Self { error: error.map(str::to_owned), ..self }
    }
}

/// Records answers, with the leaves of the batches that are done with it. Returns the number of batches that were found.
/// For the others the journal has no such batch any more.
pub(super) async fn finish(
    transaction: &mut Transaction,
    answered: &[&AnsweredBatch],
    leaves: &BTreeMap<i64, Digest>,
) -> Result<u64, sqlx::Error> {
    let mut errors: Vec<Option<String>> = column(answered, |a| a.error.clone());
    storable(&mut *transaction, [&mut errors]).await?;
    let updated = sqlx::query!(
        "update elven_sync.sync_batches b
            set status = case when a.status = 'rejected' and b.ambiguous and b.row_count > 0
                              then 'unknown' else a.status end,
                http_status = a.http_status, duration_ms = a.duration_ms, error = a.error,
                attempts = b.attempts - a.withdrawn::integer, finished_at = clock_timestamp(), leaf = a.leaf
           from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::integer[],
                       $8::bigint[], $9::text[], $10::boolean[], $11::timestamptz[], $12::bytea[])
                a (batch_id, entity_id, last_xid, last_id, body_sha256, status, http_status, duration_ms, error,
                   withdrawn, last_at, leaf)
          where b.batch_id = a.batch_id and b.entity_id = a.entity_id
            and b.last_xid is not distinct from a.last_xid::xid8 and b.last_at is not distinct from a.last_at
            and b.last_id = a.last_id and b.body_sha256 = a.body_sha256",
        &column(answered, |a| a.batch_id),
        &column(answered, |a| a.entity_id.clone()),
        &column(answered, |a| xid(&a.contents.last)) as &[Option<String>],
        &column(answered, |a| a.contents.last.id.clone()),
        &column(answered, |a| a.contents.body_sha256.clone()),
        &column(answered, |a| a.status.to_owned()),
        &column(answered, |a| a.result.http_status) as &[Option<i32>],
        &column(answered, |a| a.result.duration_ms) as &[Option<i64>],
        &errors as &[Option<String>],
        &column(answered, |a| a.withdrawn),
        &column(answered, |a| at(&a.contents.last)) as &[Option<DateTime<Utc>>],
        &column(answered, |a| leaves.get(&a.batch_id).map(|leaf| leaf.to_vec())) as &[Option<Vec<u8>>]
    )
    .execute(&mut *transaction)
    .await?;
    Ok(updated.rows_affected())
}

/// Returns one value per row, as the array parameter of a statement.
fn column<T, C>(rows: &[T], value: impl Fn(&T) -> C) -> Vec<C> {
    rows.iter().map(value).collect()
}
