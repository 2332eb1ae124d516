//! What happened while a plan was played, in a form that is the same on the models and in reality.

use std::collections::BTreeMap;

use super::super::api::Key;

/// A batch as it is recorded, without the ids that the database gives out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RecordedAs {
    /// The place of the batch of which this is a part, among the batches of the entity.
    pub(super) parent: Option<usize>,
    /// It belongs to a pass.
    pub(super) is_of_pass: bool,
    pub(super) row_ids: Vec<i64>,
    pub(super) row_count: i32,
    pub(super) body_sha256: String,
    pub(super) status: String,
    pub(super) attempts: i32,
    pub(super) is_ambiguous: bool,
    pub(super) unknown_runs: i32,
}

/// What the journal has about an entity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Journaled {
    /// In the order in which they were announced.
    pub(super) batches: Vec<RecordedAs>,
    /// The kind of the open error of each row.
    pub(super) errors: BTreeMap<i64, String>,
    pub(super) is_pass_open: bool,
    /// The id of the row at which the cursor is.
    pub(super) cursor: Option<String>,
}

/// An import that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Import {
    /// The journal when it was sent.
    pub(super) journaled: Journaled,
    pub(super) balances: Vec<i64>,
    pub(super) answer: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Run {
    /// In the order in which they were sent.
    pub(super) imports: Vec<Import>,
    pub(super) list_calls: usize,
    /// How the lane ended, and the rows that it counted; or that the process died.
    pub(super) ended: String,
}

impl Run {
    /// The entity was brought up to date.
    pub(super) fn is_done(&self) -> bool {
        self.ended.starts_with("done")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct History {
    pub(super) runs: Vec<Run>,
    /// The journal after all runs.
    pub(super) journaled: Journaled,
    /// The balance of each key that the API has.
    pub(super) records: BTreeMap<Key, i64>,
}

impl History {
    /// Shows where two histories differ first.
    pub(super) fn difference(&self, real: &Self) -> Option<String> {
        if self == real {
            return None;
        }
        let (model, real) = (format!("{self:#?}"), format!("{real:#?}"));
        let (model, real): (Vec<&str>, Vec<&str>) = (model.lines().collect(), real.lines().collect());
        let first = model.iter().zip(&real).position(|(model, real)| model != real);
        let first = first.unwrap_or_else(|| model.len().min(real.len()));
        let excerpt = |lines: &[&str]| {
            let from = first.saturating_sub(40).min(lines.len());
            let until = (first + 12).min(lines.len());
            lines[from..until].join("\n")
        };
        Some(format!("the model:\n{}\n\nin reality:\n{}", excerpt(&model), excerpt(&real)))
    }
}
