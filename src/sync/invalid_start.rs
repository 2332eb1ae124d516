//! Detects a mistake in the mapping: the first 1,000 rows that a lane reads in a run are all invalid.
//!
//! Invalid rows at the start are held back, so that none of them is set aside before a valid row was read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::batch::{self, Batch};
use crate::config::OnInvalidStart;
use crate::ledger::LedgerError;
use crate::text::quoted_option;

/// The number of invalid rows at the start that shows a mistake in the mapping.
const ROWS: usize = 1000;
/// The most reasons that the message names, the most frequent first.
const REASONS_NAMED_MAX: usize = 3;

/// The state of the check for a lane, over all its passes and slices in a run.
#[derive(Debug, Default)]
pub(super) struct InvalidStart {
    /// The number of invalid rows at the start that were let through.
    rows: AtomicUsize,
    /// A valid row was read, or the check is off (`on_invalid_start = "set_aside"`).
    is_over: AtomicBool,
    /// The entity, for the message.
    entity_id: String,
}

/// Whether a batch, and the batches held back before it, may be let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// All rows so far are invalid: later rows decide.
    Undecided,
    /// A valid row was read: the batches may be let through.
    Valid,
}

impl InvalidStart {
    /// The check for a lane that begins to read.
    pub(super) fn new(entity_id: &str, wanted: OnInvalidStart) -> Self {
        let is_over = AtomicBool::new(wanted == OnInvalidStart::SetAside);
        Self { rows: AtomicUsize::new(0), is_over, entity_id: entity_id.to_owned() }
    }

    /// Examines consecutive batches, of which all but the last are undecided.
    pub(super) fn look<'b>(
        &self,
        batches: impl DoubleEndedIterator<Item = &'b Batch> + Clone,
    ) -> Result<Start, LedgerError> {
        if self.is_over.load(Ordering::Relaxed) {
            return Ok(Start::Valid);
        }
        let Some(last) = batches.clone().next_back() else { return Ok(Start::Undecided) };
        let mut aligner = last.rules.aligner();
        let valid_behind = last.rows.iter().position(|row| batch::key_hash(row, &mut aligner).is_some());
        let rows_before = batches.clone().rev().skip(1).map(|batch| batch.rows.len()).sum::<usize>();
        let let_through = self.rows.load(Ordering::Relaxed);
        let invalid = let_through + rows_before + valid_behind.unwrap_or(last.rows.len());
        if invalid >= ROWS {
            return Err(LedgerError::Shape(self.message(invalid, batches)));
        }
        if valid_behind.is_none() {
            return Ok(Start::Undecided);
        }
        self.is_over.store(true, Ordering::Relaxed);
        Ok(Start::Valid)
    }

    /// Counts the rows of a batch that is let through, in case all of them are invalid.
    pub(super) fn let_through(&self, batch: &Batch) {
        self.rows.fetch_add(batch.rows.len(), Ordering::Relaxed);
    }

    fn message<'b>(&self, rows: usize, batches: impl Iterator<Item = &'b Batch>) -> String {
        let mut reasons: BTreeMap<&str, (usize, String)> = BTreeMap::new();
        for row in batches.flat_map(|batch| &batch.invalid) {
            let first = || (0, format!("row {} {}", row.id, row.record));
            reasons.entry(&row.reason).or_insert_with(first).0 += 1;
        }
        let mut reasons: Vec<_> = reasons.into_iter().collect();
        reasons.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        let thousands = |count: usize| crate::text::thousands(i64::try_from(count).unwrap_or(i64::MAX));
        let reasons: Vec<String> = reasons
            .into_iter()
            .take(REASONS_NAMED_MAX)
            .map(|(reason, (count, example))| format!("{} rows: {reason}, e.g. {example}", thousands(count)))
            .collect();
        format!(
            "the first {} rows are all invalid, which suggests a mistake in the mapping, so none of them is set aside \
             ({}); hint: check [ledger] table, [ledger.columns] and the view, then `elven-sync run`; if the mapping is \
             right, correct or delete the rows in the ledger, or set them aside with \
             ELVEN_SYNC_SYNC__ON_INVALID_START=set_aside elven-sync run {}",
            thousands(rows),
            reasons.join("; "),
            quoted_option("--entity", &self.entity_id)
        )
    }
}
