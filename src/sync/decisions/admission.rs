//! Which batches may be in flight together.

use crate::batch::KeysUnderWay;

/// The most batches of a lane that are recorded as being sent: 2n - 1 for n requests in flight, so that the network
/// does not wait for the journal. It is not more, because a crash leaves the outcome of each unknown.
pub(in crate::sync) const fn under_way_max(requests_in_flight: usize) -> usize {
    requests_in_flight.saturating_mul(2).saturating_sub(1)
}

/// The batches of a lane that are in flight.
#[derive(Debug, Default)]
pub(in crate::sync) struct UnderWay {
    keys: KeysUnderWay,
    batches: usize,
    batches_max: usize,
}

impl UnderWay {
    /// No batch is in flight. `requests_in_flight`: the most requests of the lane at once.
    pub(in crate::sync) fn none(requests_in_flight: usize) -> Self {
        Self { batches_max: under_way_max(requests_in_flight), ..Self::default() }
    }

    /// Whether a batch with these keys may be announced now. Two batches with a record of the same key are never in
    /// flight together, because the later one of two uploads of a key has to count.
    pub(in crate::sync) fn admits(&self, keys: &[u64]) -> bool {
        self.batches < self.batches_max && !keys.iter().any(|key| self.keys.contains(key))
    }

    /// Notes that a batch is announced.
    pub(in crate::sync) fn add(&mut self, keys: &[u64]) {
        self.batches += 1;
        self.keys.extend(keys);
    }

    /// Notes that a batch is done, or that it ended the lane. `keys`: the keys that are free again; none, if the lane
    /// ends.
    pub(in crate::sync) fn remove(&mut self, keys: &[u64]) {
        self.batches -= 1;
        for key in keys {
            self.keys.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_with_a_common_key_are_never_in_flight_together() {
        let mut under_way = UnderWay::none(4);
        under_way.add(&[1, 2]);
        assert!(!under_way.admits(&[2, 3]));
        assert!(under_way.admits(&[3, 4]));
        under_way.remove(&[1, 2]);
        assert!(under_way.admits(&[2, 3]));
    }

    #[test]
    fn for_n_requests_at_most_2n_minus_1_batches_are_in_flight() {
        for (requests, batches) in [(1, 1), (2, 3), (4, 7)] {
            let mut under_way = UnderWay::none(requests);
            (0..batches).for_each(|key| under_way.add(&[key]));
            assert!(!under_way.admits(&[100]), "{requests}");
            under_way.remove(&[0]);
            assert!(under_way.admits(&[100]), "{requests}");
        }
    }
}
