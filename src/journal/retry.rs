//! Recorded errors, for the person who sees to them.

use std::time::Duration;

use super::batch_record::{AnsweredBatch, BatchOwner, BatchRecord, NewBatch, finish, insert};
use super::counters::{Done, count};
use super::counting::count_in_run;
use super::lease_check::{commit_if_held, hold};
use super::problem::record;
use super::{AttemptResult, Counters, Journal, JournalError, Lease, Problem};
use crate::batch::Batch;
use crate::database::Transaction;

/// The last answer to a batch outside of any pass.
#[derive(Clone, Copy, Debug)]
pub struct RetryAnswer<'a> {
    /// `sync_batches.status`.
    pub status: &'static str,
    /// What was wrong with it.
    pub error: Option<&'a str>,
    /// How often the batch was sent.
    pub attempts: u32,
    /// An earlier attempt may have arrived.
    pub ambiguous: bool,
    /// Its row was refused, and is set aside as before.
    pub stays_set_aside: bool,
}

/// What became of an error that was tried again.
#[derive(Clone, Copy, Debug)]
pub struct RetriedError<'a> {
    /// The error.
    pub error_id: i64,
    /// What resolved it, or what is wrong with its row, once more.
    pub outcome: Result<&'a str, &'a Problem>,
}

impl Journal {
    /// Of these rows of an entity, those whose present version was set aside, or which a person has dismissed:
    /// each with the last transaction that its problem can be about.
    pub async fn set_aside_until(
        &self,
        entity_id: &str,
        ids: &[String],
    ) -> Result<Vec<(String, u64)>, JournalError> {
        let rows = self
            .database
            .retry(|| {
                sqlx::query!(
                    r#"select e.ledger_id as "ledger_id!", max(b.last_xid::text::numeric)::text as until
                         from elven_sync.sync_errors e left join elven_sync.sync_batches b using (batch_id)
                        where e.entity_id = $1 and e.ledger_id = any ($2) and (e.resolved_at is null or e.dismissed)
                        group by e.ledger_id"#,
                    entity_id,
                    ids
                )
                .fetch_all(&self.database)
            })
            .await?;
        // Without a batch it was found by looking at the row as it is.
        let until = |text: Option<String>| text.and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
        Ok(rows.into_iter().map(|row| (row.ledger_id, until(row.until))).collect())
    }

    /// Records that the API asked not to be called for an entity for a while.
    pub async fn note_pause(&self, lease: &Lease, pause: Duration) -> Result<(), JournalError> {
        self.database
            .execute(|| {
                sqlx::query!(
                    "update elven_sync.sync_state
                        set not_before = greatest(not_before, clock_timestamp() + make_interval(secs => $4))
                      where entity_id = $1 and lease_epoch = $2 and lease_owner = $3",
                    lease.entity_id,
                    lease.epoch,
                    lease.owner,
                    pause.as_secs_f64()
                )
            })
            .await?;
        Ok(())
    }

    /// Records a batch outside of any pass that is about to be sent, and checks the lease by doing so.
    pub async fn announce_alone(
        &self,
        lease: &Lease,
        run_id: i64,
        batch: &Batch,
    ) -> Result<i64, JournalError> {
        let contents = BatchRecord::from(batch);
        let announce_alone = || async {
            let mut transaction = self.database.begin().await?;
            let held = hold(&mut transaction, lease, None, self.lease_seconds()).await?;
            // One that a worker was sending when it died may have arrived.
            sqlx::query!(
                "update elven_sync.sync_batches set status = 'unknown'
                  where entity_id = $1 and pass_id is null and backfill_id is null and status = 'sending'",
                lease.entity_id
            )
            .execute(&mut transaction)
            .await?;
            let owner = BatchOwner { run: run_id, work: None, entity: &lease.entity_id, parent: None };
            let [batch_id] =
                insert(&mut transaction, [NewBatch { owner, contents: &contents, attempts: 1 }]).await?;
            let ids: Vec<String> = batch.rows.iter().map(|row| row.id.to_string()).collect();
            sqlx::query!(
                "update elven_sync.sync_batches b set ambiguous = true
                  where b.batch_id = $1
                    and exists (select from elven_sync.sync_batches u
                                 where u.entity_id = $2 and u.pass_id is null and u.backfill_id is null and u.status = 'unknown'
                                   and exists (select from elven_sync.batch_row_ids(u.batch_id) id where id = any ($3)))",
                batch_id,
                lease.entity_id,
                &ids
            )
            .execute(&mut transaction)
            .await?;
            commit_if_held(transaction, held).await?;
            Ok(batch_id)
        };
        self.database.retry(announce_alone).await
    }

