//! The health of all entities, with live counts.

use std::collections::BTreeMap;

use crate::config::Settings;
use crate::database::Database;
use crate::journal::{AlertsNow, Health, Journal, client_name};
use crate::ledger::{self, Ledger, Pending};
use crate::sync::RunError;
use crate::sync::pending::unregistered;
use crate::sync::watermark_check as fit;
use crate::sync::worker::warn_of;

/// The alert that names `status` as the command to begin with.
const WEBHOOK_FAILING: &str = "WebhookFailing";

/// What `status` shows.
#[derive(Debug, Default)]
pub struct HealthReport {
    /// The rows of `sync_health`, with live counts of pending rows.
    pub entities: Vec<Health>,
    /// Entities of the ledger that are not registered; their rows are pending.
    pub unregistered: Vec<String>,
    /// Why unregistered entities could not be looked for, if that failed.
    pub unregistered_unknown: Option<String>,
    /// The number of entities of the ledger that are not registered and are left out on request.
    pub entities_left_out: usize,
    /// The oldest open transaction that has written to the ledger.
    pub oldest_writer: Option<ledger::Writer>,
    /// Why alerts cannot be delivered to the webhook, if they cannot.
    pub webhook_failure: Option<String>,
}

/// Returns the rows of `sync_health` with live counts of pending rows, the entities that are not registered, and the
/// oldest open transaction that has written to the ledger.
pub async fn health(settings: &Settings, database: &Database) -> Result<HealthReport, RunError> {
    let journal =
        Journal::open(database.clone(), client_name(), settings.sync.lease, settings.api.signature_window)
            .await?;
    let ledger = Ledger::open(database.clone(), None, settings).await?;
    let mut entities = Health::list(database).await?;
    let ids: Vec<String> = entities.iter().map(|entity| entity.entity_id.clone()).collect();
    let lanes = journal.lanes(&ids, ledger.mapping_json()).await?;
    let ignored = settings.ledger.ignore_unregistered;
    let unregistered = unregistered(&ledger, &lanes, &ids, ignored).await?;
    let mut refused = fit::refused(&ledger, &lanes);
    let lanes = journal.progress(&fit::readable(&ledger, lanes)).await?;
    let (pending, mut unreadable) = ledger.pending(&lanes).await?;
    let mut pending: BTreeMap<String, Pending> =
        pending.into_iter().map(|p| (p.entity_id.clone(), p)).collect();
    for entity in &mut entities {
        if let Some(now) = pending.remove(&entity.entity_id) {
            entity.count(now.rows, now.oldest_at);
        }
        // The pending rows cannot be counted, and a count that an earlier run made is not shown in place of it.
        let unreadable = unreadable.remove(&entity.entity_id).map(|now| now.message);
        if let Some(why) = unreadable.or_else(|| refused.remove(&entity.entity_id)) {
            (entity.pending_rows, entity.oldest_pending_at) = (None, None);
            if matches!(entity.status.as_str(), "ok" | "behind" | "stale") {
                "failing".clone_into(&mut entity.status);
            }
            entity.last_error.get_or_insert(why);
        }
    }
    warn_of(&ledger.guard().await?);
    Ok(HealthReport {
        entities,
        unregistered: unregistered.entity_ids,
        unregistered_unknown: unregistered.unknown,
        entities_left_out: unregistered.left_out.len(),
        oldest_writer: ledger.oldest_writer().await?,
        webhook_failure: webhook_failure(database).await?,
    })
}

/// Returns the message of the alert about the webhook, whose hint is `status`.
async fn webhook_failure(database: &Database) -> Result<Option<String>, RunError> {
    let alerts = AlertsNow::read(database).await?.alerts;
    Ok(alerts.into_iter().find(|alert| alert.name == WEBHOOK_FAILING).map(|alert| alert.message))
}
