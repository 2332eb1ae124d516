//! How a cycle ends.

use crate::journal::RunStatus;

/// How a cycle ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CycleOutcome {
    /// The run ended, with this status.
    Ran(RunStatus),
    /// The run could not work, because the database was away.
    DatabaseAway,
    /// The run could not work for another reason.
    Failed,
    /// The run ended in a panic.
    Panicked,
}

impl CycleOutcome {
    /// The names of all outcomes.
    pub(super) const NAMES: [&str; 6] =
        ["succeeded", "incomplete", "failed", "interrupted", "database_away", "panicked"];

    /// The name in a metric.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Ran(status) => status.as_ref(),
            Self::DatabaseAway => "database_away",
            Self::Failed => "failed",
            Self::Panicked => "panicked",
        }
    }
}
