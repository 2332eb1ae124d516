//! A lane while this worker has its lease.

use std::sync::Arc;
use std::time::Instant;

use super::super::concurrency::LanePermit;
use super::super::invalid_start::InvalidStart;
use super::super::worker::Target;
use super::super::{EntityReport, Worker};
use crate::journal::Lease;

/// A lane while this worker has its lease.
pub(in crate::sync) struct LaneRun<'a> {
    pub worker: &'a Worker,
    pub run_id: i64,
    pub target: &'a Target,
    pub since: Instant,
    pub permit: LanePermit,
    /// Whether rows of the entity are set aside.
    pub has_rows_set_aside: bool,
    /// Tracks whether the first rows that the lane reads in the run are all invalid.
    pub start: Arc<InvalidStart>,
    pub lease: Lease,
    pub report: EntityReport,
}
