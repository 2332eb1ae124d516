//! The retry of the errors of one entity, in slices and pages.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use futures_util::FutureExt;

use super::super::delivery::{Delivery, DeliveryOptions};
use super::super::invalid_start::InvalidStart;
use super::super::lane::exit::LaneExit;
use super::super::lane::lane_run::LaneRun;
use super::super::lane::lease_wait::LeaseAttempt;
use super::super::lane_worker::Target;
use super::super::{Ended, EntityReport, RunError, Worker, messages};
use crate::batch::{Batch, RecordRules, key_hash};
use crate::config::OnInvalidStart;
use crate::journal::{
    Conclusions, ErrorNow, Kind, Lane, Lease, OpenWork, Purpose, Resolution, RowError, WorkKind, invalid,
};
use crate::ledger::{Pages, Read, Row};
use crate::watermark::{LedgerId, Order};

/// Why a row was not sent: a signal came first.
pub(super) const STOPPED: &str = "stopped before its turn";
/// Why a row was not sent: its entity is not free.
pub(super) const HELD: &str =
    "another worker works on the entity, or died while it did; hint: elven-sync errors retry, in a minute";

/// How an error was resolved that was open when the retry began.
pub(super) const ELSEWHERE: &str = "resolved by another worker meanwhile";

/// The result of a retry of one error.
#[derive(Debug)]
pub struct Retried {
    /// The id of the error.
    pub error_id: i64,
    /// What resolved the error, or why it is still open.
    pub outcome: Result<String, String>,
}

/// What the parts of a retry of one entity hand on to each other.
#[derive(Debug, Default)]
pub(super) struct RetryProgress {
    /// The lease of the part before.
    lease_before: Option<Lease>,
    /// Why no more rows of the entity are sent.
    pub(super) ended: Option<String>,
}

/// A part of the retry of one entity: as many of its errors as are kept in memory.
pub(super) struct EntityRetry<'a> {
    worker: &'a Worker,
    run_id: i64,
    target: &'a Target,
    /// The rows of all errors.
    rows: BTreeMap<i64, String>,
    /// The errors that are left, the oldest row first; those whose rows are sent alone come last.
    left: VecDeque<i64>,
    /// The errors whose rows are sent in a batch of their own, since the outcome of an attempt with the row is unknown:
    /// in a batch it could make the outcome of the other rows unknown, too.
    alone: HashSet<i64>,
    /// The kind of the error of each row.
    kinds: Arc<BTreeMap<String, Kind>>,
    /// The rows that the API may have imported in an earlier attempt.
    may_be_imported: Arc<HashSet<String>>,
    /// The rows that are not sent now, and why. Nothing is recorded about them.
    not_now: HashMap<String, String>,
    /// The rows that this run has decided about, or has given to the delivery.
    examined: HashSet<String>,
    resolved_elsewhere: HashSet<i64>,
    /// Why the errors that are left stay open.
    ended: Option<String>,
}

impl<'a> EntityRetry<'a> {
    /// Sorts the errors by their rows, the oldest row first, so that of two rows of one key the newer one is sent
    /// later.
    pub(super) async fn of(
        worker: &'a Worker,
        run_id: i64,
        target: &'a Target,
        errors: Vec<RowError>,
    ) -> Result<Self, RunError> {
        let rows = errors.iter().map(|error| (error.error_id, error.ledger_id.clone()));
        let rows: Vec<(i64, String)> = rows.collect();
        let (mut alone, mut may_be_imported) = (HashSet::new(), HashSet::new());
        for rows in rows.chunks(worker.page_rows()) {
            let now = worker.journal.errors_now(run_id, &target.entity_id, rows).await?;
            alone.extend(now.iter().filter(|error| error.may_have_arrived).map(|error| error.error_id));
            let imported = now.iter().zip(rows).filter(|(error, _)| error.may_be_imported);
            may_be_imported.extend(imported.map(|(_, (_, ledger_id))| ledger_id.clone()));
        }
        let rows: BTreeMap<i64, String> = rows.into_iter().collect();
        let kind = |error: &RowError| match error.kind.as_str() {
            kind if kind == Kind::InvalidRow.as_ref() => Kind::InvalidRow,
            _ => Kind::RejectedRow,
        };
        let kinds: BTreeMap<String, Kind> =
            errors.iter().map(|error| (error.ledger_id.clone(), kind(error))).collect();
        let ids: Vec<String> = kinds.keys().cloned().collect();
        let mut ages: HashMap<String, Option<(Option<i64>, LedgerId)>> = HashMap::new();
        for ids in ids.chunks(worker.page_rows()) {
            for row in worker.ledger.rows_with_ids(&target.entity_id, ids).await?.rows {
                let newest = ages.entry(row.id.to_string()).or_default();
                *newest = newest.take().max(Some((row.captured_at_us, row.id)));
            }
        }
        let mut left: Vec<i64> = rows.keys().copied().collect();
        left.sort_by_cached_key(|error_id| (alone.contains(error_id), ages.get(&rows[error_id]).cloned()));
        Ok(Self {
            worker,
            run_id,
            target,
            rows,
            left: left.into(),
            alone,
            kinds: Arc::new(kinds),
            may_be_imported: Arc::new(may_be_imported),
            not_now: HashMap::new(),
            examined: HashSet::new(),
            resolved_elsewhere: HashSet::new(),
            ended: None,
        })
    }

