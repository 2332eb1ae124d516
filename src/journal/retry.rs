//! The errors of rows that are retried.

use std::time::Duration;

use super::{Journal, JournalError, Lease};

/// An error that is retried, as it is now.
#[derive(Clone, Debug)]
pub struct ErrorNow {
    /// The id of the error.
    pub error_id: i64,
    /// What is wrong with the row, if an error of it is open. That may be another error than this one.
    pub message: Option<String>,
    /// What resolved the error.
    pub resolution: Option<String>,
    /// The run has counted the error of the row once more.
    pub is_counted: bool,
    /// The outcome of an attempt with the row is unknown.
    pub may_have_arrived: bool,
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

    /// Returns errors of rows as they are now, for a retry in this run.
    pub async fn errors_now(&self, run_id: i64, error_ids: &[i64]) -> Result<Vec<ErrorNow>, JournalError> {
        let query = || {
            sqlx::query_as!(
                ErrorNow,
                r#"select e.error_id, o.message as "message?", e.resolution,
                          coalesce(o.run_id = $1, false) as "is_counted!",
                          coalesce(b.ambiguous or b.status = 'unknown', false) as "may_have_arrived!"
                     from elven_sync.sync_errors e
                     left join lateral (select * from elven_sync.sync_errors o
                                         where o.entity_id = e.entity_id and o.ledger_id = e.ledger_id
                                           and o.resolved_at is null
                                         order by o.error_id desc limit 1) o on true
                     left join elven_sync.sync_batches b on b.batch_id = o.batch_id
                    where e.error_id = any ($2)"#,
                run_id,
                error_ids
            )
            .fetch_all(&self.database)
        };
        Ok(self.database.retry(query).await?)
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
}
