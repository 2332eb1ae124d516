//! Bisecting: the halves of a refused batch are sent until the refused records are found, and those are set aside.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use tracing::Instrument;

use super::super::api_session::Unproven;
use super::super::lane::exit::LaneExit;
use super::super::log::batch_span;
use super::super::messages;
use super::super::messages::OutcomeMessage;
use super::super::proving::Resent;
use super::Delivery;
use super::batch_task::{Answered, BatchTask, Parked, Refusal, Turn};
use crate::batch::Batch;
use crate::elven::ResponseClass;
use crate::fault_point::{Step, around};
use crate::journal::{AttemptResult, Problem};

/// Whether records may be set aside.
enum Proof {
    /// Records may be set aside: the credential and the endpoint are good.
    Good,
    /// The probe returned no list: parts are sent one at a time to prove the credential.
    ByParts(Turn),
}

impl Delivery {
    /// Splits a refused batch, and returns the halves. Sets a record aside that was sent alone.
    pub(super) async fn bisect(
        &self,
        mut answered: Answered,
        verdict: &ResponseClass,
    ) -> Result<Vec<BatchTask>, LaneExit> {
        let halves = answered.node.batch.split_in_half();
        if *verdict == ResponseClass::TooLarge {
            self.session.too_large(answered.node.batch.body.len());
        } else {
            let open = self.worker.journal.rejections(&self.pass.lease.entity_id).await?;
            if open >= self.worker.settings.sync.max_rejections {
                let Answered { node, words, settlement } = answered;
                return Err(self.stop(&node, words.too_many(open), settlement, None).await);
            }
        }
        // A revoked key or a changed API refuses everything: then nothing is set aside. No proof is needed to split a
        // body that is too large; it is needed before a single record is set aside.
        let mut turn = None;
        if *verdict != ResponseClass::TooLarge || halves.is_none() {
            match self.prove(&mut answered).await? {
                Proof::Good => {}
                Proof::ByParts(held) if halves.is_none() => {
                    return self.park(answered, held.because).await;
                }
                Proof::ByParts(held) => turn = Some(held),
            }
        }
        let Answered { node, words, settlement } = answered;
        if let Some(parts) = halves {
            let parts = self.split(&node, parts, settlement, &words).await?;
            return Ok(parts.into_iter().map(|part| BatchTask { turn: turn.clone(), ..part }).collect());
        }
        self.alone(Answered { node, words, settlement }).await
    }

    /// Sets a single record aside. Returns the rows that it superseded, which are sent in its place.
    pub(super) async fn alone(&self, answered: Answered) -> Result<Vec<BatchTask>, LaneExit> {
        let Answered { node, words, settlement } = answered;
        if let Some(parts) = node.batch.split_off_superseded() {
            let [winner, losers] = self.split(&node, parts, settlement, &words).await?;
            // The answer to the whole batch refused it, so no request is counted for it.
            let settlement = AttemptResult { sent: false, ..settlement };
            self.set_aside(&winner, settlement, words).await?;
            return Ok(vec![losers]);
        }
        self.set_aside(&node, settlement, words).await?;
        Ok(Vec::new())
    }

    /// Finds out whether the credential and the endpoint are good. If only parts can prove it, records the answer of
    /// this batch, and waits for the permit to send its parts.
    async fn prove(&self, answered: &mut Answered) -> Result<Proof, LaneExit> {
        let wait_max = self.worker.settings.retry.max;
        let proven = match self.or_exit(self.session.probe_credential(wait_max)).await {
            Ok(proven) => proven,
            Err(exit) => {
                // The refusal itself is known, so it is recorded.
                self.answered(&answered.node, &answered.words, answered.settlement).await?;
                return Err(exit);
            }
        };
        let Answered { node, words, settlement } = answered;
        match proven {
            Ok(()) => Ok(Proof::Good),
            Err(Unproven::NoList(status)) => {
                if let Some(turn) = node.turn.take() {
                    return Ok(Proof::ByParts(turn));
                }
                self.answered(node, words, *settlement).await?;
                settlement.sent = false;
                // Batches that prove the credential need the permits.
                node.room = None;
                let permit = self.or_exit(self.target.proving.permit()).await?;
                if self.session.is_proven() {
                    return Ok(Proof::Good);
                }
                let (words, http_status) = (words.clone(), settlement.http_status);
                let because = Arc::new(Refusal { words, http_status, list_status: status });
                *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(because.clone());
                Ok(Proof::ByParts(Turn { _permit: permit, because }))
            }
            Err(Unproven::Otherwise(instead)) => {
                let words = words.clone().unproven(&instead);
                Err(self.stop(node, words, *settlement, None).await)
            }
            Err(Unproven::Later(verdict, status)) => {
                let not_before = if let ResponseClass::Throttled(asked) = verdict { asked } else { None };
                let mut words = messages::of(&verdict, status, &node.batch, &self.session.credential.name);
                // The probe failed for now, but the batch itself was refused.
                words.status = "rejected";
                Err(self.stop(node, words, *settlement, not_before).await)
            }
        }
    }

