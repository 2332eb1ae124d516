//! Watermarks moved by a person: registration from now on, rewind, and rebind to an upgraded cluster.

use chrono::{DateTime, Utc};

use crate::journal::{
    ClusterMatch, Entity, FromNow, Holder, JournalError, Lane, Lease, Purpose, Rebound, SealState, Take,
};
use crate::ledger::{LedgerError, ProbeResult, Progress};
use crate::sync::watermark_check::{WatermarkMismatch, changes};
use crate::sync::{RunError, Worker};
use crate::text::quoted_argument;
use crate::watermark::Snapshot;

/// A watermark cannot be moved as asked.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The move would skip or mistake rows; the message says why, and what to do.
    #[error("{0}")]
    Refused(String),
    /// The ledger or the sync tables cannot be used.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// The number of no run.
const NO_RUN: i64 = 0;

impl From<JournalError> for MoveError {
    fn from(problem: JournalError) -> Self {
        Self::Run(problem.into())
    }
}

impl From<LedgerError> for MoveError {
    fn from(problem: LedgerError) -> Self {
        Self::Run(problem.into())
    }
}

impl From<WatermarkMismatch> for MoveError {
    fn from(misfit: WatermarkMismatch) -> Self {
        Self::Refused(misfit.to_string())
    }
}

pub(crate) fn refused<T>(why: impl Into<String>) -> Result<T, MoveError> {
    Err(MoveError::Refused(why.into()))
}

/// A planned rewind.
#[derive(Debug)]
pub struct Rewind {
    entity_id: String,
    to: Option<Snapshot>,
    /// The watermark is not there already.
    pub is_move: bool,
    /// Rows that would be read again: those that were processed or skipped. If the journal does not show where the
    /// watermark was, all rows.
    pub rows: i64,
    /// The number of these rows that the API accepted. `None`: the journal does not show it.
    pub accepted: Option<i64>,
}

impl Worker {
    /// Registers an entity whose present rows count as processed. Rows of open transactions are not present yet, and
    /// are uploaded after the transactions commit.
    pub async fn register_from_now(
        &self,
        entity: &Entity,
        reason: Option<&str>,
    ) -> Result<FromNow, MoveError> {
        let (ledger_table, mapping) = (self.ledger.name(), &self.mapping);
        Ok(Entity::add_from_now(&self.database, entity, ledger_table, mapping, reason).await?)
    }

    /// Plans to move a watermark back, to where it was at an instant or to the start.
    pub async fn plan_rewind(&self, entity_id: &str, at: Option<DateTime<Utc>>) -> Result<Rewind, MoveError> {
        let (lane, probed) = self.probed_lane(entity_id).await?;
        let earlier = self.journal.earlier(entity_id, at).await?;
        if let Some(until) = earlier.pruned_until {
            return refused(format!(
                "the watermark of `{entity_id}` at that time was pruned from the journal; hint: elven-sync entity \
                 rewind --to {} {}, or a later time",
                until.to_rfc3339(),
                quoted_argument(entity_id)
            ));
        }
        self.check_rewind(entity_id, earlier.settled.as_ref(), &lane, &probed)?;
        let rows_behind = async |progress: Progress| -> Result<i64, LedgerError> {
            let (pending, unreadable) = self.ledger.pending(&[progress]).await?;
            match unreadable.into_values().next() {
                Some(unreadable) => Err(LedgerError::Unreadable(unreadable)),
                None => Ok(pending.first().map_or(0, |pending| pending.rows)),
            }
        };
        let at = |settled: Option<&Snapshot>| Progress {
            settled: settled.cloned(),
            target: None,
            cursor: None,
            ..lane.progress(entity_id)
        };
        let all = rows_behind(at(earlier.settled.as_ref())).await?;
        let is_known = lane.seal == SealState::Whole && !self.is_watermark_lost(entity_id, &lane).await?;
        let pending = if is_known { rows_behind(lane.progress(entity_id)).await? } else { 0 };
        let rows = all - pending;
        let skipped = match &earlier.skipped_since {
            Some(skipped) => all - rows_behind(at(Some(skipped))).await?,
            None => 0,
        };
        // A rewind to the start also binds the watermark to the present cluster and mapping.
        let is_bound_elsewhere =
            !is_known || (lane.mapping.is_some() && !changes(&self.ledger, &lane).is_none());
        Ok(Rewind {
            entity_id: entity_id.to_owned(),
            is_move: lane.settled != earlier.settled || lane.open.is_some() || is_bound_elsewhere,
            to: earlier.settled,
            rows,
            accepted: is_known.then_some((rows - skipped - earlier.not_accepted_since).max(0)),
        })
    }

    /// Returns whether a watermark is at the start, but its newest change is not. The rewind to the start then has to
    /// be recorded although nothing moves: the next change begins elsewhere than the last one ended.
    async fn is_watermark_lost(&self, entity_id: &str, lane: &Lane) -> Result<bool, MoveError> {
        if lane.settled.is_some() || lane.open.is_some() {
            return Ok(false);
        }
        let newest = self.journal.earlier(entity_id, Some(DateTime::<Utc>::MAX_UTC)).await?;
        Ok(newest.settled.is_some())
    }

