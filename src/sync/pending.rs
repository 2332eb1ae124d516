//! Pending rows of the entities of a run, and entities that are not registered.

use std::collections::{BTreeMap, BTreeSet};

use super::report::Unregistered;
use super::watermark_check;
use super::{EntityReport, RowsDone, RunError, Worker};
use crate::journal::{Lane, Poll, Registration};
use crate::ledger::{Ledger, ProbeResult, Unreadable};

impl Worker {
    /// Looks for the entities of the ledger that are not registered.
    pub(super) async fn unregistered(
        &self,
        lanes: &BTreeMap<String, Lane>,
    ) -> Result<Unregistered, RunError> {
        let Registration { registered, open } = self.journal.registration().await?;
        let ignored = self.settings.ledger.ignore_unregistered;
        let found = unregistered(&self.ledger, lanes, &registered, ignored).await?;
        Ok(Unregistered { open, ..found })
    }

    /// Records the entities of the ledger that are not registered. Nothing is recorded if they are not known.
    pub(super) async fn note_unregistered(
        &self,
        run_id: i64,
        unregistered: &Unregistered,
    ) -> Result<(), RunError> {
        if !unregistered.is_known {
            return Ok(());
        }
        let ignored = self.settings.ledger.ignore_unregistered;
        let entity_ids = if ignored { &unregistered.left_out } else { &unregistered.entity_ids };
        Ok(self.journal.note_unregistered(run_id, entity_ids, &unregistered.open, ignored).await?)
    }

    /// Records the poll of a run: `idle` has no pending rows, and other entities that the ledger can be read for have
    /// pending rows if the probe has found some, or if a pass is open.
    pub(super) async fn note_poll(
        &self,
        run_id: i64,
        lanes: &BTreeMap<String, Lane>,
        probed: &ProbeResult,
        idle: &[String],
    ) -> Result<(), RunError> {
        let is_idle: BTreeSet<&str> = idle.iter().map(String::as_str).collect();
        let has_pending_rows = |entity_id: &str, lane: &Lane| {
            !is_idle.contains(entity_id)
                && !probed.unreadable.contains_key(entity_id)
                && (lane.open.is_some() || probed.new_rows(entity_id).has_new_rows)
                && self.check_watermark(entity_id, lane, probed).is_ok()
        };
        let seen = || lanes.iter().map(|(entity_id, lane)| (entity_id.as_str(), lane));
        let poll = Poll {
            polled_at: lanes.values().filter_map(|lane| lane.read_at).min(),
            idle: seen().filter(|(entity_id, _)| is_idle.contains(entity_id)).collect(),
            pending: seen().filter(|(entity_id, lane)| has_pending_rows(entity_id, lane)).collect(),
            mapping: &self.mapping,
        };
        Ok(self.journal.note_poll(run_id, &poll).await?)
    }

    /// Counts the pending rows, and records the numbers for dashboards. For idle entities the probe has done that.
    pub(super) async fn count_pending(
        &self,
        reports: &mut BTreeMap<String, EntityReport>,
        idle: &BTreeSet<String>,
    ) -> Result<(), RunError> {
        let ids: Vec<String> = reports.keys().filter(|id| !idle.contains(*id)).cloned().collect();
        if ids.is_empty() {
            return Ok(());
        }
        let lanes = watermark_check::readable(&self.ledger, self.journal.lanes(&ids, &self.mapping).await?);
        let (pending, unreadable) = self.ledger.pending(&self.journal.progress(&lanes).await?).await?;
        // Rows cannot be counted under a mapping that is refused.
        let rows: BTreeMap<&str, i64> = pending.iter().map(|p| (p.entity_id.as_str(), p.rows)).collect();
        for (entity_id, report) in reports.iter_mut().filter(|(entity_id, _)| !idle.contains(*entity_id)) {
            report.rows_pending = rows.get(entity_id.as_str()).copied();
        }
        // A failed lane has reported its problem already.
        let has_failed = |id: &String| reports.get(id).is_some_and(|report| report.failure().is_some());
        for Unreadable { entity_id, message } in unreadable.values().filter(|u| !has_failed(&u.entity_id)) {
            tracing::warn!(entity_id, "the pending rows could not be counted: {message}");
        }
        self.journal.note_pending(&pending, &lanes).await?;
        Ok(())
    }
}

/// Looks for the entities of the ledger that are not among the registered ones. Returns none under a mapping that every
/// watermark refuses, because its entity ids may be anything. `ignored`: they are left out on request.
pub(crate) async fn unregistered(
    ledger: &Ledger,
    lanes: &BTreeMap<String, Lane>,
    registered: &[String],
    ignored: bool,
) -> Result<Unregistered, RunError> {
    if ledger.mapping().entity.is_none() && !watermark_check::is_accepted(ledger, lanes) {
        return Ok(Unregistered::default());
    }
    match ledger.unregistered(registered).await {
        Ok(left_out) if ignored => Ok(Unregistered { is_known: true, left_out, ..Unregistered::default() }),
        Ok(entity_ids) => Ok(Unregistered { is_known: true, entity_ids, ..Unregistered::default() }),
        // The registered entities are not affected.
        Err(problem) if problem.is_about_rows() => {
            let unknown =
                format!("entities that are not registered could not be looked for: {}", problem.in_words());
            Ok(Unregistered { unknown: (!ignored).then_some(unknown), ..Unregistered::default() })
        }
        Err(problem) => Err(problem.into()),
    }
}

impl Worker {
    /// The progress of the work.
    pub fn progress(&self) -> &RowsDone {
        &self.progress
    }

    /// Works, and counts the pending rows meanwhile.
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
                tracing::warn!(error, "the pending rows could not be counted for the progress; the run continues");
            }
        }
        work.await
    }

    /// Counts the pending rows of these entities once the run has lasted for a while, if its progress is displayed.
    async fn count_for_progress(&self, entity_ids: &[String]) -> Result<(), RunError> {
        let Some(counted_after) = self.progress.counted_after() else { return Ok(()) };
        tokio::time::sleep(counted_after).await;
        // Read before the cursors: rows that are processed during the count are part of its result.
        let done: BTreeMap<String, i64> =
            self.progress.lock().iter().map(|(id, entity)| (id.clone(), entity.rows_done)).collect();
        let lanes = self.journal.lanes(entity_ids, &self.mapping).await?;
        for (entity_id, rows) in self.ledger.rows_pending(&self.journal.progress(&lanes).await?).await? {
            let done = done.get(&entity_id).copied().unwrap_or(0);
            self.progress.change(&entity_id, |entity| entity.rows_total = Some(done + rows));
        }
        Ok(())
    }
}
