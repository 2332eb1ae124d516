//! The rules by which rows become records.

use crate::align::{Clock, Zone};

/// What decides the records of a batch, together with its rows; cheap to clone. The same rows under the same rules
/// always give the same bytes.
#[derive(Clone, Debug)]
pub struct RecordRules {
    /// The zone of the wall-clock times.
    pub zone: Zone,
}

impl RecordRules {
    /// Returns an aligner by these rules.
    pub fn aligner(&self) -> Aligner {
        Aligner { clock: Clock::of(&self.zone) }
    }
}

impl From<Zone> for RecordRules {
    /// Returns the rules for the wall-clock times of a zone.
    fn from(zone: Zone) -> Self {
        Self { zone }
    }
}

/// Converts the values of rows by rules. It caches the last period of the zone, so one aligner is used for many rows.
#[derive(Debug)]
pub struct Aligner {
    pub(super) clock: Clock,
}
