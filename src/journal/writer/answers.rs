//! The answers that a write relies on.

use std::collections::BTreeSet;

use super::super::JournalError;
use super::write::WriteRequest;
use crate::database::Transaction;

/// Checks that the answers which the lanes of these requests have recorded last are still recorded.
///
/// # Errors
/// One of them is not: a failover has lost it, while the lease and the batch survived.
pub(super) async fn check_answers(
    transaction: &mut Transaction,
    requests: &[WriteRequest],
) -> Result<(), JournalError> {
    let ids: BTreeSet<i64> = requests.iter().flat_map(WriteRequest::relies_on).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let ids: Vec<i64> = ids.into_iter().collect();
    let answered = sqlx::query_scalar!(
        r#"select count(*) as "count!" from elven_sync.sync_batches
            where batch_id = any ($1) and not elven_sync.is_open(status, row_count)"#,
        &ids
    )
    .fetch_one(transaction)
    .await?;
    if usize::try_from(answered) == Ok(ids.len()) { Ok(()) } else { Err(JournalError::LeaseLost) }
}
