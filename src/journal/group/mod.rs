//! Group commit: what the lanes of a worker record of their batches and of the end of their passes, many at a time in one
//! transaction.
//!
//! A durable commit costs about as much for one batch as for fifty. So lanes hand in what they have to record, and
//! wait for it; one task writes all that was handed in while it wrote what came before. What is handed in for a pass is
//! written in that order. When a batch cannot be announced none behind it is: the journal never has a batch of a
//! pass without those before it. When an answer cannot be written, the cursor of its pass moves no further and the pass
//! is not closed: each batch that the cursor has passed has an answer.

mod closing;
mod lanes;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use self::closing::close;
use self::lanes::{lock, move_lanes};
use super::batches::{Advance, Doing};
use super::contents::{Answered, Contents, New, finish, insert_all, rewrite};
use super::steps::{count_in_backfill, count_in_run, resolve_newer};
use super::{Counters, JournalError, OpenPass, Problem, errors};
use crate::database::{Database, Passing, Transaction};
use crate::watermark::Cursor;

/// The most that is written in one transaction.
const GROUP_MAX: usize = 256;
/// When so many were written together, more is waited for: then the processor is what is short, and not time.
const MANY: usize = 8;
/// So long.
const GATHERING: Duration = Duration::from_millis(4);
/// How long a lane is left alone whose row somebody else has locked.
const LOCKED: Duration = Duration::from_millis(10);

/// What a lane has to record.
#[derive(Debug)]
pub(super) enum Writing {
    /// A batch is about to be sent.
    Announcement(Contents),
    /// An answer came.
    Answer(Box<Answer>),
    /// The pass is through.
    Closing(Closing),
    /// Nothing: it is waited for all that was handed in before.
    Nothing,
}

/// An answer to a batch, and what follows from it.
#[derive(Debug)]
pub(super) struct Answer {
    pub answered: Answered,
    /// How far the cursor moves.
    pub advance: Option<Advance>,
    pub counted: Counters,
    /// Rows that were set aside before sending.
    pub problems: Vec<Problem>,
    /// Rows of which older versions may be set aside.
    pub resolves: Vec<String>,
    /// What the batch consists of, when that is not what was announced.
    pub rewritten: Option<Contents>,
}

/// The end of a pass.
#[derive(Debug)]
pub(super) struct Closing {
    /// Where its last batch ends. `None`: it had none.
    pub last: Option<Cursor>,
    /// The entity is up to date with that.
    pub ends: bool,
}

/// Why no more of a kind is written for a pass, once something of it could not be: for announcements, why no more
/// batches are announced.
#[derive(Clone, Debug, Default)]
pub(super) struct Stopped(Arc<OnceLock<Arc<JournalError>>>);

/// Why the cursor of a pass moves no further, once an answer of it could not be written. The window that says how far
/// it may move takes an answer for recorded when it is handed in.
pub(super) type Unwritten = Stopped;

/// Something that was handed in. It is written whether or not it is waited for.
#[derive(Debug)]
pub struct Handed(oneshot::Receiver<Result<i64, JournalError>>);

impl Handed {
    /// Waits until it is written. Returns the number of the batch.
    pub async fn written(self) -> Result<i64, JournalError> {
        self.0.await.unwrap_or_else(|_| Err(sqlx::Error::WorkerCrashed.into()))
    }
}

/// Something that was handed in, on its way.
#[derive(Debug)]
struct Entry {
    pass: OpenPass,
    run_id: i64,
    writing: Writing,
    /// Since when its lane has been found locked.
    locked_since: Option<Instant>,
    reply: oneshot::Sender<Result<i64, JournalError>>,
}

impl Entry {
    fn entity_id(&self) -> &str {
        &self.pass.lease.entity_id
    }

