//! The model's fences are those of the SQL: a table of sequences of lane writes, each of which is run against the real
//! journal and against the model. Both must give the same outcomes, which are those of the table.

mod backend;
mod step;
mod table;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use elven_sync::batch::Batch;
use elven_sync::journal::{
    AttemptResult, CursorAdvance, JournalError, Kind, Lane, LaneStore, Lease, NewPass, OpenWork,
    PendingWrite, Problem, Purpose, RecordedBatch, RefusedRows, Settled, Take, WorkContext, WorkKind,
};
use elven_sync::ledger::Row;
use elven_sync::watermark::{At, Cursor, LedgerId};
use tokio::time::Instant;

use self::backend::{Backend, ModelBackend, RealBackend};
use self::step::{Span, Step, Under, Worker};
use self::table::CASES;
use super::COMMON;
use super::ledger::numeric;
use super::world::Sabotage;
use crate::support::TestEnv;

/// The transaction that wrote all rows of the cases.
const XID: u64 = 100;
/// The id of a batch that was never announced.
const NO_BATCH: i64 = 999_999;

/// What one worker has.
#[derive(Default)]
struct Holding {
    lease: Option<Lease>,
    lane: Lane,
    work: Option<OpenWork>,
}

/// A case while it is run against a journal.
struct Player<'a> {
    backend: &'a Backend,
    entity_id: &'a str,
    holdings: BTreeMap<Worker, Holding>,
    /// The batches that were announced, and the parts of those that were split.
    batch_ids: BTreeMap<Span, i64>,
}

fn cursor(position: i64) -> Option<Cursor> {
    (position > 0).then(|| Cursor { at: At::Xid(XID), id: position.to_string() })
}

fn advance((before, last): Span) -> CursorAdvance {
    CursorAdvance { before: cursor(before), last: cursor(last).unwrap(), batch_ids: Vec::new() }
}

/// The batch with the rows of a span. `balance`: what is added to each balance.
fn batch((before, last): Span, balance: i64) -> Batch {
    let row = |id: i64| {
        let account = format!("a{id}");
        let balance = numeric(balance + id);
        Row::new(XID, LedgerId::Number(id), Some(account.as_str()), Some("BTC"), Some(0), Some(&balance))
    };
    Batch::build(cursor(before), (before + 1..=last).map(row).collect(), &COMMON.zone.clone().into())
}

/// The word for the outcome of a write.
fn word<T>(outcome: Result<T, JournalError>, done: impl FnOnce(T) -> String) -> String {
    match outcome {
        Ok(value) => done(value),
        Err(JournalError::LeaseLost) => "lost".to_owned(),
        Err(JournalError::Unfinished(_)) => "unfinished".to_owned(),
        // The group commit shares the error of a transaction among its requests.
        Err(JournalError::Stopped(problem)) if matches!(*problem, JournalError::Unfinished(_)) => {
            "unfinished".to_owned()
        }
        Err(problem) => format!("{problem:?}"),
    }
}

fn done<T>(outcome: Result<T, JournalError>) -> String {
    word(outcome, |_| "done".to_owned())
}

fn recorded(batches: &[RecordedBatch]) -> String {
    let shown = batches.iter().map(|batch| {
        let before = batch.before.as_ref().map_or("0", |cursor| cursor.id.as_str());
        format!("{before}-{} {:?} {:?}", batch.last.id, batch.state, batch.side)
    });
    let shown: Vec<String> = shown.collect();
    if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") }
}

