//! The output of `verify` and `prune`.

use serde_json::json;

use super::{json_line, line, lines, paragraph, table};
use crate::admin::{PruneReport, PrunedEntity};
use crate::audit::{EntityProof, Finding, FindingGroup, Verification};
use crate::text::{and_more, thousands};

/// Up to this many findings of a kind are printed in full; of more, only the first one, and the ids of the others.
const FINDINGS_SHOWN_MAX: usize = 5;
/// The most ids, or ranges of ids, that are named for the findings that are not printed in full.
const RANGES_NAMED_MAX: usize = 50;
/// The most entities that are named whose proof begins at a rewind.
const REWINDS_NAMED_MAX: usize = 5;

/// What `verify` never proves.
const NOT_PROVEN: &str = "that Elven still holds the records that it accepted; rows that were deleted before they were \
                          read; the records that backfills and retries sent; bodies whose rows have changed since";

/// Prints the report of `verify`. Nothing is proven about an entity with a finding.
pub fn report(verification: &Verification, deep: bool, as_json: bool) {
    let Verification { entities, journal, .. } = verification;
    let holds = verification.holds();
    let (proven, not_proven) = (proven(verification), not_proven(verification, deep));
    if as_json {
        json_line(&json!({
            "holds": holds,
            "deep": deep,
            "entities": entities,
            "journal": journal,
            "proven": proven,
            "not_proven": not_proven,
        }));
        return;
    }
    if entities.is_empty() {
        line("no entity is registered or has a journal, so there is nothing to prove");
        return;
    }
    let count = |count: usize| i64::try_from(count).map(thousands).unwrap_or_default();
    let header = [
        "entity",
        "",
        "passes",
        "batches",
        "rows proven",
        "pending",
        "once set aside",
        "still open",
        "bodies",
        "findings",
    ];
    lines(table(
        &header,
        &[2, 3, 4, 5, 6, 7, 8, 9],
        entities.iter().map(|entity| {
            vec![
                entity.entity_id.clone(),
                if entity.holds() { "holds" } else { "BROKEN" }.to_owned(),
                count(entity.passes),
                count(entity.batches),
                count(entity.rows_proven),
                thousands(entity.rows_pending),
                thousands(entity.rows_set_aside),
                thousands(entity.rows_set_aside_open),
                count(entity.bodies_proven),
                count(entity.findings.len() + entity.more_findings),
            ]
        }),
    ));
    for entity in entities {
        findings(entity);
        notes(entity);
    }
    for finding in &journal.findings {
        line(&finding.message);
    }
    paragraph(format_args!("proven: {proven}."));
    paragraph(format_args!("not proven: {not_proven}."));
}

/// Prints the findings of an entity by kind: of a few each in full, of many the first one, and the batches and rows of
/// the others.
fn findings(entity: &EntityProof) {
    for group in &entity.groups {
        let kept: Vec<&Finding> =
            entity.findings.iter().filter(|finding| finding.what == group.what).collect();
        let shown = if group.count > FINDINGS_SHOWN_MAX { kept.len().min(1) } else { kept.len() };
        for finding in &kept[..shown] {
            line(format_args!("{}: {}", place(entity, finding), finding.message));
        }
        if group.count > shown {
            others(entity, group, &kept[..shown]);
        }
    }
}

/// Prints the first change of the watermark that was removed or altered before a rewind, and how many more were.
fn notes(entity: &EntityProof) {
    let Some(note) = entity.notes.first() else { return };
    let more = match entity.notes.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more such changes)"),
    };
    line(format_args!(
        "{}: note: {}{more}; a later rewind made these rows pending again, so nothing is to be done",
        place(entity, note),
        note.message
    ));
}

