//! Attempts: a batch is sent until its answer is the last word on it, and each answer is recorded.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use tokio::sync::OwnedSemaphorePermit;

use super::super::decision::{Attempt, Decision, decide};
use super::super::lane::Halt;
use super::super::words::{self, Words};
use super::{Delivery, Node, later};
use crate::batch::Batch;
use crate::config::OnAmbiguous;
use crate::elven::{Answer, Signed, Verdict, is_older_than};
use crate::fault_point::{Step, after, around, before};
use crate::journal::Settlement;

/// A batch that ended unknown in so many runs is tried once by each later one.
const UNKNOWN_RUNS_MAX: i32 = 3;

/// How often a request is signed anew because the signature aged while it was recorded.
const SIGNED_ANEW_MAX: usize = 3;

/// A slot for a request: one of the lane's, and one of all lanes'.
struct Slot {
    lanes: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Slot {
    /// The lane's, to wait with before the same batch is sent again: the other lanes are not to wait as well.
    fn lanes_alone(self) -> OwnedSemaphorePermit {
        self.lanes
    }
}

impl Delivery {
    /// Sends a batch until it is accepted or set aside, or parts have taken its place: returns those.
    pub(super) async fn attempts(&self, mut node: Node) -> Result<Vec<Node>, Halt> {
        let settings = &self.worker.settings;
        let window = settings.api.signature_window;
        let attempts_max = if node.unknown_runs >= UNKNOWN_RUNS_MAX { 1 } else { settings.retry.attempts };
        // A clock that is being tried: how far it is ahead of this machine's.
        let mut corrected = None;
        let mut number = 1;
        if node.signed.is_none() {
            self.refuse_fenced_part(&node.batch)?;
        }
        if node.room.is_none() {
            node.room = Some(self.room().await?);
        }
        if node.batch.records.is_empty() {
            self.settle(&node, Settlement::default()).await?;
            return Ok(Vec::new());
        }
        let mut kept = None;
        loop {
            let (slot, signed) = self.ready(&mut node, kept.take(), corrected).await?;
            let (begun, signed_ahead, signed_at) = (Instant::now(), signed.ahead(), signed.at());
            let answer = around(Step::Send, self.worker.answer(&self.channel, signed)).await;
            let Some(answer) = answer else { return Err(self.cut_off(&node, begun).await) };
            let verdict = self.channel.hear(&answer, &mut corrected);
            if matches!(verdict, Verdict::Unknown(_)) {
                self.note_lost(&node.batch, begun);
            }
            let settlement = settlement(&answer, begun, node.repeated);
            node.repeated = true;
            let attempt = Attempt {
                number,
                attempts_max,
                clock_corrected: corrected.is_some(),
                aged: is_older_than(signed_at, window),
            };
            let words =
                words::of(&verdict, settlement.http_status, &node.batch, &self.channel.credential.name);
            match decide(&verdict, attempt, &settings.retry, fastrand::u32(..)) {
                Decision::Settle => {
                    drop(slot);
                    self.channel.accepted(node.batch.body.len());
                    self.settle(&node, settlement).await?;
                    return Ok(Vec::new());
                }
                Decision::Isolate => return self.isolate(node, &verdict, settlement, words).await,
                Decision::CorrectClock(ahead) => {
                    kept = Some(slot.lanes_alone());
                    self.answered(&node, &words, settlement).await?;
                    corrected = Some(signed_ahead + ahead);
                    // The corrected attempt is one more.
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
                        self.channel.pause(after);
                    } else {
                        self.or_halt(tokio::time::sleep(after)).await?;
                    }
                }
                Decision::Stop { not_before } => {
                    return Err(self.stop(&node, words, settlement, not_before).await);
                }
            }
            number += 1;
        }
    }

    /// Waits for a turn, with a request that was signed and then recorded as about to be sent.
    async fn ready(
        &self,
        node: &mut Node,
        slot: Option<OwnedSemaphorePermit>,
        corrected: Option<TimeDelta>,
    ) -> Result<(Slot, Signed), Halt> {
        let turn = self.turn(slot).await;
        let (slot, signed) = match (node.signed.take(), turn) {
            (Some(signed), Ok(slot)) => (slot, signed),
            (Some(_), Err(halt)) => return Err(self.withdraw(node, halt).await),
            (None, turn) => {
                let (slot, signed) = (turn?, self.signed(&node.batch, corrected)?);
                let (batch_id, lost) = (node.batch_id, node.lost);
                let again = self.worker.journal.announce_again(self.doing(), batch_id, &node.batch, lost);
                around(Step::Announce, again).await?;
                (slot, signed)
            }
        };
        Ok((slot, self.fresh(signed, &node.batch, corrected).await?))
    }

    /// Signs anew, and checks the lease behind that, when it took too long to record what is about to be sent, or
    /// the clock was found to be off meanwhile: the API would refuse the signature.
    async fn fresh(
        &self,
        mut signed: Signed,
        batch: &Batch,
        corrected: Option<TimeDelta>,
    ) -> Result<Signed, Halt> {
        let good_for = self.worker.settings.api.signature_window / 2;
        for _ in 0..SIGNED_ANEW_MAX {
            let ahead = corrected.unwrap_or_else(|| self.channel.ahead());
            if !is_older_than(signed.at(), good_for) && signed.ahead() == ahead {
                break;
            }
            signed = self.signed(batch, corrected)?;
            self.worker.journal.check_lease(&self.pass.lease).await?;
        }
        Ok(signed)
    }

