//! Bisecting: the halves of a refused batch are sent until the refused records are found, and those are set aside.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use tracing::Instrument;

use super::super::decisions::naming::Name;
use super::super::decisions::proof::Unproven;
use super::super::decisions::refusal::{AfterRefusal, Names, Proof, Refused, after_refusal};
use super::super::lane::exit::LaneExit;
use super::super::log::batch_span;
use super::super::messages;
use super::super::messages::OutcomeMessage;
use super::super::proving::Resent;
use super::Delivery;
use super::batch_task::{Answered, BatchTask, Parked, Refusal, Turn};
use super::by_name::Finding;
use crate::batch::Batch;
use crate::elven::ResponseClass;
use crate::fault_point::{Step, around};
use crate::journal::{AttemptResult, Problem, RefusedRows, Split};

impl Delivery {
    /// Splits a refused batch, and returns the halves. A record that was sent alone is set aside instead.
    pub(super) async fn bisect(
        &self,
        mut answered: Answered,
        verdict: &ResponseClass,
    ) -> Result<Vec<BatchTask>, LaneExit> {
        let is_too_large = *verdict == ResponseClass::TooLarge;
        let finding = if is_too_large { Finding::Nothing } else { self.finding(&mut answered).await? };
        let names = match &finding {
            Finding::Held => {
                self.hold(&answered.task, answered.result).await?;
                return Ok(Vec::new());
            }
            Finding::Unknown(_) => Names::Unknown,
            Finding::Parts { by_list: true, .. } => Names::Unlisted,
            Finding::Parts { by_list: false, .. } | Finding::Single(_) | Finding::Nothing => Names::Nothing,
        };
        let parts = parts_of(&answered.task.batch, &finding);
        let mut set_aside = 0;
        if is_too_large {
            self.session.too_large(answered.task.batch.body.len());
        } else if !self.is_retry() {
            set_aside = self.worker.journal.rejections(&self.pass.lease.entity_id).await?;
        }
        let set_aside_max = self.rejections_max();
        // The rows of a retry are set aside already, so they need no proof.
        let proof = self.is_retry().then_some(Proof::Good);
        let mut refused =
            Refused { is_too_large, is_single: parts.is_none(), set_aside, set_aside_max, names, proof };
        let mut turn = None;
        if after_refusal(refused) == AfterRefusal::Prove {
            turn = self.prove(&mut answered).await?;
            refused.proof = Some(if turn.is_none() { Proof::Good } else { Proof::ByParts });
        }
        match (after_refusal(refused), parts, turn) {
            (AfterRefusal::TooMany, ..) => {
                let Answered { task, outcome, result } = answered;
                Err(self.stop(&task, outcome.too_many(set_aside), result, None).await)
            }
            (AfterRefusal::Park, _, Some(turn)) => self.park(answered, turn.because).await,
            (AfterRefusal::Hold, ..) => {
                let Answered { task, outcome, result } = answered;
                if let Finding::Unknown(name) = finding {
                    self.hold_unknown(&task, &outcome, result, name).await?;
                }
                Ok(Vec::new())
            }
            (_, Some(parts), turn) => {
                let Answered { task, outcome, result } = answered;
                let reason = Split { error: &outcome.message, ambiguous: false, withdrawn: false };
                let parts = self.split_by(task, &parts, result, reason).await?;
                Ok(parts.into_iter().map(|part| BatchTask { turn: turn.clone(), ..part }).collect())
            }
            (_, None, _) => {
                let in_doubt = if let Finding::Single(name) = finding { Some(name) } else { None };
                self.set_aside_single(answered, in_doubt).await
            }
        }
    }

    /// Sets aside a single record. Returns the rows that it superseded, which are sent in its place. `in_doubt`: its name,
    /// if the API may not know it.
    pub(super) async fn set_aside_single(
        &self,
        answered: Answered,
        in_doubt: Option<Name>,
    ) -> Result<Vec<BatchTask>, LaneExit> {
        let Answered { task, outcome, result } = answered;
        if let Some(parts) = task.batch.split_off_superseded() {
            let [newest, superseded] = self.split(&task, parts, result, &outcome).await?;
            // The answer to the whole batch refused this record, and its request is counted with the split.
            let result = AttemptResult { sent: false, ..result };
            self.set_aside(&newest, result, outcome, in_doubt).await?;
            return Ok(vec![superseded]);
        }
        self.set_aside(&task, result, outcome, in_doubt).await?;
        Ok(Vec::new())
    }

