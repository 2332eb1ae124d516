//! Delivery: the batches of one pass on their way, several at once, until each row is accepted, set aside, or
//! the lane stops.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::channel::Channel;
use super::decision::{Attempt, Decision, decide};
use super::lane::{Halt, Held};
use super::rows::{Limits, Rows};
use super::words::{self, Words};
use super::{EntityReport, Worker};
use crate::batch::Batch;
use crate::config::OnAmbiguous;
use crate::elven::{Answer, Signed, Verdict};
use crate::journal::{Advance, Doing, Kind, OpenPass, Problem, Recorded, Settlement};
use crate::ledger::{LedgerError, Reading};
use crate::watermark::Cursor;

/// A batch that ended unknown in so many runs is tried once by each later one.
const UNKNOWN_RUNS_MAX: i32 = 3;

/// The batches of one pass on their way.
pub(super) struct Delivery {
    worker: Worker,
    run_id: i64,
    zone: chrono_tz::Tz,
    channel: Arc<Channel>,
    pass: OpenPass,
    window: tokio::sync::Mutex<Window>,
    in_flight: Arc<Semaphore>,
    /// Set when the lane has to stop: what is in flight is finished, nothing new is sent.
    halted: watch::Sender<bool>,
    report: Mutex<EntityReport>,
}

/// A batch, or a part of one, on its way.
struct Node {
    batch_id: i64,
    batch: Batch,
    /// Which of the batches that were cut from the pass it is, or is a part of.
    root: usize,
    /// Signed and announced already.
    ready: Option<(Signed, OwnedSemaphorePermit)>,
    /// An attempt may have arrived.
    lost: bool,
    /// It was sent before.
    repeated: bool,
    unknown_runs: i32,
}

/// What is on its way or done, in the order of the pass, from the cursor on.
#[derive(Clone, Default)]
struct Window {
    cursor: Option<Cursor>,
    /// Number of the first one that is not done.
    first: usize,
    /// For each: where it ends, and how many parts of it are not done.
    roots: std::collections::VecDeque<(Cursor, usize)>,
}

impl Window {
    fn push(&mut self, last: Cursor, parts: usize) -> usize {
        self.roots.push_back((last, parts));
        self.first + self.roots.len() - 1
    }

    fn add_part(&mut self, root: usize) {
        self.roots[root - self.first].1 += 1;
    }

    /// What it is when a part is done, and how far the cursor moves by that: over all that is done in a row.
    /// To be kept once the journal has it.
    fn with_part_done(&self, root: usize) -> (Self, Option<Advance>) {
        let mut then = self.clone();
        then.roots[root - self.first].1 -= 1;
        let mut last = None;
        while then.roots.front().is_some_and(|(_, parts)| *parts == 0) {
            last = then.roots.pop_front().map(|(last, _)| last);
            then.first += 1;
        }
        let advance = last.map(|last| Advance { before: self.cursor.clone(), last });
        if let Some(Advance { last, .. }) = &advance {
            then.cursor = Some(last.clone());
        }
        (then, advance)
    }
}

impl Delivery {
    pub(super) fn new(held: &Held<'_>, pass: OpenPass, cursor: Option<Cursor>) -> Arc<Self> {
        let window = Window { cursor, ..Window::default() };
        Arc::new(Self {
            worker: held.worker.clone(),
            run_id: held.run_id,
            zone: held.target.zone,
            channel: held.target.channel.clone(),
            pass,
            window: tokio::sync::Mutex::new(window),
            in_flight: Arc::new(Semaphore::new(held.worker.settings.sync.requests_in_flight)),
            halted: watch::Sender::new(false),
            report: Mutex::new(EntityReport::idle(&held.target.entity_id)),
        })
    }

