//! The model of the journal: the sync tables in memory, under the same fences as those of the SQL.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use futures_util::FutureExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use elven_sync::batch::{Batch, unpack_ids};
use elven_sync::journal::{
    Accepted, Answer, AttemptResult, BatchRecord, BatchState, Consequence, Fence, Holder, JournalError,
    JournalWrite, Kind, Lane, LaneStore, Lasts, Lease, LockedLane, NewPass, OpenWork, Opened, Problem,
    Purpose, RecordedBatch, Reply, RetryAnswer, SealState, Side, Take, Taken, WorkPosition, WriteRequest,
    Written,
};
use elven_sync::watermark::{Cursor, Snapshot};

use super::ledger::CLUSTER;
use super::process::Process;
use super::world::{LEASE, Sabotage, State, WINDOW, World};

/// The most transactions that a failover loses.
const FAILOVER_MAX: usize = 6;

/// A row of `sync_state`.
#[derive(Clone, Debug, Default)]
pub struct LaneRow {
    pub settled: Option<Snapshot>,
    pub open: Option<(i64, Snapshot)>,
    pub cursor: Option<Cursor>,
    pub mapping: Option<String>,
    pub owner: Option<String>,
    pub epoch: i64,
    pub expires_at: Option<Instant>,
    pub fence_until: Option<Instant>,
    pub not_before: Option<Instant>,
    pub last_error: Option<String>,
}

/// A row of `sync_batches`.
#[derive(Clone, Debug)]
pub struct BatchRow {
    pub batch_id: i64,
    pub parent_id: Option<i64>,
    pub run_id: i64,
    pub pass_id: Option<i64>,
    pub entity_id: String,
    pub before: Option<Cursor>,
    pub last: Cursor,
    pub ids: Vec<i64>,
    pub row_count: i32,
    pub sha256: String,
    pub status: &'static str,
    pub attempts: i32,
    pub ambiguous: bool,
    pub unknown_runs: i32,
    pub set_aside: Vec<i64>,
}

impl BatchRow {
    pub fn state(&self) -> BatchState {
        BatchState::decode(self.status, self.row_count, self.attempts).unwrap()
    }

    fn rewrite(&mut self, record: &BatchRecord) {
        self.ids = ids_of(&record.row_ids);
        self.row_count = record.row_count;
        self.sha256.clone_from(&record.body_sha256);
    }
}

fn ids_of(packed: &[u8]) -> Vec<i64> {
    unpack_ids(packed).unwrap().iter().map(|id| id.to_string().parse().unwrap()).collect()
}

/// The sync tables.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    pub lanes: BTreeMap<String, LaneRow>,
    pub batches: Vec<BatchRow>,
    pub passes: i64,
    /// The watermark before each pass.
    settled: BTreeMap<i64, Option<Snapshot>>,
    pub runs: i64,
    /// Open errors of rows, by entity and row: the kind, and the batch.
    pub errors: BTreeMap<(String, i64), (Kind, Option<i64>)>,
}

impl Tables {
    fn lane(&mut self, entity_id: &str) -> &mut LaneRow {
        self.lanes.entry(entity_id.to_owned()).or_default()
    }

    /// The lane of a lease, if the lease is still in force.
    fn held(&mut self, lease: &Lease) -> Result<&mut LaneRow, JournalError> {
        let lane = self.lane(&lease.entity_id);
        let is_held = lane.owner.as_ref() == Some(&lease.owner) && lane.epoch == lease.epoch;
        if is_held { Ok(lane) } else { Err(JournalError::LeaseLost) }
    }

    fn of_pass(&self, pass_id: i64) -> impl Iterator<Item = &BatchRow> {
        self.batches.iter().filter(move |batch| batch.pass_id == Some(pass_id))
    }

    fn rejected(&self, entity_id: &str) -> BTreeSet<i64> {
        let of_entity = self
            .errors
            .iter()
            .filter(|((entity, _), (kind, _))| entity == entity_id && *kind == Kind::RejectedRow);
        of_entity.map(|((_, id), _)| *id).collect()
    }

