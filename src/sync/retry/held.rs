//! Held rows are sent again: by a run, once the API knows their name, or by `errors retry`.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use futures_util::future::join;

use super::super::decisions::naming::Name;
use super::super::delivery::{Delivery, DeliveryOptions};
use super::super::invalid_start::InvalidStart;
use super::super::lane::exit::LaneExit;
use super::super::lane::lane_run::LaneRun;
use super::super::lane::lease_wait::LeaseAttempt;
use super::super::lane_worker::Target;
use super::super::{Ended, EntityReport, RunError, Worker, messages};
use super::entity::{HELD, OnePage, STOPPED, by_key, newer_rows};
use crate::align::Clock;
use crate::batch::Batch;
use crate::config::OnInvalidStart;
use crate::journal::{Conclusions, HeldNow, Lane, OpenWork, Problem, Purpose, Resolution, WorkKind, invalid};
use crate::ledger::{LedgerNames, Row};
use crate::watermark::LedgerId;

/// How many errors are worked on together: each has the rows of at most one batch, which are kept in memory, and the
/// rivals of all of them are looked for in one reading of the ledger.
const ERRORS_AT_ONCE: usize = 16;

/// The most names that are looked at together, and the most looks of a slice.
const NAMES_MAX: usize = 100;
const LOOKS_MAX: usize = 4;

/// Names of which no two rows share account, currency and second.
#[derive(Debug, Default)]
struct UniqueNames {
    accounts: BTreeSet<String>,
    currencies: BTreeSet<String>,
    /// How often rows were looked at in this slice.
    looks: usize,
    /// The number of the lease under which they were looked at last.
    lease_epoch: i64,
}

/// The resend of the rows that some errors of an entity hold.
pub(super) struct HeldRetry<'a> {
    worker: &'a Worker,
    run_id: i64,
    target: &'a Target,
    /// The errors that are left.
    left: VecDeque<i64>,
    /// The errors with a row that waits for a newer one of its key, which is held, too.
    waiting: Vec<i64>,
    /// Whether rows may wait. Not any more, once nothing else is left.
    may_wait: bool,
    /// Rows were uploaded or decided about since the errors were last gone through.
    has_progress: bool,
    /// The errors that were resolved before their turn.
    pub(super) elsewhere: HashSet<i64>,
    /// A run sends the rows by itself.
    pub(super) is_resend: bool,
    /// The names of which no two rows share a key. They are forgotten when another worker had the lease between two
    /// slices, because it may have uploaded rows that were added later.
    unique: UniqueNames,
    /// Why the errors that are left stay open.
    pub(super) ended: Option<String>,
    /// The problem that stopped the retry.
    pub(super) problem: Option<Problem>,
    /// The number of rows that cannot be sent.
    pub(super) invalid: i64,
    /// The rows that are sent last and each by itself, since the outcome of an attempt with them is unknown: one of them
    /// may be the reason.
    alone: HashSet<String>,
    /// Those of them that are left.
    singles: VecDeque<Row>,
}

impl<'a> HeldRetry<'a> {
    pub(super) fn of(worker: &'a Worker, run_id: i64, target: &'a Target, errors: Vec<i64>) -> Self {
        Self {
            worker,
            run_id,
            target,
            left: errors.into(),
            waiting: Vec::new(),
            may_wait: true,
            has_progress: false,
            elsewhere: HashSet::new(),
            is_resend: false,
            unique: UniqueNames::default(),
            ended: None,
            problem: None,
            invalid: 0,
            alone: HashSet::new(),
            singles: VecDeque::new(),
        }
    }

    /// Sends the rows, in slices: between two slices, another worker gets the lease if it waits.
    pub(super) async fn work(&mut self) -> Result<EntityReport, RunError> {
        let (worker, target) = (self.worker, self.target);
        // The rows were set aside for good reason; they show no mistake in the mapping.
        let start = Arc::new(InvalidStart::new(&target.entity_id, OnInvalidStart::SetAside));
        let mut report = EntityReport::idle(&target.entity_id);
        let mut lease_before = None;
        while !self.left.is_empty() && self.ended.is_none() {
            let purpose = Purpose::Retry { yields: lease_before.is_some() };
            let mut wait = worker.lease_wait(purpose);
            let taken = match worker.take_lease(self.run_id, target, None, &mut wait).await? {
                LeaseAttempt::Taken(taken) => taken,
                LeaseAttempt::Left(ended) => {
                    report.ended = ended;
                    break;
                }
            };
            let (mut lane_run, lane, _) =
                LaneRun::begin(worker, self.run_id, target, taken, &mut lease_before, start.clone(), report);
            let halted = self.slice(&mut lane_run, &lane).await;
            worker.link_slice(&lane_run.lease, &halted).await;
            report = lane_run.end(halted).await?;
            if report.ended != Ended::Done {
                break;
            }
        }
        let why = match &report.ended {
            Ended::Done => return Ok(report),
            Ended::Held => HELD.to_owned(),
            Ended::Failed(why) => why.clone(),
            Ended::Stopped | Ended::Fenced(_) => STOPPED.to_owned(),
        };
        self.ended.get_or_insert(why);
        Ok(report)
    }

