//! What the webhook was told of each alert, and the messages that are not delivered yet.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::JournalError;
use super::storable_text::storable_one;
use crate::config::Severity;
use crate::database::Database;

/// A row of the view `alerts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// The name of the condition.
    pub name: String,
    /// How much attention it needs.
    pub severity: Severity,
    /// The entity. `None`: the installation.
    pub entity_id: Option<String>,
    /// Since when the condition holds.
    pub since: DateTime<Utc>,
    /// What is wrong.
    pub message: String,
    /// The command to begin with.
    pub hint: String,
}

impl Alert {
    /// Returns what the alert is about, as `sync_notifications.subjects` names it. The hint tells alerts of one name
    /// about the installation apart, e.g. two backfills.
    pub fn subject(&self) -> &str {
        self.entity_id.as_deref().unwrap_or(&self.hint)
    }
}

/// What a message says about an alert: its `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::AsRefStr, strum::EnumString)]
pub enum MessageKind {
    /// The condition began.
    #[strum(serialize = "alert.began")]
    Began,
    /// It became critical, or concerns more entities.
    #[strum(serialize = "alert.worse")]
    Worse,
    /// It ended.
    #[strum(serialize = "alert.ended")]
    Ended,
}

/// What is told of an alert: of all rows with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Begin, change or end.
    pub kind: MessageKind,
    /// When the message was made.
    pub at: DateTime<Utc>,
    /// The highest severity among its rows.
    pub severity: Severity,
    /// The number of rows.
    pub count: i64,
    /// The earliest `since` among its rows.
    pub since: DateTime<Utc>,
    /// The entities that the message lists.
    pub entities: Vec<String>,
    /// All entities that were told, and for which the alert has held since then; see [`Alert::subject`].
    pub subjects: Vec<String>,
}

/// A row of `sync_notifications`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// The alert.
    pub name: String,
    /// Grows with each change.
    pub revision: i64,
    /// The last message that was delivered.
    pub told: Option<Told>,
    /// The subjects that were told as critical since the alert was quiet for an hour.
    pub critical: Vec<String>,
    /// A message is not delivered yet.
    pub is_undelivered: bool,
}

/// What holds now, and what was told.
#[derive(Clone, Debug)]
pub struct AlertsNow {
    /// The time by the clock of the database.
    pub now: DateTime<Utc>,
    /// The fact `webhook` says that alerts can be delivered.
    pub is_webhook_well: bool,
    /// The alerts.
    pub alerts: Vec<Alert>,
    /// What was told of alerts, also of those that have ended.
    pub notifications: Vec<Notification>,
}

/// A message that this worker posts.
#[derive(Clone, Debug)]
pub struct ClaimedMessage {
    /// The alert.
    pub name: String,
    /// The id, the same each time the message is posted.
    pub message_id: String,
    /// The JSON.
    pub json: String,
    /// How often it was claimed, this time included.
    pub attempts: i32,
    /// The Unix time by the clock of the database.
    pub claimed_at_s: i64,
    /// The end of the claim, which identifies it.
    pub claimed_until: DateTime<Utc>,
}

impl AlertsNow {
    /// Reads alerts and notifications in one snapshot.
    pub async fn read(database: &Database) -> Result<Self, JournalError> {
        database.retry(|| Self::read_once(database)).await
    }

