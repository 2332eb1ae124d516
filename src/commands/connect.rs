//! Shared by the commands: connections, and parsers of arguments.

use std::time::Duration;

use anyhow::bail;
use tokio::sync::watch;

use crate::config::Settings;
use crate::database::Database;
use crate::journal::{self, Entity};
use crate::sync::{self, Worker};

/// Parses a duration such as `90d` or `1h 30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wanted: humantime_serde::Serde<Duration> = serde_json::from_value(text.into())
        .map_err(|problem| format!("{problem}, e.g. 60s, 5m or 1h 30m"))?;
    Ok(wanted.into_inner())
}

/// Parses the longest wait for a lock.
pub(super) fn lock_timeout(text: &str) -> Result<Duration, String> {
    let wanted = duration(text)?;
    let range = Duration::from_millis(1)..=Duration::from_hours(1);
    // For PostgreSQL a lock_timeout of 0 means no limit.
    if range.contains(&wanted) { Ok(wanted) } else { Err("expected 1ms to 1h".to_owned()) }
}

/// Parses a freshness, in seconds.
pub(super) fn freshness(text: &str) -> Result<i64, String> {
    let wanted = duration(text)?;
    let range = Duration::from_secs(1)..=Duration::from_hours(24 * 366);
    let seconds = i64::try_from(wanted.as_secs()).ok().filter(|_| wanted.subsec_nanos() == 0);
    seconds
        .filter(|_| range.contains(&wanted))
        .ok_or_else(|| "expected 1s to 366d, in whole seconds".to_owned())
}

/// Connects to the primary.
pub(super) async fn connect(settings: &Settings) -> anyhow::Result<Database> {
    Ok(sync::connect(settings).await?)
}

/// Connects, and checks that the sync tables are migrated, for commands that open no journal that checks it.
pub(super) async fn connect_migrated(settings: &Settings) -> anyhow::Result<Database> {
    let database = connect(settings).await?;
    journal::check_schema(&database).await?;
    Ok(database)
}

/// Opens a worker for a command that moves or rebinds watermarks. It gets no stop request, and reads no pages from a
/// standby.
pub(super) async fn worker(settings: &Settings, database: &Database) -> anyhow::Result<Worker> {
    let settings = Settings { ledger_url: None, ..settings.clone() };
    Ok(Worker::open(settings, database.clone(), watch::channel(false).1).await?)
}

/// Returns the entity with this id, or an error that names the entities with a similar id.
pub(super) async fn registered(database: &Database, id: &str) -> anyhow::Result<Entity> {
    let entities = Entity::list(database).await?;
    if let Some(entity) = entities.iter().find(|entity| entity.entity_id == id) {
        return Ok(entity.clone());
    }
    let known: Vec<&str> = entities.iter().map(|entity| entity.entity_id.as_str()).collect();
    bail!(journal::unknown_entity(id, &known))
}