    /// Moves a watermark back.
    pub async fn rewind(&self, rewind: &Rewind, reason: Option<&str>) -> Result<(), MoveError> {
        let (lease, lane) = self.lease(&rewind.entity_id).await?;
        let done = async {
            let probed = self.ledger.probe_entity(&lane.progress(&rewind.entity_id)).await?;
            self.check_rewind(&rewind.entity_id, rewind.to.as_ref(), &lane, &probed)?;
            Ok(self.journal.rewind(&lease, rewind.to.as_ref(), &self.mapping, reason).await?)
        };
        let done = done.await;
        self.journal.release(&lease).await?;
        done
    }

    /// Accepts another system identifier of the cluster than the one recorded with the watermark: `pg_upgrade` changes
    /// it and continues the transaction ids. Returns `false` if nothing had to be accepted.
    ///
    /// Refuses a restored dump, in which other transactions wrote the journal's rows, and transaction ids that do not
    /// continue.
    pub async fn rebind(&self, entity_id: &str, reason: Option<&str>) -> Result<bool, MoveError> {
        let (lane, probed) = self.probed_lane(entity_id).await?;
        let Some(before) = lane.system_identifier else { return Ok(false) };
        if before == probed.system_identifier {
            // Any other mismatch is reported instead of success.
            self.check_watermark(entity_id, &lane, &probed)?;
            return Ok(false);
        }
        let start_over = format!("hint: elven-sync entity rewind {}", quoted_argument(entity_id));
        match self.journal.seal(entity_id).await? {
            ClusterMatch::Same => {}
            ClusterMatch::Restored => {
                return refused(format!(
                    "this cluster is not the upgraded cluster of the watermark of `{entity_id}`: the rows of \
                     elven_sync and of the ledger were written again here, as restoring a dump does; {start_over}"
                ));
            }
            ClusterMatch::Unknown => {
                return refused(format!(
                    "it is not known whether this cluster wrote the watermark of `{entity_id}`; {start_over}"
                ));
            }
        }
        // Apart from the identifier, everything has to fit.
        let same = Lane { system_identifier: Some(probed.system_identifier), ..lane };
        self.check_watermark(entity_id, &same, &probed)?;
        let (lease, _) = self.lease(entity_id).await?;
        let system_identifier = Some(probed.system_identifier);
        let rebound = Rebound { action: "rebind", system_identifier, reason, ..Rebound::default() };
        let done = self.journal.rebind(&lease, rebound).await;
        self.journal.release(&lease).await?;
        done?;
        Ok(true)
    }

    /// Refuses to move a watermark forward, which would skip the rows between.
    fn check_rewind(
        &self,
        entity_id: &str,
        to: Option<&Snapshot>,
        lane: &Lane,
        probed: &ProbeResult,
    ) -> Result<(), MoveError> {
        let Some(to) = to else { return Ok(()) };
        if let Err(misfit) = self.check_watermark(entity_id, lane, probed) {
            return refused(format!("only a rewind to the start is possible: {misfit}"));
        }
        if lane.settled.as_ref().is_none_or(|settled| !to.is_within(settled)) {
            return refused(format!(
                "the watermark of `{entity_id}` was further ahead at that time than now, and moving it there would \
                 skip rows; hint: elven-sync entity rewind {}, or --to with another time",
                quoted_argument(entity_id)
            ));
        }
        Ok(())
    }

    /// Returns the lane of an entity, and the result of a probe of the ledger with its watermark.
    pub(crate) async fn probed_lane(&self, entity_id: &str) -> Result<(Lane, ProbeResult), MoveError> {
        let lanes = self.journal.lanes(&[entity_id.to_owned()], &self.mapping).await?;
        let lane = lanes.get(entity_id).cloned().unwrap_or_default();
        let probed = self.ledger.probe_entity(&lane.progress(entity_id)).await?;
        Ok((lane, probed))
    }

    /// Leases an entity that no worker works on. Waits for a lease whose worker seems to have died.
    pub(crate) async fn lease(&self, entity_id: &str) -> Result<(Lease, Box<Lane>), MoveError> {
        let mut wait = self.lease_wait(Purpose::Run);
        let mut first_look = true;
        loop {
            match self.journal.take(entity_id).await? {
                Take::Taken(lease, lane) => return Ok((lease, lane)),
                Take::Held { seen, holder } if !wait.should_keep_waiting(&seen, holder) => {
                    if wait.is_locked() {
                        return refused(self.locked_by(NO_RUN, entity_id).await?);
                    }
                    return refused(format!(
                        "a worker holds the lease of `{entity_id}`; hint: `elven-sync entity pause {0}`, repeat the \
                         command after the run ends, then `elven-sync entity resume {0}`",
                        quoted_argument(entity_id)
                    ));
                }
                Take::Held { seen, holder } => {
                    if first_look && holder == Holder::Run {
                        tracing::warn!(
                            entity_id,
                            lease = seen,
                            "waiting until a lease that is no longer renewed expires, and the signatures made under it"
                        );
                    }
                    first_look = false;
                    self.wait_for(entity_id, holder).await?;
                }
            }
        }
    }
}
