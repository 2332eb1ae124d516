//! Group commit: what the lanes of a worker record of their batches and of the end of their passes, many at a time in one
//! transaction.
//!
//! A durable commit costs about as much for one batch as for fifty. So lanes hand in what they have to record, and
//! wait for it; one task writes all that was handed in while it wrote what came before. What is handed in for a pass is
//! written in that order. When a batch cannot be announced none behind it is: the journal never has a batch of a
//! pass without those before it. When an answer cannot be written, the cursor of its pass moves no further and the pass
//! is not closed: each batch that the cursor has passed has an answer.

mod batch_changes;
mod closing;
mod lanes;
mod rejections;
mod write;

pub use write::PendingWrite;
pub(super) use write::{Answer, Consequence, Emptying, JournalWrite, PassClosing, Repetition, Written};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use self::batch_changes::{announce_again, count_unknown_run, empty, recover, set_aside};
use self::closing::close;
use self::lanes::{lock, move_lanes};
use self::rejections::Rejections;
use self::write::WriteRequest;
use super::batch_record::{AnsweredBatch, NewBatch, finish, insert_all, mark_ambiguous, rewrite};
use super::counting::{count_in_backfill, count_in_run};
use super::problem::{record as record_problems, resolve_newer};
use super::work::shared;
use super::{Counters, JournalError, WorkContext};
use crate::database::{Database, Transaction, Transient};

/// The most that is written in one transaction.
const GROUP_MAX: usize = 256;
/// When so many were written together, more is waited for: then the processor is what is short, and not time.
const GROUP_SIZE_DELAY_MIN: usize = 8;
/// So long.
const GATHER_DELAY: Duration = Duration::from_millis(4);
/// How long a lane is left alone whose row somebody else has locked.
const LOCKED_RETRY_DELAY: Duration = Duration::from_millis(10);

/// Where to hand in.
#[derive(Clone, Debug)]
pub(super) struct Group(UnboundedSender<WriteRequest>);

impl Group {
    /// Starts the task that writes. It ends when nobody can hand in anything any more.
    pub(super) fn start(database: Database, lease: Duration) -> Self {
        // Without a bound of its own: each lane has a bounded number of batches under way.
        let (sender, receiver) = unbounded_channel();
        tokio::spawn(Writer { database, lease }.write_all_of(receiver));
        Self(sender)
    }

    pub(super) fn submit(&self, doing: WorkContext<'_>, writing: JournalWrite) -> PendingWrite {
        let (reply, handed) = oneshot::channel();
        let WorkContext { pass, run_id } = doing;
        // Should the task be gone, then so is `reply`, and whoever waits hears of it.
        let _ = self.0.send(WriteRequest { pass: pass.clone(), run_id, writing, locked_since: None, reply });
        PendingWrite(handed)
    }
}

/// What became of the requests of one transaction.
enum GroupWrite {
    /// What was written for each request; `None` when somebody else has its lane locked.
    Written(Vec<Option<Written>>),
    /// One of the requests cannot be written, so none was.
    Refused(JournalError),
}

struct Writer {
    database: Database,
    lease: Duration,
}

impl Writer {
    async fn write_all_of(self, mut handed_in: UnboundedReceiver<WriteRequest>) {
        let mut entries: Vec<WriteRequest> = Vec::new();
        let mut pause = Duration::ZERO;
        loop {
            tokio::time::sleep(pause).await;
            if entries.is_empty() && handed_in.recv_many(&mut entries, GROUP_MAX).await == 0 {
                return;
            }
            // Beside those that wait for their lanes, however many they are.
            let together = entries.len() + GROUP_MAX;
            while entries.len() < together
                && let Ok(entry) = handed_in.try_recv()
            {
                entries.push(entry);
            }
            let many = entries.len() >= GROUP_SIZE_DELAY_MIN;
            entries = self.write_together(entries).await;
            pause = match (entries.is_empty(), many) {
                (false, _) => LOCKED_RETRY_DELAY,
                (true, true) => GATHER_DELAY,
                (true, false) => Duration::ZERO,
            };
        }
    }

    /// Writes entries, and says so. Returns those whose lanes somebody else has locked.
    async fn write_together(&self, entries: Vec<WriteRequest>) -> Vec<WriteRequest> {
        let mut wanted = Vec::with_capacity(entries.len());
        for entry in entries {
            match entry.is_too_late() {
                Some(reason) => entry.reply_with(Err(reason)),
                None => wanted.push(entry),
            }
        }
        if wanted.is_empty() {
            return wanted;
        }
        match self.database.retry(|| self.write(&wanted)).await {
            Ok(GroupWrite::Written(written)) => self.reply_to(wanted, written),
            // One of them is the reason, or the lease of one is lost: the others are not to suffer from it.
            Ok(GroupWrite::Refused(_)) if wanted.len() > 1 => self.write_each(wanted).await,
            // Of a commit it may not be known whether it was done: then nothing is to be done again.
            Ok(GroupWrite::Refused(problem)) | Err(problem) => {
                let problem = Arc::new(problem);
                for entry in wanted {
                    entry.reply_with(Err(shared(&problem)));
                }
                Vec::new()
            }
        }
    }

