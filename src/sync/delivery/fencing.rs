//! What is not sent while an attempt whose answer was lost may still arrive.

use std::time::Instant;

use super::super::lane::exit::LaneExit;
use super::Delivery;
use crate::batch::Batch;
use crate::journal::{Fence, RecordedBatch};

impl Delivery {
    fn fence(&self) -> &Fence {
        &self.pass.lease.fence
    }

    /// Notes that the answer to an attempt was lost, at once: what is sent next has to know.
    pub(super) fn note_lost(&self, batch: &Batch, sent_at: Instant) {
        self.fence().note_lost(batch, sent_at, self.session.ahead_of_api());
    }

    /// Lets a batch that stays unknown wait while an attempt of an earlier lease may arrive: each attempt of its own would
    /// fence the lane again, and nothing else could be sent that proves the API good.
    pub(super) fn refuse_while_fenced(&self) -> Result<(), LaneExit> {
        self.fence().of_lane().map_or(Ok(()), |left| Err(LaneExit::Fenced(left)))
    }

    /// Makes sure that a batch, which was never sent, cannot be followed by an older row of one of its keys.
    pub(super) fn refuse_fenced(&self, batch: &Batch) -> Result<(), LaneExit> {
        self.fence().of_new(batch).map_or(Ok(()), |left| Err(LaneExit::Fenced(left)))
    }

    /// The same of a part: what it is a part of was sent, and may still arrive with another row for a key of the part.
    pub(super) fn refuse_fenced_part(&self, part: &Batch) -> Result<(), LaneExit> {
        self.fence().of_keys(part).map_or(Ok(()), |left| Err(LaneExit::Fenced(left)))
    }

    /// The same of a batch that was recorded before. While an attempt of an earlier lease may arrive, only its batch
    /// may be sent, as it was.
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
