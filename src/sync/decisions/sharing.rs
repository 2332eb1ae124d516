//! When a lane yields to others.

use std::time::Duration;

use crate::journal::WorkKind;

/// The longest slice of a backfill or a retry. A slice also ends after a third of the lease.
const SLICE_MAX: Duration = Duration::from_secs(2);

/// How long a lane waits for the API before it lends its permits to other lanes: longer than most answers take.
pub(in crate::sync) const LENDS_AFTER: Duration = Duration::from_secs(1);

fn slice_max(lease: Duration) -> Duration {
    SLICE_MAX.min(lease / 3)
}

/// Whether a lane that has worked for this long yields between two batches. Backfills and retries work in slices. A
/// pass yields only if another lane waits for its permit, and after the time between two renewals of a lease: much
/// longer than it takes to release a lease and take it.
pub(in crate::sync) fn yields(work: WorkKind, worked: Duration, is_wanted: bool, lease: Duration) -> bool {
    match work {
        WorkKind::Pass(_) => is_wanted && worked > renewed_every(lease),
        WorkKind::Backfill(_) | WorkKind::Retry => worked > slice_max(lease),
    }
}

/// Returns the time between two renewals of a lease.
pub(in crate::sync) fn renewed_every(lease: Duration) -> Duration {
    (lease / 3).max(Duration::from_millis(50))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_yields_only_to_a_lane_that_waits() {
        let (short, long) = (Duration::from_secs(1), Duration::from_secs(11));
        let lease = Duration::from_secs(30);
        for (worked, is_wanted, expected) in
            [(short, true, false), (long, true, true), (long, false, false), (short, false, false)]
        {
            assert_eq!(
                yields(WorkKind::Pass(1), worked, is_wanted, lease),
                expected,
                "{worked:?} {is_wanted}"
            );
        }
    }

    #[test]
    fn backfills_and_retries_yield_after_a_slice() {
        for (lease_s, worked_ms, expected) in
            [(30, 1_900, false), (30, 2_100, true), (3, 900, false), (3, 1_100, true)]
        {
            let (lease, worked) = (Duration::from_secs(lease_s), Duration::from_millis(worked_ms));
            for work in [WorkKind::Backfill(1), WorkKind::Retry] {
                assert_eq!(yields(work, worked, false, lease), expected, "{lease_s} {worked_ms}");
            }
        }
    }
}
