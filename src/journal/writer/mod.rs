//! Group commit: the lanes of a worker record their batches and the ends of their passes together, many requests in one
//! transaction.
//!
//! A durable commit costs about as much for one batch as for fifty. So lanes submit requests and wait for the reply,
//! and one task writes all requests that were submitted while it wrote the requests before them. The requests of a pass
//! are written in the order in which they were submitted. When the announcement of a batch cannot be written, no later
//! announcement of the pass is written: the journal never has a batch of a pass without the batches before it. When an
//! answer cannot be written, the cursor of its pass does not move any further and the pass is not closed: each batch
//! that the cursor has passed has an answer.

mod answers;
mod batch_changes;
mod closing;
mod lanes;
mod leaves;
mod rejections;
mod write;

pub use lanes::{LockedLane, WorkPosition};
pub use write::{
    Answer, Conclusions, Consequence, Emptying, JournalWrite, PassClosing, PendingWrite, Repetition,
    WriteRequest, Written,
};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use self::answers::{Before, check_answers};
use self::batch_changes::{announce_again, count_unknown_run, empty, recover, set_aside};
use self::closing::close;
use self::lanes::{lock, move_lanes};
use self::leaves::Leaves;
use self::rejections::Rejections;
use super::batch_record::{
    AnsweredBatch, NewBatch, finish, insert_all, mark_ambiguous, mark_repeated, rewrite,
};
use super::counting::{count_in_backfill, count_in_run};
use super::held_rows::hold;
use super::problem::{record as record_problems, resolve};
use super::work::shared;
use super::{Counters, JournalError, WorkKind};
use crate::database::{Database, Transaction, Transient};

/// The most requests that one receive adds to a transaction.
const GROUP_MAX: usize = 256;
/// After a transaction with at least this number of requests, the task waits for more requests before the next one:
/// then the processor is the bottleneck, and a short delay is acceptable.
const GROUP_SIZE_DELAY_MIN: usize = 8;
/// The duration of that wait.
const GATHER_DELAY: Duration = Duration::from_millis(4);
/// The wait before requests are tried again whose lane another transaction has locked.
const LOCKED_RETRY_DELAY: Duration = Duration::from_millis(10);

/// The queue of the group commit, to which lanes submit requests.
#[derive(Clone, Debug)]
pub(super) struct Group(UnboundedSender<WriteRequest>);

impl Group {
    /// Starts the task that writes the requests. It ends when all copies of the queue are dropped.
    pub(super) fn start(database: Database, lease: Duration) -> Self {
        // The channel needs no bound of its own, because each lane has a bounded number of batches in flight.
        let (sender, receiver) = unbounded_channel();
        tokio::spawn(Writer { database, lease }.write_all(receiver));
        Self(sender)
    }

    pub(super) fn submit(&self, request: WriteRequest) {
        // If the task has ended, this drops the request, and the caller that waits for the reply gets an error.
        let _ = self.0.send(request);
    }
}

/// The outcome of the transaction for some requests.
enum GroupWrite {
    /// What was written for each request. `None`: another transaction has locked its lane.
    Written(Vec<Option<Written>>),
    /// One of the requests cannot be written, so none was written.
    Failed(JournalError),
}

struct Writer {
    database: Database,
    lease: Duration,
}

impl Writer {
    async fn write_all(self, mut submitted: UnboundedReceiver<WriteRequest>) {
        let mut requests: Vec<WriteRequest> = Vec::new();
        let mut pause = Duration::ZERO;
        loop {
            tokio::time::sleep(pause).await;
            if requests.is_empty() && submitted.recv_many(&mut requests, GROUP_MAX).await == 0 {
                return;
            }
            // Requests that wait for a locked lane do not count towards the limit.
            let total_max = requests.len() + GROUP_MAX;
            while requests.len() < total_max
                && let Ok(request) = submitted.try_recv()
            {
                requests.push(request);
            }
            let is_large = requests.len() >= GROUP_SIZE_DELAY_MIN;
            requests = self.write_together(requests).await;
            pause = match (requests.is_empty(), is_large) {
                (false, _) => LOCKED_RETRY_DELAY,
                (true, true) => GATHER_DELAY,
                (true, false) => Duration::ZERO,
            };
        }
    }

