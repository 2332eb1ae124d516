//! The lanes of a backfill, a slice at a time.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tracing::Instrument;

use super::super::batcher::ReadSource;
use super::super::delivery::{Delivery, DeliveryOptions};
use super::super::lane::exit::LaneExit;
use super::super::lane::lane_run::LaneRun;
use super::super::lane::lease_wait::{LEASE_POLL, LeaseAttempt};
use super::super::lane_worker::Target;
use super::super::log::lane_span;
use super::super::{Ended, EntityReport, RunError, Worker};
use super::superseding::SupersedingRows;
use super::with_shared_names;
use crate::fault_point::{Step, around};
use crate::journal::{BackfillLane, BackfillPosition, OpenWork, Purpose, WorkKind};
use crate::ledger::Range;
use crate::watermark::Cursor;

impl Worker {
    /// Works on all lanes. The concurrency limits decide how many work at once.
    pub(super) async fn backfill_lanes(
        &self,
        run_id: i64,
        backfill_id: i64,
        lanes: &[BackfillLane],
        targets: &[Target],
        reports: &mut Vec<EntityReport>,
    ) -> Result<(), RunError> {
        let lane_of = |target: &Target| lanes.iter().find(|lane| lane.range.entity_id == target.entity_id);
        for lane in targets.iter().filter_map(lane_of) {
            self.progress.expect(&lane.range.entity_id, lane.rows_total, lane.rows_read);
        }
        self.recall_sizes(&targets.iter().collect::<Vec<_>>()).await?;
        let worked = targets.iter().filter_map(|target| Some((target, lane_of(target)?))).map(
            async |(target, lane)| {
                let work = self.backfill_lane(run_id, backfill_id, target, lane);
                let mut report = work.instrument(lane_span(&target.entity_id)).await?;
                self.progress.end(&target.entity_id);
                if report.ended != Ended::Done {
                    let left = lane.rows_total - lane.rows_read - report.rows_read;
                    report.rows_pending = Some(left.max(0));
                }
                Ok(report)
            },
        );
        collect(worked, reports).await
    }

    /// Works on one entity, one slice at a time, until its range is processed.
    async fn backfill_lane(
        &self,
        run_id: i64,
        backfill_id: i64,
        target: &Target,
        lane: &BackfillLane,
    ) -> Result<EntityReport, RunError> {
        let range = Arc::new(with_shared_names(lane.range.clone(), &target.rules.names));
        let entity_id = &target.entity_id;
        let mut report = EntityReport::new(entity_id, Ended::Done);
        let mut lease_before = None;
        let start = self.invalid_start(entity_id);
        loop {
            let taken = match self.take_slice(run_id, backfill_id, target).await? {
                LeaseAttempt::Taken(taken) => taken,
                LeaseAttempt::Left(ended) => return Ok(EntityReport { ended, ..report }),
            };
            let position = self.journal.backfill_position(backfill_id, run_id, entity_id).await?;
            let (mut held, mut state, _) =
                LaneRun::begin(self, run_id, target, taken, &mut lease_before, start.clone(), report);
            let fits = self.check_journal(entity_id, &state);
            let halted = match (position, fits) {
                // The backfill was cancelled.
                (BackfillPosition::Ended, _) => Err(LaneExit::Shutdown),
                (BackfillPosition::At(_), Err(mismatch)) => Err(mismatch.into()),
                (BackfillPosition::At(cursor), Ok(())) => match held.fill_mapping(&mut state).await {
                    Ok(()) => self.slice(&mut held, backfill_id, &range, cursor).await,
                    Err(problem) => Err(problem.into()),
                },
            };
            let yielded = matches!(halted, Err(LaneExit::Yielded));
            let fenced = if let Err(LaneExit::Fenced(left)) = halted { Some(left) } else { None };
            report = held.end(halted).await?;
            if let Some(left) = fenced {
                // Waits without lease and permit, then continues with the next slice.
                self.unless_stopped(tokio::time::sleep(left)).await;
                continue;
            }
            // A lost lease is taken again, and its batches are recovered.
            if !yielded {
                if report.ended != Ended::Held {
                    return Ok(report);
                }
                tokio::time::sleep(LEASE_POLL).await;
            }
        }
    }

    /// Takes a permit and the lease of an entity for a slice. Waits, without the permit, while another worker has the
    /// lease.
    async fn take_slice(
        &self,
        run_id: i64,
        backfill_id: i64,
        target: &Target,
    ) -> Result<LeaseAttempt, RunError> {
        let entity_id = &target.entity_id;
        let mut wait = self.lease_wait(Purpose::Backfill);
        loop {
            match self.take_lease(run_id, target, None, &mut wait).await? {
                LeaseAttempt::Left(Ended::Held) => {}
                ended_or_taken => return Ok(ended_or_taken),
            }
            if self.journal.backfill_position(backfill_id, run_id, entity_id).await?
                == BackfillPosition::Ended
            {
                return Ok(LeaseAttempt::Left(Ended::Stopped));
            }
            tokio::time::sleep(LEASE_POLL).await;
        }
    }

    /// Works on the range for one slice. Reads rows again that were read under an earlier lease, because a run may have
    /// sent newer versions of them meanwhile.
    async fn slice(
        &self,
        lane_run: &mut LaneRun<'_>,
        backfill_id: i64,
        range: &Arc<Range>,
        cursor: Option<Cursor>,
    ) -> Result<(), LaneExit> {
        let open = OpenWork::new(lane_run.lease.clone(), WorkKind::Backfill(backfill_id));
        let source = ReadSource::Range(&self.ledger, range.clone(), self.page_rows());
        let rivals = Arc::new(SupersedingRows::new(self.clone(), range.clone()));
        let options = DeliveryOptions { rivals: Some(rivals), ..DeliveryOptions::default() };
        let delivery = Delivery::new(lane_run, open.clone(), cursor, options);
        tracing::info!(backfill_id, "slice started");
        let delivered = async {
            let after = delivery.recover(&source).await?;
            delivery.read_and_send(source.read(after.clone(), None).await?, after).await
        };
        let delivered = delivered.await;
        delivery.report_to(&mut lane_run.report);
        lane_run.has_rows_set_aside = delivery.has_set_aside();
        delivered?;
        let finished = self.journal.finish_backfill_lane(&open);
        around(Step::FinishLane, around(Step::ReleaseLease, finished)).await?;
        tracing::info!(backfill_id, "range finished");
        Ok(())
    }
}

/// Waits for all lanes, and collects the report of each as soon as it ends. Returns the first error of a lane that has
/// no report.
async fn collect(
    lanes: impl Iterator<Item = impl Future<Output = Result<EntityReport, RunError>>>,
    reports: &mut Vec<EntityReport>,
) -> Result<(), RunError> {
    let mut lanes: FuturesUnordered<_> = lanes.collect();
    let mut first = Ok(());
    while let Some(worked) = lanes.next().await {
        match worked {
            Ok(report) => reports.push(report),
            Err(problem) => first = first.and(Err(problem)),
        }
    }
    first
}
