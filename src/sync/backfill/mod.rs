//! Backfills: upload ranges of `captured_at` again, in slices, so that runs do not wait long.

mod lanes;
pub(super) mod superseding;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join;
use tokio::time::Instant;
use tracing::Instrument;

use super::lane::lease_wait::LEASE_POLL;
use super::lane_worker::Target;
use super::log::{self, run_span};
use super::report;
use super::worker::Unusable;
use super::{EntityReport, RunError, RunReport, Worker};
use crate::align::{self, NameMap, Names, Zones};
use crate::fault_point::{Step, around};
use crate::journal::{
    Asked, Backfill, BackfillLane, BackfillStatus, Begun, Entity, JournalError, MapHistory, RunStatus,
    refuse_standby,
};
use crate::ledger::{LedgerError, Range};
use crate::text::{known_names, quoted_argument};

/// Why a backfill cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    /// The request makes no sense; nothing was recorded.
    #[error("{0}")]
    Usage(String),
    /// The backfill is not possible now; the message has a hint.
    #[error("{0}")]
    Refused(String),
    /// The ledger, the sync tables or the configuration cannot be used.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl From<JournalError> for BackfillError {
    fn from(problem: JournalError) -> Self {
        Self::Run(problem.into())
    }
}

impl From<LedgerError> for BackfillError {
    fn from(problem: LedgerError) -> Self {
        Self::Run(problem.into())
    }
}

/// What a backfill did.
#[derive(Debug)]
pub struct BackfillReport {
    /// The row of the backfill, as it is now.
    pub backfill: Backfill,
    /// An earlier run began the backfill.
    pub resumed: bool,
    /// What this run did.
    pub run: RunReport,
}

/// A run on a backfill.
#[derive(Clone, Copy)]
struct BackfillRun {
    backfill_id: i64,
    run_id: i64,
    /// An earlier run began the backfill.
    resumed: bool,
}

impl Worker {
    /// Uploads a range again. An unfinished backfill of the same range is resumed.
    pub async fn backfill(&self, asked: &Asked) -> Result<BackfillReport, BackfillError> {
        let ranges = self.ranges(asked).await?;
        refuse_standby(&self.database).await?;
        let notes = self.notes_of_filters(&ranges).await?;
        let (backfill_id, is_new) = if let Some(backfill_id) = self.journal.unfinished(asked).await? {
            (backfill_id, false)
        } else {
            let ids: Vec<String> = ranges.iter().map(|range| range.entity_id.clone()).collect();
            self.refuse_other_journals(&ids).await?;
            let mut maps = MapHistory::read(&self.database, &ids).await?;
            let named = |range: &Range| with_shared_names(range.clone(), &maps.names(&range.entity_id));
            let rows = self.ledger.count_ranges(&ranges.iter().map(named).collect::<Vec<_>>()).await?;
            // Rows that cannot be counted are checked when they are read.
            let rows = rows.into_iter().map(Option::unwrap_or_default);
            let lanes: Vec<(Range, i64)> = ranges.into_iter().zip(rows).collect();
            around(Step::AskBackfill, self.journal.ask(asked, &lanes)).await?
        };
        let mut report = self.work_on(backfill_id, !is_new).await?;
        report.run.notes.extend(notes);
        Ok(report)
    }

    /// Names the accounts and currencies that were asked for and that no row of the ranges has.
    pub(in crate::sync) async fn notes_of_filters(
        &self,
        ranges: &[Range],
    ) -> Result<Vec<String>, BackfillError> {
        let absent = self.ledger.values_without_rows(ranges).await?;
        let present = |wanted: &str, present: &[String]| {
            let present: Vec<&str> = present.iter().map(String::as_str).collect();
            let present = known_names(wanted, &present);
            present
                .map_or_else(|| "the range has no row".to_owned(), |names| format!("the range has {names}"))
        };
        let accounts = absent.accounts.iter().map(|account| {
            let present = present(account, &absent.present_accounts);
            format!("no row of the range has account `{account}`; accounts are spelled as in the ledger; {present}")
        });
        let currencies = absent.currencies.iter().map(|currency| {
            let present = present(currency, &absent.present_currencies);
            format!(
                "no row of the range has currency `{currency}`; currencies are spelled as in the ledger; {present}"
            )
        });
        Ok(accounts.chain(currencies).collect())
    }