    fn insert(
        &mut self,
        request: &WriteRequest,
        parent_id: Option<i64>,
        record: &BatchRecord,
    ) -> &mut BatchRow {
        let batch_id = i64::try_from(self.batches.len()).unwrap() + 1;
        self.batches.push(BatchRow {
            batch_id,
            parent_id,
            run_id: request.run_id,
            pass_id: request.pass.course.pass_id(),
            entity_id: request.entity_id().to_owned(),
            before: record.before.clone(),
            last: record.last.clone(),
            ids: ids_of(&record.row_ids),
            row_count: record.row_count,
            sha256: record.body_sha256.clone(),
            status: "sending",
            attempts: i32::from(parent_id.is_none()),
            ambiguous: false,
            unknown_runs: 0,
            set_aside: Vec::new(),
        });
        self.batches.last_mut().unwrap()
    }

    fn batch(&mut self, batch_id: i64, entity_id: &str) -> Result<&mut BatchRow, JournalError> {
        let found =
            self.batches.iter_mut().find(|batch| batch.batch_id == batch_id && batch.entity_id == entity_id);
        found.ok_or(JournalError::LeaseLost)
    }

    fn record(&mut self, entity_id: &str, problems: &[Problem]) {
        for problem in problems {
            if let Some(id) = problem.ledger_id.as_ref().and_then(|id| id.parse().ok()) {
                self.errors.insert((entity_id.to_owned(), id), (problem.kind, problem.batch_id));
            }
        }
    }
}

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

fn describe(request: &WriteRequest) -> String {
    let what = match &request.writing {
        JournalWrite::Announcement(record) => format!("announce {:?}", ids_of(&record.row_ids)),
        JournalWrite::Repetition(again) => format!("announce batch {} again", again.batch_id),
        JournalWrite::Answer(answer) => {
            let Answer { answered, advance, consequence, .. } = &**answer;
            let consequence = match consequence {
                Consequence::None => "",
                Consequence::Parts { .. } => ", two parts",
                Consequence::SetAside { .. } => ", set aside",
            };
            let moved = advance.as_ref().map(|advance| &advance.last);
            format!("batch {} {}{consequence}, cursor {moved:?}", answered.batch_id, answered.status)
        }
        JournalWrite::Emptying(emptying) => format!("batch {} is empty", emptying.batch_id),
        JournalWrite::Recovery => "recover".to_owned(),
        JournalWrite::UnknownRun(batch_id) => format!("batch {batch_id} stays unknown"),
        JournalWrite::PassClosing(_) => "close the pass".to_owned(),
    };
    format!("{} {what}", request.entity_id())
}

/// What the transaction of the group commit does for one request.
pub fn apply(world: &World, state: &mut State, request: &WriteRequest) -> Result<Written, JournalError> {
    let entity_id = request.entity_id().to_owned();
    let row = state.tables.lane(&entity_id).clone();
    let announced = |pass_id| {
        let roots = state.tables.of_pass(pass_id).filter(|batch| batch.parent_id.is_none());
        roots.last().map(|batch| batch.last.clone())
    };
    let position = row.open.as_ref().map(|(id, _)| {
        let announced = announced(*id);
        WorkPosition { id: *id, cursor: row.cursor.clone(), announced }
    });
    let mut locked = LockedLane {
        owner: row.owner,
        epoch: row.epoch,
        pass: position,
        is_aging: row.expires_at.is_some_and(|at| at < Instant::now() + LEASE / 2),
        ..LockedLane::default()
    };
    if world.is(Sabotage::LeaseNotChecked) {
        locked.owner = Some(request.pass.lease.owner.clone());
        locked.epoch = request.pass.lease.epoch;
    }
    let is_answered =
        |id: &i64| state.tables.batches.iter().any(|batch| batch.batch_id == *id && !batch.state().is_open());
    if !request.relies_on().iter().all(is_answered) && !world.is(Sabotage::LostAnswersIgnored) {
        return Err(JournalError::LeaseLost);
    }
    locked.check_lease(request)?;
    if let Some(Answer { consequence: Consequence::SetAside { refused, rejections_max, .. }, .. }) =
        request.answer()
    {
        let mut rejected = state.tables.rejected(&entity_id);
        rejected.extend(refused.iter().map(|id| id.parse::<i64>().unwrap()));
        if rejected.len() > *rejections_max {
            return Ok(Written::TooManyRejections);
        }
    }
    locked.check(request)?;
    let written = apply_to_batches(world, state, request)?;
    let lane = state.tables.lane(&entity_id);
    if let Some(cursor) = locked.moved_to {
        lane.cursor = Some(cursor);
    }
    if locked.renewed {
        lane.expires_at = Some(Instant::now() + LEASE);
    }
    if let Some(closing) = request.closing() {
        lane.settled = lane.open.take().map(|(_, target)| target);
        lane.cursor = None;
        let is_fenced = note_fence(world, lane, &request.pass.lease.fence);
        if closing.ends {
            (lane.owner, lane.expires_at, lane.last_error) = (None, None, None);
        }
        state.keeps_fence(is_fenced);
    }
    super::invariants::of_cursor(state, &entity_id);
    Ok(written)
}

