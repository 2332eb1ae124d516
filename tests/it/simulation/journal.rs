//! The model of the journal: the sync tables in memory, under the same fences as those of the SQL.

mod tables;
mod writes;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use futures_util::FutureExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use elven_sync::batch::RecordRules;
use elven_sync::elven::{List, ListEntry};
use elven_sync::journal::{
    Accepted, Blocker, Fence, Holder, JournalError, LaneStore, Lasts, Lease, NewPass, OpenWork, Opened,
    Problem, Purpose, RecordedBatch, Reply, Side, Take, Taken, WorkKind, WriteRequest,
};

use self::tables::note_fence;
pub use self::tables::{BatchRow, Tables};
use self::writes::{apply, describe};
use super::process::Process;
use super::world::{LEASE, Sabotage, State, World};

/// The journal as one process sees it.
#[derive(Debug)]
pub struct ModelJournal {
    process: Arc<Process>,
    queue: UnboundedSender<WriteRequest>,
}

impl ModelJournal {
    pub fn start(process: &Arc<Process>) -> Self {
        let (queue, submitted) = unbounded_channel();
        tokio::spawn(write_all(process.clone(), submitted));
        Self { process: process.clone(), queue }
    }

    /// A transaction: it may fail, and its outcome may stay unknown.
    async fn transaction<T>(
        &self,
        name: &str,
        change: impl FnOnce(&World, &mut State) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        self.process.step(1, 15).await;
        let done = transact(&self.process, name, change)?;
        self.process.step(0, 5).await;
        done.map_err(|()| broken())
    }
}

fn broken() -> JournalError {
    sqlx::Error::WorkerCrashed.into()
}

/// Changes the tables. `Err(())` within: it is done, but the caller does not learn that.
fn transact<T>(
    process: &Process,
    name: &str,
    change: impl FnOnce(&World, &mut State) -> Result<T, JournalError>,
) -> Result<Result<T, ()>, JournalError> {
    let world = &process.world;
    if world.happens(world.faults.write_fails) {
        world.log(|| format!("{}: {name} fails", process.name));
        return Err(broken());
    }
    let done = {
        let mut state = world.state();
        state.keep();
        change(world, &mut state)
    };
    world.log(|| format!("{}: {name}: {}", process.name, if done.is_ok() { "done" } else { "refused" }));
    let is_unknown = world.happens(world.faults.commit_unknown);
    if is_unknown { done.map(|_| Err(())) } else { done.map(Ok) }
}

/// The task that writes what lanes submit.
async fn write_all(process: Arc<Process>, mut submitted: UnboundedReceiver<WriteRequest>) {
    while let Some(request) = submitted.recv().await {
        if let Some(reason) = request.is_too_late() {
            request.reply_with(Err(reason));
            continue;
        }
        process.step(1, 20).await;
        let name = describe(&request);
        let outcome = transact(&process, &name, |world, state| apply(world, state, &request));
        process.step(0, 5).await;
        if let Ok(Ok(written)) = &outcome {
            request.supersedes_answers(*written);
        }
        request.reply_with(outcome.and_then(|done| done.map_err(|()| broken())));
    }
}

impl LaneStore for ModelJournal {
    fn submit(&self, request: WriteRequest) {
        let _ = self.queue.send(request);
    }

