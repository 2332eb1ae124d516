//! Maps of the ledger's names to the names at Elven, added and removed by a person.

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};

use crate::align::{Clock, Text};
use crate::config::{ConfigError, Settings};
use crate::database::Database;
use crate::elven::List;
use crate::journal::{
    self, ALL_ENTITIES, Entity, KnownName, MapEntry, MapHistory, MapKind, Mapped, NAME_TO_CHOOSE,
    unknown_entity,
};
use crate::ledger::{Ledger, NamedRows, instant_us};
use crate::sync::RunError;
use crate::text::{KnownNames, counted_noun, is_same_word, quoted_option};

/// What a new map changes.
#[derive(Debug)]
pub struct MapReport {
    /// The map.
    pub map: MapEntry,
    /// What was recorded.
    pub mapped: Mapped,
    /// The rows of the ledger that have the name, for each entity.
    pub rows: Vec<NamedRows>,
    /// The rows among them that are held because of the name that was sent before.
    pub held: i64,
    /// The commands that send again what was accepted under another name; of many entities the first ones.
    pub backfills: Vec<String>,
    /// The credentials whose stored list lacks the name at Elven, each with near names.
    pub not_listed: Vec<(String, Vec<String>)>,
}

/// The most backfills that are named.
const BACKFILLS_MAX: usize = 3;

/// Adds a map, unless balances would be mixed.
pub async fn add_map(settings: &Settings, database: &Database, map: MapEntry) -> Result<MapReport, RunError> {
    journal::check_schema(database).await?;
    let of = map.map.word();
    for (what, name) in [("in the ledger", &map.ledger_name), ("at Elven", &map.elven_name)] {
        let named = format!("the {of} {what}");
        Text::read(&named, Some(name)).map_err(|why| ConfigError(why.to_string()))?;
    }
    refuse_name_to_choose(&map)?;
    let entities = Entity::list(database).await?;
    let map = MapEntry { entity_id: entity_of(&map, &entities)?, ..map };
    let concerned: Vec<&Entity> = entities
        .iter()
        .filter(|entity| [ALL_ENTITIES, &entity.entity_id].contains(&&*map.entity_id))
        .collect();
    let ids: Vec<String> = concerned.iter().map(|entity| entity.entity_id.clone()).collect();
    let ledger = Ledger::open(database.clone(), None, settings).await?;
    if map.map == MapKind::Account {
        refuse_account_of_another_entity(&ledger, &map, &entities).await?;
    }
    if !map.shared && map.elven_name != map.ledger_name {
        refuse_name_of_the_ledger(&ledger, database, &map, &ids).await?;
    }
    let mapped = map.add(database).await?;
    let rows = rows_with(&ledger, map.map, &ids, &map.ledger_name).await?;
    let before =
        if let Mapped::Replaced(before, _) = &mapped { &before.elven_name } else { &map.ledger_name };
    let held = map.held_rows(database, &ids, before).await?;
    let all_held = held >= rows.iter().map(|rows| rows.rows).sum();
    // The name that was sent is the same: only the map is new, or whether it is shared.
    let is_same = *before == map.elven_name;
    let backfills = match mapped {
        Mapped::Unchanged => Vec::new(),
        _ if all_held || is_same => Vec::new(),
        _ => backfills(settings, database, &map, &concerned, &rows).await?,
    };
    let not_listed = not_listed(database, &map, &concerned).await?;
    Ok(MapReport { map, mapped, rows, held, backfills, not_listed })
}

/// Removes the map of a name. `None`: the name has none.
pub async fn remove_map(database: &Database, map: MapEntry) -> Result<Option<MapEntry>, RunError> {
    journal::check_schema(database).await?;
    let entities = Entity::list(database).await?;
    // The map of an entity that is not registered any more can be removed, too.
    let entity_id =
        if map.entity_id.is_empty() { entity_of(&map, &entities)? } else { map.entity_id.clone() };
    Ok(MapEntry { entity_id, ..map }.remove(database).await?)
}

/// Returns the entity of a map: the named one; without a name all entities for a currency, and the only entity for an
/// account.
fn entity_of(map: &MapEntry, entities: &[Entity]) -> Result<String, ConfigError> {
    let known: Vec<&str> = entities.iter().map(|entity| entity.entity_id.as_str()).collect();
    match (map.map, map.entity_id.as_str(), &known[..]) {
        (MapKind::Currency, "" | ALL_ENTITIES, _) => Ok(ALL_ENTITIES.to_owned()),
        (MapKind::Account, "", [only]) => Ok((*only).to_owned()),
        (MapKind::Account, "", [_, _, ..]) => Err(ConfigError(
            "an account belongs to one entity, and several are registered; hint: add --entity ID".to_owned(),
        )),
        (MapKind::Account, ALL_ENTITIES, _) => {
            Err(ConfigError("an account belongs to one entity; hint: --entity ID".to_owned()))
        }
        (_, wanted, known) if !known.contains(&wanted) => Err(ConfigError(unknown_entity(wanted, known))),
        (_, wanted, _) => Ok(wanted.to_owned()),
    }
}

/// Refuses the word that a hint has in place of a name at Elven.
fn refuse_name_to_choose(map: &MapEntry) -> Result<(), ConfigError> {
    if map.elven_name != NAME_TO_CHOOSE {
        return Ok(());
    }
    let (of, list) = match map.map {
        MapKind::Account => ("account", "accounts"),
        MapKind::Currency => ("currency", "currencies"),
    };
    Err(ConfigError(format!(
        "`{NAME_TO_CHOOSE}` stands for the {of} at Elven that you choose. Nothing was changed; hint: elven-sync \
         reference {list}"
    )))
}

