//! The check of a lease in a transaction that writes under it.

use super::{JournalError, Lease, WorkKind};
use crate::database::Transaction;

/// Checks, and holds until the transaction ends, that the lease is ours and, if one is named, the pass open, or the
/// lease a backfill's. Returns how many lanes that was, 1 or 0.
///
/// A lease that ran out and that nobody took, because the database was away or the worker stood still, is given
/// its time again: what is sent after this check is sent under a lease, and whoever takes over waits from then.
pub(super) async fn hold(
    transaction: &mut Transaction,
    lease: &Lease,
    course: Option<WorkKind>,
    lease_seconds: f64,
) -> Result<u64, sqlx::Error> {
    let held = sqlx::query_scalar!(
        r#"select lease_expires_at > clock_timestamp() as "is_alive!" from elven_sync.sync_state
            where entity_id = $1 and lease_epoch = $2 and lease_owner = $3 and ($4::bigint is null or pass_id = $4)
              and (not $5 or lease_kind = 'backfill') for update"#,
        lease.entity_id,
        lease.epoch,
        lease.owner,
        course.and_then(WorkKind::pass_id),
        course.and_then(WorkKind::backfill_id).is_some()
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

/// Commits when the fenced statement found its row, and rolls everything back when it did not.
pub(super) async fn commit_if_held(transaction: Transaction, rows_affected: u64) -> Result<(), JournalError> {
    if rows_affected == 1 {
        transaction.commit().await?;
        Ok(())
    } else {
        transaction.rollback().await?;
        Err(JournalError::LeaseLost)
    }
}