    async fn read_once(database: &Database) -> Result<Self, JournalError> {
        let mut transaction = database.begin_snapshot().await?;
        let state = sqlx::query!(
            r#"select clock_timestamp() as "now!",
                      exists (select from elven_sync.sync_facts f
                               where f.name = 'webhook' and f.value -> 'ok' = 'true'::jsonb) as "is_webhook_well!""#
        )
        .fetch_one(&mut transaction)
        .await?;
        // A time out of the range of the program, such as infinity, must not hide all alerts.
        let alerts = sqlx::query!(
            r#"select name as "name!", severity = 'critical' as "is_critical!", entity_id,
                      greatest(least(since, now()), '0001-01-01Z') as "since!", message as "message!", hint as "hint!"
                 from elven_sync.alerts"#
        )
        .fetch_all(&mut transaction)
        .await?;
        let rows = sqlx::query!(
            r#"select name, revision, told_type, told_at, severity = 'critical' as is_critical, alert_count, since,
                      entities, subjects, critical_subjects, message_id is not null as "is_undelivered!"
                 from elven_sync.sync_notifications order by name"#
        )
        .fetch_all(&mut transaction)
        .await?;
        transaction.commit().await?;
        let alerts = alerts.into_iter().map(|row| Alert {
            name: row.name,
            severity: severity(row.is_critical),
            entity_id: row.entity_id,
            since: row.since,
            message: row.message,
            hint: row.hint,
        });
        let notifications = rows.into_iter().map(|row| Notification {
            name: row.name,
            revision: row.revision,
            // All of them are NULL, or none is.
            told: row.told_type.and_then(|kind| {
                Some(Told {
                    kind: kind.parse().ok()?,
                    at: row.told_at?,
                    severity: severity(row.is_critical?),
                    count: row.alert_count?,
                    since: row.since?,
                    entities: row.entities?,
                    subjects: row.subjects?,
                })
            }),
            critical: row.critical_subjects,
            is_undelivered: row.is_undelivered,
        });
        Ok(Self {
            now: state.now,
            is_webhook_well: state.is_webhook_well,
            alerts: alerts.collect(),
            notifications: notifications.collect(),
        })
    }
}

fn severity(is_critical: bool) -> Severity {
    if is_critical { Severity::Critical } else { Severity::Warning }
}

