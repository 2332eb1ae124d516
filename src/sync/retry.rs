//! `errors retry`: sends rows again that were set aside.

use std::collections::{BTreeMap, HashSet, VecDeque};

use tokio::time::Instant;
use tracing::Instrument;

use super::lane::lease_wait::LEASE_POLL;
use super::lane_worker::Target;
use super::log::{self, batch_span, lane_span, run_span};
use super::lone_batch::LastAnswer;
use super::messages::{self, OutcomeMessage};
use super::worker::Unusable;
use super::{RunError, Worker};
use crate::batch::Batch;
use crate::elven::ResponseClass;
use crate::fault_point::{Step, after, around, before};
use crate::journal::{
    Entity, JournalError, Kind, Lane, Lease, Problem, RecordedError, RetriedError, RetryAnswer, RunStatus,
    Wanted, refuse_standby,
};
use crate::ledger::Row;
use crate::watermark::LedgerId;

/// Why a row was not sent: a signal came first.
const STOPPED: &str = "stopped before its turn";

/// The same reason for all of these errors to stay open.
fn not_now<'e>(
    errors: impl IntoIterator<Item = &'e RecordedError>,
    why: &str,
) -> impl Iterator<Item = Retried> {
    errors.into_iter().map(|error| Retried { error_id: error.error_id, outcome: Err(why.to_owned()) })
}

/// A newer row of the same account, currency and second.
#[derive(Debug)]
enum Newer {
    /// The newer row was uploaded.
    Uploaded(LedgerId),
    /// The newer row is pending.
    Pending(LedgerId),
}

/// The result of a retry of one error.
#[derive(Debug)]
pub struct Retried {
    /// The id of the error.
    pub error_id: i64,
    /// What resolved the error, or why it is still open.
    pub outcome: Result<String, String>,
}

impl Worker {
    /// Reads the rows of these errors again, sends each in a request of its own, and resolves the error or counts it
    /// once more. A row with a newer rival is not sent, because the later upload would count.
    pub async fn retry(&self, errors: Vec<RecordedError>) -> Result<Vec<Retried>, RunError> {
        let entities = Entity::list(&self.database).await?;
        let mut by_entity: BTreeMap<String, Vec<RecordedError>> = BTreeMap::new();
        for error in errors {
            by_entity.entry(error.entity_id.clone()).or_default().push(error);
        }
        let concerned: Vec<Entity> =
            entities.into_iter().filter(|entity| by_entity.contains_key(&entity.entity_id)).collect();
        let (targets, unusable) = self.targets(&concerned)?;
        refuse_standby(&self.database).await?;
        let run_id =
            around(Step::BeginRun, self.journal.begin_run("retry", &self.settings.zones.version())).await?;
        let retry = self.retry_and_finish(run_id, &targets, &unusable, by_entity);
        retry.instrument(run_span(run_id)).await
    }

    /// Does the work of a retry that was begun, and records how it ended.
    async fn retry_and_finish(
        &self,
        run_id: i64,
        targets: &[Target],
        unusable: &[Unusable],
        mut by_entity: BTreeMap<String, Vec<RecordedError>>,
    ) -> Result<Vec<Retried>, RunError> {
        let since = Instant::now();
        log::run_started("retry", targets.len() + unusable.len());
        let mut retried = Vec::new();
        let work = async {
            self.compare_rules(run_id, targets).await;
            for target in targets {
                let errors = by_entity.remove(&target.entity_id).unwrap_or_default();
                let lane = self.retry_entity(run_id, target, errors, &mut retried);
                lane.instrument(lane_span(&target.entity_id)).await?;
            }
            Ok(())
        };
        let failed = self.alive(run_id, work).await.err();
        // The errors that are left belong to entities that are not registered or cannot be worked on.
        for error in by_entity.into_values().flatten() {
            let why = unusable.iter().find(|(entity_id, _)| *entity_id == error.entity_id);
            let why = why.map_or("its entity is not registered", |(_, problem)| problem.message.as_str());
            retried.push(Retried { error_id: error.error_id, outcome: Err(why.to_owned()) });
        }
        let open = retried.iter().any(|retried| retried.outcome.is_err());
        let status = match (&failed, open) {
            (None, _) if *self.stop.borrow() => RunStatus::Interrupted,
            (Some(_), _) => RunStatus::Failed,
            (None, true) => RunStatus::Incomplete,
            (None, false) => RunStatus::Succeeded,
        };
        let message = failed.as_ref().map(|problem| crate::text::chain(problem));
        let finished = self.journal.finish_run(run_id, status, message.as_deref());
        let counters = around(Step::FinishRun, finished).await?;
        log::run_finished(status, &counters, since);
        failed.map_or(Ok(retried), Err)
    }

