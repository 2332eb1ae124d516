//! Faults on request: failures between a client and the API that a test injects.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// A failure of an import.
///
/// Faults form a queue. Each strikes once, and takes precedence over the rules. A fault that keeps nothing strikes the
/// next import. Any other fault strikes the next accepted import; a refused import does not consume it.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing is kept, and this is the answer.
    Answer {
        /// HTTP status, 200 to 999.
        status: u16,
        /// Body, sent unchanged.
        body: String,
        /// Additional headers, e.g. `("retry-after", "2")`.
        headers: Vec<(String, String)>,
    },
    /// The records are kept, and the answer is this status with an empty body.
    FailAfterWrite {
        /// HTTP status, 200 to 999.
        status: u16,
    },
    /// Nothing is kept, and the connection is closed without a byte of an answer.
    CutBeforeWrite,
    /// The records are kept, and the connection is closed without a byte of an answer.
    CutAfterWrite,
    /// The connection is closed without a byte of an answer. The request is checked after this delay, its signature by
    /// the clock of that time, and its records are kept if it is accepted.
    DeliverLate(Duration),
    /// The records are kept, and the answer is held until the gate opens. If the sandbox stops first, the connection is
    /// cut.
    HoldResponse(Gate),
}

impl Fault {
    /// The name of the fault, as in the list of requests.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Answer { .. } => "Answer",
            Fault::FailAfterWrite { .. } => "FailAfterWrite",
            Fault::CutBeforeWrite => "CutBeforeWrite",
            Fault::CutAfterWrite => "CutAfterWrite",
            Fault::DeliverLate(_) => "DeliverLate",
            Fault::HoldResponse(_) => "HoldResponse",
        }
    }

    /// Returns whether the fault strikes a request that is accepted or refused.
    pub(super) fn strikes(&self, accepted: bool) -> bool {
        accepted || matches!(self, Fault::Answer { .. } | Fault::CutBeforeWrite)
    }
}

/// Holds answers until it is opened, and signals when an answer is held. Clones are the same gate.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Signals>);

#[derive(Debug, Default)]
struct Signals {
    reached: watch::Sender<bool>,
    open: watch::Sender<bool>,
}

impl Gate {
    /// Creates a closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits until an answer is held here. Its records are kept and visible then.
    pub async fn reached(&self) {
        wait(&self.0.reached).await;
    }

    /// Releases the answers that are held, and all later ones.
    pub fn open(&self) {
        self.0.open.send_replace(true);
    }

    /// Holds the caller until the gate is open.
    pub(super) async fn hold(&self) {
        self.0.reached.send_replace(true);
        wait(&self.0.open).await;
    }
}

/// Waits until a signal has been given.
pub(super) async fn wait(signal: &watch::Sender<bool>) {
    // This fails only without the sender, which is borrowed here.
    signal.subscribe().wait_for(|given| *given).await.ok();
}
