//! Batches outside of any pass.

use elven_sync::batch::Batch;
use elven_sync::journal::{JournalError, RetryAnswer};

use super::tables::{BatchRow, Tables};

impl BatchRow {
    fn is_alone_of(&self, entity_id: &str) -> bool {
        self.pass_id.is_none() && self.entity_id == entity_id
    }
}

impl Tables {
    /// Records a batch that is about to be sent. A batch that a worker was sending when it died may have arrived.
    pub(super) fn announce_alone(&mut self, entity_id: &str, run_id: i64, batch: &Batch) -> i64 {
        let ids: Vec<i64> = batch.rows.iter().map(|row| row.id.to_string().parse().unwrap()).collect();
        let mut ambiguous = false;
        for other in self.batches.iter_mut().filter(|other| other.is_alone_of(entity_id)) {
            if other.status == "sending" {
                other.status = "unknown";
            }
            ambiguous |= other.status == "unknown" && other.ids.iter().any(|id| ids.contains(id));
        }
        let row = self.insert((run_id, None), entity_id, None, &batch.into());
        row.ambiguous = ambiguous;
        row.batch_id
    }

    /// Records the last answer to a batch.
    pub(super) fn answered_alone(
        &mut self,
        entity_id: &str,
        (batch_id, batch): (i64, &Batch),
        last: &RetryAnswer<'_>,
    ) -> Result<(), JournalError> {
        let recorded = self.batch(batch_id, entity_id)?;
        if recorded.last != batch.last || recorded.sha256 != batch.body_sha256 {
            return Err(JournalError::LeaseLost);
        }
        recorded.attempts = i32::try_from(last.attempts).unwrap();
        recorded.ambiguous |= last.ambiguous;
        if last.stays_set_aside {
            recorded.row_count = 0;
        }
        recorded.status = recorded.status_after(last.status);
        Ok(())
    }
}
