//! The findings of `verify`.

use serde::Serialize;

/// A place where journal and ledger do not agree.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The kind of the finding.
    pub what: &'static str,
    /// The pass.
    pub pass_id: Option<i64>,
    /// The batch.
    pub batch_id: Option<i64>,
    /// The first ledger rows that it is about.
    pub ledger_ids: Vec<String>,
    /// What was found, what it means, and what to do.
    pub message: String,
    /// A rewind to the start mends it, which uploads each row again.
    #[serde(skip)]
    pub(crate) is_mended_by_rewind: bool,
}

/// All findings of a kind about an entity, also those that are not kept in full.
#[derive(Clone, Debug, Serialize)]
pub struct FindingGroup {
    /// The kind.
    pub what: &'static str,
    /// The number of findings.
    pub count: usize,
    /// The batches that they are about, up to [`NAMED_MAX`].
    pub batch_ids: Vec<i64>,
    /// The ledger rows that they are about, up to [`NAMED_MAX`].
    pub ledger_ids: Vec<String>,
}

/// The most batches, and the most rows, that a group names.
const NAMED_MAX: usize = 10_000;

impl FindingGroup {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, count: 0, batch_ids: Vec::new(), ledger_ids: Vec::new() }
    }

    pub(super) fn add(&mut self, finding: &Finding) {
        self.count += 1;
        // The findings of a batch come one after the other.
        if let Some(batch_id) = finding.batch_id
            && self.batch_ids.last() != Some(&batch_id)
            && self.batch_ids.len() < NAMED_MAX
        {
            self.batch_ids.push(batch_id);
        }
        let left = NAMED_MAX.saturating_sub(self.ledger_ids.len());
        self.ledger_ids.extend(finding.ledger_ids.iter().take(left).cloned());
    }
}

impl Finding {
    pub(crate) fn new(what: &'static str, message: impl Into<String>) -> Self {
        Self {
            what,
            pass_id: None,
            batch_id: None,
            ledger_ids: Vec::new(),
            message: message.into(),
            is_mended_by_rewind: false,
        }
    }

    pub(crate) fn mended_by_rewind(self) -> Self {
        Self { is_mended_by_rewind: true, ..self }
    }

    /// The finding as a note about the past, which leaves nothing to do.
    pub(crate) fn without_hint(mut self) -> Self {
        if let Some(end) = self.message.find("; hint:") {
            self.message.truncate(end);
        }
        self
    }

    pub(crate) fn of_pass(self, pass_id: i64) -> Self {
        Self { pass_id: Some(pass_id), ..self }
    }

    pub(crate) fn of_batch(self, batch_id: Option<i64>) -> Self {
        Self { batch_id, ..self }
    }

    pub(crate) fn of_rows(self, ledger_ids: Vec<String>) -> Self {
        Self { ledger_ids, ..self }
    }
}
