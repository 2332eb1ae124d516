//! Entities and their health.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgExecutor;

use super::JournalError;
use super::storable_text::storable_one;
use crate::database::Database;
use crate::text::{known_names, most_similar, quoted, quoted_argument};

/// A registered entity.
#[derive(Clone, Debug, Serialize)]
pub struct Entity {
    /// Its id, spelled as in the ledger.
    pub entity_id: String,
    /// Its IANA time zone; checked when it is used.
    pub timezone: String,
    /// Name of its credential in the configuration.
    pub credential: String,
    /// Left out by runs and backfills.
    pub paused: bool,
    /// The balance source at Elven that its records belong to. Version 4 of the import needs it.
    pub source_id: Option<String>,
    /// For how many seconds a poll is recent enough, and for how many rows may be pending: `entities.freshness`.
    pub freshness_s: i64,
}

/// One row of `sync_health`.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    /// The entity.
    pub entity_id: String,
    /// Its zone.
    pub timezone: String,
    /// `paused`, `failing`, `stale`, `incomplete`, `behind` or `ok`.
    pub status: String,
    /// The number of pending rows. `None`: the database cannot count them.
    pub pending_rows: Option<i64>,
    /// The oldest `captured_at` among them.
    pub oldest_pending_at: Option<DateTime<Utc>>,
    /// When a poll first found the rows that are pending. `None`: the last poll found none.
    pub pending_since: Option<DateTime<Utc>>,
    /// When the pending rows were last known. `None`: no run has polled the entity yet.
    pub checked_at: Option<DateTime<Utc>>,
    /// When it was last brought up to date.
    pub last_success_at: Option<DateTime<Utc>>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    /// The number of open errors.
    pub open_errors: i64,
}

impl Entity {
    /// The default of `freshness_s`.
    pub const FRESHNESS_S: i64 = 3600;

    /// Registers an entity. Returns `false`, and changes nothing, if it was already registered.
    pub async fn add(database: &Database, entity: &Entity) -> Result<bool, JournalError> {
        let add = || async {
            let mut transaction = database.begin().await?;
            let added = Self::insert(&mut transaction, entity).await?;
            transaction.commit().await?;
            Ok(added)
        };
        database.retry(add).await.map_err(super::name_maps::refused)
    }

    pub(super) async fn insert(executor: impl PgExecutor<'_>, entity: &Entity) -> Result<bool, sqlx::Error> {
        let done = sqlx::query!(
            "insert into elven_sync.entities (entity_id, timezone, credential, paused, source_id, freshness)
             values ($1, $2, $3, $4, $5, $6::bigint * interval '1 second') on conflict do nothing",
            entity.entity_id,
            entity.timezone,
            entity.credential,
            entity.paused,
            entity.source_id,
            entity.freshness_s
        )
        .execute(executor)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Returns all registered entities, ordered by id.
    pub async fn list(database: &Database) -> Result<Vec<Entity>, JournalError> {
        Ok(database
            .retry(|| {
                sqlx::query_as!(
                    Entity,
                    r#"select entity_id, timezone, credential, paused, source_id,
                              extract(epoch from freshness)::bigint as "freshness_s!"
                         from elven_sync.entities order by entity_id"#
                )
                .fetch_all(database.single_round_trip())
            })
            .await?)
    }

    /// Returns the ids of the entities of which Elven accepted a record.
    pub async fn with_uploads(database: &Database) -> Result<BTreeSet<String>, JournalError> {
        let read = || {
            sqlx::query_scalar!("select entity_id from elven_sync.sync_state where rows_uploaded > 0")
                .fetch_all(database.single_round_trip())
        };
        Ok(database.retry(read).await?.into_iter().collect())
    }

    /// Returns for how long the API asked that nothing is sent, for each credential of which it did so.
    pub async fn pauses_of_credentials(database: &Database) -> Result<Vec<(String, Duration)>, JournalError> {
        let read = || {
            sqlx::query!(
                r#"select e.credential as "credential!",
                          extract(epoch from max(s.not_before) - clock_timestamp())::float8 as "left_s!"
                     from elven_sync.entities e join elven_sync.sync_state s using (entity_id)
                    where s.not_before > clock_timestamp() group by e.credential"#
            )
            .fetch_all(database.single_round_trip())
        };
        let rows = database.retry(read).await?;
        let pause = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        Ok(rows.into_iter().map(|row| (row.credential, pause(row.left_s))).collect())
    }

    /// Returns the names of the credentials that these entities have, each once and in order.
    pub fn credentials(entities: &[Self]) -> Vec<String> {
        let names: BTreeSet<&String> = entities.iter().map(|entity| &entity.credential).collect();
        names.into_iter().cloned().collect()
    }

    /// Sets time zone, credential, source and freshness of an entity. Returns `false` if it is not registered.
    ///
    /// # Errors
    /// With this credential, one account at Elven would be fed by two entities: [`JournalError::Refused`].
    pub async fn set(database: &Database, entity: &Entity) -> Result<bool, JournalError> {
        let update = || {
            sqlx::query!(
                "update elven_sync.entities
                    set timezone = $2, credential = $3, source_id = $4,
                        freshness = case when extract(epoch from freshness)::bigint = $5::bigint then freshness
                                         else $5::bigint * interval '1 second' end
                  where entity_id = $1",
                entity.entity_id,
                entity.timezone,
                entity.credential,
                entity.source_id,
                entity.freshness_s
            )
        };
        let done = database.execute(update).await.map_err(super::name_maps::refused)?;
        Ok(done.rows_affected() == 1)
    }

    /// Pauses or resumes an entity, and records the reason with the action. Returns `false` if nothing has changed.
    pub async fn set_paused(
        database: &Database,
        entity_id: &str,
        paused: bool,
        reason: Option<&str>,
    ) -> Result<bool, JournalError> {
        let set_paused = async || {
            let mut transaction = database.begin().await?;
            let set = "update elven_sync.entities set paused = $2 where entity_id = $1 and paused <> $2";
            let set = sqlx::query(set).bind(entity_id).bind(paused).execute(&mut transaction).await?;
            let is_changed = set.rows_affected() == 1;
            let reason = storable_one(&mut transaction, reason).await?;
            if let Some(reason) = reason.filter(|_| is_changed) {
                // The trigger has recorded the action; the row of the entity is locked, so it is the newest one.
                let explain = "
                    update elven_sync.sync_actions set reason = $2
                     where action_id = (select max(action_id) from elven_sync.sync_actions
                                         where entity_id = $1 and action in ('entity_pause', 'entity_resume'))";
                sqlx::query(explain).bind(entity_id).bind(reason).execute(&mut transaction).await?;
            }
            transaction.commit().await?;
            Ok(is_changed)
        };
        Ok(database.retry(set_paused).await.map_err(|problem: sqlx::Error| problem)?)
    }
}

impl Health {
    /// Returns whether a person has to act: the last attempt failed, no run has polled the entity or uploaded its rows
    /// for longer than its freshness, or rows are set aside.
    pub fn needs_a_person(&self) -> bool {
        matches!(self.status.as_str(), "failing" | "stale" | "incomplete")
    }

