//! One run over all selected entities.

use futures_util::StreamExt;
use futures_util::future::join;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;
use tracing::Instrument;

use super::lane_worker::Target;
use super::log::{self, lane_span, run_span};
use super::report::Unregistered;
use super::worker::{Unusable, progress, warn_of};
use super::{Ended, EntityReport, RunError, RunReport, Worker};
use crate::fault_point::{Step, around};
use crate::journal::{Entity, HeldName, JournalError, Kind, Problem, RunStatus, refuse_standby};
use crate::ledger::{Guard, Unreadable};

impl Worker {
    /// Brings entities up to date: the named ones, or all if none is named. Paused entities are left out.
    pub async fn run(&self, only: &[String]) -> Result<RunReport, RunError> {
        let selected = self.select(only).await?;
        let (targets, unusable) = self.targets(&selected)?;
        let guard = (self.ledger.guard().await?, Instant::now());
        warn_of(&guard.0);
        refuse_standby(&self.database).await?;
        let run_id =
            around(Step::BeginRun, self.journal.begin_run("incremental", &self.settings.zones.version()))
                .await?;
        let run = self.work_and_finish(run_id, only.is_empty(), &selected, targets, unusable, guard);
        run.instrument(run_span(run_id)).await
    }

    /// Does the work of a run that was begun, and records how it ended.
    async fn work_and_finish(
        &self,
        run_id: i64,
        whole_ledger: bool,
        selected: &[Entity],
        targets: Vec<Target>,
        unusable: Vec<Unusable>,
        guard: (Guard, Instant),
    ) -> Result<RunReport, RunError> {
        let since = Instant::now();
        log::run_started("incremental", selected.len());
        let (mut notes, mut entities) = (Vec::new(), Vec::new());
        let work = async {
            self.note_observed(guard).await;
            // Before anything is sent: only rows uploaded with the earlier rules are counted.
            let seen = self.see_rules(run_id, &targets).await;
            let compared = self.notes_of_rules(&targets, seen);
            let worked = self.work(run_id, whole_ledger, selected, &targets, &unusable, &mut entities);
            let (compared, worked) = join(compared, worked).await;
            notes = compared;
            if worked.is_ok() {
                self.note_clock(&targets).await;
            }
            worked
        };
        let worked = self.alive(run_id, work).await;
        let (status, error, unregistered) = match worked {
            Ok(unregistered) => {
                let status = unregistered.status(&entities, *self.stop.borrow());
                let error = entities.iter().find_map(EntityReport::failure);
                (status, error.or_else(|| unregistered.unknown.clone()), unregistered)
            }
            Err(problem) => {
                log::failures_without_summary(&entities);
                let message = crate::text::chain(&problem);
                // If the row of the run cannot be written, a later run marks it as interrupted.
                if let Err(second) = self.journal.finish_run(run_id, RunStatus::Failed, Some(&message)).await
                {
                    tracing::warn!(error = %second, "the end of the run could not be recorded");
                }
                return Err(problem);
            }
        };
        let finished = self.journal.finish_run(run_id, status, error.as_deref());
        let finished = around(Step::FinishRun, finished).await;
        let counters = finished.inspect_err(|_| log::failures_without_summary(&entities))?;
        log::run_finished(status, &counters, since);
        Ok(RunReport {
            run_id: Some(run_id),
            status,
            counters,
            entities,
            entities_left_out: unregistered.left_out.len(),
            unregistered: unregistered.entity_ids,
            unregistered_unknown: unregistered.unknown,
            notes,
            foreseen: None,
        })
    }

    /// Sends held rows again after the pass of their entity, if the API knows their names by now.
    async fn then_resend(
        &self,
        run_id: i64,
        target: &Target,
        held: &[HeldName],
        mut report: EntityReport,
    ) -> Result<EntityReport, RunError> {
        if report.ended == Ended::Done && held.iter().any(|name| name.entity_id == target.entity_id) {
            // On the heap only while it works.
            Box::pin(self.resend_held(run_id, target, held, &mut report)).await?;
        }
        Ok(report)
    }

    /// Tells each session which body size the API refused recently as too large.
    pub(super) async fn recall_sizes(&self, targets: &[&Target]) -> Result<(), JournalError> {
        if targets.is_empty() {
            return Ok(());
        }
        let entity_ids: Vec<String> = targets.iter().map(|target| target.entity_id.clone()).collect();
        let refused = self.journal.too_large(&entity_ids).await?;
        for target in targets {
            if let Some(&bytes) = refused.get(&target.entity_id) {
                target.session.too_large(bytes);
            }
        }
        Ok(())
    }

