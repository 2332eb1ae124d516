//! The polls of a run: which entities have work.
//!
//! A run of the command line polls once. A run of `serve` polls again whenever it is asked to while lanes are at work.
//! Such a poll does what the next run would do for the entities that no lane of the run is working on: so a lane that
//! takes hours, or is stuck, delays no other entity.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;

use super::api_session::ApiSession;
use super::lane_worker::Target;
use super::worker::{Unusable, progress, warn_of};
use super::zone_rules::Seen;
use super::{EntityReport, RunError, Worker};
use crate::journal::{Entity, HeldName, Kind, Lane, Problem};
use crate::ledger::{Guard, ProbeResult, Unreadable};

/// The entities that lanes are working on, each with the session of its credential. An entity whose failure is being
/// recorded has no session.
pub(super) type AtWork = BTreeMap<String, Option<Arc<ApiSession>>>;

/// The registered entities, as a poll begins with them.
#[derive(Debug)]
pub(super) struct Roster {
    pub(super) entity_ids: Vec<String>,
    targets: Vec<Target>,
    unusable: Vec<Unusable>,
    guard: (Guard, Instant),
}

/// What a poll has seen.
#[derive(Debug)]
pub(super) struct Polled {
    /// The state of each entity, as it was before the probe.
    pub(super) lanes: BTreeMap<String, Lane>,
    pub(super) probed: ProbeResult,
    pub(super) held: Vec<HeldName>,
    /// The entities without pending rows.
    pub(super) idle: BTreeSet<String>,
}

/// The work that a poll has found.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) polled: Arc<Polled>,
    /// The entities with rows to send.
    pub(super) busy: Vec<Target>,
    /// The idle entities with held rows, which may be sent again.
    pub(super) idle_with_held: Vec<Target>,
    /// The entities that cannot be worked on. That is not recorded yet.
    pub(super) problems: Vec<Unusable>,
    /// The reports of entities that cannot be worked on. That is recorded.
    pub(super) failed: Vec<EntityReport>,
    /// What was seen of the zone rules of these targets, if it has to be compared.
    pub(super) rules: Option<(Vec<Target>, Seen)>,
}

/// The polls of a run.
#[derive(Debug)]
pub(super) struct Polls<'w> {
    worker: &'w Worker,
    run_id: i64,
    /// The entities of the run. Empty: all.
    only: &'w [String],
    /// The zones that this run has compared, by entity.
    compared: BTreeMap<String, String>,
    /// Why the last poll failed, if it did.
    problem: Option<String>,
}

impl Worker {
    /// Reads which entities there are, and the guard of the ledger.
    pub(super) async fn roster(&self, only: &[String], at_work: &AtWork) -> Result<Roster, RunError> {
        self.roster_of(self.select(only).await?, at_work).await
    }

    /// Does the same for entities that were selected.
    pub(super) async fn roster_of(
        &self,
        selected: Vec<Entity>,
        at_work: &AtWork,
    ) -> Result<Roster, RunError> {
        let (targets, unusable) = self.targets_beside(&selected, at_work.values().flatten())?;
        let guard = (self.ledger.guard().await?, Instant::now());
        warn_of(&guard.0);
        let entity_ids = selected.into_iter().map(|entity| entity.entity_id).collect();
        Ok(Roster { entity_ids, targets, unusable, guard })
    }
}

impl<'w> Polls<'w> {
    pub(super) fn new(worker: &'w Worker, run_id: i64, only: &'w [String]) -> Self {
        Self { worker, run_id, only, compared: BTreeMap::new(), problem: None }
    }

    /// Polls again. A poll that fails ends nothing: the next one tries again. `None`: it has failed, or the run ends.
    pub(super) async fn again(&mut self, at_work: &AtWork) -> Option<Due> {
        let worker = self.worker;
        let poll = async {
            let roster = worker.roster(self.only, at_work).await?;
            self.poll(roster, at_work).await
        };
        match worker.unless_stopped(Box::pin(poll)).await? {
            Ok(due) => {
                self.problem = None;
                worker.progress.note_polled_again();
                Some(due)
            }
            Err(problem) => {
                let problem = crate::text::chain(&problem);
                if self.problem.as_ref() != Some(&problem) {
                    tracing::warn!("the run could not poll again, and tries it in time: {problem}");
                }
                self.problem = Some(problem);
                None
            }
        }
    }

