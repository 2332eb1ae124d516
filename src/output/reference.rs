//! The output of `reference`.

use std::collections::BTreeSet;

use comfy_table::Table;
use serde_json::{Value, json};

use super::{json_line, keep_whole, line, lines, number, paragraph, table, when};
use crate::admin::{NameReport, NameStatus, UsedName};
use crate::elven::{List, ListEntry, SOURCES_PATH};
use crate::journal::{KnownName, MapKind, Remedy, StoredList, UnknownName};
use crate::sync::{FailureSubject, ListedSources, PullFailure, PulledList, setting_source};
use crate::text::{counted_noun, thousands};

/// The most names that are listed of those that the ledger does not use.
const UNUSED_SHOWN_MAX: usize = 10;

/// The most commands that are printed.
const COMMANDS_SHOWN_MAX: usize = 10;

/// Prints the result of `reference pull`: for each credential what was stored, and each problem once.
pub fn pulled(pulled: &[PulledList]) {
    if pulled.is_empty() {
        line("no entity is registered; hint: elven-sync entity add ID --timezone ZONE");
    }
    for lists in pulled.chunk_by(|one, next| one.credential == next.credential) {
        let stored: Vec<String> = lists
            .iter()
            .filter_map(|pulled| Some(counted(number(*pulled.outcome.as_ref().ok()?), pulled.list)))
            .collect();
        let credential = lists.first().map_or("", |pulled| &pulled.credential);
        if !stored.is_empty() {
            line(format_args!("credential `{credential}`: {} stored", stored.join(" and ")));
        }
        let mut failures: Vec<(&PullFailure, Vec<&PulledList>)> = Vec::new();
        for pulled in lists {
            let Err(failure) = &pulled.outcome else { continue };
            match failures.iter_mut().find(|(known, _)| known.is_same(failure)) {
                Some((_, lists)) => lists.push(pulled),
                None => failures.push((failure, vec![pulled])),
            }
        }
        for (failure, lists) in failures {
            line(failed(credential, failure, &lists));
        }
    }
}

/// The sentence about lists that could not be pulled for one reason.
fn failed(credential: &str, failure: &PullFailure, lists: &[&PulledList]) -> String {
    let what: Vec<&str> = lists.iter().map(|pulled| pulled.list.many()).collect();
    let kept = match lists.iter().filter_map(|pulled| pulled.stored.as_ref()).collect::<Vec<_>>()[..] {
        [] => "no list is stored".to_owned(),
        [list] => format!("the list of {} is kept", when(list.fetched_at)),
        _ => "the lists stored before are kept".to_owned(),
    };
    let hint = if failure.about == FailureSubject::Permission {
        let paths: Vec<String> = lists.iter().map(|pulled| format!("GET {}", pulled.list.path())).collect();
        format!("; hint: check key and secret, and allow the key at Elven to call {}", paths.join(" and "))
    } else {
        String::new()
    };
    format!("credential `{credential}`: {} not pulled, {kept}: {}{hint}", what.join(" and "), failure.message)
}

/// Prints the names that the ledger uses beside those that the API knows. `only_unknown`: only names that it does not
/// know.
pub fn names(report: &NameReport, list: List, only_unknown: bool, as_json: bool) {
    let is_shown = |used: &&UsedName| !only_unknown || matches!(used.status, NameStatus::Unknown(_));
    let shown: Vec<&UsedName> = report.used.iter().filter(is_shown).collect();
    if as_json {
        let unused = if only_unknown { &[][..] } else { &report.unused };
        json_line(&names_json(report, list, &shown, unused));
        return;
    }
    if report.lists.is_empty() && report.without_list.is_empty() {
        line("no entity is registered; hint: elven-sync entity add ID --timezone ZONE");
        return;
    }
    if !shown.is_empty() {
        lines(names_table(&shown, list));
    }
    in_total(report, list);
    if !only_unknown {
        unused(&report.unused, list);
    }
    for StoredList { credential, entries, fetched_at, .. } in &report.lists {
        line(format_args!(
            "credential `{credential}`: Elven listed {} at {}",
            counted(*entries, list),
            when(*fetched_at)
        ));
    }
    for credential in &report.without_list {
        line(format_args!(
            "credential `{credential}`: no list of {} is stored; hint: elven-sync reference pull",
            list.many()
        ));
    }
}

/// The table of names. On a terminal a name is not wrapped if it takes at most half of the width.
fn names_table(shown: &[&UsedName], list: List) -> Table {
    const NAME: usize = 1;
    let header = ["entity", list.one(), "rows", "known", "at Elven"];
    let rows: Vec<Vec<String>> = shown.iter().map(|used| cells(used)).collect();
    let names: Vec<String> = rows.iter().map(|row| row[NAME].clone()).collect();
    let mut table = table(&header, &[2], rows);
    keep_whole(&mut table, NAME, names.iter().map(String::as_str));
    table
}

