//! The state of the check of one entity.

use std::collections::VecDeque;

use serde::Serialize;

use super::finding::Finding;
use super::span::Span;
use crate::align::{Zone, Zones};
use crate::journal::audit::Pruned;
use crate::ledger::Ledger;

/// Of each entity so many findings are kept; the others are counted.
pub(super) const FINDINGS_MAX: usize = 100;

/// Of each finding so many rows are named.
pub(super) const ROWS_NAMED_MAX: usize = 20;

/// Of each entity so many of the newest batches have their ids counted.
pub(super) const NEWEST: usize = 100;

/// Of each entity so many whole batches have their bodies made again, unless all are asked for.
pub(super) const SAMPLED_BATCHES: usize = 20;

/// What was found out about an entity.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EntityProof {
    /// The entity.
    pub entity_id: String,
    /// Passes that were looked at, since the last rewind.
    pub passes: usize,
    /// Batches of theirs, parts not counted.
    pub batches: usize,
    /// Ledger rows of which it is proven that a batch dealt with them.
    pub rows_proven: usize,
    /// Ledger rows that wait.
    pub rows_pending: i64,
    /// Rows that these batches set aside, whatever became of them.
    pub rows_set_aside: i64,
    /// Rows of the entity that are set aside now: their errors are open.
    pub rows_set_aside_open: i64,
    /// Bodies that were made again from the ledger and have the hash that was recorded.
    pub bodies_proven: usize,
    /// Bodies that could not be made again, since rows of them have changed since.
    pub bodies_changed: usize,
    /// Bodies that came out differently for a known reason: zone rules that are not known any more, a zone that was not
    /// recorded, or a rebind since that accepted other values.
    pub bodies_not_provable: usize,
    /// What was there when it was registered was skipped on request.
    pub skipped_from_now: bool,
    /// What was pruned from its journal, of which nothing is proven.
    pub pruned: Option<Pruned>,
    /// What is not as it has to be.
    pub findings: Vec<Finding>,
    /// Further findings, not kept.
    pub more_findings: usize,
    /// When the rows were captured of all bodies that came out differently.
    #[serde(skip)]
    pub(super) resend: Option<Span>,
}

impl EntityProof {
    pub(super) fn find(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else {
            self.more_findings += 1;
        }
    }

    /// The command that sends the rows again of all bodies that came out differently. `None`: there are none.
    pub fn backfill(&self) -> Option<String> {
        self.resend.map(|span| Span::backfill(Some(span), &self.entity_id))
    }

    /// Everything is as it has to be.
    pub fn holds(&self) -> bool {
        self.findings.is_empty()
    }
}

/// What goes through the passes of an entity.
pub(super) struct Checker<'a> {
    pub(super) ledger: &'a Ledger,
    pub(super) entity_id: &'a str,
    /// The zone rules in use.
    pub(super) zones: &'a Zones,
    /// The zone that the entity has now.
    pub(super) zone: Option<Zone>,
    /// The watermark is one of this ledger: only then its rows say something.
    pub(super) fits: bool,
    pub(super) report: &'a mut EntityProof,
    pub(super) sample: Sample,
    /// Of the newest batches: how many ids each lists, and how many of them the ledger has in its interval.
    pub(super) newest: VecDeque<(usize, usize)>,
    /// Bodies of passes before this change of the watermark may have been made of other values.
    pub(super) other_values_before: Option<i64>,
}

/// Which whole batches have their bodies made again: every so manieth.
#[derive(Default)]
pub(super) struct Sample {
    /// Known once the batches were counted.
    pub(super) step: Option<usize>,
    pub(super) offset: usize,
    pub(super) seen: usize,
}

impl Sample {
    pub(super) fn of(&mut self, batches: usize) {
        let step = *self.step.get_or_insert((batches / SAMPLED_BATCHES).max(1));
        // Another one each time, so that what is checked again and again is checked all over.
        self.offset = fastrand::usize(..step);
    }

    pub(super) fn takes_next(&mut self) -> bool {
        self.seen += 1;
        self.seen % self.step.unwrap_or(1) == self.offset
    }
}
