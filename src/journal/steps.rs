//! The steps that the writes of a batch are made of, each a statement of the caller's transaction.

use super::batches::{Advance, Doing, Settlement};
use super::{Kind, Lease, OpenPass, Problem};
use crate::batch::{Batch, InvalidRow};
use crate::database::Transaction;

/// Where a batch belongs.
pub(super) struct Place<'a> {
    pub run: i64,
    pub pass: Option<i64>,
    pub entity: &'a str,
    pub parent: Option<i64>,
}

impl<'a> Doing<'a> {
    pub(super) fn place(self, parent_id: Option<i64>) -> Place<'a> {
        let Self { pass, run_id } = self;
        Place { run: run_id, pass: Some(pass.pass_id), entity: &pass.lease.entity_id, parent: parent_id }
    }
}

/// Inserts a batch that is about to be sent, or a part that waits for its turn.
pub(super) async fn insert(
    transaction: &mut Transaction,
    place: Place<'_>,
    batch: &Batch,
    attempts: i32,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        "insert into elven_sync.sync_batches
                (run_id, pass_id, entity_id, before_xid, before_id, last_xid, last_id, row_ids, rows_read,
                 row_count, rows_rejected, rows_superseded, body_bytes, body_sha256, parent_id, attempts,
                 rows_beyond_double)
         values ($1, $2, $3, $4::text::xid8, $5, $6::text::xid8, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
      returning batch_id",
        place.run,
        place.pass,
        place.entity,
        batch.before.as_ref().map(|cursor| cursor.xid.to_string()),
        batch.before.as_ref().map(|cursor| cursor.id.as_str()),
        batch.last.xid.to_string(),
        batch.last.id,
        batch.row_ids,
        count(batch.rows.len()),
        count(batch.records.len()),
        count(batch.invalid.len()),
        count(batch.superseded),
        count(batch.body.len()),
        batch.body_sha256,
        place.parent,
        attempts,
        count(batch.beyond_double)
    )
    .fetch_one(&mut *transaction)
    .await
}

/// Writes anew what a batch consists of: its rows may have changed since it was recorded.
pub(super) async fn rewrite(
    transaction: &mut Transaction,
    batch_id: i64,
    batch: &Batch,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update elven_sync.sync_batches
            set row_ids = $2, rows_read = $3, row_count = $4, rows_rejected = $5, rows_superseded = $6,
                body_bytes = $7, body_sha256 = $8, rows_beyond_double = $9
          where batch_id = $1",
        batch_id,
        batch.row_ids,
        count(batch.rows.len()),
        count(batch.records.len()),
        count(batch.invalid.len()),
        count(batch.superseded),
        count(batch.body.len()),
        batch.body_sha256,
        count(batch.beyond_double)
    )
    .execute(&mut *transaction)
    .await?;
    Ok(())
}

/// Records the answer in a batch. Returns how many batches that was, 1 or 0: a failover that loses the tail takes
/// announced batches along, and gives their numbers to others.
pub(super) async fn finish(
    transaction: &mut Transaction,
    entity_id: &str,
    (batch_id, batch): (i64, &Batch),
    status: &str,
    settlement: Settlement,
    error: Option<&str>,
) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "update elven_sync.sync_batches
            set status = case when $2 = 'rejected' and ambiguous and row_count > 0 then 'unknown' else $2 end,
                http_status = $3, duration_ms = $4, error = $5, finished_at = clock_timestamp()
          where batch_id = $1 and entity_id = $6 and last_xid = $7::text::xid8 and last_id = $8 and body_sha256 = $9",
        batch_id,
        status,
        settlement.http_status,
        settlement.duration_ms,
        error,
        entity_id,
        batch.last.xid.to_string(),
        batch.last.id,
        batch.body_sha256
    )
    .execute(&mut *transaction)
    .await?;
    Ok(done.rows_affected())
}

/// Moves the cursor over what is done: by the lease and in the pass that are named, and from where it
/// stands. Without an advance, locks the lane and checks that lease and pass are ours. Returns how many
/// lanes that was, 1 or 0.
pub(super) async fn move_lane(
    transaction: &mut Transaction,
    pass: &OpenPass,
    advance: Option<&Advance>,
    records: i64,
) -> Result<u64, sqlx::Error> {
    let before = advance.and_then(|advance| advance.before.as_ref());
    let last = advance.map(|advance| &advance.last);
    let done = sqlx::query!(
        "update elven_sync.sync_state
            set cursor_xid = coalesce($5::text::xid8, cursor_xid), cursor_id = coalesce($6, cursor_id),
                rows_uploaded = rows_uploaded + $7
          where entity_id = $1 and lease_epoch = $2 and lease_owner = $8 and pass_id = $9
            and ($5::text is null
                 or (cursor_xid is not distinct from $3::text::xid8 and cursor_id is not distinct from $4))",
        pass.lease.entity_id,
        pass.lease.epoch,
        before.map(|cursor| cursor.xid.to_string()),
        before.map(|cursor| cursor.id.as_str()),
        last.map(|cursor| cursor.xid.to_string()),
        last.map(|cursor| cursor.id.as_str()),
        records,
        pass.lease.owner,
        pass.pass_id
    )
    .execute(&mut *transaction)
    .await?;
    Ok(done.rows_affected())
}

