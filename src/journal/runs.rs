//! Runs: their rows, heartbeats and ends, also of a process that died.

use super::storable_text::storable_one;
use super::{Counters, Journal, JournalError, RunStatus};
use crate::database::{Database, Transaction};

impl Journal {
    /// Begins a run for new rows (`incremental`) or errors (`retry`), with the version and origin of its zone rules.
    /// Marks dead runs as interrupted.
    pub async fn begin_run(&self, kind: &str, tzdata: &str) -> Result<i64, JournalError> {
        let begin_run = || async {
            let mut transaction = self.database.begin().await?;
            let run_id = self.insert_run(&mut transaction, kind, tzdata).await?;
            transaction.commit().await?;
            Ok(run_id)
        };
        self.database.retry(begin_run).await
    }

    /// Records a run that failed before it began. A process that tries again and again records the same failure once a
    /// minute.
    pub async fn record_failed_run(&self, tzdata: &str, error: &str) -> Result<(), JournalError> {
        let process = self.worker.rsplit_once('/').map_or(self.worker.as_str(), |(process, _)| process);
        let record = || async {
            let mut transaction = self.database.begin().await?;
            mark_interrupted(&mut transaction).await?;
            let error = storable_one(&mut transaction, Some(error)).await?;
            sqlx::query!(
                "insert into elven_sync.sync_runs (worker, version, tzdata, status, finished_at, alive_until, error)
                 select $1, $2, $3, 'failed', clock_timestamp(), clock_timestamp(), $4
                  where not exists (
                        select from (select * from elven_sync.sync_runs order by run_id desc limit 1) r
                         where r.status = 'failed' and r.error = $4 and starts_with(r.worker, $5 || '/')
                           and r.finished_at > clock_timestamp() - interval '1 minute')",
                self.worker,
                env!("CARGO_PKG_VERSION"),
                tzdata,
                error,
                process
            )
            .execute(&mut transaction)
            .await?;
            transaction.commit().await
        };
        Ok(self.database.retry(record).await?)
    }

    /// Inserts the row of a run. Marks dead runs as interrupted.
    pub(super) async fn insert_run(
        &self,
        transaction: &mut Transaction,
        kind: &str,
        tzdata: &str,
    ) -> Result<i64, JournalError> {
        mark_interrupted(transaction).await?;
        let run_id = sqlx::query_scalar!(
            "insert into elven_sync.sync_runs (worker, version, tzdata, alive_until, kind)
             values ($1, $2, $3, clock_timestamp() + make_interval(secs => $4), $5) returning run_id",
            self.worker,
            env!("CARGO_PKG_VERSION"),
            tzdata,
            self.lease_seconds(),
            kind
        )
        .fetch_one(transaction)
        .await?;
        self.database.note_run(Some(run_id));
        Ok(run_id)
    }

    /// Writes a heartbeat, and renews the leases that this worker holds, except leases whose rows are locked: a locked
    /// row must not cost the other leases, and its lease is renewed again before something is sent.
    ///
    /// Two statements in transactions of their own: in one transaction they would lock the run's row before a lane's
    /// row, and recording the result of a batch locks them in the other order.
    pub async fn renew(&self, run_id: i64) -> Result<(), JournalError> {
        self.database
            .execute(|| {
                sqlx::query!(
                    "update elven_sync.sync_state set lease_expires_at = clock_timestamp() + make_interval(secs => $2)
                      where entity_id in (select entity_id from elven_sync.sync_state
                                           where lease_owner = $1 order by entity_id for update skip locked)",
                    self.worker,
                    self.lease_seconds()
                )
            })
            .await?;
        self.database
            .execute(|| {
                sqlx::query!(
                    "update elven_sync.sync_runs set alive_until = clock_timestamp() + make_interval(secs => $2)
                      where run_id = $1 and worker = $3 and status = 'running'",
                    run_id,
                    self.lease_seconds(),
                    self.worker
                )
            })
            .await?;
        Ok(())
    }

    /// Ends a run and returns its counters. Marks dead runs as interrupted, and removes rows of `sync_commits`.
    pub async fn finish_run(
        &self,
        run_id: i64,
        status: RunStatus,
        error: Option<&str>,
    ) -> Result<Counters, JournalError> {
        let finish_run = || async {
            let mut transaction = self.database.begin().await?;
            let error = storable_one(&mut transaction, error).await?;
            let counters = sqlx::query_as!(
                Counters,
                "update elven_sync.sync_runs set status = $2, error = $3, finished_at = clock_timestamp()
                  where run_id = $1 and worker = $4
              returning rows_read, rows_uploaded, rows_rejected, rows_superseded, requests, retries, bytes_sent,
                        rows_beyond_double",
                run_id,
                status.as_ref(),
                error,
                self.worker
            )
            .fetch_optional(&mut transaction)
            .await?
            .ok_or(JournalError::RunLost)?;
            mark_interrupted(&mut transaction).await?;
            transaction.commit().await?;
            Ok::<_, JournalError>(counters)
        };
        let counters = self.database.retry(finish_run).await?;
        self.database.note_run(None);
        self.database.forget_commits().await;
        Ok(counters)
    }
}

/// Returns how the last run failed before its poll, in a sentence with its hint, if it did: then no entity says why.
pub async fn failure_of_last_run(database: &Database) -> Result<Option<String>, JournalError> {
    let read = || {
        sqlx::query_scalar(
            "select 'the last run failed: ' || coalesce(r.error, '(no message)')
               from (select status, polled_at, error from elven_sync.sync_runs
                      where kind = 'incremental' and status <> 'running' order by run_id desc limit 1) r
              where r.status = 'failed' and r.polled_at is null",
        )
        .fetch_optional(database.single_round_trip())
    };
    Ok(database.retry(read).await?)
}

/// Marks runs that died: they are running according to their row, but their heartbeat is old. A run whose row is
/// locked is left for later: its worker may be suspended in the middle of a transaction.
async fn mark_interrupted(transaction: &mut Transaction) -> Result<(), sqlx::Error> {
    let interrupted = sqlx::query_scalar!(
        "update elven_sync.sync_runs
            set status = 'interrupted', finished_at = clock_timestamp(),
                error = 'the process ended without finishing the run'
          where run_id in (select run_id from elven_sync.sync_runs
                           where status = 'running' and alive_until < clock_timestamp()
                             for update skip locked)
      returning case when kind = 'backfill' then run_id end"
    )
    .fetch_all(&mut *transaction)
    .await?;
    if interrupted.into_iter().flatten().next().is_some() {
        // A locked backfill is just being started or cancelled.
        sqlx::query!(
            "update elven_sync.sync_backfills
                set status = 'interrupted', finished_at = clock_timestamp(),
                    error = 'the process ended without finishing the run'
              where backfill_id in (select b.backfill_id
                                      from elven_sync.sync_backfills b join elven_sync.sync_runs r using (run_id)
                                     where b.status = 'running' and r.status <> 'running'
                                       for update of b skip locked)"
        )
        .execute(transaction)
        .await?;
    }
    Ok(())
}
