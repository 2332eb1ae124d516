//! The output of `map`.

use serde_json::json;

use super::{json_line, keep_whole, line, lines, table, when};
use crate::admin::MapReport;
use crate::align::CurrencyKind;
use crate::journal::{ALL_ENTITIES, MapEntry, MapKind, Mapped};
use crate::text::counted_noun;

/// Prints what a new map changes.
pub fn added(report: &MapReport) {
    let MapReport { map, mapped, rows, held, backfills, not_listed } = report;
    let (of, ledger, elven) = (map.map.word(), &map.ledger_name, &map.elven_name);
    let whose = whose(map);
    match mapped {
        Mapped::Unchanged => line(format_args!("{of} `{ledger}`{whose} is mapped to `{elven}` already")),
        Mapped::Added(version) => {
            line(format_args!("{of} `{ledger}`{whose} is mapped to `{elven}` (map version {version})"));
        }
        Mapped::Replaced(before, version) if before.elven_name == *elven && before.shared == map.shared => {
            let kind = map.kind.map_or("what [ledger] currency_kind says", CurrencyKind::word);
            line(format_args!(
                "{of} `{ledger}`{whose} is mapped to `{elven}`, which is {kind} now (map version {version})"
            ));
        }
        Mapped::Replaced(before, version) if before.elven_name == *elven => line(format_args!(
            "{of} `{ledger}`{whose} is mapped to `{elven}`, {} (map version {version})",
            if map.shared { "shared now" } else { "not shared any more" }
        )),
        Mapped::Replaced(before, version) => line(format_args!(
            "{of} `{ledger}`{whose} is mapped to `{elven}` instead of `{}` (map version {version})",
            before.elven_name
        )),
    }
    let count = rows.iter().map(|rows| rows.rows).sum();
    if count == 0 {
        line(format_args!("note: no row of the ledger has the {of} `{ledger}` now"));
    }
    if *held > 0 {
        let rows = counted_noun(*held, "row of the ledger is", "rows of the ledger are");
        line(format_args!("{rows} held because of the name; the next run sends them as `{elven}`"));
    }
    if !backfills.is_empty() {
        line(format_args!(
            "{} of the ledger with this name: those not uploaded yet are sent as `{elven}` by the next run. Records \
             that Elven accepted under another name stay there, and are not sent again. To send them as `{elven}`:",
            counted_noun(count, "row", "rows")
        ));
        for command in backfills {
            line(format_args!("  {command}"));
        }
    }
    for (credential, near) in not_listed {
        let near: Vec<String> = near.iter().map(|name| format!("`{name}`")).collect();
        let near = if near.is_empty() { String::new() } else { format!("; near: {}", near.join(", ")) };
        line(format_args!(
            "note: Elven's list for credential `{credential}` has no {of} `{elven}`{near}; hint: elven-sync reference \
             pull"
        ));
    }
}

/// Prints the map that was removed.
pub fn removed(map: Option<&MapEntry>) {
    match map {
        Some(map) => line(format_args!(
            "{} `{}`{} is not mapped to `{}` any more; the next run sends it as `{}`",
            map.map.word(),
            map.ledger_name,
            whose(map),
            map.elven_name,
            map.ledger_name
        )),
        None => line(
            "there is no such map; nothing was changed; hint: elven-sync map list; the map of an entity is removed with \
             --entity ID",
        ),
    }
}

fn whose(map: &MapEntry) -> String {
    match (map.map, map.entity_id.as_str()) {
        (MapKind::Currency, ALL_ENTITIES) => " of all entities".to_owned(),
        (_, entity_id) => format!(" of entity `{entity_id}`"),
    }
}

/// Prints the maps in force. `only`: those that hold for this entity.
pub fn list(maps: &[MapEntry], only: Option<&str>, as_json: bool) {
    let holds = |map: &&MapEntry| only.is_none_or(|only| [only, ALL_ENTITIES].contains(&&*map.entity_id));
    let shown: Vec<&MapEntry> = maps.iter().filter(holds).collect();
    if as_json {
        json_line(&json!({ "maps": shown }));
        return;
    }
    if shown.is_empty() {
        line("no name is mapped: all accounts and currencies are sent as the ledger spells them");
        return;
    }
    let header = ["map", "entity", "in the ledger", "at Elven", "kind", "shared", "version", "since"];
    let rows = shown.iter().map(|map| {
        vec![
            map.map.word().to_owned(),
            map.entity_id.clone(),
            map.ledger_name.clone(),
            map.elven_name.clone(),
            map.kind.map_or("", CurrencyKind::word).to_owned(),
            if map.shared { "shared" } else { "" }.to_owned(),
            map.map_version.to_string(),
            map.added_at.map(when).unwrap_or_default(),
        ]
    });
    let mut listed = table(&header, &[6], rows);
    keep_whole(&mut listed, 3, shown.iter().map(|map| map.elven_name.as_str()));
    lines(listed);
}