/// What became of the rows of a batch that is done. `of`: `None` when it is not.
pub(super) struct Done<'a> {
    pub uploaded: usize,
    pub rejected: usize,
    pub of: Option<&'a Batch>,
}

/// Counts a request, and the rows of a batch that is done, in the run's row.
///
/// A statement of its own and the last before the commit: all lanes write this row, and a join against
/// a statement that writes would lose the update when PostgreSQL has to look at the row again.
pub(super) async fn count_in_run(
    transaction: &mut Transaction,
    run_id: i64,
    settlement: Settlement,
    batch: &Batch,
    done: Done<'_>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update elven_sync.sync_runs
            set rows_read = rows_read + $2, rows_uploaded = rows_uploaded + $3,
                rows_rejected = rows_rejected + $4, rows_superseded = rows_superseded + $5,
                requests = requests + $6, retries = retries + $7, bytes_sent = bytes_sent + $8,
                rows_beyond_double = rows_beyond_double + $9
          where run_id = $1",
        run_id,
        i64::from(count(done.of.map_or(0, |batch| batch.rows.len()))),
        i64::from(count(done.uploaded)),
        i64::from(count(done.rejected)),
        i64::from(count(done.of.map_or(0, |batch| batch.superseded))),
        i64::from(settlement.sent),
        i64::from(settlement.sent && settlement.repeated),
        if settlement.sent { i64::from(count(batch.body.len())) } else { 0 },
        if done.uploaded > 0 { i64::from(count(batch.beyond_double)) } else { 0 }
    )
    .execute(&mut *transaction)
    .await?;
    Ok(())
}

/// Checks, and holds until the transaction ends, that the lease is ours and, if one is named, the pass open.
/// Returns how many lanes that was, 1 or 0.
///
/// A lease that ran out and that nobody took, because the database was away or the worker stood still, is given
/// its time again: what is sent after this check is sent under a lease, and whoever takes over waits from then.
pub(super) async fn hold(
    transaction: &mut Transaction,
    lease: &Lease,
    pass_id: Option<i64>,
    lease_seconds: f64,
) -> Result<u64, sqlx::Error> {
    let held = sqlx::query_scalar!(
        r#"select lease_expires_at > clock_timestamp() as "is_alive!" from elven_sync.sync_state
            where entity_id = $1 and lease_epoch = $2 and lease_owner = $3 and ($4::bigint is null or pass_id = $4)
              for update"#,
        lease.entity_id,
        lease.epoch,
        lease.owner,
        pass_id
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if held == Some(false) {
        sqlx::query!(
            "update elven_sync.sync_state set lease_expires_at = clock_timestamp() + make_interval(secs => $2)
              where entity_id = $1",
            lease.entity_id,
            lease_seconds
        )
        .execute(&mut *transaction)
        .await?;
    }
    Ok(u64::from(held.is_some()))
}

/// The upload of a newer version of a row resolves the error of an older one.
pub(super) async fn resolve_newer(
    transaction: &mut Transaction,
    entity_id: &str,
    batch_id: i64,
    batch: &Batch,
) -> Result<(), sqlx::Error> {
    let ids: Vec<String> = batch.rows.iter().map(|row| row.id.to_string()).collect();
    sqlx::query!(
        "update elven_sync.sync_errors e
            set resolved_at = clock_timestamp(), resolution = 'a newer version of the row was uploaded'
          where e.entity_id = $1 and e.ledger_id = any ($3) and e.resolved_at is null and e.batch_id is distinct from $2",
        entity_id,
        batch_id,
        &ids
    )
    .execute(&mut *transaction)
    .await?;
    Ok(())
}

pub(crate) fn invalid(batch_id: Option<i64>, row: &InvalidRow) -> Problem {
    Problem {
        kind: Kind::InvalidRow,
        batch_id,
        ledger_id: Some(row.id.to_string()),
        http_status: None,
        api_code: None,
        message: format!("{}; hint: correct the row, and the next run uploads it", row.reason),
        record: Some(row.record.clone()),
    }
}

/// A batch has at most 1000 records of bounded columns; a count of it fits into an integer.
pub(super) fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
