//! The rules by which rows become records.

use std::sync::Arc;

use super::form::RecordForm;
use crate::align::{Clock, Names, Zone};

/// What decides the records of a batch, together with its rows; cheap to clone. The same rows under the same rules
/// always give the same bytes.
#[derive(Clone, Debug)]
pub struct RecordRules {
    /// The zone of the wall-clock times.
    pub zone: Zone,
    /// The names of accounts and currencies at Elven.
    pub names: Arc<Names>,
    /// The form of the records.
    pub form: RecordForm,
}

impl RecordRules {
    /// Returns an aligner by these rules.
    pub fn aligner(&self) -> Aligner {
        Aligner { clock: Clock::of(&self.zone), rules: self.clone() }
    }
}

impl From<Zone> for RecordRules {
    /// Returns the rules for the wall-clock times of a zone, for version 3. All names are sent as they are.
    fn from(zone: Zone) -> Self {
        Self { zone, names: Arc::default(), form: RecordForm::default() }
    }
}

/// Converts the values of rows by rules. It caches the last period of the zone, so one aligner is used for many rows.
#[derive(Debug)]
pub struct Aligner {
    pub(super) rules: RecordRules,
    pub(super) clock: Clock,
}