    fn doing(&self) -> Doing<'_> {
        Doing { pass: &self.pass, run_id: self.run_id }
    }

    fn answer(&self) -> Option<&Answer> {
        if let Writing::Answer(answer) = &self.writing { Some(answer) } else { None }
    }

    fn contents(&self) -> Option<&Contents> {
        if let Writing::Announcement(contents) = &self.writing { Some(contents) } else { None }
    }

    fn closing(&self) -> Option<&Closing> {
        if let Writing::Closing(closing) = &self.writing { Some(closing) } else { None }
    }

    /// Why it is not to be written, if there is a reason: an announcement of the pass before it was not; or it is the
    /// end of the pass, and an answer was not. (Answers are, without moving the cursor.)
    fn is_too_late(&self) -> Option<JournalError> {
        match self.writing {
            Writing::Announcement(_) => self.pass.stopped.reason(),
            Writing::Closing(_) => self.pass.unwritten.reason(),
            Writing::Answer(_) | Writing::Nothing => None,
        }
    }

    /// How far the cursor moves with it: nowhere, once an answer of the pass could not be written.
    fn advance(&self) -> Option<&Advance> {
        let advance = self.answer()?.advance.as_ref();
        advance.filter(|_| self.pass.unwritten.reason().is_none())
    }

    fn say(self, outcome: Result<i64, JournalError>) {
        let outcome = outcome.map_err(|problem| match self.writing {
            Writing::Announcement(_) => self.pass.stopped.by(problem),
            Writing::Answer(_) => self.pass.unwritten.by(problem),
            Writing::Closing(_) | Writing::Nothing => problem,
        });
        // Nobody may wait for it any more.
        let _ = self.reply.send(outcome);
    }
}

impl Stopped {
    /// Takes a problem for the reason, unless there is one; returns the reason.
    fn by(&self, problem: JournalError) -> JournalError {
        shared(self.0.get_or_init(|| Arc::new(problem)))
    }

    pub(super) fn reason(&self) -> Option<JournalError> {
        self.0.get().map(shared)
    }
}

/// The same problem for one more.
fn shared(problem: &Arc<JournalError>) -> JournalError {
    match **problem {
        JournalError::LeaseLost => JournalError::LeaseLost,
        _ => JournalError::Stopped(problem.clone()),
    }
}

/// Where to hand in.
#[derive(Clone, Debug)]
pub(super) struct Group(UnboundedSender<Entry>);

impl Group {
    /// Starts the task that writes. It ends when nobody can hand in anything any more.
    pub(super) fn start(database: Database, lease: Duration) -> Self {
        // Without a bound of its own: each lane has a bounded number of batches under way.
        let (sender, receiver) = unbounded_channel();
        tokio::spawn(Writer { database, lease }.write_all_of(receiver));
        Self(sender)
    }

    pub(super) fn hand_in(&self, doing: Doing<'_>, writing: Writing) -> Handed {
        let (reply, handed) = oneshot::channel();
        let Doing { pass, run_id } = doing;
        // Should the task be gone, then so is `reply`, and whoever waits hears of it.
        let _ = self.0.send(Entry { pass: pass.clone(), run_id, writing, locked_since: None, reply });
        Handed(handed)
    }
}

struct Writer {
    database: Database,
    lease: Duration,
}

