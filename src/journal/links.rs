//! Links of the chain of an entity: each event that changes a watermark, or ends other work, adds one.

use super::lease_check::hold;
use super::leaves::{GivenUp, seal_rest};
use super::{Journal, JournalError, Lease};
use crate::database::Transaction;

/// The chain that no entity has: that of what people did.
pub const ACTIONS: &str = "*";

/// Adds the link of an event that is recorded in the same transaction.
pub(super) async fn add_link(
    transaction: &mut Transaction,
    entity_id: &str,
    kind: &str,
    of: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query_scalar!("select elven_sync.link_to($1, $2, $3)", entity_id, kind, of)
        .fetch_optional(transaction)
        .await?;
    Ok(())
}

/// Closes the lanes of a cancelled backfill that are unfinished, and adds a link for each: nothing is recorded for them any
/// more.
pub(super) async fn close_cancelled_lanes(
    transaction: &mut Transaction,
    backfill_id: i64,
) -> Result<(), JournalError> {
    let entity_ids = sqlx::query_scalar!(
        "select l.entity_id from elven_sync.sync_backfill_lanes l join elven_sync.sync_state s using (entity_id)
          where l.backfill_id = $1 and l.finished_at is null and not l.closed order by l.entity_id for update of s",
        backfill_id
    )
    .fetch_all(&mut *transaction)
    .await?;
    for entity_id in &entity_ids {
        seal_rest(transaction, GivenUp::Backfill(backfill_id, entity_id)).await?;
        add_link(transaction, entity_id, "backfill_cancel", backfill_id).await?;
    }
    sqlx::query!(
        "update elven_sync.sync_backfill_lanes set closed = true, running = null
          where backfill_id = $1 and entity_id = any ($2)",
        backfill_id,
        &entity_ids
    )
    .execute(transaction)
    .await?;
    Ok(())
}

impl Journal {
    /// Adds the link of a slice of a retry that ends, under its lease. It covers all batches of retries that no link covers
    /// yet, also those of slices whose worker died. Those that are open get their leaves as they are: a later slice sends
    /// their rows in new batches.
    pub async fn end_retry_slice(&self, lease: &Lease) -> Result<(), JournalError> {
        let end = || async {
            let mut transaction = self.database.begin().await?;
            if hold(&mut transaction, lease, self.lease_seconds()).await? == 0 {
                transaction.rollback().await?;
                return Err(JournalError::LeaseLost);
            }
            let range = sqlx::query!(
                r#"with linked (ref) as (select coalesce(max(ref), 0) from elven_sync.sync_links
                                          where entity_id = $1 and kind = 'retry')
                   select linked.ref as "after!", max(b.batch_id) as last
                     from linked left join elven_sync.sync_batches b
                       on b.entity_id = $1 and b.pass_id is null and b.backfill_id is null and b.batch_id > linked.ref
                    group by linked.ref"#,
                lease.entity_id
            )
            .fetch_one(&mut transaction)
            .await?;
            let Some(last) = range.last else {
                transaction.rollback().await?;
                return Ok(());
            };
            seal_rest(&mut transaction, GivenUp::Retries(&lease.entity_id, range.after)).await?;
            add_link(&mut transaction, &lease.entity_id, "retry", last).await?;
            transaction.commit().await?;
            Ok(())
        };
        self.database.retry(end).await
    }

    /// Adds a first link for the entities whose journal is older than the chain. It commits to their newest watermark
    /// change; what is before it has no digests. An entity that another session has locked is adopted by a later run.
    pub async fn adopt(&self) -> Result<(), JournalError> {
        let is_old = || {
            sqlx::query_scalar!(
                r#"select not exists (select from elven_sync.sync_prints) and exists (
                              select from elven_sync.sync_state where links = 0 and settled is not null) as "is_old!""#
            )
            .fetch_one(&self.database)
        };
        if !self.database.retry(is_old).await? {
            return Ok(());
        }
        let adopt = || async {
            let mut transaction = self.database.begin().await?;
            adopt_in(&mut transaction).await?;
            transaction.commit().await?;
            Ok(())
        };
        self.database.retry(adopt).await
    }
}

/// Does so in a transaction. A print does it, too, for the entities that were locked.
pub(super) async fn adopt_in(transaction: &mut Transaction) -> Result<(), sqlx::Error> {
    let adopted = sqlx::query!(
        "select s.entity_id, newest.pass_id from elven_sync.sync_state s
                  cross join lateral (select p.pass_id from elven_sync.sync_passes p
                                       where p.entity_id between s.entity_id and s.entity_id
                                         and p.finished_at is not null
                                       order by p.entity_id desc, p.pass_id desc limit 1) newest
                  where s.links = 0 and s.settled is not null
                    and exists (select from elven_sync.seals(array[s.entity_id]) where seal = 'whole')
                  order by s.entity_id for update of s skip locked"
    )
    .fetch_all(&mut *transaction)
    .await?;
    for entity in &adopted {
        add_link(&mut *transaction, &entity.entity_id, "adopted", entity.pass_id).await?;
    }
    Ok(())
}