impl Player<'_> {
    fn journal(&self, under: Under) -> &dyn LaneStore {
        let Under::Own(worker) = under else { return self.backend.journal(Worker::A) };
        self.backend.journal(worker)
    }

    /// The work that a write names.
    fn work(&self, under: Under) -> OpenWork {
        let own = |worker| self.holdings[&worker].work.clone().unwrap();
        let other = |change: fn(&mut OpenWork)| {
            let OpenWork { lease, work, .. } = own(Worker::A);
            let mut work = OpenWork::new(lease, work);
            change(&mut work);
            work
        };
        match under {
            Under::Own(worker) => own(worker),
            Under::OtherEpoch => other(|work| work.lease.epoch += 1),
            Under::OtherOwner => other(|work| work.lease.owner.push('x')),
            Under::OtherPass => other(|work| {
                work.work = WorkKind::Pass(work.work.pass_id().unwrap() + 1_000);
            }),
        }
    }

    fn lease(&self, under: Under) -> Lease {
        match under {
            Under::Own(worker) => self.holdings[&worker].lease.clone().unwrap(),
            _ => self.work(under).lease,
        }
    }

    fn batch_id(&self, span: Span) -> i64 {
        self.batch_ids.get(&span).copied().unwrap_or(NO_BATCH)
    }

    async fn take(&mut self, worker: Worker) -> String {
        let journal = self.backend.journal(worker);
        let taken = journal.take_and_open(self.entity_id, None, Purpose::Run).await;
        word(taken, |(take, _)| match take {
            Take::Held { .. } => "held".to_owned(),
            Take::Taken(lease, lane) => {
                let is_fenced = lease.fence.of_lane().is_some();
                let work =
                    lane.open.as_ref().map(|(id, _)| OpenWork::new(lease.clone(), WorkKind::Pass(*id)));
                self.holdings.insert(worker, Holding { lease: Some(lease), lane: *lane, work });
                if is_fenced { "taken with a fence".to_owned() } else { "taken".to_owned() }
            }
        })
    }

    async fn open(&mut self, under: Under) -> String {
        let lease = self.lease(under);
        let holder = if let Under::Own(worker) = under { worker } else { Worker::A };
        let opening = NewPass { seen: &self.holdings[&holder].lane, ..self.backend.opening() };
        let opened = self.journal(under).open_pass(&lease, opening).await;
        word(opened, |(pass_id, _)| {
            let work = OpenWork::new(lease, WorkKind::Pass(pass_id));
            self.holdings.entry(holder).or_default().work = Some(work);
            "opened".to_owned()
        })
    }

    /// Submits a write that is awaited later. Returns the batch that it announces, too.
    fn submit(&self, step: Step) -> (Option<Span>, PendingWrite) {
        let (Step::Announce(under, _)
        | Step::Accept(under, ..)
        | Step::AcceptOtherBody(under, _)
        | Step::Lose(under, _)
        | Step::Refuse(under, _)
        | Step::Withdraw(under, _)
        | Step::Close(under, _)) = step
        else {
            panic!("{step:?} is not submitted");
        };
        let (work, journal) = (self.work(under), self.journal(under));
        let context = WorkContext { pass: &work, run_id: self.backend.run_id() };
        let result = AttemptResult::default();
        let pending = match step {
            Step::Announce(_, span) => return (Some(span), journal.announce(context, &batch(span, 0))),
            Step::Accept(_, span, moves) => {
                let moves =
                    Settled { advance: moves.map(advance), resolves: true, error: None, why: "uploaded" };
                journal.settle(context, self.batch_id(span), &batch(span, 0), result, moves)
            }
            Step::AcceptOtherBody(_, span) => {
                let sent = AttemptResult { sent: true, ..result };
                let moves =
                    Settled { advance: Some(advance(span)), resolves: true, error: None, why: "uploaded" };
                journal.settle(context, self.batch_id(span), &batch(span, 1_000), sent, moves)
            }
            Step::Lose(_, span) => {
                journal.answered(context, self.batch_id(span), &batch(span, 0), "unknown", result, "lost")
            }
            Step::Refuse(_, span) => {
                journal.answered(context, self.batch_id(span), &batch(span, 0), "rejected", result, "later")
            }
            Step::Withdraw(_, span) => {
                journal.withdraw(context, self.batch_id(span), &batch(span, 0), "not sent")
            }
            Step::Close(_, last) => journal.close_pass(context, cursor(last), true),
            _ => unreachable!(),
        };
        (None, pending)
    }

    async fn written(&mut self, (announced, pending): (Option<Span>, PendingWrite)) -> String {
        let written = pending.written().await;
        if let (Some(span), Ok(batch_id)) = (announced, &written) {
            self.batch_ids.insert(span, *batch_id);
        }
        done(written)
    }

    async fn set_aside(&self, under: Under, span: Span, rejections_max: usize) -> String {
        let (work, batch, batch_id) = (self.work(under), batch(span, 0), self.batch_id(span));
        let refused = |id: i64| Problem {
            batch_id: Some(batch_id),
            ledger_id: Some(id.to_string()),
            ..Problem::of_lane(Kind::RejectedRow, "refused")
        };
        let refused: Vec<Problem> = (span.0 + 1..=span.1).map(refused).collect();
        let context = WorkContext { pass: &work, run_id: self.backend.run_id() };
        let (result, moves) = (AttemptResult::default(), Some(advance(span)));
        let limited = RefusedRows { problems: &refused, rejections_max };
        let set_aside = self.journal(under).set_aside(context, batch_id, &batch, limited, result, moves);
        word(set_aside.await, |is_done| if is_done { "done".to_owned() } else { "too many".to_owned() })
    }

    async fn split(&mut self, under: Under, span: Span) -> String {
        let (work, whole) = (self.work(under), batch(span, 0));
        let halves = whole.split_in_half().unwrap();
        let middle = span.0 + i64::try_from(halves[0].rows.len()).unwrap();
        let context = WorkContext { pass: &work, run_id: self.backend.run_id() };
        let why = elven_sync::journal::Split { error: "refused", ambiguous: false, withdrawn: false };
        let result = AttemptResult::default();
        let split = self.journal(under).split(context, self.batch_id(span), &whole, &halves, result, why);
        let split = split.await;
        if let Ok([first, second]) = split {
            self.batch_ids.extend([((span.0, middle), first), ((middle, span.1), second)]);
        }
        done(split)
    }

    /// Writes of other kinds under the lease of a pass.
    async fn write(&self, step: Step, under: Under) -> String {
        let (journal, lease) = (self.journal(under), self.lease(under));
        let work = || self.work(under);
        let run_id = self.backend.run_id();
        match step {
            Step::Repeat(_, span) | Step::RepeatLost(_, span) => {
                let context = WorkContext { pass: &work(), run_id };
                let is_lost = matches!(step, Step::RepeatLost(..));
                done(journal.announce_again(context, self.batch_id(span), &batch(span, 0), is_lost).await)
            }
            Step::Empty(_, span, moves) => {
                let context = WorkContext { pass: &work(), run_id };
                done(journal.emptied(context, self.batch_id(span), moves.map(advance)).await)
            }
            Step::CountUnknownRun(_, span) => {
                let context = WorkContext { pass: &work(), run_id };
                done(journal.count_unknown_run(context, self.batch_id(span)).await)
            }
            Step::Recover(_) => {
                let context = WorkContext { pass: &work(), run_id };
                word(journal.recorded(context).await, |batches| recorded(&batches))
            }
            Step::Check(_) => word(journal.check_lease(&lease).await, |lasts| {
                if lasts.is_sure() { "sure".to_owned() } else { "expired".to_owned() }
            }),
            Step::Release(_) => done(journal.release(&lease).await),
            Step::Fail(_) => {
                let problem = Problem::of_lane(Kind::Unavailable, "no answer");
                done(journal.lane_failed(&lease, run_id, &problem, None).await)
            }
            Step::Succeed(_) => done(journal.lane_succeeded(&lease).await),
            _ => unreachable!(),
        }
    }

    async fn play(&mut self, step: Step) -> String {
        match step {
            Step::Take(worker) => self.take(worker).await,
            Step::Open(under) => self.open(under).await,
            Step::Announce(..)
            | Step::Accept(..)
            | Step::AcceptOtherBody(..)
            | Step::Lose(..)
            | Step::Refuse(..)
            | Step::Withdraw(..)
            | Step::Close(..) => {
                let submitted = self.submit(step);
                self.written(submitted).await
            }
            Step::Together(steps) => {
                let submitted: Vec<_> = steps.iter().map(|step| self.submit(*step)).collect();
                let mut words = Vec::new();
                for pending in submitted {
                    words.push(self.written(pending).await);
                }
                words.join(", ")
            }
            Step::SetAside(under, span, max) => self.set_aside(under, span, max).await,
            Step::Split(under, span) => self.split(under, span).await,
            Step::Repeat(under, _)
            | Step::RepeatLost(under, _)
            | Step::Empty(under, ..)
            | Step::CountUnknownRun(under, _)
            | Step::Recover(under)
            | Step::Check(under)
            | Step::Release(under)
            | Step::Fail(under)
            | Step::Succeed(under) => self.write(step, under).await,
            Step::Rejections => {
                let rejections = self.backend.journal(Worker::A).rejections(self.entity_id).await;
                word(rejections, |count| count.to_string())
            }
            Step::NoteLost(worker, span) => {
                let fence = &self.holdings[&worker].lease.as_ref().unwrap().fence;
                fence.note_lost(&batch(span, 0), Instant::now(), std::time::Duration::ZERO);
                "noted".to_owned()
            }
            Step::LeaseExpires => {
                self.backend.let_lease_expire(self.entity_id).await;
                "passed".to_owned()
            }
            Step::SignaturesExpire => {
                self.backend.let_signatures_expire(self.entity_id).await;
                "passed".to_owned()
            }
            Step::AnswerIsLost(span) => {
                self.backend.lose_answer(self.batch_id(span)).await;
                "changed".to_owned()
            }
        }
    }
}

