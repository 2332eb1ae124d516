//! The steps that the writes of a batch are made of, each a statement of the caller's transaction.

use chrono::{DateTime, Utc};

use super::{Counters, CursorAdvance, Lease, OpenWork, WorkKind};
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
    pass: &OpenWork,
    advance: Option<&CursorAdvance>,
    counted: &Counters,
) -> Result<u64, sqlx::Error> {
    let before = advance.and_then(|advance| advance.before.as_ref());
    let last = advance.map(|advance| &advance.last);
    let pass_id = match pass.course {
        WorkKind::Pass(pass_id) => pass_id,
        WorkKind::Backfill(backfill_id) => {
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