    /// Adds what was done to the report of the lane.
    pub(super) fn report_to(&self, report: &mut EntityReport) {
        report.add(&self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn doing(&self) -> Doing<'_> {
        Doing { pass: &self.pass, run_id: self.run_id }
    }

    /// Replays what the journal has of the pass beyond the cursor: what is done is passed over, the rest is sent
    /// over its recorded interval. Returns where to go on reading.
    pub(super) async fn recover<'r>(
        self: &Arc<Self>,
        reading: &impl Fn(Option<Cursor>, Option<Cursor>) -> Reading<'r>,
    ) -> Result<Option<Cursor>, Halt> {
        let recorded = self.worker.journal.recorded(&self.pass).await?;
        let mut parts: BTreeMap<i64, Vec<&Recorded>> = BTreeMap::new();
        for part in &recorded {
            if let Some(parent_id) = part.parent_id {
                parts.entry(parent_id).or_default().push(part);
            }
        }
        let roots: Vec<&Recorded> = recorded.iter().filter(|batch| batch.parent_id.is_none()).collect();
        // All at once, so that the cursor passes over those that are done as soon as those before them are.
        let mut open = Vec::new();
        for root in &roots {
            let mut leaves = vec![*root];
            while let Some(split) = leaves.iter().position(|leaf| leaf.is_split) {
                let split = leaves.swap_remove(split);
                leaves.extend(parts.get(&split.batch_id).into_iter().flatten());
            }
            leaves.retain(|leaf| !leaf.is_done);
            leaves.sort_by_key(|leaf| leaf.batch_id);
            let number = self.window.lock().await.push(root.last.clone(), leaves.len());
            open.push((number, *root, leaves));
        }
        let mut after = self.window.lock().await.cursor.clone();
        for (number, root, leaves) in open {
            if !leaves.is_empty() {
                let interval = reading(after.clone(), Some(root.last.clone()));
                let rows = Rows::of(self.worker.ledger.pass(interval).await?).all().await?;
                for leaf in leaves {
                    let rows =
                        rows.iter().filter(|row| leaf.ids.contains(&row.id.to_string())).cloned().collect();
                    self.redo(number, root, leaf, rows, after.clone()).await?;
                }
            }
            after = Some(root.last.clone());
        }
        Ok(after)
    }

    /// Sends a recorded batch, or a part of one, over again.
    async fn redo(
        self: &Arc<Self>,
        root: usize,
        whole: &Recorded,
        leaf: &Recorded,
        rows: Vec<crate::ledger::Row>,
        before: Option<Cursor>,
    ) -> Result<(), Halt> {
        if rows.is_empty() {
            let mut window = self.window.lock().await;
            let (then, advance) = window.with_part_done(root);
            self.worker.journal.emptied(self.doing(), leaf.batch_id, advance).await?;
            *window = then;
            return Ok(());
        }
        if leaf.may_have_arrived && self.worker.settings.sync.on_ambiguous == OnAmbiguous::Hold {
            return Err(Halt::problem(words::held(leaf.batch_id, &self.pass.lease.entity_id)));
        }
        let batch = Batch { last: whole.last.clone(), ..Batch::build(before, rows, self.zone) };
        if leaf.may_have_arrived {
            tracing::warn!(
                entity_id = self.pass.lease.entity_id,
                batch_id = leaf.batch_id,
                same_bytes = batch.body_sha256 == leaf.body_sha256,
                "the outcome of a batch is unknown; it is sent again"
            );
        }
        let node = Node {
            batch_id: leaf.batch_id,
            batch,
            root,
            ready: None,
            lost: leaf.may_have_arrived,
            repeated: leaf.attempts > 0,
            unknown_runs: leaf.unknown_runs,
        };
        self.deliver(node).await
    }

