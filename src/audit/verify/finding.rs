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
}

impl Finding {
    pub(crate) fn new(what: &'static str, message: impl Into<String>) -> Self {
        Self { what, pass_id: None, batch_id: None, ledger_ids: Vec::new(), message: message.into() }
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