/// Prints which batches and rows the findings of a kind are about that are not printed in full.
fn others(entity: &EntityProof, group: &FindingGroup, shown: &[&Finding]) {
    let batches = group.batch_ids.iter().filter(|id| shown.iter().all(|of| of.batch_id != Some(**id)));
    let rows = group.ledger_ids.iter().filter(|id| shown.iter().all(|of| !of.ledger_ids.contains(id)));
    let batches = ranges(batches.map(i64::to_string));
    let rows = ranges(rows.cloned());
    let mut about = String::new();
    for (ids, what) in [(batches, "in batches"), (rows, "about rows")] {
        if !ids.is_empty() {
            about = format!("{about}, {what} {ids}");
        }
    }
    let all_at_once = entity.backfill().filter(|_| group.what == "body");
    let all_at_once = all_at_once.map_or_else(String::new, |backfill| {
        format!("; hint: `{backfill}` sends the rows of all these batches again")
    });
    line(format_args!(
        "{}: and {} more of kind `{}`{about}; --json shows {}{all_at_once}",
        entity.entity_id,
        group.count - shown.len(),
        group.what,
        if entity.more_findings == 0 { "each" } else { "the first 100, and the ids of all" },
    ));
}

/// Lists ids, with ranges of numbers that follow each other: `3-18, 20`.
fn ranges(ids: impl Iterator<Item = String>) -> String {
    let (mut numbers, mut names) = (Vec::new(), Vec::new());
    for id in ids {
        match id.parse::<i64>() {
            Ok(number) => numbers.push(number),
            Err(_) => names.push(id),
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    let together = numbers.chunk_by(|one, next| one.checked_add(1) == Some(*next));
    let mut parts: Vec<String> = together
        .map(|part| match part {
            [first, .., last] => format!("{first}-{last}"),
            part => part.iter().map(i64::to_string).collect(),
        })
        .chain(names)
        .collect();
    if let Some(more) = parts.len().checked_sub(RANGES_NAMED_MAX).filter(|more| *more > 0) {
        parts.truncate(RANGES_NAMED_MAX);
        parts.push(format!("and {} more places", thousands(i64::try_from(more).unwrap_or(i64::MAX))));
    }
    parts.join(", ")
}

fn place(entity: &EntityProof, finding: &Finding) -> String {
    let mut place = entity.entity_id.clone();
    if let Some(pass_id) = finding.pass_id {
        place = format!("{place}, pass {pass_id}");
    }
    if let Some(batch_id) = finding.batch_id {
        place = format!("{place}, batch {batch_id}");
    }
    place
}

fn proven(verification: &Verification) -> String {
    let Verification { entities, journal, .. } = verification;
    let whole: Vec<&EntityProof> = entities.iter().filter(|entity| entity.holds()).collect();
    let sum = |of: fn(&EntityProof) -> i64| thousands(whole.iter().map(|entity| of(entity)).sum());
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let rows = whole.iter().map(|entity| entity.rows_proven).sum::<usize>();
    let broken = entities.len() - whole.len();
    let but = if broken > 0 { format!(" (nothing about the {broken} with findings)") } else { String::new() };
    format!(
        "for {} of {} entities{but}, each ledger row within the watermark is in exactly one batch ({} rows) and was \
         uploaded, superseded or set aside with its error ({} were set aside once, {} are open now), each other row \
         is pending ({}), and {} bodies have the recorded hash; {} links and {} leaves of the chain of digests are those \
         of what they cover{}",
        whole.len(),
        entities.len(),
        thousands(count(rows)),
        sum(|entity| entity.rows_set_aside),
        sum(|entity| entity.rows_set_aside_open),
        sum(|entity| entity.rows_pending),
        thousands(count(whole.iter().map(|entity| entity.bodies_proven).sum())),
        thousands(count(whole.iter().map(|entity| entity.links).sum::<usize>() + journal.links)),
        thousands(count(whole.iter().map(|entity| entity.leaves).sum())),
        extended(verification),
    )
}

/// The prints that were given and that the journal extends.
fn extended(verification: &Verification) -> String {
    let prints = &verification.journal.prints;
    if prints.is_empty() || !verification.holds() {
        return String::new();
    }
    let prints = ranges(prints.iter().map(i64::to_string));
    format!(", and the journal extends print {prints}: nothing that it covers was changed since")
}

fn not_proven(verification: &Verification, deep: bool) -> String {
    let entities = &verification.entities;
    let mut not_proven = NOT_PROVEN.to_owned();
    let names = |of: fn(&EntityProof) -> bool| entities.iter().filter(|entity| of(entity)).count();
    if verification.journal.prints.is_empty() {
        not_proven.push_str(
            "; that nobody has changed the journal together with its digests (--against a print that was kept elsewhere \
             shows that)",
        );
    }
    if !deep {
        not_proven.push_str("; bodies outside the sample (--deep rebuilds all of them)");
    }
    let unprovable: usize = entities.iter().map(|entity| entity.bodies_not_provable).sum();
    if unprovable > 0 {
        not_proven = format!(
            "{not_proven}; {unprovable} bodies that cannot be rebuilt: their zone rules are no longer known, their \
             zone was not recorded, or a later rebind accepted other values"
        );
    }
    let rewound: Vec<String> = entities.iter().filter_map(before_rewind).collect();
    if !rewound.is_empty() {
        let shown = &rewound[..rewound.len().min(REWINDS_NAMED_MAX)];
        not_proven = format!(
            "{not_proven}; the passes before a rewind to the start: {}",
            and_more(shown, rewound.len())
        );
    }
    for (count, what) in [
        (names(|entity| entity.skipped_from_now), "rows skipped by {} at registration with --from-now"),
        (names(|entity| entity.pruned.is_some()), "the pruned part of the journal of {}"),
    ] {
        if count > 0 {
            let entities = format!("{count} {}", if count == 1 { "entity" } else { "entities" });
            not_proven = format!("{not_proven}; {}", what.replace("{}", &entities));
        }
    }
    not_proven
}

/// The last rewind to the start of an entity, before which no pass is checked.
fn before_rewind(entity: &EntityProof) -> Option<String> {
    let rewound = entity.rewound?;
    let at = rewound.at.map_or_else(String::new, |at| format!(" of {}", at.format("%Y-%m-%d %H:%M:%SZ")));
    Some(format!("{} (rewind {}{at})", entity.entity_id, rewound.pass_id))
}

/// Prints the report of `prune`.
pub fn pruned(report: &PruneReport, rehearsed: bool, as_json: bool) {
    if as_json {
        let PruneReport { before, entities, runs } = report;
        json_line(&json!({ "dry_run": rehearsed, "before": before, "entities": entities, "runs": runs }));
        return;
    }
    let before = report.before.format("%Y-%m-%d %H:%M:%SZ");
    if !report.entities.is_empty() {
        let header = ["entity", "passes", "batches", "errors", ""];
        lines(table(
            &header,
            &[1, 2, 3],
            report.entities.iter().map(|entity| {
                vec![
                    entity.entity_id.clone(),
                    entity.passes.to_string(),
                    entity.batches.to_string(),
                    entity.errors.to_string(),
                    match entity {
                        PrunedEntity { foreign: true, .. } => {
                            "this cluster did not write its journal; hint: elven-sync verify"
                        }
                        PrunedEntity { busy: true, .. } => {
                            "locked by another session; hint: prune again later"
                        }
                        PrunedEntity { .. } => "",
                    }
                    .to_owned(),
                ]
            }),
        ));
    }
    if rehearsed {
        line(format_args!(
            "dry run, nothing was changed: these passes and batches ended before {before} and would be deleted, with \
             resolved errors and runs that no record refers to; their totals would be added to sync_pruned"
        ));
    } else {
        line(format_args!(
            "the records that ended before {before} were deleted, and their totals were added to sync_pruned; {} runs \
             that no record refers to were deleted",
            report.runs
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_follow_each_other_are_a_range() {
        let listed = |ids: &[&str]| ranges(ids.iter().map(|id| (*id).to_owned()));
        assert_eq!(listed(&[]), "");
        assert_eq!(listed(&["20", "3", "4", "5", "btc-1"]), "3-5, 20, btc-1");
        assert_eq!(listed(&["-1", "0", "9223372036854775807"]), "-1-0, 9223372036854775807");
        let many: Vec<String> = (0..60).map(|number| (number * 2).to_string()).collect();
        assert!(ranges(many.into_iter()).ends_with("96, 98, and 10 more places"));
    }
}
