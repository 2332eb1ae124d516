//! Concurrency limits: the number of lanes, of requests, and of batches in flight of a worker.
//!
//! A lane that has read all its rows only waits for its last answers, and the next lane may start meanwhile. So there
//! are `entities_at_once` permits to read, and more permits for lanes: `entities_at_once` times the most batches of a
//! lane, because each of many small entities has only one batch. Two limits are independent of that: of the requests
//! that Elven sees, `entities_at_once` times `requests_in_flight`; and of the batches in flight, which take memory.
//!
//! A slow or throttled credential must not delay the lanes of another one. So
//! - the lanes of one credential are limited like all lanes together, also while some of them lend their permits: a
//!   further lane of a credential that waits would only wait, with its rows in memory. One lane more may begin, so that
//!   the next lane of each credential waits in the queue of all lanes;
//! - a lane that waits for the API lends its permits to other lanes;
//! - a batch that waits holds no permit that all lanes share;
//! - the first request of a credential, and its first batch, have permits in reserve ([`SharedLimit`]).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::decisions::admission::under_way_max;
use super::shared_limit::{SharedLimit, SharedPermit};
use crate::config::SyncSettings;

/// How many lanes may lend their permits at the same time, for each of `entities_at_once`. A lane that lends keeps its
/// rows in memory.
const LENDING_LANES: usize = 8;

/// A semaphore with this many permits, or with the most that there can be.
pub(super) fn semaphore(number: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(number.min(Semaphore::MAX_PERMITS)))
}

/// The limits of a worker.
#[derive(Debug)]
pub(super) struct ConcurrencyLimits {
    lanes: usize,
    reading: usize,
    of_all: Arc<SharedLimits>,
    /// By the name of the credential.
    shares: Mutex<BTreeMap<String, Arc<CredentialShare>>>,
}

/// The limits that the lanes of all credentials share.
#[derive(Debug)]
struct SharedLimits {
    lanes: LaneSlots,
    /// Permits for lanes that lend the slot that they have among all lanes.
    lending: Arc<Semaphore>,
    requests: SharedLimit,
    under_way: SharedLimit,
}

/// The limits of the lanes of one credential.
#[derive(Debug)]
pub(super) struct CredentialShare {
    credential: Arc<str>,
    of_all: Arc<SharedLimits>,
    lanes: LaneSlots,
}

impl ConcurrencyLimits {
    pub(super) fn new(settings: &SyncSettings) -> Self {
        let SyncSettings { entities_at_once, requests_in_flight, .. } = *settings;
        let batches = under_way_max(requests_in_flight);
        let (lanes, reading) = (entities_at_once.saturating_mul(batches.max(2)), entities_at_once);
        let of_all = Arc::new(SharedLimits {
            lanes: LaneSlots::new(lanes, reading),
            lending: semaphore(entities_at_once.saturating_mul(LENDING_LANES)),
            requests: SharedLimit::new(entities_at_once.saturating_mul(requests_in_flight)),
            under_way: SharedLimit::new(entities_at_once.saturating_mul(batches.saturating_mul(2))),
        });
        Self { lanes, reading, of_all, shares: Mutex::default() }
    }

    /// Returns the limits of the lanes of a credential.
    pub(super) fn of(&self, credential: &str) -> Arc<CredentialShare> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            Arc::new(CredentialShare {
                credential: Arc::from(credential),
                of_all: self.of_all.clone(),
                lanes: LaneSlots::new(self.lanes, self.reading.saturating_add(1)),
            })
        };
        shares.entry(credential.to_owned()).or_insert_with(new).clone()
    }
}

impl CredentialShare {
    /// Waits for the permit of a lane. `None`: the limits are closed.
    pub(super) async fn lane(&self) -> Option<LanePermit> {
        let of_credential = self.lanes.take().await?;
        let of_all = Some(self.of_all.lanes.take().await?);
        let held = HeldSlots { of_credential, of_all, lending: None };
        Some(LanePermit { limits: self.of_all.clone(), held: Mutex::new(held) })
    }

    /// Whether a lane waits for a permit that a lane of this credential may have.
    pub(super) fn are_lanes_wanted(&self) -> bool {
        self.lanes.are_wanted() || self.of_all.lanes.are_wanted()
    }

    /// Waits for the permit of a request, of all lanes together. `None`: the limits are closed.
    pub(super) async fn request(&self) -> Option<SharedPermit> {
        self.of_all.requests.acquire(&self.credential).await
    }

    /// Waits for the permit of a batch that is recorded as being sent, of all lanes together. `None`: the limits are
    /// closed.
    pub(super) async fn under_way(&self) -> Option<SharedPermit> {
        self.of_all.under_way.acquire(&self.credential).await
    }

    /// The same, if such a permit is free.
    pub(super) fn free_under_way(&self) -> Option<SharedPermit> {
        self.of_all.under_way.free(&self.credential)
    }
}

/// Slots for lanes, and among them for lanes that read.
#[derive(Debug)]
struct LaneSlots {
    lanes: Arc<Semaphore>,
    reading: Arc<Semaphore>,
    /// The number of lanes that wait for a slot.
    waiting: AtomicUsize,
}

