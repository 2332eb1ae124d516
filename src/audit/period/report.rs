//! The report of an audit.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::outcome::{AuditedRow, Evidence, Outcome};
use super::totals::Totals;
use crate::audit::verify::EntityProof;
use crate::journal::period::{BatchFacts, PersonsAction, RowException};
use crate::journal::{ChainEnd, PrintLine};

/// The most rows of each outcome that the report names.
const NAMED_MAX: usize = 20;

/// The most exceptions, batches and actions of an entity that the report keeps; all go to the [`EvidenceSink`].
pub(super) const KEPT_MAX: usize = 1000;

/// The first things of a list, and the number of all.
#[derive(Clone, Debug, Serialize)]
pub struct FirstOf<T> {
    /// The number of all.
    pub count: usize,
    /// The first of them.
    pub first: Vec<T>,
}

impl<T> Default for FirstOf<T> {
    fn default() -> Self {
        Self { count: 0, first: Vec::new() }
    }
}

impl<T> FirstOf<T> {
    pub(super) fn push(&mut self, thing: T, kept_max: usize) {
        self.count += 1;
        if self.first.len() < kept_max {
            self.first.push(thing);
        }
    }

    /// The number of those that are not kept.
    pub fn more(&self) -> usize {
        self.count.saturating_sub(self.first.len())
    }
}

/// A row that the report names.
#[derive(Clone, Debug, Serialize)]
pub struct NamedRow {
    /// Its id.
    pub ledger_id: String,
    /// Why it has its outcome.
    pub reason: String,
}

/// What the batches of a period were made with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct MadeWith {
    /// The version of elven-sync.
    pub version: String,
    /// The zone of the wall-clock times.
    pub timezone: Option<String>,
    /// The zone rules: version, origin and fingerprint.
    pub zone_rules: Option<String>,
    /// The version of the maps.
    pub map_version: Option<i64>,
    /// The version of the import.
    pub api_version: Option<i32>,
    /// The source.
    pub source_id: Option<String>,
}

/// A batch that has rows of the period.
#[derive(Clone, Debug, Serialize)]
pub struct AuditedBatch {
    /// The batch as it was recorded.
    #[serde(flatten)]
    pub facts: BatchFacts,
    /// Rows of the period that it decided. 0: the parts of the batch did.
    pub rows_in_period: usize,
    /// What is known of its body. `None`: it had none that was accepted.
    pub body: Option<Evidence>,
}

impl AuditedBatch {
    /// Whether nobody knows whether the API has its records.
    pub fn is_unsettled(&self) -> bool {
        self.facts.status == "unknown" || self.facts.status == "sending" && self.facts.attempts > 0
    }
}

/// The audit of an entity.
#[derive(Clone, Debug, Default)]
pub struct EntityAudit {
    /// The entity.
    pub entity_id: String,
    /// Its zone.
    pub timezone: String,
    /// The first instant of the period.
    pub from: DateTime<Utc>,
    /// The end of the period, not included.
    pub to: DateTime<Utc>,
    /// The rows of the period that the ledger has, counted by the database.
    pub rows: i64,
    /// The rows by outcome.
    pub totals: Totals,
    /// Rows that the ledger has and that no pass, batch or skipped part of the journal includes; they are among the
    /// unaccounted rows, and have no account here.
    pub rows_nowhere: i64,
    /// The first rows of each outcome but uploaded.
    pub named: BTreeMap<Outcome, FirstOf<NamedRow>>,
    /// Errors about rows of the period, resolved or not.
    pub exceptions: FirstOf<RowException>,
    /// Rows of the period with an open error, whatever their outcome: an uploaded row may have been set aside later by a
    /// backfill.
    pub rows_with_open_error: usize,
    /// The number of batches that have rows of the period; parts count, split batches do not.
    pub batches: usize,
    /// The batches of them with an attempt whose outcome was unknown, and of backfills and retries those without an answer.
    pub ambiguous: FirstOf<AuditedBatch>,
    /// The number of them whose outcome is still unknown.
    pub unsettled: usize,
    /// What the batches were made with, and the number of batches.
    pub made_with: BTreeMap<MadeWith, usize>,
    /// The findings of `verify --deep` over the passes and batches that may have rows of the period.
    pub proof: EntityProof,
}

