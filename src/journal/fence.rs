//! The fence after attempts whose answer was lost.
//!
//! The network may deliver such an attempt late, as long as the API accepts its signature. Until the signature is too
//! old, only the same rows are sent for its keys. Otherwise a newer row could be overwritten by the late, older one.
//!
//! A lease knows the keys of its own lost attempts. When it is released, it leaves `sync_state.fence_until`, which
//! applies to the whole lane, because the keys are not stored in the database.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::FixedState;
use tokio::time::Instant;

use crate::batch::Batch;
use crate::ledger::Row;

/// How much longer than its signature is valid an attempt may still arrive: clocks differ by less than this.
pub(crate) const MARGIN: Duration = Duration::from_secs(3);

/// The attempts of a lane that may still arrive. Clones share one fence.
#[derive(Clone, Debug)]
pub struct Fence(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    /// How long an attempt may still arrive after it was signed.
    length: Duration,
    /// Until then an attempt of an earlier lease may arrive; neither its batch nor its keys are known.
    lane_until: Option<Instant>,
    lost: Mutex<Lost>,
}

/// The attempts of this lease whose answer was lost.
#[derive(Debug, Default)]
struct Lost {
    /// Until when the last of them may arrive.
    until: Option<Instant>,
    /// By the hash of the key: the hash of the row that was sent, and until when it may arrive.
    rows: HashMap<u64, (u64, Instant), FixedState>,
}

impl Lost {
    /// Until `until`, only these rows are sent for the keys of a batch.
    fn close_for(&mut self, batch: &Batch, until: Instant, now: Instant) {
        self.rows.retain(|_, (_, until)| *until > now);
        for (key, row) in batch.keyed_rows() {
            let row = hash_of(row);
            let (of, ends) = self.rows.entry(key).or_insert((row, until));
            // No other row is sent for the key before the fence of this row ends.
            (*of, *ends) = (row, until.max(*ends));
        }
        self.until = self.until.max(Some(until));
    }

    /// Returns how long an attempt may still arrive that sent another row for a key of this batch.
    fn left(&self, batch: &Batch, now: Instant) -> Option<Duration> {
        // Without a recent loss there is nothing to compare.
        self.until.filter(|until| *until > now)?;
        let fenced = batch.keyed_rows().filter_map(|(key, row)| {
            self.rows.get(&key).filter(|(sent, _)| *sent != hash_of(row)).map(|(_, until)| *until)
        });
        let left = fenced.max()?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }
}

impl Fence {
    /// Returns the fence of a lane; `lane`: how long attempts of earlier leases may still arrive.
    pub fn new(signature_window: Duration, lane: Option<Duration>) -> Self {
        let lane_until = lane.map(|lane| Instant::now() + lane);
        Self(Arc::new(Inner { length: signature_window + MARGIN, lane_until, lost: Mutex::default() }))
    }

    fn lost_ones(&self) -> MutexGuard<'_, Lost> {
        // Each change leaves the fence as long or longer, so a panic in between leaves no invalid state.
        self.0.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the answer to an attempt was lost. `sent_at`: when it was signed, or later. `ahead`: how far the
    /// signing clock is ahead of the API's clock; the API accepts the signature for that much longer.
    pub fn note_lost(&self, batch: &Batch, sent_at: Instant, ahead: Duration) {
        self.close_for(batch, sent_at + self.0.length + ahead);
    }

    /// Records that a batch of an earlier lease, whose attempt may still arrive, is sent again.
    pub fn note_inherited(&self, batch: &Batch) {
        if let Some(lane_until) = self.0.lane_until {
            self.close_for(batch, lane_until);
        }
    }

    fn close_for(&self, batch: &Batch, until: Instant) {
        self.lost_ones().close_for(batch, until, Instant::now());
    }

    /// Returns how long an attempt of an earlier lease may still arrive. Until then only its batch may be sent.
    pub fn of_lane(&self) -> Option<Duration> {
        self.0.lane_until.and_then(left)
    }

    /// Returns how long an attempt of this lease may still arrive that sent another row for a key of this batch.
    pub fn of_keys(&self, batch: &Batch) -> Option<Duration> {
        self.lost_ones().left(batch, Instant::now())
    }

    /// Returns how long this batch, which was never sent, has to wait.
    pub fn of_new(&self, batch: &Batch) -> Option<Duration> {
        if batch.records.is_empty() {
            return None;
        }
        self.of_lane().max(self.of_keys(batch))
    }

    /// Returns how many seconds an attempt of this lease may still arrive; this is recorded when the lease is
    /// released.
    pub fn seconds_left(&self) -> Option<f64> {
        self.lost_ones().until.and_then(left).map(|left| left.as_secs_f64())
    }
}

/// Returns the time left until an instant. `None`: it has passed.
fn left(until: Instant) -> Option<Duration> {
    Some(until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
}

/// Returns a hash of a row version.
fn hash_of(row: &Row) -> u64 {
    FixedState::with_seed(0).hash_one((row.xid, &row.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_in_the_past_is_none() {
        assert_eq!(Fence::new(Duration::ZERO, Some(Duration::ZERO)).of_lane(), None);
        let fence = Fence::new(Duration::ZERO, Some(Duration::from_secs(5)));
        assert!(fence.of_lane().is_some_and(|left| left > Duration::from_secs(4)));
        assert_eq!(fence.seconds_left(), None, "the fence of earlier leases is not recorded again");
    }

    /// A batch of one row, with a key by its account.
    fn batch(account: &str, id: i64, xid: u64) -> Batch {
        let balance: Vec<u8> = [1_i16, 0, 0, 0, 5].iter().flat_map(|part| part.to_be_bytes()).collect();
        let id = crate::watermark::LedgerId::Number(id);
        let row = Row::new(xid, id, Some(account), Some("BTC"), Some(0), Some(&balance));
        Batch::build(None, vec![row], &crate::align::Zone::utc().into())
    }

    #[test]
    fn only_the_same_rows_are_sent_for_the_keys_of_a_lost_attempt() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut lost = Lost::default();
        lost.close_for(&batch("a", 1, 10), now + 5 * second, now);
        for (account, id, xid, expected) in [
            ("a", 1, 10, None),
            ("a", 1, 11, Some(5 * second)),
            ("a", 2, 10, Some(5 * second)),
            ("b", 2, 10, None),
        ] {
            assert_eq!(lost.left(&batch(account, id, xid), now), expected, "{account} {id} {xid}");
        }
        let newer = batch("a", 1, 11);
        assert_eq!(lost.left(&newer, now + 4 * second), Some(second));
        assert_eq!(lost.left(&newer, now + 5 * second), None);
    }

    #[test]
    fn a_fence_is_never_shortened() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut lost = Lost::default();
        lost.close_for(&batch("a", 1, 10), now + 5 * second, now);
        lost.close_for(&batch("a", 1, 11), now + 2 * second, now);
        assert_eq!(lost.left(&batch("a", 1, 12), now), Some(5 * second));
    }
}
