//! The output of `verify` and `prune`.

use std::collections::BTreeMap;

use serde_json::json;

use super::{json_line, line, lines, table, thousands};
use crate::admin::{PruneReport, PrunedEntity};
use crate::audit::{EntityProof, Finding};

/// Up to this many findings of a kind are printed in full; of more, only the first one and their number.
const FINDINGS_SHOWN_MAX: usize = 5;
/// The most batches that are named for the findings that are not printed in full.
const BATCHES_NAMED_MAX: usize = 10;

/// What `verify` never proves.
const NOT_PROVEN: &str = "that Elven still holds the records that it accepted; rows that were deleted before they were \
                          read; the records that backfills and retries sent; bodies whose rows have changed since";

/// Prints the report of `verify`. Nothing is proven about an entity with a finding.
pub fn report(entities: &[EntityProof], deep: bool, as_json: bool) {
    let holds = entities.iter().all(EntityProof::holds);
    let (proven, not_proven) = (proven(entities), not_proven(entities, deep));
    if as_json {
        json_line(&json!({
            "holds": holds,
            "deep": deep,
            "entities": entities,
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
        "set aside",
        "open",
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
    }
    line(format_args!("proven: {proven}."));
    line(format_args!("not proven: {not_proven}."));
}

/// Prints the findings of an entity: the first ones of each kind in full, and the batches of the others.
fn findings(entity: &EntityProof) {
    let mut of_kind: BTreeMap<&str, Vec<&Finding>> = BTreeMap::new();
    for finding in &entity.findings {
        of_kind.entry(finding.what).or_default().push(finding);
    }
    for (kind, findings) in of_kind {
        let shown = if findings.len() > FINDINGS_SHOWN_MAX { 1 } else { findings.len() };
        for finding in &findings[..shown] {
            line(format_args!("{}: {}", place(entity, finding), finding.message));
        }
        let others = &findings[shown..];
        if others.is_empty() {
            continue;
        }
        let batches: Vec<String> = others
            .iter()
            .filter_map(|finding| finding.batch_id)
            .take(BATCHES_NAMED_MAX)
            .map(|batch_id| batch_id.to_string())
            .collect();
        let more = if batches.len() < others.len() { ", ..." } else { "" };
        let all_at_once = entity.backfill().filter(|_| kind == "body");
        let all_at_once = all_at_once.map_or_else(String::new, |backfill| {
            format!("; hint: `{backfill}` sends the rows of all these batches again")
        });
        line(format_args!(
            "{}: and {} more of kind `{kind}`, in batches {}{more}; --json shows each{all_at_once}",
            entity.entity_id,
            others.len(),
            batches.join(", "),
        ));
    }
    if entity.more_findings > 0 {
        line(format_args!("{}: and {} more findings", entity.entity_id, entity.more_findings));
    }
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

fn proven(entities: &[EntityProof]) -> String {
    let whole: Vec<&EntityProof> = entities.iter().filter(|entity| entity.holds()).collect();
    let sum = |of: fn(&EntityProof) -> i64| thousands(whole.iter().map(|entity| of(entity)).sum());
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let rows = whole.iter().map(|entity| entity.rows_proven).sum::<usize>();
    let broken = entities.len() - whole.len();
    let but = if broken > 0 { format!(" (nothing about the {broken} with findings)") } else { String::new() };
    format!(
        "for {} of {} entities{but}, each ledger row within the watermark is in exactly one batch ({} rows) and was \
         uploaded, superseded or set aside with its error ({}), each other row is pending ({}), and {} bodies have the \
         recorded hash",
        whole.len(),
        entities.len(),
        thousands(count(rows)),
        sum(|entity| entity.rows_set_aside),
        sum(|entity| entity.rows_pending),
        thousands(count(whole.iter().map(|entity| entity.bodies_proven).sum())),
    )
}

fn not_proven(entities: &[EntityProof], deep: bool) -> String {
    let mut not_proven = NOT_PROVEN.to_owned();
    let names = |of: fn(&EntityProof) -> bool| entities.iter().filter(|entity| of(entity)).count();
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
