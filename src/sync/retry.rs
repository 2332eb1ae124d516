//! `errors retry`: sends rows again that were set aside.

mod entity;
mod held;
mod resend;

use std::collections::BTreeMap;

use tokio::time::Instant;
use tracing::Instrument;

pub use self::entity::Retried;
use self::entity::{ELSEWHERE, EntityRetry, RetryProgress};
use super::lane::exit::LaneExit;
use super::lane::lane_run::LaneRun;
use super::lane_worker::Target;
use super::log::{self, lane_span, run_span};
use super::worker::Unusable;
use super::{RunError, Worker};
use crate::fault_point::{Step, around};
use crate::journal::{Entity, JournalError, Lane, Lease, RowError, RunStatus, SetAside, refuse_standby};
use crate::ledger::Row;

/// How many pages of errors of an entity are kept in memory.
const PAGES_AT_ONCE: usize = 4;

impl Worker {
    /// Reads the rows of these errors again, sends them in batches, and resolves each error or counts it once more. A
    /// row with a newer rival is not sent, because the later upload would count. `report` is told the outcome of each
    /// error as soon as it is known. Returns whether all errors are resolved.
    pub async fn retry(
        &self,
        set_aside: Vec<SetAside>,
        report: &mut (dyn FnMut(Retried) + Send),
    ) -> Result<bool, RunError> {
        let entities = Entity::list(&self.database).await?;
        let concerned = set_aside.into_iter().map(|errors| (errors.entity_id.clone(), errors));
        let concerned: BTreeMap<String, SetAside> = concerned.collect();
        let entities: Vec<Entity> =
            entities.into_iter().filter(|entity| concerned.contains_key(&entity.entity_id)).collect();
        let (targets, unusable) = self.targets(&entities)?;
        refuse_standby(&self.database).await?;
        let targets = self.with_names(&targets.iter().collect::<Vec<_>>()).await?;
        let (targets, mixed) = self.without_mixed_names(targets).await?;
        let unusable: Vec<Unusable> = unusable.into_iter().chain(mixed).collect();
        let run_id =
            around(Step::BeginRun, self.journal.begin_run("retry", &self.settings.zones.version())).await?;
        let retry = self.retry_and_finish(run_id, &targets, &unusable, concerned, report);
        retry.instrument(run_span(run_id)).await
    }

    /// Adds the link of a slice to the chain of the entity, if all its requests are answered. What a slice leaves without
    /// a link, the next one covers.
    async fn link_slice(&self, lease: &Lease, halted: &Result<(), LaneExit>) {
        let is_over = !matches!(
            halted,
            Err(LaneExit::ShutdownDeadline | LaneExit::LeaseLost | LaneExit::Infrastructure(_))
        );
        if is_over && let Err(problem) = self.journal.end_retry_slice(lease).await {
            tracing::warn!("the batches of the retry have no link yet; the next retry adds it: {problem}");
        }
    }

    /// Does the work of a retry that was begun, and records how it ended.
    async fn retry_and_finish(
        &self,
        run_id: i64,
        targets: &[Target],
        unusable: &[Unusable],
        mut by_entity: BTreeMap<String, SetAside>,
        report: &mut (dyn FnMut(Retried) + Send),
    ) -> Result<bool, RunError> {
        let since = Instant::now();
        log::run_started("retry", targets.len() + unusable.len());
        let mut open = false;
        let mut note = |retried: Retried| {
            open |= retried.outcome.is_err();
            report(retried);
        };
        let work = async {
            self.compare_rules(run_id, targets).await;
            self.recall_sizes(&targets.iter().collect::<Vec<_>>()).await?;
            for target in targets {
                let Some(errors) = by_entity.remove(&target.entity_id) else { continue };
                let retry = async {
                    self.retry_entity(run_id, target, &errors.error_ids, &mut note).await?;
                    self.retry_held(run_id, target, errors.held, &mut note).await
                };
                Box::pin(retry.instrument(lane_span(&target.entity_id))).await?;
            }
            Ok(())
        };
        let failed = self.alive(run_id, work).await.err();
        // The errors that are left belong to entities that are not registered or cannot be worked on.
        for (entity_id, errors) in by_entity {
            let why = unusable.iter().find(|(unusable, _)| *unusable == entity_id);
            let why = why.map_or("its entity is not registered", |(_, problem)| problem.message.as_str());
            for error_id in errors.error_ids.into_iter().chain(errors.held) {
                note(Retried { error_id, outcome: Err(why.to_owned()) });
            }
        }
        let status = match (&failed, open) {
            (None, _) if *self.stop.borrow() => RunStatus::Interrupted,
            (Some(_), _) => RunStatus::Failed,
            (None, true) => RunStatus::Incomplete,
            (None, false) => RunStatus::Succeeded,
        };
        let message = failed.as_ref().map(|problem| crate::text::chain(problem));
        let finished = self.journal.finish_run(run_id, status, message.as_deref());
        let counters = around(Step::FinishRun, finished).await?;
        log::run_finished(status, &counters, since, None);
        failed.map_or(Ok(!open), Err)
    }

