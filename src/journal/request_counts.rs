//! Requests by outcome, as `sync_state` counts them.

use std::ops::AddAssign;

use super::batch_record::AnsweredBatch;

/// HTTP statuses with which the API does not take a request at that time.
const NOT_NOW: [i32; 4] = [408, 425, 429, 503];

/// Requests by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCounts {
    /// The API accepted them.
    pub accepted: i64,
    /// The API or a proxy refused them.
    pub refused: i64,
    /// The API did not take them at that time.
    pub throttled: i64,
    /// Their outcome was unknown when they ended.
    pub unknown: i64,
}

impl RequestCounts {
    /// Returns the counts of one answer. A batch that was not sent counts nowhere.
    pub(super) fn of(answered: &AnsweredBatch) -> Self {
        let mut counts = Self::default();
        if !answered.result.sent {
            return counts;
        }
        let count = match (answered.status, answered.result.http_status) {
            ("accepted", _) => &mut counts.accepted,
            ("unknown", _) => &mut counts.unknown,
            (_, Some(status)) if NOT_NOW.contains(&status) => &mut counts.throttled,
            _ => &mut counts.refused,
        };
        *count = 1;
        counts
    }

    /// Returns whether nothing is counted.
    pub(super) fn is_zero(self) -> bool {
        self == Self::default()
    }
}

impl AddAssign for RequestCounts {
    fn add_assign(&mut self, more: Self) {
        self.accepted += more.accepted;
        self.refused += more.refused;
        self.throttled += more.throttled;
        self.unknown += more.unknown;
    }
}
