//! The answers that a write relies on, and the state of the batches that it finishes.

use std::collections::{BTreeMap, BTreeSet};

use super::super::JournalError;
use super::write::WriteRequest;
use crate::database::Transaction;

/// What is recorded of a batch before its final answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before {
    /// The batch of which it is a part.
    pub parent_id: Option<i64>,
    /// The number of its attempts, with the one that is answered.
    pub attempts: i32,
    /// An earlier attempt had an unknown outcome.
    pub ambiguous: bool,
    /// The outcome of the last attempt was unknown.
    pub is_unknown: bool,
}

/// Checks that the answers which the lanes of these requests have recorded last are still recorded. Returns the state of
/// the batches that the requests finish.
///
/// # Errors
/// One of the answers is not: a failover has lost it, while the lease and the batch survived.
pub(super) async fn check_answers(
    transaction: &mut Transaction,
    requests: &[WriteRequest],
) -> Result<BTreeMap<i64, Before>, JournalError> {
    let relied_on: BTreeSet<i64> = requests.iter().flat_map(WriteRequest::relies_on).collect();
    let finished = requests.iter().filter_map(WriteRequest::finishes);
    let ids: BTreeSet<i64> = relied_on.iter().copied().chain(finished).collect();
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let ids: Vec<i64> = ids.into_iter().collect();
    let rows = sqlx::query!(
        r#"select batch_id, parent_id, attempts, ambiguous, status = 'unknown' as "is_unknown!",
                  not elven_sync.is_open(status, row_count) as "is_answered!"
             from elven_sync.sync_batches where batch_id = any ($1)"#,
        &ids
    )
    .fetch_all(transaction)
    .await?;
    let answered = rows.iter().filter(|row| row.is_answered && relied_on.contains(&row.batch_id)).count();
    if answered != relied_on.len() {
        return Err(JournalError::LeaseLost);
    }
    let before = rows.into_iter().map(|row| {
        let before = Before {
            parent_id: row.parent_id,
            attempts: row.attempts,
            ambiguous: row.ambiguous,
            is_unknown: row.is_unknown,
        };
        (row.batch_id, before)
    });
    Ok(before.collect())
}