    /// Keeps a refused record until the credential is proven, or nothing is left to prove it with.
    async fn park(&self, answered: Answered, because: Arc<Refusal>) -> Result<Vec<BatchTask>, LaneExit> {
        let Answered { mut node, words, mut settlement } = answered;
        if settlement.sent {
            self.answered(&node, &words, settlement).await?;
            settlement.sent = false;
        }
        node.room = None;
        let answered = Answered { node, words, settlement };
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).push(Parked { answered, because });
        Ok(Vec::new())
    }

    /// Sends a record again that was accepted before. Does so once in a run.
    pub(super) async fn resend_known(&self) -> Result<Resent, LaneExit> {
        let resent = self.worker.resend_known(self.run_id, &self.target, &self.pass.lease);
        Ok(resent.await?)
    }

    /// Sets the parked records of a batch aside. Stops the lane if nothing proves the credential.
    pub(super) async fn conclude(&self, root: usize) -> Result<(), LaneExit> {
        loop {
            let parked = {
                let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
                let of_root = parked.iter().position(|parked| parked.answered.node.root == root);
                of_root.map(|index| parked.swap_remove(index))
            };
            let Some(parked) = parked else { return Ok(()) };
            let span = batch_span(parked.answered.node.batch_id);
            for losers in self.conclude_parked(parked).instrument(span).await? {
                // One of these may be refused, too, and be parked.
                self.deliver(losers).await?;
            }
        }
    }

    async fn conclude_parked(&self, parked: Parked) -> Result<Vec<BatchTask>, LaneExit> {
        let Parked { answered, because } = parked;
        if !self.session.is_proven() {
            let resent = self.resend_known().await?;
            if resent != Resent::Accepted {
                self.halted.send_replace(true);
                let Answered { node, settlement, .. } = answered;
                return Err(self.stop(&node, because.unproven(&resent), settlement, None).await);
            }
        }
        let open = self.worker.journal.rejections(&self.pass.lease.entity_id).await?;
        if open >= self.worker.settings.sync.max_rejections {
            let Answered { node, words, settlement } = answered;
            self.halted.send_replace(true);
            return Err(self.stop(&node, words.too_many(open), settlement, None).await);
        }
        self.alone(answered).await
    }

    /// Whether parts are sent one at a time, because a batch was refused while the credential was not proven.
    pub(super) fn is_being_proven(&self) -> bool {
        self.target.proving.has_begun() && !self.session.is_proven()
    }

    /// Waits while the parts of another batch prove the credential. When the most requests were sent and none was
    /// accepted, sends a record that was accepted before; if that is not accepted either, the lane stops.
    pub(super) async fn await_turn_of_proof(&self, node: &BatchTask) -> Result<(), LaneExit> {
        if !self.is_being_proven() {
            return Ok(());
        }
        let waited = async {
            if node.turn.is_none() {
                self.or_exit(self.target.proving.permit()).await?;
            }
            self.stop_without_proof(node.batch_id).await
        };
        match waited.await {
            Err(exit) if node.signed.is_some() => Err(self.withdraw(node, exit).await),
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

    /// Replaces a batch by two parts.
    pub(super) async fn split(
        &self,
        node: &BatchTask,
        parts: [Batch; 2],
        settlement: AttemptResult,
        words: &OutcomeMessage,
    ) -> Result<[BatchTask; 2], LaneExit> {
        let (doing, journal) = (self.doing(), &self.worker.journal);
        let lost = words.status == "unknown";
        let why = (words.message.as_str(), lost);
        let split = journal.split(doing, node.batch_id, &node.batch, &parts, settlement, why);
        let ids = around(Step::Split, split).await?;
        let records = node.batch.records.len();
        tracing::info!(records, first_part = ids[0], second_part = ids[1], "batch split");
        self.window.lock().await.add_part(node.root);
        let [first, second] = parts;
        let part = |batch_id, batch| BatchTask {
            lost,
            once: node.once,
            ..BatchTask::new(batch_id, batch, node.root)
        };
        Ok([part(ids[0], first), part(ids[1], second)])
    }

    /// Sets the records of a batch aside that cannot be split any further.
    async fn set_aside(
        &self,
        node: &BatchTask,
        settlement: AttemptResult,
        words: OutcomeMessage,
    ) -> Result<(), LaneExit> {
        let refused: Vec<Problem> = node
            .batch
            .records
            .iter()
            .map(|&row| words.of_row(node.batch_id, settlement.http_status, &node.batch, row))
            .collect();
        let rejections_max = self.worker.settings.sync.max_rejections;
        let mut window = self.window.lock().await;
        let advance = window.advance_after(node.root);
        let (doing, journal) = (self.doing(), &self.worker.journal);
        let refused = (&refused[..], rejections_max);
        let set_aside = journal.set_aside(doing, node.batch_id, &node.batch, refused, settlement, advance);
        if !around(Step::SetAside, set_aside).await? {
            drop(window);
            let words = words.too_many(rejections_max);
            return Err(self.stop(node, words, settlement, None).await);
        }
        window.part_done(node.root);
        drop(window);
        self.has_set_aside.store(true, Ordering::Relaxed);
        self.report(|report| report.count_set_aside(&node.batch));
        tracing::info!(rows = node.batch.records.len() + node.batch.invalid.len(), "rows set aside");
        Ok(())
    }
}