    /// Retries the errors, in slices: between two slices, a run or a backfill gets the lease if it waits.
    pub(super) async fn work(mut self, progress: &mut RetryProgress) -> Result<Vec<Retried>, RunError> {
        let (worker, target) = (self.worker, self.target);
        // The rows were set aside for good reason; they show no mistake in the mapping.
        let start = Arc::new(InvalidStart::new(&target.entity_id, OnInvalidStart::SetAside));
        let mut report = EntityReport::idle(&target.entity_id);
        while !self.left.is_empty() && self.ended.is_none() {
            let purpose = Purpose::Retry { yields: progress.lease_before.is_some() };
            let mut wait = worker.lease_wait(purpose);
            let taken = match worker.take_lease(self.run_id, target, None, &mut wait).await? {
                LeaseAttempt::Taken(taken) => taken,
                LeaseAttempt::Left(ended) => {
                    report.ended = ended;
                    break;
                }
            };
            let (lane_run, lane, _) = LaneRun::begin(
                worker,
                self.run_id,
                target,
                taken,
                &mut progress.lease_before,
                start.clone(),
                report,
            );
            let halted = match worker.check_before_retry(&lane_run, &lane, &mut self.ended).await {
                Ok(()) => self.slice(&lane_run, &lane).await,
                refused => refused,
            };
            worker.link_slice(&lane_run.lease, &halted).await;
            report = lane_run.end(halted).await?;
            if report.ended != Ended::Done {
                break;
            }
        }
        let is_done = self.left.is_empty() && self.ended.is_none() && report.ended == Ended::Done;
        let why = match report.ended {
            Ended::Held => HELD.to_owned(),
            Ended::Failed(why) => why,
            _ => STOPPED.to_owned(),
        };
        let why = self.ended.get_or_insert(why);
        if !is_done {
            progress.ended = Some(why.clone());
        }
        self.report().await
    }

    /// Sends rows until the slice is over, and notes why it ended: the entity itself does not fail with a retry.
    async fn slice(&mut self, lane_run: &LaneRun<'_>, lane: &Lane) -> Result<(), LaneExit> {
        match self.pages(lane_run, lane).await {
            Err(LaneExit::Problem(problem, pause)) => {
                self.ended.get_or_insert(problem.message);
                if let Some(pause) = pause {
                    self.worker.journal.note_pause(&lane_run.lease, pause).await?;
                }
                Err(LaneExit::Shutdown)
            }
            Err(LaneExit::Fenced(left)) => {
                self.ended = Some(messages::fenced_retry(left));
                Err(LaneExit::Fenced(left))
            }
            // Either way the lease is released.
            Ok(()) => Err(LaneExit::Yielded),
            halted => halted,
        }
    }

    /// Sends rows as they are in the ledger now, a page at a time.
    async fn pages(&mut self, lane_run: &LaneRun<'_>, lane: &Lane) -> Result<(), LaneExit> {
        let work = OpenWork::new(lane_run.lease.clone(), WorkKind::Retry);
        let options = DeliveryOptions {
            errors: self.kinds.clone(),
            may_be_imported: self.may_be_imported.clone(),
            ..DeliveryOptions::default()
        };
        let delivery = Delivery::new(lane_run, work, None, options);
        delivery.recover_retry().await?;
        while let Some(first) = self.left.front() {
            let rows_max = if self.alone.contains(first) { 1 } else { self.worker.page_rows() };
            let others = self.left.iter().skip(1).take_while(|error_id| !self.alone.contains(error_id));
            let page = 1 + others.take(rows_max - 1).count();
            let rows = self.page(page, lane, &delivery).await?;
            if !rows.is_empty() {
                delivery.read_and_send(Box::new(OnePage(Some(rows))), None).await?;
            }
            self.left.drain(..page);
            if *self.worker.stop.borrow() {
                return Err(LaneExit::Shutdown);
            }
            if delivery.has_had_its_share() {
                return Err(LaneExit::Yielded);
            }
        }
        Ok(())
    }

