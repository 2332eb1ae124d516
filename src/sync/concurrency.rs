//! Concurrency limits: the number of lanes, of requests, and of batches in flight of a worker.
//!
//! A lane that has read all its rows only waits for its last answers, and the next lane may start meanwhile. So there
//! are `entities_at_once` permits to read, and more permits for lanes: `entities_at_once` times the most batches of a
//! lane, because each of many small entities has only one batch. Two limits are independent of that: of the requests
//! that Elven sees, `entities_at_once` times `requests_in_flight`; and of the batches in flight, which take memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::decisions::admission::under_way_max;
use crate::config::SyncSettings;

/// A semaphore with this many permits, or with the most that there can be.
pub(super) fn semaphore(number: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(number.min(Semaphore::MAX_PERMITS)))
}

/// The permits that the lanes of a worker share.
#[derive(Debug)]
pub(super) struct ConcurrencyLimits {
    lanes: Arc<Semaphore>,
    reading: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    under_way: Arc<Semaphore>,
    /// The number of lanes that wait for a permit.
    waiting: AtomicUsize,
}

/// The permit of a lane. It is released when it is dropped.
#[derive(Debug)]
pub(super) struct LanePermit {
    /// The permit to read, until all rows are read.
    pub reading: Option<OwnedSemaphorePermit>,
    _lane: OwnedSemaphorePermit,
}

impl ConcurrencyLimits {
    pub(super) fn new(settings: &SyncSettings) -> Self {
        let SyncSettings { entities_at_once, requests_in_flight, .. } = *settings;
        let batches = under_way_max(requests_in_flight);
        Self {
            lanes: semaphore(entities_at_once.saturating_mul(batches.max(2))),
            reading: semaphore(entities_at_once),
            requests: semaphore(entities_at_once.saturating_mul(requests_in_flight)),
            under_way: semaphore(entities_at_once.saturating_mul(batches.saturating_mul(2))),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits for the permit of a lane. `None`: the limits are closed.
    pub(super) async fn take(&self) -> Option<LanePermit> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let permit = async {
            let lane = self.lanes.clone().acquire_owned().await.ok()?;
            let reading = self.reading.clone().acquire_owned().await.ok()?;
            Some(LanePermit { reading: Some(reading), _lane: lane })
        };
        let permit = permit.await;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        permit
    }

    /// Whether a lane waits for a permit.
    pub(super) fn are_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Permits for requests, of all lanes together.
    pub(super) fn requests(&self) -> &Arc<Semaphore> {
        &self.requests
    }

    /// Permits for batches that are recorded as being sent, of all lanes together.
    pub(super) fn under_way(&self) -> &Arc<Semaphore> {
        &self.under_way
    }
}
