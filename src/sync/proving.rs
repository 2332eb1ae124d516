//! Proof that a credential and the endpoint are good where the call that reads gives no list, as for a key that may only
//! import: by the parts of a refused batch, and by a record that was accepted before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::{Mutex, OnceCell, OwnedMutexGuard};

/// The most requests of an entity and a run while nothing is accepted, once a batch was refused.
const REQUESTS_MAX: u32 = 20;

/// The right to send a part in order to prove the credential: one at a time for an entity.
pub(super) type Permit = Arc<OwnedMutexGuard<()>>;

/// What was done for an entity in a run to prove that its credential is good.
#[derive(Debug, Default)]
pub(super) struct CredentialProof {
    /// A batch was refused while nothing was proven.
    has_begun: AtomicBool,
    /// Imports that were sent since, and the refused ones before.
    requests: AtomicU32,
    turn: Arc<Mutex<()>>,
    pub(super) resent: OnceCell<Resent>,
}

/// What came of sending a record again that was accepted before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resent {
    /// It was accepted again.
    Accepted,
    /// It was not; what came back.
    Otherwise(String),
    /// There is no such record.
    Nothing,
}

impl CredentialProof {
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Relaxed)
    }

    /// Notes a refusal. `is_counted`: the request was counted when it was sent.
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

    /// Whether one more part may be sent. One request is left for a record that was accepted before.
    pub(super) fn allows_more(&self) -> bool {
        self.requests.load(Ordering::Relaxed) + 1 < REQUESTS_MAX
    }

    /// Waits until nobody else sends parts of the entity to prove the credential.
    pub(super) async fn permit(&self) -> Permit {
        Arc::new(self.turn.clone().lock_owned().await)
    }
}
