//! Delivery: sends the batches of a pass, a backfill or a retry, several at once, until each row is accepted or set
//! aside, or the lane stops.

mod already_imported;
mod attempts;
mod batch_task;
mod bisect;
mod by_name;
mod deliver;
mod fencing;
mod known_record;
mod recovery;
mod retrying;
mod unanswered;
mod unknown_outcome;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::TimeDelta;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument;

use self::batch_task::{BatchPermits, BatchTask, Parked, QueuedBatch, Refusal};
use super::api_session::ApiSession;
use super::backfill::superseding::SupersedingRows;
use super::batcher::{BatchLimits, Batcher};
use super::concurrency::{CredentialShare, LanePermit, semaphore};
use super::decisions::admission::{UnderWay, under_way_max};
use super::decisions::in_flight::InFlight;
use super::decisions::sharing::{LENDS_AFTER, yields};
use super::invalid_start::InvalidStart;
use super::lane::exit::{LaneExit, combined, later, note};
use super::lane::lane_run::LaneRun;
use super::lane_worker::{LaneWorker, Target};
use super::shared_limit::SharedPermit;
use super::{EntityReport, RunError};
use crate::batch::{Batch, RecordRules};
use crate::elven::Signed;
use crate::fault_point::{Step, after, before};
use crate::journal::{Kind, OpenWork, PendingWrite, WorkContext};
use crate::ledger::{Pages, Row};
use crate::watermark::Cursor;

/// The keys of a batch, and the result of its delivery.
type Delivered = (Vec<u64>, Result<(), LaneExit>);

/// The delivery of the batches of one pass, or of one slice of a backfill or a retry.
pub(super) struct Delivery {
    worker: LaneWorker,
    run_id: i64,
    rules: RecordRules,
    session: Arc<ApiSession>,
    target: Target,
    /// The pass, the backfill or the retry, under its lease.
    pass: OpenWork,
    /// The batches after the cursor, and how far the cursor may move.
    window: tokio::sync::Mutex<InFlight>,
    /// The submitted write that closes the pass.
    closing: Mutex<Option<PendingWrite>>,
    /// Permits of the lane for batches that are recorded as being sent.
    batch_permits: Arc<Semaphore>,
    /// Permits of the lane for requests.
    request_permits: Arc<Semaphore>,
    /// When the lane got its permit.
    since: Instant,
    /// The permit of the lane, if it has one.
    permit: Option<Arc<LanePermit>>,
    /// The limits of the lanes of the credential.
    share: Arc<CredentialShare>,
    /// In a backfill: finds newer rows with the keys of a batch, outside the batch.
    rivals: Option<Arc<SupersedingRows>>,
    /// In a retry: the kind of the open error of each row.
    errors: Arc<BTreeMap<String, Kind>>,
    /// In a retry: the rows that the API may have imported in an earlier attempt.
    may_be_imported: Arc<HashSet<String>>,
    /// Checks whether the first rows that the lane reads are all invalid.
    start: Arc<InvalidStart>,
    /// In a retry: a run sends held rows again by itself.
    is_resend: bool,
    /// Whether the lane ends with this pass: the entity is then recorded as up to date, and the lease is released.
    ends: bool,
    /// Becomes true when the lane has to stop: requests in flight are finished, and no new one is sent.
    halted: watch::Sender<bool>,
    /// Whether rows with different names in the ledger have one key at Elven; asked when a batch has shared names.
    has_shared_key: OnceCell<bool>,
    /// Whether rows of the entity are set aside. An upload of newer versions may resolve their errors.
    has_set_aside: AtomicBool,
    report: Mutex<EntityReport>,
    /// Refused records that were sent alone, until the credential is proven.
    parked: Mutex<Vec<Parked>>,
    /// The last refusal while the credential was not proven.
    refusal: Mutex<Option<Arc<Refusal>>>,
}

/// Options of a delivery.
#[derive(Default)]
pub(super) struct DeliveryOptions {
    /// In a backfill: finds newer rows with the keys of a batch, outside the batch.
    pub rivals: Option<Arc<SupersedingRows>>,
    /// In a retry: the kind of the open error of each row.
    pub errors: Arc<BTreeMap<String, Kind>>,
    /// In a retry: the rows that the API may have imported in an earlier attempt. Each of them is sent alone.
    pub may_be_imported: Arc<HashSet<String>>,
    /// In a retry: a run sends held rows again by itself.
    pub is_resend: bool,
    /// Whether the lane ends with this pass.
    pub ends: bool,
}

