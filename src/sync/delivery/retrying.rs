//! What is different in a retry: its rows are set aside already, and stay so unless they are accepted.

use super::super::lane::exit::LaneExit;
use super::super::messages::OutcomeMessage;
use super::Delivery;
use super::batch_task::{Answered, BatchTask};
use crate::fault_point::{Step, around};
use crate::journal::{AttemptResult, Conclusions, Kind, Problem, WorkKind};

impl Delivery {
    pub(super) fn is_retry(&self) -> bool {
        self.pass.work == WorkKind::Retry
    }

    /// What resolves the error of a row that was uploaded.
    pub(super) fn why_resolved(&self) -> &'static str {
        match (self.is_retry(), self.is_resend) {
            (false, _) => "a newer version of the row was uploaded",
            (true, false) => "uploaded by `errors retry`",
            (true, true) => "sent again after its name was mapped or listed, and uploaded",
        }
    }

    /// Records that batches which an earlier retry was sending when it ended have an unknown outcome.
    pub(in crate::sync) async fn recover_retry(&self) -> Result<(), LaneExit> {
        around(Step::Recover, self.worker.journal.recorded(self.context())).await?;
        Ok(())
    }

    /// Records what was found out about rows without a request.
    pub(in crate::sync) async fn conclude_errors(&self, conclusions: Conclusions) -> Result<(), LaneExit> {
        let concluded = self.worker.journal.conclude(self.context(), conclusions);
        around(Step::Resolve, concluded).await?;
        Ok(())
    }

    /// The most rows that the API refused and that may be set aside. A retry sets no other row aside than before.
    pub(super) fn rejections_max(&self) -> usize {
        if self.is_retry() { usize::MAX } else { self.worker.settings.sync.max_rejections }
    }

    /// The steps of the write that records an accepted batch. In a retry it resolves errors.
    pub(super) fn steps_of_settling(&self) -> impl Iterator<Item = Step> {
        self.is_retry().then_some(Step::Resolve).into_iter().chain([Step::Settle])
    }

    /// Records the last answer to a batch that says nothing about its content. In a retry, it also counts the errors of
    /// the rows once more. The kind of each error stays, as nothing new is known of its row.
    pub(super) async fn record_last(
        &self,
        task: &BatchTask,
        outcome: &OutcomeMessage,
        result: AttemptResult,
    ) -> Result<(), LaneExit> {
        self.record_answer(task, outcome, result).await?;
        let rows = task.batch.records.iter().filter_map(|&row| {
            let kind = *self.errors.get(&task.batch.rows[row].id.to_string())?;
            let of_row = outcome.of_row(task.batch_id, result.http_status, &task.batch, row);
            Some(Problem { kind, message: outcome.message.clone(), ..of_row })
        });
        let problems: Vec<Problem> = rows.collect();
        if !problems.is_empty() {
            let conclusions = Conclusions { problems, ..Conclusions::default() };
            self.conclude_errors(conclusions).await?;
        }
        Ok(())
    }

    /// Leaves a record set aside whose outcome stayed unknown although the API is good. The retry continues with other
    /// rows.
    pub(super) async fn leave_set_aside(&self, answered: Answered) -> Result<Vec<BatchTask>, LaneExit> {
        let Answered { task, outcome, result } = answered;
        self.record_last(&task, &outcome, result).await?;
        if self.errors.is_empty() {
            // A held row: its name is no reason any more.
            let rows = task.batch.records.iter();
            let of_row = |&row| outcome.of_row(task.batch_id, result.http_status, &task.batch, row);
            let problems =
                rows.map(of_row).map(|problem| Problem { kind: Kind::RejectedRow, ..problem }).collect();
            self.conclude_errors(Conclusions { problems, ..Conclusions::default() }).await?;
        }
        self.window.lock().await.part_done(task.root);
        Ok(Vec::new())
    }
}