    /// Finds out whether the credential and the endpoint are good. If only the parts of a batch can prove it, records
    /// the answer to this batch, and waits for the permit to send its parts, which it returns.
    async fn prove(&self, answered: &mut Answered) -> Result<Option<Turn>, LaneExit> {
        let wait_max = self.worker.settings.retry.max;
        let proven = match self.unless_halted(self.session.probe_credential(wait_max)).await {
            Ok(proven) => proven,
            Err(exit) => {
                // The lane stops before the probe is answered, but the refusal is known, so it is recorded.
                self.record_answer(&answered.task, &answered.outcome, answered.result).await?;
                return Err(exit);
            }
        };
        let Answered { task, outcome, result } = answered;
        match proven {
            Ok(()) => Ok(None),
            Err(Unproven::NoList(status)) => {
                if let Some(turn) = task.turn.take() {
                    return Ok(Some(turn));
                }
                self.record_answer(task, outcome, *result).await?;
                result.sent = false;
                // The batches that prove the credential may need these permits.
                task.permits = None;
                let permit = self.unless_halted(self.target.proving.permit()).await?;
                if self.session.is_proven() {
                    return Ok(None);
                }
                let (outcome, http_status) = (outcome.clone(), result.http_status);
                let because = Arc::new(Refusal { outcome, http_status, list_status: status });
                *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(because.clone());
                Ok(Some(Turn { _permit: permit, because }))
            }
            Err(Unproven::Otherwise(instead)) => {
                let outcome = outcome.clone().unproven(&instead);
                Err(self.stop(task, outcome, *result, None).await)
            }
            Err(Unproven::Later(verdict, status)) => {
                let not_before = if let ResponseClass::Throttled(asked) = verdict { asked } else { None };
                let mut outcome = messages::of(&verdict, status, &task.batch, &self.session.credential.name);
                // The probe failed for now, but the batch itself was refused.
                outcome.status = "rejected";
                Err(self.stop(task, outcome, *result, not_before).await)
            }
        }
    }

