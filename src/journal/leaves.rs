//! Leaves of batches: of those that an answer finishes, of what is recorded of others, and of those that were split.
//!
//! The function `leaf` of the schema makes the same digest. A trigger that changes what is written makes the two differ,
//! because the connector makes leaves from what it sends to the database.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::JournalError;
use super::batch_record::BatchRecord;
use super::cursor_columns::{at, xid};
use super::digests::{Digest, Fields};
use crate::database::Transaction;
use crate::ledger::instant_us;
use crate::watermark::{At, Cursor};

/// The most batches that are read at once.
const BATCHES_MAX: i64 = 1000;

/// What the leaf of a batch covers, besides its contents.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeafState<'a> {
    /// The batch.
    pub(super) batch_id: i64,
    /// Its entity.
    pub(super) entity_id: &'a str,
    /// Its pass.
    pub(super) pass_id: Option<i64>,
    /// Its backfill.
    pub(super) backfill_id: Option<i64>,
    /// The batch of which it is a part.
    pub(super) parent_id: Option<i64>,
    /// `sync_batches.status`.
    pub(super) status: &'a str,
    /// The status of the last answer.
    pub(super) http_status: Option<i32>,
    /// The number of attempts.
    pub(super) attempts: i32,
    /// An attempt had an unknown outcome.
    pub(super) ambiguous: bool,
}

/// Returns the leaf of a batch. `parts`: the leaves of the parts that have taken its place, one after the other.
pub(super) fn leaf(state: LeafState<'_>, contents: &BatchRecord, parts: &[u8]) -> Digest {
    let instant = |cursor: &Cursor| at(cursor).map(|at| at.timestamp_micros());
    let (before, last) = (contents.before.as_ref(), &contents.last);
    let mut fields = Fields::default();
    fields
        .text(Some("elven-sync leaf 1"))
        .text(Some(state.batch_id))
        .text(Some(state.entity_id))
        .text(state.pass_id)
        .text(state.backfill_id)
        .text(state.parent_id)
        .text(before.and_then(xid))
        .text(before.and_then(instant))
        .text(before.map(|before| &before.id))
        .text(xid(last))
        .text(instant(last))
        .text(Some(&last.id))
        .bytes(Some(&contents.row_ids))
        .bytes(contents.rejected_ids.as_deref())
        .text(contents.rejected_kinds.as_ref())
        .text(Some(contents.rows_read))
        .text(Some(contents.row_count))
        .text(Some(contents.rows_rejected))
        .text(Some(contents.rows_superseded))
        .text(Some(contents.rows_beyond_double))
        .text(Some(contents.body_bytes))
        .text(Some(&contents.body_sha256))
        .text(Some(state.status))
        .text(state.http_status)
        .text(Some(state.attempts))
        .text(Some(state.ambiguous))
        .text(contents.timezone.as_ref())
        .text(contents.zone_rules.as_ref())
        .text(contents.map_version)
        .text(contents.api_version)
        .text(contents.source_id.as_ref());
    fields.end(parts)
}

/// A batch as it is recorded, with all that its leaf covers.
#[derive(Debug)]
pub struct RecordedLeaf {
    /// The batch.
    pub batch_id: i64,
    /// Its entity.
    pub entity_id: String,
    /// Its pass.
    pub pass_id: Option<i64>,
    /// Its backfill.
    pub backfill_id: Option<i64>,
    /// The batch of which it is a part.
    pub parent_id: Option<i64>,
    /// `sync_batches.status`.
    pub status: String,
    pub(super) leaf: Option<Vec<u8>>,
    http_status: Option<i32>,
    attempts: i32,
    ambiguous: bool,
    before_xid: Option<String>,
    before_at: Option<DateTime<Utc>>,
    before_id: Option<String>,
    last_xid: Option<String>,
    last_at: Option<DateTime<Utc>>,
    last_id: String,
    row_ids: Vec<u8>,
    rejected_ids: Option<Vec<u8>>,
    rejected_kinds: Option<String>,
    rows_read: i32,
    row_count: i32,
    rows_rejected: i32,
    rows_superseded: i32,
    rows_beyond_double: i32,
    body_bytes: i32,
    body_sha256: String,
    timezone: Option<String>,
    zone_rules: Option<String>,
    map_version: Option<i64>,
    api_version: Option<i32>,
    source_id: Option<String>,
    parts: Option<Vec<u8>>,
    has_open_part: bool,
}