    /// Writes entries one after the other, each in its own transaction.
    async fn write_each(&self, entries: Vec<WriteRequest>) -> Vec<WriteRequest> {
        let mut locked: Vec<WriteRequest> = Vec::new();
        for entry in entries {
            // What waits for a lane waits behind what was handed in before.
            if locked.iter().any(|before| before.entity_id() == entry.entity_id()) {
                locked.push(entry);
            } else {
                // Which goes no deeper: this is a group of one.
                locked.extend(Box::pin(self.write_together(vec![entry])).await);
            }
        }
        locked
    }

    /// Says of each entry that it is written. Returns those that are not, but for those that have waited too long.
    fn reply_to(&self, entries: Vec<WriteRequest>, written: Vec<Option<Written>>) -> Vec<WriteRequest> {
        let mut locked = Vec::new();
        for (mut entry, written) in entries.into_iter().zip(written) {
            let Some(written) = written else {
                let waits_since = *entry.locked_since.get_or_insert_with(Instant::now);
                if waits_since.elapsed() < self.database.reconnect_timeout() {
                    locked.push(entry);
                } else {
                    let problem = format!(
                        "the row of entity {} in elven_sync.sync_state is locked by another transaction",
                        entry.entity_id()
                    );
                    let problem = std::io::Error::new(std::io::ErrorKind::TimedOut, problem);
                    entry.reply_with(Err(sqlx::Error::Io(problem).into()));
                }
                continue;
            };
            entry.reply_with(Ok(written));
        }
        locked
    }

    /// Writes requests in one transaction. Returns what was written for each, or `None` when its lane is locked by somebody
    /// else; or what is wrong with one of them, when for that nothing is written.
    async fn write(&self, requests: &[WriteRequest]) -> Result<GroupWrite, JournalError> {
        let mut transaction = self.database.begin().await?;
        let filled = self.fill(&mut transaction, requests).await;
        match filled {
            Ok(written) => {
                let is_any = written.iter().any(Option::is_some);
                if is_any {
                    transaction.commit().await?;
                } else {
                    transaction.rollback().await?;
                }
                Ok(GroupWrite::Written(written))
            }
            Err(problem) if problem.is_transient() => Err(problem),
            Err(problem) => {
                // Undone at once, because the same rows are written again at once.
                transaction.rollback().await?;
                Ok(GroupWrite::Refused(problem))
            }
        }
    }

    /// Rows are locked in one order everywhere: lanes by entity, then batches and errors, passes, then the run's.
    async fn fill(
        &self,
        transaction: &mut Transaction,
        requests: &[WriteRequest],
    ) -> Result<Vec<Option<Written>>, JournalError> {
        let mut lanes = lock(transaction, requests, self.lease).await?;
        let mut written: Vec<Option<Written>> = vec![None; requests.len()];
        let mut rejections = Rejections::default();
        let mut ours: Vec<(usize, &WriteRequest)> = Vec::with_capacity(requests.len());
        for (place, request) in requests.iter().enumerate() {
            let Some(lane) = lanes.get_mut(request.entity_id()) else { continue };
            lane.check_lease(request)?;
            if !rejections.allow(transaction, request).await? {
                written[place] = Some(Written::TooManyRejections);
                continue;
            }
            lane.check(request)?;
            ours.push((place, request));
        }
        let new: Vec<NewBatch<'_>> = ours
            .iter()
            .filter_map(|(_, request)| {
                Some(NewBatch {
                    place: request.doing().place(None),
                    contents: request.contents()?,
                    attempts: 1,
                })
            })
            .collect();
        let mut numbers = insert_all(transaction, &new).await?.into_iter();
        for (_, request) in &ours {
            match &request.writing {
                JournalWrite::Repetition(repetition) => {
                    announce_again(transaction, request, repetition).await?;
                }
                JournalWrite::Emptying(emptying) => empty(transaction, request, emptying).await?,
                JournalWrite::Recovery => recover(transaction, request).await?,
                JournalWrite::UnknownRun(batch_id) => {
                    count_unknown_run(transaction, request, *batch_id).await?;
                }
                JournalWrite::Announcement(_) | JournalWrite::Answer(_) | JournalWrite::PassClosing(_) => {}
            }
        }
        let answers: Vec<(&WriteRequest, &Answer)> =
            ours.iter().filter_map(|(_, request)| Some((*request, request.answer()?))).collect();
        let mut parts = record(transaction, &answers).await?.into_iter();
        move_lanes(transaction, &lanes, self.lease).await?;
        let closings: Vec<(&WriteRequest, &PassClosing)> =
            ours.iter().filter_map(|(_, request)| Some((*request, request.closing()?))).collect();
        close(transaction, &closings).await?;
        count(transaction, &answers).await?;
        for (place, request) in ours {
            written[place] = match &request.writing {
                JournalWrite::Announcement(_) => numbers.next().map(Written::Batch),
                JournalWrite::Repetition(repetition) => Some(Written::Batch(repetition.batch_id)),
                JournalWrite::Answer(answer) => match answer.consequence {
                    Consequence::Parts { .. } => parts.next().map(Written::Parts),
                    Consequence::None | Consequence::SetAside { .. } => {
                        Some(Written::Batch(answer.answered.batch_id))
                    }
                },
                JournalWrite::Emptying(emptying) => Some(Written::Batch(emptying.batch_id)),
                JournalWrite::UnknownRun(batch_id) => Some(Written::Batch(*batch_id)),
                JournalWrite::PassClosing(_) | JournalWrite::Recovery => Some(Written::Work),
            };
        }
        Ok(written)
    }
}

