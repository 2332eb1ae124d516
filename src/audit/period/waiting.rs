//! What waits until it is judged or described together with others.

use chrono::{DateTime, Utc};

use super::outcome::Evidence;
use crate::journal::period::LooseBatch;
use crate::ledger::Row;

/// A batch that decided rows of the period.
#[derive(Clone, Copy)]
pub(super) struct Touched {
    pub batch_id: i64,
    pub rows: usize,
    pub body: Option<Evidence>,
}

/// A row whose outcome depends on what came later.
pub(super) struct Undecided {
    pub row: Row,
    pub why: Why,
}

/// Why the pass of a row did not upload it.
#[derive(Clone, Copy)]
pub(super) enum Why {
    /// A batch of the pass set it aside.
    SetAside(i64),
    /// A registration from now on skipped it, at this time.
    FromNow(Option<DateTime<Utc>>),
    /// Its pass was pruned: it was uploaded or superseded, or it was set aside and that was settled.
    Pruned,
}

impl Why {
    /// Whether a later batch sent the version of the row that the ledger has.
    pub(super) fn is_before(self, batch: &LooseBatch) -> bool {
        match self {
            Self::SetAside(batch_id) => batch.batch_id > batch_id,
            Self::FromNow(at) => at.is_none_or(|at| batch.created_at >= at),
            Self::Pruned => true,
        }
    }

    /// The batch that set it aside.
    pub(super) fn batch_id(self) -> Option<i64> {
        match self {
            Self::SetAside(batch_id) => Some(batch_id),
            Self::FromNow(_) | Self::Pruned => None,
        }
    }
}
