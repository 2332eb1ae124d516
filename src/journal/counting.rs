//! Counting in the rows of runs and backfills.

use super::{Counters, WorkContext, WorkKind};
use crate::database::Transaction;

/// Counts in the run's row, and then in that of a backfill. The last statements before the commit: all that a worker
/// writes of batches writes these rows.
pub(super) async fn count_in(
    transaction: &mut Transaction,
    doing: WorkContext<'_>,
    more: &Counters,
) -> Result<(), sqlx::Error> {
    count_in_run(transaction, doing.run_id, more).await?;
    if let WorkKind::Backfill(backfill_id) = doing.pass.course {
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
