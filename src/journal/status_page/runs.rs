//! The last runs, and the backfills that are running.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::super::JournalError;
use super::without_amounts;
use crate::database::Transaction;

/// The most runs that are shown.
const RUNS_MAX: i64 = 20;
/// The most backfills that are shown.
const BACKFILLS_MAX: i64 = 20;
/// The most names of a filter that are shown.
const NAMES_MAX: i32 = 5;

/// A run.
#[derive(Clone, Debug, Serialize)]
pub struct RunShown {
    /// The run.
    pub run_id: i64,
    /// `incremental`, `backfill` or `retry`.
    pub kind: String,
    /// `sync_runs.status`.
    pub status: String,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended. `None`: it is running.
    pub finished_at: Option<DateTime<Utc>>,
    /// Ledger rows that were processed.
    pub rows_read: i64,
    /// Records that the API accepted.
    pub rows_uploaded: i64,
    /// Rows that were set aside.
    pub rows_rejected: i64,
    /// Rows that were superseded.
    pub rows_superseded: i64,
    /// Upload requests, including retries.
    pub requests: i64,
    /// Upload requests that retried an earlier one.
    pub retries: i64,
    /// Why it did not succeed, without amounts.
    pub error: Option<String>,
    /// Version of elven-sync.
    pub version: String,
}

impl RunShown {
    /// Returns the last runs, newest first.
    pub(super) async fn last(transaction: &mut Transaction) -> Result<Vec<Self>, JournalError> {
        let mut runs = sqlx::query_as!(
            Self,
            "select run_id, kind, status, started_at, finished_at, rows_read, rows_uploaded, rows_rejected,
                    rows_superseded, requests, retries, error, version
               from elven_sync.sync_runs order by run_id desc limit $1",
            RUNS_MAX
        )
        .fetch_all(transaction)
        .await?;
        for run in &mut runs {
            run.error = run.error.as_deref().map(without_amounts);
        }
        Ok(runs)
    }
}

/// A backfill that is running.
#[derive(Clone, Debug, Serialize)]
pub struct BackfillShown {
    /// The backfill.
    pub backfill_id: i64,
    /// Beginning of the range of `captured_at`, as it was asked for.
    pub range_from: String,
    /// End of the range.
    pub range_to: String,
    /// Some of the entities that were asked for; empty: all.
    pub entities: Vec<String>,
    /// The number of entities that were asked for.
    pub entities_asked: i32,
    /// Some of the accounts that were asked for; empty: all.
    pub accounts: Vec<String>,
    /// The number of accounts that were asked for.
    pub accounts_asked: i32,
    /// Some of the currencies that were asked for; empty: all.
    pub currencies: Vec<String>,
    /// The number of currencies that were asked for.
    pub currencies_asked: i32,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// Rows in the range, as counted at the beginning.
    pub rows_total: i64,
    /// Ledger rows that were processed.
    pub rows_read: i64,
    /// Records that the API accepted.
    pub rows_uploaded: i64,
    /// Rows that were set aside.
    pub rows_rejected: i64,
    /// Entities whose part is not finished.
    pub entities_left: i64,
}

impl BackfillShown {
    /// Returns the backfills that are running, the oldest first.
    pub(super) async fn running(transaction: &mut Transaction) -> Result<Vec<Self>, JournalError> {
        Ok(sqlx::query_as!(
            Self,
            r#"select backfill_id, range_from, range_to,
                      coalesce(entities[:$2], '{}') as "entities!",
                      coalesce(cardinality(entities), 0) as "entities_asked!",
                      coalesce(accounts[:$2], '{}') as "accounts!",
                      coalesce(cardinality(accounts), 0) as "accounts_asked!",
                      coalesce(currencies[:$2], '{}') as "currencies!",
                      coalesce(cardinality(currencies), 0) as "currencies_asked!",
                      started_at, rows_total, rows_read, rows_uploaded, rows_rejected,
                      (select count(*) from elven_sync.sync_backfill_lanes l
                        where l.backfill_id = b.backfill_id and l.finished_at is null) as "entities_left!"
                 from elven_sync.sync_backfills b
                where status = 'running' and status not in ('succeeded', 'cancelled')
                order by backfill_id
                limit $1"#,
            BACKFILLS_MAX,
            NAMES_MAX
        )
        .fetch_all(transaction)
        .await?)
    }
}
