//! Delivery: the batches of one pass on their way, several at once, until each row is accepted, set aside, or
//! the lane stops.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
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
use crate::elven::{Answer, Signed, Verdict, judge};
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
#[derive(Default)]
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

    /// Takes a part for done, and says how far the cursor moves by that: over all that is done in a row.
    fn part_done(&mut self, root: usize) -> Option<Advance> {
        self.roots[root - self.first].1 -= 1;
        let before = self.cursor.clone();
        let mut last = None;
        while self.roots.front().is_some_and(|(_, parts)| *parts == 0) {
            last = self.roots.pop_front().map(|(last, _)| last);
            self.first += 1;
        }
        let last = last?;
        self.cursor = Some(last.clone());
        Some(Advance { before, last })
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
            let advance = window.part_done(root);
            return Ok(self.worker.journal.emptied(self.doing(), leaf.batch_id, advance).await?);
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
        self.clone().deliver(node).await
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
            let limits = Limits {
                records: self.worker.settings.sync.batch_rows,
                bytes: Some(self.channel.body_bytes_max()),
            };
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
            before = Some(batch.last.clone());
            while on_their_way.len() >= at_once || batch.keys.iter().any(|key| keys.contains(key)) {
                let Some(done) = on_their_way.join_next().await else { break };
                take(done, &mut keys, &mut first_halt);
            }
            while let Some(done) = on_their_way.try_join_next() {
                take(done, &mut keys, &mut first_halt);
            }
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
        let ready =
            if batch.records.is_empty() { None } else { Some(self.sign(&batch, TimeDelta::zero()).await?) };
        let batch_id = self.worker.journal.announce(self.doing(), &batch).await?;
        let root = self.window.lock().await.push(batch.last.clone(), 1);
        Ok(Node { batch_id, batch, root, ready, lost: false, repeated: false, unknown_runs: 0 })
    }

    /// Waits for a turn, and signs.
    async fn sign(
        &self,
        batch: &Batch,
        corrected: TimeDelta,
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
    fn deliver(self: Arc<Self>, node: Node) -> BoxFuture<'static, Result<(), Halt>> {
        async move {
            let delivered = self.attempts(node).await;
            if delivered.is_err() {
                self.halted.send_replace(true);
            }
            delivered
        }
        .boxed()
    }

    async fn attempts(self: &Arc<Self>, mut node: Node) -> Result<(), Halt> {
        let settings = &self.worker.settings;
        let attempts_max = if node.unknown_runs >= UNKNOWN_RUNS_MAX { 1 } else { settings.retry.attempts };
        let mut corrected = TimeDelta::zero();
        let mut number = 1;
        if node.batch.records.is_empty() {
            return self.settle(&node, Settlement::default()).await;
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
            let begun = Instant::now();
            let answer = self.channel.send(signed).await;
            drop(permit);
            let settlement = Settlement {
                http_status: match &answer {
                    Answer::Response { status, .. } => Some(i32::from(*status)),
                    Answer::NotSent(_) | Answer::Lost(_) => None,
                },
                duration_ms: i64::try_from(begun.elapsed().as_millis()).ok(),
                sent: !matches!(answer, Answer::NotSent(_)),
                repeated: node.repeated,
            };
            node.repeated = true;
            let verdict = judge(&answer);
            if !corrected.is_zero() && !matches!(verdict, Verdict::Unauthorized(..)) {
                self.channel.keep_clock(std::mem::take(&mut corrected));
            }
            let attempt = Attempt { number, attempts_max, clock_corrected: !corrected.is_zero() };
            let words =
                words::of(&verdict, settlement.http_status, &node.batch, &self.channel.credential.name);
            match decide(&verdict, attempt, &settings.retry, fastrand::u32(..)) {
                Decision::Settle => {
                    self.channel.accepted(node.batch.body.len());
                    return self.settle(&node, settlement).await;
                }
                Decision::Isolate => return self.isolate(node, &verdict, settlement, words).await,
                Decision::CorrectClock(ahead) => {
                    self.answered(&node, &words, settlement).await?;
                    corrected = ahead;
                    // The corrected attempt is one more.
                    continue;
                }
                Decision::Again { lost: true, .. } if settings.sync.on_ambiguous == OnAmbiguous::Hold => {
                    return self.stop(&node, words, settlement, None).await;
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
                    return self.stop(&node, words, settlement, not_before).await;
                }
            }
            number += 1;
        }
    }

    /// Records that a batch is accepted, and moves the cursor over all that is done.
    async fn settle(&self, node: &Node, settlement: Settlement) -> Result<(), Halt> {
        let mut window = self.window.lock().await;
        let advance = window.part_done(node.root);
        self.worker.journal.settle(self.doing(), node.batch_id, &node.batch, settlement, advance).await?;
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

    /// Records an answer after which the lane stops where it is.
    async fn stop(
        &self,
        node: &Node,
        words: Words,
        settlement: Settlement,
        not_before: Option<Duration>,
    ) -> Result<(), Halt> {
        self.answered(node, &words, settlement).await?;
        if words.status == "unknown" {
            self.worker.journal.count_unknown_run(&self.pass, node.batch_id).await?;
        }
        if let Some(pause) = not_before {
            self.channel.pause(pause);
        }
        let problem = words.into_problem(node.batch_id, settlement.http_status);
        Err(Halt::Problem(Box::new(problem), not_before))
    }

    /// Halves a refused batch until the refused records stand alone, and sets those aside.
    async fn isolate(
        self: &Arc<Self>,
        node: Node,
        verdict: &Verdict,
        settlement: Settlement,
        words: Words,
    ) -> Result<(), Halt> {
        let settings = &self.worker.settings;
        if *verdict == Verdict::TooLarge {
            self.channel.too_large(node.batch.body.len());
        } else {
            // A revoked key or a changed contract refuses everything: then nothing is taken apart.
            let open = self.worker.journal.rejections(&self.pass.lease.entity_id).await?;
            if open >= settings.sync.max_rejections {
                let words = words.too_many(open);
                return self.stop(&node, words, settlement, None).await;
            }
            if let Err(instead) = self.channel.prove(settings.retry.max).await {
                let words = words.unproven(&instead);
                return self.stop(&node, words, settlement, None).await;
            }
        }
        if let Some(parts) = node.batch.halves(self.zone) {
            return self.split(node, parts, settlement, &words.message).await;
        }
        if let Err(instead) = self.channel.prove(settings.retry.max).await {
            let words = words.unproven(&instead);
            return self.stop(&node, words, settlement, None).await;
        }
        if let Some([winner, losers]) = node.batch.losers_apart(self.zone) {
            let (root, batch_id) = (node.root, node.batch_id);
            let parts = [winner, losers];
            let ids = self
                .worker
                .journal
                .split(self.doing(), batch_id, &node.batch, &parts, settlement, &words.message)
                .await?;
            self.window.lock().await.add_part(root);
            let [winner, losers] = Self::nodes(root, ids, parts);
            self.set_aside(&winner, Settlement::default(), words).await?;
            return self.clone().deliver(losers).await;
        }
        self.set_aside(&node, settlement, words).await
    }

    /// Lets two parts take the place of a batch, both at once.
    async fn split(
        self: &Arc<Self>,
        node: Node,
        parts: [Batch; 2],
        settlement: Settlement,
        error: &str,
    ) -> Result<(), Halt> {
        let ids = self
            .worker
            .journal
            .split(self.doing(), node.batch_id, &node.batch, &parts, settlement, error)
            .await?;
        self.window.lock().await.add_part(node.root);
        let [first, second] = Self::nodes(node.root, ids, parts);
        let (first, second) = tokio::join!(self.clone().deliver(first), self.clone().deliver(second));
        // A problem says more than that the other part was stopped by it.
        match (first, second) {
            (Err(Halt::Stopped), Err(other)) | (Err(other), _) => Err(other),
            (Ok(()), second) => second,
        }
    }

    fn nodes(root: usize, ids: [i64; 2], parts: [Batch; 2]) -> [Node; 2] {
        let [first, second] = parts;
        let node = |batch_id, batch| Node {
            batch_id,
            batch,
            root,
            ready: None,
            lost: false,
            repeated: false,
            unknown_runs: 0,
        };
        [node(ids[0], first), node(ids[1], second)]
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
        let advance = window.part_done(node.root);
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
        drop(window);
        if !set_aside {
            let words = words.too_many(rejections_max);
            return self.stop(node, words, settlement, None).await;
        }
        self.report(|report| report.count_set_aside(&node.batch));
        Ok(())
    }

    fn report(&self, change: impl FnOnce(&mut EntityReport)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Takes in that a batch is done, or why the lane has to stop: the first reason counts, unless that is only
/// that something else has stopped it.
fn take(
    done: Result<(Vec<u64>, Result<(), Halt>), tokio::task::JoinError>,
    keys: &mut HashSet<u64>,
    first_halt: &mut Option<Halt>,
) {
    match done {
        Ok((done, Ok(()))) => done.iter().for_each(|key| {
            keys.remove(key);
        }),
        Ok((_, Err(halt))) => {
            if first_halt.as_ref().is_none_or(|first| matches!(first, Halt::Stopped)) {
                *first_halt = Some(halt);
            }
        }
        Err(_) => *first_halt = Some(LedgerError::Decode("the sender stopped").into()),
    }
}
