//! The check of a lease in a transaction that writes under it.

use super::{JournalError, Lease};
use crate::database::Transaction;

/// Locks the lane of a lease until the transaction ends, if this worker still has the lease. Returns the number of
/// lanes that were locked: 1 or 0.
///
/// A lease that expired and that no other worker took is renewed: the database may have been away, or the worker
/// frozen. So requests after this check are sent under a lease, and a takeover waits from then.
pub(super) async fn hold(
    transaction: &mut Transaction,
    lease: &Lease,
    lease_seconds: f64,
) -> Result<u64, sqlx::Error> {
    let held = sqlx::query_scalar!(
        r#"select lease_expires_at > clock_timestamp() as "is_alive!" from elven_sync.sync_state
            where entity_id = $1 and lease_epoch = $2 and lease_owner = $3 for update"#,
        lease.entity_id,
        lease.epoch,
        lease.owner
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

/// Commits if the fenced statement changed its row. Otherwise rolls the transaction back: the lease is lost.
pub(super) async fn commit_if_held(transaction: Transaction, rows_affected: u64) -> Result<(), JournalError> {
    if rows_affected == 1 {
        transaction.commit().await?;
        Ok(())
    } else {
        transaction.rollback().await?;
        Err(JournalError::LeaseLost)
    }
}