fn apply_to_batches(
    world: &World,
    state: &mut State,
    request: &WriteRequest,
) -> Result<Written, JournalError> {
    let (tables, entity_id) = (&mut state.tables, request.entity_id());
    match &request.writing {
        JournalWrite::Announcement(record) => {
            Ok(Written::Batch(tables.insert(request, None, record).batch_id))
        }
        JournalWrite::Repetition(again) => {
            let batch = tables.batch(again.batch_id, entity_id)?;
            if batch.last != again.record.last {
                return Err(JournalError::LeaseLost);
            }
            (batch.status, batch.run_id) = ("sending", request.run_id);
            batch.attempts += 1;
            batch.ambiguous |= again.lost;
            batch.rewrite(&again.record);
            Ok(Written::Batch(again.batch_id))
        }
        JournalWrite::Emptying(emptying) => {
            let batch = tables.batch(emptying.batch_id, entity_id)?;
            batch.ambiguous |= batch.status == "unknown";
            (batch.status, batch.row_count, batch.ids) = ("accepted", 0, Vec::new());
            Ok(Written::Batch(emptying.batch_id))
        }
        JournalWrite::Recovery => {
            let pass_id = request.pass.course.pass_id();
            let sending = tables.batches.iter_mut().filter(|batch| batch.pass_id == pass_id);
            for batch in sending.filter(|batch| batch.state() == BatchState::Sending && batch.row_count > 0) {
                batch.status = if world.is(Sabotage::SendingForgotten) { "rejected" } else { "unknown" };
            }
            Ok(Written::Work)
        }
        JournalWrite::UnknownRun(batch_id) => {
            if let Ok(batch) = tables.batch(*batch_id, entity_id) {
                batch.unknown_runs += i32::from(batch.status == "unknown");
            }
            Ok(Written::Batch(*batch_id))
        }
        JournalWrite::PassClosing(_) => {
            let pass_id = request.pass.course.pass_id().unwrap_or_default();
            let is_open = tables.of_pass(pass_id).any(|batch| batch.state().is_open());
            if is_open {
                return Err(JournalError::Unfinished(pass_id));
            }
            Ok(Written::Work)
        }
        JournalWrite::Answer(answer) => apply_answer(state, request, answer),
    }
}

