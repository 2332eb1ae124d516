//! Proof that a credential and the endpoint are good when the probe returns no list, as for a key that may only import:
//! by the parts of a refused batch, and by a record that was accepted before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::{Mutex, OnceCell, OwnedMutexGuard};

use super::decisions::proof::allows_more;

/// The permit to send parts that prove the credential. An entity has one.
pub(super) type Permit = Arc<OwnedMutexGuard<()>>;

/// What a run did for an entity to prove that its credential is good.
#[derive(Debug, Default)]
pub(super) struct CredentialProof {
    /// A batch was refused while the credential was not proven.
    has_begun: AtomicBool,
    /// The number of imports sent since then, and of refused imports before.
    requests: AtomicU32,
    turn: Arc<Mutex<()>>,
    pub(super) resent: OnceCell<Resent>,
}

/// The result of sending a record again that was accepted before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resent {
    /// The record was accepted again.
    Accepted,
    /// The record was not accepted; the text says why.
    Otherwise(String),
    /// There is no such record.
    Nothing,
}

impl CredentialProof {
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Relaxed)
    }

    /// Records a refusal. `is_counted`: the request was counted when it was sent.
    pub(super) fn begin(&self, is_counted: bool) {
        self.has_begun.store(true, Ordering::Relaxed);
        if !is_counted {
            self.count();
        }
    }

    /// Counts a request.
    pub(super) fn count(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether one more part may be sent.
    pub(super) fn allows_more(&self) -> bool {
        allows_more(self.requests.load(Ordering::Relaxed))
    }

    /// Waits for the permit to send parts that prove the credential.
    pub(super) async fn permit(&self) -> Permit {
        Arc::new(self.turn.clone().lock_owned().await)
    }
}
