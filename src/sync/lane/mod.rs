//! One lane: lease, pass, pages, batches, answers, watermark.

pub(super) mod exit;
pub(super) mod lane_run;
pub(super) mod lease_wait;

use std::sync::Arc;
use std::time::Instant;

use tracing::Instrument;

use self::exit::LaneExit;
use self::lane_run::LaneRun;
use super::batcher::ReadSource;
use super::concurrency::LanePermit;
use super::delivery::{Delivery, DeliveryOptions};
use super::invalid_start::InvalidStart;
use super::log::lane_span;
use super::messages;
use super::worker::Target;
use super::{Ended, EntityReport, RunError, Worker};
use crate::fault_point::{Step, after, around, before};
use crate::journal::{JournalError, Lane, Lease, NewPass, OpenWork, Problem, Purpose, Take, WorkKind};
use crate::ledger::{PassRead, ProbeResult};
use crate::watermark::Snapshot;

/// A page holds this many batches: large enough that a page costs little, small enough that memory
/// stays flat.
const BATCHES_PER_PAGE: usize = 4;

/// A pass and its target.
type Opened = (i64, Snapshot);

/// A place, the lease, the state that it was taken in, and the pass that was opened with it, if one was.
type Taken = (LanePermit, Lease, Box<Lane>, Option<Opened>);

impl Worker {
    /// Brings one entity up to date, or says why not.
    pub(in crate::sync) async fn lane(
        &self,
        run_id: i64,
        target: &Target,
        seen: &Lane,
        look: &ProbeResult,
    ) -> Result<EntityReport, RunError> {
        let mut report = EntityReport::new(&target.entity_id, Ended::Done);
        let mut lease_before = None;
        let start = self.invalid_start(&target.entity_id);
        // What has to be so for a pass is known from the look, as long as the entity is where it was then.
        let is_due = look.new_rows(&target.entity_id).has_new_rows
            && seen.open.is_none()
            && self.check_watermark(&target.entity_id, seen, look).is_ok();
        let opening = is_due.then(|| self.opening(run_id, seen));
        loop {
            let (place, lease, lane, opened) = match self.take_or_leave(&target.entity_id, opening).await? {
                Ok(taken) => taken,
                Err(ended) => return Ok(EntityReport { ended, ..report }),
            };
            if let Some(pause) = lane.not_before {
                target.session.pause(pause);
            }
            let lease = lease.after(lease_before.take());
            lease_before = Some(lease.clone());
            let (since, has_rows_set_aside, start) = (Instant::now(), lane.has_rows_set_aside, start.clone());
            let mut held = LaneRun {
                worker: self,
                run_id,
                target,
                since,
                place,
                has_rows_set_aside,
                start,
                lease,
                report,
            };
            let halted = held.drive(lane, opened, seen, look).await;
            let yielded = matches!(halted, Err(LaneExit::Yielded));
            report = held.end(halted).await?;
            if !yielded {
                return Ok(report);
            }
            // Now behind all who wait, and whichever worker comes first.
        }
    }

    /// A pass to be opened behind where the entity was seen.
    fn opening<'a>(&'a self, run_id: i64, seen: &'a Lane) -> NewPass<'a> {
        let relation = self.ledger.mapping().relation.oid;
        NewPass { run_id, seen, ledger_table: self.ledger.name(), relation, mapping: &self.mapping }
    }

    /// Records a problem that keeps an entity from being worked on at all.
    pub(in crate::sync) async fn fail_lane(
        &self,
        run_id: i64,
        entity_id: &str,
        problem: Problem,
    ) -> Result<EntityReport, RunError> {
        let record = async {
            if let Take::Taken(lease, _) = self.journal.take(entity_id).await? {
                self.journal.lane_failed(&lease, run_id, &problem, None).await?;
            }
            tracing::info!(kind = problem.kind.as_ref(), "lane failed");
            Ok::<_, JournalError>(())
        };
        record.instrument(lane_span(entity_id)).await?;
        Ok(EntityReport::failed(entity_id, problem.message))
    }

    /// Leases an entity, and takes one of the places of entities worked on at once.
    ///
    /// One whose holder keeps renewing is left to it; one that nobody renews is waited for, without a
    /// place, so that it delays nobody.
    async fn take_or_leave(
        &self,
        entity_id: &str,
        opening: Option<NewPass<'_>>,
    ) -> Result<Result<Taken, Ended>, RunError> {
        let mut wait = self.lease_wait();
        loop {
            let Some(place) = self.place().await else { return Ok(Err(Ended::Stopped)) };
            before(Step::TakeLease);
            if opening.is_some() {
                before(Step::OpenPass);
            }
            let (taken, opened) = self.journal.take_and_open(entity_id, opening, Purpose::Run).await?;
            let holder = match taken {
                Take::Taken(lease, lane) => {
                    if opened.is_some() {
                        after(Step::OpenPass);
                    }
                    after(Step::TakeLease);
                    tracing::info!(lease_epoch = lease.epoch, "lease taken");
                    return Ok(Ok((place, lease, lane, opened)));
                }
                Take::Held { seen, holder } if !wait.should_keep_waiting(&seen, holder) => {
                    return Ok(Err(Ended::Held));
                }
                Take::Held { holder, .. } => holder,
            };
            drop(place);
            self.wait_for(entity_id, holder).await?;
        }
    }