/// Runs all cases, each with an entity of its own. Returns the outcomes of each.
async fn play_all(backend: &Backend) -> Vec<Vec<String>> {
    let mut outcomes = Vec::new();
    for (number, case) in CASES.iter().enumerate() {
        let entity_id = format!("case-{number}");
        backend.add(&entity_id).await;
        let mut player =
            Player { backend, entity_id: &entity_id, holdings: BTreeMap::new(), batch_ids: BTreeMap::new() };
        assert_eq!(player.play(Step::Take(Worker::A)).await, "taken", "{}", case.name);
        assert_eq!(player.play(Step::Open(Under::Own(Worker::A))).await, "opened", "{}", case.name);
        let mut words = Vec::new();
        for (step, _) in case.steps {
            words.push(player.play(*step).await);
        }
        outcomes.push(words);
    }
    outcomes
}

/// Runs all cases against the model, in a runtime whose time is paused.
fn play_model(sabotage: Option<Sabotage>) -> Vec<Vec<String>> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        elven_sync::wall_clock::simulate(DateTime::<Utc>::UNIX_EPOCH);
        play_all(&Backend::Model(ModelBackend::start(sabotage))).await
    })
}

#[sqlx::test(migrations = false)]
async fn fences_of_the_model_are_those_of_the_sql(pool: PgPool) {
    let scene = TestEnv::new(pool).await.with_fences().await;
    let real = play_all(&Backend::Real(Box::new(RealBackend::open(scene).await))).await;
    let model = std::thread::spawn(|| play_model(None)).join().unwrap();
    let mut differences = Vec::new();
    for (case, (real, model)) in CASES.iter().zip(real.iter().zip(&model)) {
        for ((step, expected), (real, model)) in case.steps.iter().zip(real.iter().zip(model)) {
            if real != expected || model != expected {
                differences.push(format!(
                    "{}: {step:?}: expected `{expected}`, the journal says `{real}`, the model `{model}`",
                    case.name
                ));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// A fence that is broken in the model changes the outcome of at least one case.
#[test]
fn table_finds_each_broken_fence() {
    let expected: Vec<Vec<&str>> =
        CASES.iter().map(|case| case.steps.iter().map(|(_, word)| *word).collect()).collect();
    for sabotage in [
        Sabotage::LeaseNotChecked,
        Sabotage::TakeoverTooEarly,
        Sabotage::FenceForgotten,
        Sabotage::UnknownBatchForgotten,
        Sabotage::SendingForgotten,
        Sabotage::LostAnswersIgnored,
    ] {
        let outcomes = std::thread::spawn(move || play_model(Some(sabotage))).join().unwrap();
        assert!(outcomes != expected, "{sabotage:?} is not found");
    }
}
