//! A batch, or a part of one, on its way.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::super::messages::OutcomeMessage;
use super::super::proving::{Permit, Resent};
use crate::batch::Batch;
use crate::elven::Signed;
use crate::journal::{AttemptResult, PendingWrite, RecordedBatch};

/// Room for a batch that is recorded as being sent: the lane's, and that of all lanes.
pub(super) type Room = [OwnedSemaphorePermit; 2];

/// A batch, or a part of one, on its way.
pub(super) struct BatchTask {
    pub(super) batch_id: i64,
    pub(super) batch: Batch,
    /// Which of the batches that were cut from the pass it is, or is a part of.
    pub(super) root: usize,
    /// Taken before it is announced, and kept until its answer is recorded.
    pub(super) room: Option<Room>,
    /// The request, signed before it was announced.
    pub(super) signed: Option<Signed>,
    /// An attempt may have arrived.
    pub(super) lost: bool,
    /// It was sent before.
    pub(super) repeated: bool,
    pub(super) unknown_runs: i32,
    /// It, or what it is a part of, ended unknown in three runs: a run tries it once.
    pub(super) once: bool,
    /// It is sent to prove that the credential is good, and no other part of the entity meanwhile.
    pub(super) turn: Option<Turn>,
}

/// A batch that was signed and is being recorded.
pub(super) struct QueuedBatch {
    pub(super) batch: Batch,
    pub(super) room: Room,
    /// `None`: there is nothing to send.
    pub(super) signed: Option<Signed>,
    pub(super) root: usize,
    pub(super) handed: PendingWrite,
}

impl BatchTask {
    /// Of a batch that is recorded.
    pub(super) fn new(batch_id: i64, batch: Batch, root: usize) -> Self {
        Self {
            batch_id,
            batch,
            root,
            room: None,
            signed: None,
            lost: false,
            repeated: false,
            unknown_runs: 0,
            once: false,
            turn: None,
        }
    }
}

/// A batch with the last answer to it, which is not recorded.
pub(super) struct Answered {
    pub node: BatchTask,
    pub words: OutcomeMessage,
    pub settlement: AttemptResult,
}

/// A refused record that stands alone, and waits until the credential is proven good. Others may prove it meanwhile.
pub(super) struct Parked {
    pub(super) answered: Answered,
    pub(super) because: Arc<Refusal>,
}

/// The turn of a refused batch to prove the credential by its parts.
#[derive(Clone)]
pub(super) struct Turn {
    pub(super) _permit: Permit,
    pub(super) because: Arc<Refusal>,
}

/// Why a credential has to be proven good by parts.
pub(super) struct Refusal {
    pub(super) words: OutcomeMessage,
    pub(super) http_status: Option<i32>,
    /// Status of the answer to the call that reads.
    pub(super) list_status: u16,
}

impl Refusal {
    /// What is said when a record that was accepted before proved nothing either.
    pub(super) fn unproven(&self, resent: &Resent) -> OutcomeMessage {
        let list = format!("HTTP {}", self.list_status);
        let instead = match resent {
            Resent::Otherwise(why) => format!("{list}, and a record that was accepted before: {why}"),
            Resent::Accepted | Resent::Nothing => list,
        };
        self.words.clone().unproven(&instead)
    }
}

/// A recorded batch, or a part of one, that is sent again.
pub(super) struct Redelivery<'r> {
    /// Its place in the window.
    pub root: usize,
    /// The batch.
    pub whole: &'r RecordedBatch,
    /// The batch, or the part of it.
    pub leaf: &'r RecordedBatch,
    /// Its rows as they are now. `None`: none is left.
    pub batch: Option<Batch>,
}
