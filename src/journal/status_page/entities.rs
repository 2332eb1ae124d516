//! The entities, worst first.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::super::JournalError;
use super::day::Hours;
use crate::database::Transaction;

/// The most entities that are listed; all are counted.
const LISTED_MAX: i64 = 300;

/// The entities.
#[derive(Clone, Debug, Serialize)]
pub struct Entities {
    /// The number of all entities.
    pub total: i64,
    /// Their number by status, worst first; a status without entities is left out.
    pub by_status: Vec<StatusCount>,
    /// The worst ones.
    pub worst: Vec<EntityShown>,
}

/// The number of entities with a status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StatusCount {
    /// `sync_health.status`.
    pub status: String,
    /// The number of entities.
    pub entities: i64,
}

/// An entity of the list.
#[derive(Clone, Debug, Serialize)]
pub struct EntityShown {
    /// The entity.
    pub entity_id: String,
    /// `sync_health.status`.
    pub status: String,
    /// Pending rows, as of `checked_at`.
    pub pending_rows: i64,
    /// `captured_at` of the oldest pending row.
    pub oldest_pending_at: Option<DateTime<Utc>>,
    /// When the pending rows were last known.
    pub checked_at: Option<DateTime<Utc>>,
    /// When the entity was last up to date.
    pub last_success_at: Option<DateTime<Utc>>,
    /// Open errors.
    pub open_errors: i64,
    /// Rows that were uploaded, by hours since `day.from`, oldest first.
    pub uploaded_by_hour: Hours,
}

impl Entities {
    /// Reads the view `sync_health`.
    pub(super) async fn read(transaction: &mut Transaction) -> Result<Self, JournalError> {
        let by_status = sqlx::query_as!(
            StatusCount,
            r#"select status as "status!", count(*) as "entities!" from elven_sync.sync_health
                group by status
                order by array_position(array['failing', 'stale', 'incomplete', 'behind', 'paused', 'ok'], status)"#
        )
        .fetch_all(&mut *transaction)
        .await?;
        let rows = sqlx::query!(
            r#"select entity_id as "entity_id!", status as "status!", pending_rows as "pending_rows!",
                      oldest_pending_at, checked_at, last_success_at, open_errors as "open_errors!"
                 from elven_sync.sync_health
                order by array_position(array['failing', 'stale', 'incomplete', 'behind', 'paused', 'ok'], status),
                         open_errors desc, pending_rows desc, entity_id
                limit $1"#,
            LISTED_MAX
        )
        .fetch_all(&mut *transaction)
        .await?;
        let shown = rows.into_iter().map(|row| EntityShown {
            entity_id: row.entity_id,
            status: row.status,
            pending_rows: row.pending_rows,
            oldest_pending_at: row.oldest_pending_at,
            checked_at: row.checked_at,
            last_success_at: row.last_success_at,
            open_errors: row.open_errors,
            uploaded_by_hour: Hours::default(),
        });
        let worst = shown.collect();
        Ok(Self { total: by_status.iter().map(|count| count.entities).sum(), by_status, worst })
    }

    /// Reads what the listed entities uploaded since the beginning of the day.
    pub(super) async fn read_hours(
        &mut self,
        transaction: &mut Transaction,
        from: DateTime<Utc>,
    ) -> Result<(), JournalError> {
        let ids: Vec<String> = self.worst.iter().map(|entity| entity.entity_id.clone()).collect();
        for (entity, hours) in self.worst.iter_mut().zip(Hours::read(transaction, &ids, from).await?) {
            entity.uploaded_by_hour = hours;
        }
        Ok(())
    }

    /// The number of entities with a status.
    pub fn with_status(&self, status: &str) -> i64 {
        self.by_status.iter().find(|count| count.status == status).map_or(0, |count| count.entities)
    }

    /// The number of entities that are not listed.
    pub fn left_out(&self) -> i64 {
        self.total - i64::try_from(self.worst.len()).unwrap_or(self.total)
    }
}