/// Records a message, unless the notification has changed meanwhile: then another worker has decided, too.
///
/// `revision`: that of the notification on which the decision is based; 0 if there was none. `critical`: the subjects
/// that were told as critical, with this message. `json`: in ASCII.
pub async fn record_message(
    database: &Database,
    name: &str,
    revision: i64,
    told: &Told,
    critical: &[String],
    json: &str,
) -> Result<(), JournalError> {
    let record = || async {
        let mut transaction = database.begin().await?;
        sqlx::query!(
            "insert into elven_sync.sync_notifications as n
                    (name, message_id, message_type, message_at, message_severity, message_count, message_since,
                     message_entities, message_subjects, message, critical_subjects)
             values ($1, 'msg_' || replace(gen_random_uuid()::text, '-', ''), $3, $4, $5, $6, $7, $8, $9, $10, $11)
             on conflict (name) do update
                set revision = n.revision + 1,
                    message_id = excluded.message_id,
                    message_type = excluded.message_type,
                    message_at = excluded.message_at,
                    message_severity = excluded.message_severity,
                    message_count = excluded.message_count,
                    message_since = excluded.message_since,
                    message_entities = excluded.message_entities,
                    message_subjects = excluded.message_subjects,
                    message = excluded.message,
                    critical_subjects = excluded.critical_subjects
              where n.revision = $2 and n.message_id is null",
            name,
            revision,
            told.kind.as_ref(),
            told.at,
            told.severity.as_ref(),
            told.count,
            told.since,
            &told.entities,
            &told.subjects,
            json,
            critical
        )
        .execute(&mut transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    };
    database.retry(record).await
}

/// Records that an alert that was told has ended for some of its subjects. `subjects`: the others.
pub async fn keep_subjects(
    database: &Database,
    name: &str,
    revision: i64,
    subjects: &[String],
) -> Result<(), JournalError> {
    let keep = || {
        sqlx::query!(
            "update elven_sync.sync_notifications set subjects = $3, revision = revision + 1
              where name = $1 and revision = $2 and message_id is null",
            name,
            revision,
            subjects
        )
    };
    database.execute(keep).await?;
    Ok(())
}

/// Claims a message: one that was never posted, or else the oldest one that is due. No other worker posts it before the
/// claim expires.
///
/// `expires_in`: longer than a post takes. `without`: alerts that were tried already.
pub async fn claim_message(
    database: &Database,
    expires_in: Duration,
    without: &[String],
) -> Result<Option<ClaimedMessage>, JournalError> {
    let claim = || async {
        let mut transaction = database.begin().await?;
        let claimed = sqlx::query_as!(
            ClaimedMessage,
            r#"update elven_sync.sync_notifications
                  set attempts = attempts + 1, claimed_until = clock_timestamp() + make_interval(secs => $1)
                where name = (select name from elven_sync.sync_notifications
                               where message_id is not null and name <> all ($2)
                                 and coalesce(claimed_until <= clock_timestamp(), true)
                                 and coalesce(not_before <= clock_timestamp(), true)
                               order by attempts > 0, message_at, name
                               limit 1 for update skip locked)
            returning name, message_id as "message_id!", message as "json!", attempts,
                      extract(epoch from clock_timestamp())::bigint as "claimed_at_s!",
                      claimed_until as "claimed_until!""#,
            expires_in.as_secs_f64(),
            without
        )
        .fetch_optional(&mut transaction)
        .await?;
        transaction.commit().await?;
        Ok(claimed)
    };
    database.retry(claim).await
}

impl ClaimedMessage {
    /// Records that the message was delivered, also when the claim has expired meanwhile.
    pub async fn delivered(&self, database: &Database) -> Result<(), JournalError> {
        let record = || {
            sqlx::query!(
                "update elven_sync.sync_notifications
                    set revision = revision + 1,
                        told_type = message_type,
                        told_at = message_at,
                        severity = message_severity,
                        alert_count = message_count,
                        since = message_since,
                        entities = message_entities,
                        subjects = message_subjects,
                        message_id = null,
                        message_type = null,
                        message_at = null,
                        message_severity = null,
                        message_count = null,
                        message_since = null,
                        message_entities = null,
                        message_subjects = null,
                        message = null,
                        attempts = 0,
                        claimed_until = null,
                        not_before = null,
                        last_error = null
                  where name = $1 and message_id = $2",
                self.name,
                self.message_id
            )
        };
        database.execute(record).await?;
        Ok(())
    }

    /// Records that the message was not delivered, and gives it back. `wait`: how long it is not posted again.
    /// `all_wait`: nor is any other message, because the webhook does not work.
    pub async fn not_delivered(
        &self,
        database: &Database,
        problem: &str,
        wait: Duration,
        all_wait: bool,
    ) -> Result<(), JournalError> {
        let record = || async {
            let mut transaction = database.begin().await?;
            let problem = storable_one(&mut transaction, Some(problem)).await?;
            // Not if another worker has claimed the message since.
            sqlx::query!(
                "update elven_sync.sync_notifications
                    set claimed_until = null, last_error = $4,
                        not_before = clock_timestamp() + make_interval(secs => $5)
                  where name = $1 and message_id = $2 and claimed_until = $3",
                self.name,
                self.message_id,
                self.claimed_until,
                problem,
                wait.as_secs_f64()
            )
            .execute(&mut transaction)
            .await?;
            transaction.commit().await?;
            Ok::<_, JournalError>(())
        };
        database.retry(record).await?;
        if all_wait {
            let others = || {
                sqlx::query!(
                    "update elven_sync.sync_notifications
                        set not_before = greatest(not_before, clock_timestamp() + make_interval(secs => $2))
                      where message_id is not null and name <> $1",
                    self.name,
                    wait.as_secs_f64()
                )
            };
            database.execute(others).await?;
        }
        Ok(())
    }
}

/// Returns why a message could not be delivered so far, if there is one.
pub async fn undelivered_message(database: &Database) -> Result<Option<String>, JournalError> {
    let read = || async {
        let problem = sqlx::query_scalar!(
            r#"select last_error as "problem!" from elven_sync.sync_notifications
                where message_id is not null and last_error is not null order by message_at, name limit 1"#
        );
        Ok(problem.fetch_optional(database).await?)
    };
    database.retry(read).await
}
