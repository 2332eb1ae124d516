//! What metrics show of the sync tables, read in one snapshot.
//!
//! Each statement reads tables whose size is that of the installation, not of its history.

use strum::VariantNames as _;

use super::{JournalError, Kind, PrintLine, RequestCounts};
use crate::database::Database;

/// Above this number of entities, only those that are not `ok` are listed.
pub const ENTITIES_LISTED_MAX: i64 = 500;

/// Each status of `sync_health`.
pub const STATUSES: [&str; 6] = ["paused", "failing", "stale", "incomplete", "behind", "ok"];

/// What metrics show of an entity. Times are seconds since 1970.
#[derive(Clone, Debug)]
pub struct EntityReading {
    /// The entity.
    pub entity_id: String,
    /// Its credential.
    pub credential: String,
    /// `sync_health.status`.
    pub status: String,
    /// Pending rows.
    pub pending_rows: i64,
    /// The poll that first found rows pending. `None`: none is pending.
    pub pending_since: Option<f64>,
    /// When its pending rows were last known.
    pub checked_at: Option<f64>,
    /// When it was last up to date.
    pub last_success_at: Option<f64>,
    /// Records that the API accepted, ever.
    pub rows_uploaded: i64,
    /// Failed attempts since the last success.
    pub consecutive_failures: i32,
}

/// The number of alerts with a name and a severity.
#[derive(Clone, Debug)]
pub struct AlertReading {
    /// `alerts.name`.
    pub name: String,
    /// `alerts.severity`.
    pub severity: String,
    /// The number of alerts.
    pub alerts: i64,
}

/// What metrics show of the sync tables.
#[derive(Clone, Debug)]
pub struct Readings {
    /// All entities, or only those that are not `ok`: see [`ENTITIES_LISTED_MAX`].
    pub entities: Vec<EntityReading>,
    /// The number of all entities.
    pub entities_total: i64,
    /// Records that the API accepted, ever, also of entities that are not registered any more.
    pub rows_uploaded: i64,
    /// Requests by outcome.
    pub requests: RequestCounts,
    /// The newest poll, in seconds since 1970. `None`: there was none yet.
    pub polled_at: Option<f64>,
    /// The number of alerts by name and severity.
    pub alerts: Vec<AlertReading>,
    /// The number of open errors by kind: each kind, also those without an error.
    pub open_errors: Vec<(String, i64)>,
    /// The latest print of the journal.
    pub print: Option<PrintLine>,
}

impl Readings {
    /// Returns whether all entities are listed.
    pub fn lists_all(&self) -> bool {
        self.entities_total <= ENTITIES_LISTED_MAX
    }

    /// Returns the number of entities with a status.
    pub fn with_status(&self, status: &str) -> i64 {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let listed = number(self.entities.iter().filter(|entity| entity.status == status).count());
        let not_listed = self.entities_total - number(self.entities.len());
        if status == "ok" { listed + not_listed } else { listed }
    }

    /// Reads the sync tables, in transactions that only read. They are not retried: a scrape has no time for that.
    ///
    /// The alerts are read at the same time in a transaction of their own, because they take as long as all the rest.
    pub async fn read(database: &Database) -> Result<Self, JournalError> {
        let (readings, alerts) = tokio::try_join!(Self::without_alerts(database), alerts(database))?;
        Ok(Self { alerts, ..readings })
    }

    async fn without_alerts(database: &Database) -> Result<Self, JournalError> {
        let mut transaction = database.begin_snapshot().await?;
        let entities = sqlx::query_as!(
            EntityReading,
            r#"select h.entity_id as "entity_id!", e.credential as "credential!", h.status as "status!",
                      h.pending_rows as "pending_rows!",
                      extract(epoch from h.pending_since)::float8 as pending_since,
                      extract(epoch from h.checked_at)::float8 as checked_at,
                      extract(epoch from h.last_success_at)::float8 as last_success_at,
                      coalesce(s.rows_uploaded, 0) as "rows_uploaded!",
                      coalesce(s.consecutive_failures, 0) as "consecutive_failures!"
                 from elven_sync.sync_health h join elven_sync.entities e using (entity_id)
                 left join elven_sync.sync_state s using (entity_id)
                where h.status <> 'ok' or (select count(*) from elven_sync.entities) <= $1
                order by 1"#,
            ENTITIES_LISTED_MAX
        )
        .fetch_all(&mut transaction)
        .await?;
        let totals = sqlx::query!(
            r#"select (select count(*) from elven_sync.entities) as "entities!",
                      coalesce(sum(rows_uploaded), 0)::bigint as "rows_uploaded!",
                      coalesce(sum(requests_accepted), 0)::bigint as "accepted!",
                      coalesce(sum(requests_refused), 0)::bigint as "refused!",
                      coalesce(sum(requests_throttled), 0)::bigint as "throttled!",
                      coalesce(sum(requests_unknown), 0)::bigint as "unknown!",
                      extract(epoch from greatest(max(elven_sync.past(checked_at)), max(elven_sync.past(pending_since)),
                          (select max(polled_at) from elven_sync.sync_runs
                            where polled_at <= now() + interval '5 minutes')))::float8 as polled_at
                 from elven_sync.sync_state"#
        )
        .fetch_one(&mut transaction)
        .await?;
        let found = sqlx::query!(
            r#"select kind, count(*) as "errors!" from elven_sync.sync_errors where resolved_at is null group by 1"#
        )
        .fetch_all(&mut transaction)
        .await?;
        let print = PrintLine::latest(&mut transaction).await?;
        transaction.commit().await?;
        let errors =
            |kind: &str| found.iter().find(|found| found.kind == kind).map_or(0, |found| found.errors);
        Ok(Self {
            entities,
            entities_total: totals.entities,
            rows_uploaded: totals.rows_uploaded,
            requests: RequestCounts {
                accepted: totals.accepted,
                refused: totals.refused,
                throttled: totals.throttled,
                unknown: totals.unknown,
            },
            polled_at: totals.polled_at,
            alerts: Vec::new(),
            open_errors: Kind::VARIANTS.iter().map(|kind| ((*kind).to_owned(), errors(kind))).collect(),
            print,
        })
    }
}

/// Returns the number of alerts by name and severity.
async fn alerts(database: &Database) -> Result<Vec<AlertReading>, JournalError> {
    Ok(sqlx::query_as!(
        AlertReading,
        r#"select name as "name!", severity as "severity!", count(*) as "alerts!" from elven_sync.alerts
            group by 1, 2 order by 1, 2"#
    )
    .fetch_all(database)
    .await?)
}
