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
use crate::align::Clock;
use crate::batch::{Batch, key_hash};
use crate::config::OnInvalidStart;
use crate::journal::{
    Conclusions, ErrorNow, Kind, Lane, OpenWork, Purpose, RecordedError, Resolution, WorkKind, invalid,
};
use crate::ledger::{Pages, Read, Row};
use crate::watermark::{LedgerId, Order};

/// Why a row was not sent: a signal came first.
const STOPPED: &str = "stopped before its turn";
/// Why a row was not sent: its entity is not free.
const HELD: &str =
    "another worker works on the entity, or died while it did; hint: elven-sync errors retry, in a minute";

/// The result of a retry of one error.
#[derive(Debug)]
pub struct Retried {
    /// The id of the error.
    pub error_id: i64,
    /// What resolved the error, or why it is still open.
    pub outcome: Result<String, String>,
}

/// A row that is set aside.
struct SetAside {
    error_id: i64,
    ledger_id: String,
    /// The row is sent in a batch of its own, since the outcome of an attempt with it is unknown: in a batch it could
    /// make the outcome of the other rows unknown, too.
    is_alone: bool,
}

/// The retry of the errors of one entity.
pub(super) struct EntityRetry<'a> {
    worker: &'a Worker,
    run_id: i64,
    target: &'a Target,
    /// All errors.
    error_ids: Vec<i64>,
    /// The errors that are left, the oldest row first; those whose rows are sent alone come last.
    left: VecDeque<SetAside>,
    /// The kind of the error of each row.
    kinds: Arc<BTreeMap<String, Kind>>,
    /// The outcomes that are known without an answer to a batch.
    outcomes: BTreeMap<i64, Result<String, String>>,
    /// The errors whose rows were given to the delivery.
    delivered: HashSet<i64>,
    /// Why the errors that are left stay open.
    ended: Option<String>,
}

/// A row that can be sent, as a batch, and its error.
struct Candidate {
    error_id: i64,
    batch: Batch,
}

/// What was found out about the rows of a page.
#[derive(Default)]
struct Found {
    /// Errors that are resolved, or stay open, and are recorded as such.
    conclusions: Conclusions,
    outcomes: BTreeMap<i64, Result<String, String>>,
}

impl Found {
    fn resolve(&mut self, error_id: i64, resolution: Resolution) {
        self.outcomes.insert(error_id, Ok(resolution.why.clone().into_owned()));
        self.conclusions.resolved.push(resolution);
    }

    fn not_now(&mut self, error_id: i64, why: &str) {
        self.outcomes.insert(error_id, Err(why.to_owned()));
    }
}

impl<'a> EntityRetry<'a> {
    /// Sorts the errors by their rows, the oldest row first, so that of two rows of one key the newer one is sent later.
    pub(super) async fn of(
        worker: &'a Worker,
        run_id: i64,
        target: &'a Target,
        errors: Vec<RecordedError>,
    ) -> Result<Self, RunError> {
        let error_ids: Vec<i64> = errors.iter().map(|error| error.error_id).collect();
        let now = worker.journal.errors_now(run_id, &error_ids).await?;
        let alone: HashSet<i64> =
            now.iter().filter(|error| error.may_have_arrived).map(|error| error.error_id).collect();
        let kind = |error: &RecordedError| match error.kind.as_str() {
            kind if kind == Kind::InvalidRow.as_ref() => Kind::InvalidRow,
            _ => Kind::RejectedRow,
        };
        let rows = errors.iter().filter_map(|error| Some((error.ledger_id.clone()?, kind(error))));
        let kinds: Arc<BTreeMap<String, Kind>> = Arc::new(rows.collect());
        let ids: Vec<String> = kinds.keys().cloned().collect();
        let mut ages: HashMap<String, Option<(Option<i64>, LedgerId)>> = HashMap::new();
        for ids in ids.chunks(worker.page_rows()) {
            for row in worker.ledger.rows_with_ids(&target.entity_id, ids).await?.rows {
                let newest = ages.entry(row.id.to_string()).or_default();
                *newest = newest.take().max(Some((row.captured_at_us, row.id)));
            }
        }
        let left = errors.into_iter().map(|RecordedError { error_id, ledger_id, .. }| SetAside {
            error_id,
            ledger_id: ledger_id.unwrap_or_default(),
            is_alone: alone.contains(&error_id),
        });
        let mut left: Vec<SetAside> = left.collect();
        left.sort_by_cached_key(|error| (error.is_alone, ages.get(&error.ledger_id).cloned()));
        let (left, outcomes, delivered) = (left.into(), BTreeMap::new(), HashSet::new());
        Ok(Self { worker, run_id, target, error_ids, left, kinds, outcomes, delivered, ended: None })
    }

