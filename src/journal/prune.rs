//! Retention: what ended long ago is folded into totals, and the chain of watermarks stays whole.
//!
//! In bounded transactions, each of which leaves a journal that `verify` can prove: a pass is declared pruned first, then its
//! batches go, then pruned passes that follow each other become one. So it may be stopped anywhere, and goes on
//! the next time. Each is under the lock of the lane, and a worker that is on it waits for a moment at most.

use std::collections::HashSet;
use std::time::Duration;

use super::JournalError;
use crate::batch::unpack_ids;
use crate::database::{Database, Transaction};
use chrono::{DateTime, Utc};

/// Batches, or passes, or errors, or runs that go in one transaction.
const ROWS_PER_TRANSACTION: usize = 1000;
/// The same, for SQL.
const ROWS_MAX: i64 = 1000;
/// How often, and how long apart, a lane is tried that somebody else has locked.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// A lane is locked by somebody else.
#[derive(Clone, Copy, Debug)]
pub struct Busy;

/// One step: how many rows it took, or that the lane is busy.
pub type Pruned = Result<Result<u64, Busy>, JournalError>;

/// Prunes one entity, step by step.
#[derive(Clone, Copy, Debug)]
pub struct Pruner<'a> {
    /// The database.
    pub database: &'a Database,
    /// The entity.
    pub entity_id: &'a str,
    /// What has ended before this goes.
    pub before: DateTime<Utc>,
}

/// What would go of an entity. Fewer errors may, since some belong to the proof of what stays.
#[derive(Clone, Copy, Debug)]
pub struct WouldGo {
    /// Passes.
    pub passes: u64,
    /// Batches.
    pub batches: u64,
    /// Errors.
    pub errors: u64,
}

/// When what has ended so long ago had ended, by the clock of the database; and the entities that there are.
pub async fn scope(
    database: &Database,
    older_than: Duration,
) -> Result<(DateTime<Utc>, Vec<String>), JournalError> {
    let before: DateTime<Utc> = database
        .again(|| {
            sqlx::query_scalar!(
                r#"select clock_timestamp() - make_interval(secs => $1) as "before!""#,
                older_than.as_secs_f64()
            )
            .fetch_one(database)
        })
        .await?;
    let entities = database
        .again(|| {
            sqlx::query_scalar!("select entity_id from elven_sync.sync_state order by entity_id")
                .fetch_all(database)
        })
        .await?;
    Ok((before, entities))
}

