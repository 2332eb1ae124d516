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

/// What precedes the advice in a message.
const HINT: &str = "; hint: ";

/// The end of the message, before its hint, for a batch of unknown outcome that waits for a decision.
const ON_HOLD: &str = "[sync] on_ambiguous = \"hold\"";

/// The command at the end of messages about rows. The hint is the same command for the rows of the cause.
const RETRY_SUFFIXES: [&str; 2] = [", run `elven-sync errors retry`", ", `elven-sync errors retry`"];

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
    let (text, hint) = text_and_hint(cause);
    let text = wrapped(&escaped(&text), inner);
    lines.extend(text.into_iter().map(|part| format!("{INDENT}{part}")));
    lines.extend(hint_lines(hint, columns));
    lines
}

/// The text and the only hint of a cause: the command, which is printed once and not wrapped. What else the message
/// advises is a part of the text.
fn text_and_hint(cause: &ErrorCause) -> (String, &str) {
    let ErrorCause { cause: text, hint, kind, .. } = cause;
    if let Some(text) = text.strip_suffix(hint).and_then(|text| text.strip_suffix(HINT)) {
        return (text.to_owned(), hint);
    }
    // A run alone would hold the batch, or stop, again. These messages have no text of the API.
    let is_held = kind == "unavailable" && text.starts_with("the outcome of batch ");
    let is_own =
        |said: &str| ["timezone", "watermark"].contains(&&**kind) || is_held && said.ends_with(ON_HOLD);
    let is_once = text.matches(HINT).count() == 1 && !cause.resolved;
    if let Some((said, own)) = text.split_once(HINT).filter(|(said, _)| is_once && is_own(said)) {
        return (said.to_owned(), own);
    }
    let text = match RETRY_SUFFIXES.iter().find_map(|suffix| text.strip_suffix(suffix)) {
        Some(text) => format!("{text}, retry it"),
        None => text.clone(),
    };
    (text.replace(HINT, "; "), hint)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(kind: &str, text: &str, hint: &str) -> ErrorCause {
        ErrorCause {
            entity_id: "acme".to_owned(),
            kind: kind.to_owned(),
            api_code: None,
            cause: text.to_owned(),
            rows: 1,
            first_seen_at: DateTime::UNIX_EPOCH,
            last_seen_at: DateTime::UNIX_EPOCH,
            example_ledger_id: None,
            hint: hint.to_owned(),
            resolved: false,
            causes: 1,
        }
    }

    #[test]
    fn each_cause_has_one_hint() {
        let retry = "elven-sync errors retry --entity 'acme' --cause 1";
        for (kind, text, hint, expected) in [
            (
                "rejected_row",
                "refused; hint: correct the row in the ledger, and the next run uploads it; after a correction \
                 elsewhere, `elven-sync errors retry`",
                retry,
                (
                    "refused; correct the row in the ledger, and the next run uploads it; after a correction elsewhere, \
                  retry it",
                    retry,
                ),
            ),
            ("watermark", "no; hint: x", "x", ("no", "x")),
            (
                "unavailable",
                "the outcome of batch 7 is unknown, and [sync] on_ambiguous = \"hold\"; hint: look it up, then x",
                "elven-sync run",
                (
                    "the outcome of batch 7 is unknown, and [sync] on_ambiguous = \"hold\"",
                    "look it up, then x",
                ),
            ),
            (
                "watermark",
                "no `a; hint: rm x`; hint: y",
                "elven-sync run",
                ("no `a; rm x`; y", "elven-sync run"),
            ),
            // A text from outside is no remedy.
            (
                "auth",
                "no: \"; hint: rm x\"; hint: check the key",
                "elven-sync run",
                ("no: \"; rm x\"; check the key", "elven-sync run"),
            ),
        ] {
            let cause = cause(kind, text, hint);
            let (text, hint) = text_and_hint(&cause);
            assert_eq!((&*text, hint), expected);
            let lines = cause_lines(&cause, 80).join("\n");
            assert_eq!(lines.matches("hint: ").count(), 1, "{lines}");
        }
    }
}
