//! The steps that the writes of a batch are made of, each a statement of the caller's transaction.

use super::batches::{Advance, Settlement};
use super::{Counters, Kind, Lease, OpenPass, Problem};
use crate::batch::{Batch, InvalidRow};
use crate::database::Transaction;

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
#[derive(Clone, Copy)]
pub(super) struct Done<'a> {
    pub uploaded: usize,
    pub rejected: usize,
    pub of: Option<&'a Batch>,
}

impl Counters {
    /// An answer to a batch, and what became of its rows.
    pub(super) fn of(batch: &Batch, settlement: Settlement, done: Done<'_>) -> Self {
        let large = |number: usize| i64::from(count(number));
        Self {
            rows_read: large(done.of.map_or(0, |batch| batch.rows.len())),
            rows_uploaded: large(done.uploaded),
            rows_rejected: large(done.rejected),
            rows_superseded: large(done.of.map_or(0, |batch| batch.superseded)),
            requests: i64::from(settlement.sent),
            retries: i64::from(settlement.sent && settlement.repeated),
            bytes_sent: if settlement.sent { large(batch.body.len()) } else { 0 },
            rows_beyond_double: if done.uploaded > 0 { large(batch.beyond_double) } else { 0 },
        }
    }
}

/// Counts in the run's row. The last statement before the commit: all that a worker writes of batches writes this
/// row.
pub(super) async fn count_in_run(
    transaction: &mut Transaction,
    run_id: i64,
    more: &Counters,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update elven_sync.sync_runs
            set rows_read = rows_read + $2, rows_uploaded = rows_uploaded + $3,
                rows_rejected = rows_rejected + $4, rows_superseded = rows_superseded + $5,
                requests = requests + $6, retries = retries + $7, bytes_sent = bytes_sent + $8,
                rows_beyond_double = rows_beyond_double + $9
          where run_id = $1",
        run_id,
        more.rows_read,
        more.rows_uploaded,
        more.rows_rejected,
        more.rows_superseded,
        more.requests,
        more.retries,
        more.bytes_sent,
        more.rows_beyond_double
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

/// The upload of newer versions of rows resolves the errors of the older ones.
pub(super) async fn resolve_newer(
    transaction: &mut Transaction,
    entity_id: &str,
    batch_id: i64,
    ids: &[String],
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update elven_sync.sync_errors e
            set resolved_at = clock_timestamp(), resolution = 'a newer version of the row was uploaded'
          where e.entity_id = $1 and e.ledger_id = any ($3) and e.resolved_at is null and e.batch_id is distinct from $2",
        entity_id,
        batch_id,
        ids
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
