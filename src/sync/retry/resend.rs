//! Which held rows are sent again, by a run or by `errors retry`, and what is reported of them.

use super::super::decisions::naming::Name;
use super::super::lane_worker::Target;
use super::super::names::is_known_by_now;
use super::super::{Ended, EntityReport, RunError, Worker};
use super::entity::{ELSEWHERE, Retried};
use super::held::HeldRetry;
use crate::journal::{HeldName, RecordedError};

impl Worker {
    /// Returns the errors that hold rows of an entity that may be sent again: their names were mapped, or the API knows
    /// them by now.
    pub(in crate::sync) async fn errors_to_release(
        &self,
        target: &Target,
        held: &[HeldName],
    ) -> Result<Vec<i64>, RunError> {
        let own: Vec<&HeldName> = held.iter().filter(|name| name.entity_id == target.entity_id).collect();
        let mut errors = Vec::new();
        for held in &own {
            // Their names are others now.
            let renamed =
                held.ledger_names.iter().filter(|name| target.sent_as(&held.kind, name) != held.name);
            let renamed: Vec<String> = renamed.cloned().collect();
            if !renamed.is_empty() {
                errors.extend(self.journal.errors_of_name(held, Some(&renamed)).await?);
            }
        }
        let others: Vec<&HeldName> = own.into_iter().filter(|held| !held.waits).collect();
        if others.is_empty() {
            return Ok(errors);
        }
        let Some(lists) = self.unless_stopped(target.session.lists(self)).await else {
            return Ok(errors);
        };
        let lists = lists?;
        let may = |held: &&HeldName| {
            Name::of_kind(&held.kind, &held.name)
                .is_some_and(|name| is_known_by_now(&target.names, lists, &name))
        };
        for held in others.into_iter().filter(may) {
            errors.extend(self.journal.errors_of_name(held, None).await?);
        }
        errors.sort_unstable();
        errors.dedup();
        Ok(errors)
    }

    /// Sends the held rows of an entity again whose name the API knows by now. Adds what became of them to the report.
    pub(in crate::sync) async fn resend_held(
        &self,
        run_id: i64,
        target: &Target,
        held: &[HeldName],
        report: &mut EntityReport,
    ) -> Result<(), RunError> {
        let errors = self.errors_to_release(target, held).await?;
        if errors.is_empty() {
            return Ok(());
        }
        tracing::info!(
            errors = errors.len(),
            "held rows are sent again, because their names were mapped or the API knows them"
        );
        let mut retry = HeldRetry::of(self, run_id, target, errors);
        retry.is_resend = true;
        let sent = retry.work().await?;
        // The others were set aside before.
        report.rows_read += sent.rows_uploaded + sent.rows_superseded;
        report.rows_uploaded += sent.rows_uploaded;
        report.rows_superseded += sent.rows_superseded;
        report.rows_held_again += sent.rows_held_again;
        report.rows_rejected += sent.rows_rejected + retry.invalid;
        match (retry.problem, sent.ended) {
            (Some(problem), _) => {
                report.ended = Ended::Failed(problem.message.clone());
                self.fail_lanes(run_id, vec![(target.entity_id.clone(), problem)]).await?;
            }
            // A later run sends the rest.
            (None, ended @ Ended::Fenced(_)) => report.ended = ended,
            (None, _) => {}
        }
        Ok(())
    }

    /// Sends the rows again that these errors of an entity hold, and reports the outcome of each error.
    pub(super) async fn retry_held(
        &self,
        run_id: i64,
        target: &Target,
        error_ids: Vec<i64>,
        report: &mut (dyn FnMut(Retried) + Send),
    ) -> Result<(), RunError> {
        if error_ids.is_empty() {
            return Ok(());
        }
        let mut retry = HeldRetry::of(self, run_id, target, error_ids.clone());
        retry.work().await?;
        for part in error_ids.chunks(self.page_rows()) {
            for error in RecordedError::with_numbers(&self.database, part).await? {
                let outcome = match (error.resolution, &retry.ended) {
                    (Some(_), _) if retry.elsewhere.contains(&error.error_id) => Ok(ELSEWHERE.to_owned()),
                    (Some(resolution), _) => Ok(resolution),
                    (None, Some(why)) => Err(why.clone()),
                    (None, None) => Err(error.message),
                };
                report(Retried { error_id: error.error_id, outcome });
            }
        }
        Ok(())
    }
}