impl Delivery {
    pub(super) fn new(
        lane_run: &LaneRun<'_>,
        pass: OpenWork,
        cursor: Option<Cursor>,
        options: DeliveryOptions,
    ) -> Arc<Self> {
        let DeliveryOptions { rivals, errors, may_be_imported, is_resend, ends } = options;
        let session = lane_run.target.session.clone();
        let window = InFlight::at(cursor);
        let at_once = lane_run.worker.settings.sync.requests_in_flight;
        lane_run.worker.progress.begin(&lane_run.target.entity_id);
        Arc::new(Self {
            worker: lane_run.worker.clone(),
            run_id: lane_run.run_id,
            rules: lane_run.target.rules.clone(),
            share: lane_run.worker.limits.of(&session.credential.name),
            session,
            target: lane_run.target.clone(),
            pass,
            window: tokio::sync::Mutex::new(window),
            closing: Mutex::default(),
            batch_permits: semaphore(under_way_max(at_once)),
            request_permits: semaphore(at_once),
            since: lane_run.since,
            permit: lane_run.permit.clone(),
            rivals,
            errors,
            may_be_imported,
            start: lane_run.start.clone(),
            is_resend,
            ends,
            halted: watch::Sender::new(false),
            has_shared_key: OnceCell::new(),
            has_set_aside: AtomicBool::new(lane_run.has_rows_set_aside),
            report: Mutex::new(EntityReport::idle(&lane_run.target.entity_id)),
            parked: Mutex::new(Vec::new()),
            refusal: Mutex::new(None),
        })
    }