impl EntityAudit {
    /// The number of rows with an outcome.
    pub fn count(&self, outcome: Outcome) -> i64 {
        let nowhere = if outcome == Outcome::Unaccounted { self.rows_nowhere } else { 0 };
        self.totals.of_outcome(outcome).rows + nowhere
    }

    /// Uploaded rows that have an open error.
    pub fn uploaded_with_open_error(&self) -> i64 {
        let open = i64::try_from(self.rows_with_open_error).unwrap_or(i64::MAX);
        (open - self.count(Outcome::SetAside)).max(0)
    }

    /// The number of findings.
    pub fn findings(&self) -> usize {
        self.proof.findings.len() + self.proof.more_findings
    }

    /// Whether nothing is pending, set aside, unaccounted or unsettled, and there is no finding.
    pub fn is_complete(&self) -> bool {
        [Outcome::SetAside, Outcome::Pending, Outcome::Unaccounted]
            .into_iter()
            .all(|outcome| self.count(outcome) == 0)
            && self.rows_with_open_error == 0
            && self.unsettled == 0
            && self.findings() == 0
    }

    pub(super) fn name(&mut self, row: &AuditedRow<'_>) {
        let named = NamedRow { ledger_id: row.row.id.to_string(), reason: row.judged.reason.clone() };
        self.named.entry(row.judged.outcome).or_default().push(named, NAMED_MAX);
    }
}

/// The audit of a period.
#[derive(Clone, Debug)]
pub struct PeriodAudit {
    /// The begin of the period, as it was asked for.
    pub from: String,
    /// Its end, not included, as it was asked for.
    pub to: String,
    /// When the audit began.
    pub at: DateTime<Utc>,
    /// The entities.
    pub entities: Vec<EntityAudit>,
    /// What people did from the begin of the period up to now, to one of these entities or to the installation.
    pub actions: FirstOf<PersonsAction>,
    /// The digests of the journal, as of the audit.
    pub digests: AuditedDigests,
}

/// The digests of the journal that an audit names.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct AuditedDigests {
    /// The latest print. `None`: there is none yet.
    pub print: Option<PrintLine>,
    /// The ends of the chains of the entities, and of what people did.
    pub chains: Vec<ChainEnd>,
}

impl PeriodAudit {
    /// Whether each entity is complete.
    pub fn is_complete(&self) -> bool {
        self.entities.iter().all(EntityAudit::is_complete)
    }

    /// The number of rows with an outcome.
    pub fn count(&self, outcome: Outcome) -> i64 {
        self.entities.iter().map(|entity| entity.count(outcome)).sum()
    }
}

/// Takes each row, batch, exception and action of an audit, so that none has to be kept in memory.
pub trait EvidenceSink {
    /// The evidence of an entity begins. If that of the same entity was the last to begin, it begins once more, and what was
    /// given of it is void.
    fn begin(&mut self, entity_id: &str);
    /// A row of the period, in the order of the journal.
    fn row(&mut self, row: &AuditedRow<'_>);
    /// A batch that has rows of the period.
    fn batch(&mut self, entity_id: &str, batch: &AuditedBatch);
    /// An error about rows of the period.
    fn exception(&mut self, exception: &RowException);
    /// An action. All actions come after all entities.
    fn action(&mut self, action: &PersonsAction);
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoEvidence;

impl EvidenceSink for NoEvidence {
    fn begin(&mut self, _: &str) {}
    fn row(&mut self, _: &AuditedRow<'_>) {}
    fn batch(&mut self, _: &str, _: &AuditedBatch) {}
    fn exception(&mut self, _: &RowException) {}
    fn action(&mut self, _: &PersonsAction) {}
}
