//! `sync_commits`: by which it is known whether a transaction was committed. It is emptied in steps.

use std::collections::BTreeSet;

/// The transactions of a process that write.
#[derive(Debug)]
pub(super) struct Commits {
    pub(super) begun: i64,
    /// Those of which it is not known how they ended.
    pub(super) open: BTreeSet<i64>,
    /// The rows of those before this one were removed.
    pub(super) kept_from: i64,
    /// Rows of other processes before this one were looked at.
    pub(super) others_from: (i64, i64),
}

/// Before all rows.
pub(super) const START: (i64, i64) = (i64::MIN, i64::MIN);

impl Default for Commits {
    fn default() -> Self {
        Self { begun: 0, open: BTreeSet::new(), kept_from: 0, others_from: START }
    }
}