    /// Decides about the first errors that are left, and records at once what needs no request. Returns the rows that
    /// are sent.
    async fn page(&mut self, page: usize, lane: &Lane, delivery: &Delivery) -> Result<Vec<Row>, LaneExit> {
        let ids = self.still_open(page).await?;
        let mut conclusions = Conclusions::default();
        let batches = self.batches(&ids, &mut conclusions).await?;
        let batches = self.without_superseded(batches, lane, &mut conclusions).await?;
        if !conclusions.resolved.is_empty() || !conclusions.problems.is_empty() {
            delivery.conclude_errors(conclusions).await?;
        }
        self.examined.extend(ids);
        Ok(batches.into_iter().flat_map(|batch| batch.rows).collect())
    }

    /// Returns the rows of the first errors that are left, apart from those that this run or another worker has decided
    /// about.
    async fn still_open(&mut self, page: usize) -> Result<Vec<String>, RunError> {
        let errors: Vec<(i64, String)> =
            self.left.iter().take(page).map(|error_id| (*error_id, self.rows[error_id].clone())).collect();
        let now = self.worker.journal.errors_now(self.run_id, &self.target.entity_id, &errors).await?;
        let mut open = Vec::new();
        for (now, (_, ledger_id)) in now.iter().zip(&errors) {
            if now.message.is_some() && !now.is_counted && !self.not_now.contains_key(ledger_id) {
                open.push(ledger_id.clone());
            } else if now.message.is_none() && !self.examined.contains(ledger_id) {
                self.resolved_elsewhere.insert(now.error_id);
            }
        }
        Ok(open)
    }

    /// Reads rows, and returns those with each id as a batch. Leaves out rows that cannot be sent.
    async fn batches(
        &mut self,
        ids: &[String],
        conclusions: &mut Conclusions,
    ) -> Result<Vec<Batch>, RunError> {
        let read = self.worker.ledger.rows_with_ids(&self.target.entity_id, ids).await?;
        let unreadable: HashMap<&String, String> = read.unreadable.into_iter().collect();
        let mut rows: HashMap<String, Vec<Row>> = HashMap::new();
        for row in read.rows {
            rows.entry(row.id.to_string()).or_default().push(row);
        }
        let mut batches = Vec::with_capacity(ids.len());
        for ledger_id in ids {
            if let Some(why) = unreadable.get(ledger_id) {
                self.not_now.insert(ledger_id.clone(), why.clone());
            } else if let Some(rows) = rows.remove(ledger_id) {
                let batch = Batch::build(None, rows, &self.target.rules);
                match batch.invalid.first() {
                    Some(row) => conclusions.problems.push(invalid(None, row)),
                    None => batches.push(batch),
                }
            } else {
                let why = "the row is not in the ledger any more".into();
                conclusions.resolved.push(Resolution { ledger_id: ledger_id.clone(), why });
            }
        }
        Ok(batches)
    }

