//! A batch, or a part of one, in delivery.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::super::messages::OutcomeMessage;
use super::super::proving::{Permit, Resent};
use super::super::shared_limit::SharedPermit;
use crate::batch::Batch;
use crate::elven::Signed;
use crate::journal::{AttemptResult, PendingWrite, RecordedBatch};

/// The permits for a batch that is recorded as being sent.
pub(super) struct BatchPermits {
    pub(super) _of_lane: OwnedSemaphorePermit,
    /// The permit of all lanes together. `None`: the batch waits, and does not delay the batches of other lanes.
    pub(super) of_all: Option<SharedPermit>,
}

/// A batch, or a part of one, in delivery.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own about the attempts of the batch"
)]
pub(super) struct BatchTask {
    pub(super) batch_id: i64,
    pub(super) batch: Batch,
    /// It is a part of a batch.
    pub(super) is_part: bool,
    /// The number of the batch, or of the batch that it is a part of, in the order of the pass.
    pub(super) root: usize,
    /// Acquired before the batch is announced, and kept until its answer is recorded. The permit of all lanes is
    /// released while the batch waits to be sent.
    pub(super) permits: Option<BatchPermits>,
    /// The request, signed before it was announced.
    pub(super) signed: Option<Signed>,
    /// An attempt of the batch has an unknown outcome.
    pub(super) lost: bool,
    /// The batch was sent before.
    pub(super) repeated: bool,
    /// In how many runs the outcome stayed unknown.
    pub(super) unknown_runs: i32,
    /// The batch, or one that it is a part of, stayed unknown in three runs, so a run sends it once.
    pub(super) once: bool,
    /// Set if the part is sent to prove the credential; then no other part of the entity is sent.
    pub(super) turn: Option<Turn>,
}

/// A batch that was signed and submitted to the journal.
pub(super) struct QueuedBatch {
    pub(super) batch: Batch,
    pub(super) permits: BatchPermits,
    /// `None`: the batch has no records to send.
    pub(super) signed: Option<Signed>,
    pub(super) root: usize,
    pub(super) submitted: PendingWrite,
}

impl BatchTask {
    /// A task for a batch that is recorded.
    pub(super) fn new(batch_id: i64, batch: Batch, root: usize) -> Self {
        Self {
            batch_id,
            batch,
            is_part: false,
            root,
            permits: None,
            signed: None,
            lost: false,
            repeated: false,
            unknown_runs: 0,
            once: false,
            turn: None,
        }
    }

    /// Whether the permit of all lanes was released.
    pub(super) fn lacks_shared_permit(&self) -> bool {
        self.permits.as_ref().is_some_and(|permits| permits.of_all.is_none())
    }

    pub(super) fn set_shared_permit(&mut self, permit: SharedPermit) {
        if let Some(permits) = &mut self.permits {
            permits.of_all = Some(permit);
        }
    }

    /// Releases the permit of all lanes, because the batch waits.
    pub(super) fn release_shared_permit(&mut self) {
        if let Some(permits) = &mut self.permits {
            permits.of_all = None;
        }
    }
}

/// A batch with its last answer, which is not recorded yet.
pub(super) struct Answered {
    pub task: BatchTask,
    pub outcome: OutcomeMessage,
    pub result: AttemptResult,
}

/// A refused record that was sent alone. It is set aside once the credential is proven, which other batches may do
/// meanwhile.
pub(super) struct Parked {
    pub(super) answered: Answered,
    pub(super) because: Arc<Refusal>,
}

/// The permit of a refused batch to prove the credential by its parts.
#[derive(Clone)]
pub(super) struct Turn {
    pub(super) _permit: Permit,
    pub(super) because: Arc<Refusal>,
}

/// Why a credential has to be proven by parts.
pub(super) struct Refusal {
    pub(super) outcome: OutcomeMessage,
    pub(super) http_status: Option<i32>,
    /// The HTTP status of the probe.
    pub(super) list_status: u16,
}

impl Refusal {
    /// The message when a record that was accepted before did not prove the credential either.
    pub(super) fn unproven(&self, resent: &Resent) -> OutcomeMessage {
        let list = format!("HTTP {}", self.list_status);
        let instead = match resent {
            Resent::Otherwise(why) => format!("{list}, and a record that was accepted before: {why}"),
            Resent::Accepted | Resent::Nothing => list,
        };
        self.outcome.clone().unproven(&instead)
    }
}

/// A recorded batch, or a part of one, to be sent again.
pub(super) struct Redelivery<'r> {
    /// The number of its root in the window.
    pub root: usize,
    /// The whole batch.
    pub whole: &'r RecordedBatch,
    /// The batch itself, or a part of it.
    pub leaf: &'r RecordedBatch,
    /// Its rows as they are in the ledger now. `None`: no row is left.
    pub batch: Option<Batch>,
}