    /// Retries the errors of one entity, in slices: between two slices, a run or a backfill gets the lease if it waits.
    async fn retry_entity(
        &self,
        run_id: i64,
        target: &Target,
        errors: Vec<RecordedError>,
        retried: &mut Vec<Retried>,
    ) -> Result<(), RunError> {
        let mut left = self.oldest_first(target, errors, retried).await;
        let mut lease_before: Option<Lease> = None;
        while !left.is_empty() {
            let is_first = lease_before.is_none();
            before(Step::TakeLease);
            let Some((lease, lane)) = self.take_retry_slice(&target.entity_id, is_first).await? else {
                let why = if is_first {
                    "another worker works on the entity, or died while it did; hint: elven-sync errors retry, in a minute"
                } else {
                    STOPPED
                };
                retried.extend(not_now(&left, why));
                return Ok(());
            };
            after(Step::TakeLease);
            let lease = lease.after(lease_before.take());
            lease_before = Some(lease.clone());
            tracing::info!(lease_epoch = lease.epoch, "lease taken");
            if !is_first {
                self.drop_resolved(&mut left, retried).await?;
            }
            if let Some(why) = self.refuse_retry(run_id, target, (&lease, &lane)).await? {
                retried.extend(not_now(&left, &why));
                return Ok(());
            }
            let done = self.retry_slice(run_id, target, (&lease, &lane), &mut left, retried).await;
            // A request that was not awaited may still arrive: then the lease is left to expire, as in a run.
            if !*self.cut_off.borrow() {
                around(Step::ReleaseLease, self.journal.release(&lease)).await?;
            }
            done?;
        }
        Ok(())
    }

    /// Takes the lease for a slice. Before the first slice, an entity that a run holds is left to it. `None`: it is,
    /// or a signal came.
    async fn take_retry_slice(
        &self,
        entity_id: &str,
        is_first: bool,
    ) -> Result<Option<(Lease, Box<Lane>)>, RunError> {
        loop {
            match self.take_unless_run(entity_id, !is_first).await? {
                None if !is_first && !*self.stop.borrow() => tokio::time::sleep(LEASE_POLL).await,
                taken => return Ok(taken),
            }
        }
    }

    /// Says why the rows of an entity may not be retried, if there is a reason. Then the lease is released.
    async fn refuse_retry(
        &self,
        run_id: i64,
        target: &Target,
        (lease, lane): (&Lease, &Lane),
    ) -> Result<Option<String>, RunError> {
        let checked = match self.ledger.probe_entity(&lane.progress(&target.entity_id)).await {
            Ok(probed) => self
                .check_journal(&target.entity_id, lane)
                .and_then(|()| self.check_watermark(&target.entity_id, lane, &probed)),
            Err(problem) if problem.is_about_rows() => {
                around(Step::ReleaseLease, self.journal.release(lease)).await?;
                return Ok(Some(problem.in_words_of_entity()));
            }
            Err(problem) => return Err(problem.into()),
        };
        if let Err(mismatch) = checked {
            let why = mismatch.to_string();
            let problem = mismatch.into();
            let failed = self.journal.lane_failed(lease, run_id, &problem, None);
            around(Step::Fail, around(Step::ReleaseLease, failed)).await?;
            return Ok(Some(why));
        }
        if lane.mapping.is_none() {
            self.journal.fill_mapping(lease, &self.mapping).await?;
        }
        if let Some(pause) = lane.not_before {
            target.session.pause(pause);
        }
        Ok(None)
    }

    /// Sorts errors by their rows, the oldest row first, so that of two rows of one key the newer one is sent later.
    async fn oldest_first(
        &self,
        target: &Target,
        errors: Vec<RecordedError>,
        retried: &mut Vec<Retried>,
    ) -> VecDeque<RecordedError> {
        let mut aged = Vec::with_capacity(errors.len());
        for error in errors {
            let ledger_id = error.ledger_id.as_deref().unwrap_or_default();
            match self.ledger.rows_with_id(&target.entity_id, ledger_id).await {
                Ok(rows) => {
                    let age = rows.iter().map(|row| (row.captured_at_us, row.id.clone())).max();
                    aged.push((age, error));
                }
                // For example an id that does not fit the type of the ledger's key, or a row that cannot be read.
                Err(problem) => {
                    let outcome = Err(problem.in_words_of_entity());
                    retried.push(Retried { error_id: error.error_id, outcome });
                }
            }
        }
        aged.sort_by(|(one, _), (other, _)| one.cmp(other));
        aged.into_iter().map(|(_, error)| error).collect()
    }

