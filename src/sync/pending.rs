//! Rows that wait: of entities that are worked on, and of those that nobody has registered.

use std::collections::{BTreeMap, BTreeSet};

use super::report::Unregistered;
use super::watermark_check;
use super::worker::progress;
use super::{EntityReport, RowsDone, RunError, Worker};
use crate::journal::{Entity, Lane};
use crate::ledger::Unreadable;

impl Worker {
    /// Looks for the entities of the ledger that are not registered. None are found under a mapping that every watermark
    /// refuses: what it takes for entities may be anything.
    pub(super) async fn unregistered(
        &self,
        lanes: &BTreeMap<String, Lane>,
    ) -> Result<Unregistered, RunError> {
        if self.ledger.mapping().entity.is_none() && !watermark_check::is_accepted(&self.ledger, lanes) {
            return Ok(Unregistered::default());
        }
        let all = Entity::list(&self.database).await?;
        let ids: Vec<String> = all.into_iter().map(|entity| entity.entity_id).collect();
        match self.ledger.unregistered(&ids).await {
            Ok(entity_ids) => Ok(Unregistered { entity_ids, unknown: None }),
            // The registered entities do not depend on it.
            Err(problem) if problem.is_about_rows() => {
                let unknown = format!(
                    "entities that are not registered could not be looked for: {}",
                    problem.in_words()
                );
                Ok(Unregistered { entity_ids: Vec::new(), unknown: Some(unknown) })
            }
            Err(problem) => Err(problem.into()),
        }
    }

    /// Counts what waits, and notes it for dashboards. Of entities without news that was done when they were looked at.
    pub(super) async fn count_pending(
        &self,
        reports: &mut [EntityReport],
        idle: &[String],
    ) -> Result<(), RunError> {
        let idle_ids: BTreeSet<&String> = idle.iter().collect();
        let ids: Vec<String> =
            reports.iter().map(|r| r.entity_id.clone()).filter(|id| !idle_ids.contains(id)).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let lanes = watermark_check::readable(&self.ledger, self.journal.lanes(&ids, &self.mapping).await?);
        let (pending, unreadable) = self.ledger.pending(&progress(&lanes)).await?;
        // Rows that wait under a mapping which is refused cannot be counted.
        let rows: BTreeMap<&str, i64> = pending.iter().map(|p| (p.entity_id.as_str(), p.rows)).collect();
        for report in reports.iter_mut().filter(|report| !idle_ids.contains(&report.entity_id)) {
            report.rows_pending = rows.get(report.entity_id.as_str()).copied();
        }
        // A lane that has failed has said why.
        let has_failed = |id: &String| reports.iter().any(|r| r.entity_id == *id && r.failure().is_some());
        for Unreadable { entity_id, message } in unreadable.values().filter(|u| !has_failed(&u.entity_id)) {
            tracing::warn!(entity_id, "the rows that wait could not be counted: {message}");
        }
        self.journal.note_pending(&pending).await?;
        Ok(())
    }
}

impl Worker {
    /// How far the work is.
    pub fn progress(&self) -> &RowsDone {
        &self.progress
    }

    /// Works, and meanwhile counts what there is.
    pub(super) async fn counted_meanwhile<T>(
        &self,
        entity_ids: &[String],
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            biased;
            worked = &mut work => return worked,
            counted = self.count_for_progress(entity_ids) => if let Err(problem) = counted {
                let error = crate::text::chain(&problem);
                tracing::warn!(error, "what there is to do could not be counted; it is done all the same");
            }
        }
        work.await
    }

    /// Counts what waits for these entities, once a run has lasted for a while and if somebody watches it.
    async fn count_for_progress(&self, entity_ids: &[String]) -> Result<(), RunError> {
        let Some(counted_after) = self.progress.counted_after() else { return Ok(()) };
        tokio::time::sleep(counted_after).await;
        // Before the cursors are read: what is done while the rest is counted is part of that.
        let done: BTreeMap<String, i64> =
            self.progress.lock().iter().map(|(id, entity)| (id.clone(), entity.rows_done)).collect();
        let lanes = self.journal.lanes(entity_ids, &self.mapping).await?;
        for (entity_id, rows) in self.ledger.rows_pending(&progress(&lanes)).await? {
            let done = done.get(&entity_id).copied().unwrap_or(0);
            self.progress.change(&entity_id, |entity| entity.rows_total = Some(done + rows));
        }
        Ok(())
    }
}