    /// Leaves out rows that have a newer row of their key. Rows that are set aside, were resolved by hand, or were
    /// skipped by `--from-now` do not count.
    ///
    /// A pending row may still be refused or deleted. So it resolves the error of the older row only after it was
    /// uploaded; otherwise neither row might be uploaded, and no error would be open.
    async fn without_superseded(
        &mut self,
        mut batches: Vec<Batch>,
        lane: &Lane,
        conclusions: &mut Conclusions,
    ) -> Result<Vec<Batch>, RunError> {
        let (worker, entity_id) = (self.worker, &self.target.entity_id);
        let rows: Vec<Row> = batches.iter().flat_map(|batch| batch.rows.iter().cloned()).collect();
        let read = worker.ledger.rivals_of(entity_id, &rows, &self.target.rules.names).await?;
        // It is not known whether these rows are the newest of their keys.
        let unreadable: HashMap<&LedgerId, String> =
            read.unreadable.into_iter().map(|(row, why)| (&row.id, why)).collect();
        let rivals = by_key(read.rows, &self.target.rules);
        batches = self.without_clashes(batches, &rivals, conclusions);
        let newer = batches.iter().flat_map(|batch| newer_rows(batch, &rivals)).cloned().collect();
        let newer = worker.not_skipped(entity_id, worker.not_set_aside(entity_id, newer).await?).await?;
        let newer = by_key(newer, &self.target.rules);
        batches.retain(|batch| {
            let newer = newer_rows(batch, &newer);
            let row = &batch.rows[0].id;
            if let Some(why) = unreadable.get(row) {
                self.not_now.insert(row.to_string(), why.clone());
            } else if let Some(uploaded) = newer.iter().find(|newer| lane.is_past(newer.xid)) {
                conclusions.resolved.push(Resolution::superseded(row, &uploaded.id));
            } else if let Some(pending) = newer.first() {
                self.not_now.insert(row.to_string(), messages::superseded_later(&pending.id));
            } else {
                return true;
            }
            false
        });
        Ok(batches)
    }

    /// Leaves out rows whose key is also that of a row with another name in the ledger: neither of them is sent.
    fn without_clashes(
        &self,
        batches: Vec<Batch>,
        rivals: &HashMap<u64, Vec<Row>>,
        conclusions: &mut Conclusions,
    ) -> Vec<Batch> {
        if !self.target.rules.names.has_shared() {
            return batches;
        }
        let mut left = Vec::with_capacity(batches.len());
        for batch in batches {
            let same_key: Vec<Row> =
                batch.keys.iter().filter_map(|key| rivals.get(key)).flatten().cloned().collect();
            let batch = batch.without_clashes(&same_key);
            conclusions.problems.extend(batch.invalid.iter().map(|row| invalid(None, row)));
            if batch.invalid.is_empty() {
                left.push(batch);
            }
        }
        left
    }

    /// Returns the outcome of each error.
    async fn report(self) -> Result<Vec<Retried>, RunError> {
        let rows: Vec<(i64, String)> = self.rows.clone().into_iter().collect();
        let mut retried = Vec::with_capacity(rows.len());
        for rows in rows.chunks(self.worker.page_rows()) {
            let now = self.worker.journal.errors_now(self.run_id, &self.target.entity_id, rows).await?;
            retried.extend(now.into_iter().map(|error| self.outcome(error)));
        }
        Ok(retried)
    }

    fn outcome(&self, error: ErrorNow) -> Retried {
        let ErrorNow { error_id, message, resolution, is_counted, .. } = error;
        let outcome = match (message, self.not_now.get(&self.rows[&error_id])) {
            (None, _) if self.resolved_elsewhere.contains(&error_id) => Ok(ELSEWHERE.to_owned()),
            (None, _) => Ok(resolution.unwrap_or_default()),
            (Some(_), Some(why)) => Err(why.clone()),
            (Some(message), None) if is_counted => Err(message),
            (Some(_), None) => Err(self.ended.clone().unwrap_or_default()),
        };
        Retried { error_id, outcome }
    }
}

/// Returns rows by the hash of their key.
pub(super) fn by_key(rows: Vec<Row>, rules: &RecordRules) -> HashMap<u64, Vec<Row>> {
    let mut aligner = rules.aligner();
    let mut by_key: HashMap<u64, Vec<Row>> = HashMap::new();
    for row in rows {
        if let Some(key) = key_hash(&row, &mut aligner) {
            by_key.entry(key).or_default().push(row);
        }
    }
    by_key
}

/// Returns the rows that are newer than a record of the batch with the same key.
pub(super) fn newer_rows<'r>(batch: &Batch, by_key: &'r HashMap<u64, Vec<Row>>) -> Vec<&'r Row> {
    batch.superseded_by(batch.keys.iter().filter_map(|key| by_key.get(key)).flatten())
}

/// A page of rows that were read already.
#[derive(Debug)]
pub(super) struct OnePage(pub(super) Option<Vec<Row>>);

impl Pages for OnePage {
    fn order(&self) -> Order {
        Order::ChangeXid
    }

    fn next_page(&mut self) -> Read<'_, Option<Vec<Row>>> {
        let page = self.0.take();
        async { Ok(page) }.boxed()
    }
}
