//! A lane: takes the lease of an entity, finishes its open pass, opens and closes a new one, and releases the lease.

pub(super) mod exit;
pub(super) mod lane_run;
pub(super) mod lease_wait;

use std::sync::Arc;

use tokio::time::Instant;

use self::exit::LaneExit;
use self::lane_run::LaneRun;
use self::lease_wait::LeaseAttempt;
use super::api_session::ApiSession;
use super::batcher::ReadSource;
use super::concurrency::LanePermit;
use super::delivery::{Delivery, DeliveryOptions};
use super::invalid_start::InvalidStart;
use super::lane_worker::{LaneWorker, Target};
use super::log::lane_span;
use super::messages;
use super::{Ended, EntityReport, RunError};
use crate::fault_point::{Step, around};
use crate::journal::{JournalError, Kind, Lane, NewPass, OpenWork, Opened, Problem, Purpose, WorkKind};
use crate::ledger::{PassRead, ProbeResult};
use crate::watermark::Snapshot;

/// Batches per page: enough that the query of a page costs little for each row, and few enough that memory stays flat.
const BATCHES_PER_PAGE: usize = 4;

impl LaneWorker {
    /// Brings one entity up to date, or reports why it is not. `seen`: the state of the lane for which the probe was
    /// made.
    ///
    /// # Errors
    /// Journal or ledger cannot be used.
    pub async fn lane(
        &self,
        run_id: i64,
        target: &Target,
        seen: &Lane,
        probe: &ProbeResult,
    ) -> Result<EntityReport, RunError> {
        let mut report = EntityReport::new(&target.entity_id, Ended::Done);
        let mut lease_before = None;
        let start = self.invalid_start(&target.entity_id);
        // The probe has shown that a pass is due. That is true as long as the lane has not changed since the probe.
        let is_due = probe.new_rows(&target.entity_id).has_new_rows
            && seen.open.is_none()
            && self.check_watermark(&target.entity_id, seen, probe).is_ok();
        let opening = is_due.then(|| self.opening(run_id, seen));
        loop {
            let mut wait = self.lease_wait(Purpose::Run);
            let taken = match self.take_lease(run_id, target, opening, &mut wait).await? {
                LeaseAttempt::Taken(taken) => taken,
                LeaseAttempt::Left(ended) => return Ok(EntityReport { ended, ..report }),
            };
            let (mut lane_run, lane, opened) =
                LaneRun::begin(self, run_id, target, taken, &mut lease_before, start.clone(), report);
            // On the heap only while it works: the futures of all lanes exist from the start of the run.
            let halted = Box::pin(lane_run.drive(lane, opened, seen, probe)).await;
            let yielded = matches!(halted, Err(LaneExit::Yielded));
            report = lane_run.end(halted).await?;
            if !yielded {
                return Ok(report);
            }
            // The lane now waits for a permit behind all other lanes, and any worker may take its lease meanwhile.
        }
    }

    /// Returns the parameters of a pass that begins after the watermark of `seen`.
    fn opening<'a>(&'a self, run_id: i64, seen: &'a Lane) -> NewPass<'a> {
        let relation = self.ledger.mapping().relation.oid;
        NewPass { run_id, seen, ledger_table: self.ledger.name(), relation, mapping: &self.mapping }
    }

    /// Records problems that keep entities from being worked on at all.
    pub(in crate::sync) async fn fail_lanes(
        &self,
        run_id: i64,
        problems: Vec<(String, Problem)>,
    ) -> Result<Vec<EntityReport>, RunError> {
        self.journal.lanes_failed(run_id, &problems).await?;
        let failed = |(entity_id, problem): (String, Problem)| {
            lane_span(&entity_id).in_scope(|| tracing::info!(kind = problem.kind.as_ref(), "entity failed"));
            EntityReport::failed(&entity_id, problem.message)
        };
        Ok(problems.into_iter().map(failed).collect())
    }

    /// Returns the message about the sessions that have locked rows of an entity.
    pub(crate) async fn locked_by(&self, run_id: i64, entity_id: &str) -> Result<String, JournalError> {
        Ok(messages::locked(entity_id, &self.journal.blockers(entity_id, run_id).await?))
    }

