//! A record outside of any pass that the API refuses because it has the record already.

use super::RunError;
use super::decisions::already_imported::{Claim, RefusedBatch, claim};
use super::lone_batch::LastAnswer;
use super::worker::Worker;
use crate::elven::ResponseClass;

impl Worker {
    /// Returns the last answer to a single record, or an acceptance in its place if the API says that it has the record
    /// already, after an attempt with an unknown outcome. `batch_id`: the batch of the record; `set_aside_in`: the batch
    /// that set its row aside.
    pub(super) async fn unless_imported(
        &self,
        last: LastAnswer,
        batch_id: i64,
        set_aside_in: Option<i64>,
    ) -> Result<LastAnswer, RunError> {
        let codes = &self.settings.api.already_imported_codes;
        let claims = |is_lost| claim(RefusedBatch { class: &last.class, is_lost, is_single: true }, codes);
        if claims(true) != Claim::Imported {
            return Ok(last);
        }
        let is_lost = last.ambiguous || self.journal.may_be_imported(batch_id, set_aside_in).await?;
        if claims(is_lost) != Claim::Imported {
            return Ok(last);
        }
        tracing::info!("the API has the record already, so it counts as accepted");
        Ok(LastAnswer { class: ResponseClass::Accepted, ambiguous: true, ..last })
    }
}
