//! Limits: how many entities are worked on at once, and how many requests are in flight for all of them.
//!
//! An entity of which all is read needs little any more: it waits for its last answers, and the next one may begin
//! meanwhile. So there are `entities_at_once` places to read, and more lanes that only wait: `entities_at_once` times the
//! batches that a lane may have under way in all, since of many small entities each has but one. What Elven sees is bounded
//! by itself: `entities_at_once` times `requests_in_flight` at once; and so are the batches under way, which take memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::SyncSettings;

/// How many batches of a lane are recorded as being sent, when so many requests of it may be in flight at once: half as
/// many more, so that the wire does not wait for the journal. No more, since a crash leaves the outcome of each unknown.
pub(super) const fn under_way_max(requests_in_flight: usize) -> usize {
    requests_in_flight.saturating_mul(2).saturating_sub(1)
}

/// So many places, or as many as there can be.
pub(super) fn places(number: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(number.min(Semaphore::MAX_PERMITS)))
}

/// The places that the lanes of a worker share.
#[derive(Debug)]
pub(super) struct ConcurrencyLimits {
    lanes: Arc<Semaphore>,
    reading: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    under_way: Arc<Semaphore>,
    /// Lanes that wait for a place.
    waiting: AtomicUsize,
}

/// A lane's place. Given back when dropped.
#[derive(Debug)]
pub(super) struct LanePermit {
    /// Until all is read.
    pub reading: Option<OwnedSemaphorePermit>,
    _lane: OwnedSemaphorePermit,
}

impl ConcurrencyLimits {
    pub(super) fn new(settings: &SyncSettings) -> Self {
        let SyncSettings { entities_at_once, requests_in_flight, .. } = *settings;
        let batches = under_way_max(requests_in_flight);
        Self {
            lanes: places(entities_at_once.saturating_mul(batches.max(2))),
            reading: places(entities_at_once),
            requests: places(entities_at_once.saturating_mul(requests_in_flight)),
            under_way: places(entities_at_once.saturating_mul(batches.saturating_mul(2))),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits for a place. `None`: there will be none any more.
    pub(super) async fn take(&self) -> Option<LanePermit> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let place = async {
            let lane = self.lanes.clone().acquire_owned().await.ok()?;
            let reading = self.reading.clone().acquire_owned().await.ok()?;
            Some(LanePermit { reading: Some(reading), _lane: lane })
        };
        let place = place.await;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        place
    }

    /// Whether lanes wait for a place.
    pub(super) fn are_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Limits for requests, of all lanes together.
    pub(super) fn requests(&self) -> &Arc<Semaphore> {
        &self.requests
    }

    /// Room for batches that are recorded as being sent, of all lanes together.
    pub(super) fn under_way(&self) -> &Arc<Semaphore> {
        &self.under_way
    }
}
