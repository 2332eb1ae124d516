//! Rows of `sync_backfills`, to show and to cancel backfills.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use strum::AsRefStr;

use super::JournalError;
use super::actions::{Action, client_name};
use super::links::close_cancelled_lanes;
use crate::database::{Database, Transaction};

/// The request for a backfill.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Asked {
    /// The first day or instant.
    pub from: String,
    /// The end of the range, not included.
    pub to: String,
    /// Only these entities, sorted; empty: all that are not paused.
    pub entities: Vec<String>,
    /// Only these accounts, sorted; empty: all.
    pub accounts: Vec<String>,
    /// Only these currencies, sorted; empty: all.
    pub currencies: Vec<String>,
}

/// `sync_backfills.status` of a backfill that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, AsRefStr)]
#[strum(serialize_all = "snake_case")]
pub enum BackfillStatus {
    /// The whole range was processed.
    Succeeded,
    /// Rows were set aside, or an entity failed.
    Incomplete,
    /// Every entity failed, or no work was possible.
    Failed,
    /// Stopped by a signal.
    Interrupted,
    /// Cancelled by a person.
    Cancelled,
}

/// A row of `sync_backfills`.
#[derive(Clone, Debug, Serialize)]
pub struct Backfill {
    /// Its number.
    pub backfill_id: i64,
    /// The first day or instant, as requested.
    pub range_from: String,
    /// The end of the range, not included.
    pub range_to: String,
    /// Only these entities.
    pub entities: Option<Vec<String>>,
    /// Only these accounts.
    pub accounts: Option<Vec<String>>,
    /// Only these currencies.
    pub currencies: Option<Vec<String>>,
    /// The status, as in the table.
    pub status: String,
    /// The number of rows in the range when it was requested.
    pub rows_total: i64,
    /// Ledger rows that were processed.
    pub rows_read: i64,
    /// Records that the API accepted.
    pub rows_uploaded: i64,
    /// Rows set aside.
    pub rows_rejected: i64,
    /// Rows that were superseded.
    pub rows_superseded: i64,
    /// When it was requested.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// What went wrong.
    pub error: Option<String>,
    /// The newest run that worked on it.
    pub run_id: Option<i64>,
    /// The number of entities whose range is not finished.
    pub entities_left: i64,
}

impl Backfill {
    /// Returns the request.
    pub fn asked(&self) -> Asked {
        let some = |of: &Option<Vec<String>>| of.clone().unwrap_or_default();
        Asked {
            from: self.range_from.clone(),
            to: self.range_to.clone(),
            entities: some(&self.entities),
            accounts: some(&self.accounts),
            currencies: some(&self.currencies),
        }
    }

    /// Returns all backfills, the newest first.
    pub async fn list(database: &Database) -> Result<Vec<Self>, JournalError> {
        Ok(Self::some(database, None).await?)
    }

    /// Returns the backfill with a number.
    pub async fn find(database: &Database, backfill_id: i64) -> Result<Option<Self>, JournalError> {
        Ok(Self::some(database, Some(backfill_id)).await?.pop())
    }

    async fn some(database: &Database, backfill_id: Option<i64>) -> Result<Vec<Self>, sqlx::Error> {
        database.retry(|| sqlx::query_as!(
            Backfill,
            r#"select backfill_id, range_from, range_to, entities, accounts, currencies, status, rows_total, rows_read,
                      rows_uploaded, rows_rejected, rows_superseded, started_at, finished_at, error, run_id,
                      (select count(*) from elven_sync.sync_backfill_lanes l
                        where l.backfill_id = b.backfill_id and l.finished_at is null) as "entities_left!"
                 from elven_sync.sync_backfills b where ($1::bigint is null or backfill_id = $1)
                order by backfill_id desc"#,
            backfill_id
        ).fetch_all(database)).await
    }
}

/// The result of a request to cancel a backfill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It is cancelled, and no run works on it.
    Done,
    /// It is cancelled; the run that works on it stops after the requests in flight.
    Stopping(i64),
    /// It had already ended, with this status.
    Ended(String),
    /// There is no such backfill.
    Missing,
}

impl Backfill {
    /// Cancels a backfill. A run that works on it finishes the requests in flight.
    pub async fn cancel(
        database: &Database,
        backfill_id: i64,
        reason: Option<&str>,
    ) -> Result<Cancelled, JournalError> {
        let cancel = || async {
            let mut transaction = database.begin().await?;
            let status = sqlx::query_scalar!(
                "select status from elven_sync.sync_backfills where backfill_id = $1 for update",
                backfill_id
            )
            .fetch_optional(&mut transaction)
            .await?;
            let ended = match status {
                None => Some(Cancelled::Missing),
                Some(status) if matches!(status.as_str(), "succeeded" | "cancelled") => {
                    Some(Cancelled::Ended(status))
                }
                Some(_) => None,
            };
            if let Some(ended) = ended {
                transaction.rollback().await?;
                return Ok(ended);
            }
            let alive = alive_run(&mut transaction, backfill_id).await?;
            sqlx::query!(
                "update elven_sync.sync_backfills
                    set status = 'cancelled', finished_at = clock_timestamp(), error = 'cancelled by a person'
                  where backfill_id = $1",
                backfill_id
            )
            .execute(&mut transaction)
            .await?;
            let details = json!({ "backfill_id": backfill_id });
            let action = Action { what: "backfill_cancel", entity_id: None, reason, details: &details };
            action.record(&mut transaction, &client_name()).await?;
            transaction.commit().await?;
            Ok::<_, sqlx::Error>(alive.map_or(Cancelled::Done, |(run_id, ..)| Cancelled::Stopping(run_id)))
        };
        let cancelled = database.retry(cancel).await?;
        if cancelled == Cancelled::Done {
            close_cancelled(database, backfill_id).await?;
        }
        Ok(cancelled)
    }
}

/// Closes the open batches of a cancelled backfill: a batch that was never sent becomes `rejected`, and a batch that a
/// dead worker left in flight becomes `unknown`.
pub(super) async fn close_cancelled(database: &Database, backfill_id: i64) -> Result<(), JournalError> {
    let close = || async {
        let mut transaction = database.begin().await?;
        sqlx::query!(
            "update elven_sync.sync_batches
                set status = case when attempts > 0 then 'unknown' else 'rejected' end,
                    finished_at = clock_timestamp(), error = 'the backfill was cancelled'
              where backfill_id = $1 and status = 'sending'",
            backfill_id
        )
        .execute(&mut transaction)
        .await?;
        close_cancelled_lanes(&mut transaction, backfill_id).await?;
        transaction.commit().await?;
        Ok::<_, JournalError>(())
    };
    database.retry(close).await
}

/// Returns the run that works on a backfill and renews its heartbeat: run, worker, end of the heartbeat.
pub(super) async fn alive_run(
    transaction: &mut Transaction,
    backfill_id: i64,
) -> Result<Option<(i64, String, DateTime<Utc>)>, sqlx::Error> {
    let alive = sqlx::query!(
        "select r.run_id, r.worker, r.alive_until
           from elven_sync.sync_backfills b join elven_sync.sync_runs r using (run_id)
          where b.backfill_id = $1 and r.status = 'running' and r.alive_until >= clock_timestamp()",
        backfill_id
    )
    .fetch_optional(transaction)
    .await?;
    Ok(alive.map(|run| (run.run_id, run.worker, run.alive_until)))
}