impl Pruner<'_> {
    /// Begins a transaction with the lane locked. `None`: somebody else has it, for longer than a moment.
    async fn locked(&self) -> Result<Option<Transaction>, JournalError> {
        for _ in 0..LOCK_TRIES {
            let mut transaction = self.database.begin().await?;
            let locked = sqlx::query_scalar!(
                r#"select true as "locked!" from elven_sync.sync_state where entity_id = $1 for update skip locked"#,
                self.entity_id
            )
            .fetch_optional(&mut transaction)
            .await?;
            if locked.is_some() {
                return Ok(Some(transaction));
            }
            transaction.rollback().await?;
            tokio::time::sleep(LOCK_PAUSE).await;
        }
        Ok(None)
    }

    /// Declares passes pruned whose batches may go: those that are through and of which no row is an open matter. Never
    /// the newest change of a watermark: by that `entity rebind` tells an upgraded cluster from a restored dump.
    pub async fn declare(&self) -> Pruned {
        let declare = || async {
            let Some(mut transaction) = self.locked().await? else { return Ok(Err(Busy)) };
            let declared = sqlx::query!(
                "update elven_sync.sync_passes
                    set kind = 'pruned', run_id = null, last_xid = null, last_id = null, written_by = pg_current_xact_id()
                  where pass_id in (select pass_id from elven_sync.passes_through($1, $2) pass_id order by pass_id limit $3)",
                self.entity_id,
                self.before,
                ROWS_MAX
            )
            .execute(&mut transaction)
            .await?
            .rows_affected();
            // No link of the chain: it moves nothing.
            let rebinds = sqlx::query!(
                "delete from elven_sync.sync_passes
                  where entity_id = $1 and kind = 'rebind' and finished_at < $2
                    and pass_id < (select max(pass_id) from elven_sync.sync_passes where entity_id = $1)",
                self.entity_id,
                self.before
            )
            .execute(&mut transaction)
            .await?
            .rows_affected();
            self.count(&mut transaction, declared, 0).await?;
            finish(transaction, declared + rebinds).await?;
            Ok(Ok(declared))
        };
        self.database.again(declare).await
    }

    /// The passes whose batches go, a few small ones together.
    pub async fn groups(&self) -> Result<Vec<Vec<i64>>, JournalError> {
        let counted = self
            .database
            .again(|| {
                sqlx::query!(
                    r#"select p.pass_id, count(*) as "batches!"
                         from elven_sync.sync_passes p join elven_sync.sync_batches b using (pass_id)
                        where p.entity_id = $1
                          and (p.kind = 'pruned' or p.pass_id in (select elven_sync.passes_given_up($1, $2)))
                        group by p.pass_id order by p.pass_id"#,
                    self.entity_id,
                    self.before
                )
                .fetch_all(self.database)
            })
            .await?;
        let mut groups: Vec<Vec<i64>> = Vec::new();
        let mut room = 0;
        for pass in counted {
            let batches = usize::try_from(pass.batches).unwrap_or(usize::MAX);
            match groups.last_mut() {
                Some(group) if batches <= room => {
                    group.push(pass.pass_id);
                    room -= batches;
                }
                _ => {
                    groups.push(vec![pass.pass_id]);
                    room = ROWS_PER_TRANSACTION.saturating_sub(batches);
                }
            }
        }
        Ok(groups)
    }

    /// Removes some batches of passes. The latest first: parts are later than what they are parts of.
    pub async fn remove_batches(&self, pass_ids: &[i64]) -> Pruned {
        let remove = || async {
            let Some(mut transaction) = self.locked().await? else { return Ok(Err(Busy)) };
            let batch_ids = sqlx::query_scalar!(
                "select batch_id from elven_sync.sync_batches where pass_id = any ($1) order by batch_id desc limit $2",
                pass_ids,
                ROWS_MAX
            )
            .fetch_all(&mut transaction)
            .await?;
            self.remove(transaction, &batch_ids).await
        };
        self.database.again(remove).await
    }

    /// Removes some batches of retries, and of backfills that have ended.
    pub async fn remove_loose_batches(&self) -> Pruned {
        let remove = || async {
            let Some(mut transaction) = self.locked().await? else { return Ok(Err(Busy)) };
            let batch_ids = sqlx::query_scalar!(
                r#"select batch_id as "batch_id!" from elven_sync.batches_loose($1, $2) batch_id
                    order by batch_id desc limit $3"#,
                self.entity_id,
                self.before,
                ROWS_MAX
            )
            .fetch_all(&mut transaction)
            .await?;
            self.remove(transaction, &batch_ids).await
        };
        self.database.again(remove).await
    }

    /// Removes batches, keeps their totals, and lets go of what is said of them in errors that stay.
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
                           (select coalesce(sum(rows_read), 0) as rows_read, coalesce(sum(row_count), 0) as rows_uploaded,
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
        Ok(Ok(removed))
    }

    /// Removes passes that a rewind gave up, once their batches are gone: they are no part of the chain.
    pub async fn remove_given_up(&self) -> Pruned {
        let remove = || async {
            let Some(mut transaction) = self.locked().await? else { return Ok(Err(Busy)) };
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
            Ok(Ok(removed))
        };
        self.database.again(remove).await
    }

    /// Removes resolved errors whose batch is gone, but for those of rows that a batch which is kept has set aside: they
    /// are part of its proof.
    pub async fn remove_errors(&self) -> Pruned {
        let remove = || async {
            let Some(mut transaction) = self.locked().await? else { return Ok(Err(Busy)) };
            let errors = sqlx::query!(
                "select error_id, ledger_id from elven_sync.sync_errors
                  where entity_id = $1 and resolved_at < $2 and not dismissed and batch_id is null",
                self.entity_id,
                self.before
            )
            .fetch_all(&mut transaction)
            .await?;
            let concerns_rows = errors.iter().any(|error| error.ledger_id.is_some());
            let kept = if concerns_rows { self.set_aside(&mut transaction).await? } else { HashSet::new() };
            let error_ids: Vec<i64> = errors
                .into_iter()
                .filter(|error| error.ledger_id.as_ref().is_none_or(|id| !kept.contains(id)))
                .map(|error| error.error_id)
                .take(ROWS_PER_TRANSACTION)
                .collect();
            let removed =
                sqlx::query!("delete from elven_sync.sync_errors where error_id = any ($1)", &error_ids)
                    .execute(&mut transaction)
                    .await?
                    .rows_affected();
            self.count(&mut transaction, 0, removed).await?;
            finish(transaction, removed).await?;
            Ok(Ok(removed))
        };
        self.database.again(remove).await
    }

    /// The rows that the batches which are left have set aside.
    async fn set_aside(&self, transaction: &mut Transaction) -> Result<HashSet<String>, JournalError> {
        let batches = sqlx::query!(
            "select rejected_ids, row_ids from elven_sync.sync_batches where entity_id = $1 and rows_rejected > 0",
            self.entity_id
        )
        .fetch_all(transaction)
        .await?;
        let lists = batches.into_iter().map(|batch| batch.rejected_ids.unwrap_or(batch.row_ids));
        Ok(lists.filter_map(|ids| unpack_ids(&ids)).flatten().map(|id| id.to_string()).collect())
    }

    /// Makes one of pruned passes that follow each other, among the next changes of the watermark from one on. Returns
    /// where to go on.
    pub async fn fold(&self, from: i64) -> Result<Result<Option<i64>, Busy>, JournalError> {
        let fold = || async {
            let Some(mut transaction) = self.locked().await? else { return Ok(Err(Busy)) };
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
            Ok(Ok(links.last().filter(|_| !is_last).map(|link| link.pass_id)))
        };
        self.database.again(fold).await
    }

    /// Adds to what is known of what was pruned.
    async fn count(
        &self,
        transaction: &mut Transaction,
        passes: u64,
        errors: u64,
    ) -> Result<(), JournalError> {
        if passes + errors == 0 {
            return Ok(());
        }
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        sqlx::query!(
            "insert into elven_sync.sync_pruned (entity_id, until, passes, errors) values ($1, $2, $3, $4)
             on conflict (entity_id) do update
                set until = greatest(sync_pruned.until, excluded.until), passes = sync_pruned.passes + excluded.passes,
                    errors = sync_pruned.errors + excluded.errors",
            self.entity_id,
            self.before,
            number(passes),
            number(errors)
        )
        .execute(transaction)
        .await?;
        Ok(())
    }

    /// Counts what would go.
    pub async fn would_go(&self) -> Result<WouldGo, JournalError> {
        let counted = self
            .database
            .again(|| {
                sqlx::query!(
                    r#"with gone (pass_id, is_new) as (
                           select p.pass_id, p.kind = 'pass' from elven_sync.sync_passes p
                            where p.entity_id = $1
                              and (p.kind = 'pruned' or p.pass_id in (select elven_sync.passes_through($1, $2))
                                   or p.pass_id in (select elven_sync.passes_given_up($1, $2)))),
                            batches (batch_id) as (
                           select batch_id from gone join elven_sync.sync_batches using (pass_id)
                           union all select elven_sync.batches_loose($1, $2))
                       select (select count(*) from gone where is_new) as "passes!",
                              (select count(*) from batches) as "batches!",
                              (select count(*) from elven_sync.sync_errors e
                                where e.entity_id = $1 and e.resolved_at < $2 and not e.dismissed
                                  and (e.batch_id is null or e.batch_id in (select batch_id from batches))) as "errors!""#,
                    self.entity_id,
                    self.before
                )
                .fetch_one(self.database)
            })
            .await?;
        let number = |count: i64| u64::try_from(count).unwrap_or(0);
        Ok(WouldGo {
            passes: number(counted.passes),
            batches: number(counted.batches),
            errors: number(counted.errors),
        })
    }
}