    /// Records the last answer to a batch outside of any pass, and what that means for the error it was for, if for
    /// one: an error that stays open although its row was accepted would have it sent again.
    pub async fn answered_alone(
        &self,
        lease: &Lease,
        run_id: i64,
        (batch_id, batch): (i64, &Batch),
        last: RetryAnswer<'_>,
        result: AttemptResult,
        tried: Option<RetriedError<'_>>,
    ) -> Result<(), JournalError> {
        let RetryAnswer { status, error, attempts, ambiguous, stays_set_aside } = last;
        let uploaded = if status == "accepted" { batch.records.len() } else { 0 };
        let answered =
            AnsweredBatch::of_entity(&lease.entity_id, (batch_id, batch), status, result).because(error);
        let of = (status == "accepted").then_some(batch);
        let counted = Counters::of(batch, result, Done { uploaded, rejected: 0, of });
        let answered_alone = || async {
            let mut transaction = self.database.begin().await?;
            let held = sqlx::query!(
                "update elven_sync.sync_state set rows_uploaded = rows_uploaded + $4
                  where entity_id = $1 and lease_epoch = $2 and lease_owner = $3",
                lease.entity_id,
                lease.epoch,
                lease.owner,
                i64::from(count(uploaded))
            )
            .execute(&mut transaction)
            .await?;
            sqlx::query!(
                "update elven_sync.sync_batches
                    set attempts = $2, ambiguous = ambiguous or $3,
                        row_count = case when $4 then 0 else row_count end,
                        rows_rejected = case when $4 then rows_rejected + row_count else rows_rejected end,
                        rejected_ids = case when $4 then row_ids else rejected_ids end
                  where batch_id = $1",
                batch_id,
                i32::try_from(attempts).unwrap_or(i32::MAX),
                ambiguous,
                stays_set_aside
            )
            .execute(&mut transaction)
            .await?;
            let done = finish(&mut transaction, &[&answered]).await?;
            if let Some(tried) = tried {
                conclude(&mut transaction, run_id, &lease.entity_id, tried).await?;
            }
            count_in_run(&mut transaction, run_id, &counted).await?;
            commit_if_held(transaction, held.rows_affected().min(done)).await
        };
        self.database.retry(answered_alone).await
    }

    /// Records what became of an error that was tried again without a request, under the lease of its entity.
    pub async fn retried(
        &self,
        lease: &Lease,
        run_id: i64,
        tried: RetriedError<'_>,
    ) -> Result<(), JournalError> {
        let retried = || async {
            let mut transaction = self.database.begin().await?;
            let held = hold(&mut transaction, lease, None, self.lease_seconds()).await?;
            conclude(&mut transaction, run_id, &lease.entity_id, tried).await?;
            commit_if_held(transaction, held).await
        };
        self.database.retry(retried).await
    }
}

/// Resolves an error, or counts it once more.
async fn conclude(
    transaction: &mut Transaction,
    run_id: i64,
    entity_id: &str,
    tried: RetriedError<'_>,
) -> Result<(), sqlx::Error> {
    match tried.outcome {
        Ok(resolution) => {
            sqlx::query!(
                "update elven_sync.sync_errors set resolved_at = clock_timestamp(), resolution = $2
                  where error_id = $1 and resolved_at is null",
                tried.error_id,
                resolution
            )
            .execute(transaction)
            .await?;
        }
        Err(problem) => {
            record(transaction, run_id, entity_id, std::slice::from_ref(problem)).await?;
        }
    }
    Ok(())
}