    /// Keeps a refused record until the credential is proven, or until nothing is left that could prove it.
    async fn park(&self, answered: Answered, because: Arc<Refusal>) -> Result<Vec<BatchTask>, LaneExit> {
        let Answered { mut task, outcome, mut result } = answered;
        if result.sent {
            self.record_answer(&task, &outcome, result).await?;
            result.sent = false;
        }
        task.permits = None;
        let answered = Answered { task, outcome, result };
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).push(Parked { answered, because });
        Ok(Vec::new())
    }

    /// Sets aside the parked records of a batch. Stops the lane if nothing proves the credential.
    pub(super) async fn conclude(&self, root: usize) -> Result<(), LaneExit> {
        loop {
            let parked = {
                let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
                let of_root = parked.iter().position(|parked| parked.answered.task.root == root);
                of_root.map(|index| parked.swap_remove(index))
            };
            let Some(parked) = parked else { return Ok(()) };
            let span = batch_span(parked.answered.task.batch_id);
            for superseded in self.conclude_parked(parked).instrument(span).await? {
                // The API may refuse one of these rows, too; then it is parked.
                self.deliver(superseded).await?;
            }
        }
    }

    async fn conclude_parked(&self, parked: Parked) -> Result<Vec<BatchTask>, LaneExit> {
        let Parked { answered, because } = parked;
        if !self.session.is_proven() {
            let resent = self.resend_known().await?;
            if resent != Resent::Accepted {
                self.halted.send_replace(true);
                let Answered { task, result, .. } = answered;
                return Err(self.stop(&task, because.unproven(&resent), result, None).await);
            }
        }
        let open = self.worker.journal.rejections(&self.pass.lease.entity_id).await?;
        if open >= self.worker.settings.sync.max_rejections {
            let Answered { task, outcome, result } = answered;
            self.halted.send_replace(true);
            return Err(self.stop(&task, outcome.too_many(open), result, None).await);
        }
        self.set_aside_single(answered, None).await
    }

    /// Whether parts are sent one at a time, because a batch was refused while the credential was not proven.
    pub(super) fn is_being_proven(&self) -> bool {
        !self.is_retry() && self.target.proving.has_begun() && !self.session.is_proven()
    }

    /// Waits while the parts of another batch prove the credential. If a proof has used all its requests and none was
    /// accepted, sends a record that was accepted before; if that is not accepted either, the lane stops.
    pub(super) async fn await_turn_of_proof(&self, task: &BatchTask) -> Result<(), LaneExit> {
        if !self.is_being_proven() {
            return Ok(());
        }
        let waited = async {
            if task.turn.is_none() {
                self.unless_halted(self.target.proving.permit()).await?;
            }
            self.stop_without_proof(task.batch_id).await
        };
        match waited.await {
            Err(exit) if task.signed.is_some() => Err(self.withdraw(task, exit).await),
            waited => waited,
        }
    }

    async fn stop_without_proof(&self, batch_id: i64) -> Result<(), LaneExit> {
        if self.session.is_proven() || self.target.proving.allows_more() {
            return Ok(());
        }
        let refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(refusal) = refusal else { return Ok(()) };
        let resent = self.resend_known().await?;
        if resent == Resent::Accepted {
            return Ok(());
        }
        Err(LaneExit::problem(refusal.unproven(&resent).into_problem(batch_id, refusal.http_status)))
    }

    /// Counts a request that is sent while the credential is being proven. Returns whether it was counted.
    pub(super) fn count_for_proof(&self) -> bool {
        let is_counted = self.is_being_proven();
        if is_counted {
            self.target.proving.count();
        }
        is_counted
    }

    /// Replaces a batch by two parts. They are ambiguous if the outcome of the batch is unknown.
    pub(super) async fn split(
        &self,
        task: &BatchTask,
        parts: [Batch; 2],
        result: AttemptResult,
        outcome: &OutcomeMessage,
    ) -> Result<[BatchTask; 2], LaneExit> {
        let is_unknown = outcome.status == "unknown";
        let reason = Split { error: &outcome.message, ambiguous: is_unknown, withdrawn: false };
        self.split_as(task, parts, result, reason).await
    }

    /// Replaces a batch by two parts for a reason.
    pub(super) async fn split_as(
        &self,
        task: &BatchTask,
        parts: [Batch; 2],
        result: AttemptResult,
        reason: Split<'_>,
    ) -> Result<[BatchTask; 2], LaneExit> {
        let (context, journal) = (self.context(), &self.worker.journal);
        let lost = reason.ambiguous;
        let split = journal.split(context, task.batch_id, &task.batch, &parts, result, reason);
        let ids = around(Step::Split, split).await?;
        let records = task.batch.records.len();
        tracing::info!(records, first_part = ids[0], second_part = ids[1], "batch split");
        self.window.lock().await.add_part(task.root);
        let [first, second] = parts;
        let part = |batch_id, batch| BatchTask {
            is_part: true,
            lost,
            once: task.once,
            ..BatchTask::new(batch_id, batch, task.root)
        };
        Ok([part(ids[0], first), part(ids[1], second)])
    }

    /// Sets aside the records of a batch that cannot be split any further.
    async fn set_aside(
        &self,
        task: &BatchTask,
        result: AttemptResult,
        outcome: OutcomeMessage,
        in_doubt: Option<Name>,
    ) -> Result<(), LaneExit> {
        let mut window = self.window.lock().await;
        // Under the lock, so that of several records that are refused at once the last one finds the others.
        if let (Some(name), Some(row)) = (in_doubt, task.batch.sole_record()) {
            let names = &self.target.names;
            if names.shows_unknown(&name) || names.is_unknown(&name) {
                drop(window);
                return self.hold_unknown(task, &outcome, result, name).await;
            }
            names.note_single(name, row);
        }
        let refused: Vec<Problem> = task
            .batch
            .records
            .iter()
            .map(|&row| outcome.of_row(task.batch_id, result.http_status, &task.batch, row))
            .collect();
        let rejections_max = self.rejections_max();
        let advance = window.advance_after(task.root);
        let (context, journal) = (self.context(), &self.worker.journal);
        let refused = RefusedRows { problems: &refused, rejections_max };
        let set_aside = journal.set_aside(context, task.batch_id, &task.batch, refused, result, advance);
        if !around(Step::SetAside, set_aside).await? {
            drop(window);
            let outcome = outcome.too_many(rejections_max);
            return Err(self.stop(task, outcome, result, None).await);
        }
        window.part_done(task.root);
        drop(window);
        self.has_set_aside.store(true, Ordering::Relaxed);
        self.report(|report| report.count_set_aside(&task.batch));
        tracing::info!(rows = task.batch.records.len() + task.batch.invalid.len(), "rows set aside");
        Ok(())
    }
}

/// Returns the number of the part of each row of a refused batch: by name, or else in two halves. `None`: it cannot be
/// split.
fn parts_of(batch: &Batch, finding: &Finding) -> Option<Vec<usize>> {
    match finding {
        Finding::Parts { rows, .. } => Some(rows.clone()),
        _ => batch.halves_of_rows(),
    }
}
