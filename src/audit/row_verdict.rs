//! The states of a row.

use serde::Serialize;

/// The state of a row, as in the JSON output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The API accepted its present version.
    Uploaded,
    /// A newer rival was sent instead.
    Superseded,
    /// Set aside, with an open error in `sync_errors`.
    SetAside,
    /// Set aside, and the error was resolved by a person or by another row.
    Resolved,
    /// Not processed yet.
    Pending,
    /// Skipped by a registration with `--from-now`.
    Skipped,
    /// Processed by a pass that was pruned from the journal.
    Pruned,
    /// Deleted from the ledger.
    Deleted,
    /// Not processed according to the journal, although the watermark includes it.
    Missing,
    /// The database cannot read it.
    Unreadable,
}

impl Verdict {
    /// Whether a person should look.
    pub fn needs_a_person(self) -> bool {
        matches!(self, Verdict::SetAside | Verdict::Missing | Verdict::Unreadable)
    }
}
