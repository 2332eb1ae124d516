//! The output of `errors list --rows` and `errors show`.

use chrono::{DateTime, SecondsFormat, Utc};
use comfy_table::Table;
use serde_json::json;

use super::{csv, escaped, json_line, line, lines, number, table, terminal_columns, write_part};
use crate::journal::{ErrorGroup, RecordedError};
use crate::text::{counted_noun, escaped_json, thousands};

/// The message is not shortened to fewer characters, except that a narrower terminal wraps it.
const MESSAGE_CHARS_MIN: usize = 10;
/// The most groups of errors that are listed where none matches.
const GROUPS_SHOWN_MAX: usize = 10;
/// The blanks behind each cell of a table on a terminal.
const CELL_PADDING: usize = 1;

/// How `errors list` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorFormat {
    /// Text for people.
    Text,
    /// CSV with a header.
    Csv,
    /// JSON.
    Json,
}

/// Prints `errors list --rows`, some errors at a time.
#[derive(Debug)]
pub struct ErrorRows {
    format: ErrorFormat,
    is_empty: bool,
}

impl ErrorRows {
    /// Prints what comes before the first error.
    pub fn begin(format: ErrorFormat) -> Self {
        match format {
            ErrorFormat::Text => {}
            ErrorFormat::Csv => write_part(&csv::record(CSV_HEADER.map(Some))),
            ErrorFormat::Json => write_part("{\"errors\":["),
        }
        Self { format, is_empty: true }
    }

    /// Prints errors. As text, each part is a table of its own.
    pub fn print(&mut self, errors: &[RecordedError]) {
        match self.format {
            ErrorFormat::Text => lines(list(errors, terminal_columns())),
            ErrorFormat::Csv => write_part(&errors.iter().map(csv_record).collect::<String>()),
            ErrorFormat::Json => {
                let errors: Vec<String> = errors.iter().map(|error| escaped_json(&json!(error))).collect();
                write_part(&format!("{}{}", if self.is_empty { "" } else { "," }, errors.join(",")));
            }
        }
        self.is_empty &= errors.is_empty();
    }

    /// Prints what comes after the last error. `more`: the number of errors beyond the limit.
    pub fn end(self, more: usize) {
        match self.format {
            ErrorFormat::Text if more > 0 => {
                let more = counted_noun(number(more), "more error is", "more errors are");
                line(format_args!("{more} not listed (--limit)"));
            }
            ErrorFormat::Text | ErrorFormat::Csv => {}
            ErrorFormat::Json => write_part("]}\n"),
        }
    }
}

/// The columns of `errors list --rows --csv`.
const CSV_HEADER: [&str; 18] = [
    "error_id",
    "kind",
    "entity_id",
    "ledger_id",
    "http_status",
    "api_code",
    "message",
    "cause",
    "record",
    "occurrences",
    "first_seen_at",
    "last_seen_at",
    "resolved_at",
    "resolution",
    "run_id",
    "batch_id",
    "name",
    "rows",
];

fn csv_record(error: &RecordedError) -> String {
    let number = |number: Option<i64>| number.map(|number| number.to_string());
    let fields: [Option<String>; 18] = [
        Some(error.error_id.to_string()),
        Some(error.kind.clone()),
        Some(error.entity_id.clone()),
        error.ledger_id.clone(),
        number(error.http_status.map(i64::from)),
        error.api_code.clone(),
        Some(error.message.clone()),
        error.cause.clone(),
        error.record.clone(),
        Some(error.occurrences.to_string()),
        Some(time(&error.first_seen_at)),
        Some(time(&error.last_seen_at)),
        error.resolved_at.as_ref().map(time),
        error.resolution.clone(),
        number(error.run_id),
        number(error.batch_id),
        error.name.clone(),
        number(error.rows.map(i64::from)),
    ];
    csv::record(fields.iter().map(Option::as_deref))
}

/// Formats a time for programs.
pub(super) fn time(at: &DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Prints that no error matches, and which errors there are. `all`: resolved errors were asked for, too.
pub fn no_errors(others: &[ErrorGroup], all: bool) {
    let hint = if all { " --all" } else { "" };
    match no_match(others, all) {
        text if others.is_empty() => line(text),
        text => line(format_args!("{text}; hint: elven-sync errors list{hint}")),
    }
}

/// Returns the words for a filter that no error matches, which say what errors there are.
pub fn no_match(others: &[ErrorGroup], all: bool) -> String {
    let state = if all { "recorded" } else { "open" };
    if others.is_empty() {
        return format!("no error is {state}");
    }
    format!("no error is {state} that matches; {state}: {}", in_words(others))
}

/// Returns the words for a filter that matches no row that is set aside. `open`: the errors that are open.
pub fn no_row_matches(open: &[ErrorGroup]) -> String {
    if open.is_empty() {
        return no_match(open, false);
    }
    format!("no row that matches is set aside; open: {}", in_words(open))
}

fn in_words(groups: &[ErrorGroup]) -> String {
    let group =
        |group: &ErrorGroup| format!("{} {} of `{}`", thousands(group.count), group.kind, group.entity_id);
    let mut words: Vec<String> = groups.iter().take(GROUPS_SHOWN_MAX).map(group).collect();
    let more = groups.len().saturating_sub(GROUPS_SHOWN_MAX);
    if more > 0 {
        words.push(format!("{more} more groups"));
    }
    words.join(", ")
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
                error.ledger_id.clone().or_else(|| held(error)).unwrap_or_default(),
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
    // What is still too wide, such as a long id, is wrapped.
    table(&header, &[0, 4], rows)
}

/// The number of rows that an error holds, in words.
fn held(error: &RecordedError) -> Option<String> {
    error.rows.map(|rows| counted_noun(i64::from(rows), "row", "rows"))
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
    let when = |at: &DateTime<Utc>| at.format("%Y-%m-%d %H:%M:%SZ").to_string();
    let number = |number: Option<i64>| number.map(|number| number.to_string());
    for (name, value) in [
        ("error", Some(error.error_id.to_string())),
        ("kind", Some(error.kind.clone())),
        ("entity", Some(error.entity_id.clone())),
        ("ledger row", error.ledger_id.clone()),
        ("name", error.name.clone()),
        ("rows", number(error.rows.map(i64::from))),
        (
            "ids of the rows",
            error.rows.map(|_| format!("select elven_sync.error_row_ids({})", error.error_id)),
        ),
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