impl Writer {
    async fn write_all_of(self, mut handed_in: UnboundedReceiver<Entry>) {
        let mut entries: Vec<Entry> = Vec::new();
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
            let many = entries.len() >= MANY;
            entries = self.write_together(entries).await;
            pause = match (entries.is_empty(), many) {
                (false, _) => LOCKED,
                (true, true) => GATHERING,
                (true, false) => Duration::ZERO,
            };
        }
    }

    /// Writes entries, and says so. Returns those whose lanes somebody else has locked.
    async fn write_together(&self, entries: Vec<Entry>) -> Vec<Entry> {
        let mut wanted = Vec::with_capacity(entries.len());
        for entry in entries {
            match entry.is_too_late() {
                Some(reason) => entry.say(Err(reason)),
                None => wanted.push(entry),
            }
        }
        if wanted.is_empty() {
            return wanted;
        }
        match self.database.again(|| self.write(&wanted)).await {
            Ok(Ok(written)) => self.tell(wanted, written),
            // One of them is the reason, or the lease of one is lost: the others are not to suffer from it.
            Ok(Err(_)) if wanted.len() > 1 => self.write_each(wanted).await,
            // Of a commit it may not be known whether it was done: then nothing is to be done again.
            Ok(Err(problem)) | Err(problem) => {
                let problem = Arc::new(problem);
                for entry in wanted {
                    entry.say(Err(shared(&problem)));
                }
                Vec::new()
            }
        }
    }

    /// Writes entries one after the other, each in its own transaction.
    async fn write_each(&self, entries: Vec<Entry>) -> Vec<Entry> {
        let mut locked: Vec<Entry> = Vec::new();
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
    fn tell(&self, entries: Vec<Entry>, written: Vec<Option<i64>>) -> Vec<Entry> {
        let mut locked = Vec::new();
        for (mut entry, written) in entries.into_iter().zip(written) {
            let Some(batch_id) = written else {
                let waits_since = *entry.locked_since.get_or_insert_with(Instant::now);
                if waits_since.elapsed() < self.database.reconnect_timeout() {
                    locked.push(entry);
                } else {
                    let problem = format!(
                        "the row of entity {} in elven_sync.sync_state is locked by another transaction",
                        entry.entity_id()
                    );
                    let problem = std::io::Error::new(std::io::ErrorKind::TimedOut, problem);
                    entry.say(Err(sqlx::Error::Io(problem).into()));
                }
                continue;
            };
            entry.say(Ok(batch_id));
        }
        locked
    }

    /// Writes entries in one transaction. Returns the number of each one's batch, or `None` when its lane is
    /// locked by somebody else; or what is wrong with one of them, when for that nothing is written.
    async fn write(&self, entries: &[Entry]) -> Result<Result<Vec<Option<i64>>, JournalError>, JournalError> {
        let mut transaction = self.database.begin().await?;
        let filled = self.fill(&mut transaction, entries).await;
        match &filled {
            Ok(written) if written.iter().any(Option::is_some) => transaction.commit().await?,
            Err(problem) if problem.is_passing() => return filled.map(Ok),
            // Undone at once, since what it has locked is tried again at once.
            Ok(_) | Err(_) => transaction.rollback().await?,
        }
        Ok(filled)
    }

    /// Rows are locked in one order everywhere: lanes by entity, then batches and errors, passes, then the run's.
    async fn fill(
        &self,
        transaction: &mut Transaction,
        entries: &[Entry],
    ) -> Result<Vec<Option<i64>>, JournalError> {
        let mut lanes = lock(transaction, entries, self.lease).await?;
        let mut ours = Vec::with_capacity(entries.len());
        for entry in entries {
            if let Some(lane) = lanes.get_mut(entry.entity_id()) {
                lane.admit(entry)?;
                ours.push(entry);
            }
        }
        let new: Vec<New<'_>> = ours
            .iter()
            .filter_map(|entry| {
                Some(New { place: entry.doing().place(None), contents: entry.contents()?, attempts: 1 })
            })
            .collect();
        let numbers = if new.is_empty() { Vec::new() } else { insert_all(transaction, &new).await? };
        let answers: Vec<(&Entry, &Answer)> =
            ours.iter().filter_map(|entry| Some((*entry, entry.answer()?))).collect();
        record(transaction, &answers).await?;
        move_lanes(transaction, &lanes, self.lease).await?;
        let closings: Vec<(&Entry, &Closing)> =
            ours.iter().filter_map(|entry| Some((*entry, entry.closing()?))).collect();
        close(transaction, &closings).await?;
        count(transaction, &answers).await?;
        let mut numbers = numbers.into_iter();
        let mut number = |entry: &Entry| match &entry.writing {
            Writing::Announcement(_) => numbers.next(),
            Writing::Answer(answer) => Some(answer.answered.batch_id),
            Writing::Closing(_) | Writing::Nothing => Some(0),
        };
        let is_ours = |entry: &&Entry| lanes.contains_key(entry.entity_id());
        Ok(entries.iter().map(|entry| Some(entry).filter(is_ours).and_then(&mut number)).collect())
    }
}

/// Counts what answers mean, in the rows of runs and then in those of backfills.
async fn count(transaction: &mut Transaction, answers: &[(&Entry, &Answer)]) -> Result<(), JournalError> {
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

/// Records answers, and what they mean for rows that are set aside.
async fn record(transaction: &mut Transaction, answers: &[(&Entry, &Answer)]) -> Result<(), JournalError> {
    if answers.is_empty() {
        return Ok(());
    }
    for (_, answer) in answers {
        if let Some(contents) = &answer.rewritten {
            let batch_id = answer.answered.batch_id;
            // Nothing was left to send of what it once was; what was sent then may have arrived.
            sqlx::query!(
                "update elven_sync.sync_batches set ambiguous = ambiguous or status = 'unknown' where batch_id = $1",
                batch_id
            )
            .execute(&mut *transaction)
            .await?;
            rewrite(transaction, batch_id, contents).await?;
        }
    }
    let answered: Vec<&Answered> = answers.iter().map(|(_, answer)| &answer.answered).collect();
    if finish(transaction, &answered).await? != answered.len() as u64 {
        return Err(JournalError::LeaseLost);
    }
    for (entry, answer) in answers {
        errors::record(transaction, entry.run_id, entry.entity_id(), &answer.problems).await?;
        if !answer.resolves.is_empty() {
            let batch_id = answer.answered.batch_id;
            resolve_newer(transaction, entry.entity_id(), batch_id, &answer.resolves).await?;
        }
    }
    Ok(())
}
