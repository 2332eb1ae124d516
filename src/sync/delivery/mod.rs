//! Delivery: the batches of one pass or backfill on their way, several at once, until each row is accepted, set aside, or
//! the lane stops.

mod attempts;
mod batch_task;
mod bisect;
mod deliver;
mod fencing;
mod in_flight;
mod recovery;
mod unanswered;
mod unknown_outcome;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use chrono::TimeDelta;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tracing::Instrument;

pub(in crate::sync) use self::attempts::settlement;
use self::batch_task::{BatchTask, Parked, QueuedBatch, Refusal, Room};
use self::in_flight::InFlight;
use super::api_session::ApiSession;
use super::backfill::superseding::SupersedingRows;
use super::batcher::{BatchLimits, Batcher};
use super::concurrency::{places, under_way_max};
use super::invalid_start::InvalidStart;
use super::lane::exit::{LaneExit, later, note};
use super::lane::lane_run::LaneRun;
use super::worker::Target;
use super::{EntityReport, Worker};
use crate::align::Zone;
use crate::batch::{Batch, KeysUnderWay};
use crate::elven::Signed;
use crate::fault_point::{Step, after, before};
use crate::journal::{Kind, OpenWork, PendingWrite, Problem, WorkContext, WorkKind};
use crate::ledger::Pages;
use crate::watermark::Cursor;

/// The keys of a batch that was on its way, and what came of it.
type Delivered = (Vec<u64>, Result<(), LaneExit>);

/// The batches of one pass, or of a slice of a backfill, on their way.
pub(super) struct Delivery {
    worker: Worker,
    run_id: i64,
    zone: Zone,
    session: Arc<ApiSession>,
    target: Target,
    pass: OpenWork,
    window: tokio::sync::Mutex<InFlight>,
    /// Room for batches that are recorded as being sent.
    room: Arc<Semaphore>,
    /// Slots for requests.
    slots: Arc<Semaphore>,
    /// When the lane got its place.
    since: Instant,
    /// The place to read, if it is given back when all is read.
    place: Mutex<Option<OwnedSemaphorePermit>>,
    /// In a backfill: newer rows of the keys of a batch, which are not in it.
    rivals: Option<Arc<SupersedingRows>>,
    start: Arc<InvalidStart>,
    /// The entity is up to date with the end of the pass.
    ends: bool,
    /// Set when the lane has to stop: what is in flight is finished, nothing new is sent.
    halted: watch::Sender<bool>,
    /// The entity has rows set aside, whose errors an upload may resolve.
    has_set_aside: AtomicBool,
    report: Mutex<EntityReport>,
    /// Refused records that stand alone, and wait until the credential is proven good.
    parked: Mutex<Vec<Parked>>,
    /// The last refusal while nothing proved the credential good.
    refusal: Mutex<Option<Arc<Refusal>>>,
}

/// How it is delivered.
#[derive(Default)]
pub(super) struct DeliveryOptions {
    /// The place to read, to be given back when all is read.
    pub place: Option<OwnedSemaphorePermit>,
    /// In a backfill: newer rows of the keys of a batch.
    pub rivals: Option<Arc<SupersedingRows>>,
    /// The entity is up to date with the end of the pass.
    pub ends: bool,
}

impl Delivery {
    pub(super) fn new(
        held: &LaneRun<'_>,
        pass: OpenWork,
        cursor: Option<Cursor>,
        manner: DeliveryOptions,
    ) -> Arc<Self> {
        let DeliveryOptions { place, rivals, ends } = manner;
        let window = InFlight::at(cursor);
        let at_once = held.worker.settings.sync.requests_in_flight;
        held.worker.progress.begin(&held.target.entity_id);
        Arc::new(Self {
            worker: held.worker.clone(),
            run_id: held.run_id,
            zone: held.target.zone.clone(),
            session: held.target.session.clone(),
            target: held.target.clone(),
            pass,
            window: tokio::sync::Mutex::new(window),
            room: places(under_way_max(at_once)),
            slots: places(at_once),
            since: held.since,
            place: Mutex::new(place),
            rivals,
            start: held.start.clone(),
            ends,
            halted: watch::Sender::new(false),
            has_set_aside: AtomicBool::new(held.has_rows_set_aside),
            report: Mutex::new(EntityReport::idle(&held.target.entity_id)),
            parked: Mutex::new(Vec::new()),
            refusal: Mutex::new(None),
        })
    }

