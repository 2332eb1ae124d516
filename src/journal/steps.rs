//! The steps that the writes of a batch are made of, each a statement of the caller's transaction.

use chrono::{DateTime, Utc};

use super::batches::{Advance, Doing, Settlement};
use super::{Counters, Course, Kind, Lease, OpenPass, Problem};
use crate::batch::{Batch, InvalidRow};
use crate::database::Transaction;
use crate::ledger::instant;
use crate::watermark::Cursor;

/// `change_xid` of a place, as its column has it. NULL in a backfill.
pub(super) fn xid(cursor: &Cursor) -> Option<String> {
    cursor.xid().map(|xid| xid.to_string())
}

/// `captured_at` of a place, as its column has it. NULL in a pass.
pub(super) fn at(cursor: &Cursor) -> Option<DateTime<Utc>> {
    cursor.captured_at_us().map(instant)
}

/// Moves the cursor over what is done: by the lease and in the pass or backfill that are named, and from where
/// it stands. Without an advance, locks the lane and checks that both are ours. Returns how many lanes that was, 1 or 0.
pub(super) async fn move_lane(
    transaction: &mut Transaction,
    pass: &OpenPass,
    advance: Option<&Advance>,
    counted: &Counters,
) -> Result<u64, sqlx::Error> {
    let before = advance.and_then(|advance| advance.before.as_ref());
    let last = advance.map(|advance| &advance.last);
    let pass_id = match pass.course {
        Course::Pass(pass_id) => pass_id,
        Course::Backfill(backfill_id) => {
            let of_backfill = (&pass.lease, backfill_id);
            return move_backfill_lane(transaction, of_backfill, before, last, counted).await;
        }
    };
    let done = sqlx::query!(
        "update elven_sync.sync_state
            set cursor_xid = coalesce($5::text::xid8, cursor_xid), cursor_id = coalesce($6, cursor_id)
          where entity_id = $1 and lease_epoch = $2 and lease_owner = $7 and pass_id = $8
            and ($5::text is null
                 or (cursor_xid is not distinct from $3::text::xid8 and cursor_id is not distinct from $4))",
        pass.lease.entity_id,
        pass.lease.epoch,
        before.and_then(xid),
        before.map(|cursor| cursor.id.as_str()),
        last.and_then(xid),
        last.map(|cursor| cursor.id.as_str()),
        pass.lease.owner,
        pass_id
    )
    .execute(&mut *transaction)
    .await?;
    Ok(done.rows_affected())
}

async fn move_backfill_lane(
    transaction: &mut Transaction,
    (lease, backfill_id): (&Lease, i64),
    before: Option<&Cursor>,
    last: Option<&Cursor>,
    counted: &Counters,
) -> Result<u64, sqlx::Error> {
    // Held until the transaction ends: nobody else writes the lane of a backfill meanwhile.
    let held = sqlx::query_scalar!(
        r#"select true as "held!" from elven_sync.sync_state
            where entity_id = $1 and lease_epoch = $2 and lease_owner = $3 and lease_kind = 'backfill' for update"#,
        lease.entity_id,
        lease.epoch,
        lease.owner
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if held.is_none() {
        return Ok(0);
    }
    let done = sqlx::query!(
        "update elven_sync.sync_backfill_lanes
            set cursor_at = coalesce($5, cursor_at), cursor_id = coalesce($6, cursor_id), rows_read = rows_read + $7,
                rows_uploaded = rows_uploaded + $8, rows_rejected = rows_rejected + $9,
                rows_superseded = rows_superseded + $10
          where backfill_id = $1 and entity_id = $2 and finished_at is null
            and ($5::timestamptz is null
                 or (cursor_at is not distinct from $3 and cursor_id is not distinct from $4))",
        backfill_id,
        lease.entity_id,
        before.and_then(at),
        before.map(|cursor| cursor.id.as_str()),
        last.and_then(at),
        last.map(|cursor| cursor.id.as_str()),
        counted.rows_read,
        counted.rows_uploaded,
        counted.rows_rejected,
        counted.rows_superseded
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

/// Counts in the run's row, and then in that of a backfill. The last statements before the commit: all that a worker
/// writes of batches writes these rows.
pub(super) async fn count_in(
    transaction: &mut Transaction,
    doing: Doing<'_>,
    more: &Counters,
) -> Result<(), sqlx::Error> {
    count_in_run(transaction, doing.run_id, more).await?;
    if let Course::Backfill(backfill_id) = doing.pass.course {
        count_in_backfill(transaction, backfill_id, more).await?;
    }
    Ok(())
}

/// Counts in the row of a backfill: behind all else, since two of its lanes may be at it.
pub(super) async fn count_in_backfill(
    transaction: &mut Transaction,
    backfill_id: i64,
    more: &Counters,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update elven_sync.sync_backfills
            set rows_read = rows_read + $2, rows_uploaded = rows_uploaded + $3, rows_rejected = rows_rejected + $4,
                rows_superseded = rows_superseded + $5
          where backfill_id = $1",
        backfill_id,
        more.rows_read,
        more.rows_uploaded,
        more.rows_rejected,
        more.rows_superseded
    )
    .execute(&mut *transaction)
    .await?;
    Ok(())
}

/// Counts in the run's row.
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

/// Checks, and holds until the transaction ends, that the lease is ours and, if one is named, the pass open, or the
/// lease a backfill's. Returns how many lanes that was, 1 or 0.
///
/// A lease that ran out and that nobody took, because the database was away or the worker stood still, is given
/// its time again: what is sent after this check is sent under a lease, and whoever takes over waits from then.
pub(super) async fn hold(
    transaction: &mut Transaction,
    lease: &Lease,
    course: Option<Course>,
    lease_seconds: f64,
) -> Result<u64, sqlx::Error> {
    let held = sqlx::query_scalar!(
        r#"select lease_expires_at > clock_timestamp() as "is_alive!" from elven_sync.sync_state
            where entity_id = $1 and lease_epoch = $2 and lease_owner = $3 and ($4::bigint is null or pass_id = $4)
              and (not $5 or lease_kind = 'backfill') for update"#,
        lease.entity_id,
        lease.epoch,
        lease.owner,
        course.and_then(Course::pass_id),
        course.and_then(Course::backfill_id).is_some()
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
        message: format!(
            "{}; hint: correct the row in the ledger table, and the next run uploads it; after a correction in a view or \
             in a table that it joins, `elven-sync errors retry`",
            row.reason
        ),
        record: Some(row.record.clone()),
    }
}

/// A batch has at most 1000 records of bounded columns; a count of it fits into an integer.
pub(super) fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
