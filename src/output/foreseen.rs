//! The output of what a dry run foresees.

use super::{ENTITIES_SHOWN_MAX, line, number};
use crate::sync::Foreseen;
use crate::text::{counted_noun, thousands};

/// Prints what a dry run foresees; of many reasons and names the most frequent ones.
pub(super) fn foreseen(foreseen: &Foreseen) {
    let Foreseen { set_aside, unknown_names, without_credential, .. } = foreseen;
    for (entity_id, why) in without_credential.iter().take(ENTITIES_SHOWN_MAX) {
        line(format_args!("note: entity `{entity_id}` could not send anything: {why}"));
    }
    more(without_credential.len(), "note: without a usable credential", "entity", "entities");
    for reason in set_aside.iter().take(ENTITIES_SHOWN_MAX) {
        line(format_args!(
            "would be set aside: {} of entity `{}`: {}, e.g. row {}",
            counted_noun(reason.rows, "row", "rows"),
            reason.entity_id,
            reason.reason.as_deref().unwrap_or("further reasons"),
            reason.example_ledger_id
        ));
    }
    more(set_aside.len(), "would be set aside", "reason", "reasons");
    for unknown in unknown_names.iter().take(ENTITIES_SHOWN_MAX) {
        let mapped = if unknown.name == unknown.ledger_name {
            String::new()
        } else {
            format!(", mapped to `{}`", unknown.name)
        };
        line(format_args!(
            "unknown to Elven: {} `{}` of entity `{}`{mapped}, in {}; hint: {}",
            unknown.kind.word(),
            unknown.ledger_name,
            unknown.entity_id,
            counted_noun(unknown.records, "record", "records"),
            unknown.remedy
        ));
    }
    more(unknown_names.len(), "unknown to Elven", "name", "names");
}

/// Names the credentials whose names could not be compared.
pub(super) fn not_compared(Foreseen { without_list, .. }: &Foreseen) {
    if !without_list.is_empty() {
        line(format_args!(
            "note: accounts and currencies were not compared with those that Elven knows, since no list is stored for \
             {}; hint: elven-sync reference pull",
            without_list.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
        ));
    }
}

/// Says how many more there are than are shown.
fn more(count: usize, what: &str, one: &str, many: &str) {
    if let Some(more) = count.checked_sub(ENTITIES_SHOWN_MAX).filter(|more| *more > 0) {
        let noun = if more == 1 { one } else { many };
        line(format_args!("{what}: {} more {noun} (--json)", thousands(number(more))));
    }
}
