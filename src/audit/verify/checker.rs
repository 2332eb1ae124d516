//! The state and the report of the check of one entity.

use std::collections::{HashMap, HashSet, VecDeque};

use serde::Serialize;

use super::chain::Rewound;
use super::finding::{Finding, FindingGroup};
use super::span::Span;
use crate::align::{Zone, Zones};
use crate::journal::MapHistory;
use crate::journal::audit::Pruned;
use crate::ledger::Ledger;
use crate::watermark::{Cursor, LedgerId};

/// The findings of an entity that are kept; the others are only counted.
pub(super) const FINDINGS_MAX: usize = 100;

/// The rows that a finding names.
pub(super) const ROWS_NAMED_MAX: usize = 20;

/// The newest batches of an entity whose ids are counted for a rebind.
pub(super) const NEWEST: usize = 100;

/// The whole batches of an entity whose bodies are rebuilt, without `--deep`.
pub(super) const SAMPLED_BATCHES: usize = 20;

/// The result of the check of an entity.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EntityProof {
    /// The entity.
    pub entity_id: String,
    /// The passes that were checked, since the last rewind.
    pub passes: usize,
    /// The batches of these passes, parts not counted.
    pub batches: usize,
    /// Ledger rows that are proven to be processed by a batch.
    pub rows_proven: usize,
    /// Pending ledger rows.
    pub rows_pending: i64,
    /// Rows that these batches set aside, resolved or not.
    pub rows_set_aside: i64,
    /// Rows of the entity that are set aside now: their errors are open.
    pub rows_set_aside_open: i64,
    /// Bodies that were rebuilt from the ledger and have the recorded hash.
    pub bodies_proven: usize,
    /// Bodies that could not be rebuilt, because some of their rows have changed since.
    pub bodies_changed: usize,
    /// Bodies that differ for a known reason: their zone rules are no longer known, their zone was not recorded, or a
    /// later rebind accepted other values.
    pub bodies_not_provable: usize,
    /// Links of its chain of digests that are those of what they cover.
    pub links: usize,
    /// Batches, of all kinds of work, whose leaves are those of what is recorded.
    pub leaves: usize,
    /// The entity was registered with `--from-now`, which skipped the rows of that time.
    pub skipped_from_now: bool,
    /// The pruned part of its journal, about which nothing is proven.
    pub pruned: Option<Pruned>,
    /// The findings that are kept.
    pub findings: Vec<Finding>,
    /// The number of further findings.
    pub more_findings: usize,
    /// The last rewind to the start: only the passes after it are checked. `None`: all passes are.
    pub rewound: Option<Rewound>,
    /// Changes of the watermark that were removed or altered, and that a rewind took back: their rows were pending
    /// again, so these notes are no findings.
    pub notes: Vec<Finding>,
    /// All findings by kind, in the order in which the kinds were found first.
    pub groups: Vec<FindingGroup>,
    /// The `captured_at` of the rows of all bodies that differ.
    #[serde(skip)]
    pub(super) resend: Option<Span>,
    /// A finding asks for a rewind to the start.
    #[serde(skip)]
    pub(super) needs_rewind: bool,
}

impl EntityProof {
    pub(super) fn find(&mut self, finding: Finding) {
        self.needs_rewind |= finding.is_mended_by_rewind;
        let place = self.groups.iter().position(|group| group.what == finding.what);
        let place = place.unwrap_or_else(|| {
            self.groups.push(FindingGroup::new(finding.what));
            self.groups.len() - 1
        });
        self.groups[place].add(&finding);
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else {
            self.more_findings += 1;
        }
    }

    /// The command that sends the rows of all differing bodies again. `None`: no body differs.
    pub fn backfill(&self) -> Option<String> {
        self.resend.map(|span| Span::backfill(Some(span), &self.entity_id))
    }

    /// Whether there is no finding.
    pub fn holds(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Checks the passes of an entity.
pub(super) struct Checker<'a> {
    pub(super) ledger: &'a Ledger,
    pub(super) entity_id: &'a str,
    /// The zone rules in use.
    pub(super) zones: &'a Zones,
    /// The present zone of the entity.
    pub(super) zone: Option<Zone>,
    /// The watermark belongs to this ledger. Otherwise the rows of the ledger prove nothing.
    pub(super) fits: bool,
    /// The maps of the entity; read when the first batch was made with maps.
    pub(super) maps: Option<MapHistory>,
    pub(super) report: &'a mut EntityProof,
    pub(super) sample: Sample,
    /// For each of the newest batches, oldest first: the ids that it lists, each with the number of rows that the
    /// ledger lacks in its interval.
    pub(super) newest: VecDeque<HashMap<LedgerId, u32>>,
    /// The bodies of passes before this change of the watermark may have been made from other values.
    pub(super) other_values_before: Option<i64>,
    /// The end of the last batch of the open pass.
    pub(super) recorded_to: Option<Cursor>,
}

impl Checker<'_> {
    /// Returns the number of ids in the newest batches, and how many of them the ledger has in the intervals of these
    /// batches. An id counts in the last batch that lists it: a row that was updated and uploaded again has left the
    /// intervals of the earlier ones.
    pub(super) fn found_in_newest(&self) -> (usize, usize) {
        let mut counted = HashSet::new();
        let (mut listed, mut found) = (0, 0);
        for (id, missing) in self.newest.iter().rev().flatten() {
            if counted.insert(id) {
                listed += 1;
                found += usize::from(*missing == 0);
            }
        }
        (listed, found)
    }
}

/// Selects the whole batches whose bodies are rebuilt: every `step`th batch.
#[derive(Default)]
pub(super) struct Sample {
    /// Set after the batches are counted.
    pub(super) step: Option<usize>,
    pub(super) offset: usize,
    pub(super) seen: usize,
}

impl Sample {
    pub(super) fn of(&mut self, batches: usize) {
        let step = *self.step.get_or_insert((batches / SAMPLED_BATCHES).max(1));
        // A random offset, so that repeated checks reach all batches.
        self.offset = fastrand::usize(..step);
    }

    pub(super) fn takes_next(&mut self) -> bool {
        self.seen += 1;
        self.seen % self.step.unwrap_or(1) == self.offset
    }
}
