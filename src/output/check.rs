//! The output of `check`.

use serde_json::json;

use super::{json_line, line, lines, terminal_columns, wrapped};
use crate::check::{Category, Checked, Report, Status};
use crate::text::escaped;

/// What precedes the message: mark and word.
const INDENT: usize = 12;

/// Prints the results of `check` as text, each as soon as it is known.
#[derive(Debug, Default)]
pub struct Lines {
    category: Option<Category>,
    /// Skipped checks at the begin of the category, for one reason. If all are, they are one line.
    skipped: Vec<Checked>,
    /// Another check of the category was printed.
    is_mixed: bool,
}

impl Lines {
    /// Prints a result, with the name of its category before the first one.
    pub fn print(&mut self, check: &Checked) {
        if self.category != Some(check.category) {
            self.fold();
            if self.category.is_some() {
                line("");
            }
            line(check.category.word());
            self.category = Some(check.category);
            self.is_mixed = false;
        }
        let is_same = self.skipped.first().is_none_or(|first| first.message == check.message);
        if check.status == Status::Skipped && check.hint.is_none() && is_same && !self.is_mixed {
            self.skipped.push(check.clone());
            return;
        }
        self.each();
        one(check, terminal_columns().map(usize::from));
    }

    /// Prints the verdict below the results.
    pub fn end(&mut self, report: &Report) {
        self.fold();
        line("");
        line(verdict(report));
    }

    /// Prints each of the skipped checks.
    fn each(&mut self) {
        self.is_mixed = true;
        for check in self.skipped.drain(..) {
            one(&check, terminal_columns().map(usize::from));
        }
    }

    /// Prints the skipped checks of a category that has no others.
    fn fold(&mut self) {
        match &self.skipped[..] {
            [] | [_] => self.each(),
            [first, others @ ..] => {
                let text = format!("{} checks: {}", 1 + others.len(), first.message);
                let head = format!("  {} {:<7}", mark(first.status), first.status.word());
                text_lines(&head, &escaped(&text), terminal_columns().map(usize::from));
                self.skipped.clear();
            }
        }
    }
}

/// Prints the report of `check` as JSON.
pub fn json(report: &Report) {
    json_line(&json!({ "ok": report.is_ok(), "checks": report.checks }));
}

/// Prints a check: what was found, the remedy and where the handbook describes it. The message is wrapped on a terminal;
/// the remedy is not, so that it can be pasted.
fn one(check: &Checked, columns: Option<usize>) {
    let Checked { id, status, message, hint, doc, elapsed, .. } = check;
    let text = escaped(&format!("{id}: {message} ({} ms)", elapsed.as_millis()));
    text_lines(&format!("  {} {:<7}", mark(*status), status.word()), &text, columns);
    let rest = " ".repeat(INDENT);
    if let Some(hint) = hint {
        for (place, part) in parts(hint).iter().enumerate() {
            line(format_args!("{rest}{}{part}", if place == 0 { "hint: " } else { "  " }));
        }
    }
    if matches!(status, Status::Warning | Status::Failed) {
        line(format_args!("{rest}see {doc}"));
    }
}

/// Prints a text behind a head, wrapped on a terminal.
fn text_lines(head: &str, text: &str, columns: Option<usize>) {
    let text = match columns {
        Some(columns) => wrapped(text, columns.saturating_sub(INDENT).max(20)),
        None => vec![text.to_owned()],
    };
    let first = text.first().map(String::as_str).unwrap_or_default();
    lines(format_args!("{head} {first}"));
    for more in text.iter().skip(1) {
        lines(format_args!("{}{more}", " ".repeat(INDENT)));
    }
}

/// What precedes the grants of a remedy.
const AS_OWNER: &str = "as the owner: ";

/// The most grants on one line.
const GRANTS_MAX: usize = 3;

/// Returns the lines of a remedy: one for each of many grants.
fn parts(hint: &str) -> Vec<String> {
    let grants: Vec<&str> = hint.strip_prefix(AS_OWNER).map_or_else(Vec::new, |grants| {
        let grants = grants.trim_end_matches(';').split("; ");
        grants.collect()
    });
    if grants.len() <= GRANTS_MAX || !grants.iter().all(|grant| grant.starts_with("grant ")) {
        return vec![hint.to_owned()];
    }
    let head = std::iter::once(AS_OWNER.trim_end().to_owned());
    head.chain(grants.iter().map(|grant| format!("{grant};"))).collect()
}

/// A mark beside the word, to find a line at a glance.
fn mark(status: Status) -> char {
    match status {
        Status::Ok => '+',
        Status::Warning => '!',
        Status::Failed => 'x',
        Status::Skipped => '-',
    }
}

fn verdict(report: &Report) -> String {
    let count = |status| report.checks.iter().filter(|check| check.status == status).count();
    let [ok, warnings, failed, skipped] =
        [Status::Ok, Status::Warning, Status::Failed, Status::Skipped].map(count);
    let verdict = if report.is_blocked {
        "nothing could be checked"
    } else if report.is_ok() {
        "nothing would stop the sync"
    } else {
        "something would stop or endanger the sync"
    };
    format!("{verdict}: {ok} ok, {warnings} warning, {failed} failed, {skipped} skipped")
}
