//! The report of a run: totals, and how each entity ended.

use serde::Serialize;

use super::foreseen::Foreseen;
use crate::journal::{Counters, PrintLine, RunStatus};

/// How the work on an entity ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "ended", content = "reason")]
pub enum Ended {
    /// The entity is up to date.
    Done,
    /// A signal, or the end of a run of `serve`, stopped the lane between two batches.
    Stopped,
    /// Another worker has the lease.
    Held,
    /// A request whose answer was lost may still arrive, so a later run sends the rest. The text says when.
    Fenced(String),
    /// The lane stopped because of this problem.
    Failed(String),
}

/// The report of one entity.
#[derive(Clone, Debug, Serialize)]
pub struct EntityReport {
    /// The entity.
    pub entity_id: String,
    /// How its lane ended.
    #[serde(flatten)]
    pub ended: Ended,
    /// Ledger rows processed.
    pub rows_read: i64,
    /// Records that the API accepted; in a dry run, records that would be sent.
    pub rows_uploaded: i64,
    /// Rows set aside.
    pub rows_rejected: i64,
    /// Rows not sent because a newer row of the same key is sent.
    pub rows_superseded: i64,
    /// Held rows that were sent again and refused again. They were counted as set aside before.
    pub rows_held_again: i64,
    /// Pending rows. `None`: they could not be counted.
    pub rows_pending: Option<i64>,
}

impl EntityReport {
    pub(super) fn new(entity_id: &str, ended: Ended) -> Self {
        Self {
            entity_id: entity_id.to_owned(),
            ended,
            rows_read: 0,
            rows_uploaded: 0,
            rows_rejected: 0,
            rows_superseded: 0,
            rows_held_again: 0,
            rows_pending: Some(0),
        }
    }

    pub(super) fn idle(entity_id: &str) -> Self {
        Self::new(entity_id, Ended::Done)
    }

    pub(super) fn failed(entity_id: &str, reason: String) -> Self {
        Self { rows_pending: None, ..Self::new(entity_id, Ended::Failed(reason)) }
    }

    /// Returns the failure with the id of the entity, if its lane failed.
    pub fn failure(&self) -> Option<String> {
        match &self.ended {
            Ended::Failed(reason) => Some(format!("{}: {reason}", self.entity_id)),
            Ended::Done | Ended::Stopped | Ended::Held | Ended::Fenced(_) => None,
        }
    }

    /// Returns the failure in the words of the log, if its lane failed.
    pub fn failure_to_log(&self) -> Option<String> {
        match &self.ended {
            Ended::Failed(reason) => Some(format!("entity {} failed: {reason}", self.entity_id)),
            Ended::Done | Ended::Stopped | Ended::Held | Ended::Fenced(_) => None,
        }
    }

    /// Returns why a later run sends the rest of the rows, with the id of the entity, if the lane is fenced.
    pub fn left_to_a_later_run(&self) -> Option<String> {
        match &self.ended {
            Ended::Fenced(why) => Some(format!("{}: {why}", self.entity_id)),
            _ => None,
        }
    }

    pub(super) fn count(&mut self, batch: &crate::batch::Batch) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.rows_read += number(batch.rows.len());
        self.rows_uploaded += number(batch.records.len());
        self.rows_rejected += number(batch.invalid.len());
        self.rows_superseded += number(batch.superseded);
    }

    /// Counts a batch whose records were set aside.
    pub(super) fn count_set_aside(&mut self, batch: &crate::batch::Batch) {
        let records = i64::try_from(batch.records.len()).unwrap_or(i64::MAX);
        self.count(batch);
        self.rows_uploaded -= records;
        self.rows_rejected += records;
    }

    /// Counts a batch whose rows are held.
    pub(super) fn count_held(&mut self, batch: &crate::batch::Batch) {
        let rows = i64::try_from(batch.rows.len()).unwrap_or(i64::MAX);
        self.rows_read += rows;
        self.rows_rejected += rows;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.rows_read += other.rows_read;
        self.rows_uploaded += other.rows_uploaded;
        self.rows_rejected += other.rows_rejected;
        self.rows_superseded += other.rows_superseded;
        self.rows_held_again += other.rows_held_again;
    }
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// The id of the run in `sync_runs`. `None` for a dry run.
    pub run_id: Option<i64>,
    /// How the run ended.
    pub status: RunStatus,
    /// Totals, as in `sync_runs`.
    pub counters: Counters,
    /// One report for each entity, ordered by entity id.
    pub entities: Vec<EntityReport>,
    /// Entities of the ledger that are not registered; their rows are not read.
    pub unregistered: Vec<String>,
    /// Why unregistered entities could not be looked for, if that failed.
    pub unregistered_unknown: Option<String>,
    /// The number of entities of the ledger that are not registered and are left out on request.
    pub entities_left_out: usize,
    /// Notes for the operator, in sentences.
    pub notes: Vec<String>,
    /// What a dry run foresees. `None` for a run.
    pub foreseen: Option<Foreseen>,
    /// The latest print of the journal. `None`: there is none, or it could not be read.
    pub print: Option<PrintLine>,
}

impl RunReport {
    /// Returns whether the run processed rows or sent something.
    pub fn did_something(&self) -> bool {
        self.counters.rows_read > 0 || self.counters.requests > 0
    }
}

/// Entities of the ledger that are not registered, and why they could not be looked for, if that failed.
#[derive(Debug, Default)]
pub(crate) struct Unregistered {
    /// They were looked for, so that the list is complete.
    pub is_known: bool,
    /// The entities whose rows are pending.
    pub entity_ids: Vec<String>,
    /// Why they could not be looked for.
    pub unknown: Option<String>,
    /// The entities that are left out on request.
    pub left_out: Vec<String>,
    /// The entities that have an open error in the journal.
    pub open: Vec<String>,
}

impl Unregistered {
    /// The status of a run. It is incomplete also if unregistered entities could not be looked for.
    pub(super) fn status(&self, entities: &[EntityReport], stopped: bool) -> RunStatus {
        match status(entities, &self.entity_ids, stopped) {
            RunStatus::Succeeded if self.unknown.is_some() => RunStatus::Incomplete,
            status => status,
        }
    }
}

/// The status of a run, derived from how its lanes ended.
pub(super) fn status(entities: &[EntityReport], unregistered: &[String], stopped: bool) -> RunStatus {
    let failed = entities.iter().filter(|entity| entity.failure().is_some()).count();
    let set_aside = entities.iter().any(|entity| entity.rows_rejected + entity.rows_held_again > 0);
    if stopped {
        RunStatus::Interrupted
    } else if failed > 0 && failed == entities.len() {
        RunStatus::Failed
    } else if failed > 0 || set_aside || !unregistered.is_empty() {
        RunStatus::Incomplete
    } else {
        RunStatus::Succeeded
    }
}
