//! A lane while this worker has its lease.

use std::sync::Arc;
use tokio::time::Instant;

use super::super::EntityReport;
use super::super::concurrency::LanePermit;
use super::super::invalid_start::InvalidStart;
use super::super::lane_worker::{LaneWorker, Target};
use super::lease_wait::TakenLane;
use crate::journal::{Lane, Lease, Opened};

/// A lane while this worker has its lease.
pub(in crate::sync) struct LaneRun<'a> {
    pub worker: &'a LaneWorker,
    pub run_id: i64,
    pub target: &'a Target,
    pub since: Instant,
    /// The permit of the lane, if it has one.
    pub permit: Option<Arc<LanePermit>>,
    /// Whether rows of the entity are set aside.
    pub has_rows_set_aside: bool,
    /// Tracks whether the first rows that the lane reads in the run are all invalid.
    pub start: Arc<InvalidStart>,
    pub lease: Lease,
    pub report: EntityReport,
}

impl<'a> LaneRun<'a> {
    /// Begins to work on a lane whose lease was just taken. Also returns the state of the lane, and the pass that was
    /// opened with the lease. `lease_before`: the lease that this worker had in the same run, whose fence the new one
    /// continues.
    pub(in crate::sync) fn begin(
        worker: &'a LaneWorker,
        run_id: i64,
        target: &'a Target,
        TakenLane { permit, lease, lane, opened }: TakenLane,
        lease_before: &mut Option<Lease>,
        start: Arc<InvalidStart>,
        report: EntityReport,
    ) -> (Self, Box<Lane>, Option<Opened>) {
        if let Some(pause) = lane.not_before {
            target.session.pause(pause);
        }
        let permit = Some(Arc::new(permit));
        let lease = lease.after(lease_before.take());
        *lease_before = Some(lease.clone());
        let (since, has_rows_set_aside) = (Instant::now(), lane.has_rows_set_aside);
        (
            Self { worker, run_id, target, since, permit, has_rows_set_aside, start, lease, report },
            lane,
            opened,
        )
    }
}
