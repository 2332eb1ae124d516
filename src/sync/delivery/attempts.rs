//! Attempts: a batch is sent until an answer to it is final, and each answer is recorded.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::Instrument;

use super::super::api_session::RequestTurn;
use super::super::attempt::{Attempted, Attempts, Requested, attempt_result};
use super::super::decisions::policy::Decision;
use super::super::lane::exit::{LaneExit, later};
use super::super::log::batch_span;
use super::super::messages;
use super::super::messages::OutcomeMessage;
use super::super::shared_limit::SharedPermit;
use super::Delivery;
use super::batch_task::{Answered, BatchTask};
use super::by_name::ToSend;
use crate::config::OnAmbiguous;
use crate::elven::{Answer, ResponseClass, Signed};
use crate::fault_point::{Step, after, around, before};
use crate::journal::{AttemptResult, Settled};

/// The permits for a request: one of the lane, and one of all lanes together.
struct RequestPermits {
    of_lane: OwnedSemaphorePermit,
    _of_all: SharedPermit,
}

impl RequestPermits {
    /// Keeps only the permit of the lane while the lane waits to send the same batch again, so that it does not delay
    /// other lanes.
    fn keep_of_lane(self) -> OwnedSemaphorePermit {
        self.of_lane
    }
}

/// The result of sending a batch.
pub(super) enum Tried {
    /// The batch was accepted, and that is recorded.
    Accepted,
    /// The batch was refused; that is not recorded yet.
    Refused(Answered, ResponseClass),
    /// The outcome is unknown after the last attempt of the run.
    Unknown(Answered),
}

impl Delivery {
    /// Sends a batch until it is accepted, set aside, or split. Returns the parts that are still to be sent.
    pub(super) async fn send_or_split(&self, task: BatchTask) -> Result<Vec<BatchTask>, LaneExit> {
        let span = batch_span(task.batch_id);
        let sent = async {
            let task = match self.without_refused_names(task).await? {
                ToSend::Whole(task) => *task,
                ToSend::Parts(parts) => return Ok(parts),
            };
            match self.send_until_final(task).await? {
                Tried::Accepted => Ok(Vec::new()),
                Tried::Refused(answered, verdict) => self.refused(answered, &verdict).await,
                Tried::Unknown(answered) => self.unknown(answered).await,
            }
        };
        sent.instrument(span).await
    }

    /// Sends a batch until an answer is final.
    pub(super) async fn send_until_final(&self, mut task: BatchTask) -> Result<Tried, LaneExit> {
        let settings = &self.worker.settings;
        let max = if task.once { 1 } else { settings.retry.attempts };
        let mut attempts = Attempts::new(max, task.repeated);
        self.admit(&mut task).await?;
        if task.batch.records.is_empty() {
            self.settle(&task, AttemptResult::default(), None).await?;
            return Ok(Tried::Accepted);
        }
        let mut lane_permit = None;
        loop {
            let (permits, signed) =
                self.prepare_request(&mut task, lane_permit.take(), attempts.remedies.trial).await?;
            let is_counted = self.count_for_proof();
            let (session, lease) = (&self.session, &self.pass.lease);
            let requested = self.worker.attempt(session, lease, &task.batch, &mut attempts, signed).await?;
            let Attempted { answer, class, result, decision, by } = match requested {
                Requested::Attempted(attempted) => *attempted,
                Requested::CutOff(begun) => {
                    return Err(self.record_cut_off(&task, begun, attempts.repeated).await);
                }
            };
            let outcome = messages::of(&class, result.http_status, &task.batch, &session.credential.name);
            match decision {
                Decision::Settle => {
                    drop(permits);
                    session.accepted(task.batch.body.len());
                    self.target.names.note_accepted(&task.batch);
                    self.settle(&task, result, None).await?;
                    return Ok(Tried::Accepted);
                }
                Decision::Isolate => {
                    let (records, body_bytes) = (task.batch.records.len(), task.batch.body.len());
                    tracing::info!(http_status = result.http_status, records, body_bytes, "batch refused");
                    if !self.may_be_imported(&task, &class) {
                        self.begin_proof(&class, is_counted);
                    }
                    return Ok(Tried::Refused(Answered { task, outcome, result }, class));
                }
                // The request after a remedy does not count as an attempt.
                step @ (Decision::SignAgain | Decision::CorrectClock(_) | Decision::ReadKeys) => {
                    lane_permit = Some(permits.keep_of_lane());
                    self.record_answer(&task, &outcome, result).await?;
                    attempts.remedies.take(&step, &by, session);
                    continue;
                }
                Decision::Again { lost: true, .. } if settings.sync.on_ambiguous == OnAmbiguous::Hold => {
                    return Err(self.stop(&task, outcome, result, None).await);
                }
                Decision::Again { after, all, lost } => {
                    lane_permit = Some(permits.keep_of_lane());
                    task.release_shared_permit();
                    self.record_answer(&task, &outcome, result).await?;
                    task.lost |= lost;
                    if all {
                        session.pause(after);
                    } else {
                        self.unless_halted(tokio::time::sleep(after)).await?;
                    }
                }
                Decision::Stop { not_before } => {
                    drop(permits);
                    let answered = Answered { task, outcome, result };
                    return self.stop_unless_unknown(answered, &answer, &class, not_before).await;
                }
            }
            attempts.number += 1;
        }
    }

