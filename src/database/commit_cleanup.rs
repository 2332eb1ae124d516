//! The removal of rows of `sync_commits` that nobody asks for any more, in steps.

use std::convert::Infallible;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, Row};

use super::commits::START;
use super::{Database, Transaction, Transient, within};

/// Rows of this process, and of others, that a step removes at most.
const STEP_ROWS: i64 = 10_000;

/// Steps in a row: what is left then is removed later, by whichever process has the time.
const STEPS_MAX: usize = 10;

impl Database {
    /// Removes the rows of `sync_commits` of this process whose outcome is known, and those that others have left hours
    /// ago, in steps that are transactions of their own. What cannot be removed now is removed later: it is of no use
    /// to anybody, so that this is no reason to stop.
    pub async fn forget_commits(&self) {
        for _ in 0..STEPS_MAX {
            // Boxed, since it is large, and lies in the futures of all who call.
            match Box::pin(self.forget_some()).await {
                Ok(true) => {}
                Ok(false) => return,
                // The work of the run says what is to be said of a database that went away.
                Err(problem) if problem.is_transient() => return,
                Err(problem) => {
                    let error = crate::text::chain(&problem);
                    tracing::warn!(
                        error,
                        "rows of elven_sync.sync_commits could not be removed; a later run removes them"
                    );
                    return;
                }
            }
        }
    }

    /// One step. Says whether there may be more.
    async fn forget_some(&self) -> Result<bool, sqlx::Error> {
        let (process, limit) = (self.process.number, self.statement_max());
        let (kept_from, known_below, others_from) = {
            let commits = self.process.commits();
            let known_below = commits.open.first().copied().unwrap_or(commits.begun + 1);
            (commits.kept_from, known_below, commits.others_from)
        };
        // In one message, and without a row of its own: it may be undone.
        let sql = format!(
            "begin; set local synchronous_commit = on; set local jit = off; set local enable_seqscan = off; \
             set local enable_bitmapscan = off; set local enable_sort = off; {} {}; commit",
            self.server_ends_after(limit),
            remove(process, (kept_from, known_below), others_from)
        );
        let mut transaction = Transaction::of(self).await?;
        let rows = transaction.connection()?.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql)));
        let rows = within(limit, rows).await?;
        transaction.connection = None;
        let removed = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let (own, last): (i64, Option<i64>) = (removed.try_get(0)?, removed.try_get(1)?);
        let others: i64 = removed.try_get(2)?;
        let last_of_others: (Option<i64>, Option<i64>) = (removed.try_get(3)?, removed.try_get(4)?);
        let mut commits = self.process.commits();
        commits.kept_from =
            if own < STEP_ROWS { known_below } else { last.map_or(known_below, |last| last + 1) };
        commits.others_from = match last_of_others {
            (Some(process), Some(number)) if others >= STEP_ROWS => (process, number),
            // From the start, by when others have come to be old.
            _ => START,
        };
        Ok(own >= STEP_ROWS || others >= STEP_ROWS)
    }

    /// Removes rows every so often, until it is not waited for any more.
    pub async fn keep_forgetting(&self, every: Duration) -> Infallible {
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.forget_commits().await;
        }
    }
}

/// Removes rows by the primary key from a place on, at most so many. Each step begins where the one before it has
/// ended, so that no row, nor what is left of a removed one, is read twice; and it is read in the order of the index,
/// whatever the planner expects. A row that somebody else is removing is left to that process: two could wait for
/// each other.
///
/// Nobody waits for longer than an hour for a database.
fn remove(process: i64, (kept_from, known_below): (i64, i64), (other, number): (i64, i64)) -> String {
    // The smallest number without its sign would not be a bigint.
    let bigint = |number: i64| format!("'{number}'::bigint");
    let (process, other, number) = (bigint(process), bigint(other), bigint(number));
    format!(
        "with removed as (
             delete from elven_sync.sync_commits where ctid = any (
                 array(select ctid from elven_sync.sync_commits
                        where process = {process} and number >= {kept_from} and number < {known_below}
                        order by process, number limit {STEP_ROWS} for update skip locked)
                 || array(select ctid from elven_sync.sync_commits
                           where (process, number) >= ({other}, {number}) and process <> {process}
                             and begun_at < clock_timestamp() - interval '3 hours'
                           order by process, number limit {STEP_ROWS} for update skip locked))
             returning process, number)
         select (select count(*) from removed where process = {process}),
                (select max(number) from removed where process = {process}),
                (select count(*) from removed where process <> {process}), last.process, last.number
           from (select) one left join lateral
                (select process, number from removed where process <> {process}
                  order by 1 desc, 2 desc limit 1) last on true"
    )
}