    /// Looks for work of the entities that no lane is working on, and records what was seen of them.
    pub(super) async fn poll(&mut self, roster: Roster, at_work: &AtWork) -> Result<Due, RunError> {
        let Self { worker, run_id, .. } = *self;
        let Roster { entity_ids, targets, unusable, guard } = roster;
        worker.note_observed(guard).await;
        let rules = self.see_new_rules(&targets).await;
        let is_free = |entity_id: &String| !at_work.contains_key(entity_id);
        let ids: Vec<String> = entity_ids.into_iter().filter(is_free).collect();
        let free: Vec<&Target> = targets.iter().filter(|target| is_free(&target.entity_id)).collect();
        let lanes = worker.journal.lanes(&ids, &worker.mapping).await?;
        let probed = worker.ledger.probe(&progress(&lanes)).await?;
        worker.progress.note_poll();
        // Before any lane starts: a pause that the API asked for applies to all lanes of the credential.
        for target in &free {
            if let Some(pause) = lanes.get(&target.entity_id).and_then(|lane| lane.not_before) {
                target.session.pause(pause);
            }
        }
        let unusable = unusable.into_iter().filter(|(entity_id, _)| is_free(entity_id));
        let problems = problems(&probed, unusable.collect());
        let (busy, idle) = worker.divided(&free, &lanes, &probed);
        // Recorded now, because it is true now: the other entities may take hours.
        let idle_ids: Vec<String> = idle.iter().map(|target| target.entity_id.clone()).collect();
        worker.note_poll(run_id, &lanes, &probed, &idle_ids).await?;
        let held = worker.journal.held_names().await?;
        let holds = |target: &&Target| held.iter().any(|name| name.entity_id == target.entity_id);
        let idle_with_held: Vec<&Target> = idle.into_iter().filter(holds).collect();
        let mut failed = Vec::new();
        let busy = worker.with_right_names(run_id, &busy, &mut failed).await?;
        let idle_with_held = worker.with_right_names(run_id, &idle_with_held, &mut failed).await?;
        let started: Vec<&Target> = busy.iter().chain(&idle_with_held).collect();
        worker.recall_sizes(&started).await?;
        worker.warn_of_shared_keys(&targets, &busy.iter().collect::<Vec<_>>()).await?;
        let idle = idle_ids.into_iter().collect();
        let polled = Arc::new(Polled { lanes, probed, held, idle });
        Ok(Due { polled, busy, idle_with_held, problems, failed, rules })
    }

    /// Reads the state of the zone rules of entities whose zones were not compared in this run yet. Before anything of
    /// them is sent: only rows uploaded with the earlier rules are counted.
    async fn see_new_rules(&mut self, targets: &[Target]) -> Option<(Vec<Target>, Seen)> {
        let is_new = |target: &&Target| {
            self.compared.get(&target.entity_id).map(String::as_str) != Some(target.rules.zone.name())
        };
        let new: Vec<Target> = targets.iter().filter(is_new).cloned().collect();
        let zone_of = |target: &Target| (target.entity_id.clone(), target.rules.zone.name().to_owned());
        self.compared.extend(new.iter().map(zone_of));
        let seen = self.worker.see_rules(self.run_id, &new).await?;
        Some((new, seen))
    }
}

impl Worker {
    /// Separates the entities with work from the idle ones. Entities that cannot be read are in neither part.
    fn divided<'t>(
        &self,
        targets: &[&'t Target],
        lanes: &BTreeMap<String, Lane>,
        probed: &ProbeResult,
    ) -> (Vec<&'t Target>, Vec<&'t Target>) {
        let has_work = |entity_id: &str| {
            let open = lanes.get(entity_id).is_some_and(|lane| lane.open.is_some());
            open || probed.new_rows(entity_id).has_new_rows
        };
        let readable =
            targets.iter().copied().filter(|target| !probed.unreadable.contains_key(&target.entity_id));
        readable.partition(|target| {
            // A watermark mismatch is a failure even if no row seems to be pending.
            let lane = lanes.get(&target.entity_id).cloned().unwrap_or_default();
            has_work(&target.entity_id) || self.check_watermark(&target.entity_id, &lane, probed).is_err()
        })
    }
}

/// Returns the entities that cannot be worked on. An entity that cannot be read and is unusable for another reason
/// reports that reason.
fn problems(probed: &ProbeResult, unusable: Vec<Unusable>) -> Vec<Unusable> {
    let is_usable = |entity_id: &String| unusable.iter().all(|(unusable, _)| unusable != entity_id);
    let unreadable =
        probed.unreadable.values().filter(|unreadable| is_usable(&unreadable.entity_id)).cloned();
    let unreadable: Vec<Unusable> = unreadable
        .map(|Unreadable { entity_id, message }| (entity_id, Problem::of_lane(Kind::Ledger, message)))
        .collect();
    unreadable.into_iter().chain(unusable).collect()
}
