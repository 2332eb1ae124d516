//! The output of `errors list` by cause.

use chrono::{DateTime, Utc};
use serde_json::json;

use super::errors::{ErrorFormat, time};
use super::{TERMINAL_COLUMNS, csv, json_line, line, terminal_columns, wrapped, write_part};
use crate::journal::ErrorCause;
use crate::text::{counted_noun, escaped, thousands};

/// The blanks before what belongs to a cause.
const INDENT: &str = "    ";
/// Text is not wrapped to less than this.
const COLUMNS_MIN: usize = 20;

/// Prints the causes of `errors list`.
pub fn error_causes(causes: &[ErrorCause], format: ErrorFormat) {
    match format {
        ErrorFormat::Json => json_line(&json!({ "causes": causes })),
        ErrorFormat::Csv => as_csv(causes),
        ErrorFormat::Text => {
            let columns = usize::from(terminal_columns().unwrap_or(TERMINAL_COLUMNS)).max(COLUMNS_MIN);
            for cause in causes {
                cause_lines(cause, columns).into_iter().for_each(line);
            }
            let all = causes.first().map_or(0, |cause| cause.causes);
            let more = all - i64::try_from(causes.len()).unwrap_or(all);
            if more > 0 {
                line(format_args!(
                    "{} not listed (--limit)",
                    counted_noun(more, "more cause is", "more causes are")
                ));
            }
        }
    }
}

/// The lines of a cause: what it concerns, what happened, and the command that settles it.
fn cause_lines(cause: &ErrorCause, columns: usize) -> Vec<String> {
    let minute = |at: &DateTime<Utc>| at.format("%Y-%m-%d %H:%MZ").to_string();
    let (first, last) = (minute(&cause.first_seen_at), minute(&cause.last_seen_at));
    let seen = if first == last { first } else { format!("{first} to {last}") };
    let resolved = if cause.resolved { "resolved " } else { "" };
    let example =
        cause.example_ledger_id.as_ref().map_or_else(String::new, |row| format!(", e.g. row {row}"));
    let head =
        format!("{}: {} {resolved}{}, {seen}{example}", cause.entity_id, thousands(cause.rows), cause.kind);
    let inner = columns - INDENT.len();
    let mut lines = Vec::new();
    for part in wrapped(&escaped(&head), inner) {
        lines.push(if lines.is_empty() { part } else { format!("{INDENT}{part}") });
    }
    // The command is printed once, and not wrapped.
    let text = cause.cause.strip_suffix(&cause.hint).and_then(|text| text.strip_suffix("; hint: "));
    let text = wrapped(&escaped(text.unwrap_or(&cause.cause)), inner);
    lines.extend(text.into_iter().map(|part| format!("{INDENT}{part}")));
    lines.extend(hint_lines(&cause.hint, columns));
    lines
}

/// The line of the hint. A long command is continued on a second line, as a shell reads it.
fn hint_lines(hint: &str, columns: usize) -> Vec<String> {
    let whole = format!("{INDENT}hint: {}", escaped(hint));
    match whole.rsplit_once(" --cause ") {
        Some((command, cause)) if whole.chars().count() > columns => {
            vec![format!("{command} \\"), format!("{INDENT}{INDENT}--cause {cause}")]
        }
        _ => vec![whole],
    }
}

fn as_csv(causes: &[ErrorCause]) {
    let header = [
        "entity_id",
        "kind",
        "api_code",
        "cause",
        "rows",
        "first_seen_at",
        "last_seen_at",
        "example_ledger_id",
        "hint",
        "resolved",
    ];
    write_part(&csv::record(header.map(Some)));
    for cause in causes {
        write_part(&csv::record([
            Some(cause.entity_id.as_str()),
            Some(&cause.kind),
            cause.api_code.as_deref(),
            Some(&cause.cause),
            Some(&cause.rows.to_string()),
            Some(&time(&cause.first_seen_at)),
            Some(&time(&cause.last_seen_at)),
            cause.example_ledger_id.as_deref(),
            Some(&cause.hint),
            Some(if cause.resolved { "true" } else { "false" }),
        ]));
    }
}
