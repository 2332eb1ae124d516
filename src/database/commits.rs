//! The state of `sync_commits`, whose rows prove that a transaction was committed. The table is emptied in steps.

use std::collections::BTreeSet;

/// The writing transactions of a process.
#[derive(Debug)]
pub(super) struct Commits {
    pub(super) begun: i64,
    /// The numbers of transactions whose outcome is not known yet.
    pub(super) open: BTreeSet<i64>,
    /// The rows with a lower number were removed.
    pub(super) kept_from: i64,
    /// The rows of other processes before this key were checked.
    pub(super) others_from: CommitKey,
}

/// The primary key of a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct CommitKey {
    pub(super) process: i64,
    pub(super) number: i64,
}

/// The key before all rows.
pub(super) const START: CommitKey = CommitKey { process: i64::MIN, number: i64::MIN };

impl Default for Commits {
    fn default() -> Self {
        Self { begun: 0, open: BTreeSet::new(), kept_from: 0, others_from: START }
    }
}