    /// Records that the lane of an entity cannot go on because other sessions have locked its rows. `is_certain`: also
    /// if no such session is found. Otherwise returns `None` then.
    pub(in crate::sync) async fn fail_locked(
        &self,
        run_id: i64,
        entity_id: &str,
        is_certain: bool,
    ) -> Result<Option<Ended>, JournalError> {
        let blockers = self.journal.blockers(entity_id, run_id).await?;
        if blockers.is_empty() && !is_certain {
            return Ok(None);
        }
        let problem = Problem::of_lane(Kind::Unavailable, messages::locked(entity_id, &blockers));
        tracing::info!(kind = problem.kind.as_ref(), "entity failed");
        self.journal.lanes_failed(run_id, &[(entity_id.to_owned(), problem.clone())]).await?;
        Ok(Some(Ended::Failed(problem.message)))
    }

    /// Waits for the permit of a lane. During a pause that the API asked for, no lane of the credential begins; a lane
    /// that begins would only wait, with its rows in memory. `None`: a signal asked the process to stop.
    pub(in crate::sync) async fn lane_permit(&self, session: &ApiSession) -> Option<LanePermit> {
        let share = self.limits.of(&session.credential.name);
        let wait_max = self.settings.retry.max;
        loop {
            // A lane begins in a longer pause, to record that it is throttled.
            let _ = self.unless_stopped(session.wait_for_pause(wait_max)).await?;
            let permit = share.lane().await.filter(|_| !*self.stop.borrow())?;
            let left = session.pause_left();
            if left.is_zero() || left > wait_max {
                return Some(permit);
            }
        }
    }

    /// Returns the check of the first rows, for a lane that begins to read.
    pub(in crate::sync) fn invalid_start(&self, entity_id: &str) -> Arc<InvalidStart> {
        Arc::new(InvalidStart::new(entity_id, self.settings.sync.on_invalid_start))
    }

    pub(in crate::sync) fn page_rows(&self) -> usize {
        self.settings.sync.batch_rows * BATCHES_PER_PAGE
    }
}

