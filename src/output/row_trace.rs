//! The output of `status --row`.

use serde_json::json;

use super::{json_line, line, lines, table, when};
use crate::audit::{KeyRows, RecordKey, RowReport};
use crate::text::{counted_noun, quoted_argument};

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
    report_text(row, reports);
}

/// Prints the traces of all rows with a key. `found`: the rows by entity; `traced`: each row with its trace.
pub fn report_key(key: &RecordKey, found: &[KeyRows], traced: &[(&str, Vec<RowReport>)], as_json: bool) {
    if as_json {
        let rows: Vec<_> =
            traced.iter().map(|(row, reports)| json!({ "row": row, "entities": reports })).collect();
        json_line(&json!({ "key": key, "rows": rows }));
        return;
    }
    let RecordKey { account, currency, at } = key;
    for KeyRows { entity_id, timezone, instants, row_ids } in found {
        let twice = match instants {
            0 => ", which clocks skip there",
            1 => "",
            _ => ", which occurs more than once there",
        };
        if !row_ids.is_empty() || (*instants != 1 && found.len() == 1) {
            let count = counted_noun(i64::try_from(row_ids.len()).unwrap_or(i64::MAX), "row", "rows");
            line(format_args!(
                "{entity_id}: {count} of account `{account}` and currency `{currency}` at {at} ({timezone}{twice})"
            ));
        }
    }
    if traced.is_empty() {
        line(format_args!(
            "the ledger has no row of account `{account}` and currency `{currency}` at {at}; names are compared \
             exactly, also in upper and lower case, and a deleted row is found only by its id (status --row)"
        ));
    }
    for (row, reports) in traced {
        report_text(row, reports);
    }
}

fn report_text(row: &str, reports: &[RowReport]) {
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
        if let Some(sent) = &report.sent {
            line(format_args!("  as it was sent: {sent}"));
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
