//! PostgreSQL: transactions that outlive the loss of a connection and go through a proxy.
//!
//! A proxy that pools by transaction (`PgBouncer`) gives each transaction whichever server connection is
//! free. So nothing here belongs to a session: every statement is in an explicit transaction and unnamed
//! ([`executor`]), and what has to hold is set for the transaction alone.

mod address;
mod commits;
mod connections;
mod executor;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use secrecy::SecretString;
use sqlx::postgres::PgQueryResult;
use sqlx::{Execute, Executor, PgConnection, PgPool, Postgres, Row};
use tokio::time::{Instant, timeout};

pub use self::address::options;
use self::commits::Commits;
use self::connections::{Connections, InUse, Server};
pub use self::executor::AtOnce;

/// The first and the longest pause between attempts to go on.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// No statement is given up earlier than that.
const STATEMENT_MAX_MIN: Duration = Duration::from_secs(1);
/// So much later, at least, PostgreSQL ends a statement that was given up.
const SERVER_ENDS_LATER_MIN: Duration = Duration::from_millis(500);
/// The largest `statement_timeout`, in milliseconds.
const STATEMENT_TIMEOUT_MAX_MS: u128 = 2_147_483_647;
/// SQLSTATEs after which the same transaction may well succeed (manual, "`PostgreSQL` Error Codes"):
/// shut down, crashed and starting up, idle for too long (its worker was frozen), read-only for the time of
/// a failover, no connection free, serialization failure and deadlock. And all of class 08, connections.
const PASSING: [&str; 9] = ["57P01", "57P02", "57P03", "25P03", "25006", "53300", "40001", "40P01", "57P05"];

/// How a transaction begins that only reads.
///
/// `row_security = off`: a policy that would filter rows in silence becomes an error (`PostgreSQL` manual,
/// "Client Connection Defaults"). `jit = off`: what is asked is many small probes of an index, estimated as many
/// rows, and to compile that takes longer than to do it.
const BEGIN_READING: &str = "begin read only; set local row_security = off; set local jit = off";

/// The same, to read rows of an index in its order: nothing is put together from bitmaps first, and then sorted.
/// `PostgreSQL` would rather do so where the rows of an entity lie far apart, which costs a third more; and where it
/// expects few rows, of which there may be many, all of them would be read for each page.
const BEGIN_READING_IN_ORDER: &str =
    "begin read only; set local row_security = off; set local jit = off; set local enable_bitmapscan = off";

/// As the first in one snapshot, whatever is written meanwhile.
const BEGIN_SNAPSHOT: &str =
    "begin isolation level repeatable read read only; set local row_security = off; set local jit = off";

const WELL: u8 = 0;
const TROUBLED: u8 = 1;
const GIVEN_UP: u8 = 2;

/// One database; cheap to clone.
#[derive(Clone, Debug)]
pub struct Database {
    connections: Connections,
    reconnect_timeout: Duration,
    /// `statement_timeout` of the role or the database. Zero: none.
    server_limit: Duration,
    /// It was a primary when the process connected. `false`: it was not, or was not asked.
    was_primary: bool,
    process: Arc<Process>,
}

/// What the clones of a [`Database`] share.
#[derive(Debug)]
struct Process {
    /// How the database is, as far as this process knows.
    condition: AtomicU8,
    /// Marks its commits in `elven_sync.sync_commits`.
    number: i64,
    commits: Mutex<Commits>,
}

impl Default for Process {
    fn default() -> Self {
        Self { condition: AtomicU8::new(WELL), number: fastrand::i64(..), commits: Mutex::default() }
    }
}

