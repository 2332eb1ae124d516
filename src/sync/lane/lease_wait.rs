//! How long a lane waits for a lease that another worker holds.

use std::time::Duration;

use tokio::time::Instant;

use super::super::lane_worker::LaneWorker;
use crate::journal::{Holder, JournalError, Lane, Lease, Purpose, Take};

/// The time between two looks at a lease that another worker holds.
pub(crate) const LEASE_POLL: Duration = Duration::from_millis(250);

/// A backfill that keeps a lease for longer than this many lease times is not waited for any longer: it waits for the
/// answer to a single request.
const BACKFILL_LEASES_MAX: u32 = 2;

/// What a lane saw of a lease that another worker holds.
pub(crate) struct LeaseWait {
    begun: Instant,
    lease: Duration,
    /// How long a row may be locked by a session that is no worker: `reconnect_timeout`.
    locked_max: Duration,
    /// The state of the lease, its holder, and when this state was seen first.
    seen: Option<(String, Holder, Instant)>,
}

impl LeaseWait {
    /// Whether to look at the lease again. A lease that a run renews is not waited for. A backfill gives its lease up.
    /// A lease that nobody renews is waited for until it expires, however long that takes. A locked row is waited for
    /// no longer than `reconnect_timeout`.
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
        match holder {
            Holder::Run => is_same || is_another,
            Holder::Backfill => is_early || since.elapsed() > self.lease,
            // The lease is being released or taken, or its row is locked.
            Holder::Nobody => (is_same || is_early) && since.elapsed() < self.locked_max,
        }
    }

    /// Returns whether the lease was free for all the time that it could not be taken: another session has locked its
    /// row, e.g. with a forgotten `select ... for update`.
    pub(crate) fn is_locked(&self) -> bool {
        let is_locked = |(_, holder, since): &(_, Holder, Instant)| {
            *holder == Holder::Nobody && since.elapsed() >= self.locked_max
        };
        self.seen.as_ref().is_some_and(is_locked)
    }
}

impl LaneWorker {
    pub(crate) fn lease_wait(&self) -> LeaseWait {
        let (lease, locked_max) = (self.settings.sync.lease, self.settings.database.reconnect_timeout);
        LeaseWait { begun: Instant::now(), lease, locked_max, seen: None }
    }

    /// Waits for a moment before the next look at a lease. Asks a backfill to give its lease up.
    pub(crate) async fn wait_for(&self, entity_id: &str, holder: Holder) -> Result<(), JournalError> {
        if holder == Holder::Backfill {
            self.journal.want(entity_id).await?;
        }
        tokio::time::sleep(LEASE_POLL).await;
        Ok(())
    }

    /// Takes the lease of an entity for a slice of a retry, unless a run holds it. A backfill releases its lease
    /// within a moment.
    ///
    /// `yields`: a worker that waits for the entity comes first. A retry that has asked a backfill for the lease is the one
    /// that waits, so it does not yield to its own wish.
    pub(crate) async fn take_unless_run(
        &self,
        entity_id: &str,
        mut yields: bool,
    ) -> Result<Option<(Lease, Box<Lane>)>, JournalError> {
        let begun = Instant::now();
        let mut wait = self.lease_wait();
        loop {
            let (taken, _) = self.journal.take_and_open(entity_id, None, Purpose::Retry { yields }).await?;
            let holder = match taken {
                Take::Taken(lease, lane) => return Ok(Some((lease, lane))),
                Take::Held { seen, holder } if wait.should_keep_waiting(&seen, holder) => holder,
                Take::Held { .. } => return Ok(None),
            };
            let is_late = begun.elapsed() > self.settings.sync.lease * BACKFILL_LEASES_MAX;
            if holder == Holder::Run || is_late || *self.stop.borrow() {
                return Ok(None);
            }
            yields &= holder != Holder::Backfill;
            self.wait_for(entity_id, holder).await?;
        }
    }
}