    /// Refuses entities whose journal belongs to another cluster or mapping. Nothing is recorded then, because an open
    /// backfill would keep `entity rebind --mapping` from accepting another mapping.
    pub(in crate::sync) async fn refuse_other_journals(
        &self,
        entity_ids: &[String],
    ) -> Result<(), BackfillError> {
        for (entity_id, lane) in self.journal.lanes(entity_ids, &self.mapping).await? {
            if let Err(mismatch) = self.check_journal(&entity_id, &lane) {
                return Err(BackfillError::Refused(mismatch.to_string()));
            }
        }
        Ok(())
    }

    /// Resumes a backfill.
    pub async fn resume_backfill(&self, backfill_id: i64) -> Result<BackfillReport, BackfillError> {
        refuse_standby(&self.database).await?;
        self.work_on(backfill_id, true).await
    }

    /// Returns the range of each requested entity, in its own time zone.
    pub(in crate::sync) async fn ranges(&self, asked: &Asked) -> Result<Vec<Range>, BackfillError> {
        let all = Entity::list(&self.database).await?;
        let known: Vec<&str> = all.iter().map(|entity| entity.entity_id.as_str()).collect();
        if let Some(missing) = asked.entities.iter().find(|id| !known.contains(&id.as_str())) {
            return Err(BackfillError::Usage(crate::journal::unknown_entity(missing, &known)));
        }
        let is_asked =
            |entity: &&Entity| asked.entities.is_empty() || asked.entities.contains(&entity.entity_id);
        let mut ranges = Vec::new();
        for entity in all.iter().filter(is_asked) {
            if entity.paused && !asked.entities.is_empty() {
                return Err(BackfillError::Refused(paused(&entity.entity_id)));
            }
            if !entity.paused {
                ranges.push(range(&self.settings.zones, entity, asked)?);
            }
        }
        if ranges.is_empty() {
            return Err(BackfillError::Refused(match all.first() {
                Some(entity) => format!(
                    "all entities are paused; hint: elven-sync entity resume {}",
                    quoted_argument(&entity.entity_id)
                ),
                None => "no entity to work on; hint: elven-sync entity add ID --timezone ZONE".to_owned(),
            }));
        }
        Ok(ranges)
    }

    async fn work_on(&self, backfill_id: i64, resumed: bool) -> Result<BackfillReport, BackfillError> {
        if let Some(remedy) = self.ledger.without_range_index().await? {
            tracing::warn!(
                "the ledger has no index for a range of captured_at, so each page reads or sorts many rows; hint: \
                 elven-sync attach --backfill-index, or {remedy}"
            );
        }
        let lanes = self.journal.backfill_lanes(backfill_id).await?;
        let left: Vec<BackfillLane> = lanes.into_iter().filter(|lane| !lane.is_finished).collect();
        let entities: BTreeMap<String, Entity> = Entity::list(&self.database)
            .await?
            .into_iter()
            .map(|entity| (entity.entity_id.clone(), entity))
            .collect();
        let usable: Vec<Entity> = left
            .iter()
            .filter_map(|lane| entities.get(&lane.range.entity_id))
            .filter(|entity| !entity.paused)
            .cloned()
            .collect();
        let (targets, unusable) = self.targets(&usable).map_err(RunError::from)?;
        let targets = self.with_names(&targets.iter().collect::<Vec<_>>()).await?;
        let (targets, mixed) = self.without_mixed_names(targets).await?;
        let unusable = unusable.into_iter().chain(mixed).collect();
        let run_id = self.begin_backfill(backfill_id).await?;
        let run = BackfillRun { backfill_id, run_id, resumed };
        let work = self.work_and_end(run, &targets, unusable, &left, &entities);
        work.instrument(run_span(run_id)).await
    }