/// A change of a watermark, as it is folded.
struct Link {
    pass_id: i64,
    settled: Option<String>,
    target: Option<String>,
    /// It is pruned, and its batches are gone.
    is_empty: bool,
}

/// Whether two changes can become one. What does not fit together stays, for `verify` to find.
fn follows(one: &Link, next: &Link) -> bool {
    one.is_empty && next.is_empty && one.target == next.settled
}

/// Lets one pruned pass begin where the first of a group begins, and removes the others.
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

/// Commits when something was done, and saves that otherwise.
async fn finish(transaction: Transaction, rows: u64) -> Result<(), JournalError> {
    if rows > 0 {
        transaction.commit().await?
    } else {
        transaction.rollback().await?
    }
    Ok(())
}

/// Removes runs that have ended and that nothing refers to any more, some in each transaction.
pub async fn prune_runs(database: &Database, before: DateTime<Utc>) -> Result<u64, JournalError> {
    let mut behind = 0;
    let mut removed = 0;
    loop {
        let old: Vec<i64> = database
            .again(|| {
                sqlx::query_scalar!(
                    "select run_id from elven_sync.sync_runs where run_id > $1 and finished_at < $2 order by run_id limit $3",
                    behind,
                    before,
                    ROWS_MAX
                )
                .fetch_all(database)
            })
            .await?;
        let Some(last) = old.last() else { return Ok(removed) };
        behind = *last;
        let done = database
            .execute(|| {
                sqlx::query!(
                    "delete from elven_sync.sync_runs r
                      where r.run_id = any ($1)
                        and not exists (select from elven_sync.sync_batches b where b.run_id = r.run_id)
                        and not exists (select from elven_sync.sync_passes p where p.run_id = r.run_id)
                        and not exists (select from elven_sync.sync_errors e where e.run_id = r.run_id)",
                    &old
                )
            })
            .await?;
        removed += done.rows_affected();
    }
}