impl LaneRun<'_> {
    /// Records how the lane ended, unless that is recorded already, and releases its lease.
    pub(in crate::sync) async fn end(self, halted: Result<(), LaneExit>) -> Result<EntityReport, RunError> {
        let LaneRun { worker, run_id, lease, mut report, .. } = self;
        let journal = &worker.journal;
        let recorded = match halted {
            Ok(()) => Ok(Ended::Done),
            Err(LaneExit::Problem(problem, not_before)) => {
                tracing::info!(kind = problem.kind.as_ref(), "entity failed");
                let failed = journal.lane_failed(&lease, run_id, &problem, not_before);
                around(Step::Fail, around(Step::ReleaseLease, failed))
                    .await
                    .map(|()| Ended::Failed(problem.message))
            }
            Err(exit @ (LaneExit::Shutdown | LaneExit::Yielded)) => {
                let ended = if matches!(exit, LaneExit::Shutdown) { Ended::Stopped } else { Ended::Done };
                around(Step::ReleaseLease, journal.release(&lease)).await.map(|()| ended)
            }
            Err(LaneExit::Fenced(left)) => {
                let message = messages::fenced(left);
                tracing::info!(left_ms = left.as_millis(), "lane fenced");
                around(Step::ReleaseLease, journal.release(&lease)).await.map(|()| Ended::Fenced(message))
            }
            // The request may still arrive, so the lease is not released, but expires. No other worker sends until
            // then, and until the signature of the request is too old.
            Err(LaneExit::ShutdownDeadline) => return Ok(EntityReport { ended: Ended::Stopped, ..report }),
            Err(LaneExit::LeaseLost) => Err(JournalError::LeaseLost),
            Err(LaneExit::Infrastructure(problem)) => {
                if let RunError::Journal(problem) = &problem
                    && problem.may_be_locked()
                    && let Some(ended) =
                        worker.fail_locked(run_id, &lease.entity_id, problem.is_locked()).await?
                {
                    // To release the lease would wait for the same lock, so the lease expires.
                    return Ok(EntityReport { ended, rows_pending: None, ..report });
                }
                // If the database is available again, another worker can continue. This run may still take long.
                if let Err(release_problem) = journal.release(&lease).await {
                    tracing::warn!(
                        error = crate::text::chain(&release_problem),
                        "the lease could not be released; it expires by itself"
                    );
                }
                return Err(problem);
            }
        };
        report.ended = match recorded {
            Err(JournalError::LeaseLost) => {
                tracing::warn!("the lease was lost; another worker continues");
                Ended::Held
            }
            ended => ended?,
        };
        Ok(report)
    }

    /// Finishes the open pass, if there is one, and then a new pass if there are new rows. Records that the entity is
    /// up to date, and releases the lease.
    async fn drive(
        &mut self,
        mut lane: Box<Lane>,
        opened: Option<Opened>,
        seen: &Lane,
        probe: &ProbeResult,
    ) -> Result<(), LaneExit> {
        if opened.is_some() {
            return self.pass(&lane, opened, true).await.map(drop);
        }
        let fresh_probe;
        let mut probe = probe;
        if (&lane.settled, &lane.open) != (&seen.settled, &seen.open) {
            // Another worker changed the lane after the probe, so the probe may be older than watermark and target.
            fresh_probe = self.worker.ledger.probe_entity(&lane.progress(&self.target.entity_id)).await?;
            probe = &fresh_probe;
        }
        let next_probe;
        if lane.open.is_some() {
            self.worker.check_watermark(&self.target.entity_id, &lane, probe)?;
            self.fill_mapping(&mut lane).await?;
            lane.settled = Some(self.pass(&lane, None, false).await?);
            lane.open = None;
            lane.cursor = None;
            next_probe = self.worker.ledger.probe_entity(&lane.progress(&self.target.entity_id)).await?;
            probe = &next_probe;
        }
        self.worker.check_watermark(&self.target.entity_id, &lane, probe)?;
        if probe.new_rows(&self.target.entity_id).has_new_rows {
            self.pass(&lane, None, true).await?;
        } else {
            if lane.settled.is_some() {
                self.fill_mapping(&mut lane).await?;
            }
            let succeeded = self.worker.journal.lane_succeeded(&self.lease);
            around(Step::Succeed, around(Step::ReleaseLease, succeeded)).await?;
        }
        Ok(())
    }

    /// Records the mapping, if an earlier version of the program moved the watermark without recording it.
    pub(in crate::sync) async fn fill_mapping(&self, lane: &mut Lane) -> Result<(), JournalError> {
        if lane.mapping.is_none() {
            self.worker.journal.fill_mapping(&self.lease, &self.worker.mapping).await?;
            lane.mapping = Some(self.worker.mapping.clone().into());
        }
        Ok(())
    }

    /// Processes one pass to its end: the pass that was just opened, or the open one from its cursor, or a new one.
    /// Returns the new watermark. `is_last`: the lane ends with this pass.
    async fn pass(
        &mut self,
        lane: &Lane,
        opened: Option<Opened>,
        is_last: bool,
    ) -> Result<Snapshot, LaneExit> {
        let LaneWorker { journal, ledger, .. } = self.worker;
        let settled = lane.settled.as_ref();
        let is_new = lane.open.is_none();
        let since = Instant::now();
        let (pass_id, target) = if let Some(open) = opened.or_else(|| lane.open.clone()) {
            open
        } else {
            let opening = self.worker.opening(self.run_id, lane);
            around(Step::OpenPass, journal.open_pass(&self.lease, opening)).await?
        };
        if is_new {
            tracing::info!(pass_id, "pass opened");
        } else {
            tracing::info!(pass_id, "open pass resumed");
        }
        let pass = OpenWork::new(self.lease.clone(), WorkKind::Pass(pass_id));
        let (entity_id, page_rows) = (&self.target.entity_id, self.worker.page_rows());
        let (after, until) = (None, None);
        let pass_read =
            PassRead { entity_id, pass_id: Some(pass_id), settled, target: &target, after, until, page_rows };
        let source = ReadSource::Pass(&**ledger, pass_read);
        let options = DeliveryOptions { ends: is_last, ..DeliveryOptions::default() };
        let delivery = Delivery::new(self, pass, lane.cursor.clone(), options);
        let delivered = async {
            // A new pass has nothing to recover.
            let after = if is_new { None } else { delivery.recover(&source).await? };
            delivery.read_and_send(source.read(after.clone(), None).await?, after).await
        };
        let delivered = delivered.await;
        delivery.report_to(&mut self.report);
        self.has_rows_set_aside = delivery.has_set_aside();
        delivered?;
        delivery.close().await?;
        let elapsed_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(pass_id, elapsed_ms, "pass closed");
        Ok(target)
    }
}