/// Counts what answers mean, in the rows of runs and then in those of backfills.
async fn count(
    transaction: &mut Transaction,
    answers: &[(&WriteRequest, &Answer)],
) -> Result<(), JournalError> {
    let mut in_runs: BTreeMap<i64, Counters> = BTreeMap::new();
    let mut in_backfills: BTreeMap<i64, Counters> = BTreeMap::new();
    for (entry, answer) in answers {
        *in_runs.entry(entry.run_id).or_default() += &answer.counted;
        if let Some(backfill_id) = entry.pass.course.backfill_id() {
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

/// Records answers, and what they mean for rows that are set aside. Returns the parts of the batches that are split.
async fn record(
    transaction: &mut Transaction,
    answers: &[(&WriteRequest, &Answer)],
) -> Result<Vec<[i64; 2]>, JournalError> {
    if answers.is_empty() {
        return Ok(Vec::new());
    }
    for (_, answer) in answers {
        let batch_id = answer.answered.batch_id;
        if let Some(contents) = &answer.rewritten {
            // Nothing was left to send of what it once was; what was sent then may have arrived.
            sqlx::query!(
                "update elven_sync.sync_batches set ambiguous = ambiguous or status = 'unknown' where batch_id = $1",
                batch_id
            )
            .execute(&mut *transaction)
            .await?;
            rewrite(transaction, batch_id, contents).await?;
        }
        // Before the answer is recorded, since a batch with records that was ever unknown stays so.
        if let Consequence::SetAside { rejected_ids, .. } = &answer.consequence {
            set_aside(transaction, batch_id, rejected_ids).await?;
        }
    }
    let answered: Vec<&AnsweredBatch> = answers.iter().map(|(_, answer)| &answer.answered).collect();
    if finish(transaction, &answered).await? != answered.len() as u64 {
        return Err(JournalError::LeaseLost);
    }
    let parts = insert_parts(transaction, answers).await?;
    for (entry, answer) in answers {
        record_problems(transaction, entry.run_id, entry.entity_id(), &answer.problems).await?;
        if !answer.resolves.is_empty() {
            let batch_id = answer.answered.batch_id;
            resolve_newer(transaction, entry.entity_id(), batch_id, &answer.resolves).await?;
        }
    }
    Ok(parts)
}

/// Records the parts of batches that are split. Returns their numbers, two for each batch.
async fn insert_parts(
    transaction: &mut Transaction,
    answers: &[(&WriteRequest, &Answer)],
) -> Result<Vec<[i64; 2]>, JournalError> {
    let mut new = Vec::new();
    let mut are_ambiguous = Vec::new();
    for (request, answer) in answers {
        if let Consequence::Parts { parts, ambiguous } = &answer.consequence {
            let place = request.doing().place(Some(answer.answered.batch_id));
            new.extend(parts.iter().map(|contents| NewBatch { place, contents, attempts: 0 }));
            are_ambiguous.push(*ambiguous);
        }
    }
    let numbers = insert_all(transaction, &new).await?;
    let pairs: Vec<[i64; 2]> = numbers.as_chunks().0.to_vec();
    let ambiguous = pairs.iter().zip(are_ambiguous).filter(|(_, ambiguous)| *ambiguous);
    let ambiguous: Vec<i64> = ambiguous.flat_map(|(pair, _)| *pair).collect();
    if !ambiguous.is_empty() {
        mark_ambiguous(transaction, &ambiguous).await?;
    }
    Ok(pairs)
}
