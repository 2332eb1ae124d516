//! The output of `backfill` and `backfill list`.

use serde_json::json;

use super::foreseen::foreseen;
use super::progress::in_words;
use super::run::{run_json, run_report};
use super::{ENTITIES_SHOWN_MAX, json_line, line, lines, table, when};
use crate::journal::Backfill;
use crate::sync::{BackfillReport, DryRunReport};
use crate::text::{counted_noun, thousands};

/// Prints the summary of a run on a backfill.
pub fn backfill_report(report: &BackfillReport, as_json: bool) {
    let BackfillReport { backfill, resumed, run } = report;
    if as_json {
        let mut all = run_json(run);
        all["resumed"] = (*resumed).into();
        all["backfill"] = json!(backfill);
        json_line(&all);
        return;
    }
    line(format_args!(
        "backfill {} from {} to {}{}: {}, {} of {} rows done",
        backfill.backfill_id,
        backfill.range_from,
        backfill.range_to,
        if *resumed { ", resumed" } else { "" },
        backfill.status,
        thousands(backfill.rows_read),
        thousands(backfill.rows_total.max(backfill.rows_read)),
    ));
    run_report(run, &[], false);
    if backfill.entities_left > 0 && backfill.status != "cancelled" {
        line(format_args!(
            "{} not finished; hint: elven-sync backfill --resume {}",
            counted_noun(backfill.entities_left, "entity is", "entities are"),
            backfill.backfill_id
        ));
    }
}

/// Prints what a backfill would do.
pub fn rehearsal(rehearsal: &DryRunReport, as_json: bool) {
    let DryRunReport { counters, batches, first_record, last_record, at_rate, .. } = rehearsal;
    if as_json {
        let mut all = json!(rehearsal);
        all["dry_run"] = true.into();
        all["at_rate_s"] = at_rate.map(|rate| rate.as_secs()).into();
        json_line(&all);
        return;
    }
    line(format_args!(
        "dry run, nothing was sent or changed: {} rows in {} batches would be read, {} uploaded in {} requests ({} \
         bytes), {} set aside, {} superseded",
        counters.rows_read,
        batches,
        counters.rows_uploaded,
        counters.requests,
        counters.bytes_sent,
        counters.rows_rejected,
        counters.rows_superseded
    ));
    for (name, record) in [("first", first_record), ("last", last_record)] {
        if let Some(record) = record {
            line(format_args!("{name} record: {record}"));
        }
    }
    line(match at_rate {
        Some(duration) => format!("it would take {} at [api] requests_per_second", in_words(*duration)),
        None => "its duration is not known, since [api] requests_per_second is not set".to_owned(),
    });
    foreseen(&rehearsal.foreseen);
    for note in &rehearsal.notes {
        line(format_args!("note: {note}"));
    }
    for entity in &rehearsal.entities {
        if let Some(failure) = entity.failure() {
            line(format_args!("would fail: {failure}"));
        } else if rehearsal.entities.len() <= ENTITIES_SHOWN_MAX {
            line(format_args!("{}: {} rows", entity.entity_id, entity.rows_read));
        }
    }
}

/// Prints the table of `backfill list`.
pub fn backfills(backfills: &[Backfill], as_json: bool) {
    if as_json {
        json_line(&json!({ "backfills": backfills }));
        return;
    }
    if backfills.is_empty() {
        line("no backfill is recorded");
        return;
    }
    let header = ["no.", "status", "from", "to", "only", "rows", "done", "uploaded", "set aside", "started"];
    lines(table(
        &header,
        &[0, 5, 6, 7, 8],
        backfills.iter().map(|backfill| {
            let only = [&backfill.entities, &backfill.accounts, &backfill.currencies];
            let only: Vec<String> = only.into_iter().flatten().map(|values| values.join(", ")).collect();
            vec![
                backfill.backfill_id.to_string(),
                backfill.status.clone(),
                backfill.range_from.clone(),
                backfill.range_to.clone(),
                only.join("; "),
                backfill.rows_total.to_string(),
                backfill.rows_read.to_string(),
                backfill.rows_uploaded.to_string(),
                backfill.rows_rejected.to_string(),
                when(backfill.started_at),
            ]
        }),
    ));
}
