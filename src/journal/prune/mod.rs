//! Retention: folds old records into totals and keeps the chain of watermarks complete.
//!
//! It works in bounded transactions, each of which leaves a journal that `verify` can prove: first passes are declared
//! pruned, then their batches are removed, then consecutive pruned passes are folded. So it may be stopped at any
//! point and continued later. Each transaction locks the lane; a worker on that lane waits only for a moment.

mod fold;
mod removal;

pub use removal::PrunableErrors;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;

use super::actions::{Action, client_name};
use super::{JournalError, SealState};
use crate::database::{Database, Transaction, Transient};

/// The maximum number of batches, passes, errors or runs that one transaction changes.
pub const ROWS_PER_TRANSACTION: usize = 1000;
/// The same, for SQL.
const ROWS_MAX: i64 = 1000;
/// How often, and with which pause, a locked lane is tried.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Why a step of pruning was not done.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// Another process has the lane locked.
    #[error("another process has the state of the entity locked")]
    Busy,
    /// The journal could not be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl From<sqlx::Error> for PruneError {
    fn from(problem: sqlx::Error) -> Self {
        Self::Journal(problem.into())
    }
}

impl Transient for PruneError {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Journal(problem) if problem.is_transient())
    }
}

/// The number of rows that one step removed.
pub type Pruned = Result<u64, PruneError>;

/// Prunes one entity, step by step.
#[derive(Clone, Copy, Debug)]
pub struct Pruner<'a> {
    /// The database.
    pub database: &'a Database,
    /// The entity.
    pub entity_id: &'a str,
    /// Records that ended before this time are pruned.
    pub before: DateTime<Utc>,
}

/// What would be removed for an entity. Fewer errors may be removed, because some belong to the proof of batches that
/// stay.
#[derive(Clone, Copy, Debug)]
pub struct WouldGo {
    /// Passes.
    pub passes: u64,
    /// Batches.
    pub batches: u64,
    /// Errors.
    pub errors: u64,
}

/// Returns the time before which records are pruned, by the clock of the database, and all entities.
pub async fn scope(
    database: &Database,
    older_than: Duration,
) -> Result<(DateTime<Utc>, Vec<String>), JournalError> {
    let before: DateTime<Utc> = database
        .retry(|| {
            sqlx::query_scalar!(
                r#"select clock_timestamp() - make_interval(secs => $1) as "before!""#,
                older_than.as_secs_f64()
            )
            .fetch_one(database)
        })
        .await?;
    let entities = database
        .retry(|| {
            sqlx::query_scalar!("select entity_id from elven_sync.sync_state order by entity_id")
                .fetch_all(database)
        })
        .await?;
    Ok((before, entities))
}

/// Records that a person prunes. The steps of the pruning are many transactions, so this precedes them.
pub async fn record_action(database: &Database, before: DateTime<Utc>) -> Result<(), JournalError> {
    let record = || async {
        let mut transaction = database.begin().await?;
        let details = json!({ "before": before });
        let action = Action { what: "prune", entity_id: None, reason: None, details: &details };
        action.record(&mut transaction, &client_name()).await?;
        transaction.commit().await
    };
    Ok(database.retry(record).await?)
}

impl Pruner<'_> {
    /// Returns the seal of the newest change: see [`SealState`].
    pub async fn seal(&self) -> Result<SealState, JournalError> {
        let seal = || {
            sqlx::query_scalar!("select seal from elven_sync.seals(array[$1::text])", self.entity_id)
                .fetch_optional(self.database)
        };
        Ok(SealState::from_column(self.database.retry(seal).await?.flatten().as_deref()))
    }

    /// Begins a transaction with the lane locked. `None`: another process keeps it locked for longer than a moment.
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

    /// Returns the passes that may be declared as pruned: finished passes of which no row is open. Never the newest
    /// change of a watermark, because with it `entity rebind` tells an upgraded cluster from a restored dump.
    ///
    /// They are listed once, and not again for each step. No open error is added to such a pass later.
    pub async fn passes_through(&self) -> Result<Vec<i64>, JournalError> {
        let listed = || {
            sqlx::query_scalar!(
                r#"select pass_id as "pass_id!" from elven_sync.passes_through($1, $2) pass_id order by pass_id"#,
                self.entity_id,
                self.before
            )
            .fetch_all(self.database)
        };
        Ok(self.database.retry(listed).await?)
    }

    /// Declares passes as pruned, so that their batches may be removed.
    pub async fn declare(&self, pass_ids: &[i64]) -> Pruned {
        let declare = || async {
            let Some(mut transaction) = self.locked().await? else { return Err(PruneError::Busy) };
            let declared = sqlx::query!(
                "update elven_sync.sync_passes
                    set kind = 'pruned', run_id = null, last_xid = null, last_id = null,
                    written_by = pg_current_xact_id()
                  where pass_id = any ($2) and entity_id = $1 and kind = 'pass' and finished_at is not null",
                self.entity_id,
                pass_ids
            )
            .execute(&mut transaction)
            .await?
            .rows_affected();
            // A rebind is not part of the chain: it moves nothing.
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
            Ok(declared)
        };
        self.database.retry(declare).await
    }

    /// Returns the passes whose batches are removed, with small passes grouped together.
    pub async fn groups(&self) -> Result<Vec<Vec<i64>>, JournalError> {
        let counted = self
            .database
            .retry(|| {
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

    /// Adds to the totals of pruned records.
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

    /// Counts what would be removed.
    pub async fn would_go(&self) -> Result<WouldGo, JournalError> {
        let counted = self
            .database
            .retry(|| {
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
                                  and (e.batch_id is null
                                       or e.batch_id in (select batch_id from batches))) as "errors!""#,
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

/// Commits if something was changed; otherwise rolls back, which is cheaper.
async fn finish(transaction: Transaction, rows: u64) -> Result<(), JournalError> {
    if rows > 0 {
        transaction.commit().await?;
    } else {
        transaction.rollback().await?;
    }
    Ok(())
}

/// Removes ended runs to which nothing refers any more, a limited number per transaction.
pub async fn prune_runs(database: &Database, before: DateTime<Utc>) -> Result<u64, JournalError> {
    let mut behind = 0;
    let mut removed = 0;
    loop {
        let old: Vec<i64> = database
            .retry(|| {
                sqlx::query_scalar!(
                    "select run_id from elven_sync.sync_runs where run_id > $1 and finished_at < $2
                      order by run_id limit $3",
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
                        and not exists (select from elven_sync.sync_errors e where e.run_id = r.run_id)
                        and not exists (select from elven_sync.sync_backfills f where f.run_id = r.run_id)",
                    &old
                )
            })
            .await?;
        removed += done.rows_affected();
    }
}
