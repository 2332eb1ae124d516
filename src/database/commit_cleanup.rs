//! Removes rows of `sync_commits` that are not needed any more, in steps.

use std::convert::Infallible;
use std::ops::Range;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, Row};

use super::commits::{CommitKey, START};
use super::{Database, Transaction, Transient, within};

/// The maximum number of rows of this process, and of other processes, that one step removes.
const STEP_ROWS: i64 = 10_000;

/// The maximum number of consecutive steps. The remaining rows are removed later, by this or another process.
const STEPS_MAX: usize = 10;

impl Database {
    /// Removes the rows of `sync_commits` of this process whose outcome is known, and the rows that other processes
    /// left hours ago. Each step is a transaction of its own. Rows that cannot be removed now are removed later:
    /// nothing depends on it, so a failure does not stop the run.
    pub async fn forget_commits(&self) {
        for _ in 0..STEPS_MAX {
            // Boxed, because it is large and part of the future of every caller.
            match Box::pin(self.forget_some()).await {
                Ok(true) => {}
                Ok(false) => return,
                // The run itself reports a database that cannot be reached.
                Err(problem) if problem.is_transient() => return,
                Err(problem) => {
                    let error = crate::text::chain(&problem);
                    tracing::warn!(
                        error,
                        "rows of elven_sync.sync_commits could not be removed; a later run retries"
                    );
                    return;
                }
            }
        }
    }

    /// Executes one step. Returns whether there may be more rows.
    async fn forget_some(&self) -> Result<bool, sqlx::Error> {
        let (process, limit) = (self.process.number, self.statement_max());
        let (kept_from, known_below, others_from) = {
            let commits = self.process.commits();
            let known_below = commits.open.first().copied().unwrap_or(commits.begun + 1);
            (commits.kept_from, known_below, commits.others_from)
        };
        // One message, and without a row of its own in `sync_commits`: the outcome of this transaction does not
        // matter.
        let sql = format!(
            "{}; set local synchronous_commit = on; set local enable_seqscan = off; \
             set local enable_bitmapscan = off; set local enable_sort = off; {} {}; commit",
            self.writing(),
            self.server_ends_after(limit),
            remove(process, kept_from..known_below, others_from)
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
            (Some(process), Some(number)) if others >= STEP_ROWS => CommitKey { process, number },
            // Start over: by the next time, more rows of other processes have become old.
            _ => START,
        };
        Ok(own >= STEP_ROWS || others >= STEP_ROWS)
    }

    /// Removes rows at an interval, until the future is dropped.
    pub async fn keep_forgetting(&self, every: Duration) -> Infallible {
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.forget_commits().await;
        }
    }
}

/// Returns the statement that removes a limited number of rows by the primary key from a position on. Each step begins
/// where the previous one ended, so that neither rows nor the remains of removed rows are read twice. Rows are read in
/// the order of the index, independent of the planner's estimates. Rows that another process is removing are skipped,
/// because two processes could wait for each other.
///
/// No process waits longer than an hour for a database, so rows of others that are three hours old are not needed.
///
/// `own`: numbers of this process whose outcome is known. `others_from`: the position among the rows of other
/// processes.
fn remove(process: i64, own: Range<i64>, others_from: CommitKey) -> String {
    // The smallest bigint needs its sign inside the literal: without it, the number is out of range.
    let bigint = |number: i64| format!("'{number}'::bigint");
    let (process, other) = (bigint(process), bigint(others_from.process));
    let number = bigint(others_from.number);
    let Range { start: kept_from, end: known_below } = own;
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
