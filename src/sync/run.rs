//! One run over all selected entities.

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::Instrument;

use super::lane_worker::Target;
use super::log::{self, run_span};
use super::poll::{AtWork, Polls, Roster};
use super::report::Unregistered;
use super::run_lanes::{Results, RunLanes};
use super::worker::record_failed_run;
use super::{Ended, EntityReport, RunError, RunReport, Worker};
use crate::fault_point::{Step, around};
use crate::journal::{HeldName, JournalError, Print, PrintLine, RunStatus, refuse_standby};

/// A run that was begun.
#[derive(Clone, Copy)]
struct BegunRun<'a> {
    run_id: i64,
    /// The entities that were asked for. Empty: all.
    only: &'a [String],
    /// Asks the run to poll again.
    asked_to_poll: &'a Notify,
}

impl Worker {
    /// Brings entities up to date: the named ones, or all if none is named. Paused entities are left out.
    pub async fn run(&self, only: &[String]) -> Result<RunReport, RunError> {
        self.run_and_poll(only, &Notify::new()).await
    }

    /// Does the same, and polls again whenever it is asked to while lanes are at work: then it also begins lanes of
    /// entities that got new rows or were registered meanwhile, and of entities whose lanes have ended before.
    pub async fn run_and_poll(&self, only: &[String], asked_to_poll: &Notify) -> Result<RunReport, RunError> {
        let tzdata = self.settings.zones.version();
        // A name that was mistyped is a mistake of the command, and no failure of the sync.
        let selected = self.select(only).await?;
        let first = match self.roster_of(selected, &AtWork::new()).await {
            Ok(first) => first,
            Err(problem) => {
                record_failed_run(&self.journal, &tzdata, &problem).await;
                return Err(problem);
            }
        };
        refuse_standby(&self.database).await?;
        self.journal.adopt().await?;
        let run_id = around(Step::BeginRun, self.journal.begin_run("incremental", &tzdata)).await?;
        let run = self.work_and_finish(BegunRun { run_id, only, asked_to_poll }, first);
        run.instrument(run_span(run_id)).await
    }

    /// Does the work of a run that was begun, and records how it ended.
    async fn work_and_finish(&self, run: BegunRun<'_>, first: Roster) -> Result<RunReport, RunError> {
        let (run_id, since) = (run.run_id, Instant::now());
        log::run_started("incremental", first.entity_ids.len());
        let mut lanes = RunLanes::new(self, run_id);
        let worked = self.alive(run_id, self.work(run, first, &mut lanes)).await;
        let Results { reports, notes, .. } = lanes.into_results();
        let entities: Vec<EntityReport> = reports.into_values().collect();
        let (status, error, unregistered) = match worked {
            Ok(unregistered) => {
                let status = unregistered.status(&entities, *self.interrupted.borrow());
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
        let print = self.print().await;
        log::run_finished(status, &counters, since, print.as_ref());
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
            print,
        })
    }

    /// Returns the latest print of the journal, and makes one if the last one is older than an hour. A run does not fail
    /// because of it: the next one tries again.
    pub(super) async fn print(&self) -> Option<PrintLine> {
        let print = Print::latest(&self.database).await;
        let print = print.inspect_err(|problem| {
            let error = crate::text::chain(problem);
            tracing::warn!(error, "no print of the journal could be made; the next run tries it again");
        });
        print.ok().flatten()
    }

    /// Sends held rows again after the pass of their entity, if the API knows their names by now.
    pub(super) async fn then_resend(
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

    /// Polls, and works until no lane of the run is at work. Polls again whenever it is asked to meanwhile.
    async fn work<'w>(
        &'w self,
        run: BegunRun<'w>,
        first: Roster,
        lanes: &mut RunLanes<'w>,
    ) -> Result<Unregistered, RunError> {
        let mut polls = Polls::new(self, run.run_id, run.only);
        let due = polls.poll(first, lanes.at_work()).await?;
        let (polled, busy) = (due.polled.clone(), due.busy.iter());
        let busy: Vec<String> = busy.map(|target| target.entity_id.clone()).collect();
        lanes.start(due);
        let working = async {
            loop {
                tokio::select! {
                    biased;
                    ended = lanes.next() => if !ended { break },
                    () = run.asked_to_poll.notified() => {
                        let at_work = lanes.at_work().clone();
                        if let Some(due) = lanes.meanwhile(polls.again(&at_work)).await {
                            lanes.start(due);
                        }
                    }
                }
            }
        };
        self.counted_meanwhile(&busy, working).await;
        let results = lanes.results();
        if let Some(problem) = results.problem() {
            return Err(problem);
        }
        self.count_pending(&mut results.reports, &results.idle).await?;
        let unregistered = if run.only.is_empty() {
            self.unregistered(&polled.lanes).await?
        } else {
            Unregistered::default()
        };
        self.note_unregistered(run.run_id, &unregistered).await?;
        self.note_clock(results.clocks.values().copied()).await;
        Ok(unregistered)
    }
}