    /// Reads on, and sends what is read: up to so many requests at once, but never two batches that have a
    /// record for the same account, currency and second, because the later upload wins.
    pub(super) async fn go_on(
        self: &Arc<Self>,
        mut rows: Rows,
        mut before: Option<Cursor>,
    ) -> Result<(), Halt> {
        let mut on_their_way = JoinSet::new();
        let mut keys: HashSet<u64> = HashSet::new();
        let at_once = self.worker.settings.sync.requests_in_flight;
        let mut stop = self.worker.stop.clone();
        let mut halted = self.halted.subscribe();
        let mut first_halt = None;
        let ended = loop {
            let bytes_max = self.channel.body_bytes_max();
            let limits = Limits { records: self.worker.settings.sync.batch_rows, bytes: Some(bytes_max) };
            // A standby may let us wait for long.
            let batch = tokio::select! {
                biased;
                Ok(_) = stop.wait_for(|stop| *stop) => break Err(Halt::Stopped),
                Ok(_) = halted.wait_for(|halted| *halted) => break Ok(()),
                batch = rows.next_batch(before.clone(), self.zone, limits) => match batch {
                    Ok(Some(batch)) => batch,
                    Ok(None) => break Ok(()),
                    Err(problem) => break Err(problem.into()),
                },
            };
            while on_their_way.len() >= at_once || batch.keys.iter().any(|key| keys.contains(key)) {
                let Some(done) = on_their_way.join_next().await else { break };
                take(done, &mut keys, &mut first_halt);
            }
            while let Some(done) = on_their_way.try_join_next() {
                take(done, &mut keys, &mut first_halt);
            }
            // The limit may have been learned meanwhile.
            let learned = self.channel.body_bytes_max();
            if learned < bytes_max && learned < batch.body.len() {
                rows.put_back(batch);
                continue;
            }
            before = Some(batch.last.clone());
            let batch_keys = batch.keys.clone();
            match self.announce(batch).await {
                Ok(node) => {
                    keys.extend(&batch_keys);
                    let delivery = self.clone();
                    on_their_way.spawn(async move { (batch_keys, delivery.deliver(node).await) });
                }
                Err(halt) => break Err(halt),
            }
        };
        while let Some(done) = on_their_way.join_next().await {
            take(done, &mut keys, &mut first_halt);
        }
        match first_halt {
            Some(halt) => Err(halt),
            None => ended,
        }
    }

    /// Signs a batch, then records it, so that the lease is checked after signing. In this order for one batch
    /// after the other: the journal never has one without those before it.
    async fn announce(&self, batch: Batch) -> Result<Node, Halt> {
        let ready = if batch.records.is_empty() { None } else { Some(self.sign(&batch, None).await?) };
        let batch_id = self.worker.journal.announce(self.doing(), &batch).await?;
        let root = self.window.lock().await.push(batch.last.clone(), 1);
        Ok(Node { batch_id, batch, root, ready, lost: false, repeated: false, unknown_runs: 0 })
    }

    /// Waits for a turn, and signs.
    async fn sign(
        &self,
        batch: &Batch,
        corrected: Option<TimeDelta>,
    ) -> Result<(Signed, OwnedSemaphorePermit), Halt> {
        let permit = self.in_flight.clone().acquire_owned().await.map_err(|_| Halt::Stopped)?;
        self.or_halt(self.channel.turn(self.worker.settings.retry.max)).await?.map_err(|pause| {
            Halt::Problem(Box::new(Problem::of_lane(Kind::Throttled, words::come_later(pause))), Some(pause))
        })?;
        let signed = self
            .channel
            .sign_import(corrected, batch.body.clone())
            .map_err(|problem| Halt::problem(Problem::of_lane(Kind::Config, problem.to_string())))?;
        Ok((signed, permit))
    }

    /// Waits for something, unless the lane has to stop meanwhile.
    async fn or_halt<T>(&self, waiting: impl Future<Output = T>) -> Result<T, Halt> {
        let (mut stop, mut halted) = (self.worker.stop.clone(), self.halted.subscribe());
        tokio::select! {
            biased;
            Ok(_) = stop.wait_for(|stop| *stop) => Err(Halt::Stopped),
            Ok(_) = halted.wait_for(|halted| *halted) => Err(Halt::Stopped),
            done = waiting => Ok(done),
        }
    }

    /// Sends a batch until all its rows are accepted or set aside, by whatever it takes.
    ///
    /// The latest parts are sent first: when all is refused, single records soon say so. And they lie side by
    /// side, not one in the other: however often a batch is split, the stack does not grow.
    async fn deliver(&self, node: Node) -> Result<(), Halt> {
        let at_once = self.worker.settings.sync.requests_in_flight;
        let mut first_halt = None;
        let mut waiting = vec![node];
        let mut on_their_way = FuturesUnordered::new();
        loop {
            let room = waiting.len().saturating_sub(at_once - on_their_way.len());
            on_their_way.extend(waiting.drain(room..).map(|node| self.attempts(node)));
            match on_their_way.next().await {
                None => return first_halt.map_or(Ok(()), Err),
                Some(Ok(parts)) => waiting.extend(parts),
                Some(Err(halt)) => {
                    self.halted.send_replace(true);
                    waiting.clear();
                    note(halt, &mut first_halt);
                }
            }
        }
    }

