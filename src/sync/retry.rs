//! `errors retry`: sends rows again that were set aside.

mod entity;

use std::collections::BTreeMap;

use tokio::time::Instant;
use tracing::Instrument;

use self::entity::EntityRetry;
pub use self::entity::Retried;
use super::lane_worker::Target;
use super::log::{self, lane_span, run_span};
use super::worker::Unusable;
use super::{RunError, Worker};
use crate::fault_point::{Step, around};
use crate::journal::{Entity, JournalError, RecordedError, RunStatus, refuse_standby};
use crate::ledger::Row;

impl Worker {
    /// Reads the rows of these errors again, sends them in batches, and resolves each error or counts it once more. A
    /// row with a newer rival is not sent, because the later upload would count.
    pub async fn retry(&self, errors: Vec<RecordedError>) -> Result<Vec<Retried>, RunError> {
        let entities = Entity::list(&self.database).await?;
        let mut by_entity: BTreeMap<String, Vec<RecordedError>> = BTreeMap::new();
        for error in errors {
            by_entity.entry(error.entity_id.clone()).or_default().push(error);
        }
        let concerned: Vec<Entity> =
            entities.into_iter().filter(|entity| by_entity.contains_key(&entity.entity_id)).collect();
        let (targets, unusable) = self.targets(&concerned)?;
        refuse_standby(&self.database).await?;
        let run_id =
            around(Step::BeginRun, self.journal.begin_run("retry", &self.settings.zones.version())).await?;
        let retry = self.retry_and_finish(run_id, &targets, &unusable, by_entity);
        retry.instrument(run_span(run_id)).await
    }

    /// Does the work of a retry that was begun, and records how it ended.
    async fn retry_and_finish(
        &self,
        run_id: i64,
        targets: &[Target],
        unusable: &[Unusable],
        mut by_entity: BTreeMap<String, Vec<RecordedError>>,
    ) -> Result<Vec<Retried>, RunError> {
        let since = Instant::now();
        log::run_started("retry", targets.len() + unusable.len());
        let mut retried = Vec::new();
        let work = async {
            self.compare_rules(run_id, targets).await;
            self.recall_sizes(&targets.iter().collect::<Vec<_>>()).await?;
            for target in targets {
                let errors = by_entity.remove(&target.entity_id).unwrap_or_default();
                let retry = async { EntityRetry::of(self, run_id, target, errors).await?.work().await };
                retried.extend(Box::pin(retry.instrument(lane_span(&target.entity_id))).await?);
            }
            Ok(())
        };
        let failed = self.alive(run_id, work).await.err();
        // The errors that are left belong to entities that are not registered or cannot be worked on.
        for error in by_entity.into_values().flatten() {
            let why = unusable.iter().find(|(entity_id, _)| *entity_id == error.entity_id);
            let why = why.map_or("its entity is not registered", |(_, problem)| problem.message.as_str());
            retried.push(Retried { error_id: error.error_id, outcome: Err(why.to_owned()) });
        }
        let open = retried.iter().any(|retried| retried.outcome.is_err());
        let status = match (&failed, open) {
            (None, _) if *self.stop.borrow() => RunStatus::Interrupted,
            (Some(_), _) => RunStatus::Failed,
            (None, true) => RunStatus::Incomplete,
            (None, false) => RunStatus::Succeeded,
        };
        let message = failed.as_ref().map(|problem| crate::text::chain(problem));
        let finished = self.journal.finish_run(run_id, status, message.as_deref());
        let counters = around(Step::FinishRun, finished).await?;
        log::run_finished(status, &counters, since);
        failed.map_or(Ok(retried), Err)
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
