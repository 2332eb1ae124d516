//! Removes batches, passes that were given up, and errors.

use std::collections::HashSet;
use std::sync::Arc;

use super::{PruneError, Pruned, Pruner, ROWS_MAX, finish};
use crate::batch::unpack_ids;
use crate::database::Transaction;
use crate::journal::JournalError;

/// The position in the errors of an entity: each is read once.
#[derive(Debug, Default)]
pub struct PrunableErrors {
    /// The last error that was read.
    behind: i64,
    /// The rows that the remaining batches set aside. `None`: not read yet.
    kept: Option<Arc<HashSet<String>>>,
}

impl Pruner<'_> {
    /// Declares the links folded that cover what is removed after this, and all links before them: nothing can be proven
    /// about them any more. Removes those before the last one, except links that a print names.
    pub async fn fold_links(&self, through: &[i64], loose: &[i64]) -> Result<(), PruneError> {
        let fold = || async {
            let Some(mut transaction) = self.locked().await? else { return Err(PruneError::Busy) };
            let last = sqlx::query_scalar!(
                "with gone as (select batch_id, backfill_id from elven_sync.sync_batches where batch_id = any ($3))
                 select max(l.link) from elven_sync.sync_links l
                  where l.entity_id = $1 and (
                        (l.kind in ('adopted', 'pass', 'rewind', 'rebind', 'from_now') and l.ref = any ($2))
                        or (l.kind = 'rebind' and exists (
                            select from elven_sync.sync_passes p
                             where p.pass_id = l.ref and p.finished_at < $4
                               and p.pass_id < (select max(pass_id) from elven_sync.sync_passes where entity_id = $1)))
                        or (l.kind = 'rewind' and exists (
                            select from elven_sync.sync_passes p
                             where p.pass_id = l.ref
                               and p.given_up in (select elven_sync.passes_given_up($1, $4))))
                        or (l.kind in ('backfill', 'backfill_cancel')
                            and l.ref in (select backfill_id from gone where backfill_id is not null))
                        or (l.kind = 'retry' and l.link = (
                            select min(r.link) from elven_sync.sync_links r
                             where r.entity_id = $1 and r.kind = 'retry'
                               and r.ref >= (select max(batch_id) from gone where backfill_id is null))))",
                self.entity_id,
                through,
                loose,
                self.before
            )
            .fetch_one(&mut transaction)
            .await?;
            let Some(last) = last else {
                transaction.rollback().await?;
                return Ok(());
            };
            sqlx::query!(
                "update elven_sync.sync_state set folded = greatest(folded, $2) where entity_id = $1",
                self.entity_id,
                last
            )
            .execute(&mut transaction)
            .await?;
            sqlx::query!(
                "delete from elven_sync.sync_links where entity_id = $1 and link < $2 and not printed",
                self.entity_id,
                last
            )
            .execute(&mut transaction)
            .await?;
            transaction.commit().await?;
            Ok(())
        };
        self.database.retry(fold).await
    }

    /// Removes a limited number of batches of passes, the newest of a pass first: parts are newer than their parents.
    pub async fn remove_batches(&self, pass_ids: &[i64]) -> Pruned {
        let remove = || async {
            let Some(mut transaction) = self.locked().await? else { return Err(PruneError::Busy) };
            let batch_ids = sqlx::query_scalar!(
                "select batch_id from elven_sync.sync_batches where pass_id = any ($1)
                  order by pass_id desc, batch_id desc limit $2",
                pass_ids,
                ROWS_MAX
            )
            .fetch_all(&mut transaction)
            .await?;
            self.remove(transaction, &batch_ids).await
        };
        self.database.retry(remove).await
    }

    /// Returns the batches of retries and of ended backfills that may be removed, the newest first: parts are newer
    /// than their parents. They are listed once, and not again for each step.
    pub async fn loose_batches(&self) -> Result<Vec<i64>, JournalError> {
        let listed = || {
            sqlx::query_scalar!(
                r#"select batch_id as "batch_id!" from elven_sync.batches_loose($1, $2) batch_id
                    order by batch_id desc"#,
                self.entity_id,
                self.before
            )
            .fetch_all(self.database)
        };
        Ok(self.database.retry(listed).await?)
    }

    /// Removes some of the batches of retries and of ended backfills.
    pub async fn remove_loose_batches(&self, batch_ids: &[i64]) -> Pruned {
        let remove = || async {
            let Some(transaction) = self.locked().await? else { return Err(PruneError::Busy) };
            self.remove(transaction, batch_ids).await
        };
        self.database.retry(remove).await
    }

    /// Removes batches, adds them to the totals, and removes the references to them from errors that stay.
    async fn remove(&self, mut transaction: Transaction, batch_ids: &[i64]) -> Pruned {
        sqlx::query!(
            "update elven_sync.sync_errors set batch_id = null
              where batch_id = any ($1) and resolved_at is not null and not dismissed",
            batch_ids
        )
        .execute(&mut transaction)
        .await?;
        let removed = sqlx::query_scalar!(
            r#"with gone as (delete from elven_sync.sync_batches where batch_id = any ($2) returning *),
                    done as (select * from gone where status = 'accepted' or (status = 'rejected' and row_count = 0)),
                    totals as (
                    insert into elven_sync.sync_pruned
                           (entity_id, until, batches, requests, bytes_sent, rows_read, rows_uploaded, rows_rejected,
                            rows_superseded)
                    select $1, $3, g.batches, g.requests, g.bytes_sent, d.rows_read, d.rows_uploaded, d.rows_rejected,
                           d.rows_superseded
                      from (select count(*) as batches, coalesce(sum(attempts), 0) as requests,
                                   coalesce(sum(attempts::bigint * body_bytes), 0) as bytes_sent from gone) g,
                           (select coalesce(sum(rows_read), 0) as rows_read,
                                   coalesce(sum(row_count), 0) as rows_uploaded,
                                   coalesce(sum(rows_rejected), 0) as rows_rejected,
                                   coalesce(sum(rows_superseded), 0) as rows_superseded from done) d
                     where g.batches > 0
                    on conflict (entity_id) do update
                       set until = greatest(sync_pruned.until, excluded.until),
                           batches = sync_pruned.batches + excluded.batches,
                           requests = sync_pruned.requests + excluded.requests,
                           bytes_sent = sync_pruned.bytes_sent + excluded.bytes_sent,
                           rows_read = sync_pruned.rows_read + excluded.rows_read,
                           rows_uploaded = sync_pruned.rows_uploaded + excluded.rows_uploaded,
                           rows_rejected = sync_pruned.rows_rejected + excluded.rows_rejected,
                           rows_superseded = sync_pruned.rows_superseded + excluded.rows_superseded)
               select count(*) as "count!" from gone"#,
            self.entity_id,
            batch_ids,
            self.before
        )
        .fetch_one(&mut transaction)
        .await?;
        let removed = u64::try_from(removed).unwrap_or(0);
        finish(transaction, removed).await?;
        Ok(removed)
    }

    /// Removes passes that a rewind gave up, after their batches: they are not part of the chain.
    pub async fn remove_given_up(&self) -> Pruned {
        let remove = || async {
            let Some(mut transaction) = self.locked().await? else { return Err(PruneError::Busy) };
            let removed = sqlx::query!(
                "delete from elven_sync.sync_passes p
                  where p.pass_id in (select elven_sync.passes_given_up($1, $2))
                    and not exists (select from elven_sync.sync_batches b where b.pass_id = p.pass_id)",
                self.entity_id,
                self.before
            )
            .execute(&mut transaction)
            .await?
            .rows_affected();
            self.count(&mut transaction, removed, 0).await?;
            finish(transaction, removed).await?;
            Ok(removed)
        };
        self.database.retry(remove).await
    }

    /// Removes the next resolved errors whose batch is removed, except errors of rows that a remaining batch set aside:
    /// they are part of its proof. Returns how many were removed. `None`: there are no more.
    pub async fn remove_errors(&self, at: &mut PrunableErrors) -> Result<Option<u64>, PruneError> {
        let (behind, kept) = (at.behind, at.kept.take());
        let remove = || async {
            let Some(mut transaction) = self.locked().await? else { return Err(PruneError::Busy) };
            let errors = sqlx::query!(
                "select error_id, ledger_id from elven_sync.sync_errors
                  where entity_id between $1 and $1 and error_id > $3
                    and resolved_at is not null and resolved_at < $2 and not dismissed and batch_id is null
                  order by entity_id, error_id limit $4",
                self.entity_id,
                self.before,
                behind,
                ROWS_MAX
            )
            .fetch_all(&mut transaction)
            .await?;
            let concerns_rows = errors.iter().any(|error| error.ledger_id.is_some());
            let kept = match &kept {
                // Rows that are set aside after this have newer errors.
                None if concerns_rows => Some(self.set_aside(&mut transaction).await?),
                kept => kept.clone(),
            };
            let is_kept = |id: &String| kept.as_ref().is_some_and(|kept| kept.contains(id));
            let last = errors.last().map(|error| error.error_id);
            let error_ids: Vec<i64> = errors
                .into_iter()
                .filter(|error| !error.ledger_id.as_ref().is_some_and(is_kept))
                .map(|error| error.error_id)
                .collect();
            let removed =
                sqlx::query!("delete from elven_sync.sync_errors where error_id = any ($1)", &error_ids)
                    .execute(&mut transaction)
                    .await?
                    .rows_affected();
            self.count(&mut transaction, 0, removed).await?;
            finish(transaction, removed).await?;
            Ok((removed, last, kept))
        };
        let (removed, last, kept) = self.database.retry(remove).await?;
        let Some(last) = last else { return Ok(None) };
        *at = PrunableErrors { behind: last, kept };
        Ok(Some(removed))
    }

    /// Returns the rows that the remaining batches set aside.
    async fn set_aside(&self, transaction: &mut Transaction) -> Result<Arc<HashSet<String>>, JournalError> {
        let batches = sqlx::query!(
            "select rejected_ids, row_ids from elven_sync.sync_batches where entity_id = $1 and rows_rejected > 0",
            self.entity_id
        )
        .fetch_all(transaction)
        .await?;
        let lists = batches.into_iter().map(|batch| batch.rejected_ids.unwrap_or(batch.row_ids));
        let ids = lists.filter_map(|ids| unpack_ids(&ids)).flatten().map(|id| id.to_string());
        Ok(Arc::new(ids.collect()))
    }
}
