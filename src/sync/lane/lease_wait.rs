//! Leases: how a lane takes one, and how long it waits for a lease that another worker holds.

use std::time::Duration;

use tokio::time::Instant;

use super::super::concurrency::LanePermit;
use super::super::lane_worker::LaneWorker;
use super::super::{Ended, RunError};
use crate::fault_point::{Step, after, before};
use crate::journal::{Holder, JournalError, Lane, Lease, NewPass, Opened, Purpose, Take};

/// The time between two looks at a lease that another worker holds.
pub(crate) const LEASE_POLL: Duration = Duration::from_millis(250);

/// A backfill that keeps a lease for longer than this many lease times is not waited for any longer: it waits for the
/// answer to a single request.
const BACKFILL_LEASES_MAX: u32 = 2;

/// A lane whose lease was taken.
pub(in crate::sync) struct TakenLane {
    pub permit: LanePermit,
    pub lease: Lease,
    /// The state of the lane when the lease was taken.
    pub lane: Box<Lane>,
    /// The pass that was opened together with the lease, if any.
    pub opened: Option<Opened>,
}

/// The outcome of the attempt to take the lease of an entity.
pub(in crate::sync) enum LeaseAttempt {
    /// The lease was taken.
    Taken(TakenLane),
    /// The lease was not taken, so nothing is done for the entity. The value says why.
    Left(Ended),
}

/// What a lane saw of a lease that another worker holds.
pub(crate) struct LeaseWait {
    purpose: Purpose,
    begun: Instant,
    lease: Duration,
    /// The state of the lease, its holder, and when this state was seen first.
    seen: Option<(String, Holder, Instant)>,
}

impl LeaseWait {
    /// Whether to look at the lease again. A lease that a run renews is not waited for. A backfill gives its lease up.
    /// A lease that nobody renews is waited for until it expires, however long that takes.
    ///
    /// A retry leaves an entity to a run that works on it; but once it has begun, it waits for its next slice. A
    /// backfill does not wait here: it may be cancelled meanwhile.
    pub(crate) fn should_keep_waiting(&mut self, seen: &str, holder: Holder) -> bool {
        let (is_same, is_another, since) = match &self.seen {
            Some((before, holder_before, since)) if before == seen => {
                (true, *holder_before != holder, *since)
            }
            // A new state of the lease counts as seen first now.
            Some((_, holder_before, _)) => (false, *holder_before != holder, Instant::now()),
            None => (false, true, Instant::now()),
        };
        self.seen = Some((seen.to_owned(), holder, since));
        let is_early = self.begun.elapsed() < self.lease * BACKFILL_LEASES_MAX;
        match (self.purpose, holder) {
            (Purpose::Backfill, _) | (Purpose::Retry { yields: false }, Holder::Run) => false,
            (Purpose::Retry { yields: true }, _) => true,
            (Purpose::Retry { yields: false }, Holder::Backfill | Holder::Nobody) => is_early,
            (Purpose::Run, Holder::Run) => is_same || is_another,
            (Purpose::Run, Holder::Backfill) => is_early || since.elapsed() > self.lease,
            // Only for a short time: the lease is being released or taken, or its row is locked.
            (Purpose::Run, Holder::Nobody) => is_same || is_early,
        }
    }
}

impl LaneWorker {
    pub(crate) fn lease_wait(&self, purpose: Purpose) -> LeaseWait {
        LeaseWait { purpose, begun: Instant::now(), lease: self.settings.sync.lease, seen: None }
    }

    /// Waits for a moment before the next look at a lease. Asks a backfill to give its lease up.
    pub(crate) async fn wait_for(&self, entity_id: &str, holder: Holder) -> Result<(), JournalError> {
        if holder == Holder::Backfill {
            self.journal.want(entity_id).await?;
        }
        tokio::time::sleep(LEASE_POLL).await;
        Ok(())
    }

    /// Takes the lease of an entity and a permit for its lane.
    ///
    /// If a run holds the lease and renews it, the entity is left to that run. If the holder does not renew the lease,
    /// this lane waits for it; a backfill is asked to release it. The lane waits without a permit, so that no other
    /// lane is delayed.
    pub(in crate::sync) async fn take_lease(
        &self,
        entity_id: &str,
        opening: Option<NewPass<'_>>,
        mut purpose: Purpose,
    ) -> Result<LeaseAttempt, RunError> {
        let mut wait = self.lease_wait(purpose);
        loop {
            let Some(permit) = self.lane_permit().await else {
                return Ok(LeaseAttempt::Left(Ended::Stopped));
            };
            before(Step::TakeLease);
            if opening.is_some() {
                before(Step::OpenPass);
            }
            let (taken, opened) = self.journal.take_and_open(entity_id, opening, purpose).await?;
            let holder = match taken {
                Take::Taken(lease, lane) => {
                    if opened.is_some() {
                        after(Step::OpenPass);
                    }
                    after(Step::TakeLease);
                    tracing::info!(lease_epoch = lease.epoch, "lease taken");
                    return Ok(LeaseAttempt::Taken(TakenLane { permit, lease, lane, opened }));
                }
                Take::Held { seen, holder } if !wait.should_keep_waiting(&seen, holder) => {
                    return Ok(LeaseAttempt::Left(Ended::Held));
                }
                Take::Held { holder, .. } => holder,
            };
            drop(permit);
            if holder == Holder::Backfill && purpose != Purpose::Run {
                // A retry that has asked for the lease does not yield to its own wish.
                purpose = Purpose::Retry { yields: false };
            }
            self.wait_for(entity_id, holder).await?;
        }
    }
}