impl RecordedLeaf {
    /// Returns the leaf that is recorded.
    ///
    /// # Errors
    /// It does not have 32 bytes.
    pub fn leaf(&self) -> Result<Option<Digest>, sqlx::Error> {
        let digest = |leaf: &Vec<u8>| {
            Digest::try_from(&leaf[..]).map_err(|_| sqlx::Error::Decode("a leaf has 32 bytes".into()))
        };
        self.leaf.as_ref().map(digest).transpose()
    }

    /// Returns where its interval ends: a transaction id, or an instant in microseconds from 1970-01-01 UTC, and an id.
    pub fn end(&self) -> (String, String) {
        let at = self.last_at.map(|at| at.timestamp_micros().to_string());
        (self.last_xid.clone().or(at).unwrap_or_default(), self.last_id.clone())
    }

    /// Makes the leaf of the batch from the other columns.
    ///
    /// # Errors
    /// A transaction id of the interval is none.
    pub fn made(&self) -> Result<Digest, sqlx::Error> {
        let cursor = |xid: &Option<String>, at: Option<DateTime<Utc>>, id: &String| {
            let at = match (xid, at) {
                (Some(xid), _) => At::Xid(xid.parse().map_err(|problem| {
                    sqlx::Error::Decode(Box::<dyn std::error::Error + Send + Sync>::from(problem))
                })?),
                (None, Some(at)) => At::Instant(instant_us(at)),
                (None, None) => return Ok(None),
            };
            Ok::<_, sqlx::Error>(Some(Cursor { at, id: id.clone() }))
        };
        let before = match &self.before_id {
            Some(id) => cursor(&self.before_xid, self.before_at, id)?,
            None => None,
        };
        let last = cursor(&self.last_xid, self.last_at, &self.last_id)?;
        let last = last.ok_or_else(|| sqlx::Error::Decode("a batch without an end".into()))?;
        let contents = BatchRecord {
            before,
            last,
            row_ids: self.row_ids.clone(),
            rows_read: self.rows_read,
            row_count: self.row_count,
            rows_rejected: self.rows_rejected,
            rows_superseded: self.rows_superseded,
            rows_beyond_double: self.rows_beyond_double,
            body_bytes: self.body_bytes,
            body_sha256: self.body_sha256.clone(),
            rejected_ids: self.rejected_ids.clone(),
            rejected_kinds: self.rejected_kinds.clone(),
            timezone: self.timezone.clone(),
            zone_rules: self.zone_rules.clone(),
            map_version: self.map_version,
            api_version: self.api_version,
            source_id: self.source_id.clone(),
        };
        let state = LeafState {
            batch_id: self.batch_id,
            entity_id: &self.entity_id,
            pass_id: self.pass_id,
            backfill_id: self.backfill_id,
            parent_id: self.parent_id,
            status: &self.status,
            http_status: self.http_status,
            attempts: self.attempts,
            ambiguous: self.ambiguous,
        };
        Ok(leaf(state, &contents, self.parts.as_deref().unwrap_or_default()))
    }
}

/// A batch that has got its leaf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sealed {
    pub(super) batch_id: i64,
    pub(super) parent_id: Option<i64>,
    pub(super) leaf: Digest,
}

/// Reads batches, in the order of their ids.
pub(super) async fn recorded(
    transaction: &mut Transaction,
    batch_ids: &[i64],
) -> Result<Vec<RecordedLeaf>, sqlx::Error> {
    sqlx::query_as!(
        RecordedLeaf,
        r#"select b.batch_id, b.entity_id, b.pass_id, b.backfill_id, b.parent_id, b.status, b.leaf, b.http_status,
                  b.attempts, b.ambiguous, b.before_xid::text, b.before_at, b.before_id, b.last_xid::text, b.last_at,
                  b.last_id, b.row_ids, b.rejected_ids, b.rejected_kinds, b.rows_read, b.row_count, b.rows_rejected,
                  b.rows_superseded, b.rows_beyond_double, b.body_bytes, b.body_sha256, b.timezone, b.zone_rules,
                  b.map_version, b.api_version, b.source_id,
                  case when b.status = 'split' then
                       (select string_agg(part.leaf, ''::bytea order by part.batch_id)
                          from elven_sync.sync_batches part where part.parent_id = b.batch_id) end as parts,
                  exists (select from elven_sync.sync_batches part
                           where part.parent_id = b.batch_id and part.leaf is null) as "has_open_part!"
             from elven_sync.sync_batches b where b.batch_id = any ($1) order by b.batch_id"#,
        batch_ids
    )
    .fetch_all(transaction)
    .await
}