    /// Sends a batch until it is accepted or set aside, or parts have taken its place: returns those.
    async fn attempts(&self, mut node: Node) -> Result<Vec<Node>, Halt> {
        let settings = &self.worker.settings;
        let attempts_max = if node.unknown_runs >= UNKNOWN_RUNS_MAX { 1 } else { settings.retry.attempts };
        // A clock that is being tried: how far it is ahead of this machine's.
        let mut corrected = None;
        let mut number = 1;
        if node.batch.records.is_empty() {
            self.settle(&node, Settlement::default()).await?;
            return Ok(Vec::new());
        }
        loop {
            let (signed, permit) = if let Some(ready) = node.ready.take() {
                ready
            } else {
                let ready = self.sign(&node.batch, corrected).await?;
                let (batch_id, lost) = (node.batch_id, node.lost);
                self.worker.journal.announce_again(self.doing(), batch_id, &node.batch, lost).await?;
                ready
            };
            let (begun, signed_ahead) = (Instant::now(), signed.ahead());
            let answer = self.channel.send(signed).await;
            drop(permit);
            let settlement = settlement(&answer, begun, node.repeated);
            node.repeated = true;
            let verdict = self.channel.judge(&answer);
            // What else comes back may be from somebody who did not look at the signature.
            if matches!(verdict, Verdict::Accepted | Verdict::Refused(_))
                && let Some(ahead) = corrected.take()
            {
                self.channel.keep_clock(ahead);
            }
            let attempt = Attempt { number, attempts_max, clock_corrected: corrected.is_some() };
            let words =
                words::of(&verdict, settlement.http_status, &node.batch, &self.channel.credential.name);
            match decide(&verdict, attempt, &settings.retry, fastrand::u32(..)) {
                Decision::Settle => {
                    self.channel.accepted(node.batch.body.len());
                    self.settle(&node, settlement).await?;
                    return Ok(Vec::new());
                }
                Decision::Isolate => return self.isolate(node, &verdict, settlement, words).await,
                Decision::CorrectClock(ahead) => {
                    self.answered(&node, &words, settlement).await?;
                    corrected = Some(signed_ahead + ahead);
                    // The corrected attempt is one more.
                    continue;
                }
                Decision::Again { lost: true, .. } if settings.sync.on_ambiguous == OnAmbiguous::Hold => {
                    return Err(self.stop(&node, words, settlement, None).await);
                }
                Decision::Again { after, all, lost } => {
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

    /// Records that a batch is accepted, and moves the cursor over all that is done.
    async fn settle(&self, node: &Node, settlement: Settlement) -> Result<(), Halt> {
        let mut window = self.window.lock().await;
        let (then, advance) = window.with_part_done(node.root);
        self.worker.journal.settle(self.doing(), node.batch_id, &node.batch, settlement, advance).await?;
        *window = then;
        drop(window);
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
    async fn answered(&self, node: &Node, words: &Words, settlement: Settlement) -> Result<(), Halt> {
        let Words { status, message, .. } = words;
        let (id, batch) = (node.batch_id, &node.batch);
        Ok(self.worker.journal.answered(self.doing(), id, batch, status, settlement, message).await?)
    }

    /// Records an answer after which the lane stops where it is, and says why it does.
    async fn stop(
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
        let problem = words.into_problem(node.batch_id, settlement.http_status);
        Halt::Problem(Box::new(problem), not_before)
    }

    /// Halves a refused batch, and returns the parts; a record that stands alone is set aside.
    async fn isolate(
        &self,
        node: Node,
        verdict: &Verdict,
        settlement: Settlement,
        words: Words,
    ) -> Result<Vec<Node>, Halt> {
        let settings = &self.worker.settings;
        let halves = node.batch.halves(self.zone);
        if *verdict == Verdict::TooLarge {
            self.channel.too_large(node.batch.body.len());
        } else {
            let open = self.worker.journal.rejections(&self.pass.lease.entity_id).await?;
            if open >= settings.sync.max_rejections {
                let words = words.too_many(open);
                return Err(self.stop(&node, words, settlement, None).await);
            }
        }
        // A revoked key or a changed contract refuses everything: then nothing is taken apart. That a body is
        // too large says itself what is wrong with it, until it is a single record.
        if (*verdict != Verdict::TooLarge || halves.is_none())
            && let Err(instead) = self.channel.prove(settings.retry.max).await
        {
            let words = words.unproven(&instead);
            return Err(self.stop(&node, words, settlement, None).await);
        }
        if let Some(parts) = halves {
            return Ok(self.split(&node, parts, settlement, &words.message).await?.into());
        }
        if let Some(parts) = node.batch.losers_apart(self.zone) {
            let [winner, losers] = self.split(&node, parts, settlement, &words.message).await?;
            // It was the answer to the whole that refused it: no request is made for it alone.
            let settlement = Settlement { sent: false, ..settlement };
            self.set_aside(&winner, settlement, words).await?;
            return Ok(vec![losers]);
        }
        self.set_aside(&node, settlement, words).await?;
        Ok(Vec::new())
    }

    /// Lets two parts take the place of a batch.
    async fn split(
        &self,
        node: &Node,
        parts: [Batch; 2],
        settlement: Settlement,
        error: &str,
    ) -> Result<[Node; 2], Halt> {
        let ids = self
            .worker
            .journal
            .split(self.doing(), node.batch_id, &node.batch, &parts, settlement, error)
            .await?;
        self.window.lock().await.add_part(node.root);
        let [first, second] = parts;
        let part = |batch_id, batch| Node {
            batch_id,
            batch,
            root: node.root,
            ready: None,
            lost: false,
            repeated: false,
            unknown_runs: 0,
        };
        Ok([part(ids[0], first), part(ids[1], second)])
    }

    /// Sets the records of a batch aside that cannot be taken apart any further.
    async fn set_aside(&self, node: &Node, settlement: Settlement, words: Words) -> Result<(), Halt> {
        let refused: Vec<Problem> = node
            .batch
            .records
            .iter()
            .map(|&row| words.of_row(node.batch_id, settlement.http_status, &node.batch, row, self.zone))
            .collect();
        let rejections_max = self.worker.settings.sync.max_rejections;
        let mut window = self.window.lock().await;
        let (then, advance) = window.with_part_done(node.root);
        let set_aside = self
            .worker
            .journal
            .set_aside(
                self.doing(),
                node.batch_id,
                &node.batch,
                (&refused, rejections_max),
                settlement,
                advance,
            )
            .await?;
        if !set_aside {
            drop(window);
            let words = words.too_many(rejections_max);
            return Err(self.stop(node, words, settlement, None).await);
        }
        *window = then;
        drop(window);
        self.report(|report| report.count_set_aside(&node.batch));
        Ok(())
    }

    fn report(&self, change: impl FnOnce(&mut EntityReport)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What is recorded of an answer, whatever it means.
fn settlement(answer: &Answer, begun: Instant, repeated: bool) -> Settlement {
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

/// Takes in that a batch is done, or why the lane has to stop.
fn take(
    done: Result<(Vec<u64>, Result<(), Halt>), tokio::task::JoinError>,
    keys: &mut HashSet<u64>,
    first_halt: &mut Option<Halt>,
) {
    match done {
        Ok((done, Ok(()))) => done.iter().for_each(|key| {
            keys.remove(key);
        }),
        Ok((_, Err(halt))) => note(halt, first_halt),
        Err(_) => *first_halt = Some(LedgerError::Decode("the sender stopped").into()),
    }
}

/// Keeps the first reason to stop, unless that is only that something else has stopped it.
fn note(halt: Halt, first_halt: &mut Option<Halt>) {
    if first_halt.as_ref().is_none_or(|first| matches!(first, Halt::Stopped)) {
        *first_halt = Some(halt);
    }
}

/// What is recorded of an answer.
pub(super) fn settlement(answer: &Answer, begun: Instant, repeated: bool) -> Settlement {
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
