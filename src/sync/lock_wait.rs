//! Says for whom a run, a backfill or a retry waits: a statement that waits for a lock of another session gives no sign
//! of it by itself.

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::database::{Blocker, Database, Limits, Waits};
use crate::journal::{Fact, JournalError, Subject, note_facts};
use crate::wall_clock;

/// A statement that is under way for longer is looked at. With a short `reconnect_timeout` it is looked at earlier.
const LOOK_AFTER: Duration = Duration::from_secs(30);
/// How often it is looked whether there is such a statement, and for whom it waits.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The fact is recorded again after this time, because the alert about an older one ends.
const RECORDED_EVERY: Duration = Duration::from_mins(1);
/// The limits of the connection that looks.
const LIMITS: Limits = Limits { lock: Duration::from_secs(2), statement: Duration::from_secs(5) };

/// What a process has recorded about the session for which it waits: the server process, and when it was recorded.
#[derive(Debug, Default)]
pub struct RecordedWait(Mutex<Option<(i32, Instant)>>);

impl RecordedWait {
    fn lock(&self) -> MutexGuard<'_, Option<(i32, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Works, and looks meanwhile whether a statement waits for a lock. The session that holds the lock is logged once, and
/// recorded for the view `alerts` until the wait ends. After work that failed, the same process may go on to wait; then
/// the end is recorded by the next work that succeeds, and without one the alert ends by its age.
pub async fn naming_lock_holders<T, E>(
    database: &Database,
    recorded: &RecordedWait,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let mut watch = LockWatch { database, recorded, beside: None, logged: None };
    let done = tokio::select! {
        biased;
        done = work => done,
        never = watch.look() => match never {},
    };
    if done.is_ok() {
        watch.note_end().await;
    }
    watch.close().await;
    done
}

struct LockWatch<'d> {
    /// The database whose statements may wait.
    database: &'d Database,
    recorded: &'d RecordedWait,
    /// The connection that looks. All others may wait.
    beside: Option<Database>,
    /// The server process that was logged, and what it has locked.
    logged: Option<(i32, Option<String>)>,
}

impl LockWatch<'_> {
    async fn look(&mut self) -> Infallible {
        let after = LOOK_AFTER.min(self.database.reconnect_timeout() / 2);
        loop {
            sleep(LOOK_EVERY.min(after)).await;
            let waited = self.database.statements().longest().unwrap_or_default();
            let found = if waited < after { Ok(None) } else { self.beside().waits().await };
            match found {
                Ok(Some(waits)) => self.found(waited, &waits).await,
                // What was recorded before this work may still be so.
                Ok(None) if self.logged.is_some() => {
                    self.note_end().await;
                    self.close().await;
                }
                // The statement waits for the server, and perhaps so does the one that looks.
                Ok(None) | Err(_) => {}
            }
        }
    }

    fn beside(&mut self) -> &Database {
        self.beside.get_or_insert_with(|| self.database.beside(LIMITS))
    }

    /// Logs and records for whom a statement waits.
    async fn found(&mut self, waited: Duration, waits: &Waits) {
        let (what, holder) = (waits.what(), waits.for_whom(Blocker::who));
        let pid = waits.blocker.pid;
        let found = Some((pid, waits.locked.clone()));
        if self.logged != found {
            tracing::warn!(
                "a statement has waited {} s for {what}, which is locked by {holder}; hint: {}",
                waited.as_secs(),
                waits.hint()
            );
            self.logged = found;
        }
        let before = *self.recorded.lock();
        if before.is_some_and(|(known, at)| known == pid && at.elapsed() < RECORDED_EVERY) {
            return;
        }
        let problem = format!("{what} is locked by {holder}");
        let fact = Fact {
            since: Some(wall_clock::now() - waited),
            ..Fact::of_state(Subject::LockWait, Some(&problem))
        };
        if noted(self.beside(), fact).await {
            *self.recorded.lock() = Some((pid, Instant::now()));
        }
    }

    /// Records that no statement waits any more, if this process has recorded that one does.
    async fn note_end(&mut self) {
        let was_recorded = self.recorded.lock().take().is_some();
        if was_recorded {
            noted(self.beside(), Fact::of_state(Subject::LockWait, None)).await;
        }
        self.logged = None;
    }

    async fn close(&mut self) {
        if let Some(beside) = self.beside.take() {
            beside.close().await;
        }
    }
}

/// Records a fact. The work goes on without it.
async fn noted(database: &Database, fact: Fact) -> bool {
    let noted: Result<bool, JournalError> = note_facts(database, &[fact]).await;
    if let Err(problem) = &noted {
        let error = crate::text::chain(problem);
        tracing::warn!(error, "it could not be recorded for whom a statement waits; the work continues");
    }
    noted.is_ok()
}