    /// Does the work of a run on a backfill, and records how it ended.
    async fn work_and_end(
        &self,
        run: BackfillRun,
        targets: &[Target],
        unusable: Vec<Unusable>,
        left: &[BackfillLane],
        entities: &BTreeMap<String, Entity>,
    ) -> Result<BackfillReport, BackfillError> {
        let since = Instant::now();
        log::run_started("backfill", left.len());
        let BackfillRun { backfill_id, run_id, .. } = run;
        let (mut notes, mut reports) = (Vec::new(), Vec::new());
        let work = async {
            notes = self.compare_rules(run_id, targets).await;
            let failed = self.fail_lanes(run_id, unusable);
            let worked = self.backfill_lanes(run_id, backfill_id, left, targets, &mut reports);
            let (failed, worked) = join(failed, worked).await;
            reports.extend(failed?);
            worked?;
            let is_reported: BTreeSet<String> =
                reports.iter().map(|report| report.entity_id.clone()).collect();
            for lane in left.iter().filter(|lane| !is_reported.contains(&lane.range.entity_id)) {
                let entity_id = &lane.range.entity_id;
                let why = match entities.get(entity_id) {
                    Some(_) => paused(entity_id),
                    None => format!("entity `{entity_id}` is not registered any more"),
                };
                reports.push(EntityReport::failed(entity_id, why));
            }
            Ok(())
        };
        let worked = self.alive(run_id, work).await;
        reports.sort_by(|a, b| a.entity_id.cmp(&b.entity_id));
        let ended = self.end_backfill(run, worked.map(|()| reports.clone())).await;
        let mut report = ended.inspect_err(|_| log::failures_without_summary(&reports))?;
        log::run_finished(report.run.status, &report.run.counters, since, report.run.print.as_ref());
        report.run.notes = notes;
        Ok(report)
    }

    /// Begins a run on a backfill. Refuses if another worker works on it; if that worker writes no heartbeat, waits
    /// until its run has expired.
    async fn begin_backfill(&self, backfill_id: i64) -> Result<i64, BackfillError> {
        let mut first_seen = None;
        let tzdata = self.settings.zones.version();
        loop {
            let begun = around(Step::BeginRun, self.journal.begin_backfill(backfill_id, &tzdata)).await?;
            let refused = match begun {
                Begun::Run(run_id) => return Ok(run_id),
                Begun::Missing => {
                    format!("there is no backfill {backfill_id}; hint: elven-sync backfill list")
                }
                Begun::Ended(status) if status == "incomplete" => format!(
                    "backfill {backfill_id} is incomplete and cannot be resumed: all its rows were read, and some were \
                     set aside; hint: elven-sync errors list"
                ),
                Begun::Ended(status) => format!(
                    "backfill {backfill_id} is {status} and cannot be resumed; hint: elven-sync backfill --from START \
                     --to END"
                ),
                Begun::Busy { run_id, worker, alive_until } => {
                    let is_first = first_seen.is_none();
                    if *first_seen.get_or_insert(alive_until) != alive_until {
                        format!(
                            "run {run_id} of {worker} works on backfill {backfill_id}; hint: wait for it, or \
                             elven-sync backfill cancel {backfill_id}"
                        )
                    } else if *self.stop.borrow() {
                        format!(
                            "stopped while run {run_id} of {worker} may still work on backfill {backfill_id}"
                        )
                    } else {
                        if is_first {
                            tracing::warn!(
                                backfill_id,
                                run_id,
                                worker,
                                "waiting for a run that may have died"
                            );
                        }
                        tokio::time::sleep(LEASE_POLL).await;
                        continue;
                    }
                }
            };
            return Err(BackfillError::Refused(refused));
        }
    }