    /// Writes requests together and replies to them. Returns the requests whose lanes another transaction has locked.
    async fn write_together(&self, requests: Vec<WriteRequest>) -> Vec<WriteRequest> {
        let mut writable = Vec::with_capacity(requests.len());
        for request in requests {
            match request.is_too_late() {
                Some(reason) => request.reply_with(Err(reason)),
                None => writable.push(request),
            }
        }
        if writable.is_empty() {
            return writable;
        }
        match self.database.retry(|| self.write(&writable)).await {
            Ok(GroupWrite::Written(written)) => self.reply_to(writable, written),
            // One request cannot be written, e.g. because its lease is lost. That must not affect the other requests.
            Ok(GroupWrite::Failed(_)) if writable.len() > 1 => self.write_each(writable).await,
            // The outcome of a commit may be unknown. Then the requests must not be written again.
            Ok(GroupWrite::Failed(problem)) | Err(problem) => {
                let problem = Arc::new(problem);
                for request in writable {
                    request.reply_with(Err(shared(&problem)));
                }
                Vec::new()
            }
        }
    }

    /// Writes requests one after the other, each in its own transaction. Returns the requests whose lanes are locked.
    async fn write_each(&self, requests: Vec<WriteRequest>) -> Vec<WriteRequest> {
        let mut locked: Vec<WriteRequest> = Vec::new();
        for request in requests {
            // A request waits behind earlier requests of its lane that wait.
            if locked.iter().any(|before| before.entity_id() == request.entity_id()) {
                locked.push(request);
            } else {
                // No deeper recursion is possible, because this is a group of one request.
                locked.extend(Box::pin(self.write_together(vec![request])).await);
            }
        }
        locked
    }

    /// Replies to the requests that were written, and to those that have waited too long for their lane. Returns the
    /// others, whose lanes are locked.
    fn reply_to(&self, requests: Vec<WriteRequest>, written: Vec<Option<Written>>) -> Vec<WriteRequest> {
        let mut locked = Vec::new();
        for (request, written) in requests.iter().zip(&written) {
            if let Some(written) = written {
                request.supersedes_answers(*written);
            }
        }
        for (mut request, written) in requests.into_iter().zip(written) {
            let Some(written) = written else {
                let locked_since = *request.locked_since.get_or_insert_with(Instant::now);
                if locked_since.elapsed() < self.database.reconnect_timeout() {
                    locked.push(request);
                } else {
                    let entity_id = request.entity_id().to_owned();
                    request.reply_with(Err(JournalError::Locked(entity_id)));
                }
                continue;
            };
            request.reply_with(Ok(written));
        }
        locked
    }

    /// Writes requests in one transaction. Returns what was written for each request, or the error of the request
    /// because of which nothing was written.
    ///
    /// # Errors
    /// The database failed; this is not due to a request.
    async fn write(&self, requests: &[WriteRequest]) -> Result<GroupWrite, JournalError> {
        let mut transaction = self.database.begin().await?;
        let written = self.write_requests(&mut transaction, requests).await;
        match written {
            Ok((written, lanes)) => {
                let is_any_written = written.iter().any(Option::is_some);
                if is_any_written {
                    transaction.commit().await?;
                    for request in requests.iter().filter(|request| request.pass.work != WorkKind::Retry) {
                        if let Some(running) = lanes.get(request.entity_id()).and_then(|lane| lane.chained) {
                            request.pass.running.note(running);
                        }
                    }
                } else {
                    transaction.rollback().await?;
                }
                Ok(GroupWrite::Written(written))
            }
            Err(problem) if problem.is_transient() => Err(problem),
            Err(problem) => {
                // Rolled back explicitly, to release the row locks: the same rows are written again right after this.
                transaction.rollback().await?;
                Ok(GroupWrite::Failed(problem))
            }
        }
    }

