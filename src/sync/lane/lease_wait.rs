//! How long a lease is waited for that somebody else has.

use std::time::{Duration, Instant};

use super::super::Worker;
use crate::journal::{Holder, JournalError, Lane, Lease, Take};

/// How often a lease that another worker holds is looked at.
pub(crate) const LEASE_POLL: Duration = Duration::from_millis(250);

/// A backfill that has a lease for so many times its length is left alone: it waits for the answer to a single request.
const BACKFILL_LEASES_MAX: u32 = 2;

/// What was seen of a lease that somebody else has.
pub(crate) struct LeaseWait {
    begun: Instant,
    lease: Duration,
    /// The lease as it stood, who had it, and since when.
    seen: Option<(String, Holder, Instant)>,
}

impl LeaseWait {
    /// Says whether to look again. A run that keeps renewing is left alone, and a backfill makes room; a lease that nobody
    /// renews is waited for, however long that takes.
    pub(crate) fn should_keep_waiting(&mut self, seen: &str, holder: Holder) -> bool {
        let (is_same, is_another, since) = match &self.seen {
            Some((before, holder_before, since)) if before == seen => {
                (true, *holder_before != holder, *since)
            }
            // What a run took over is a first look at it.
            Some((_, holder_before, _)) => (false, *holder_before != holder, Instant::now()),
            None => (false, true, Instant::now()),
        };
        self.seen = Some((seen.to_owned(), holder, since));
        let is_early = self.begun.elapsed() < self.lease * BACKFILL_LEASES_MAX;
        match holder {
            Holder::Run => is_same || is_another,
            Holder::Backfill => is_early || since.elapsed() > self.lease,
            // Not for long: it is being given back or taken, or somebody has its row locked.
            Holder::Nobody => is_same || is_early,
        }
    }
}

impl Worker {
    pub(crate) fn lease_wait(&self) -> LeaseWait {
        LeaseWait { begun: Instant::now(), lease: self.settings.sync.lease, seen: None }
    }

    /// Waits a moment for a lease that somebody else has; a backfill is asked for it.
    pub(crate) async fn wait_for(&self, entity_id: &str, holder: Holder) -> Result<(), JournalError> {
        if holder == Holder::Backfill {
            self.journal.want(entity_id).await?;
        }
        tokio::time::sleep(LEASE_POLL).await;
        Ok(())
    }

    /// Leases an entity, unless a run is on it: a backfill makes room within a moment.
    pub(crate) async fn take_unless_run(
        &self,
        entity_id: &str,
    ) -> Result<Option<(Lease, Box<Lane>)>, JournalError> {
        let begun = Instant::now();
        let mut wait = self.lease_wait();
        loop {
            let holder = match self.journal.take(entity_id).await? {
                Take::Taken(lease, lane) => return Ok(Some((lease, lane))),
                Take::Held { seen, holder } if wait.should_keep_waiting(&seen, holder) => holder,
                Take::Held { .. } => return Ok(None),
            };
            let is_late = begun.elapsed() > self.settings.sync.lease * BACKFILL_LEASES_MAX;
            if holder == Holder::Run || is_late || *self.stop.borrow() {
                return Ok(None);
            }
            self.wait_for(entity_id, holder).await?;
        }
    }
}
