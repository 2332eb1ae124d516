//! Fences: batches that must not be sent while a request whose answer was lost may still arrive.

use super::super::lane::exit::LaneExit;
use super::Delivery;
use crate::batch::Batch;
use crate::journal::{Fence, RecordedBatch};

impl Delivery {
    fn fence(&self) -> &Fence {
        &self.pass.lease.fence
    }

    /// Refuses to send a batch that stays unknown while an attempt of an earlier lease may arrive: each attempt of the
    /// batch would fence the lane again, and no other batch could be sent to prove the API.
    pub(super) fn refuse_while_fenced(&self) -> Result<(), LaneExit> {
        self.fence().of_lane().map_or(Ok(()), |left| Err(LaneExit::Fenced(left)))
    }

    /// Refuses a batch that was never sent, if an older row of one of its keys may still arrive after it.
    pub(super) fn refuse_fenced(&self, batch: &Batch) -> Result<(), LaneExit> {
        self.fence().of_new(batch).map_or(Ok(()), |left| Err(LaneExit::Fenced(left)))
    }

    /// Refuses a part, if the whole batch may still arrive with another row for one of its keys.
    pub(super) fn refuse_fenced_part(&self, part: &Batch) -> Result<(), LaneExit> {
        self.fence().of_keys(part).map_or(Ok(()), |left| Err(LaneExit::Fenced(left)))
    }

    /// Refuses a recorded batch, unless it is the batch whose attempt under an earlier lease may still arrive, and has
    /// the same bytes.
    pub(super) fn refuse_fenced_again(
        &self,
        recorded: &RecordedBatch,
        batch: &Batch,
    ) -> Result<(), LaneExit> {
        let Some(left) = self.fence().of_lane().filter(|_| !batch.records.is_empty()) else { return Ok(()) };
        if recorded.state.may_have_arrived() && recorded.body_sha256 == batch.body_sha256 {
            self.fence().note_inherited(batch);
            return Ok(());
        }
        Err(LaneExit::Fenced(left))
    }
}