    fn take_and_open<'a>(
        &'a self,
        entity_id: &'a str,
        opening: Option<NewPass<'a>>,
        purpose: Purpose,
    ) -> Reply<'a, Taken> {
        assert_eq!(purpose, Purpose::Run);
        let name = format!("{entity_id} take the lease");
        let taken = async move {
            let take = |world: &World, state: &mut State| {
                let now = Instant::now();
                let lane = state.tables.lane(entity_id);
                let wait = if world.is(Sabotage::TakeoverTooEarly) { Duration::ZERO } else { world.window };
                if lane.owner.is_some() && lane.expires_at.is_some_and(|at| at + wait >= now) {
                    let seen = format!("{:?} {} {:?}", lane.owner, lane.epoch, lane.expires_at);
                    return Ok((Take::Held { seen, holder: Holder::Run }, None));
                }
                lane.epoch += 1;
                (lane.owner, lane.expires_at) = (Some(self.process.name.clone()), Some(now + LEASE));
                let fenced = lane.fence_until.and_then(|at| at.checked_duration_since(now));
                let fence = Fence::new(world.window, fenced);
                let (entity, owner) = (entity_id.to_owned(), self.process.name.clone());
                let lease = Lease { entity_id: entity, owner, epoch: lane.epoch, fence };
                let opened = opening.and_then(|opening| state.open(world, entity_id, opening));
                let mut lane = state.lane(entity_id);
                if opened.is_some() {
                    lane.open = None;
                }
                Ok((Take::Taken(lease, Box::new(lane)), opened))
            };
            self.transaction(&name, take).await
        };
        taken.boxed()
    }

    fn want<'a>(&'a self, _: &'a str) -> Reply<'a, ()> {
        async { Ok(()) }.boxed()
    }

    fn check_lease<'a>(&'a self, lease: &'a Lease) -> Reply<'a, Lasts> {
        async move {
            let (asked, at) = (Instant::now(), now());
            let check = |world: &World, state: &mut State| {
                let lane = if world.is(Sabotage::LeaseNotChecked) {
                    state.tables.lane(&lease.entity_id)
                } else {
                    state.tables.held(lease)?
                };
                let now = Instant::now();
                let expires_at = lane.expires_at.filter(|at| *at > now).unwrap_or(now + LEASE);
                lane.expires_at = Some(expires_at);
                Ok(expires_at - now)
            };
            let left = self.transaction("check the lease", check).await?;
            Ok(Lasts::new(asked, at, left))
        }
        .boxed()
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> Reply<'a, ()> {
        let release = move |world: &World, state: &mut State| {
            if let Ok(lane) = state.tables.held(lease) {
                let is_fenced = note_fence(world, lane, &lease.fence);
                (lane.owner, lane.expires_at) = (None, None);
                state.keeps_fence(is_fenced);
            }
            Ok(())
        };
        async move { self.transaction("release the lease", release).await }.boxed()
    }

    fn end_retry_slice<'a>(&'a self, _: &'a Lease) -> Reply<'a, ()> {
        async { Ok(()) }.boxed()
    }

    fn open_pass<'a>(&'a self, lease: &'a Lease, opening: NewPass<'a>) -> Reply<'a, Opened> {
        let open = move |world: &World, state: &mut State| {
            state.tables.held(lease)?;
            state.open(world, &lease.entity_id, opening).ok_or(JournalError::LeaseLost)
        };
        async move { self.transaction("open a pass", open).await }.boxed()
    }

    fn fill_mapping<'a>(&'a self, lease: &'a Lease, mapping: &'a str) -> Reply<'a, ()> {
        let fill = move |_: &World, state: &mut State| {
            state.tables.held(lease)?.mapping.get_or_insert_with(|| mapping.to_owned());
            Ok(())
        };
        async move { self.transaction("fill the mapping", fill).await }.boxed()
    }

    fn lane_failed<'a>(
        &'a self,
        lease: &'a Lease,
        _: i64,
        problem: &'a Problem,
        not_before: Option<Duration>,
    ) -> Reply<'a, ()> {
        let fail = move |world: &World, state: &mut State| {
            let lane = state.tables.held(lease)?;
            lane.last_error = Some(problem.message.clone());
            lane.not_before = lane.not_before.max(not_before.map(|pause| Instant::now() + pause));
            let is_fenced = note_fence(world, lane, &lease.fence);
            (lane.owner, lane.expires_at) = (None, None);
            state.keeps_fence(is_fenced);
            Ok(())
        };
        let name = format!("{} fails: {}", lease.entity_id, problem.message);
        async move { self.transaction(&name, fail).await }.boxed()
    }

    fn lanes_failed<'a>(&'a self, _: i64, problems: &'a [(String, Problem)]) -> Reply<'a, ()> {
        let fail = move |_: &World, state: &mut State| {
            for (entity_id, problem) in problems {
                state.tables.lane(entity_id).last_error = Some(problem.message.clone());
            }
            Ok(())
        };
        async move { self.transaction("fail without leases", fail).await }.boxed()
    }

    /// No session but those of workers uses the model.
    fn blockers<'a>(&'a self, _: &'a str, _: i64) -> Reply<'a, Vec<Blocker>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn lane_succeeded<'a>(&'a self, lease: &'a Lease) -> Reply<'a, ()> {
        let succeed = move |world: &World, state: &mut State| {
            let lane = state.tables.held(lease)?;
            let is_fenced = note_fence(world, lane, &lease.fence);
            (lane.owner, lane.expires_at, lane.last_error) = (None, None, None);
            state.keeps_fence(is_fenced);
            Ok(())
        };
        async move { self.transaction("succeed", succeed).await }.boxed()
    }

    fn batches<'a>(&'a self, pass: &'a OpenWork) -> Reply<'a, Vec<RecordedBatch>> {
        let read = move |world: &World, state: &mut State| {
            let WorkKind::Pass(pass_id) = pass.work else { return Ok(Vec::new()) };
            let cursor = state.tables.lane(&pass.lease.entity_id).cursor.clone();
            let roots = state.tables.of_pass(pass_id).filter(|batch| batch.parent_id.is_none());
            let passed =
                roots.filter(|batch| Some(&batch.last) == cursor.as_ref()).map(|batch| batch.batch_id).last();
            let side = |batch: &BatchRow| {
                if batch.batch_id > passed.unwrap_or(0) { Side::Beyond } else { Side::Passed }
            };
            let is_listed = |batch: &&BatchRow| side(batch) == Side::Beyond || batch.state().is_open();
            let is_known = |batch: &&BatchRow| {
                !world.is(Sabotage::UnknownBatchForgotten)
                    || batch.state() != elven_sync::journal::BatchState::Unknown
            };
            let listed = state.tables.of_pass(pass_id).filter(is_listed).filter(is_known);
            Ok(listed.map(|batch| recorded(batch, side(batch))).collect())
        };
        async move { self.transaction("read the batches", read).await }.boxed()
    }

    fn rejections<'a>(&'a self, entity_id: &'a str) -> Reply<'a, usize> {
        let count = move |_: &World, state: &mut State| Ok(state.tables.rejected(entity_id).len());
        async move { self.transaction("count the rejections", count).await }.boxed()
    }

    fn has_accepted<'a>(&'a self, entity_id: &'a str) -> Reply<'a, bool> {
        let read = move |_: &World, state: &mut State| {
            let is_accepted = |batch: &BatchRow| batch.entity_id == entity_id && batch.status == "accepted";
            Ok(state.tables.batches.iter().any(is_accepted))
        };
        async move { self.transaction("ask for an accepted record", read).await }.boxed()
    }

    /// The API of the model lists nothing.
    fn recent_list<'a>(&'a self, _: &'a str, _: List, _: Duration) -> Reply<'a, Option<Vec<String>>> {
        async { Ok(None) }.boxed()
    }

    fn keep_list<'a>(&'a self, _: &'a str, _: List, entries: &'a [ListEntry]) -> Reply<'a, usize> {
        async { Ok(entries.len()) }.boxed()
    }

    fn accepted_lately<'a>(&'a self, entity_id: &'a str, _: &'a RecordRules) -> Reply<'a, Vec<Accepted>> {
        let read = move |_: &World, state: &mut State| {
            let is_accepted = |batch: &&BatchRow| {
                batch.entity_id == entity_id
                    && batch.pass_id.is_some()
                    && batch.status == "accepted"
                    && batch.row_count > 0
            };
            let ids =
                |ids: &[i64]| ids.iter().map(|id| elven_sync::watermark::LedgerId::Number(*id)).collect();
            let tables = &state.tables;
            let accepted = tables.batches.iter().rev().filter(is_accepted).take(10);
            Ok(accepted
                .map(|batch| Accepted {
                    settled: batch.pass_id.and_then(|pass_id| tables.settled[&pass_id].clone()),
                    last_xid: batch.last.xid().unwrap(),
                    ids: ids(&batch.ids),
                    set_aside: ids(&batch.set_aside),
                    map_version: None,
                })
                .collect())
        };
        async move { self.transaction("read what was accepted", read).await }.boxed()
    }
}

fn recorded(batch: &BatchRow, side: Side) -> RecordedBatch {
    let ids = if batch.state().is_open() {
        batch.ids.iter().map(i64::to_string).collect()
    } else {
        BTreeSet::new()
    };
    RecordedBatch {
        ambiguous: batch.ambiguous,
        batch_id: batch.batch_id,
        parent_id: batch.parent_id,
        before: batch.before.clone(),
        last: batch.last.clone(),
        ids,
        body_sha256: batch.sha256.clone(),
        zone_rules: None,
        map_version: None,
        api_version: None,
        source_id: None,
        state: batch.state(),
        attempts: batch.attempts,
        unknown_runs: batch.unknown_runs,
        side,
    }
}

/// The wall clock of the simulation.
fn now() -> chrono::DateTime<Utc> {
    elven_sync::wall_clock::now()
}
