//! Counting in the rows of runs and backfills.

use super::Counters;
use crate::database::Transaction;

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
