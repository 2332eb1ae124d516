//! The search for ledger rows by what people know of a record: account, currency and time.

use std::sync::Arc;

use chrono::DateTime;
use serde::Serialize;

use crate::align::{self, NameMap, Zone};
use crate::config::{ConfigError, Settings};
use crate::database::Database;
use crate::journal::{Entity, MapHistory, MapKind, check_schema, unknown_entity};
use crate::ledger::{Ledger, Range};
use crate::sync::RunError;

/// The most rows that are read of one second.
const ROWS_MAX: usize = 1000;

/// What people know of a record.
#[derive(Clone, Debug, Serialize)]
pub struct RecordKey {
    /// The account, spelled as in the ledger or as at Elven.
    pub account: String,
    /// The currency, spelled as in the ledger or as at Elven.
    pub currency: String,
    /// The second: the local time of the entity, as Elven shows it, or an RFC 3339 time.
    pub at: String,
}

/// The rows of an entity with a key.
#[derive(Clone, Debug)]
pub struct KeyRows {
    /// The entity.
    pub entity_id: String,
    /// Its time zone.
    pub timezone: String,
    /// The number of instants that the time means in this zone: two where clocks are put back, none where they skip it.
    pub instants: usize,
    /// The ids of the rows, in the order of time and id.
    pub row_ids: Vec<String>,
}

/// Finds the rows with a key, for each registered entity or for one.
///
/// # Errors
/// The time is none, the entity is not registered, or the ledger cannot be read.
pub async fn rows_of_key(
    settings: &Settings,
    database: &Database,
    key: &RecordKey,
    only: Option<&str>,
) -> Result<Vec<KeyRows>, RunError> {
    check_schema(database).await?;
    let entities = Entity::list(database).await?;
    require_registered(&entities, only)?;
    // A mistake in the time is reported without an entity, too.
    instants(&key.at, &Zone::utc())?;
    let ledger = Ledger::open(database.clone(), None, settings).await?;
    let ids: Vec<String> = entities.iter().map(|entity| entity.entity_id.clone()).collect();
    let mut maps = MapHistory::read(database, &ids).await?;
    let mut found = Vec::new();
    for Entity { entity_id, timezone, .. } in entities {
        if only.is_some_and(|only| only != entity_id) {
            continue;
        }
        let zone = match settings.zones.get(&timezone) {
            Ok(zone) => zone,
            // One entity with an unknown zone must not hide the rows of the others.
            Err(_) if only.is_none() => continue,
            Err(problem) => return Err(ConfigError(problem.to_string()).into()),
        };
        let seconds = instants(&key.at, &zone)?;
        let names = maps.names(&entity_id);
        let mut row_ids = Vec::new();
        for unix_s in &seconds {
            let at = |unix_s| DateTime::from_timestamp(unix_s, 0);
            let Some((from, to)) = at(*unix_s).zip(at(unix_s + 1)) else { continue };
            let ever = |kind, name: &str| maps.ledger_names_ever(&entity_id, kind, name);
            let accounts = in_the_ledger(&names.accounts, &key.account, ever(MapKind::Account, &key.account));
            let currencies =
                in_the_ledger(&names.currencies, &key.currency, ever(MapKind::Currency, &key.currency));
            let range = Range { entity_id: entity_id.clone(), from, to, accounts, currencies };
            let mut pages = ledger.range(Arc::new(range), None, None, ROWS_MAX);
            while let Some(rows) = pages.next_page().await? {
                row_ids.extend(rows.iter().map(|row| row.id.to_string()));
            }
        }
        found.push(KeyRows { entity_id, timezone, instants: seconds.len(), row_ids });
    }
    Ok(found)
}

/// Returns the names of the ledger that a name may mean: itself, and the names that are or were mapped to it.
fn in_the_ledger(map: &NameMap, name: &str, ever: Vec<String>) -> Vec<String> {
    let now = map.ledger_names(name).into_iter().map(str::to_owned);
    let mut names: Vec<String> = now.chain(ever).chain([name.to_owned()]).collect();
    names.sort();
    names.dedup();
    names
}

fn instants(at: &str, zone: &Zone) -> Result<Vec<i64>, ConfigError> {
    align::instants(at, zone).map_err(|problem| ConfigError(format!("--at: {problem}")))
}

/// Requires that the wanted entity, if one is wanted, is registered.
pub(super) fn require_registered(entities: &[Entity], only: Option<&str>) -> Result<(), ConfigError> {
    let known: Vec<&str> = entities.iter().map(|entity| entity.entity_id.as_str()).collect();
    match only {
        Some(only) if !known.contains(&only) => Err(ConfigError(unknown_entity(only, &known))),
        _ => Ok(()),
    }
}