    /// Records how a backfill and its run ended.
    async fn end_backfill(
        &self,
        BackfillRun { backfill_id, run_id, resumed }: BackfillRun,
        worked: Result<Vec<EntityReport>, RunError>,
    ) -> Result<BackfillReport, BackfillError> {
        let (journal, failed) = (&self.journal, (BackfillStatus::Failed, RunStatus::Failed));
        let ended = match &worked {
            Ok(entities) => {
                let error = entities.iter().find_map(EntityReport::failure);
                self.status_of(backfill_id, entities).await.map(|status| (status, error))
            }
            Err(problem) => Ok((failed, Some(crate::text::chain(problem)))),
        };
        let ((of_backfill, status), error) = ended?;
        let finished = async {
            journal.finish_backfill(backfill_id, run_id, of_backfill, error.as_deref()).await?;
            journal.finish_run(run_id, status, error.as_deref()).await
        };
        let finished = around(Step::FinishRun, finished).await;
        let entities = match worked {
            Ok(entities) => entities,
            Err(problem) => {
                if let Err(second) = finished {
                    tracing::warn!(error = %second, "the end of the run could not be recorded");
                }
                return Err(problem.into());
            }
        };
        let counters = finished?;
        let Some(backfill) = Backfill::find(&self.database, backfill_id).await? else {
            return Err(BackfillError::Refused(format!("backfill {backfill_id} is gone")));
        };
        let run = RunReport {
            foreseen: None,
            run_id: Some(run_id),
            status,
            counters,
            entities,
            unregistered: Vec::new(),
            unregistered_unknown: None,
            entities_left_out: 0,
            notes: Vec::new(),
            print: self.print().await,
        };
        Ok(BackfillReport { backfill, resumed, run })
    }

    /// The status of a backfill and of its run, derived from how the lanes ended.
    async fn status_of(
        &self,
        backfill_id: i64,
        entities: &[EntityReport],
    ) -> Result<(BackfillStatus, RunStatus), BackfillError> {
        let Some(now) = Backfill::find(&self.database, backfill_id).await? else {
            return Err(BackfillError::Refused(format!("backfill {backfill_id} is gone")));
        };
        if now.status == "cancelled" {
            self.journal.close_cancelled(backfill_id).await?;
            return Ok((BackfillStatus::Cancelled, RunStatus::Incomplete));
        }
        // A signal that came after all entities were finished has stopped nothing.
        let mut status = report::status(entities, &[], *self.stop.borrow() && now.entities_left > 0);
        // Rows that earlier runs set aside count, too. While a range is unfinished, the status is not succeeded.
        if status == RunStatus::Succeeded && (now.rows_rejected > 0 || now.entities_left > 0) {
            status = RunStatus::Incomplete;
        }
        let of_backfill = match status {
            RunStatus::Succeeded => BackfillStatus::Succeeded,
            RunStatus::Incomplete => BackfillStatus::Incomplete,
            RunStatus::Failed => BackfillStatus::Failed,
            RunStatus::Interrupted => BackfillStatus::Interrupted,
        };
        Ok((of_backfill, status))
    }
}

/// Returns the range of an entity. A date means the first instant of that day in the zone of the entity.
fn range(zones: &Zones, entity: &Entity, asked: &Asked) -> Result<Range, BackfillError> {
    let zone = zones
        .get(&entity.timezone)
        .map_err(|problem| BackfillError::Refused(format!("entity `{}`: {problem}", entity.entity_id)))?;
    let instant =
        |text: &str| align::instant(text, &zone).map_err(|problem| BackfillError::Usage(problem.to_string()));
    let (from, to) = (instant(&asked.from)?, instant(&asked.to)?);
    if from >= to {
        return Err(BackfillError::Usage(format!(
            "--from {} is not before --to {} for entity `{}` in {}; hint: the end is not included, so one day is \
             --from 2024-03-01 --to 2024-03-02",
            asked.from, asked.to, entity.entity_id, entity.timezone
        )));
    }
    Ok(Range {
        entity_id: entity.entity_id.clone(),
        from,
        to,
        accounts: asked.accounts.clone(),
        currencies: asked.currencies.clone(),
    })
}

/// Adds the names of the ledger that have the same name at Elven as a wanted one: of two rows of one key the newer one
/// counts, whichever of the names it has.
pub(in crate::sync) fn with_shared_names(range: Range, names: &Names) -> Range {
    let all = |map: &NameMap, wanted: &[String]| {
        let mut all: Vec<String> = Vec::with_capacity(wanted.len());
        for name in wanted.iter().flat_map(|name| map.same_at_elven(name)) {
            if !all.iter().any(|known| known == name) {
                all.push(name.to_owned());
            }
        }
        all
    };
    let (accounts, currencies) =
        (all(&names.accounts, &range.accounts), all(&names.currencies, &range.currencies));
    Range { accounts, currencies, ..range }
}

fn paused(entity_id: &str) -> String {
    format!("entity `{entity_id}` is paused; hint: elven-sync entity resume {}", quoted_argument(entity_id))
}