/// The slot of a lane. It is released when it is dropped.
#[derive(Debug)]
struct LaneSlot {
    /// Until all rows are read.
    reading: Option<OwnedSemaphorePermit>,
    _lane: OwnedSemaphorePermit,
}

impl LaneSlots {
    fn new(lanes: usize, reading: usize) -> Self {
        Self { lanes: semaphore(lanes), reading: semaphore(reading), waiting: AtomicUsize::new(0) }
    }

    async fn take(&self) -> Option<LaneSlot> {
        let _waiting = Counted::new(&self.waiting);
        let lane = self.lanes.clone().acquire_owned().await.ok()?;
        let reading = self.reading.clone().acquire_owned().await.ok()?;
        Some(LaneSlot { reading: Some(reading), _lane: lane })
    }

    /// Takes a slot if one is free. `reads`: the lane has rows to read.
    fn take_free(&self, reads: bool) -> Option<LaneSlot> {
        let lane = self.lanes.clone().try_acquire_owned().ok()?;
        let reading = if reads { Some(self.reading.clone().try_acquire_owned().ok()?) } else { None };
        Some(LaneSlot { reading, _lane: lane })
    }

    fn are_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

/// The permit of a lane: a slot among the lanes of its credential, and one among all lanes. The second one may be lent.
/// The permit is released when it is dropped.
#[derive(Debug)]
pub(super) struct LanePermit {
    limits: Arc<SharedLimits>,
    held: Mutex<HeldSlots>,
}

#[derive(Debug)]
struct HeldSlots {
    of_credential: LaneSlot,
    /// `None`: lent.
    of_all: Option<LaneSlot>,
    lending: Option<OwnedSemaphorePermit>,
}

impl LanePermit {
    fn held(&self) -> std::sync::MutexGuard<'_, HeldSlots> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets other lanes read, because all rows of this lane are read.
    pub(super) fn end_reading(&self) {
        let mut held = self.held();
        held.of_credential.reading = None;
        if let Some(of_all) = &mut held.of_all {
            of_all.reading = None;
        }
    }

    /// Lends the slot among all lanes, while the lane waits for the API.
    pub(super) fn lend(&self) {
        let mut held = self.held();
        if held.of_all.is_some()
            && let Ok(lending) = self.limits.lending.clone().try_acquire_owned()
        {
            held.lending = Some(lending);
            held.of_all = None;
        }
    }

    /// Takes a slot back if one is free. Otherwise the lane works without one until a slot is free after a later wait:
    /// the number of lanes that lend is limited, too.
    pub(super) fn take_back(&self) {
        let mut held = self.held();
        if held.of_all.is_none() {
            held.of_all = self.limits.lanes.take_free(held.of_credential.reading.is_some());
        }
        if held.of_all.is_some() {
            held.lending = None;
        }
    }
}

/// Counts as one until it is dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures_util::FutureExt;

    use super::*;
    use crate::config::{Flags, Settings};

    /// Limits with two lanes that read, and two requests.
    fn limits() -> ConcurrencyLimits {
        let settings =
            Settings::load(&Flags::default(), BTreeMap::<String, String>::new().into_iter().collect());
        let sync = settings.unwrap().sync;
        ConcurrencyLimits::new(&SyncSettings { entities_at_once: 2, requests_in_flight: 1, ..sync })
    }

    #[test]
    fn a_lane_that_lends_lets_another_credential_begin() {
        let limits = limits();
        let (one, two) = (limits.of("one"), limits.of("two"));
        let begun = |_| one.lane().now_or_never().flatten();
        let mut lanes: Vec<LanePermit> = (0..2).filter_map(begun).collect();
        assert!(two.lane().now_or_never().is_none(), "all slots are taken");
        lanes.iter().for_each(LanePermit::lend);
        lanes.extend(begun(2));
        lanes.iter().for_each(LanePermit::lend);
        assert_eq!(lanes.len(), 3);
        let other = two.lane().now_or_never().flatten();
        assert!(other.is_some(), "slots are lent");
        assert!(one.lane().now_or_never().is_none(), "the credential that waits begins no further lane");
        lanes.iter().for_each(LanePermit::take_back);
        assert!(two.lane().now_or_never().is_none(), "one slot was taken back");
        drop(other);
        assert!(two.lane().now_or_never().flatten().is_some());
    }

    #[test]
    fn a_lane_that_has_read_all_rows_lets_another_one_read() {
        let limits = limits();
        let one = limits.of("one");
        let lanes: Vec<LanePermit> = (0..2).filter_map(|_| one.lane().now_or_never().flatten()).collect();
        assert!(!one.are_lanes_wanted() && one.lane().now_or_never().is_none());
        lanes[0].lend();
        lanes[0].end_reading();
        lanes[0].take_back();
        assert!(one.lane().now_or_never().flatten().is_some());
    }

    #[test]
    fn lanes_lend_only_so_many_slots() {
        let limits = limits();
        let begun = |n: usize| limits.of(&n.to_string()).lane().now_or_never().flatten();
        let mut lanes = Vec::new();
        while let Some(lane) = begun(lanes.len()) {
            lane.lend();
            lanes.push(lane);
        }
        assert_eq!(lanes.len(), 2 * LENDING_LANES + 2);
    }
}
