//! The alerts, grouped: an outage of thousands of entities is one group.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::super::JournalError;
use super::without_amounts;
use crate::database::Transaction;

/// The most alerts of a group that are shown; all are counted.
const SHOWN_MAX: i64 = 5;

/// Alerts whose message is the connector's own and holds no text of the API or of the database server.
const OWN_MESSAGES: [&str; 14] = [
    "ClockSkew",
    "ConfigBroken",
    "GuardBroken",
    "NearRejectionBound",
    "OldWriter",
    "OpenErrors",
    "Paused",
    "Stale",
    "Throttled",
    "UnknownOutcome",
    "Unregistered",
    "VerifyFailed",
    "VerifyOld",
    "ZoneRulesOld",
];

/// The alerts of one name and severity.
#[derive(Clone, Debug, Serialize)]
pub struct AlertGroup {
    /// `alerts.name`.
    pub name: String,
    /// `alerts.severity`.
    pub severity: String,
    /// The number of alerts.
    pub alerts: i64,
    /// The oldest of them, some of all.
    pub oldest: Vec<AlertShown>,
}

/// An alert.
#[derive(Clone, Debug, Serialize)]
pub struct AlertShown {
    /// The entity. `None`: the installation.
    pub entity_id: Option<String>,
    /// Since when the condition holds.
    pub since: DateTime<Utc>,
    /// What is wrong, without amounts.
    pub message: String,
    /// The command to begin with.
    pub hint: String,
}

impl AlertGroup {
    /// Reads the view `alerts`, of all entities or of one; critical alerts come first.
    pub(super) async fn read(
        transaction: &mut Transaction,
        entity_id: Option<&str>,
    ) -> Result<Vec<Self>, JournalError> {
        let rows = sqlx::query!(
            r#"select name as "name!", severity as "severity!", entity_id, since as "since!", message as "message!",
                      hint as "hint!", alerts as "alerts!"
                 from (select a.*, count(*) over of_group as alerts, min(since) over of_group as oldest,
                              row_number() over (partition by name, severity order by since, entity_id) as place
                         from elven_sync.alerts a
                        where $1::text is null or entity_id = $1
                       window of_group as (partition by name, severity)) a
                where place <= $2
                order by severity <> 'critical', oldest, name, severity, place"#,
            entity_id,
            SHOWN_MAX
        )
        .fetch_all(transaction)
        .await?;
        let mut groups: Vec<Self> = Vec::new();
        for row in rows {
            let message = if OWN_MESSAGES.contains(&row.name.as_str()) {
                row.message
            } else {
                without_amounts(&row.message)
            };
            let alert = AlertShown { entity_id: row.entity_id, since: row.since, message, hint: row.hint };
            match groups.last_mut() {
                Some(group) if group.name == row.name && group.severity == row.severity => {
                    group.oldest.push(alert);
                }
                _ => groups.push(Self {
                    name: row.name,
                    severity: row.severity,
                    alerts: row.alerts,
                    oldest: vec![alert],
                }),
            }
        }
        Ok(groups)
    }

    /// The number of alerts that are not shown.
    pub fn left_out(&self) -> i64 {
        self.alerts - i64::try_from(self.oldest.len()).unwrap_or(self.alerts)
    }
}