    /// One of the places of entities worked on at once. `None`: a signal came.
    pub(in crate::sync) async fn place(&self) -> Option<LanePermit> {
        self.places.take().await.filter(|_| !*self.stop.borrow())
    }

    /// Says whether a lane that got its place then has had its share, and others wait for theirs: it is given back, to be
    /// taken up again by whichever worker is free.
    pub(in crate::sync) fn has_had_its_share(&self, since: Instant) -> bool {
        // As long as leases go without renewal: much longer than giving one back and taking it takes.
        self.places.are_wanted() && since.elapsed() > self.renewed_every()
    }

    /// For a lane that begins to read.
    pub(in crate::sync) fn invalid_start(&self, entity_id: &str) -> Arc<InvalidStart> {
        Arc::new(InvalidStart::new(entity_id, self.settings.sync.on_invalid_start))
    }

    pub(in crate::sync) fn page_rows(&self) -> usize {
        self.settings.sync.batch_rows * BATCHES_PER_PAGE
    }
}

impl LaneRun<'_> {
    /// Records how the lane ended, unless that is done, and gives its lease back.
    pub(in crate::sync) async fn end(self, halted: Result<(), LaneExit>) -> Result<EntityReport, RunError> {
        let LaneRun { worker, run_id, lease, mut report, .. } = self;
        let journal = &worker.journal;
        let recorded = match halted {
            Ok(()) => Ok(Ended::Done),
            Err(LaneExit::Problem(problem, not_before)) => {
                tracing::info!(kind = problem.kind.as_ref(), "lane failed");
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
                let waits = messages::fenced(left);
                tracing::info!(left_ms = left.as_millis(), "lane fenced");
                around(Step::ReleaseLease, journal.release(&lease)).await.map(|()| Ended::Fenced(waits))
            }
            // What was sent may still arrive, so the lease is left to run out: until then, and until the
            // signature is too old, nobody else sends.
            Err(LaneExit::ShutdownDeadline) => return Ok(EntityReport { ended: Ended::Stopped, ..report }),
            Err(LaneExit::LeaseLost) => Err(JournalError::LeaseLost),
            Err(LaneExit::Infrastructure(problem)) => {
                // So that others can go on with it, should the database be well: the run may take long to end.
                if let Err(second) = journal.release(&lease).await {
                    tracing::warn!(
                        error = crate::text::chain(&second),
                        "the lease could not be given back; it expires by itself"
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

    /// Finishes an open pass if there is one, and makes a new one over what has come since. Then the entity is up to
    /// date, which is recorded, and the lease given back.
    async fn drive(
        &mut self,
        mut lane: Box<Lane>,
        opened: Option<Opened>,
        seen: &Lane,
        look: &ProbeResult,
    ) -> Result<(), LaneExit> {
        if opened.is_some() {
            return self.pass(&lane, opened, true).await.map(drop);
        }
        let fresh;
        let mut look = look;
        if (&lane.settled, &lane.open) != (&seen.settled, &seen.open) {
            // Somebody moved on since the look, which may be older than watermark and target now.
            fresh = self.worker.ledger.probe_entity(&lane.progress(&self.target.entity_id)).await?;
            look = &fresh;
        }
        let again;
        if lane.open.is_some() {
            self.worker.check_watermark(&self.target.entity_id, &lane, look)?;
            self.fill_mapping(&mut lane).await?;
            lane.settled = Some(self.pass(&lane, None, false).await?);
            lane.open = None;
            lane.cursor = None;
            again = self.worker.ledger.probe_entity(&lane.progress(&self.target.entity_id)).await?;
            look = &again;
        }
        self.worker.check_watermark(&self.target.entity_id, &lane, look)?;
        if look.new_rows(&self.target.entity_id).has_new_rows {
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

    /// Records how the ledger is read, where an earlier version has moved the watermark and did not.
    pub(in crate::sync) async fn fill_mapping(&self, lane: &mut Lane) -> Result<(), JournalError> {
        if lane.mapping.is_none() {
            self.worker.journal.fill_mapping(&self.lease, &self.worker.mapping).await?;
            lane.mapping = Some(self.worker.mapping.clone().into());
        }
        Ok(())
    }

    /// Goes through one pass to its end: the one that was just opened, or that is open, from where it stands, or a new
    /// one. Returns the new watermark. `is_last`: the lane ends with it.
    async fn pass(
        &mut self,
        lane: &Lane,
        opened: Option<Opened>,
        is_last: bool,
    ) -> Result<Snapshot, LaneExit> {
        let Worker { journal, ledger, .. } = self.worker;
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
        let reading =
            PassRead { entity_id, pass_id: Some(pass_id), settled, target: &target, after, until, page_rows };
        let source = ReadSource::Pass(ledger, reading);
        // With the last pass the place to read is given back when all is read.
        let place = if is_last { self.place.reading.take() } else { None };
        let manner = DeliveryOptions { place, ends: is_last, ..DeliveryOptions::default() };
        let delivery = Delivery::new(self, pass, lane.cursor.clone(), manner);
        let delivered = async {
            // Of a new one nobody has left anything.
            let after = if is_new { None } else { delivery.recover(&source).await? };
            delivery.go_on(source.read(after.clone(), None).await?, after).await
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
