//! The registered entities.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{Days, Utc};

use super::finding::{Finding, Outcome, Status, Unmade, named};
use super::surroundings::Surroundings;
use crate::align::{Zone, zone_caution};
use crate::config::Credential;
use crate::journal::registering;
use crate::sync::pending::unregistered as look_for_unregistered;
use crate::sync::setting_zone;
use crate::text::{KnownNames, counted_noun, quoted_argument, quoted_option};

/// How far into the future the rules of the database server are compared: this and next year's changes.
const COMPARED_DAYS: u64 = 731;

/// The most entities in which rows are looked for.
const ENTITIES_MAX: usize = 5_000;

fn count(things: usize) -> i64 {
    i64::try_from(things).unwrap_or(i64::MAX)
}

/// Some entity is registered.
pub(super) async fn registered(surroundings: &Surroundings) -> Outcome {
    let entities = surroundings.entities().await?;
    let paused = entities.iter().filter(|entity| entity.paused).count();
    Ok(if entities.is_empty() {
        Finding::warning(
            "no entity is registered, so runs do nothing",
            "elven-sync entity add ID --timezone ZONE",
        )
    } else if paused == entities.len() {
        Finding::warning("every entity is paused, so runs do nothing", "elven-sync entity resume ID")
    } else {
        let paused = if paused == 0 { String::new() } else { format!(", {paused} of them paused") };
        Finding::ok(format!(
            "{}{paused}",
            counted_noun(count(entities.len()), "entity is registered", "entities are registered")
        ))
    })
}

/// Each entity of the ledger is registered.
pub(super) async fn unregistered(surroundings: &Surroundings) -> Outcome {
    let (settings, ledger) = (surroundings.settings()?, surroundings.indexed_rows().await?);
    let registered: Vec<String> =
        surroundings.entities().await?.iter().map(|entity| entity.entity_id.clone()).collect();
    let lanes = surroundings.lanes().await?;
    let ignored = settings.ledger.ignore_unregistered;
    let found = look_for_unregistered(ledger, lanes, &registered, ignored).await?;
    if let Some(problem) = &found.unknown {
        return Ok(Finding::of(Status::Failed, problem));
    }
    if !found.is_known {
        return Err(Unmade::Needs("journal.watermarks"));
    }
    let left_out = found.left_out.len();
    // A command, if there is one. An empty id, for example, has to be corrected in the ledger.
    let is_command = |id: &&String| registering(id).starts_with("elven-sync");
    let first = found.entity_ids.iter().find(is_command).or(found.entity_ids.first());
    let others = found.entity_ids.iter().find(|id| !is_command(id) && Some(*id) != first);
    let others = others.map(|id| format!("; then {}", registering(id))).unwrap_or_default();
    Ok(match first {
        None if left_out > 0 => Finding::ok(format!(
            "the rows of {left_out} entities are left out ([ledger] ignore_unregistered)"
        )),
        None => Finding::ok("each entity of the ledger is registered"),
        Some(first) => Finding::failed(
            format!(
                "rows of {} wait: {}",
                counted_noun(
                    count(found.entity_ids.len()),
                    "entity that is not registered",
                    "entities that are not registered"
                ),
                named(found.entity_ids.iter().map(|id| format!("`{id}`")))
            ),
            format!("{}{others}", registering(first)),
        ),
    })
}

/// Each entity has a zone that is known.
pub(super) async fn zones(surroundings: &Surroundings) -> Outcome {
    let (settings, entities) = (surroundings.settings()?, surroundings.entities().await?);
    let mut cautions = BTreeSet::new();
    for entity in entities {
        if let Err(problem) = settings.zones.get(&entity.timezone) {
            return Ok(Finding::failed(
                format!("entity `{}`: {problem}", entity.entity_id),
                setting_zone(&entity.entity_id),
            ));
        }
        cautions.extend(zone_caution(&entity.timezone));
    }
    cautions.extend(settings.ledger.zone_caution());
    let zones: BTreeSet<&str> = entities.iter().map(|entity| entity.timezone.as_str()).collect();
    Ok(match cautions.first() {
        Some(caution) => Finding::of(Status::Warning, caution),
        None => Finding::ok(format!(
            "{} known",
            counted_noun(count(zones.len()), "time zone is", "time zones are")
        )),
    })
}