    /// Retries the errors, in slices: between two slices, a run or a backfill gets the lease if it waits.
    pub(super) async fn work(mut self) -> Result<Vec<Retried>, RunError> {
        let (worker, target) = (self.worker, self.target);
        let mut lease_before = None;
        // The rows were set aside for good reason; they show no mistake in the mapping.
        let start = Arc::new(InvalidStart::new(&target.entity_id, OnInvalidStart::SetAside));
        let mut report = EntityReport::idle(&target.entity_id);
        while !self.left.is_empty() && self.ended.is_none() {
            let purpose = Purpose::Retry { yields: lease_before.is_some() };
            let taken = match worker.take_lease(&target.entity_id, None, purpose).await? {
                LeaseAttempt::Taken(taken) => taken,
                LeaseAttempt::Left(ended) => {
                    report.ended = ended;
                    break;
                }
            };
            let (lane_run, lane, _) = LaneRun::begin(
                worker,
                (self.run_id, target),
                taken,
                &mut lease_before,
                start.clone(),
                report,
            );
            let halted = match self.check(&lane_run, &lane).await {
                Ok(()) => self.slice(&lane_run, &lane).await,
                refused => refused,
            };
            report = lane_run.end(halted).await?;
            if report.ended != Ended::Done {
                break;
            }
        }
        let why = match report.ended {
            Ended::Held => HELD,
            _ => STOPPED,
        };
        self.ended.get_or_insert_with(|| why.to_owned());
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
        let options = DeliveryOptions { errors: self.kinds.clone(), ..DeliveryOptions::default() };
        let delivery = Delivery::new(lane_run, work, None, options);
        delivery.recover_retry().await?;
        while let Some(first) = self.left.front() {
            let rows_max = if first.is_alone { 1 } else { self.worker.page_rows() };
            let others = self.left.iter().skip(1).take_while(|error| !error.is_alone);
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

    /// Checks that the watermark belongs to the ledger.
    async fn check(&mut self, lane_run: &LaneRun<'_>, lane: &Lane) -> Result<(), LaneExit> {
        let (worker, entity_id) = (self.worker, &self.target.entity_id);
        let probed = match worker.ledger.probe_entity(&lane.progress(entity_id)).await {
            Err(problem) if problem.is_about_rows() => {
                self.ended = Some(problem.in_words_of_entity());
                return Err(LaneExit::Shutdown);
            }
            probed => probed?,
        };
        let checked = worker
            .check_journal(entity_id, lane)
            .and_then(|()| worker.check_watermark(entity_id, lane, &probed));
        if let Err(mismatch) = checked {
            self.ended = Some(mismatch.to_string());
            return Err(mismatch.into());
        }
        if lane.mapping.is_none() {
            worker.journal.fill_mapping(&lane_run.lease, &worker.mapping).await?;
        }
        Ok(())
    }

    /// Decides about the first errors that are left, and records at once what needs no request. Returns the rows that
    /// are sent.
    async fn page(&mut self, page: usize, lane: &Lane, delivery: &Delivery) -> Result<Vec<Row>, LaneExit> {
        let mut found = Found::default();
        let candidates = self.candidates(page, &mut found).await?;
        let candidates = self.without_superseded(candidates, lane, &mut found).await?;
        let Found { conclusions, outcomes } = found;
        if !conclusions.resolved.is_empty() || !conclusions.problems.is_empty() {
            delivery.conclude_errors(conclusions).await?;
        }
        self.outcomes.extend(outcomes);
        self.delivered.extend(candidates.iter().map(|candidate| candidate.error_id));
        Ok(candidates.into_iter().flat_map(|candidate| candidate.batch.rows).collect())
    }

    /// Reads the rows of the first errors that are left, if they are still open. Leaves out rows that cannot be sent.
    async fn candidates(&mut self, page: usize, found: &mut Found) -> Result<Vec<Candidate>, RunError> {
        let Self { worker, target, .. } = *self;
        let errors: Vec<&SetAside> = self
            .left
            .iter()
            .take(page)
            .filter(|error| !self.outcomes.contains_key(&error.error_id))
            .collect();
        let error_ids: Vec<i64> = errors.iter().map(|error| error.error_id).collect();
        let now = worker.journal.errors_now(self.run_id, &error_ids).await?;
        let now: HashMap<i64, &ErrorNow> = now.iter().map(|error| (error.error_id, error)).collect();
        let mut open = Vec::with_capacity(errors.len());
        for error in errors {
            match now.get(&error.error_id) {
                Some(ErrorNow { message: Some(_), is_counted: false, .. }) => open.push(error),
                Some(ErrorNow { message: Some(_), .. }) => {}
                _ if self.delivered.contains(&error.error_id) => {}
                _ => {
                    let why = "resolved by another worker meanwhile".to_owned();
                    found.outcomes.insert(error.error_id, Ok(why));
                }
            }
        }
        let ids: Vec<String> = open.iter().map(|error| error.ledger_id.clone()).collect();
        let read = worker.ledger.rows_with_ids(&target.entity_id, &ids).await?;
        let unreadable: HashMap<&String, String> = read.unreadable.into_iter().collect();
        let mut rows: HashMap<String, Vec<Row>> = HashMap::new();
        for row in read.rows {
            rows.entry(row.id.to_string()).or_default().push(row);
        }
        let mut candidates = Vec::with_capacity(open.len());
        for &SetAside { error_id, ref ledger_id, .. } in open {
            if let Some(why) = unreadable.get(ledger_id) {
                found.not_now(error_id, why);
                continue;
            }
            let Some(rows) = rows.remove(ledger_id) else {
                let why = "the row is not in the ledger any more".into();
                found.resolve(error_id, Resolution { ledger_id: ledger_id.clone(), why });
                continue;
            };
            let batch = Batch::build(None, rows, &target.zone);
            if let Some(row) = batch.invalid.first() {
                let problem = invalid(None, row);
                found.not_now(error_id, &problem.message);
                found.conclusions.problems.push(problem);
            } else {
                candidates.push(Candidate { error_id, batch });
            }
        }
        Ok(candidates)
    }

    /// Leaves out rows that have a newer row of their key. Rows that are set aside, were resolved by hand, or were
    /// skipped by `--from-now` do not count.
    ///
    /// A pending row may still be refused or deleted. So it resolves the error of the older row only after it was
    /// uploaded; otherwise neither row might be uploaded, and no error would be open.
    async fn without_superseded(
        &self,
        candidates: Vec<Candidate>,
        lane: &Lane,
        found: &mut Found,
    ) -> Result<Vec<Candidate>, RunError> {
        let (worker, entity_id) = (self.worker, &self.target.entity_id);
        let rows: Vec<Row> =
            candidates.iter().flat_map(|candidate| candidate.batch.rows.iter().cloned()).collect();
        let read = worker.ledger.rivals_of(entity_id, &rows).await?;
        // It is not known whether these rows are the newest of their keys.
        let unreadable: HashMap<&LedgerId, String> =
            read.unreadable.into_iter().map(|(row, why)| (&row.id, why)).collect();
        let rivals = self.by_key(read.rows);
        let newer = candidates.iter().flat_map(|candidate| newer_rows(&candidate.batch, &rivals));
        let newer = worker.not_set_aside(entity_id, newer.cloned().collect()).await?;
        let newer = self.by_key(worker.not_skipped(entity_id, newer).await?);
        let mut sent = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let Candidate { error_id, batch } = &candidate;
            if let Some(why) = batch.rows.iter().find_map(|row| unreadable.get(&row.id)) {
                found.not_now(*error_id, why);
                continue;
            }
            let newer = newer_rows(batch, &newer);
            let row = &batch.rows[0].id;
            if let Some(uploaded) = newer.iter().find(|newer| lane.is_past(newer.xid)) {
                found.resolve(*error_id, Resolution::superseded(row, &uploaded.id));
            } else if let Some(pending) = newer.first() {
                found.not_now(*error_id, &messages::superseded_later(&pending.id));
            } else {
                sent.push(candidate);
            }
        }
        Ok(sent)
    }

    fn by_key(&self, rows: Vec<Row>) -> HashMap<u64, Vec<Row>> {
        let mut clock = Clock::of(&self.target.zone);
        let mut by_key: HashMap<u64, Vec<Row>> = HashMap::new();
        for row in rows {
            if let Some(key) = key_hash(&row, &mut clock) {
                by_key.entry(key).or_default().push(row);
            }
        }
        by_key
    }

    /// Returns the outcome of each error.
    async fn report(mut self) -> Result<Vec<Retried>, RunError> {
        let open: Vec<i64> =
            self.error_ids.iter().filter(|error_id| !self.outcomes.contains_key(error_id)).copied().collect();
        for error in self.worker.journal.errors_now(self.run_id, &open).await? {
            let outcome = match error.message {
                None => Ok(error.resolution.unwrap_or_default()),
                Some(message) if error.is_counted => Err(message),
                Some(_) => Err(self.ended.clone().unwrap_or_default()),
            };
            self.outcomes.insert(error.error_id, outcome);
        }
        let retried = self.outcomes.into_iter();
        Ok(retried.map(|(error_id, outcome)| Retried { error_id, outcome }).collect())
    }
}

/// Returns the rows that are newer than a record of the batch with the same key.
fn newer_rows<'r>(batch: &Batch, by_key: &'r HashMap<u64, Vec<Row>>) -> Vec<&'r Row> {
    batch.superseded_by(batch.keys.iter().filter_map(|key| by_key.get(key)).flatten())
}

/// A page of rows that were read already.
#[derive(Debug)]
struct OnePage(Option<Vec<Row>>);

impl Pages for OnePage {
    fn order(&self) -> Order {
        Order::ChangeXid
    }

    fn next_page(&mut self) -> Read<'_, Option<Vec<Row>>> {
        let page = self.0.take();
        async { Ok(page) }.boxed()
    }
}
