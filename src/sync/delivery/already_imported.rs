//! Batches that the API refuses because it has their records already: an earlier attempt was imported, and its answer
//! was lost.

use tracing::Instrument;

use super::super::decisions::already_imported::{
    Claim, HalfAnswer, NextHalf, RefusedBatch, after_halves, claim, of_half,
};
use super::super::lane::exit::LaneExit;
use super::super::log::batch_span;
use super::super::messages;
use super::Delivery;
use super::attempts::Tried;
use super::batch_task::{Answered, BatchTask, Turn};
use crate::batch::Batch;
use crate::elven::{Reason, ResponseClass};
use crate::journal::Split;

impl Delivery {
    /// Handles a refused batch: accepts it if the API says that it has the records already, and bisects it otherwise.
    /// Returns the parts that are still to be sent.
    pub(super) async fn refused(
        &self,
        answered: Answered,
        class: &ResponseClass,
    ) -> Result<Vec<BatchTask>, LaneExit> {
        let halves = answered.task.batch.split_in_half();
        match (self.claim(&answered.task, class, halves.is_none()), halves) {
            (Claim::Imported, _) => {
                self.settle_imported(answered).await?;
                Ok(Vec::new())
            }
            // Boxed, because this rare future is large.
            (Claim::AskHalves, Some(halves)) => Box::pin(self.ask_halves(answered, halves)).await,
            (Claim::Refused | Claim::AskHalves, _) => {
                self.bisect(with_hint_about_code(answered, class), class).await
            }
        }
    }

    /// Whether a refusal may say that the API has the batch already.
    pub(super) fn may_be_imported(&self, task: &BatchTask, class: &ResponseClass) -> bool {
        self.claim(task, class, false) != Claim::Refused
    }

    fn claim(&self, task: &BatchTask, class: &ResponseClass, is_single: bool) -> Claim {
        let refused = RefusedBatch { class, is_lost: task.lost, is_single };
        claim(refused, &self.worker.settings.api.already_imported_codes)
    }

    /// Sends the two halves of a batch that the API may have. If both are refused in the same way, they are accepted.
    ///
    /// If the worker stops between the two, the next one treats each half as a batch whose attempt was lost.
    async fn ask_halves(&self, answered: Answered, halves: [Batch; 2]) -> Result<Vec<BatchTask>, LaneExit> {
        let Answered { task, outcome, result } = answered;
        tracing::info!(
            records = task.batch.records.len(),
            "the API may have the batch already; its halves are sent to find out"
        );
        let reason = Split { error: &outcome.message, ambiguous: true, withdrawn: false };
        let parts = self.split_as(&task, halves, result, reason).await?;
        let mut turn = task.turn.clone();
        // The permits of the batch are released, since the halves need some.
        drop(task);
        // A half was not sent by itself yet: only a lost attempt of its own would make it a batch of this kind.
        let mut unsent = parts.map(|part| BatchTask { lost: false, turn: turn.clone(), ..part }).into_iter();
        let (mut answers, mut imported, mut left) = (Vec::new(), Vec::new(), Vec::new());
        while after_halves(&answers) == NextHalf::Ask
            && let Some(half) = unsent.next()
        {
            let span = batch_span(half.batch_id);
            let (answer, parts) = self.ask_half(half, &mut imported).instrument(span).await?;
            answers.push(answer);
            left.extend(parts);
        }
        let next = after_halves(&answers);
        for (mut answered, class) in imported {
            let span = batch_span(answered.task.batch_id);
            if next == NextHalf::Accept {
                self.settle_imported(answered).instrument(span).await?;
                continue;
            }
            turn = turn.or_else(|| turn_of(&left));
            answered.task.turn = turn.clone();
            if next == NextHalf::AskEach {
                answered.task.lost = true;
                // Boxed, because the halves of this half may be asked in their turn.
                left.extend(Box::pin(self.refused(answered, &class)).instrument(span).await?);
            } else {
                self.begin_proof(&class, false);
                left.extend(self.bisect(answered, &class).instrument(span).await?);
            }
        }
        turn = turn.or_else(|| turn_of(&left));
        let lost = next == NextHalf::AskEach;
        left.extend(unsent.map(|half| BatchTask { turn: turn.clone(), lost, ..half }));
        Ok(left)
    }

    /// Sends a half. Adds it to `imported` if the API says that it has the half already. Returns what the answer says,
    /// and the parts that are still to be sent after another answer.
    async fn ask_half(
        &self,
        half: BatchTask,
        imported: &mut Vec<(Answered, ResponseClass)>,
    ) -> Result<(HalfAnswer, Vec<BatchTask>), LaneExit> {
        let codes = &self.worker.settings.api.already_imported_codes;
        match self.send_until_final(half).await? {
            Tried::Accepted => Ok((HalfAnswer::Other, Vec::new())),
            Tried::Unknown(answered) => Ok((HalfAnswer::Nothing, self.unknown(answered).await?)),
            Tried::Refused(mut answered, class) => {
                let answer = of_half(&class, answered.task.lost, codes);
                if answer == HalfAnswer::Imported {
                    // Recorded at once, because the other half needs the permits.
                    self.record(&mut answered).await?;
                    imported.push((answered, class));
                    return Ok((answer, Vec::new()));
                }
                // Boxed, because the halves of this half may be asked in their turn.
                Ok((answer, Box::pin(self.refused(answered, &class)).await?))
            }
        }
    }

    /// Records that the API has a batch already.
    async fn settle_imported(&self, answered: Answered) -> Result<(), LaneExit> {
        let Answered { task, outcome, result } = answered;
        tracing::info!(
            http_status = result.http_status,
            "the API has the batch already, so it counts as accepted"
        );
        self.settle(&task, result, Some(&messages::counts_as_imported(&outcome.message))).await
    }
}

/// The permit to prove the credential that one of these parts has. All parts of a batch share it, since none of them
/// would get it while another one waits with it.
fn turn_of(parts: &[BatchTask]) -> Option<Turn> {
    parts.iter().find_map(|part| part.turn.clone())
}

/// Adds to a refusal after a lost attempt which code would say that the API has the records already.
fn with_hint_about_code(mut answered: Answered, class: &ResponseClass) -> Answered {
    let Answered { task, outcome, .. } = &mut answered;
    if let (true, ResponseClass::Refused(Reason { code: Some(code), .. })) = (task.lost, class) {
        outcome.message.push_str(&messages::perhaps_imported(code));
        tracing::warn!("{}", outcome.message);
    }
    answered
}
