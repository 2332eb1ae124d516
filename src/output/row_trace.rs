//! The output of `status --row`.

use serde_json::json;

use super::{json_line, line, lines, quoted_argument, table, when};
use crate::audit::RowReport;

/// Prints that an entity has no such row, and which entities have one.
pub fn of_other_entities(row: &str, reports: &[RowReport]) {
    let others: Vec<String> = reports.iter().map(|report| format!("`{}`", report.entity_id)).collect();
    if others.is_empty() {
        report(row, &[], false);
        return;
    }
    line(format_args!(
        "the entity has no row {row}; there is one of {}; hint: elven-sync status --row {}",
        others.join(", "),
        quoted_argument(row)
    ));
}

/// Prints the trace of a row, for each entity that has it.
pub fn report(row: &str, reports: &[RowReport], as_json: bool) {
    if as_json {
        json_line(&json!({ "row": row, "entities": reports }));
        return;
    }
    if reports.is_empty() {
        line(format_args!(
            "row {row} is neither in the ledger nor in the journal; its journal may be pruned, or it belongs to \
             another ledger"
        ));
    }
    for report in reports {
        let entity_id = &report.entity_id;
        line(format_args!("{entity_id}: row {row} {}", report.says));
        for row in &report.rows {
            line(format_args!("  in the ledger: {row}"));
        }
        if let Some(xid) = report.change_xid {
            line(format_args!("  written by transaction {xid}"));
        }
        if !report.carried.is_empty() {
            let header =
                ["batch", "part of", "pass", "run", "", "status", "attempts", "HTTP", "ms", "answered"];
            let number = |number: Option<i64>| number.map_or_else(String::new, |number| number.to_string());
            lines(table(
                &header,
                &[0, 1, 2, 3, 6, 7, 8],
                report.carried.iter().map(|batch| {
                    let mut status = batch.status.clone();
                    for (holds, word) in [(batch.set_aside, "set aside"), (batch.ambiguous, "ambiguous")] {
                        if holds {
                            status = format!("{status}, {word}");
                        }
                    }
                    vec![
                        batch.batch_id.to_string(),
                        number(batch.parent_id),
                        number(batch.pass_id),
                        batch.run_id.to_string(),
                        batch.run_kind.clone(),
                        status,
                        batch.attempts.to_string(),
                        number(batch.http_status.map(i64::from)),
                        number(batch.duration_ms),
                        batch.finished_at.map_or_else(String::new, when),
                    ]
                }),
            ));
        }
        for error in &report.errors {
            let state =
                error.resolution.as_ref().map_or_else(|| "open".to_owned(), |why| format!("resolved: {why}"));
            line(format_args!("  error {} ({}), {state}: {}", error.error_id, error.kind, error.message));
        }
    }
}
