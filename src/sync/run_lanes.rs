//! The lanes of a run: those that are at work, and the reports of those that have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::TimeDelta;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;
use tracing::Instrument;

use super::lane_worker::Target;
use super::log::{self, lane_span};
use super::poll::{AtWork, Due, Polled};
use super::worker::Unusable;
use super::zone_rules::Seen;
use super::{EntityReport, RunError, Worker};

/// The lanes of a run. Each entity has at most one that is at work.
pub(super) struct RunLanes<'w> {
    worker: &'w Worker,
    run_id: i64,
    working: FuturesUnordered<BoxFuture<'w, Outcome>>,
    at_work: AtWork,
    results: Results,
}

/// What the lanes of a run have done so far.
#[derive(Debug, Default)]
pub(super) struct Results {
    /// The report of each entity. The lanes that it had one after the other are added up; the last one says how it
    /// ended.
    pub(super) reports: BTreeMap<String, EntityReport>,
    /// The entities that had no pending rows when they were polled last.
    pub(super) idle: BTreeSet<String>,
    /// Notes for the operator about zone rules.
    pub(super) notes: Vec<String>,
    /// How far this machine's clock is ahead of the API's, and when that was seen, by credential.
    pub(super) clocks: BTreeMap<String, (TimeDelta, Instant)>,
    /// The errors of lanes that have no report, by entity.
    problems: BTreeMap<String, RunError>,
}

/// The end of something that was started.
#[derive(Debug)]
struct Outcome {
    /// The entities that are not worked on any more.
    entity_ids: Vec<String>,
    reports: Result<Vec<EntityReport>, RunError>,
    notes: Vec<String>,
}

impl<'w> RunLanes<'w> {
    pub(super) fn new(worker: &'w Worker, run_id: i64) -> Self {
        let (working, at_work) = (FuturesUnordered::new(), AtWork::new());
        Self { worker, run_id, working, at_work, results: Results::default() }
    }

    /// The entities that are worked on.
    pub(super) fn at_work(&self) -> &AtWork {
        &self.at_work
    }

    /// What the lanes have done so far.
    pub(super) fn results(&mut self) -> &mut Results {
        &mut self.results
    }

    /// Ends all lanes that are at work, and returns what the lanes have done.
    pub(super) fn into_results(self) -> Results {
        self.results
    }

    /// Starts what a poll has found. The concurrency limits decide how many lanes work at once; the others wait for a
    /// permit. Problems are recorded at the same time, because no lane may wait for the problems of others.
    pub(super) fn start(&mut self, due: Due) {
        let Due { polled, busy, idle_with_held, problems, failed, rules } = due;
        let results = &mut self.results;
        polled.idle.iter().for_each(|entity_id| results.note_idle(entity_id));
        for report in failed {
            results.report(report);
        }
        let others = busy.iter().map(|target| &target.entity_id).chain(problems.iter().map(|(id, _)| id));
        others.for_each(|entity_id| results.note_begin(entity_id));
        let (worker, run_id) = (self.worker, self.run_id);
        for target in busy.into_iter().chain(idle_with_held) {
            self.at_work.insert(target.entity_id.clone(), Some(target.session.clone()));
            self.working.push(lane(worker, run_id, target, polled.clone()).boxed());
        }
        if !problems.is_empty() {
            self.at_work.extend(problems.iter().map(|(entity_id, _)| (entity_id.clone(), None)));
            self.working.push(recorded(worker, run_id, problems).boxed());
        }
        if let Some((targets, seen)) = rules {
            self.working.push(compared(worker, targets, seen).boxed());
        }
    }

    /// Waits until a lane ends. Returns whether there was one.
    pub(super) async fn next(&mut self) -> bool {
        match self.working.next().await {
            Some(outcome) => {
                self.note(outcome);
                true
            }
            None => false,
        }
    }

    /// Waits for something else while the lanes work.
    pub(super) async fn meanwhile<T>(&mut self, other: impl Future<Output = T>) -> T {
        let mut other = std::pin::pin!(other);
        loop {
            tokio::select! {
                biased;
                done = &mut other => return done,
                Some(outcome) = self.working.next() => self.note(outcome),
            }
        }
    }

    fn note(&mut self, outcome: Outcome) {
        let Outcome { entity_ids, reports, notes } = outcome;
        for entity_id in &entity_ids {
            if let Some(session) = self.at_work.remove(entity_id).flatten()
                && let Some(clock) = session.clock()
            {
                self.results.clocks.insert(session.credential.name.clone(), clock);
            }
        }
        self.results.notes.extend(notes);
        match reports {
            Ok(reports) => reports.into_iter().for_each(|report| self.results.report(report)),
            Err(problem) => self.results.problems.extend(entity_ids.into_iter().next().zip(Some(problem))),
        }
    }
}

impl Results {
    /// Returns an error of a lane that has no report, if there is one.
    pub(super) fn problem(&mut self) -> Option<RunError> {
        self.problems.pop_first().map(|(_, problem)| problem)
    }

    /// Adds the report of a lane that has ended. The failure of an earlier lane of the entity is logged, because no
    /// summary will show it.
    fn report(&mut self, mut report: EntityReport) {
        if let Some(earlier) = self.reports.remove(&report.entity_id) {
            report.add(&earlier);
            log::failures_without_summary(&[earlier]);
        }
        self.reports.insert(report.entity_id.clone(), report);
    }

    /// Notes that an entity is worked on, perhaps again. The error of an earlier lane is logged, because the run does not
    /// fail with it any more.
    fn note_begin(&mut self, entity_id: &str) {
        self.idle.remove(entity_id);
        if let Some(problem) = self.problems.remove(entity_id) {
            log::failures_without_summary(&[EntityReport::failed(entity_id, crate::text::chain(&problem))]);
        }
    }

    /// Notes that an entity has no pending rows.
    fn note_idle(&mut self, entity_id: &str) {
        self.note_begin(entity_id);
        self.report(EntityReport::idle(entity_id));
        self.idle.insert(entity_id.to_owned());
    }
}

/// The lane of an entity.
async fn lane(worker: &Worker, run_id: i64, target: Target, polled: Arc<Polled>) -> Outcome {
    let entity_id = target.entity_id.clone();
    let lane = async {
        let report = if polled.idle.contains(&entity_id) {
            EntityReport::idle(&entity_id)
        } else {
            let seen = polled.lanes.get(&entity_id).cloned().unwrap_or_default();
            worker.lane(run_id, &target, &seen, &polled.probed).await?
        };
        let report = worker.then_resend(run_id, &target, &polled.held, report).await;
        worker.correct_proposed_maps(&target).await;
        report
    };
    let reports = lane.instrument(lane_span(&entity_id)).await.map(|report| vec![report]);
    worker.progress.end(&entity_id);
    Outcome { entity_ids: vec![entity_id], reports, notes: Vec::new() }
}

/// Records that entities cannot be worked on.
async fn recorded(worker: &Worker, run_id: i64, problems: Vec<Unusable>) -> Outcome {
    let entity_ids = problems.iter().map(|(entity_id, _)| entity_id.clone()).collect();
    let reports = worker.fail_lanes(run_id, problems).await;
    Outcome { entity_ids, reports, notes: Vec::new() }
}

/// Counts the rows that a change of zone rules affects.
async fn compared(worker: &Worker, targets: Vec<Target>, seen: Seen) -> Outcome {
    let notes = worker.notes_of_rules(&targets, Some(seen)).await;
    Outcome { entity_ids: Vec::new(), reports: Ok(Vec::new()), notes }
}
