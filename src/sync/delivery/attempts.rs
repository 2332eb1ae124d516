//! Attempts: a batch is sent until an answer is final, and each answer is recorded.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument;

use super::super::lane::exit::{LaneExit, later};
use super::super::log::{self, batch_span};
use super::super::messages;
use super::super::messages::OutcomeMessage;
use super::super::policy::{Attempt, Decision, decide};
use super::super::remedies::SignatureRemedies;
use super::super::signing::Sent;
use super::Delivery;
use super::batch_task::{Answered, BatchTask};
use crate::batch::Batch;
use crate::config::OnAmbiguous;
use crate::elven::{Answer, ResponseClass, Signed, is_older_than};
use crate::fault_point::{Step, after, around, before};
use crate::journal::AttemptResult;

/// The permits for a request: one of the lane, and one of all lanes together.
struct Slot {
    lanes: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Slot {
    /// Keeps only the permit of the lane, to wait before the same batch is sent again without delaying other lanes.
    fn lanes_alone(self) -> OwnedSemaphorePermit {
        self.lanes
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
    pub(super) async fn attempts(&self, node: BatchTask) -> Result<Vec<BatchTask>, LaneExit> {
        let span = batch_span(node.batch_id);
        let tried = async {
            match self.tried(node).await? {
                Tried::Accepted => Ok(Vec::new()),
                Tried::Refused(answered, verdict) => self.bisect(answered, &verdict).await,
                Tried::Unknown(answered) => self.unknown(answered).await,
            }
        };
        tried.instrument(span).await
    }

    /// Sends a batch until an answer is final.
    pub(super) async fn tried(&self, mut node: BatchTask) -> Result<Tried, LaneExit> {
        let settings = &self.worker.settings;
        let attempts_max = if node.once { 1 } else { settings.retry.attempts };
        let (mut remedies, mut number) = (SignatureRemedies::default(), 1);
        self.admit(&mut node).await?;
        if node.batch.records.is_empty() {
            self.settle(&node, AttemptResult::default()).await?;
            return Ok(Tried::Accepted);
        }
        let mut kept = None;
        loop {
            let (slot, signed) = self.ready(&mut node, kept.take(), remedies.trial).await?;
            let is_counted = self.count_for_proof();
            let (lease, body) = (&self.pass.lease, &node.batch.body);
            let sent = self.worker.send_fresh(&self.session, lease, body, remedies.trial, signed).await?;
            let Sent { answer, begun, by } = sent;
            log::request(answer.as_ref(), begun, number, node.batch.body.len());
            let Some(answer) = answer else { return Err(self.cut_off(&node, begun).await) };
            let verdict = self.hear(&node.batch, &answer, begun, &mut remedies);
            let settlement = settlement(&answer, begun, node.repeated);
            node.repeated = true;
            let attempt = Attempt {
                number,
                attempts_max,
                possible: remedies.possible(&self.session, settings, &by, &verdict),
                aged: is_older_than(by.at, settings.api.signature_window),
            };
            let words =
                messages::of(&verdict, settlement.http_status, &node.batch, &self.session.credential.name);
            match decide(&verdict, attempt, &settings.retry, fastrand::u32(..)) {
                Decision::Settle => {
                    drop(slot);
                    self.session.accepted(node.batch.body.len());
                    self.settle(&node, settlement).await?;
                    return Ok(Tried::Accepted);
                }
                Decision::Isolate => {
                    self.note_refusal(&node.batch, &verdict, settlement.http_status, is_counted);
                    return Ok(Tried::Refused(Answered { node, words, settlement }, verdict));
                }
                // The request after a remedy does not count as an attempt.
                step @ (Decision::SignAgain | Decision::CorrectClock(_) | Decision::ReadKeys) => {
                    kept = Some(slot.lanes_alone());
                    self.answered(&node, &words, settlement).await?;
                    remedies.take(&step, &by, &self.session);
                    continue;
                }
                Decision::Again { lost: true, .. } if settings.sync.on_ambiguous == OnAmbiguous::Hold => {
                    return Err(self.stop(&node, words, settlement, None).await);
                }
                Decision::Again { after, all, lost } => {
                    kept = Some(slot.lanes_alone());
                    self.answered(&node, &words, settlement).await?;
                    node.lost |= lost;
                    if all {
                        self.session.pause(after);
                    } else {
                        self.or_exit(tokio::time::sleep(after)).await?;
                    }
                }
                Decision::Stop { not_before } => {
                    drop(slot);
                    let answered = Answered { node, words, settlement };
                    return self.stop_unless_unknown(answered, &answer, &verdict, not_before).await;
                }
            }
            number += 1;
        }
    }

    /// Classifies an answer. A lost answer is noted at once, because it fences the next batch.
    fn hear(
        &self,
        batch: &Batch,
        answer: &Answer,
        begun: Instant,
        remedies: &mut SignatureRemedies,
    ) -> ResponseClass {
        let verdict = self.session.classify_and_record(answer, &mut remedies.trial);
        if matches!(verdict, ResponseClass::Unknown(_)) {
            self.note_lost(batch, begun);
        }
        verdict
    }

    /// Logs a refusal, and begins the proof of the credential if it is not proven yet.
    fn note_refusal(
        &self,
        batch: &Batch,
        verdict: &ResponseClass,
        http_status: Option<i32>,
        is_counted: bool,
    ) {
        let (records, body_bytes) = (batch.records.len(), batch.body.len());
        tracing::info!(http_status, records, body_bytes, "batch refused");
        if matches!(verdict, ResponseClass::Refused(_)) && !self.session.is_proven() {
            self.target.proving.begin(is_counted);
        }
    }

    /// Stops the lane after the last attempt, unless the outcome of the batch is unknown.
    async fn stop_unless_unknown(
        &self,
        Answered { node, words, settlement }: Answered,
        answer: &Answer,
        verdict: &ResponseClass,
        not_before: Option<Duration>,
    ) -> Result<Tried, LaneExit> {
        match self.unknown_after_all(answer, verdict, &node).await? {
            Some(words) => Ok(Tried::Unknown(Answered { node, words, settlement })),
            None => Err(self.stop(&node, words, settlement, not_before).await),
        }
    }

    /// Waits until a batch may be sent: for the proof of the credential, and for a permit.
    async fn admit(&self, node: &mut BatchTask) -> Result<(), LaneExit> {
        if node.signed.is_none() {
            self.refuse_fenced_part(&node.batch)?;
        }
        self.await_turn_of_proof(node).await?;
        // A part that proves the credential is the only batch of its lane, and needs no permit.
        if node.room.is_none() && node.turn.is_none() {
            node.room = Some(self.room().await?);
        }
        Ok(())
    }

    /// Waits for the permits of a request, and returns it signed. The request is recorded before it is sent.
    async fn ready(
        &self,
        node: &mut BatchTask,
        slot: Option<OwnedSemaphorePermit>,
        corrected: Option<TimeDelta>,
    ) -> Result<(Slot, Signed), LaneExit> {
        let turn = self.turn(slot).await;
        let (slot, signed) = match (node.signed.take(), turn) {
            (Some(signed), Ok(slot)) => (slot, signed),
            (Some(_), Err(exit)) => return Err(self.withdraw(node, exit).await),
            (None, turn) => {
                let (slot, signed) = (turn?, self.signed(&node.batch, corrected)?);
                let (batch_id, lost) = (node.batch_id, node.lost);
                let again = self.worker.journal.announce_again(self.doing(), batch_id, &node.batch, lost);
                around(Step::Announce, again).await?;
                (slot, signed)
            }
        };
        let (lease, body) = (&self.pass.lease, &node.batch.body);
        let signed = self.worker.fresh(&self.session, lease, body, corrected, Some(signed)).await?;
        Ok((slot, signed))
    }

    /// Records that the answer was not awaited.
    async fn cut_off(&self, node: &BatchTask, begun: Instant) -> LaneExit {
        self.note_lost(&node.batch, begun);
        let words = messages::cut_off();
        let settlement = settlement(&Answer::Lost(words.message.clone()), begun, node.repeated);
        let recorded = self.answered(node, &words, settlement).await;
        recorded.err().unwrap_or(LaneExit::ShutdownDeadline)
    }

    /// Records that an announced batch is not sent because the lane stops. Returns the exit.
    pub(super) async fn withdraw(&self, node: &BatchTask, exit: LaneExit) -> LaneExit {
        let (id, why) = (node.batch_id, messages::NOT_SENT);
        let withdrawn = self.worker.journal.withdraw(self.doing(), id, &node.batch, why);
        match around(Step::Answer, withdrawn.written()).await {
            Ok(_) => exit,
            Err(problem) => problem.into(),
        }
    }

    /// Records that a batch is accepted, and moves the cursor over all processed batches.
    async fn settle(&self, node: &BatchTask, settlement: AttemptResult) -> Result<(), LaneExit> {
        before(Step::Settle);
        let submitted = {
            let mut window = self.window.lock().await;
            let moves = (window.advance_after(node.root), self.has_set_aside());
            let (doing, journal) = (self.doing(), &self.worker.journal);
            let submitted = journal.settle(doing, node.batch_id, &node.batch, settlement, moves);
            // The next move of the cursor is submitted after this one, so it is written after it or not at all.
            window.part_done(node.root);
            self.has_set_aside.fetch_or(!node.batch.invalid.is_empty(), Ordering::Relaxed);
            // Submitted right after it, so that both are in one commit. If the first is not written, neither is this.
            if window.is_through() && self.pass.course.pass_id().is_some() {
                window.closing = Some(self.submit_closing(&window));
            }
            submitted
        };
        submitted.written().await?;
        after(Step::Settle);
        self.report(|report| report.count(&node.batch));
        let (records, body_bytes) = (node.batch.records.len(), node.batch.body.len());
        if records == 0 {
            tracing::info!(rows = node.batch.rows.len(), "batch without records processed");
        } else {
            tracing::info!(records, body_bytes, elapsed_ms = settlement.duration_ms, "batch accepted");
        }
        if !node.batch.invalid.is_empty() {
            tracing::info!(rows = node.batch.invalid.len(), "invalid rows set aside");
        }
        Ok(())
    }

    /// Records an answer that is not final.
    pub(super) async fn answered(
        &self,
        node: &BatchTask,
        words: &OutcomeMessage,
        settlement: AttemptResult,
    ) -> Result<(), LaneExit> {
        let OutcomeMessage { status, message, .. } = words;
        let (id, batch) = (node.batch_id, &node.batch);
        let answered = self.worker.journal.answered(self.doing(), id, batch, status, settlement, message);
        around(Step::Answer, answered.written()).await?;
        Ok(())
    }

    /// Records an answer after which the lane stops. Returns the exit.
    pub(super) async fn stop(
        &self,
        node: &BatchTask,
        words: OutcomeMessage,
        settlement: AttemptResult,
        not_before: Option<Duration>,
    ) -> LaneExit {
        if let Err(exit) = self.answered(node, &words, settlement).await {
            return exit;
        }
        if words.status == "unknown"
            && let Err(problem) = self.worker.journal.count_unknown_run(self.doing(), node.batch_id).await
        {
            return problem.into();
        }
        if let Some(pause) = not_before {
            self.session.pause(pause);
        }
        let held = words.status == "unknown" && self.worker.settings.sync.on_ambiguous == OnAmbiguous::Hold;
        let problem = if held {
            messages::held(node.batch_id, &self.pass.lease.entity_id)
        } else {
            words.into_problem(node.batch_id, settlement.http_status)
        };
        LaneExit::Problem(Box::new(problem), not_before)
    }

    /// Waits until a request may be sent: for a permit of the lane, unless one is given, for the rate and the pauses of
    /// the session, and for a permit of all lanes. The last one is not kept during a pause.
    async fn turn(&self, slot: Option<OwnedSemaphorePermit>) -> Result<Slot, LaneExit> {
        let lanes = match slot {
            Some(slot) => slot,
            None => self.permit(&self.slots).await?,
        };
        let wait_max = self.worker.settings.retry.max;
        self.or_exit(self.session.acquire_turn(wait_max)).await?.map_err(later)?;
        loop {
            let of_all = self.permit(self.worker.limits.requests()).await?;
            if !self.session.is_paused() {
                return Ok(Slot { lanes, _of_all: of_all });
            }
            drop(of_all);
            self.or_exit(self.session.wait_for_pause(wait_max)).await?.map_err(later)?;
        }
    }
}

/// Returns what is recorded of an answer.
pub(in crate::sync) fn settlement(answer: &Answer, begun: Instant, repeated: bool) -> AttemptResult {
    AttemptResult {
        http_status: match answer {
            Answer::Response { status, .. } => Some(i32::from(*status)),
            Answer::NotSent(_) | Answer::OpenedLate | Answer::Lost(_) => None,
        },
        duration_ms: i64::try_from(begun.elapsed().as_millis()).ok(),
        sent: !matches!(answer, Answer::NotSent(_) | Answer::OpenedLate),
        repeated,
    }
}