    /// Begins the proof of the credential after a refusal, if it is not proven yet. `is_counted`: the request was
    /// counted for the proof when it was sent.
    pub(super) fn begin_proof(&self, verdict: &ResponseClass, is_counted: bool) {
        if matches!(verdict, ResponseClass::Refused(_)) && !self.session.is_proven() && !self.is_retry() {
            self.target.proving.begin(is_counted);
        }
    }

    /// Stops the lane after the last attempt, unless the outcome of the batch is unknown.
    async fn stop_unless_unknown(
        &self,
        Answered { task, outcome, result }: Answered,
        answer: &Answer,
        verdict: &ResponseClass,
        not_before: Option<Duration>,
    ) -> Result<Tried, LaneExit> {
        match self.unknown_after_all(answer, verdict, &task).await? {
            Some(outcome) => Ok(Tried::Unknown(Answered { task, outcome, result })),
            None => Err(self.stop(&task, outcome, result, not_before).await),
        }
    }

    /// Waits until a batch may be sent: for the proof of the credential, and for a permit.
    async fn admit(&self, task: &mut BatchTask) -> Result<(), LaneExit> {
        if task.signed.is_none() {
            self.refuse_fenced_part(&task.batch)?;
        }
        self.await_turn_of_proof(task).await?;
        // While a part proves the credential its lane sends no other batch, so the part needs no permit.
        if task.permits.is_none() && task.turn.is_none() {
            task.permits = Some(self.acquire_batch_permits().await?);
        }
        Ok(())
    }

    /// Waits for the permits of a request, and returns them with the signed request. The request is recorded by then.
    /// `lane_permit`: the permit of the lane, if it was kept from the attempt before.
    async fn prepare_request(
        &self,
        task: &mut BatchTask,
        lane_permit: Option<OwnedSemaphorePermit>,
        corrected: Option<TimeDelta>,
    ) -> Result<(RequestPermits, Signed), LaneExit> {
        let acquired = self.acquire_request_permits(task, lane_permit).await;
        let ((permits, turn), signed) = match (task.signed.take(), acquired) {
            (Some(signed), Ok(acquired)) => (acquired, signed),
            (Some(_), Err(exit)) => return Err(self.withdraw(task, exit).await),
            (None, acquired) => {
                let (acquired, signed) = (acquired?, self.signed(&task.batch, corrected)?);
                let (batch_id, lost) = (task.batch_id, task.lost);
                let again = self.worker.journal.announce_again(self.context(), batch_id, &task.batch, lost);
                around(Step::Announce, again).await?;
                (acquired, signed)
            }
        };
        let (lease, batch) = (&self.pass.lease, &task.batch);
        let signed = self.worker.fresh(&self.session, lease, batch, corrected, Some(signed)).await?;
        turn.end();
        Ok((permits, signed))
    }

    /// Records that the lane did not wait for the answer any longer. Returns why the lane stops.
    async fn record_cut_off(&self, task: &BatchTask, begun: Instant, repeated: bool) -> LaneExit {
        let outcome = messages::cut_off();
        let result = attempt_result(&Answer::Lost(outcome.message.clone()), begun, repeated);
        let recorded = self.record_last(task, &outcome, result).await;
        recorded.err().unwrap_or(LaneExit::ShutdownDeadline)
    }

    /// Records that an announced batch is not sent because the lane stops. Returns why it stops.
    pub(super) async fn withdraw(&self, task: &BatchTask, exit: LaneExit) -> LaneExit {
        let (id, why) = (task.batch_id, messages::NOT_SENT);
        let withdrawn = self.worker.journal.withdraw(self.context(), id, &task.batch, why);
        match around(Step::Answer, withdrawn.written()).await {
            Ok(_) => exit,
            Err(problem) => problem.into(),
        }
    }

