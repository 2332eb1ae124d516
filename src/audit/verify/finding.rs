//! What `verify` finds.

use serde::Serialize;

/// Something that is not as it has to be.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What kind it is: a word for machines.
    pub what: &'static str,
    /// The pass.
    pub pass_id: Option<i64>,
    /// The batch.
    pub batch_id: Option<i64>,
    /// The ledger rows, or the first of them.
    pub ledger_ids: Vec<String>,
    /// What it is, what it means, and what to do.
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
