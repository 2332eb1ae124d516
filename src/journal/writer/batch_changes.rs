//! Changes of batches that are recorded already.

use super::super::batch_record::rewrite;
use super::super::cursor_columns::{at, xid};
use super::super::{JournalError, WorkKind};
use super::write::{Emptying, Repetition, WriteRequest};
use crate::database::Transaction;

/// Records that a recorded batch is about to be sent again. Its rows are written again, since they may have changed
/// meanwhile; then its hash changes, too.
pub(super) async fn announce_again(
    transaction: &mut Transaction,
    request: &WriteRequest,
    Repetition { batch_id, record, lost }: &Repetition,
) -> Result<(), JournalError> {
    let done = sqlx::query!(
        "update elven_sync.sync_batches
                    set status = 'sending', run_id = $2, attempts = attempts + 1, ambiguous = ambiguous or $3,
                        finished_at = null
                  where batch_id = $1 and entity_id = $4 and last_xid is not distinct from $5::text::xid8
                    and last_at is not distinct from $7 and last_id = $6",
        batch_id,
        request.run_id,
        lost,
        request.entity_id(),
        xid(&record.last),
        record.last.id,
        at(&record.last)
    )
    .execute(&mut *transaction)
    .await?;
    rewrite(transaction, *batch_id, record).await?;
    found_one(done.rows_affected())
}

/// Records a batch whose rows are gone or have newer versions: nothing of it is left to send.
pub(super) async fn empty(
    transaction: &mut Transaction,
    request: &WriteRequest,
    emptying: &Emptying,
) -> Result<(), JournalError> {
    let done = sqlx::query!(
        r#"update elven_sync.sync_batches
              set status = 'accepted', ambiguous = ambiguous or status = 'unknown', row_ids = '\x01', rows_read = 0,
                  row_count = 0, rows_rejected = 0, rows_superseded = 0, rejected_ids = null, rejected_kinds = null,
                  finished_at = clock_timestamp(),
                  error = 'its rows were changed or deleted before its outcome was known'
            where batch_id = $1 and entity_id = $2"#,
        emptying.batch_id,
        request.entity_id()
    )
    .execute(transaction)
    .await?;
    found_one(done.rows_affected())
}

/// Records that the records of a batch are set aside. `held`: the number of these rows, if those that the records
/// supersede are among them.
pub(super) async fn set_aside(
    transaction: &mut Transaction,
    batch_id: i64,
    rejected_ids: &[u8],
    rejected_kinds: Option<&str>,
    held: Option<i32>,
) -> Result<(), JournalError> {
    sqlx::query!(
        "update elven_sync.sync_batches
            set row_count = 0, rows_rejected = coalesce($3, rows_rejected + row_count), rejected_ids = $2,
                rejected_kinds = $4, rows_superseded = coalesce(rows_read - $3, rows_superseded)
          where batch_id = $1",
        batch_id,
        rejected_ids,
        held,
        rejected_kinds
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// Records that batches which were being sent when their worker stopped have an unknown outcome. Parts of a retry that
/// were not sent yet are not sent any more.
pub(super) async fn recover(
    transaction: &mut Transaction,
    request: &WriteRequest,
) -> Result<(), JournalError> {
    let work = request.pass.work;
    sqlx::query!(
        "update elven_sync.sync_batches b set status = case when b.attempts > 0 then 'unknown' else 'rejected' end
          where b.entity_id = $1 and elven_sync.is_open(b.status, b.row_count)
            and (b.pass_id = $2 or b.backfill_id = $3 or ($4 and b.pass_id is null and b.backfill_id is null))
            and b.status = 'sending' and (b.attempts > 0 or $4) and b.row_count > 0",
        request.entity_id(),
        work.pass_id(),
        work.backfill_id(),
        work == WorkKind::Retry
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// Records that a run ends with the outcome of a batch unknown.
pub(super) async fn count_unknown_run(
    transaction: &mut Transaction,
    request: &WriteRequest,
    batch_id: i64,
) -> Result<(), JournalError> {
    sqlx::query!(
        "update elven_sync.sync_batches set unknown_runs = unknown_runs + 1
          where batch_id = $1 and entity_id = $2 and status = 'unknown'",
        batch_id,
        request.entity_id()
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// A failover that loses the tail may have taken the batch along.
fn found_one(rows_affected: u64) -> Result<(), JournalError> {
    if rows_affected == 1 { Ok(()) } else { Err(JournalError::LeaseLost) }
}