    /// Writes requests in a transaction. Every transaction locks rows in the same order: lanes by entity, then batches
    /// and errors, then passes, and last the row of the run.
    async fn write_requests(
        &self,
        transaction: &mut Transaction,
        requests: &[WriteRequest],
    ) -> Result<(Vec<Option<Written>>, BTreeMap<String, LockedLane>), JournalError> {
        let mut lanes = lock(transaction, requests, self.lease).await?;
        let before = check_answers(transaction, requests).await?;
        let mut written: Vec<Option<Written>> = vec![None; requests.len()];
        let mut rejections = Rejections::default();
        let mut allowed: Vec<(usize, &WriteRequest)> = Vec::with_capacity(requests.len());
        for (index, request) in requests.iter().enumerate() {
            let Some(lane) = lanes.get_mut(request.entity_id()) else { continue };
            lane.check_lease(request)?;
            if !rejections.allow(transaction, request).await? {
                written[index] = Some(Written::TooManyRejections);
                continue;
            }
            lane.check(request)?;
            allowed.push((index, request));
        }
        let mut batch_ids = insert_new(transaction, &allowed).await?.into_iter();
        for (_, request) in &allowed {
            match &request.writing {
                JournalWrite::Repetition(repetition) => {
                    announce_again(transaction, request, repetition).await?;
                }
                JournalWrite::Emptying(emptying) => empty(transaction, request, emptying).await?,
                JournalWrite::Recovery => recover(transaction, request).await?,
                JournalWrite::UnknownRun(batch_id) => {
                    count_unknown_run(transaction, request, *batch_id).await?;
                }
                JournalWrite::Conclusions(Conclusions { resolved, problems }) => {
                    resolve(transaction, request.entity_id(), None, resolved).await?;
                    record_problems(transaction, request.run_id, request.entity_id(), problems).await?;
                }
                JournalWrite::Announcement(_)
                | JournalWrite::Answer(_)
                | JournalWrite::Passage(_)
                | JournalWrite::PassClosing(_) => {}
            }
        }
        let emptied: Vec<i64> = allowed.iter().filter_map(|(_, request)| request.emptied()).collect();
        let answers: Vec<(&WriteRequest, &Answer)> =
            allowed.iter().filter_map(|(_, request)| Some((*request, request.answer()?))).collect();
        let (parts, leaves) = record(transaction, &answers, &before, &emptied).await?;
        let mut parts = parts.into_iter();
        leaves.chain(transaction, &mut lanes, &before).await?;
        move_lanes(transaction, &lanes, self.lease).await?;
        let closings: Vec<(&WriteRequest, &PassClosing)> =
            allowed.iter().filter_map(|(_, request)| Some((*request, request.closing()?))).collect();
        close(transaction, &closings).await?;
        count(transaction, &answers).await?;
        for (index, request) in allowed {
            written[index] = match &request.writing {
                JournalWrite::Announcement(_) => batch_ids.next().map(Written::Batch),
                JournalWrite::Repetition(repetition) => Some(Written::Batch(repetition.batch_id)),
                JournalWrite::Answer(answer) => match answer.consequence {
                    Consequence::Parts { .. } => parts.next().map(Written::Parts),
                    Consequence::None | Consequence::SetAside { .. } => {
                        Some(Written::Batch(answer.answered.batch_id))
                    }
                },
                JournalWrite::Emptying(emptying) => Some(Written::Batch(emptying.batch_id)),
                JournalWrite::UnknownRun(batch_id) => Some(Written::Batch(*batch_id)),
                JournalWrite::PassClosing(_)
                | JournalWrite::Passage(_)
                | JournalWrite::Recovery
                | JournalWrite::Conclusions(_) => Some(Written::Work),
            };
        }
        Ok((written, lanes))
    }
}

/// Records the batches that requests announce. Returns their ids.
async fn insert_new(
    transaction: &mut Transaction,
    requests: &[(usize, &WriteRequest)],
) -> Result<Vec<i64>, sqlx::Error> {
    let announced = requests.iter().filter_map(|(_, request)| {
        let (context, contents) = (request.context(), request.contents()?);
        Some(NewBatch { context, parent_id: None, contents, attempts: 1 })
    });
    let new: Vec<NewBatch<'_>> = announced.collect();
    let batch_ids = insert_all(transaction, &new).await?;
    let of_retries = new.iter().zip(&batch_ids).filter(|(new, _)| new.context.pass.work == WorkKind::Retry);
    let of_retries: Vec<i64> = of_retries.map(|(_, batch_id)| *batch_id).collect();
    if !of_retries.is_empty() {
        mark_repeated(transaction, &of_retries).await?;
    }
    Ok(batch_ids)
}