    /// Records that an answer was not waited for.
    async fn cut_off(&self, node: &Node, begun: Instant) -> Halt {
        self.note_lost(&node.batch, begun);
        let words = words::cut_off();
        let settlement = settlement(&Answer::Lost(words.message.clone()), begun, node.repeated);
        let recorded = self.answered(node, &words, settlement).await;
        recorded.err().unwrap_or(Halt::CutOff)
    }

    /// Records that a batch which was announced is not sent, since the lane stops; returns why.
    async fn withdraw(&self, node: &Node, halt: Halt) -> Halt {
        let (id, why) = (node.batch_id, words::NOT_SENT);
        let withdrawn = self.worker.journal.withdraw(self.doing(), id, &node.batch, why);
        match around(Step::Answer, withdrawn.written()).await {
            Ok(_) => halt,
            Err(problem) => problem.into(),
        }
    }

    /// Records that a batch is accepted, and moves the cursor over all that is done.
    async fn settle(&self, node: &Node, settlement: Settlement) -> Result<(), Halt> {
        before(Step::Settle);
        let handed = {
            let mut window = self.window.lock().await;
            let moves = (window.advance_after(node.root), self.has_set_aside());
            let (doing, journal) = (self.doing(), &self.worker.journal);
            let handed = journal.settle(doing, node.batch_id, &node.batch, settlement, moves);
            // What moves the cursor next is handed in behind this, and so it is written behind it or not at all.
            window.part_done(node.root);
            self.has_set_aside.fetch_or(!node.batch.invalid.is_empty(), Ordering::Relaxed);
            // Right behind it, so that both are written at once. Where that is not written, neither is this.
            if window.is_through() && self.pass.course.pass_id().is_some() {
                window.closing = Some(self.hand_in_closing(&window));
            }
            handed
        };
        handed.written().await?;
        after(Step::Settle);
        self.report(|report| report.count(&node.batch));
        tracing::debug!(
            entity_id = self.pass.lease.entity_id,
            batch_id = node.batch_id,
            records = node.batch.records.len(),
            body_bytes = node.batch.body.len(),
            elapsed_ms = settlement.duration_ms,
            "accepted"
        );
        Ok(())
    }

    /// Records an answer that is not the last word.
    pub(super) async fn answered(
        &self,
        node: &Node,
        words: &Words,
        settlement: Settlement,
    ) -> Result<(), Halt> {
        let Words { status, message, .. } = words;
        let (id, batch) = (node.batch_id, &node.batch);
        let answered = self.worker.journal.answered(self.doing(), id, batch, status, settlement, message);
        around(Step::Answer, answered.written()).await?;
        Ok(())
    }

    /// Records an answer after which the lane stops where it is, and says why it does.
    pub(super) async fn stop(
        &self,
        node: &Node,
        words: Words,
        settlement: Settlement,
        not_before: Option<Duration>,
    ) -> Halt {
        if let Err(halt) = self.answered(node, &words, settlement).await {
            return halt;
        }
        if words.status == "unknown"
            && let Err(problem) = self.worker.journal.count_unknown_run(&self.pass, node.batch_id).await
        {
            return problem.into();
        }
        if let Some(pause) = not_before {
            self.channel.pause(pause);
        }
        let held = words.status == "unknown" && self.worker.settings.sync.on_ambiguous == OnAmbiguous::Hold;
        let problem = if held {
            words::held(node.batch_id, &self.pass.lease.entity_id)
        } else {
            words.into_problem(node.batch_id, settlement.http_status)
        };
        Halt::Problem(Box::new(problem), not_before)
    }

    /// Waits until a request may be made: for a slot of the lane, unless there is one, for the channel, and for a slot of
    /// all lanes, which is not kept through a pause.
    async fn turn(&self, slot: Option<OwnedSemaphorePermit>) -> Result<Slot, Halt> {
        let lanes = match slot {
            Some(slot) => slot,
            None => self.permit(&self.slots).await?,
        };
        let wait_max = self.worker.settings.retry.max;
        self.or_halt(self.channel.turn(wait_max)).await?.map_err(later)?;
        loop {
            let of_all = self.permit(self.worker.places.requests()).await?;
            if !self.channel.is_paused() {
                return Ok(Slot { lanes, _of_all: of_all });
            }
            drop(of_all);
            self.or_halt(self.channel.calm(wait_max)).await?.map_err(later)?;
        }
    }
}

/// What is recorded of an answer.
pub(in crate::sync) fn settlement(answer: &Answer, begun: Instant, repeated: bool) -> Settlement {
    Settlement {
        http_status: match answer {
            Answer::Response { status, .. } => Some(i32::from(*status)),
            Answer::NotSent(_) | Answer::Lost(_) => None,
        },
        duration_ms: i64::try_from(begun.elapsed().as_millis()).ok(),
        sent: !matches!(answer, Answer::NotSent(_)),
        repeated,
    }
}
