//! What the journal says was done, for whoever checks it: all in the snapshot of the caller's transaction.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::BatchState;
use super::lane::StateRow;
use super::{JournalError, Lane};
use crate::align::Offsets;
use crate::batch::unpack_ids;
use crate::database::Transaction;
use crate::watermark::{Cursor, Snapshot};

/// A change of an entity's watermark, as `sync_passes` has it.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its number.
    pub pass_id: i64,
    /// `pass`, `rewind`, `rebind`, `from_now` or `pruned`.
    pub kind: String,
    /// The watermark before.
    pub settled: Option<Snapshot>,
    /// The watermark after.
    pub target: Option<Snapshot>,
    /// When it was through.
    pub finished_at: Option<DateTime<Utc>>,
    /// Where it ended. `None`: nowhere, or that was not noted.
    pub last: Option<Cursor>,
}

/// A batch, or a part of one, as it was recorded.
#[derive(Clone, Debug)]
pub struct JournalBatch {
    /// Its number.
    pub batch_id: i64,
    /// The batch that it is a part of.
    pub parent_id: Option<i64>,
    /// Its pass.
    pub pass_id: i64,
    /// Its entity.
    pub entity_id: String,
    /// Where its interval begins.
    pub before: Option<Cursor>,
    /// Where its interval ends.
    pub last: Cursor,
    /// Its rows, packed.
    pub row_ids: Vec<u8>,
    /// Those of them that it set aside, packed.
    pub rejected_ids: Option<Vec<u8>>,
    /// Rows in its list.
    pub rows_read: i32,
    /// Records in its body.
    pub row_count: i32,
    /// Rows set aside.
    pub rows_rejected: i32,
    /// Rows not sent because a newer one was.
    pub rows_superseded: i32,
    /// SHA-256 of its body, in hex.
    pub body_sha256: String,
    /// `sync_batches.status`.
    pub status: String,
    /// What that means. (A batch that waits for its first attempt counts as one that is being sent.)
    pub state: BatchState,
    /// The zone that its body was made with, if that was noted.
    pub timezone: Option<String>,
    /// The rules of the zone that its body was made with, if they were noted.
    pub zone_rules: Option<String>,
    /// The version of the maps that its body was made with.
    pub map_version: Option<i64>,
    /// The version of the import that its body was made for, if that was noted.
    pub api_version: Option<i32>,
    /// The source that its records name.
    pub source_id: Option<String>,
    /// The version of the zone rules of the run that sent it last.
    pub tzdata: String,
}

/// What was pruned of an entity.
#[derive(Clone, Debug, Serialize)]
pub struct Pruned {
    /// Passes.
    pub passes: i64,
    /// Batches.
    pub batches: i64,
    /// Records of theirs that were accepted.
    pub rows_uploaded: i64,
    /// What had ended before this time.
    pub until: DateTime<Utc>,
}

/// All entities that the journal has a state of, or that are registered.
pub async fn entities(transaction: &mut Transaction) -> Result<Vec<String>, JournalError> {
    Ok(sqlx::query_scalar!(
        r#"select entity_id as "entity_id!" from elven_sync.entities
            union select entity_id from elven_sync.sync_state order by 1"#
    )
    .fetch_all(transaction)
    .await?)
}

/// The zone that a registered entity has now.
pub async fn timezone(
    transaction: &mut Transaction,
    entity_id: &str,
) -> Result<Option<String>, JournalError> {
    Ok(sqlx::query_scalar!("select timezone from elven_sync.entities where entity_id = $1", entity_id)
        .fetch_optional(transaction)
        .await?)
}

/// The state of an entity.
pub async fn lane(transaction: &mut Transaction, entity_id: &str) -> Result<Lane, JournalError> {
    let row = sqlx::query_as!(
        StateRow,
        r#"select entity_id, lease_epoch, settled::text, pass_id, target::text, cursor_xid::text, cursor_id,
                  system_identifier, ledger_table, mapping::text,
                  (select seal from elven_sync.seals(array[entity_id])) as seal, clock_timestamp() as "read_at!",
                  null::float8 as not_before_s,
                  null::float8 as fence_s, false as "has_rows_set_aside!", false as "is_opened!"
             from elven_sync.sync_state where entity_id = $1"#,
        entity_id
    )
    .fetch_optional(transaction)
    .await?;
    row.map_or_else(|| Ok(Lane::default()), StateRow::into_lane)
}