/// Adds the counters of answers to the rows of their runs, and then to those of their backfills.
async fn count(
    transaction: &mut Transaction,
    answers: &[(&WriteRequest, &Answer)],
) -> Result<(), JournalError> {
    let mut in_runs: BTreeMap<i64, Counters> = BTreeMap::new();
    let mut in_backfills: BTreeMap<i64, Counters> = BTreeMap::new();
    for (request, answer) in answers {
        *in_runs.entry(request.run_id).or_default() += &answer.counted;
        if let Some(backfill_id) = request.pass.work.backfill_id() {
            *in_backfills.entry(backfill_id).or_default() += &answer.counted;
        }
    }
    for (run_id, counted) in in_runs {
        count_in_run(transaction, run_id, &counted).await?;
    }
    for (backfill_id, counted) in in_backfills {
        count_in_backfill(transaction, backfill_id, &counted).await?;
    }
    Ok(())
}

/// Records answers, and what they mean for rows that are set aside. Returns the ids of the parts of split batches, and the
/// leaves of the batches that are done, also of those of which nothing was left to send.
async fn record(
    transaction: &mut Transaction,
    answers: &[(&WriteRequest, &Answer)],
    before: &BTreeMap<i64, Before>,
    emptied: &[i64],
) -> Result<(Vec<[i64; 2]>, Leaves), JournalError> {
    let mut leaves = Leaves::of(answers, before);
    if answers.is_empty() {
        leaves.seal(transaction, emptied, before).await?;
        return Ok((Vec::new(), leaves));
    }
    for (_, answer) in answers {
        let batch_id = answer.answered.batch_id;
        if answer.is_rewritten {
            // No record of the batch was left to send. What an earlier attempt sent may have arrived.
            sqlx::query!(
                "update elven_sync.sync_batches set ambiguous = ambiguous or status = 'unknown' where batch_id = $1",
                batch_id
            )
            .execute(&mut *transaction)
            .await?;
            rewrite(transaction, batch_id, &answer.answered.contents).await?;
        }
        // This precedes the recording of the answer, because a batch with records that was ever unknown stays unknown.
        if let Consequence::SetAside { rejected_ids, rejected_kinds, held, .. } = &answer.consequence {
            set_aside(transaction, batch_id, rejected_ids, rejected_kinds.as_deref(), *held).await?;
        }
    }
    let answered: Vec<&AnsweredBatch> = answers.iter().map(|(_, answer)| &answer.answered).collect();
    if finish(transaction, &answered, leaves.by_batch()).await? != answered.len() as u64 {
        return Err(JournalError::LeaseLost);
    }
    let parts = insert_parts(transaction, answers).await?;
    for (request, answer) in answers {
        record_problems(transaction, request.run_id, request.entity_id(), &answer.problems).await?;
        let batch_id = answer.answered.batch_id;
        if !answer.held.is_empty() {
            hold(transaction, request.run_id, request.entity_id(), batch_id, &answer.held).await?;
        }
        if !answer.resolves.is_empty() {
            resolve(transaction, request.entity_id(), Some(batch_id), &answer.resolves).await?;
        }
    }
    leaves.seal(transaction, emptied, before).await?;
    Ok((parts, leaves))
}

/// Records the parts of batches that are split. Returns their ids, two for each batch.
async fn insert_parts(
    transaction: &mut Transaction,
    answers: &[(&WriteRequest, &Answer)],
) -> Result<Vec<[i64; 2]>, JournalError> {
    let mut new = Vec::new();
    let mut are_ambiguous = Vec::new();
    for (request, answer) in answers {
        if let Consequence::Parts { parts, ambiguous } = &answer.consequence {
            let (context, parent_id) = (request.context(), Some(answer.answered.batch_id));
            new.extend(parts.iter().map(|contents| NewBatch { context, parent_id, contents, attempts: 0 }));
            are_ambiguous.push(*ambiguous);
        }
    }
    let batch_ids = insert_all(transaction, &new).await?;
    let pairs: Vec<[i64; 2]> = batch_ids.as_chunks().0.to_vec();
    let ambiguous = pairs.iter().zip(are_ambiguous).filter(|(_, ambiguous)| *ambiguous);
    let ambiguous: Vec<i64> = ambiguous.flat_map(|(pair, _)| *pair).collect();
    if !ambiguous.is_empty() {
        mark_ambiguous(transaction, &ambiguous).await?;
    }
    Ok(pairs)
}
