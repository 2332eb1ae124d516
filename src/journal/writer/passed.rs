//! The batches that a cursor passes.

use super::super::JournalError;
use super::write::WriteRequest;
use crate::database::Transaction;

/// Checks that the other batches which the cursors of these requests pass have recorded answers.
///
/// # Errors
/// One of them has none: a failover has lost it, while the lease and the batch survived.
pub(super) async fn check_passed(
    transaction: &mut Transaction,
    requests: impl Iterator<Item = &WriteRequest>,
) -> Result<(), JournalError> {
    let passed: Vec<i64> = requests
        .filter_map(WriteRequest::advance)
        .flat_map(|advance| advance.passed.iter().copied())
        .collect();
    if passed.is_empty() {
        return Ok(());
    }
    let answered = sqlx::query_scalar!(
        r#"select count(*) as "count!" from elven_sync.sync_batches
            where batch_id = any ($1) and not elven_sync.is_open(status, row_count)"#,
        &passed
    )
    .fetch_one(transaction)
    .await?;
    if usize::try_from(answered) == Ok(passed.len()) { Ok(()) } else { Err(JournalError::LeaseLost) }
}