    /// Leaves out the errors that another worker resolved between two slices.
    async fn drop_resolved(
        &self,
        left: &mut VecDeque<RecordedError>,
        retried: &mut Vec<Retried>,
    ) -> Result<(), RunError> {
        let ids = left.iter().map(|error| error.error_id).collect();
        let open = RecordedError::list(&self.database, &Wanted { ids, ..Wanted::default() }).await?;
        let open: HashSet<i64> = open.into_iter().map(|error| error.error_id).collect();
        left.retain(|error| {
            let is_open = open.contains(&error.error_id);
            if !is_open {
                let outcome = Ok("resolved by another worker meanwhile".to_owned());
                retried.push(Retried { error_id: error.error_id, outcome });
            }
            is_open
        });
        Ok(())
    }

    /// Sends rows, each as it is in the ledger now, until the slice is over. The errors that are left stay in `left`.
    async fn retry_slice(
        &self,
        run_id: i64,
        target: &Target,
        (lease, lane): (&Lease, &Lane),
        left: &mut VecDeque<RecordedError>,
        retried: &mut Vec<Retried>,
    ) -> Result<(), RunError> {
        let since = Instant::now();
        while since.elapsed() < self.slice_max()
            && let Some(error) = left.pop_front()
        {
            let error_id = error.error_id;
            if *self.stop.borrow() {
                left.push_front(error);
                retried.extend(not_now(&*left, STOPPED));
                left.clear();
                return Ok(());
            }
            let ledger_id = error.ledger_id.as_deref().unwrap_or_default();
            let outcome = match self.ledger.rows_with_id(&target.entity_id, ledger_id).await {
                Ok(rows) => self.retry_row(run_id, target, (lease, lane), &error, rows).await?,
                Err(problem) => Outcome::NotNow(problem.in_words_of_entity()),
            };
            let outcome = match outcome {
                Outcome::Resolved(resolution) => {
                    let tried = RetriedError { error_id, outcome: Ok(&resolution) };
                    around(Step::Resolve, self.journal.retried(lease, run_id, tried)).await?;
                    Ok(resolution)
                }
                Outcome::Open(problem) => {
                    let tried = RetriedError { error_id, outcome: Err(&problem) };
                    around(Step::Resolve, self.journal.retried(lease, run_id, tried)).await?;
                    Err(problem.message)
                }
                Outcome::RecordedBatch(outcome) => outcome,
                Outcome::NotNow(why) => Err(why),
            };
            retried.push(Retried { error_id, outcome });
        }
        Ok(())
    }

    /// Decides about one row that was set aside, and sends it if it may be sent.
    async fn retry_row(
        &self,
        run_id: i64,
        target: &Target,
        (lease, lane): (&Lease, &Lane),
        error: &RecordedError,
        rows: Vec<Row>,
    ) -> Result<Outcome, RunError> {
        let session = &target.session;
        if rows.is_empty() {
            return Ok(Outcome::Resolved("the row is not in the ledger any more".to_owned()));
        }
        let batch = Batch::build(None, rows, &target.zone);
        if let Some(invalid) = batch.invalid.first() {
            return Ok(Outcome::Open(crate::journal::invalid(None, invalid)));
        }
        let newer = match self.superseded_by(&target.entity_id, lane, &batch).await {
            // It is not known whether the row is the newest of its key.
            Err(RunError::Ledger(problem)) if problem.is_about_rows() => {
                return Ok(Outcome::NotNow(problem.in_words_of_entity()));
            }
            newer => newer?,
        };
        match newer {
            Some(Newer::Uploaded(newer)) => {
                let resolution =
                    format!("superseded by row {newer} of the same account, currency and second");
                return Ok(Outcome::Resolved(resolution));
            }
            Some(Newer::Pending(newer)) => return Ok(Outcome::NotNow(messages::superseded_later(&newer))),
            None => {}
        }
        if let Some(left) = lease.fence.of_new(&batch) {
            return Ok(Outcome::NotNow(messages::fenced_retry(left)));
        }
        let turn = match self.unless_stopped(session.turn(self.settings.retry.max)).await {
            Some(Ok(turn)) => turn,
            Some(Err(pause)) => return Ok(Outcome::NotNow(messages::come_later(pause))),
            None => return Ok(Outcome::NotNow(STOPPED.to_owned())),
        };
        let announced = self.journal.announce_alone(lease, run_id, &batch);
        let batch_id = around(Step::Announce, announced).await?;
        let asked = self.ask(session, lease, &batch, turn).instrument(batch_span(batch_id));
        let answer = self.unless_imported(asked.await?, batch_id, error.batch_id).await?;
        let LastAnswer { class: verdict, result, attempts, ambiguous } = answer;
        let words = messages::of(&verdict, result.http_status, &batch, &session.credential.name);
        let accepted = verdict == ResponseClass::Accepted;
        let last = RetryAnswer {
            status: if accepted { "accepted" } else { words.status },
            error: (!accepted).then_some(words.message.as_str()),
            attempts,
            ambiguous,
            stays_set_aside: words.kind == Kind::RejectedBatch && !accepted,
        };
        let of_row = words.of_row(batch_id, result.http_status, &batch, 0);
        let still_open = still_open(&words, of_row, &error.kind);
        let outcome = if accepted { Ok("uploaded by `errors retry`") } else { Err(&still_open) };
        let tried = RetriedError { error_id: error.error_id, outcome };
        let answered =
            self.journal.answered_alone(lease, run_id, (batch_id, &batch), last, result, Some(tried));
        around(Step::Resolve, around(Step::Settle, answered)).await?;
        if let ResponseClass::Throttled(Some(pause)) = verdict {
            session.pause(pause);
            self.journal.note_pause(lease, pause).await?;
        }
        Ok(Outcome::RecordedBatch(outcome.map(str::to_owned).map_err(|problem| problem.message.clone())))
    }

