//! The output of `errors list` and `errors show`.

use std::io::IsTerminal;

use comfy_table::{ContentArrangement, Table};
use serde_json::json;

use super::{escaped, json_line, line, lines, table};
use crate::journal::RecordedError;

/// The columns of a terminal of unknown width.
const TERMINAL_COLUMNS: u16 = 80;
/// The message is not shortened to fewer characters, except that a narrower terminal wraps it.
const MESSAGE_CHARS_MIN: usize = 10;
/// The blanks around each cell of a table.
const CELL_PADDING: usize = 2;

/// Prints the table of `errors list`.
pub fn errors(errors: &[RecordedError], as_json: bool) {
    if as_json {
        json_line(&json!({ "errors": errors }));
        return;
    }
    if errors.is_empty() {
        line("no error is open");
        return;
    }
    lines(list(errors, terminal_columns()));
}

/// The width of the terminal that stdout is. `None`: stdout is not a terminal.
fn terminal_columns() -> Option<u16> {
    let stdout = std::io::stdout();
    let width = terminal_size::terminal_size_of(&stdout).map(|(width, _)| width.0);
    stdout.is_terminal().then(|| width.unwrap_or(TERMINAL_COLUMNS))
}

/// The table of errors. With `columns` it fits a terminal of that width: messages are shortened, and times have no
/// seconds.
fn list(errors: &[RecordedError], columns: Option<u16>) -> Table {
    let header = ["error", "kind", "entity", "row", "seen", "last", "message"];
    let last = if columns.is_some() { "%Y-%m-%d %H:%MZ" } else { "%Y-%m-%d %H:%M:%SZ" };
    let mut rows: Vec<Vec<String>> = errors
        .iter()
        .map(|error| {
            let message = match &error.resolution {
                Some(resolution) => format!("resolved: {resolution}"),
                None => error.message.clone(),
            };
            vec![
                error.error_id.to_string(),
                error.kind.clone(),
                error.entity_id.clone(),
                error.ledger_id.clone().unwrap_or_default(),
                error.occurrences.to_string(),
                error.last_seen_at.format(last).to_string(),
                message,
            ]
        })
        .collect();
    let Some(columns) = columns else { return table(&header, &[0, 4], rows) };
    let message = header.len() - 1;
    let width = |column: usize| {
        let cells = rows.iter().map(|row| escaped(&row[column]).chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0) + CELL_PADDING
    };
    let others: usize = (0..message).map(width).sum();
    let left = usize::from(columns).saturating_sub(others + CELL_PADDING).max(MESSAGE_CHARS_MIN);
    for row in &mut rows {
        row[message] = shortened(&escaped(&row[message]), left);
    }
    let mut table = table(&header, &[0, 4], rows);
    // Wraps what is still too wide, such as a long id.
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(columns);
    table
}

/// Shortens a text to this number of characters, with an ellipsis at its end.
fn shortened(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    let kept: String = text.chars().take(chars_max.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// Prints `errors show`: each field of an error on a line of its own.
pub fn error_in_full(error: &RecordedError, as_json: bool) {
    if as_json {
        json_line(&json!(error));
        return;
    }
    let when = |at: &chrono::DateTime<chrono::Utc>| at.format("%Y-%m-%d %H:%M:%SZ").to_string();
    let number = |number: Option<i64>| number.map(|number| number.to_string());
    for (name, value) in [
        ("error", Some(error.error_id.to_string())),
        ("kind", Some(error.kind.clone())),
        ("entity", Some(error.entity_id.clone())),
        ("ledger row", error.ledger_id.clone()),
        ("message", Some(error.message.clone())),
        ("HTTP status", number(error.http_status.map(i64::from))),
        ("code of the API", error.api_code.clone()),
        ("record", error.record.clone()),
        ("seen", Some(error.occurrences.to_string())),
        ("first seen", Some(when(&error.first_seen_at))),
        ("last seen", Some(when(&error.last_seen_at))),
        ("run", number(error.run_id)),
        ("batch", number(error.batch_id)),
        ("resolved", error.resolved_at.as_ref().map(when)),
        ("resolution", error.resolution.clone()),
    ] {
        if let Some(value) = value {
            line(format_args!("{name:16}{value}"));
        }
    }
}