/// The changes of an entity's watermark, in order.
pub async fn changes(transaction: &mut Transaction, entity_id: &str) -> Result<Vec<Change>, JournalError> {
    let rows = sqlx::query!(
        "select pass_id, kind, settled::text, target::text, finished_at, last_xid::text, last_id
           from elven_sync.sync_passes where entity_id = $1 order by pass_id",
        entity_id
    )
    .fetch_all(transaction)
    .await?;
    let snapshot = |text: Option<String>| text.map(|text| text.parse::<Snapshot>()).transpose();
    let decode = |problem: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(problem);
    rows.into_iter()
        .map(|row| {
            Ok(Change {
                pass_id: row.pass_id,
                kind: row.kind,
                settled: snapshot(row.settled).map_err(|problem| decode(problem.into()))?,
                target: snapshot(row.target).map_err(|problem| decode(problem.into()))?,
                finished_at: row.finished_at,
                last: Cursor::from_columns(row.last_xid, row.last_id)
                    .map_err(|problem| decode(problem.into()))?,
            })
        })
        .collect()
}

/// The change of an entity's watermark at which a person accepted that other values are sent from then on.
pub async fn values_changed(
    transaction: &mut Transaction,
    entity_id: &str,
) -> Result<Option<i64>, JournalError> {
    Ok(sqlx::query_scalar!(
        "select max((details ->> 'pass_id')::bigint) from elven_sync.sync_actions
          where entity_id = $1 and (details ->> 'values')::boolean",
        entity_id
    )
    .fetch_one(transaction)
    .await?)
}

/// What was pruned of an entity's journal, if something was.
pub async fn pruned(transaction: &mut Transaction, entity_id: &str) -> Result<Option<Pruned>, JournalError> {
    Ok(sqlx::query_as!(
        Pruned,
        "select passes, batches, rows_uploaded, until from elven_sync.sync_pruned where entity_id = $1",
        entity_id
    )
    .fetch_optional(transaction)
    .await?)
}

/// How many whole batches each of these passes has; those that have none are left out.
pub async fn count_roots(
    transaction: &mut Transaction,
    pass_ids: &[i64],
) -> Result<BTreeMap<i64, usize>, JournalError> {
    let rows = sqlx::query!(
        r#"select pass_id as "pass_id!", count(*) as "count!" from elven_sync.sync_batches
            where pass_id = any ($1) and parent_id is null group by pass_id"#,
        pass_ids
    )
    .fetch_all(transaction)
    .await?;
    Ok(rows.into_iter().map(|row| (row.pass_id, usize::try_from(row.count).unwrap_or(usize::MAX))).collect())
}

/// A row of `sync_batches` as it comes.
struct KeptRow {
    batch_id: i64,
    parent_id: Option<i64>,
    pass_id: Option<i64>,
    entity_id: String,
    before_xid: Option<String>,
    before_id: Option<String>,
    last_xid: Option<String>,
    last_id: String,
    row_ids: Vec<u8>,
    rejected_ids: Option<Vec<u8>>,
    rows_read: i32,
    row_count: i32,
    rows_rejected: i32,
    rows_superseded: i32,
    body_sha256: String,
    status: String,
    timezone: Option<String>,
    zone_rules: Option<String>,
    map_version: Option<i64>,
    api_version: Option<i32>,
    source_id: Option<String>,
    tzdata: String,
}

impl KeptRow {
    fn into_kept(self) -> Result<JournalBatch, JournalError> {
        let decode = |problem: std::num::ParseIntError| sqlx::Error::Decode(problem.into());
        let before = Cursor::from_columns(self.before_xid, self.before_id).map_err(decode)?;
        let last = Cursor::from_columns(self.last_xid, Some(self.last_id)).map_err(decode)?;
        Ok(JournalBatch {
            batch_id: self.batch_id,
            parent_id: self.parent_id,
            pass_id: self.pass_id.unwrap_or_default(),
            entity_id: self.entity_id,
            before,
            last: last.ok_or_else(|| sqlx::Error::Decode("a batch without an end".into()))?,
            row_ids: self.row_ids,
            rejected_ids: self.rejected_ids,
            rows_read: self.rows_read,
            row_count: self.row_count,
            rows_rejected: self.rows_rejected,
            rows_superseded: self.rows_superseded,
            body_sha256: self.body_sha256,
            state: BatchState::decode(&self.status, self.row_count, 1)?,
            status: self.status,
            timezone: self.timezone,
            zone_rules: self.zone_rules,
            map_version: self.map_version,
            api_version: self.api_version,
            source_id: self.source_id,
            tzdata: self.tzdata,
        })
    }
}

/// The offsets of a zone by rules that were recorded. `None`: they were not.
pub async fn offsets(
    transaction: &mut Transaction,
    zone: &str,
    rules: &str,
) -> Result<Option<Offsets>, JournalError> {
    super::zone_rules::offsets(transaction, zone, rules).await
}