    /// Records that a batch is accepted, and moves the cursor over all processed batches. `error`: the refusal that
    /// counts as acceptance, if it was one.
    pub(super) async fn settle(
        &self,
        task: &BatchTask,
        result: AttemptResult,
        error: Option<&str>,
    ) -> Result<(), LaneExit> {
        self.steps_of_settling().for_each(before);
        let submitted = {
            let mut window = self.window.lock().await;
            let (advance, resolves) = (window.advance_after(task.root), self.has_set_aside());
            let (context, journal) = (self.context(), &self.worker.journal);
            let settled = Settled { advance, resolves, error, why: self.why_resolved() };
            let submitted = journal.settle(context, task.batch_id, &task.batch, result, settled);
            // The next move of the cursor is submitted after this move, so it is written after this move or not at
            // all.
            window.part_done(task.root);
            self.has_set_aside.fetch_or(!task.batch.invalid.is_empty(), Ordering::Relaxed);
            // The closing of the pass is submitted right after the last answer, so that one commit writes both. If the
            // answer is not written, the pass is not closed.
            if window.is_through() && self.pass.work.pass_id().is_some() {
                let closing = self.submit_closing(&window);
                *self.closing.lock().unwrap_or_else(PoisonError::into_inner) = Some(closing);
            }
            submitted
        };
        submitted.written().await?;
        self.steps_of_settling().for_each(after);
        self.report(|report| report.count(&task.batch));
        let (records, body_bytes) = (task.batch.records.len(), task.batch.body.len());
        if records == 0 {
            tracing::info!(rows = task.batch.rows.len(), "batch without records processed");
        } else {
            tracing::info!(records, body_bytes, elapsed_ms = result.duration_ms, "batch accepted");
        }
        if !task.batch.invalid.is_empty() {
            tracing::info!(rows = task.batch.invalid.len(), "invalid rows set aside");
        }
        Ok(())
    }

    /// Records an answer that is not final.
    pub(super) async fn record_answer(
        &self,
        task: &BatchTask,
        outcome: &OutcomeMessage,
        result: AttemptResult,
    ) -> Result<(), LaneExit> {
        let OutcomeMessage { status, message, .. } = outcome;
        let (id, batch) = (task.batch_id, &task.batch);
        let submitted = self.worker.journal.answered(self.context(), id, batch, status, result, message);
        around(Step::Answer, submitted.written()).await?;
        Ok(())
    }

    /// Records an answer after which the lane stops. Returns why it stops.
    pub(super) async fn stop(
        &self,
        task: &BatchTask,
        outcome: OutcomeMessage,
        result: AttemptResult,
        not_before: Option<Duration>,
    ) -> LaneExit {
        if let Err(exit) = self.record_last(task, &outcome, result).await {
            return exit;
        }
        if outcome.status == "unknown"
            && let Err(problem) = self.worker.journal.count_unknown_run(self.context(), task.batch_id).await
        {
            return problem.into();
        }
        if let Some(pause) = not_before {
            self.session.pause(pause);
        }
        let is_held = outcome.status == "unknown"
            && self.worker.settings.sync.on_ambiguous == OnAmbiguous::Hold
            && !self.is_retry();
        let problem = if is_held {
            messages::held(task.batch_id, &self.pass.lease.entity_id)
        } else {
            outcome.into_problem(task.batch_id, result.http_status)
        };
        LaneExit::Problem(Box::new(problem), not_before)
    }

    /// Waits until a request may be sent: for a permit of the lane, unless `lane_permit` is one, for the turn of the
    /// request, and for the permits that all lanes share. Those are not kept while the batch waits for its turn.
    async fn acquire_request_permits(
        &self,
        task: &mut BatchTask,
        lane_permit: Option<OwnedSemaphorePermit>,
    ) -> Result<(RequestPermits, RequestTurn<'_>), LaneExit> {
        let of_lane = match lane_permit {
            Some(permit) => permit,
            None => self.acquire(&self.request_permits).await?,
        };
        loop {
            if task.lacks_shared_permit() {
                let permit = self.acquire_shared(self.share.under_way()).await?;
                task.set_shared_permit(permit);
            }
            let turn = if let Some(turn) = self.session.free_turn() {
                turn
            } else {
                task.release_shared_permit();
                let turn = self.session.turn(self.worker.settings.retry.max);
                let turn = self.unless_halted(turn).await?.map_err(later)?;
                if task.lacks_shared_permit() {
                    // Not waited for with the turn: a batch that has such a permit may wait for its turn to probe.
                    let Some(permit) = self.share.free_under_way() else { continue };
                    task.set_shared_permit(permit);
                }
                turn
            };
            let of_all = self.acquire_shared(self.share.request()).await?;
            // The API may have asked for a pause meanwhile.
            if !self.session.is_paused() {
                return Ok((RequestPermits { of_lane, _of_all: of_all }, turn));
            }
        }
    }
}