    /// Adds the counts of this delivery to the report of the lane.
    pub(super) fn report_to(&self, report: &mut EntityReport) {
        report.add(&self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn has_set_aside(&self) -> bool {
        self.has_set_aside.load(Ordering::Relaxed)
    }

    fn context(&self) -> WorkContext<'_> {
        WorkContext { pass: &self.pass, run_id: self.run_id }
    }

    /// Reads the rows after the cursor `before`, and sends them in batches, several at once. Two batches with a record
    /// of the same key are never in flight together, because the later one of two uploads of a key has to count.
    pub(super) async fn read_and_send(
        self: &Arc<Self>,
        pages: Box<dyn Pages>,
        mut before: Option<Cursor>,
    ) -> Result<(), LaneExit> {
        let mut rows = Batcher::of(pages, self.rivals.clone(), self.start.clone());
        let mut in_flight = JoinSet::new();
        let mut under_way = UnderWay::none(self.worker.settings.sync.requests_in_flight);
        let mut stop = self.worker.stop.clone();
        let mut halted = self.halted.subscribe();
        let mut unwanted = self.pass.unwanted();
        let (mut first_exit, mut is_all_read) = (None, false);
        let ended = loop {
            let (learned, bytes_max) = (self.session.body_bytes_max(), self.session.next_body_bytes_max());
            let limits =
                BatchLimits { records: self.worker.settings.sync.batch_rows, bytes: Some(bytes_max) };
            // Reading from a standby may take long.
            let batch = tokio::select! {
                biased;
                Ok(_) = stop.wait_for(|stop| *stop) => break Err(LaneExit::Shutdown),
                Ok(_) = halted.wait_for(|halted| *halted) => break Ok(()),
                Ok(_) = unwanted.wait_for(|unwanted| *unwanted) => break Err(LaneExit::Yielded),
                batch = rows.next_batch(before.clone(), &self.rules, limits) => match batch {
                    Ok(Some(batch)) => batch,
                    Ok(None) => {
                        is_all_read = true;
                        break Ok(());
                    }
                    Err(problem) => break Err(problem.into()),
                },
            };
            while !under_way.admits(&batch.keys) || self.window.lock().await.is_full() {
                let Some(done) = self.waiting(in_flight.join_next()).await else { break };
                note_delivered(done, &mut under_way, &mut first_exit);
            }
            while let Some(done) = in_flight.try_join_next() {
                note_delivered(done, &mut under_way, &mut first_exit);
            }
            if *unwanted.borrow() {
                break Err(LaneExit::Yielded);
            }
            // A smaller limit for the body may have been learned meanwhile.
            let learned_now = self.session.body_bytes_max();
            if learned_now < learned && learned_now < batch.body.len() {
                rows.put_back(batch);
                continue;
            }
            if !self.is_retry() {
                before = Some(batch.last.clone());
            }
            let batch_keys = batch.keys.clone();
            match self.announce(batch).await {
                Ok(announced) => {
                    under_way.add(&batch_keys);
                    let delivery = self.clone();
                    let delivered = async move { (batch_keys, delivery.deliver_new(announced).await) };
                    in_flight.spawn(delivered.in_current_span());
                }
                Err(exit) => break Err(exit),
            }
            // The lane yields only after it announced a batch: otherwise lanes could yield to each other without
            // progress.
            if self.has_had_its_share() {
                break Err(LaneExit::Yielded);
            }
        };
        if is_all_read {
            self.window.lock().await.end();
        }
        if let (true, Some(permit)) = (self.ends, &self.permit) {
            permit.end_reading();
        }
        self.waiting(self.finish(in_flight, &mut under_way, &mut first_exit)).await;
        combined(first_exit, ended, *self.worker.stop.borrow())
    }

    /// Sets aside the rows whose account, currency and second at Elven a row with other names in the ledger has, too.
    async fn without_clashes(&self, batch: Batch) -> Result<Batch, RunError> {
        let shared = batch.shared_rows();
        if shared.is_empty() || self.is_retry() {
            return Ok(batch);
        }
        let (entity_id, names) = (&self.pass.lease.entity_id, &self.rules.names);
        // Rows that are written meanwhile belong to a later pass.
        let has = || self.worker.ledger.has_shared_key(entity_id, names);
        if !*self.has_shared_key.get_or_try_init(has).await? {
            return Ok(batch);
        }
        Ok(batch.without_clashes(&self.worker.ledger.same_second(entity_id, &shared, names).await?))
    }

    /// Waits for the batches in flight.
    async fn finish(
        &self,
        mut in_flight: JoinSet<Delivered>,
        under_way: &mut UnderWay,
        first_exit: &mut Option<LaneExit>,
    ) {
        let mut unwanted = self.pass.unwanted();
        while !in_flight.is_empty() {
            tokio::select! {
                biased;
                Some(done) = in_flight.join_next() => note_delivered(done, under_way, first_exit),
                // A run waits for the lease: batches that are not sent yet are withdrawn.
                Ok(_) = unwanted.wait_for(|unwanted| *unwanted), if !*self.halted.borrow() => {
                    self.halted.send_replace(true);
                }
            }
        }
    }

    /// Closes the pass after all its batches are processed. That may have been submitted already, together with the
    /// answer to the last batch.
    pub(super) async fn close(&self) -> Result<(), LaneExit> {
        let submitted = {
            let window = self.window.lock().await;
            let already_submitted = self.closing.lock().unwrap_or_else(PoisonError::into_inner).take();
            already_submitted.unwrap_or_else(|| self.submit_closing(&window))
        };
        let closed = submitted.written().await;
        self.steps_of_closing().for_each(after);
        closed?;
        Ok(())
    }

    fn submit_closing(&self, window: &InFlight) -> PendingWrite {
        self.steps_of_closing().for_each(before);
        self.worker.journal.close_pass(self.context(), window.cursor.clone(), self.ends)
    }

    fn steps_of_closing(&self) -> impl Iterator<Item = Step> {
        let ends = self.ends.then_some([Step::Succeed, Step::ReleaseLease]);
        std::iter::once(Step::ClosePass).chain(ends.into_iter().flatten())
    }

    /// Whether the lane has used its share, and yields between two batches or two pages.
    pub(super) fn has_had_its_share(&self) -> bool {
        let (is_wanted, lease) = (self.share.are_lanes_wanted(), self.worker.settings.sync.lease);
        yields(self.pass.work, self.since.elapsed(), is_wanted, lease)
    }

    /// Signs a batch, then submits it to the journal, so that the lease is checked after signing. Does not wait for the
    /// commit, so that the next batches can be signed and submitted meanwhile.
    async fn announce(&self, batch: Batch) -> Result<QueuedBatch, LaneExit> {
        let batch = self.without_clashes(batch).await?;
        self.refuse_fenced(&batch)?;
        let pause = self.session.wait_for_pause(self.worker.settings.retry.max);
        self.waiting(self.unless_halted(pause)).await?.map_err(later)?;
        let permits = self.waiting(self.acquire_batch_permits()).await?;
        let signed = if batch.records.is_empty() { None } else { Some(self.signed(&batch, None)?) };
        before(Step::Announce);
        let submitted = self.worker.journal.announce(self.context(), &batch);
        let root = self.window.lock().await.push(batch.last.clone(), 1, Vec::new());
        Ok(QueuedBatch { batch, permits, signed, root, submitted })
    }

    /// Sends a batch once it is recorded.
    async fn deliver_new(&self, announced: QueuedBatch) -> Result<(), LaneExit> {
        let root = announced.root;
        self.deliver(self.announced(announced).await?).await?;
        self.conclude(root).await
    }

    /// Waits until a batch is recorded.
    async fn announced(&self, announced: QueuedBatch) -> Result<BatchTask, LaneExit> {
        let QueuedBatch { batch, permits, signed, root, submitted } = announced;
        let batch_id = submitted.written().await.inspect_err(|_| _ = self.halted.send_replace(true))?;
        after(Step::Announce);
        self.window.lock().await.recorded(root, batch_id);
        let is_lost = |row: &Row| self.may_be_imported.contains(&row.id.to_string());
        let lost = !self.may_be_imported.is_empty() && batch.rows.iter().any(is_lost);
        Ok(BatchTask { permits: Some(permits), signed, lost, ..BatchTask::new(batch_id, batch, root) })
    }

    async fn acquire_batch_permits(&self) -> Result<BatchPermits, LaneExit> {
        let of_lane = self.acquire(&self.batch_permits).await?;
        let of_all = Some(self.acquire_shared(self.share.under_way()).await?);
        Ok(BatchPermits { _of_lane: of_lane, of_all })
    }

    async fn acquire_shared(
        &self,
        permit: impl Future<Output = Option<SharedPermit>>,
    ) -> Result<SharedPermit, LaneExit> {
        self.unless_halted(permit).await?.ok_or(LaneExit::Shutdown)
    }

    async fn acquire(&self, semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, LaneExit> {
        self.unless_halted(semaphore.clone().acquire_owned()).await?.map_err(|_| LaneExit::Shutdown)
    }

    fn signed(&self, batch: &Batch, corrected: Option<TimeDelta>) -> Result<Signed, LaneExit> {
        Ok(self.session.sign_import(corrected, batch)?)
    }

    /// Waits for the API. During a pause that the API asked for, and if the wait takes long, the lane lends its permits
    /// to other lanes.
    fn waiting<T>(&self, waiting: impl Future<Output = T>) -> impl Future<Output = T> {
        // On the heap, because some of these futures are large among the futures of a lane.
        let mut waiting = Box::pin(waiting);
        async move {
            if !self.session.is_paused()
                && let Ok(done) = tokio::time::timeout(LENDS_AFTER, &mut waiting).await
            {
                return done;
            }
            let Some(permit) = &self.permit else { return waiting.await };
            permit.lend();
            let done = waiting.await;
            permit.take_back();
            done
        }
    }

    /// Waits for a future. Fails if the lane has to stop first.
    async fn unless_halted<T>(&self, waiting: impl Future<Output = T>) -> Result<T, LaneExit> {
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

/// Notes that a batch is no longer in flight, or why the lane has to stop.
fn note_delivered(
    done: Result<Delivered, tokio::task::JoinError>,
    under_way: &mut UnderWay,
    first_exit: &mut Option<LaneExit>,
) {
    match done {
        Ok((keys, Ok(()))) => under_way.remove(&keys),
        Ok((_, Err(exit))) => {
            under_way.remove(&[]);
            note(exit, first_exit);
        }
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