/// All whole batches of some passes, in order.
pub async fn roots_of_all(
    transaction: &mut Transaction,
    pass_ids: &[i64],
) -> Result<Vec<JournalBatch>, JournalError> {
    let rows = sqlx::query_as!(
        KeptRow,
        r#"select b.batch_id, b.parent_id, b.pass_id, b.entity_id, b.before_xid::text, b.before_id,
                  b.last_xid::text as "last_xid?", b.last_id, b.row_ids, b.rejected_ids, b.rows_read, b.row_count,
                  b.rows_rejected, b.rows_superseded, b.body_sha256, b.status, b.timezone,
                  b.zone_rules, b.map_version, b.api_version, b.source_id,
                  r.tzdata
             from elven_sync.sync_batches b join elven_sync.sync_runs r using (run_id)
            where b.pass_id = any ($1) and b.parent_id is null
            order by b.pass_id, b.batch_id"#,
        pass_ids
    )
    .fetch_all(transaction)
    .await?;
    rows.into_iter().map(KeptRow::into_kept).collect()
}

/// The next whole batches of a pass, in order, behind the one named.
pub async fn roots_of(
    transaction: &mut Transaction,
    pass_id: i64,
    behind: i64,
    batches_max: i64,
) -> Result<Vec<JournalBatch>, JournalError> {
    let rows = sqlx::query_as!(
        KeptRow,
        r#"select b.batch_id, b.parent_id, b.pass_id, b.entity_id, b.before_xid::text, b.before_id,
                  b.last_xid::text as "last_xid?", b.last_id, b.row_ids, b.rejected_ids, b.rows_read, b.row_count,
                  b.rows_rejected, b.rows_superseded, b.body_sha256, b.status, b.timezone,
                  b.zone_rules, b.map_version, b.api_version, b.source_id,
                  r.tzdata
             from elven_sync.sync_batches b join elven_sync.sync_runs r using (run_id)
            where b.pass_id <= $1 and (b.pass_id, b.batch_id) > ($1, $2) and b.parent_id is null
            order by b.pass_id, b.batch_id limit $3"#,
        pass_id,
        behind,
        batches_max
    )
    .fetch_all(transaction)
    .await?;
    rows.into_iter().map(KeptRow::into_kept).collect()
}

/// The parts of batches, and theirs.
pub async fn parts_of(
    transaction: &mut Transaction,
    batch_ids: &[i64],
) -> Result<Vec<JournalBatch>, JournalError> {
    let rows = sqlx::query_as!(
        KeptRow,
        r#"with recursive part (batch_id) as (
               select batch_id from elven_sync.sync_batches where parent_id = any ($1)
               union
               select b.batch_id from elven_sync.sync_batches b join part p on b.parent_id = p.batch_id)
           select b.batch_id, b.parent_id, b.pass_id, b.entity_id, b.before_xid::text, b.before_id,
                  b.last_xid::text as "last_xid?", b.last_id, b.row_ids, b.rejected_ids, b.rows_read, b.row_count,
                  b.rows_rejected, b.rows_superseded, b.body_sha256, b.status, b.timezone,
                  b.zone_rules, b.map_version, b.api_version, b.source_id,
                  r.tzdata
             from part join elven_sync.sync_batches b using (batch_id) join elven_sync.sync_runs r using (run_id)
            order by b.batch_id"#,
        batch_ids
    )
    .fetch_all(transaction)
    .await?;
    rows.into_iter().map(KeptRow::into_kept).collect()
}

/// Those of some rows of an entity that have a row in `sync_errors`, resolved or not, also as rows of these batches that
/// are or were held.
pub async fn with_error(
    transaction: &mut Transaction,
    entity_id: &str,
    ledger_ids: &[String],
    batch_ids: &[i64],
) -> Result<Vec<String>, JournalError> {
    let held = sqlx::query_scalar!(
        r#"select ledger_ids as "ledger_ids!" from elven_sync.sync_errors
            where entity_id = $1 and batch_id = any ($2) and ledger_ids is not null"#,
        entity_id,
        batch_ids
    )
    .fetch_all(&mut *transaction)
    .await?;
    let mut found: Vec<String> = sqlx::query_scalar!(
        r#"select distinct ledger_id as "ledger_id!" from elven_sync.sync_errors
            where entity_id = $1 and ledger_id = any ($2)"#,
        entity_id,
        ledger_ids
    )
    .fetch_all(transaction)
    .await?;
    let held = held.iter().filter_map(|packed| unpack_ids(packed)).flatten();
    found.extend(held.map(|id| id.to_string()));
    Ok(found)
}

/// How many rows of an entity are set aside now.
pub async fn set_aside(transaction: &mut Transaction, entity_id: &str) -> Result<i64, JournalError> {
    Ok(sqlx::query_scalar!(
        r#"select coalesce(sum(coalesce(rows, 1)), 0)::bigint as "count!" from elven_sync.sync_errors
            where entity_id = $1 and resolved_at is null and (ledger_id is not null or ledger_ids is not null)"#,
        entity_id
    )
    .fetch_one(transaction)
    .await?)
}