fn counted(entries: i64, list: List) -> String {
    counted_noun(entries, list.one(), list.many())
}

fn cells(used: &UsedName) -> Vec<String> {
    let (known, near) = match &used.status {
        NameStatus::Known(_) => ("yes", &[][..]),
        NameStatus::Unknown(near) => ("no", &near[..]),
        NameStatus::NoList => ("?", &[][..]),
    };
    let sent = used.mapped_to.as_ref().unwrap_or(&used.name);
    let mut at_elven: Vec<String> =
        used.mapped_to.iter().map(|elven| format!("mapped to {}", visible(elven))).collect();
    if let NameStatus::Known(Some(name)) = &used.status
        && name != sent
    {
        at_elven.push(name.clone());
    }
    if !near.is_empty() {
        let near: Vec<String> = near.iter().map(|name| format!("`{name}`")).collect();
        at_elven.push(format!("near {}", near.join(", ")));
    }
    let name = visible(&used.name);
    vec![used.entity_id.clone(), name, used.rows.to_string(), known.to_owned(), at_elven.join(", ")]
}

/// A name, in backticks if blanks around it would be invisible.
fn visible(name: &str) -> String {
    if name.is_empty() || name != name.trim() { format!("`{name}`") } else { name.to_owned() }
}

/// Prints how many names of the ledger the API does not know, of those that could be compared.
fn in_total(report: &NameReport, list: List) {
    let compared = report.used.iter().filter(|used| used.status != NameStatus::NoList).count();
    let unknown: Vec<&UsedName> =
        report.used.iter().filter(|used| matches!(used.status, NameStatus::Unknown(_))).collect();
    let rows = unknown.iter().map(|used| used.rows).sum();
    match (report.used.len(), compared, unknown.len()) {
        (0, ..) => line("the ledger has no rows of a registered entity"),
        (_, 0, _) => {}
        (_, _, 0) => line(format_args!("unknown to Elven: none of {}", counted(number(compared), list))),
        (_, _, count) => line(format_args!(
            "unknown to Elven: {} of {}, with {}; to map a name, or correct it in the ledger:",
            thousands(number(count)),
            counted(number(compared), list),
            counted_noun(rows, "row", "rows")
        )),
    }
    if compared > 0 {
        commands(&unknown, &report.used, list);
    }
}

/// Prints the commands that map names; of many the first ones.
fn commands(unknown: &[&UsedName], all: &[UsedName], list: List) {
    let remedies = unknown.iter().filter_map(|used| remedy(used, all, list));
    let mut commands: Vec<String> = remedies.map(Remedy::into_words).collect();
    // A currency is mapped for all entities.
    let mut seen = BTreeSet::new();
    commands.retain(|command| seen.insert(command.clone()));
    for command in commands.iter().take(COMMANDS_SHOWN_MAX) {
        line(format_args!("  {command}"));
    }
    let more = commands.len().saturating_sub(COMMANDS_SHOWN_MAX);
    if more > 0 {
        line(format_args!("  and {} more (--json)", thousands(number(more))));
    }
}

/// The remedy for an unknown name. `all`: the names of the ledger.
fn remedy(used: &UsedName, all: &[UsedName], list: List) -> Option<Remedy> {
    // A blank name cannot be mapped: a run sets the rows aside.
    if used.name.trim().is_empty() {
        return None;
    }
    let NameStatus::Unknown(near) = &used.status else { return None };
    // A currency is mapped for all entities. A name that is mapped to another one is not sent as itself.
    let is_of_ledger = |name: &str| {
        all.iter().any(|other| {
            other.name == name
                && (list == List::Currencies || other.entity_id == used.entity_id)
                && other.mapped_to.as_ref().is_none_or(|elven| elven == name)
        })
    };
    let kind = if list == List::Accounts { MapKind::Account } else { MapKind::Currency };
    let sent = used.mapped_to.as_ref().unwrap_or(&used.name);
    let unknown = UnknownName { ledger: &used.name, sent, near, is_of_ledger: &is_of_ledger };
    Some(kind.remedy(&used.entity_id, &unknown))
}

/// Prints the names that the API knows and the ledger does not use; of many names the first ones.
fn unused(unused: &[KnownName], list: List) {
    if unused.is_empty() {
        return;
    }
    let shown: Vec<String> = unused
        .iter()
        .take(UNUSED_SHOWN_MAX)
        .map(|known| match &known.name {
            Some(name) if *name != known.id => format!("`{}` ({name})", known.id),
            _ => format!("`{}`", known.id),
        })
        .collect();
    let more = unused.len().saturating_sub(UNUSED_SHOWN_MAX);
    let more =
        if more > 0 { format!(", and {} more (--json)", thousands(number(more))) } else { String::new() };
    paragraph(format_args!(
        "not used by the ledger: {}: {}{more}",
        counted(number(unused.len()), list),
        shown.join(", ")
    ));
}