    async fn work(
        &self,
        run_id: i64,
        whole_ledger: bool,
        selected: &[Entity],
        targets: &[Target],
        unusable: &[Unusable],
        reports: &mut Vec<EntityReport>,
    ) -> Result<Unregistered, RunError> {
        let ids: Vec<String> = selected.iter().map(|entity| entity.entity_id.clone()).collect();
        let lanes = self.journal.lanes(&ids, &self.mapping).await?;
        let probed = self.ledger.probe(&progress(&lanes)).await?;
        self.progress.note_poll();
        // Before any lane starts: a pause that the API asked for applies to all lanes of the credential.
        for target in targets {
            if let Some(pause) = lanes.get(&target.entity_id).and_then(|lane| lane.not_before) {
                target.session.pause(pause);
            }
        }
        let unreadable = probed.unreadable.values().cloned();
        let unreadable = unreadable
            .map(|Unreadable { entity_id, message }| (entity_id, Problem::of_lane(Kind::Ledger, message)));
        // An entity that is unusable for another reason reports that reason.
        let unreadable = unreadable.filter(|(id, _)| unusable.iter().all(|(unusable, _)| unusable != id));
        let failing = self.fail_lanes(run_id, unreadable.chain(unusable.iter().cloned()).collect());
        let readable = targets.iter().filter(|target| !probed.unreadable.contains_key(&target.entity_id));
        let has_work = |entity_id: &str| {
            let open = lanes.get(entity_id).is_some_and(|lane| lane.open.is_some());
            open || probed.new_rows(entity_id).has_new_rows
        };
        let (busy, idle): (Vec<&Target>, Vec<&Target>) = readable.partition(|t| {
            // A watermark mismatch is a failure even if no row seems to be pending.
            let lane = lanes.get(&t.entity_id).cloned().unwrap_or_default();
            has_work(&t.entity_id) || self.check_watermark(&t.entity_id, &lane, &probed).is_err()
        });
        let idle: Vec<String> = idle.into_iter().map(|target| target.entity_id.clone()).collect();
        // Recorded now, because it is true now: the other entities may take hours.
        self.note_poll(run_id, &lanes, &probed, &idle).await?;
        let held = self.journal.held_names().await?;
        let holds = |target: &&Target| held.iter().any(|name| name.entity_id == target.entity_id);
        let idle_with_held: Vec<&Target> =
            targets.iter().filter(holds).filter(|target| idle.contains(&target.entity_id)).collect();
        let busy = self.with_right_names(run_id, &busy, reports).await?;
        let idle_with_held = self.with_right_names(run_id, &idle_with_held, reports).await?;
        let busy: Vec<&Target> = busy.iter().collect();
        let idle_with_held: Vec<&Target> = idle_with_held.iter().collect();
        self.recall_sizes(&busy.iter().chain(&idle_with_held).copied().collect::<Vec<_>>()).await?;
        self.warn_of_shared_keys(targets, &busy).await?;
        // The concurrency limits decide how many lanes work at once; the others wait for a permit.
        let worked = busy.iter().chain(&idle_with_held).map(async |target| {
            let seen = lanes.get(&target.entity_id).cloned().unwrap_or_default();
            let lane = async {
                let report = if idle.contains(&target.entity_id) {
                    EntityReport::idle(&target.entity_id)
                } else {
                    self.lane(run_id, target, &seen, &probed).await?
                };
                self.then_resend(run_id, target, &held, report).await
            };
            let worked = lane.instrument(lane_span(&target.entity_id)).await;
            self.progress.end(&target.entity_id);
            worked
        });
        let busy_ids: Vec<String> = busy.iter().map(|target| target.entity_id.clone()).collect();
        // At the same time, because no lane may wait for the problems of others.
        let working = self.counted_meanwhile(&busy_ids, collect(worked, reports));
        let (failed, worked) = join(failing, working).await;
        reports.extend(failed?);
        worked?;
        let is_reported: Vec<String> = reports.iter().map(|report| report.entity_id.clone()).collect();
        let idle_reports = idle.iter().filter(|entity_id| !is_reported.contains(entity_id));
        reports.extend(idle_reports.map(|entity_id| EntityReport::idle(entity_id)));
        self.count_pending(reports, &idle).await?;
        let unregistered =
            if whole_ledger { self.unregistered(&lanes).await? } else { Unregistered::default() };
        self.note_unregistered(run_id, &unregistered).await?;
        reports.sort_by(|a, b| a.entity_id.cmp(&b.entity_id));
        Ok(unregistered)
    }
}

/// Waits for all lanes, and collects the report of each as soon as it ends. Returns the first error of a lane that has
/// no report.
pub(super) async fn collect(
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