    /// Sends rows until the slice is over, and notes why it ended: the entity itself does not fail with it.
    async fn slice(&mut self, lane_run: &mut LaneRun<'_>, lane: &Lane) -> Result<(), LaneExit> {
        self.worker.check_before_retry(lane_run, lane, &mut self.ended).await?;
        let lease_epoch = lane_run.lease.epoch;
        if self.unique.lease_epoch + 1 != lease_epoch {
            self.unique = UniqueNames::default();
        }
        (self.unique.lease_epoch, self.unique.looks) = (lease_epoch, 0);
        let unknown = self.worker.journal.rows_of_unknown_retries(&self.target.entity_id).await?;
        self.alone = unknown.into_iter().collect();
        let work = OpenWork::new(lane_run.lease.clone(), WorkKind::Retry);
        let options = DeliveryOptions { is_resend: self.is_resend, ..DeliveryOptions::default() };
        let delivery = Delivery::new(lane_run, work, None, options);
        let sent = self.send(&delivery, lane).await;
        delivery.report_to(&mut lane_run.report);
        match sent {
            Err(LaneExit::Problem(problem, pause)) => {
                self.ended.get_or_insert(problem.message.clone());
                self.problem.get_or_insert(*problem);
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

    async fn send(&mut self, delivery: &Arc<Delivery>, lane: &Lane) -> Result<(), LaneExit> {
        delivery.recover_retry().await?;
        let chunk = |left: &VecDeque<i64>, done: usize| -> Vec<i64> {
            left.iter().skip(done).take(ERRORS_AT_ONCE).copied().collect()
        };
        let mut rows = self.rows(&chunk(&self.left, 0), delivery, lane).await?;
        while !self.left.is_empty() {
            let count = ERRORS_AT_ONCE.min(self.left.len());
            self.has_progress |= !rows.is_empty();
            let page = OnePage(Some(std::mem::take(&mut rows)).filter(|rows| !rows.is_empty()));
            // The next rows are read while these are sent.
            let next = chunk(&self.left, count);
            let sending = delivery.read_and_send(Box::new(page), None);
            let (sent, read) = join(sending, self.rows(&next, delivery, lane)).await;
            sent?;
            rows = read?;
            self.left.drain(..count);
            if self.left.is_empty() && !self.waiting.is_empty() && self.may_wait {
                // The newer rows were sent meanwhile, or they never will be.
                self.may_wait = std::mem::take(&mut self.has_progress);
                self.left.extend(std::mem::take(&mut self.waiting));
                rows = self.rows(&chunk(&self.left, 0), delivery, lane).await?;
            }
            while self.left.is_empty()
                && let Some(row) = self.singles.pop_front()
            {
                delivery.read_and_send(Box::new(OnePage(Some(vec![row]))), None).await?;
            }
            if *self.worker.stop.borrow() {
                return Err(LaneExit::Shutdown);
            }
            if delivery.has_had_its_share() {
                return Err(LaneExit::Yielded);
            }
        }
        Ok(())
    }

    /// Returns the rows of some errors that are sent, in the order `(captured_at, id)`, as they are in the ledger now.
    /// Records at once what is found out about the others.
    async fn rows(&mut self, chunk: &[i64], delivery: &Delivery, lane: &Lane) -> Result<Vec<Row>, LaneExit> {
        let (worker, entity_id) = (self.worker, &self.target.entity_id);
        if chunk.is_empty() {
            return Ok(Vec::new());
        }
        let mut held = worker.journal.held_now(chunk).await?;
        let is_open: HashSet<i64> = held.iter().map(|held| held.error_id).collect();
        self.elsewhere.extend(chunk.iter().filter(|error_id| !is_open.contains(error_id)));
        // A name that was refused again is not tried with each of its errors.
        held.retain(|held| {
            let is_unknown = |in_ledger: &String| {
                Name::of_kind(&held.kind, self.target.sent_as(&held.kind, in_ledger))
                    .is_some_and(|name| self.target.names.is_unknown(&name))
            };
            !held.ledger_names.iter().all(is_unknown)
        });
        self.target.names.note_doubted(held.iter().filter_map(|held| Name::of_kind(&held.kind, &held.name)));
        let ids: Vec<String> = held.iter().flat_map(|held| &held.ids).map(ToString::to_string).collect();
        let mut conclusions = Conclusions::default();
        let mut rows: Vec<Row> = Vec::with_capacity(ids.len());
        for ids in ids.chunks(worker.page_rows()) {
            let read = worker.ledger.rows_with_ids(entity_id, ids).await?;
            let unreadable: HashSet<&String> = read.unreadable.into_iter().map(|(id, _)| id).collect();
            let found: HashSet<String> = read.rows.iter().map(|row| row.id.to_string()).collect();
            let gone = ids.iter().filter(|id| !found.contains(*id) && !unreadable.contains(id));
            conclusions.resolved.extend(gone.map(|ledger_id| Resolution {
                ledger_id: ledger_id.clone(),
                why: "the row is not in the ledger any more".into(),
            }));
            rows.extend(read.rows);
        }
        // The version of an open or a later pass is sent by that pass.
        rows.retain(|row| lane.is_past(row.xid));
        rows.sort_by(|a, b| (a.captured_at_us, &a.id).cmp(&(b.captured_at_us, &b.id)));
        let rows = self.sendable(rows, &held, lane, &mut conclusions).await?;
        self.invalid += i64::try_from(conclusions.problems.len()).unwrap_or(i64::MAX);
        let (singles, rows): (Vec<Row>, Vec<Row>) =
            rows.into_iter().partition(|row| self.alone.contains(&row.id.to_string()));
        self.singles.extend(singles);
        if !conclusions.resolved.is_empty() || !conclusions.problems.is_empty() {
            self.has_progress = true;
            delivery.conclude_errors(conclusions).await?;
        }
        Ok(rows)
    }

    /// Leaves out rows that cannot be sent, and rows that have a newer row of their key. Rows that are set aside, were
    /// resolved by hand, or were skipped by `--from-now` do not count; but a row waits for a newer one that is held,
    /// until nothing else is left.
    async fn sendable(
        &mut self,
        rows: Vec<Row>,
        held: &[HeldNow],
        lane: &Lane,
        conclusions: &mut Conclusions,
    ) -> Result<Vec<Row>, LaneExit> {
        let (worker, entity_id) = (self.worker, &self.target.entity_id);
        let repeated = self.shown_again(&rows);
        let are_unique = self.are_unique(&rows).await?;
        if repeated.is_empty() && are_unique {
            return Ok(rows);
        }
        let batch = Batch::build(None, rows, &self.target.rules);
        conclusions.problems.extend(batch.invalid.iter().map(|row| invalid(None, row)));
        let mut left_out: HashSet<LedgerId> = batch.invalid.iter().map(|row| row.id.clone()).collect();
        let same_second: &[Row] = if are_unique { &[] } else { &batch.rows };
        let rivals = self.rivals(same_second, &repeated, &mut left_out).await?;
        let own: HashSet<_> = batch.rows.iter().map(|row| (&row.id, row.xid)).collect();
        let others: Vec<Row> = rivals.into_iter().filter(|row| !own.contains(&(&row.id, row.xid))).collect();
        let batch = batch.without_clashes(&others);
        for row in &batch.invalid {
            if left_out.insert(row.id.clone()) {
                conclusions.problems.push(invalid(None, row));
            }
        }
        let newer: Vec<Row> = batch.superseded_by(others.iter()).into_iter().cloned().collect();
        if newer.is_empty() {
            let mut rows = batch.rows;
            rows.retain(|row| !left_out.contains(&row.id));
            return Ok(rows);
        }
        let ids: Vec<String> = newer.iter().map(|row| row.id.to_string()).collect();
        let is_held: HashSet<String> = if self.may_wait {
            let held = worker.journal.held_until(entity_id, &ids, false).await?;
            held.into_iter().map(|(id, _)| id).collect()
        } else {
            HashSet::new()
        };
        let (waited_for, newer): (Vec<Row>, Vec<Row>) =
            newer.into_iter().partition(|row| is_held.contains(&row.id.to_string()));
        let newer = worker.not_skipped(entity_id, worker.not_set_aside(entity_id, newer).await?).await?;
        let (newer, waited_for) = (by_key(newer, &self.target.rules), by_key(waited_for, &self.target.rules));
        let error_of: BTreeMap<_, i64> =
            held.iter().flat_map(|held| held.ids.iter().map(|id| (id.clone(), held.error_id))).collect();
        let mut sent = Vec::with_capacity(batch.rows.len());
        for row in batch.rows.into_iter().filter(|row| !left_out.contains(&row.id)) {
            let one = Batch::build(None, vec![row], &self.target.rules);
            let is_past = |newer: &&&Row| lane.is_past(newer.xid);
            let own_newer = newer_rows(&one, &newer);
            if let Some(uploaded) = own_newer.iter().find(is_past) {
                conclusions.resolved.push(Resolution::superseded(&one.rows[0].id, &uploaded.id));
            } else if !newer_rows(&one, &waited_for).is_empty() {
                self.waiting.extend(error_of.get(&one.rows[0].id));
            } else if own_newer.is_empty() {
                sent.extend(one.rows);
            }
        }
        self.waiting.dedup();
        Ok(sent)
    }

    /// Returns those of these rows whose second the clock shows again later.
    fn shown_again(&self, rows: &[Row]) -> Vec<Row> {
        let clock = Clock::of(&self.target.rules.zone);
        let is_repeated =
            |row: &&Row| row.captured_at_us.is_some_and(|at| clock.repeats_until(at, at) - at > 1_000_000);
        rows.iter().filter(is_repeated).cloned().collect()
    }

    /// Returns the rows that may have the key of one of these rows: for `same_second`, the rows in the same UTC second;
    /// for `repeated`, also those in the later second that the clock shows alike. Adds the rows to `left_out` whose
    /// rivals cannot be read.
    async fn rivals(
        &self,
        same_second: &[Row],
        repeated: &[Row],
        left_out: &mut HashSet<LedgerId>,
    ) -> Result<Vec<Row>, RunError> {
        let (ledger, entity_id) = (&self.worker.ledger, &self.target.entity_id);
        let names = &self.target.rules.names;
        let mut rivals = Vec::new();
        for read in [
            ledger.same_second(entity_id, same_second, names).await?,
            ledger.rivals_of(entity_id, repeated, names).await?,
        ] {
            rivals.extend(read.rows);
            left_out.extend(read.unreadable.into_iter().map(|(row, _)| row.id.clone()));
        }
        Ok(rivals)
    }

    /// Whether no other row of the ledger has the account, the currency and the UTC second of one of these rows.
    ///
    /// Most keys are unique, and one look at all rows of a name is faster than one for each part of them. A row that is
    /// added later in the slice belongs to a later pass, and so it is uploaded later.
    async fn are_unique(&mut self, rows: &[Row]) -> Result<bool, RunError> {
        if self.target.rules.names.has_shared() {
            return Ok(false);
        }
        let of = |name: fn(&Row) -> Option<&str>| -> BTreeSet<String> {
            let names: BTreeSet<&str> = rows.iter().filter_map(name).collect();
            names.into_iter().map(str::to_owned).collect()
        };
        let (accounts, currencies) = (of(Row::account), of(Row::currency));
        let UniqueNames { accounts: known_accounts, currencies: known_currencies, .. } = &self.unique;
        if accounts.is_subset(known_accounts) || currencies.is_subset(known_currencies) {
            return Ok(true);
        }
        if self.unique.looks == LOOKS_MAX || accounts.len().min(currencies.len()) > NAMES_MAX {
            return Ok(false);
        }
        self.unique.looks += 1;
        // Of the kind with fewer names: the rows are held because of one of them.
        let by_account = accounts.len() <= currencies.len();
        let names =
            if by_account { LedgerNames::Accounts(&accounts) } else { LedgerNames::Currencies(&currencies) };
        match self.worker.ledger.has_repeated_key(&self.target.entity_id, names).await {
            Ok(true) => return Ok(false),
            Err(problem) if problem.is_about_rows() => return Ok(false),
            Ok(false) => {}
            Err(problem) => return Err(problem.into()),
        }
        if by_account {
            self.unique.accounts.extend(accounts);
        } else {
            self.unique.currencies.extend(currencies);
        }
        Ok(true)
    }
}