fn apply_answer(state: &mut State, request: &WriteRequest, answer: &Answer) -> Result<Written, JournalError> {
    let (tables, entity_id) = (&mut state.tables, request.entity_id());
    let answered = &answer.answered;
    let batch = tables.batch(answered.batch_id, entity_id)?;
    let sha256 = answer.rewritten.as_ref().map_or(&batch.sha256, |record| &record.body_sha256);
    if batch.last != answered.last || *sha256 != answered.body_sha256 {
        return Err(JournalError::LeaseLost);
    }
    if let Some(record) = &answer.rewritten {
        batch.ambiguous |= batch.status == "unknown";
        batch.rewrite(record);
    }
    if let Consequence::SetAside { rejected_ids, .. } = &answer.consequence {
        (batch.row_count, batch.set_aside) = (0, ids_of(rejected_ids));
    }
    let stays_unknown = answered.status == "rejected" && batch.ambiguous && batch.row_count > 0;
    batch.status = if stays_unknown { "unknown" } else { answered.status };
    batch.attempts -= i32::from(answered.withdrawn);
    let run_id = batch.run_id;
    let written = match &answer.consequence {
        Consequence::Parts { parts, ambiguous } => {
            let ids = parts.each_ref().map(|part| {
                let part = tables.insert(request, Some(answered.batch_id), part);
                part.ambiguous = *ambiguous;
                part.batch_id
            });
            Written::Parts(ids)
        }
        Consequence::None | Consequence::SetAside { .. } => Written::Batch(answered.batch_id),
    };
    tables.record(entity_id, &answer.problems);
    for id in &answer.resolves {
        tables.errors.remove(&(entity_id.to_owned(), id.parse().unwrap()));
    }
    super::invariants::of_set_aside(state, run_id, &answer.problems);
    Ok(written)
}

/// Records the fence of a lease that ends. Returns whether there is one: a failover that lost it would lose the fence.
fn note_fence(world: &World, lane: &mut LaneRow, fence: &Fence) -> bool {
    if let Some(left) = fence.seconds_left()
        && !world.is(Sabotage::FenceForgotten)
    {
        lane.fence_until = lane.fence_until.max(Some(Instant::now() + Duration::from_secs_f64(left)));
        return true;
    }
    false
}

impl State {
    /// Keeps the tables as they are, for a failover.
    fn keep(&mut self) {
        if !self.may_fail_over {
            return;
        }
        self.kept.truncate(FAILOVER_MAX - 1);
        self.kept.insert(0, self.tables.clone());
    }

    /// No failover of the simulation loses a fence: the next worker could not know of it.
    fn keeps_fence(&mut self, is_fenced: bool) {
        if is_fenced {
            self.kept.clear();
        }
    }

    /// A failover loses the last transactions. Runs keep their numbers, which the simulation itself gives out.
    pub fn fail_over(&mut self, world: &World) {
        let count = u64::try_from(self.kept.len()).unwrap();
        if count > 0 {
            let index = usize::try_from(world.below(count)).unwrap();
            let runs = self.tables.runs;
            self.tables = self.kept.swap_remove(index);
            self.tables.runs = runs;
            self.kept.clear();
            self.has_failed_over = true;
            world.log(|| format!("failover: the last {} transactions are lost", index + 1));
        }
    }

    /// Renews the leases of a process.
    pub fn renew(&mut self, owner: &str) {
        for lane in self.tables.lanes.values_mut().filter(|lane| lane.owner.as_deref() == Some(owner)) {
            lane.expires_at = Some(Instant::now() + LEASE);
        }
    }

    /// Returns the state of a lane as a worker reads it.
    pub fn lane(&self, entity_id: &str) -> Lane {
        let row = self.tables.lanes.get(entity_id).cloned().unwrap_or_default();
        let now = Instant::now();
        let is_bound = row.settled.is_some() || row.open.is_some();
        Lane {
            settled: row.settled,
            open: row.open,
            cursor: row.cursor,
            system_identifier: is_bound.then_some(CLUSTER),
            ledger_table: is_bound.then(|| "ledger.balance_snapshots".to_owned()),
            mapping: row.mapping.map(Into::into),
            seal: SealState::Whole,
            not_before: row.not_before.map(|at| at.saturating_duration_since(now)),
            has_rows_set_aside: self.tables.errors.keys().any(|(entity, _)| entity == entity_id),
        }
    }

