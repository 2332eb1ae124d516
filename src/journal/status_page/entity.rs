//! What the page of one entity shows.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::super::JournalError;
use super::day::read_by_time;
use super::{AlertGroup, Causes, Day, VerifyShown, now, without_amounts};
use crate::database::{Database, Transaction};

/// The most passes that are shown.
const PASSES_MAX: i64 = 10;
/// The most batches that are shown.
const BATCHES_MAX: i64 = 20;

/// What the page of an entity shows.
#[derive(Clone, Debug, Serialize)]
pub struct EntityPage {
    /// When the sync tables were read, by the clock of the database.
    pub as_of: DateTime<Utc>,
    /// The entity and its state.
    pub entity: EntityState,
    /// Its alerts.
    pub alerts: Vec<AlertGroup>,
    /// Its last day by quarter hours.
    pub day: Day,
    /// The causes of its open errors.
    pub causes: Causes,
    /// The last changes of its watermark, newest first.
    pub passes: Vec<PassShown>,
    /// The last batches of these passes, of backfills and of retries, newest first.
    pub batches: Vec<BatchShown>,
    /// The last `verify` of the entity alone, or that of all.
    pub verify: Option<VerifyShown>,
}

/// An entity and its state.
#[derive(Clone, Debug, Serialize)]
pub struct EntityState {
    /// The entity.
    pub entity_id: String,
    /// `sync_health.status`.
    pub status: String,
    /// Its time zone.
    pub timezone: String,
    /// The name of its credential.
    pub credential: String,
    /// The source of its records, for version 4 of the import.
    pub source_id: Option<String>,
    /// How old poll and pending rows may be, in seconds.
    pub freshness_s: i64,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
    /// Pending rows, as of `checked_at`.
    pub pending_rows: i64,
    /// `captured_at` of the oldest pending row.
    pub oldest_pending_at: Option<DateTime<Utc>>,
    /// The poll that first found rows which are pending.
    pub pending_since: Option<DateTime<Utc>>,
    /// When the pending rows were last known.
    pub checked_at: Option<DateTime<Utc>>,
    /// When the entity was last up to date.
    pub last_success_at: Option<DateTime<Utc>>,
    /// Why the last attempt failed, without amounts.
    pub last_error: Option<String>,
    /// Failed attempts since the last success.
    pub consecutive_failures: i32,
    /// Nothing is sent before this time.
    pub not_before: Option<DateTime<Utc>>,
    /// Until when a request whose answer was lost may still arrive.
    pub fence_until: Option<DateTime<Utc>>,
    /// The worker that holds the lease now.
    pub lease_owner: Option<String>,
    /// Records that the API accepted, ever.
    pub rows_uploaded: i64,
    /// Open errors.
    pub open_errors: i64,
}

/// A row of `sync_passes`.
#[derive(Clone, Debug, Serialize)]
pub struct PassShown {
    /// The pass.
    pub pass_id: i64,
    /// `pass`, or what else changed the watermark.
    pub kind: String,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended. `None`: it is open, or was abandoned by a rewind.
    pub finished_at: Option<DateTime<Utc>>,
    /// The run that began it.
    pub run_id: Option<i64>,
}

/// A batch.
#[derive(Clone, Debug, Serialize)]
pub struct BatchShown {
    /// The batch.
    pub batch_id: i64,
    /// What it belongs to: `pass`, `backfill` or `retry`.
    pub work: String,
    /// `sync_batches.status`.
    pub status: String,
    /// Records in the body.
    pub row_count: i32,
    /// Rows that were set aside.
    pub rows_rejected: i32,
    /// Rows that were superseded.
    pub rows_superseded: i32,
    /// Attempts.
    pub attempts: i32,
    /// An attempt had an unknown outcome, and the batch was sent again.
    pub ambiguous: bool,
    /// HTTP status of the last answer.
    pub http_status: Option<i32>,
    /// The time to the last answer, in milliseconds.
    pub duration_ms: Option<i64>,
    /// When it was recorded.
    pub created_at: DateTime<Utc>,
    /// When its answer was recorded.
    pub finished_at: Option<DateTime<Utc>>,
    /// Why the last answer was not a success, without amounts.
    pub error: Option<String>,
}