    /// Returns a newer row of a key of the batch. Rows that are set aside, were resolved by hand, or were skipped by
    /// `--from-now` do not count.
    ///
    /// A pending row may still be refused or deleted. So it resolves the error of the older row only after it was
    /// uploaded; otherwise neither row might be uploaded, and no error would be open.
    async fn superseded_by(
        &self,
        entity_id: &str,
        lane: &Lane,
        batch: &Batch,
    ) -> Result<Option<Newer>, RunError> {
        let mut newer = Vec::new();
        for row in &batch.rows {
            let rivals = self.ledger.rivals(entity_id, row).await?;
            newer.extend(rivals.into_iter().filter(|rival| batch.is_superseded_by(rival)));
        }
        let newer = self.not_set_aside(entity_id, newer).await?;
        let newer = self.not_skipped(entity_id, newer).await?;
        let (uploaded, pending): (Vec<Row>, Vec<Row>) =
            newer.into_iter().partition(|rival| lane.is_past(rival.xid));
        let uploaded = uploaded.into_iter().next().map(|rival| Newer::Uploaded(rival.id));
        Ok(uploaded.or_else(|| pending.into_iter().next().map(|rival| Newer::Pending(rival.id))))
    }

    /// Keeps the rows that `--from-now` did not skip.
    async fn not_skipped(&self, entity_id: &str, mut rows: Vec<Row>) -> Result<Vec<Row>, JournalError> {
        if !rows.is_empty() {
            let skipped = self.journal.skipped(entity_id).await?;
            rows.retain(|row| !skipped.has(row));
        }
        Ok(rows)
    }

    /// Keeps the rows whose present version was or will be uploaded.
    pub(super) async fn not_set_aside(
        &self,
        entity_id: &str,
        mut rows: Vec<Row>,
    ) -> Result<Vec<Row>, JournalError> {
        let ids: Vec<String> = rows.iter().map(|row| row.id.to_string()).collect();
        let set_aside = self.journal.set_aside_until(entity_id, &ids).await?;
        rows.retain(|row| {
            let id = row.id.to_string();
            !set_aside.iter().any(|(set_aside, until)| *set_aside == id && row.xid <= *until)
        });
        Ok(rows)
    }
}

/// The outcome of a retry of one row.
enum Outcome {
    /// Its error is resolved; the text says why.
    Resolved(String),
    /// The row still has this problem.
    Open(Problem),
    /// The row was sent, and the result is recorded already.
    RecordedBatch(Result<String, String>),
    /// The row was not sent; the text says why.
    NotNow(String),
}

/// The problem that a row still has. If the API did not answer to the content of the row, the kind of the error stays,
/// as nothing new is known of the row.
fn still_open(words: &OutcomeMessage, of_row: Problem, kind: &str) -> Problem {
    if words.kind == Kind::RejectedBatch {
        return of_row;
    }
    let kind = if kind == Kind::InvalidRow.as_ref() { Kind::InvalidRow } else { Kind::RejectedRow };
    Problem { kind, message: words.message.clone(), ..of_row }
}