    /// Adds what was done to the report of the lane.
    pub(super) fn report_to(&self, report: &mut EntityReport) {
        report.add(&self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn has_set_aside(&self) -> bool {
        self.has_set_aside.load(Ordering::Relaxed)
    }

    fn doing(&self) -> WorkContext<'_> {
        WorkContext { pass: &self.pass, run_id: self.run_id }
    }

    /// Reads on, and sends what is read: up to so many requests at once, but never two batches that have a
    /// record for the same account, currency and second, because the later upload wins.
    pub(super) async fn go_on(
        self: &Arc<Self>,
        pages: Pages,
        mut before: Option<Cursor>,
    ) -> Result<(), LaneExit> {
        let mut rows = Batcher::of(pages, self.rivals.clone(), self.start.clone());
        let mut on_their_way = JoinSet::new();
        let mut keys = KeysUnderWay::default();
        let at_once = self.worker.settings.sync.requests_in_flight;
        let mut stop = self.worker.stop.clone();
        let mut halted = self.halted.subscribe();
        let mut unwanted = self.pass.unwanted();
        let (mut first_exit, mut is_all_read) = (None, false);
        let ended = loop {
            let bytes_max = self.session.body_bytes_max();
            let limits =
                BatchLimits { records: self.worker.settings.sync.batch_rows, bytes: Some(bytes_max) };
            // A standby may let us wait for long.
            let batch = tokio::select! {
                biased;
                Ok(_) = stop.wait_for(|stop| *stop) => break Err(LaneExit::Shutdown),
                Ok(_) = halted.wait_for(|halted| *halted) => break Ok(()),
                Ok(_) = unwanted.wait_for(|unwanted| *unwanted) => break Err(LaneExit::Yielded),
                batch = rows.next_batch(before.clone(), &self.zone, limits) => match batch {
                    Ok(Some(batch)) => batch,
                    Ok(None) => {
                        is_all_read = true;
                        break Ok(());
                    }
                    Err(problem) => break Err(problem.into()),
                },
            };
            while on_their_way.len() >= under_way_max(at_once)
                || batch.keys.iter().any(|key| keys.contains(key))
                || self.window.lock().await.is_full()
            {
                let Some(done) = on_their_way.join_next().await else { break };
                take(done, &mut keys, &mut first_exit);
            }
            while let Some(done) = on_their_way.try_join_next() {
                take(done, &mut keys, &mut first_exit);
            }
            if *unwanted.borrow() {
                break Err(LaneExit::Yielded);
            }
            // The limit may have been learned meanwhile.
            let learned = self.session.body_bytes_max();
            if learned < bytes_max && learned < batch.body.len() {
                rows.put_back(batch);
                continue;
            }
            before = Some(batch.last.clone());
            let batch_keys = batch.keys.clone();
            match self.announce(batch).await {
                Ok(announced) => {
                    keys.extend(&batch_keys);
                    let delivery = self.clone();
                    let delivered = async move { (batch_keys, delivery.deliver_new(announced).await) };
                    on_their_way.spawn(delivered.in_current_span());
                }
                Err(exit) => break Err(exit),
            }
            // Not before something was done: whoever waits would only give way again.
            if self.has_had_its_share() {
                break Err(LaneExit::Yielded);
            }
        };
        if is_all_read {
            self.window.lock().await.end();
        }
        drop(self.place.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.finish(on_their_way, &mut keys, &mut first_exit).await;
        self.outcome(first_exit, ended)
    }

    /// Waits for what is on its way.
    async fn finish(
        &self,
        mut on_their_way: JoinSet<Delivered>,
        keys: &mut KeysUnderWay,
        first_exit: &mut Option<LaneExit>,
    ) {
        let mut unwanted = self.pass.unwanted();
        while !on_their_way.is_empty() {
            tokio::select! {
                Some(done) = on_their_way.join_next() => take(done, keys, first_exit),
                // Somebody waits for the lease of a backfill: what is not in flight yet is not waited for.
                Ok(_) = unwanted.wait_for(|unwanted| *unwanted), if !*self.halted.borrow() => {
                    self.halted.send_replace(true);
                }
            }
        }
    }

    /// Closes the pass, all of which is delivered; unless that was handed in with the answer to its last batch.
    pub(super) async fn close(&self) -> Result<(), LaneExit> {
        let handed = {
            let mut window = self.window.lock().await;
            let handed_in = window.closing.take();
            handed_in.unwrap_or_else(|| self.submit_closing(&window))
        };
        let closed = handed.written().await;
        self.steps_of_closing().for_each(after);
        closed?;
        Ok(())
    }

    fn submit_closing(&self, window: &InFlight) -> PendingWrite {
        self.steps_of_closing().for_each(before);
        self.worker.journal.close_pass(self.doing(), window.cursor.clone(), self.ends)
    }

    fn steps_of_closing(&self) -> impl Iterator<Item = Step> {
        let ends = self.ends.then_some([Step::Succeed, Step::ReleaseLease]);
        std::iter::once(Step::ClosePass).chain(ends.into_iter().flatten())
    }

    /// Why the lane stops, if it does, by the first reason that a batch gave and by how reading ended.
    fn outcome(&self, first_exit: Option<LaneExit>, ended: Result<(), LaneExit>) -> Result<(), LaneExit> {
        match (first_exit, ended) {
            // What was taken back because somebody waits for the lease, also when all had been read by then.
            (Some(LaneExit::Shutdown), Ok(()) | Err(LaneExit::Yielded)) if !*self.worker.stop.borrow() => {
                Err(LaneExit::Yielded)
            }
            (Some(exit), _) => Err(exit),
            (None, ended) => ended,
        }
    }

    /// Says whether the lane is to be given back between two batches.
    fn has_had_its_share(&self) -> bool {
        match self.pass.course {
            WorkKind::Pass(_) => self.worker.has_had_its_share(self.since),
            WorkKind::Backfill(_) => self.since.elapsed() > self.worker.slice_max(),
        }
    }

    /// Signs a batch, then hands it in to be recorded, so that the lease is checked after signing. One batch after
    /// the other, and without waiting: others are recorded while this one waits for its turn.
    async fn announce(&self, batch: Batch) -> Result<QueuedBatch, LaneExit> {
        self.refuse_fenced(&batch)?;
        self.or_exit(self.session.wait_for_pause(self.worker.settings.retry.max)).await?.map_err(later)?;
        let room = self.room().await?;
        let signed = if batch.records.is_empty() { None } else { Some(self.signed(&batch, None)?) };
        before(Step::Announce);
        let handed = self.worker.journal.announce(self.doing(), &batch);
        let number = self.window.lock().await.push(batch.last.clone(), 1);
        Ok(QueuedBatch { batch, room, signed, root: number, handed })
    }

    /// Sends a batch once it is recorded.
    async fn deliver_new(&self, announced: QueuedBatch) -> Result<(), LaneExit> {
        let QueuedBatch { batch, room, signed, root, handed } = announced;
        let batch_id = handed.written().await.inspect_err(|_| _ = self.halted.send_replace(true))?;
        after(Step::Announce);
        let node = BatchTask { room: Some(room), signed, ..BatchTask::new(batch_id, batch, root) };
        self.deliver(node).await?;
        self.conclude(root).await
    }

    async fn room(&self) -> Result<Room, LaneExit> {
        Ok([self.permit(&self.room).await?, self.permit(self.worker.places.under_way()).await?])
    }

    async fn permit(&self, of: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, LaneExit> {
        self.or_exit(of.clone().acquire_owned()).await?.map_err(|_| LaneExit::Shutdown)
    }

    fn signed(&self, batch: &Batch, corrected: Option<TimeDelta>) -> Result<Signed, LaneExit> {
        let signed = self.session.sign_import(corrected, batch.body.clone());
        signed.map_err(|problem| LaneExit::problem(Problem::of_lane(Kind::Config, problem.to_string())))
    }

    /// Waits for something, unless the lane has to stop meanwhile.
    async fn or_exit<T>(&self, waiting: impl Future<Output = T>) -> Result<T, LaneExit> {
        let (mut stop, mut halted) = (self.worker.stop.clone(), self.halted.subscribe());
        tokio::select! {
            biased;
            Ok(_) = stop.wait_for(|stop| *stop) => Err(LaneExit::Shutdown),
            Ok(_) = halted.wait_for(|halted| *halted) => Err(LaneExit::Shutdown),
            done = waiting => Ok(done),
        }
    }

    fn report(&self, change: impl FnOnce(&mut EntityReport)) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let before = report.rows_read;
        change(&mut report);
        self.worker.progress.add(&self.pass.lease.entity_id, report.rows_read - before);
    }
}

/// Takes in that a batch is done, or why the lane has to stop.
fn take(
    done: Result<Delivered, tokio::task::JoinError>,
    keys: &mut KeysUnderWay,
    first_exit: &mut Option<LaneExit>,
) {
    match done {
        Ok((done, Ok(()))) => done.iter().for_each(|key| {
            keys.remove(key);
        }),
        Ok((_, Err(exit))) => note(exit, first_exit),
        Err(died) => std::panic::resume_unwind(died.into_panic()),
    }
}