    /// Retries the errors of an entity, some pages at a time.
    async fn retry_entity(
        &self,
        run_id: i64,
        target: &Target,
        error_ids: &[i64],
        report: &mut (dyn FnMut(Retried) + Send),
    ) -> Result<(), RunError> {
        let mut progress = RetryProgress::default();
        for error_ids in error_ids.chunks(self.page_rows() * PAGES_AT_ONCE) {
            let errors = self.journal.row_errors(error_ids).await?;
            let (open, resolved): (Vec<_>, Vec<_>) = errors.into_iter().partition(|error| error.is_open);
            for RowError { error_id, .. } in resolved {
                report(Retried { error_id, outcome: Ok(ELSEWHERE.to_owned()) });
            }
            if let Some(why) = &progress.ended {
                let left = open.iter().map(|error| error.error_id);
                left.for_each(|error_id| report(Retried { error_id, outcome: Err(why.clone()) }));
                continue;
            }
            let part = EntityRetry::of(self, run_id, target, open).await?;
            part.work(&mut progress).await?.into_iter().for_each(&mut *report);
        }
        Ok(())
    }

    /// Checks that the watermark belongs to the ledger, before rows are sent again. `ended`: why they are not.
    async fn check_before_retry(
        &self,
        lane_run: &LaneRun<'_>,
        lane: &Lane,
        ended: &mut Option<String>,
    ) -> Result<(), LaneExit> {
        let entity_id = &lane_run.target.entity_id;
        let probed = match self.ledger.probe_entity(&lane.progress(entity_id)).await {
            Err(problem) if problem.is_about_rows() => {
                *ended = Some(problem.in_words_of_entity());
                return Err(LaneExit::Shutdown);
            }
            probed => probed?,
        };
        let checked =
            self.check_journal(entity_id, lane).and_then(|()| self.check_watermark(entity_id, lane, &probed));
        if let Err(mismatch) = checked {
            *ended = Some(mismatch.to_string());
            return Err(mismatch.into());
        }
        if lane.mapping.is_none() {
            self.journal.fill_mapping(&lane_run.lease, &self.mapping).await?;
        }
        Ok(())
    }

    /// Keeps the rows that `--from-now` did not skip.
    async fn not_skipped(&self, entity_id: &str, mut rows: Vec<Row>) -> Result<Vec<Row>, JournalError> {
        if !rows.is_empty() {
            let skipped = self.journal.skipped(entity_id).await?;
            rows.retain(|row| !skipped.has(row));
        }
        Ok(rows)
    }

    /// Keeps the rows whose present version was or will be uploaded.
    pub(super) async fn not_set_aside(
        &self,
        entity_id: &str,
        mut rows: Vec<Row>,
    ) -> Result<Vec<Row>, JournalError> {
        if rows.is_empty() {
            return Ok(rows);
        }
        let ids: Vec<String> = rows.iter().map(|row| row.id.to_string()).collect();
        let set_aside = self.journal.set_aside_until(entity_id, &ids).await?;
        let until: BTreeMap<String, u64> = set_aside.into_iter().collect();
        rows.retain(|row| until.get(&row.id.to_string()).is_none_or(|until| row.xid > *until));
        Ok(rows)
    }
}
