//! The errors of rows that are retried.

use std::collections::HashMap;
use std::time::Duration;

use super::{Journal, JournalError, Lease, Wanted};
use crate::database::Database;

/// The open errors of rows of one entity.
#[derive(Clone, Debug)]
pub struct SetAside {
    /// The entity.
    pub entity_id: String,
    /// The ids of the errors. Those come last whose row the API may have imported in an attempt of unknown outcome.
    pub error_ids: Vec<i64>,
    /// The ids of the errors that hold rows, the oldest first.
    pub held: Vec<i64>,
}

impl SetAside {
    /// Returns the open errors of rows that match, by entity. They may be millions, so there are only their ids.
    pub async fn list(database: &Database, wanted: &Wanted) -> Result<Vec<Self>, JournalError> {
        let list = || {
            sqlx::query_as!(
                SetAside,
                r#"select e.entity_id,
                          coalesce(array_agg(e.error_id order by coalesce(b.ambiguous or b.status = 'unknown'
                                                                          or b.unknown_runs > 0, false), e.error_id)
                                       filter (where e.ledger_id is not null), '{}') as "error_ids!",
                          coalesce(array_agg(e.error_id order by e.error_id)
                                       filter (where e.ledger_ids is not null), '{}') as "held!"
                     from elven_sync.sync_errors e left join elven_sync.sync_batches b using (batch_id)
                    where e.resolved_at is null and (e.ledger_id is not null or e.ledger_ids is not null)
                      and (cardinality($1::bigint[]) = 0 or e.error_id = any ($1))
                      and (cardinality($2::text[]) = 0 or e.entity_id = any ($2))
                      and (cardinality($3::text[]) = 0 or e.kind = any ($3))
                      and (cardinality($4::text[]) = 0 or elven_sync.has_cause(e, $4))
                    group by e.entity_id order by e.entity_id"#,
                &wanted.ids,
                &wanted.entities,
                &wanted.kinds,
                &wanted.causes
            )
            .fetch_all(database)
        };
        Ok(database.retry(list).await?)
    }
}

/// The error of a row that is retried.
#[derive(Clone, Debug)]
pub struct RowError {
    /// The id of the error.
    pub error_id: i64,
    /// The row.
    pub ledger_id: String,
    /// Its kind, as in the table.
    pub kind: String,
    /// The error is open.
    pub is_open: bool,
}

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
    /// The same, and the batch of that attempt was never refused since: it was set aside because its outcome stayed
    /// unknown, or is one of a retry.
    pub may_be_imported: bool,
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
        let mut found: Vec<(String, u64)> =
            rows.into_iter().map(|row| (row.ledger_id, until(row.until))).collect();
        let held = self.held_until(entity_id, ids, true).await?;
        found.extend(held.into_iter().map(|(ledger_id, text)| (ledger_id, until(text))));
        Ok(found)
    }

    /// Returns the errors of rows with these ids, in their order.
    pub async fn row_errors(&self, error_ids: &[i64]) -> Result<Vec<RowError>, JournalError> {
        let query = || {
            sqlx::query_as!(
                RowError,
                r#"select e.error_id, e.ledger_id as "ledger_id!", e.kind, e.resolved_at is null as "is_open!"
                     from unnest($1::bigint[]) with ordinality w (error_id, place)
                     join elven_sync.sync_errors e using (error_id)
                    where e.ledger_id is not null
                    order by w.place"#,
                error_ids
            )
            .fetch_all(&self.database)
        };
        Ok(self.database.retry(query).await?)
    }

    /// Returns errors of rows of an entity as they are now, for a retry in this run. `errors`: their ids and their
    /// rows.
    pub async fn errors_now(
        &self,
        run_id: i64,
        entity_id: &str,
        errors: &[(i64, String)],
    ) -> Result<Vec<ErrorNow>, JournalError> {
        let (ids, rows): (Vec<i64>, Vec<String>) = errors.iter().cloned().unzip();
        let query = || {
            sqlx::query!(
                r#"select e.error_id, e.ledger_id as "ledger_id!", e.resolved_at is null as "is_open!", e.message,
                          e.resolution, coalesce(e.run_id = $1, false) as "is_counted!",
                          coalesce((select b.ambiguous or b.status = 'unknown' or b.unknown_runs > 0
                                      from elven_sync.sync_batches b
                                     where b.batch_id = e.batch_id), false) as "may_have_arrived!",
                          coalesce((select b.unknown_runs > 0 or b.pass_id is null and b.backfill_id is null
                                           and (b.ambiguous or b.status = 'unknown')
                                      from elven_sync.sync_batches b
                                     where b.batch_id = e.batch_id), false) as "may_be_imported!"
                     from elven_sync.sync_errors e
                    where e.entity_id = $2 and e.ledger_id = any ($3)
                      and (e.resolved_at is null or e.error_id = any ($4))"#,
                run_id,
                entity_id,
                &rows,
                &ids
            )
            .fetch_all(&self.database)
        };
        let (open, resolved): (Vec<_>, Vec<_>) =
            self.database.retry(query).await?.into_iter().partition(|row| row.is_open);
        let open: HashMap<&String, _> = open.iter().map(|row| (&row.ledger_id, row)).collect();
        let mut resolved: HashMap<i64, _> =
            resolved.into_iter().map(|row| (row.error_id, row.resolution)).collect();
        let now = errors.iter().map(|(error_id, ledger_id)| {
            let open = open.get(ledger_id);
            ErrorNow {
                error_id: *error_id,
                message: open.map(|row| row.message.clone()),
                resolution: resolved.remove(error_id).flatten(),
                is_counted: open.is_some_and(|row| row.is_counted),
                may_have_arrived: open.is_some_and(|row| row.may_have_arrived),
                may_be_imported: open.is_some_and(|row| row.may_be_imported),
            }
        });
        Ok(now.collect())
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
