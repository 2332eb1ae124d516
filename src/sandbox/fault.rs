//! Faults on request: what can go wrong between a client and the API, made to happen.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// What is to go wrong with an import, named for what happened.
///
/// Faults form a queue, and each happens once, in place of what the rules would do. Those of which nothing
/// is kept take the next import whatever it holds. The others wait for the next import that is accepted; a
/// refused one passes them by and is answered with its refusal.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The request is not looked at, nothing of it is kept, and this is the answer.
    Answer {
        /// HTTP status, 200 to 999.
        status: u16,
        /// Body, sent as it is.
        body: String,
        /// Headers beyond those that HTTP needs, e.g. `("retry-after", "2")`.
        headers: Vec<(String, String)>,
    },
    /// The records are kept, and the answer is this status with an empty body: the success was lost.
    FailAfterWrite {
        /// HTTP status, 200 to 999.
        status: u16,
    },
    /// Nothing of the request is kept, and the connection is closed without a byte of an answer.
    CutBeforeWrite,
    /// The records are kept, and the connection is closed without a byte of an answer.
    CutAfterWrite,
    /// The connection is closed without a byte of an answer. The request is judged, and kept if it is accepted, so much
    /// later: its signature by the clock of then.
    DeliverLate(Duration),
    /// The records are kept, and the answer waits until the gate is opened. When the sandbox stops
    /// first, the connection is cut.
    HoldResponse(Gate),
}

impl Fault {
    /// The fault's name, as the list of requests shows it.
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

    /// Whether the fault has its way with a request that is accepted or, else, refused.
    pub(super) fn strikes(&self, accepted: bool) -> bool {
        accepted || matches!(self, Fault::Answer { .. } | Fault::CutBeforeWrite)
    }
}

/// Holds answers back until it is opened, and says when one is being held. Clones are the same gate.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Signals>);

#[derive(Debug, Default)]
struct Signals {
    reached: watch::Sender<bool>,
    open: watch::Sender<bool>,
}

impl Gate {
    /// A closed gate that nothing has reached.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits until the answer to an import is being held here; its records are then kept and visible.
    pub async fn reached(&self) {
        wait(&self.0.reached).await;
    }

    /// Lets go of the answers that are held, and of every later one.
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
    // Fails only when the sender is gone, and it is borrowed here.
    signal.subscribe().wait_for(|given| *given).await.ok();
}
