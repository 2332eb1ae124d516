//! The outcome of a row, and how it is shown.

use serde::Serialize;

use crate::journal::period::NewestError;
use crate::ledger::Row;

/// What became of a row. Each row of a period has exactly one outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The API accepted its present version.
    Uploaded,
    /// A newer rival was sent instead.
    Superseded,
    /// Set aside, with an open error in `sync_errors`.
    SetAside,
    /// Not read yet, or its batch has no final answer yet.
    Pending,
    /// A person asked to leave it out: by a registration with `--from-now`, or by `errors resolve`.
    NotSynced,
    /// The journal does not say what became of it: a finding of `verify`.
    Unaccounted,
}

impl Outcome {
    /// All outcomes, in the order in which they are shown.
    pub const ALL: [Self; 6] =
        [Self::Uploaded, Self::Superseded, Self::SetAside, Self::Pending, Self::NotSynced, Self::Unaccounted];

    /// Its index in [`Self::ALL`].
    pub(super) fn place(self) -> usize {
        self as usize
    }

    /// Its name in JSON and CSV.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uploaded => "uploaded",
            Self::Superseded => "superseded",
            Self::SetAside => "set_aside",
            Self::Pending => "pending",
            Self::NotSynced => "not_synced",
            Self::Unaccounted => "unaccounted",
        }
    }

    /// Its name for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::SetAside => "set aside",
            Self::NotSynced => "not synced",
            other => other.name(),
        }
    }
}

/// How it is known what was sent of an uploaded row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The body of its batch was made again from the ledger, and has the recorded hash.
    Proven,
    /// Rows of its batch have changed since, so the body cannot be made again.
    ChangedSince,
    /// The body cannot be made again for another reason: its zone rules are no longer known, it was a batch of a backfill
    /// or a retry beside other rows, or a later rebind accepted other values.
    NotProvable,
    /// The body was made again and has another hash: a finding of `verify`.
    Differs,
    /// By a folded batch: `prune` has deleted the batch, and kept its totals. Whether the row was uploaded or superseded is
    /// not recorded any more.
    Folded,
}

impl Evidence {
    /// All kinds of evidence, in the order in which they are shown.
    pub const ALL: [Self; 5] =
        [Self::Proven, Self::ChangedSince, Self::NotProvable, Self::Differs, Self::Folded];

    /// Its index in [`Self::ALL`].
    pub(super) fn place(self) -> usize {
        self as usize
    }

    /// Its name in JSON and CSV.
    pub fn name(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::ChangedSince => "changed_since",
            Self::NotProvable => "not_provable",
            Self::Differs => "differs",
            Self::Folded => "folded",
        }
    }

    /// Its name for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::ChangedSince => "changed since",
            Self::NotProvable => "not provable",
            Self::Differs => "differs",
            Self::Folded => "by a folded batch",
        }
    }
}

/// The outcome of a row with what shows it.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The outcome.
    pub outcome: Outcome,
    /// Of an uploaded row, how it is known what was sent.
    pub evidence: Option<Evidence>,
    /// The batch that decided it.
    pub batch_id: Option<i64>,
    /// The row that was sent instead.
    pub winner_id: Option<String>,
    /// Its newest error, if that decided the outcome.
    pub error: Option<NewestError>,
    /// Why, for people.
    pub reason: String,
}

impl Judged {
    pub(super) fn new(outcome: Outcome, reason: impl Into<String>) -> Self {
        Self { outcome, evidence: None, batch_id: None, winner_id: None, error: None, reason: reason.into() }
    }

    pub(super) fn by_batch(self, batch_id: Option<i64>) -> Self {
        Self { batch_id, ..self }
    }

    pub(super) fn with_error(self, error: NewestError) -> Self {
        Self { error: Some(error), ..self }
    }

    pub(super) fn uploaded(evidence: Evidence, batch_id: Option<i64>) -> Self {
        Self { evidence: Some(evidence), batch_id, ..Self::new(Outcome::Uploaded, "") }
    }

    pub(super) fn superseded(winner_id: impl Into<String>, batch_id: Option<i64>) -> Self {
        Self { winner_id: Some(winner_id.into()), batch_id, ..Self::new(Outcome::Superseded, "") }
    }
}

/// A row of a period with its outcome.
#[derive(Clone, Copy, Debug)]
pub struct AuditedRow<'a> {
    /// The entity.
    pub entity_id: &'a str,
    /// The row as the ledger has it now.
    pub row: &'a Row,
    /// Its wall-clock time in the zone of the entity. `None`: it has none.
    pub local: Option<chrono::NaiveDateTime>,
    /// Its outcome.
    pub judged: &'a Judged,
}