    fn open(&mut self, world: &World, entity_id: &str, opening: NewPass<'_>) -> Option<Opened> {
        let mut target = self.snapshot();
        if world.is(Sabotage::TargetTooNew) {
            target = format!("{0}:{0}:", target.xmax()).parse().unwrap();
        }
        let pass_id = self.tables.passes + 1;
        let lane = self.tables.lane(entity_id);
        if lane.open.is_some() || lane.settled != opening.seen.settled {
            return None;
        }
        lane.open = Some((pass_id, target));
        lane.mapping = Some(opening.mapping.to_owned());
        let opened = lane.open.clone();
        self.tables.passes = pass_id;
        self.tables.settled.insert(pass_id, opening.seen.settled.clone());
        opened
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
                let wait = if world.is(Sabotage::TakeoverTooEarly) { Duration::ZERO } else { WINDOW };
                if lane.owner.is_some() && lane.expires_at.is_some_and(|at| at + wait >= now) {
                    let seen = format!("{:?} {} {:?}", lane.owner, lane.epoch, lane.expires_at);
                    return Ok((Take::Held { seen, holder: Holder::Run }, None));
                }
                lane.epoch += 1;
                (lane.owner, lane.expires_at) = (Some(self.process.name.clone()), Some(now + LEASE));
                let fenced = lane.fence_until.and_then(|at| at.checked_duration_since(now));
                let fence = Fence::new(WINDOW, fenced);
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
            let asked = (Instant::now(), now());
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
            Ok(Lasts::new(asked, left))
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
            let pass_id = pass.course.pass_id().unwrap_or_default();
            let cursor = state.tables.lane(&pass.lease.entity_id).cursor.clone();
            let roots = state.tables.of_pass(pass_id).filter(|batch| batch.parent_id.is_none());
            let passed =
                roots.filter(|batch| Some(&batch.last) == cursor.as_ref()).map(|batch| batch.batch_id).last();
            let side = |batch: &BatchRow| {
                if batch.batch_id > passed.unwrap_or(0) { Side::Beyond } else { Side::Passed }
            };
            let is_listed = |batch: &&BatchRow| side(batch) == Side::Beyond || batch.state().is_open();
            let is_known = |batch: &&BatchRow| {
                !world.is(Sabotage::UnknownBatchForgotten) || batch.state() != BatchState::Unknown
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

    fn accepted_lately<'a>(&'a self, entity_id: &'a str, _: &'a str) -> Reply<'a, Vec<Accepted>> {
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
                })
                .collect())
        };
        async move { self.transaction("read what was accepted", read).await }.boxed()
    }

    fn announce_alone<'a>(&'a self, lease: &'a Lease, run_id: i64, batch: &'a Batch) -> Reply<'a, i64> {
        let announce = move |_: &World, state: &mut State| {
            state.tables.held(lease)?;
            let batch_id = i64::try_from(state.tables.batches.len()).unwrap() + 1;
            let ids = batch.rows.iter().map(|row| row.id.to_string().parse().unwrap()).collect();
            state.tables.batches.push(BatchRow {
                batch_id,
                parent_id: None,
                run_id,
                pass_id: None,
                entity_id: lease.entity_id.clone(),
                before: None,
                last: batch.last.clone(),
                ids,
                row_count: i32::try_from(batch.records.len()).unwrap(),
                sha256: batch.body_sha256.clone(),
                status: "sending",
                attempts: 1,
                ambiguous: false,
                unknown_runs: 0,
                set_aside: Vec::new(),
            });
            Ok(batch_id)
        };
        async move { self.transaction("announce a known record", announce).await }.boxed()
    }

    fn answered_alone<'a>(
        &'a self,
        lease: &'a Lease,
        _: i64,
        (batch_id, _): (i64, &'a Batch),
        last: RetryAnswer<'a>,
        _: AttemptResult,
    ) -> Reply<'a, ()> {
        let record = move |_: &World, state: &mut State| {
            state.tables.held(lease)?;
            state.tables.batch(batch_id, &lease.entity_id)?.status = last.status;
            Ok(())
        };
        async move { self.transaction("answer to a known record", record).await }.boxed()
    }
}

fn recorded(batch: &BatchRow, side: Side) -> RecordedBatch {
    let ids = if batch.state().is_open() {
        batch.ids.iter().map(i64::to_string).collect()
    } else {
        BTreeSet::new()
    };
    RecordedBatch {
        batch_id: batch.batch_id,
        parent_id: batch.parent_id,
        before: batch.before.clone(),
        last: batch.last.clone(),
        ids,
        body_sha256: batch.sha256.clone(),
        zone_rules: None,
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