/// Gives those of these batches their leaves that have none yet and have no part without one.
pub(super) async fn seal(
    transaction: &mut Transaction,
    batch_ids: &[i64],
) -> Result<Vec<Sealed>, JournalError> {
    if batch_ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut batches = recorded(&mut *transaction, batch_ids).await?;
    batches.retain(|batch| batch.leaf.is_none() && !batch.has_open_part);
    let sealed = batches.iter().map(|batch| {
        Ok(Sealed { batch_id: batch.batch_id, parent_id: batch.parent_id, leaf: batch.made()? })
    });
    let sealed: Vec<Sealed> = sealed.collect::<Result<_, sqlx::Error>>()?;
    let ids: Vec<i64> = sealed.iter().map(|sealed| sealed.batch_id).collect();
    let leaves: Vec<Vec<u8>> = sealed.iter().map(|sealed| sealed.leaf.to_vec()).collect();
    sqlx::query!(
        "update elven_sync.sync_batches b set leaf = l.leaf
           from unnest($1::bigint[], $2::bytea[]) l (batch_id, leaf) where b.batch_id = l.batch_id",
        &ids,
        &leaves
    )
    .execute(&mut *transaction)
    .await?;
    Ok(sealed)
}

/// Gives batches their leaves whose last part has got one, and so on up to the batches that are no parts.
pub(super) async fn seal_parents(
    transaction: &mut Transaction,
    parent_ids: impl Iterator<Item = i64>,
) -> Result<Vec<Sealed>, JournalError> {
    let mut all = Vec::new();
    let mut parent_ids: BTreeSet<i64> = parent_ids.collect();
    while !parent_ids.is_empty() {
        let ids: Vec<i64> = parent_ids.into_iter().collect();
        let sealed = seal(transaction, &ids).await?;
        parent_ids = sealed.iter().filter_map(|sealed| sealed.parent_id).collect();
        all.extend(sealed);
    }
    Ok(all)
}

/// The work of which the rest is given up.
#[derive(Clone, Copy, Debug)]
pub(super) enum GivenUp<'a> {
    /// A pass, by a rewind.
    Pass(i64),
    /// The lane of an entity of a backfill, by a person who cancelled it.
    Backfill(i64, &'a str),
    /// What the retries of an entity have left after this batch, when a slice ends.
    Retries(&'a str, i64),
}

/// Gives all batches of work that is given up their leaves, as they are now: nothing is recorded for them any more.
pub(super) async fn seal_rest(transaction: &mut Transaction, work: GivenUp<'_>) -> Result<(), JournalError> {
    loop {
        let ids = match work {
            GivenUp::Pass(pass_id) => {
                sqlx::query_scalar!(
                    "select batch_id from elven_sync.sync_batches b
                      where pass_id = $1 and leaf is null
                        and not exists (select from elven_sync.sync_batches part
                                         where part.parent_id = b.batch_id and part.leaf is null)
                      order by batch_id limit $2",
                    pass_id,
                    BATCHES_MAX
                )
                .fetch_all(&mut *transaction)
                .await?
            }
            GivenUp::Backfill(backfill_id, entity_id) => {
                sqlx::query_scalar!(
                    "select batch_id from elven_sync.sync_batches b
                      where backfill_id = $1 and entity_id = $2 and leaf is null
                        and not exists (select from elven_sync.sync_batches part
                                         where part.parent_id = b.batch_id and part.leaf is null)
                      order by batch_id limit $3",
                    backfill_id,
                    entity_id,
                    BATCHES_MAX
                )
                .fetch_all(&mut *transaction)
                .await?
            }
            GivenUp::Retries(entity_id, after) => {
                sqlx::query_scalar!(
                    "select batch_id from elven_sync.sync_batches b
                      where entity_id = $1 and pass_id is null and backfill_id is null and batch_id > $2
                        and leaf is null
                        and not exists (select from elven_sync.sync_batches part
                                         where part.parent_id = b.batch_id and part.leaf is null)
                      order by batch_id limit $3",
                    entity_id,
                    after,
                    BATCHES_MAX
                )
                .fetch_all(&mut *transaction)
                .await?
            }
        };
        if ids.is_empty() {
            return Ok(());
        }
        seal(transaction, &ids).await?;
    }
}
