//! The output of `audit`.

mod answer;
mod columns;
mod files;
mod json;
mod text;

pub use self::files::AuditFiles;

use super::{json_line, lines};
use crate::audit::PeriodAudit;

/// Prints the report of `audit`.
pub fn report(audit: &PeriodAudit, as_json: bool) {
    if as_json {
        json_line(&json::document(audit));
        return;
    }
    lines(text::document(audit, true));
}

/// Prints the answer of an audit, and where its files are.
pub fn written(audit: &PeriodAudit, files: &AuditFiles) {
    let mut said = text::paragraph(&answer::answer(audit), 0);
    said.push(files.said());
    lines(said.join("\n"));
}
