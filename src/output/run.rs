//! The output of `run`.

use comfy_table::Table;
use serde_json::json;

use super::foreseen::{foreseen, not_compared};
use super::{ENTITIES_SHOWN_MAX, counted, json_line, line, lines, number, table, unregistered};
use crate::sync::{Ended, EntityReport, RunReport};
use crate::text::{counted_noun, quoted_argument, quoted_option};

/// Returns the first line of the summary of a run: its status and its counters.
pub fn run_summary(report: &RunReport) -> String {
    let counters = &report.counters;
    match report.run_id {
        Some(run_id) => format!(
            "run {run_id} {}: {} rows read, {} uploaded, {} set aside, {} superseded, {}; {} requests",
            report.status.as_ref(),
            counters.rows_read,
            counters.rows_uploaded,
            counters.rows_rejected,
            counters.rows_superseded,
            pending_words(report),
            counters.requests
        ),
        None => format!(
            "dry run, nothing was sent or changed: {} rows would be read, {} uploaded in {} requests ({} bytes), {} \
             set aside, {} superseded",
            counters.rows_read,
            counters.rows_uploaded,
            counters.requests,
            counters.bytes_sent,
            counters.rows_rejected,
            counters.rows_superseded
        ),
    }
}

/// Prints the summary of a run. `paused`: the entities that were asked for, if all of them are paused.
pub fn run_report(report: &RunReport, paused: &[&str], as_json: bool) {
    if as_json {
        json_line(&run_json(report));
        return;
    }
    line(run_summary(report));
    if let Some(print) = &report.print {
        line(format_args!("print: {print}"));
    }
    let counters = &report.counters;
    if counters.rows_beyond_double > 0 {
        line(format_args!(
            "note: {} amounts have more digits than a double holds; they are sent exactly, but a program that reads \
             JSON numbers as doubles rounds them",
            counters.rows_beyond_double
        ));
    }
    for note in &report.notes {
        line(format_args!("note: {note}"));
    }
    if let Some(found) = &report.foreseen {
        foreseen(found);
        not_compared(found);
    }
    match (report.entities.len(), paused) {
        (0, [entity_id, more @ ..]) => line(format_args!(
            "{}; hint: elven-sync entity resume {}",
            if more.is_empty() {
                format!("entity `{entity_id}` is paused")
            } else {
                "all entities are paused".to_owned()
            },
            quoted_argument(entity_id)
        )),
        (0, []) if report.unregistered.is_empty() => {
            line("no entity to work on; hint: elven-sync entity add ID --timezone ZONE");
        }
        (1..=ENTITIES_SHOWN_MAX, _) => lines(entities_table(report)),
        _ => {}
    }
    failures(report);
    for why in report.entities.iter().filter_map(EntityReport::left_to_a_later_run).take(ENTITIES_SHOWN_MAX) {
        line(format_args!("pending: {why}"));
    }
    if let Some(problem) = &report.unregistered_unknown {
        line(problem);
    }
    unregistered(&report.unregistered, report.entities_left_out);
}

/// Prints why entities failed, and whose held rows were refused again, each on a line.
fn failures(report: &RunReport) {
    let failures: Vec<String> = report.entities.iter().filter_map(EntityReport::failure).collect();
    for failure in failures.iter().take(ENTITIES_SHOWN_MAX) {
        line(format_args!("failed: {failure}"));
    }
    if let Some(more) = failures.len().checked_sub(ENTITIES_SHOWN_MAX).filter(|more| *more > 0) {
        line(format_args!("failed: {more} more entities; hint: elven-sync status"));
    }
    for entity in report.entities.iter().filter(|entity| entity.rows_held_again > 0).take(ENTITIES_SHOWN_MAX)
    {
        line(format_args!(
            "{}: {} sent again and refused again; hint: elven-sync errors list {}",
            entity.entity_id,
            counted_noun(entity.rows_held_again, "held row was", "held rows were"),
            quoted_option("--entity", &entity.entity_id)
        ));
    }
}

/// The number of pending rows, of the entities whose rows the database can count.
fn pending(report: &RunReport) -> i64 {
    report.entities.iter().filter_map(|entity| entity.rows_pending).sum()
}

/// What is pending, in words: the rows that were counted, and the entities that are not registered, whose rows are not
/// counted.
fn pending_words(report: &RunReport) -> String {
    let pending = pending(report);
    match report.unregistered.len() {
        0 => format!("{pending} pending"),
        entities => format!(
            "{pending} pending and those of {}",
            counted_noun(number(entities), "unregistered entity", "unregistered entities")
        ),
    }
}

pub(super) fn run_json(report: &RunReport) -> serde_json::Value {
    json!({
        "run_id": report.run_id,
        "dry_run": report.run_id.is_none(),
        "status": report.status.as_ref(),
        "rows_read": report.counters.rows_read,
        "rows_uploaded": report.counters.rows_uploaded,
        "rows_rejected": report.counters.rows_rejected,
        "rows_superseded": report.counters.rows_superseded,
        "rows_pending": pending(report),
        "requests": report.counters.requests,
        "retries": report.counters.retries,
        "bytes_sent": report.counters.bytes_sent,
        "rows_beyond_double": report.counters.rows_beyond_double,
        "entities": report.entities,
        "unregistered_entities": report.unregistered,
        "unregistered_unknown": report.unregistered_unknown,
        "print": report.print,
        "entities_left_out": report.entities_left_out,
        "notes": report.notes,
        "foreseen": report.foreseen,
    })
}

fn entities_table(report: &RunReport) -> Table {
    let header = ["entity", "", "read", "uploaded", "set aside", "superseded", "pending"];
    table(
        &header,
        &[2, 3, 4, 5, 6],
        report.entities.iter().map(|entity| {
            let ended = match &entity.ended {
                Ended::Done => "done",
                Ended::Stopped => "stopped",
                Ended::Held => "held by another worker",
                Ended::Fenced(_) => "fenced",
                Ended::Failed(_) => "FAILED",
            };
            vec![
                entity.entity_id.clone(),
                ended.to_owned(),
                entity.rows_read.to_string(),
                entity.rows_uploaded.to_string(),
                entity.rows_rejected.to_string(),
                entity.rows_superseded.to_string(),
                counted(entity.rows_pending),
            ]
        }),
    )
}