/// The database server shows the same wall-clock times as this program, around the changes of this and next year.
pub(super) async fn zone_rules(surroundings: &Surroundings) -> Outcome {
    let (settings, entities) = (surroundings.settings()?, surroundings.entities().await?);
    let names = entities
        .iter()
        .map(|entity| entity.timezone.as_str())
        .chain(settings.ledger.captured_at_zone.as_deref());
    let zones: BTreeMap<&str, Zone> =
        names.filter_map(|name| Some((name, settings.zones.get(name).ok()?))).collect();
    let zones: Vec<Zone> = zones.into_values().collect();
    if zones.is_empty() {
        return Err(Unmade::NotApplicable("no zone is in use".to_owned()));
    }
    let now = Utc::now();
    let until = now.checked_add_days(Days::new(COMPARED_DAYS)).unwrap_or(now);
    let seen = surroundings.open_journal().await?.see_rules(i64::MAX, &[], &zones, now..until).await?;
    let version = settings.zones.version();
    let Some(first) = seen.on_server.first() else {
        return Ok(Finding::ok(format!("the server shows the same times as the rules in use ({version})")));
    };
    let at = chrono::DateTime::from_timestamp(first.at_s, 0).unwrap_or_default().format("%Y-%m-%d %H:%M:%SZ");
    let theirs = first.on_server.as_deref().unwrap_or("an unknown zone");
    let found = format!(
        "the rules of the database server differ for {}: at {at}, {} is {} by the rules in use ({version}) and \
         {theirs} there",
        named(seen.on_server.iter().map(|difference| &difference.zone)),
        first.zone,
        first.local
    );
    let in_ledger = settings.ledger.captured_at_zone.as_deref();
    Ok(if seen.on_server.iter().any(|difference| in_ledger == Some(&*difference.zone)) {
        Finding::failed(
            format!("{found}; the server's rules decide which instants captured_at means"),
            "update the package tzdata on the server (or the server itself), or on this machine",
        )
    } else {
        Finding::warning(
            format!(
                "{found}; records are sent by the rules in use, and queries on the server show other times"
            ),
            "update the package tzdata where it is older",
        )
    })
}

/// Each entity has rows.
pub(super) async fn rows(surroundings: &Surroundings) -> Outcome {
    let (ledger, mut ids) = (surroundings.indexed_rows().await?, surroundings.active_ids().await?);
    if ids.is_empty() {
        return Err(Unmade::NotApplicable("no entity is registered and active".to_owned()));
    }
    ids.truncate(ENTITIES_MAX);
    let without = ledger.without_rows(&ids).await?;
    let Some(first) = without.first() else {
        return Ok(Finding::ok(format!(
            "each of {} has rows",
            counted_noun(count(ids.len()), "entity", "entities")
        )));
    };
    let found = format!("the ledger has no row of {}", named(without.iter().map(|id| format!("`{id}`"))));
    let registered: Vec<String> =
        surroundings.entities().await?.iter().map(|entity| entity.entity_id.clone()).collect();
    let others = ledger.unregistered(&registered).await?;
    let near =
        KnownNames::new(others.iter().map(String::as_str)).near(first).first().map(|id| (*id).to_owned());
    Ok(match near {
        Some(near) => Finding::warning(
            format!("{found}; is `{first}` spelled `{near}` there?"),
            format!("{}, and elven-sync entity pause {}", registering(&near), quoted_argument(first)),
        ),
        None => Finding::warning(
            format!("{found}; either it was not written yet, or the id is spelled in another way there"),
            format!("elven-sync entity pause {}, until the ledger has rows of it", quoted_argument(first)),
        ),
    })
}

/// Each entity has a credential that can be read.
pub(super) async fn credentials(surroundings: &Surroundings) -> Outcome {
    let (settings, entities) = (surroundings.settings()?, surroundings.entities().await?);
    let active = || entities.iter().filter(|entity| !entity.paused);
    let mut unusable: Vec<String> = Vec::new();
    let mut first = None;
    let mut read: BTreeMap<&str, Result<Credential, String>> = BTreeMap::new();
    for entity in active() {
        let credential = read.entry(&entity.credential).or_insert_with(|| {
            settings.credential(&entity.credential).map_err(|problem| problem.to_string())
        });
        if let Err(problem) = credential {
            first.get_or_insert(problem.clone());
            unusable.push(format!("`{}`", entity.entity_id));
        }
    }
    Ok(match first {
        None => Finding::ok(format!(
            "{} can be read",
            counted_noun(count(read.len()), "credential", "credentials")
        )),
        Some(problem) => Finding::of(
            Status::Failed,
            &format!(
                "{} cannot be sent: {problem}",
                counted_noun(
                    count(unusable.len()),
                    &format!("entity {}", named(&unusable)),
                    &format!("entities {}", named(&unusable))
                )
            ),
        ),
    })
}

/// No two entities have one key.
pub(super) async fn shared_keys(surroundings: &Surroundings) -> Outcome {
    let (settings, entities) = (surroundings.settings()?, surroundings.entities().await?);
    let mut keys: Vec<(Credential, Vec<&str>)> = Vec::new();
    let mut by_name: BTreeMap<&str, Option<usize>> = BTreeMap::new();
    for entity in entities.iter().filter(|entity| !entity.paused) {
        let place = *by_name.entry(&entity.credential).or_insert_with(|| {
            let credential = settings.credential(&entity.credential).ok()?;
            let same = keys.iter().position(|(other, _)| other.is(&credential));
            Some(same.unwrap_or_else(|| {
                keys.push((credential, Vec::new()));
                keys.len() - 1
            }))
        });
        if let Some((_, ids)) = place.and_then(|place| keys.get_mut(place)) {
            ids.push(&entity.entity_id);
        }
    }
    let shared: Vec<&Vec<&str>> = keys.iter().map(|(_, ids)| ids).filter(|ids| ids.len() > 1).collect();
    Ok(match shared.first() {
        None => Finding::ok("each entity has a key of its own"),
        Some(ids) => Finding::warning(
            format!(
                "entities {} have one key, which at Elven belongs to one entity",
                named(ids.iter().map(|id| format!("`{id}`")))
            ),
            format!("elven-sync entity set ID {}", quoted_option("--credential", "NAME")),
        ),
    })
}