fn names_json(report: &NameReport, list: List, used: &[&UsedName], unused: &[KnownName]) -> Value {
    let id = match list {
        List::Accounts => "entity_account_id",
        List::Currencies => "currency",
    };
    let used = used.iter().map(|used| {
        let (known, name, near) = match &used.status {
            NameStatus::Known(name) => (Some(true), name.as_deref(), &[][..]),
            NameStatus::Unknown(near) => (Some(false), None, &near[..]),
            NameStatus::NoList => (None, None, &[][..]),
        };
        let command = remedy(used, &report.used, list).and_then(Remedy::command);
        json!({"entity_id": used.entity_id, id: used.name, "rows": used.rows, "known": known, "name": name,
               "near": near,
               "mapped_to": used.mapped_to, "command": command})
    });
    let unused =
        unused.iter().map(|known| json!({"credential": known.credential, id: known.id, "name": known.name}));
    let lists = report.lists.iter().map(|stored| {
        json!({"credential": stored.credential, "entries": stored.entries, "fetched_at": stored.fetched_at})
    });
    json!({
        list.many(): used.collect::<Vec<_>>(),
        "unused": unused.collect::<Vec<_>>(),
        "lists": lists.collect::<Vec<_>>(),
        "without_list": report.without_list,
    })
}

/// Prints the sources at Elven, with the entities that they are pinned to.
pub fn sources(listed: &[ListedSources], as_json: bool) {
    if as_json {
        json_line(&json!({ "credentials": listed.iter().map(sources_json).collect::<Vec<_>>() }));
        return;
    }
    if listed.is_empty() {
        line("no entity is registered; hint: elven-sync entity add ID --timezone ZONE");
        return;
    }
    let header = ["credential", "source", "name", "type", "entities"];
    let rows: Vec<Vec<String>> = listed.iter().flat_map(source_cells).collect();
    if !rows.is_empty() {
        lines(table(&header, &[], rows));
    }
    for listed in listed {
        source_notes(listed);
    }
}

/// The entities whose source is this one.
fn pinned_to<'a>(listed: &'a ListedSources, source: &'a ListEntry) -> impl Iterator<Item = &'a str> {
    let has_it = |entity: &&crate::journal::Entity| entity.source_id.as_ref() == Some(&source.id);
    listed.entities.iter().filter(has_it).map(|entity| entity.entity_id.as_str())
}

fn source_cells(listed: &ListedSources) -> Vec<Vec<String>> {
    let cells = |source: &ListEntry| {
        let [name, kind] = [&source.name, &source.kind].map(|text| text.clone().unwrap_or_default());
        let entities = pinned_to(listed, source).collect::<Vec<_>>().join(", ");
        vec![listed.credential.clone(), source.id.clone(), name, kind, entities]
    };
    listed.outcome.iter().flatten().map(cells).collect()
}

/// Says what is wrong with the sources of a credential.
fn source_notes(listed: &ListedSources) {
    let ListedSources { credential, entities, outcome } = listed;
    let sources = match outcome {
        Err(failure) => {
            let hint = if failure.about == FailureSubject::Permission {
                format!("; hint: check key and secret, and allow the key at Elven to call GET {SOURCES_PATH}")
            } else {
                String::new()
            };
            line(format_args!(
                "credential `{credential}`: the sources were not read: {}{hint}",
                failure.message
            ));
            return;
        }
        Ok(sources) => sources,
    };
    if sources.is_empty() {
        line(format_args!(
            "credential `{credential}`: Elven lists no source for balances; docs/delivery.md, \"API version 4\", has the \
             request that creates one"
        ));
    }
    for entity in entities {
        let id = &entity.entity_id;
        match &entity.source_id {
            None => line(format_args!("entity `{id}` has no source; hint: {}", setting_source(id, "ID"))),
            Some(source_id) if sources.iter().all(|source| source.id != *source_id) => line(format_args!(
                "entity `{id}` has source `{source_id}`, which is not listed; hint: {}",
                setting_source(id, "ID")
            )),
            Some(_) => {}
        }
    }
}

fn sources_json(listed: &ListedSources) -> Value {
    let sources = listed.outcome.as_ref().ok().map(|sources| {
        let show = |source: &ListEntry| {
            let entities: Vec<&str> = pinned_to(listed, source).collect();
            json!({"source_id": source.id, "name": source.name, "type": source.kind, "entities": entities})
        };
        sources.iter().map(show).collect::<Vec<_>>()
    });
    let problem = listed.outcome.as_ref().err().map(|failure| &failure.message);
    json!({"credential": listed.credential, "sources": sources, "problem": problem})
}