impl Process {
    fn commits(&self) -> MutexGuard<'_, Commits> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says of an error whether what failed may succeed when it is simply done again.
pub trait Passing {
    /// It may.
    fn is_passing(&self) -> bool;
}

impl Passing for sqlx::Error {
    fn is_passing(&self) -> bool {
        match self {
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Database(refused) => {
                refused.code().is_some_and(|code| code.starts_with("08") || PASSING.contains(&code.as_ref()))
            }
            _ => false,
        }
    }
}

impl Database {
    /// Connects, with at most so many connections at once. `reconnect_timeout`: how long a database that is
    /// there now may be away later.
    pub async fn connect(
        url: &SecretString,
        connections_max: usize,
        reconnect_timeout: Duration,
    ) -> Result<Self, sqlx::Error> {
        // Proxies refuse start-up parameters that they do not know.
        let options = address::options(url)?.application_name("elven-sync").extra_float_digits(None);
        let connections = connections::new(options, connections_max, reconnect_timeout);
        // So that what is wrong is said at once, and not after the wait for a database that was there before.
        let Server { limit: server_limit, is_standby } = connections::first(&connections).await?;
        let was_primary = !is_standby;
        Ok(Self { connections, reconnect_timeout, server_limit, was_primary, process: Arc::default() })
    }

    /// Connects to another one, with as many connections and as much patience.
    pub async fn beside(&self, url: &SecretString) -> Result<Self, sqlx::Error> {
        Self::connect(url, self.connections.status().max_size, self.reconnect_timeout).await
    }

    /// The server is known to have been a primary when the process connected.
    pub fn was_primary(&self) -> bool {
        self.was_primary
    }

    /// How long a database that is there may be away later.
    pub fn reconnect_timeout(&self) -> Duration {
        self.reconnect_timeout
    }

    /// Ends all connections.
    pub async fn close(&self) {
        connections::close(&self.connections).await;
    }

    /// A connection outside of any transaction, for statements that PostgreSQL refuses inside of one. They may take
    /// their time, whatever the role's limits are; but a proxy may refuse to say so, and then they have those.
    pub async fn session(&self) -> Result<PgConnection, sqlx::Error> {
        let options = &self.connections.manager().options;
        let unlimited = options.clone().options([("statement_timeout", "0"), ("lock_timeout", "0")]);
        match connections::connect(&unlimited).await {
            Err(sqlx::Error::Database(_)) => connections::connect(options).await,
            connected => connected,
        }
    }

    /// Begins a transaction that writes. It is durable whatever the database's default is, and PostgreSQL ends it
    /// when its worker freezes in the middle of it, since it may hold the rows of an entity locked.
    pub async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        let idle_max = self.statement_max().as_millis();
        let mut transaction = Transaction::of(self).await?;
        let (process, number) = (self.process.number, transaction.number());
        transaction
            .begin(format!(
                "begin; set local synchronous_commit = on; set local row_security = off; set local jit = off; \
                 set local idle_in_transaction_session_timeout = {idle_max}; {} \
                 insert into elven_sync.sync_commits (process, number) values ({process}, {number}) \
                     returning pg_current_xact_id()::text",
                self.server_ends_after(self.statement_max())
            ))
            .await?;
        Ok(transaction)
    }

    /// Begins a transaction that only reads.
    pub async fn begin_reading(&self) -> Result<Transaction, sqlx::Error> {
        self.begin_by(BEGIN_READING).await
    }

    /// Begins a transaction that only reads, rows in the order of an index.
    pub async fn begin_reading_in_order(&self) -> Result<Transaction, sqlx::Error> {
        self.begin_by(BEGIN_READING_IN_ORDER).await
    }

    /// Begins a transaction that only reads, all of it in the snapshot of its first statement.
    pub async fn begin_snapshot(&self) -> Result<Transaction, sqlx::Error> {
        self.begin_by(BEGIN_SNAPSHOT).await
    }

    async fn begin_by(&self, sql: &str) -> Result<Transaction, sqlx::Error> {
        let mut transaction = Transaction::of(self).await?;
        transaction.begin(format!("{sql}; {}", self.server_ends_after(self.read_max()))).await?;
        Ok(transaction)
    }

