//! Folds consecutive pruned passes into one.

use super::{PruneError, Pruner, ROWS_MAX, ROWS_PER_TRANSACTION, finish};
use crate::database::Transaction;
use crate::journal::JournalError;

impl Pruner<'_> {
    /// Folds consecutive pruned passes among the next changes of the watermark from `from` on. Returns where to
    /// continue.
    pub async fn fold(&self, from: i64) -> Result<Option<i64>, PruneError> {
        let fold = || async {
            let Some(mut transaction) = self.locked().await? else { return Err(PruneError::Busy) };
            let links = sqlx::query_as!(
                Link,
                r#"select pass_id, settled::text, target::text, kind = 'pruned' and not exists (
                              select from elven_sync.sync_batches b where b.pass_id = p.pass_id) as "is_empty!"
                     from elven_sync.sync_passes p where entity_id = $1 and pass_id >= $2 order by pass_id limit $3"#,
                self.entity_id,
                from,
                ROWS_MAX
            )
            .fetch_all(&mut transaction)
            .await?;
            let mut folded = 0;
            for group in links.chunk_by(follows) {
                if let [first, .., last] = group {
                    let gone: Vec<i64> = group.iter().map(|link| link.pass_id).collect();
                    folded += fold_into(&mut transaction, last.pass_id, first.pass_id, &gone).await?;
                }
            }
            finish(transaction, folded).await?;
            let is_last = links.len() < ROWS_PER_TRANSACTION;
            Ok(links.last().filter(|_| !is_last).map(|link| link.pass_id))
        };
        self.database.retry(fold).await
    }
}

/// A change of a watermark, as it is folded.
struct Link {
    pass_id: i64,
    settled: Option<String>,
    target: Option<String>,
    /// It is pruned, and its batches are removed.
    is_empty: bool,
}

/// Returns whether two changes can be folded. Changes that do not fit together stay, so that `verify` finds them.
fn follows(one: &Link, next: &Link) -> bool {
    one.is_empty && next.is_empty && one.target == next.settled
}

/// Sets the start of the last pass of a group to the start of the first, and removes the others.
async fn fold_into(
    transaction: &mut Transaction,
    last: i64,
    first: i64,
    group: &[i64],
) -> Result<u64, JournalError> {
    sqlx::query!(
        "update elven_sync.sync_passes l
            set settled = f.settled, started_at = f.started_at, written_by = pg_current_xact_id()
           from (select settled, started_at from elven_sync.sync_passes where pass_id = $2) f
          where l.pass_id = $1",
        last,
        first
    )
    .execute(&mut *transaction)
    .await?;
    let gone = sqlx::query!(
        "delete from elven_sync.sync_passes where pass_id = any ($1) and pass_id <> $2",
        group,
        last
    )
    .execute(transaction)
    .await?;
    Ok(gone.rows_affected())
}