/// Refuses a name at Elven that the ledger itself has for another account or currency.
async fn refuse_name_of_the_ledger(
    ledger: &Ledger,
    database: &Database,
    map: &MapEntry,
    ids: &[String],
) -> Result<(), RunError> {
    let held = rows_with(ledger, map.map, ids, &map.elven_name).await?;
    let held_ids: Vec<String> = held.iter().map(|rows| rows.entity_id.clone()).collect();
    let mut maps = MapHistory::read(database, &held_ids).await?;
    for NamedRows { entity_id, rows, .. } in held {
        let names = maps.names(&entity_id);
        let names = if map.map == MapKind::Account { names.accounts } else { names.currencies };
        // A name that is mapped to another one is not sent as itself.
        if names.mapped(&map.elven_name).is_none_or(|elven| elven == map.elven_name) {
            let (of, elven, ledger) = (map.map.word(), &map.elven_name, &map.ledger_name);
            let remedy = if is_same_word(ledger, elven) {
                format!("{}, or, if both are the same {of}", map.map.correction(ledger, elven))
            } else {
                format!("if `{ledger}` and `{elven}` mean the same")
            };
            return Err(ConfigError(format!(
                "{of} `{elven}` is also a name in the ledger: {} of entity `{entity_id}`. With this map, balances of \
                 two names would replace each other at Elven. Nothing was changed; hint: {remedy}: {} --shared",
                counted_noun(rows, "row", "rows"),
                map.map.command(&map.entity_id, ledger, Some(elven))
            ))
            .into());
        }
    }
    Ok(())
}

/// Refuses an account that rows of another entity with the same credential have: a key belongs to one entity.
async fn refuse_account_of_another_entity(
    ledger: &Ledger,
    map: &MapEntry,
    entities: &[Entity],
) -> Result<(), RunError> {
    let credential = entities.iter().find(|entity| entity.entity_id == map.entity_id);
    let is_other = |entity: &&Entity| {
        credential.is_some_and(|own| own.credential == entity.credential) && entity.entity_id != map.entity_id
    };
    let others: Vec<String> =
        entities.iter().filter(is_other).map(|entity| entity.entity_id.clone()).collect();
    if let Some(rows) = rows_with(ledger, map.map, &others, &map.elven_name).await?.first() {
        return Err(ConfigError(format!(
            "account `{}` at Elven would be fed by two entities of one credential: rows of entity `{}` have it, too. \
             Nothing was changed; hint: choose another account at Elven (`elven-sync reference accounts`), or correct \
             the account of the rows of entity `{}` in the ledger",
            map.elven_name, rows.entity_id, rows.entity_id
        ))
        .into());
    }
    Ok(())
}

async fn rows_with(
    ledger: &Ledger,
    kind: MapKind,
    ids: &[String],
    name: &str,
) -> Result<Vec<NamedRows>, RunError> {
    let rows = match kind {
        _ if ids.is_empty() => Ok(Vec::new()),
        MapKind::Account => ledger.rows_of_account(ids, name).await,
        MapKind::Currency => ledger.rows_of_currency(ids, name).await,
    };
    Ok(rows.map_err(super::names::in_words)?)
}

/// Returns the commands that send the rows of a name again, for entities of which something was accepted.
async fn backfills(
    settings: &Settings,
    database: &Database,
    map: &MapEntry,
    concerned: &[&Entity],
    rows: &[NamedRows],
) -> Result<Vec<String>, RunError> {
    let uploaded = Entity::with_uploads(database).await?;
    let mut commands = Vec::new();
    for NamedRows { entity_id, span, .. } in rows.iter().filter(|rows| uploaded.contains(&rows.entity_id)) {
        let entity = concerned.iter().find(|entity| entity.entity_id == *entity_id);
        let zone = entity.and_then(|entity| settings.zones.get(&entity.timezone).ok());
        let (Some((first, last)), Some(zone)) = (span, zone) else { continue };
        let mut clock = Clock::of(&zone);
        let mut day = |at: &DateTime<Utc>| -> Option<NaiveDate> {
            clock.at(instant_us(*at)).ok().map(|local| local.date())
        };
        let days = day(first).zip(day(last).and_then(|last| last.checked_add_signed(TimeDelta::days(1))));
        if let Some((from, to)) = days {
            let name = quoted_option(&format!("--{}", map.map.word()), &map.ledger_name);
            let entity = quoted_option("--entity", entity_id);
            commands.push(format!("elven-sync backfill {entity} {name} --from {from} --to {to}"));
        }
        if commands.len() == BACKFILLS_MAX {
            break;
        }
    }
    Ok(commands)
}

/// Returns the credentials whose stored list lacks the name at Elven.
async fn not_listed(
    database: &Database,
    map: &MapEntry,
    concerned: &[&Entity],
) -> Result<Vec<(String, Vec<String>)>, RunError> {
    let list = if map.map == MapKind::Account { List::Accounts } else { List::Currencies };
    let known = KnownName::all(database, list).await?;
    let mut lacking = Vec::new();
    for of_credential in known.chunk_by(|one, next| one.credential == next.credential) {
        let credential = &of_credential[0].credential;
        let is_concerned = concerned.iter().any(|entity| entity.credential == *credential);
        if is_concerned && !of_credential.iter().any(|known| known.id == map.elven_name) {
            let near = KnownNames::new(of_credential.iter().map(|known| known.id.as_str()));
            let near = near.near(&map.elven_name).into_iter().map(str::to_owned).collect();
            lacking.push((credential.clone(), near));
        }
    }
    Ok(lacking)
}