    /// Sets that PostgreSQL ends a statement which the connector has given up: it would not notice that nobody waits
    /// for the answer, and go on. A little later than the connector, whose own limit says what may be done again. A
    /// shorter limit of the role or the database stays.
    fn server_ends_after(&self, limit: Duration) -> String {
        let limit = limit + (limit / 10).max(SERVER_ENDS_LATER_MIN);
        if !self.server_limit.is_zero() && self.server_limit <= limit {
            return String::new();
        }
        format!("set local statement_timeout = {};", limit.as_millis().min(STATEMENT_TIMEOUT_MAX_MS))
    }

    /// Does something again for as long as it fails for a passing reason and the database may be away.
    ///
    /// What is done has to be a transaction: one of which nobody knows whether it was committed is not done
    /// again before that is known (see [`Transaction::commit`]).
    pub async fn again<T, E, F>(&self, mut what: impl FnMut() -> F) -> Result<T, E>
    where
        E: Passing + std::error::Error + 'static,
        F: Future<Output = Result<T, E>>,
    {
        // When it failed first: what it took until then was no waiting.
        let mut waits_since = None;
        let mut pause = PAUSES.0;
        loop {
            // Boxed, since it is large, and lies in the futures of all who call.
            let problem = match Box::pin(what()).await {
                Err(problem) if problem.is_passing() => problem,
                done => {
                    if done.is_ok() && self.process.condition.swap(WELL, Ordering::Relaxed) != WELL {
                        tracing::info!("the database is back");
                    }
                    return done;
                }
            };
            // Once somebody has waited in vain nobody else does.
            let given_up = self.process.condition.load(Ordering::Relaxed) == GIVEN_UP;
            let waited = waits_since.get_or_insert_with(Instant::now).elapsed();
            if given_up || waited + pause > self.reconnect_timeout {
                self.process.condition.store(GIVEN_UP, Ordering::Relaxed);
                return Err(problem);
            }
            if self.process.condition.swap(TROUBLED, Ordering::Relaxed) == WELL {
                tracing::warn!(
                    error = crate::text::chain(&problem),
                    "the database is in trouble; waiting for it for {:?} at most",
                    self.reconnect_timeout
                );
            }
            // Jitter, so that what was cut off together does not come back together.
            tokio::time::sleep(pause / 2 + (pause / 2).mul_f64(fastrand::f64())).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// One statement that writes, in a transaction of its own, again until it is committed.
    pub async fn execute<'q, Q>(&self, query: impl Fn() -> Q) -> Result<PgQueryResult, sqlx::Error>
    where
        Q: Execute<'q, Postgres> + 'q,
    {
        self.again(|| async {
            let mut transaction = self.begin().await?;
            let done = transaction.execute(query()).await?;
            transaction.commit().await?;
            Ok(done)
        })
        .await
    }

    /// How long a statement of a writing transaction may take, and how long its connection may then lie idle.
    fn statement_max(&self) -> Duration {
        (self.reconnect_timeout / 3).max(STATEMENT_MAX_MIN)
    }

    /// How long a statement may take that reads, or a page that is copied.
    fn read_max(&self) -> Duration {
        self.reconnect_timeout * 10
    }

    /// Says whether a transaction was committed whose commit got no answer, by the row that it has left then. Asked
    /// once the transaction cannot be under way any more: its server process may not have noticed that we are gone,
    /// and a server in recovery does not know the end.
    async fn was_committed(&self, id: &str, number: i64) -> Result<bool, sqlx::Error> {
        self.again(async || {
            let under_way = "select pg_is_in_recovery() or pg_xact_status($1::text::xid8) = 'in progress'";
            match sqlx::query_scalar(under_way).bind(id).fetch_one(self).await {
                Ok(Some(true)) => {
                    return Err(sqlx::Error::Io(std::io::Error::other("a commit has no outcome yet")));
                }
                Ok(Some(false) | None) => {}
                // An id that has not been given out yet: a crash or a failover has lost it.
                Err(sqlx::Error::Database(refused)) if refused.code().as_deref() == Some("22023") => {}
                Err(problem) => return Err(problem),
            }
            // Not by the id, which is given out again when it was lost.
            let is_there =
                "select exists (select from elven_sync.sync_commits where process = $1 and number = $2)";
            sqlx::query_scalar(is_there).bind(self.process.number).bind(number).fetch_one(self).await
        })
        .await
    }
}

impl From<PgPool> for Database {
    /// Connects as somebody else does, with as many connections of its own.
    fn from(pool: PgPool) -> Self {
        let options = pool.connect_options().as_ref().clone();
        let reconnect_timeout = Duration::from_mins(1);
        let connections_max = pool.options().get_max_connections() as usize;
        let connections = connections::new(options, connections_max, reconnect_timeout);
        let (server_limit, was_primary) = (Duration::ZERO, false);
        Self { connections, reconnect_timeout, server_limit, was_primary, process: Arc::default() }
    }
}

/// A transaction. Dropped before its end, it takes its connection with it: whatever that was in the middle
/// of, the next one to use it would get the answer.
#[derive(Debug)]
pub struct Transaction {
    database: Database,
    /// None once it is at its end, and the connection lies idle or is being ended.
    connection: Option<InUse>,
    /// Its `xid8`, if it writes.
    id: Option<String>,
    /// Its number in `elven_sync.sync_commits`, if it writes.
    number: Option<i64>,
}

impl Transaction {
    async fn of(database: &Database) -> Result<Self, sqlx::Error> {
        let connection =
            Some(connections::take(&database.connections, database.connections.timeouts()).await?);
        Ok(Self { database: database.clone(), connection, id: None, number: None })
    }

    /// Draws the number by which it will be known whether it was committed.
    fn number(&mut self) -> i64 {
        let mut commits = self.database.process.commits();
        commits.begun += 1;
        let number = commits.begun;
        commits.open.insert(number);
        self.number = Some(number);
        number
    }

    async fn begin(&mut self, sql: String) -> Result<(), sqlx::Error> {
        let limit = self.database.statement_max();
        let begun = self.connection()?.fetch_optional(sqlx::raw_sql(sqlx::AssertSqlSafe(sql)));
        self.id = within(limit, begun).await?.map(|row| row.try_get(0)).transpose()?;
        Ok(())
    }

    /// The connection, e.g. to copy from.
    pub fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        self.connection.as_deref_mut().ok_or(sqlx::Error::PoolClosed)
    }

    /// Commits. When the connection is lost over that, finds out whether it was, so that an error always means
    /// that nothing was written.
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        let Err(problem) = self.end("commit").await else { return Ok(()) };
        // Given up first: it takes the place of one to ask with.
        self.close();
        let (true, Some(id), Some(number)) = (problem.is_passing(), self.id.take(), self.number) else {
            return Err(problem);
        };
        match self.database.was_committed(&id, number).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(problem),
            // Nothing that passes: it may have been done, so it is not to be done again.
            Err(unknown) => {
                let unknown = crate::text::chain(&unknown);
                Err(sqlx::Error::Protocol(format!(
                    "whether a commit was done could not be found out: {unknown}"
                )))
            }
        }
    }

    /// Undoes everything.
    pub async fn rollback(mut self) -> Result<(), sqlx::Error> {
        self.end("rollback").await
    }

    fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            connections::end(&self.database.connections, connection);
        }
    }

    async fn end(&mut self, how: &'static str) -> Result<(), sqlx::Error> {
        let limit = self.limit();
        within(limit, self.connection()?.execute(how)).await?;
        self.connection = None;
        Ok(())
    }

    /// How long a statement may take: what is read may be much.
    pub(crate) fn limit(&self) -> Duration {
        if self.number.is_some() { self.database.statement_max() } else { self.database.read_max() }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        self.close();
        if let Some(number) = self.number {
            self.database.process.commits().open.remove(&number);
        }
    }
}

/// Waits for an answer, for no longer than that: a network may swallow what is sent and say nothing.
pub(crate) async fn within<T, E: From<sqlx::Error>>(
    limit: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    timeout(limit, answer).await.unwrap_or_else(|_| Err(no_answer(limit).into()))
}

fn no_answer(limit: Duration) -> sqlx::Error {
    let problem = format!("the database gave no answer for {limit:?}");
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, problem))
}
