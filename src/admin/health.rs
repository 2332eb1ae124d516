//! The health of all entities, with live counts.

use std::collections::BTreeMap;

use crate::config::Settings;
use crate::database::Database;
use crate::journal::{Health, Journal};
use crate::ledger::{self, Ledger, Pending};
use crate::sync::RunError;
use crate::sync::watermark_check as fit;
use crate::sync::worker::{progress, warn_of, worker_name};

/// Returns the rows of `sync_health` with live counts of pending rows, and the oldest open transaction that has written
/// to the ledger.
pub async fn health(
    settings: &Settings,
    database: &Database,
) -> Result<(Vec<Health>, Option<ledger::Writer>), RunError> {
    let journal =
        Journal::open(database.clone(), worker_name(), settings.sync.lease, settings.api.signature_window)
            .await?;
    let ledger = Ledger::open(database.clone(), None, &settings.ledger).await?;
    let mut entities = Health::list(database).await?;
    let ids: Vec<String> = entities.iter().map(|entity| entity.entity_id.clone()).collect();
    let lanes = journal.lanes(&ids, ledger.mapping_json()).await?;
    let mut refused = fit::refused(&ledger, &lanes);
    let (pending, mut unreadable) = ledger.pending(&progress(&fit::readable(&ledger, lanes))).await?;
    let mut pending: BTreeMap<String, Pending> =
        pending.into_iter().map(|p| (p.entity_id.clone(), p)).collect();
    for entity in &mut entities {
        if let Some(now) = pending.remove(&entity.entity_id) {
            entity.pending_rows = Some(now.rows);
            entity.oldest_pending_at = now.oldest_at;
            if matches!(entity.status.as_str(), "ok" | "behind") {
                (if now.rows > 0 { "behind" } else { "ok" }).clone_into(&mut entity.status);
            }
        }
        // The pending rows cannot be counted, and a count that an earlier run made is not shown in place of it.
        let unreadable = unreadable.remove(&entity.entity_id).map(|now| now.message);
        if let Some(why) = unreadable.or_else(|| refused.remove(&entity.entity_id)) {
            (entity.pending_rows, entity.oldest_pending_at) = (None, None);
            if matches!(entity.status.as_str(), "ok" | "behind") {
                "failing".clone_into(&mut entity.status);
            }
            entity.last_error.get_or_insert(why);
        }
    }
    warn_of(&ledger.without_trigger().await?);
    Ok((entities, ledger.oldest_writer().await?))
}