    /// Takes over a count of pending rows that was made just now. The status follows it as in the view `sync_health`:
    /// an entity is behind while rows are pending, and until a run has looked for them.
    pub fn count(&mut self, pending_rows: i64, oldest_pending_at: Option<DateTime<Utc>>) {
        (self.pending_rows, self.oldest_pending_at) = (Some(pending_rows), oldest_pending_at);
        if matches!(self.status.as_str(), "ok" | "behind") {
            let is_behind = self.checked_at.is_none() || pending_rows > 0;
            (if is_behind { "behind" } else { "ok" }).clone_into(&mut self.status);
        }
    }

    /// Returns the rows of the view `sync_health`.
    pub async fn list(database: &Database) -> Result<Vec<Health>, JournalError> {
        Ok(database
            .retry(|| {
                sqlx::query_as!(
                    Health,
                    r#"select entity_id as "entity_id!", timezone as "timezone!", status as "status!",
                              pending_rows as "pending_rows?", oldest_pending_at, pending_since, checked_at,
                              last_success_at,
                              last_error,
                              open_errors as "open_errors!"
                         from elven_sync.sync_health order by entity_id"#
                )
                .fetch_all(database)
            })
            .await?)
    }
}

/// Returns the message for an entity that is not registered: it says which entities there are.
pub fn unknown_entity(entity_id: &str, known: &[&str]) -> String {
    if let Some(similar) = most_similar(entity_id, known) {
        return format!("entity `{entity_id}` is not registered; did you mean `{similar}`?");
    }
    match known_names(entity_id, known) {
        Some(known) => {
            format!(
                "entity `{entity_id}` is not registered; registered: {known}; hint: elven-sync entity list"
            )
        }
        None => {
            format!("no entity is registered, `{entity_id}` neither; hint: {}", registering(entity_id))
        }
    }
}

/// Returns the hint for rows of an entity that is not registered: the command that registers it.
pub fn registering(entity_id: &str) -> String {
    if entity_id.trim().is_empty() {
        return "fill the entity_id of these rows".to_owned();
    }
    if entity_id.contains(char::is_control) {
        return "correct the entity_id of these rows: it has a control character, and cannot be registered"
            .to_owned();
    }
    if entity_id.starts_with('-') {
        return format!("elven-sync entity add --timezone ZONE {}", quoted_argument(entity_id));
    }
    format!("elven-sync entity add {} --timezone ZONE", quoted(entity_id))
}