impl EntityPage {
    /// Reads the sync tables, in a transaction that only reads. `None`: the entity is not registered.
    pub async fn read(database: &Database, entity_id: &str) -> Result<Option<Self>, JournalError> {
        // PostgreSQL has no text with this character, so no entity has it.
        if entity_id.contains('\0') {
            return Ok(None);
        }
        let mut transaction = database.begin_snapshot().await?;
        let as_of = now(&mut transaction).await?;
        let page = match EntityState::read(&mut transaction, entity_id).await? {
            None => None,
            Some(entity) => {
                let verify = match VerifyShown::of(&mut transaction, entity_id).await? {
                    None => VerifyShown::of_all(&mut transaction).await?,
                    own => own,
                };
                let alerts = AlertGroup::read(&mut transaction, Some(entity_id)).await?;
                let causes = Causes::read(&mut transaction, Some(entity_id)).await?;
                let passes = PassShown::last(&mut transaction, entity_id).await?;
                read_by_time(&mut transaction).await?;
                let day = Day::read(&mut transaction, as_of, Some(entity_id)).await?;
                let batches = BatchShown::last(&mut transaction, entity_id).await?;
                Some(Self { as_of, entity, alerts, day, causes, passes, batches, verify })
            }
        };
        transaction.commit().await?;
        Ok(page)
    }
}

impl EntityState {
    async fn read(transaction: &mut Transaction, entity_id: &str) -> Result<Option<Self>, JournalError> {
        let found = sqlx::query_as!(
            Self,
            r#"select h.entity_id as "entity_id!", h.status as "status!", h.timezone as "timezone!",
                      e.credential as "credential!", e.source_id,
                      extract(epoch from e.freshness)::bigint as "freshness_s!", e.created_at as "created_at!",
                      h.pending_rows as "pending_rows!", h.oldest_pending_at, h.pending_since, h.checked_at,
                      h.last_success_at, h.last_error,
                      coalesce(s.consecutive_failures, 0) as "consecutive_failures!",
                      case when s.not_before > now() then s.not_before end as not_before,
                      case when s.fence_until > now() then s.fence_until end as fence_until,
                      case when s.lease_expires_at > now() then s.lease_owner end as lease_owner,
                      coalesce(s.rows_uploaded, 0) as "rows_uploaded!", h.open_errors as "open_errors!"
                 from elven_sync.sync_health h join elven_sync.entities e using (entity_id)
                 left join elven_sync.sync_state s using (entity_id)
                where h.entity_id = $1"#,
            entity_id
        )
        .fetch_optional(transaction)
        .await?;
        let shown =
            |state: Self| Self { last_error: state.last_error.as_deref().map(without_amounts), ..state };
        Ok(found.map(shown))
    }
}

impl PassShown {
    async fn last(transaction: &mut Transaction, entity_id: &str) -> Result<Vec<Self>, JournalError> {
        Ok(sqlx::query_as!(
            Self,
            "select pass_id, kind, started_at, finished_at, run_id from elven_sync.sync_passes
              where entity_id = $1 order by pass_id desc limit $2",
            entity_id,
            PASSES_MAX
        )
        .fetch_all(transaction)
        .await?)
    }
}

impl BatchShown {
    /// No index has the batches of passes by entity. So they are read through the last passes, as many as are shown of
    /// each.
    async fn last(transaction: &mut Transaction, entity_id: &str) -> Result<Vec<Self>, JournalError> {
        let mut batches = sqlx::query_as!(
            Self,
            r#"select b.batch_id as "batch_id!",
                      'pass' as "work!",
                      b.status as "status!", b.row_count as "row_count!", b.rows_rejected as "rows_rejected!",
                      b.rows_superseded as "rows_superseded!", b.attempts as "attempts!", b.ambiguous as "ambiguous!",
                      b.http_status, b.duration_ms, b.created_at as "created_at!", b.finished_at, b.error
                 from (select p.pass_id from elven_sync.sync_passes p
                        where p.entity_id = $1 order by p.pass_id desc limit $2) p
                cross join lateral (select * from elven_sync.sync_batches of_pass
                                     where of_pass.pass_id = p.pass_id order by of_pass.batch_id desc limit $3) b
                union all
               (select batch_id, case when backfill_id is not null then 'backfill' else 'retry' end, status, row_count,
                       rows_rejected, rows_superseded, attempts, ambiguous, http_status, duration_ms, created_at,
                       finished_at, error
                  from elven_sync.sync_batches
                 where entity_id = $1 and pass_id is null order by batch_id desc limit $3)
                order by 1 desc
                limit $3"#,
            entity_id,
            PASSES_MAX,
            BATCHES_MAX
        )
        .fetch_all(transaction)
        .await?;
        for batch in &mut batches {
            batch.error = batch.error.as_deref().map(without_amounts);
        }
        Ok(batches)
    }
}
