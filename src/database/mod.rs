//! PostgreSQL: transactions that survive the loss of a connection and work through a proxy.
//!
//! A proxy that pools by transaction (`PgBouncer`) gives each transaction any free server connection. So nothing here
//! belongs to a session: every statement runs in an explicit transaction and is unnamed ([`executor`]), and settings
//! apply to the transaction alone.

mod address;
mod commit_cleanup;
mod commits;
mod connection_string;
mod connections;
mod defaults;
mod executor;
mod hosts;
mod server;
mod session_name;
mod statements;
mod tls;
mod transaction;
mod transient;
mod waits;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgQueryResult;
use sqlx::{Execute, Executor, PgConnection, PgPool, Postgres};
use tokio::time::Instant;

pub use self::address::{Address, options};
use self::commits::Commits;
use self::connections::{Connections, Server};
use self::defaults::Defaults;
pub use self::executor::SingleRoundTrip;
pub use self::server::{OtherInstallation, ReplayState, ServerFacts, TIMELINE};
use self::session_name::SessionName;
pub use self::statements::Statements;
pub use self::transaction::Transaction;
pub use self::transient::Transient;
pub(crate) use self::transient::within;
pub use self::waits::{Blocker, Waits};

/// The first and the longest pause between retries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

const WELL: u8 = 0;
const FAILING: u8 = 1;
const GIVEN_UP: u8 = 2;

/// A database; cheap to clone.
#[derive(Clone, Debug)]
pub struct Database {
    connections: Connections,
    reconnect_timeout: Duration,
    /// `statement_timeout` of the role or the database. Zero: none.
    server_limit: Duration,
    /// The server was a primary when the process connected. `false`: it was not, or it was not checked.
    was_primary: bool,
    /// The settings of the role and the database that each transaction overrides.
    defaults: Defaults,
    /// The limits of a process that rather gives up than waits.
    limits: Option<Limits>,
    /// The name of the sessions. `None`: their address names them.
    name: Option<SessionName>,
    /// The statements of the process that are under way, on this server and on a standby.
    statements: Statements,
    process: Arc<Process>,
}

/// The limits of a process that rather gives up than waits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest wait for a lock.
    pub lock: Duration,
    /// The longest time of a statement that reads.
    pub statement: Duration,
}

/// The state that the clones of a [`Database`] share.
#[derive(Debug)]
struct Process {
    /// The condition of the database, as far as this process knows.
    condition: AtomicU8,
    /// Identifies the commits of this process in `elven_sync.sync_commits`.
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

impl Database {
    /// Connects, with at most `connections_max` connections at once. `reconnect_timeout`: how long the database may be
    /// unreachable later.
    pub async fn connect(
        address: impl Into<Address>,
        connections_max: usize,
        reconnect_timeout: Duration,
    ) -> Result<Self, sqlx::Error> {
        let address = address.into();
        let name = SessionName::of(&address.activity);
        Self::connect_as(&address, name, connections_max, reconnect_timeout).await
    }

    async fn connect_as(
        address: &Address,
        name: SessionName,
        connections_max: usize,
        reconnect_timeout: Duration,
    ) -> Result<Self, sqlx::Error> {
        let connections = connections::to(address, name.clone(), connections_max, reconnect_timeout).await?;
        // The first connection is made here, so that a wrong address is reported at once and not after
        // `reconnect_timeout`.
        let Server { limit: server_limit, is_standby, defaults } = connections::first(&connections).await?;
        let was_primary = !is_standby;
        Ok(Self {
            connections,
            reconnect_timeout,
            server_limit,
            was_primary,
            defaults,
            limits: None,
            name: Some(name),
            statements: Statements::default(),
            process: Arc::default(),
        })
    }

    /// Connects to another database with the same limits, under the same name.
    pub async fn connect_like(&self, address: impl Into<Address>) -> Result<Self, sqlx::Error> {
        let address = address.into();
        let name = self.name.clone().unwrap_or_else(|| SessionName::of(&address.activity));
        let count_max = self.connections.status().max_size;
        let connected = Self::connect_as(&address, name, count_max, self.reconnect_timeout).await?;
        Ok(Self { limits: self.limits, statements: self.statements.clone(), ..connected })
    }

    /// Returns the same server with a connection of its own, for what has to work while all other connections wait. It
    /// gives up soon, and knows nothing of the state of the others.
    #[must_use]
    pub fn beside(&self, limits: Limits) -> Self {
        let reconnect_timeout = limits.statement.min(self.reconnect_timeout);
        Self {
            connections: connections::beside(&self.connections, 1, reconnect_timeout),
            reconnect_timeout,
            limits: Some(limits),
            statements: Statements::default(),
            process: Arc::default(),
            ..self.clone()
        }
    }

    /// Returns the statements of the process that are under way.
    pub fn statements(&self) -> &Statements {
        &self.statements
    }

    /// Returns the same database with limits for statements that read.
    #[must_use]
    pub fn limited(self, limits: Limits) -> Self {
        Self { limits: Some(limits), ..self }
    }

    /// Returns the limit that the role or the database has for a statement.
    pub fn limit_of_role(&self) -> Option<Duration> {
        Some(self.server_limit).filter(|limit| !limit.is_zero())
    }

    /// Notes the run that the process works on, for the names of its sessions. `None`: it has ended.
    pub fn note_run(&self, run_id: Option<i64>) {
        if let Some(name) = &self.name {
            name.note_run(run_id);
        }
    }

    /// Returns whether the server is known to have been a primary when the process connected.
    pub fn was_primary(&self) -> bool {
        self.was_primary
    }

    /// Returns how long the database may be unreachable.
    pub fn reconnect_timeout(&self) -> Duration {
        self.reconnect_timeout
    }

    /// Closes all connections.
    pub async fn close(&self) {
        connections::close(&self.connections).await;
    }

    /// Opens a connection outside any transaction, for statements that PostgreSQL refuses inside one. They have no
    /// time limits, unless a proxy refuses these settings; then the settings of the role apply.
    pub async fn session(&self) -> Result<PgConnection, sqlx::Error> {
        let mut settings: Vec<_> = self.defaults.options().collect();
        settings.extend([("statement_timeout", "0"), ("lock_timeout", "0")]);
        match connections::connect(&self.connections, &settings).await {
            Err(sqlx::Error::Database(_)) => connections::connect(&self.connections, &[]).await,
            connected => connected,
        }
    }

    /// Retries a transaction while it fails with a transient error and the database may be unreachable.
    ///
    /// `what` must be a transaction. A commit without an answer is not repeated before its outcome is known (see
    /// [`Transaction::commit`]).
    pub async fn retry<T, E, F>(&self, mut what: impl FnMut() -> F) -> Result<T, E>
    where
        E: Transient + std::error::Error + 'static,
        F: Future<Output = Result<T, E>>,
    {
        let _under_way = self.statements.begin();
        // The time of the first failure; the duration of the attempt before it does not count as waiting.
        let mut waits_since = None;
        let mut pause = PAUSES.0;
        loop {
            // Boxed, because it is large and part of the future of every caller.
            let problem = match Box::pin(what()).await {
                Err(problem) if problem.is_transient() => problem,
                done => {
                    if done.is_ok() && self.process.condition.swap(WELL, Ordering::Relaxed) != WELL {
                        tracing::info!("the database can be reached again");
                    }
                    return done;
                }
            };
            // After one caller has waited without success, no other caller waits.
            let given_up = self.process.condition.load(Ordering::Relaxed) == GIVEN_UP;
            let waited = waits_since.get_or_insert_with(Instant::now).elapsed();
            if given_up || waited + pause > self.reconnect_timeout {
                self.process.condition.store(GIVEN_UP, Ordering::Relaxed);
                return Err(problem);
            }
            if self.process.condition.swap(FAILING, Ordering::Relaxed) == WELL {
                tracing::warn!(
                    error = crate::text::chain(&problem),
                    "the database failed; retrying for {:?} at most",
                    self.reconnect_timeout
                );
            }
            // Jitter, so that callers that failed together do not retry together.
            tokio::time::sleep(pause / 2 + (pause / 2).mul_f64(fastrand::f64())).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Executes one writing statement in a transaction of its own, and retries it until it is committed.
    pub async fn execute<'q, Q>(&self, query: impl Fn() -> Q) -> Result<PgQueryResult, sqlx::Error>
    where
        Q: Execute<'q, Postgres> + 'q,
    {
        self.retry(|| async {
            let mut transaction = self.begin().await?;
            let done = transaction.execute(query()).await?;
            transaction.commit().await?;
            Ok(done)
        })
        .await
    }
}

impl From<PgPool> for Database {
    /// Connects with the options of another pool, with as many connections of its own.
    fn from(pool: PgPool) -> Self {
        let options = pool.connect_options().as_ref().clone();
        let reconnect_timeout = Duration::from_mins(1);
        let connections_max = pool.options().get_max_connections() as usize;
        let connections = connections::like(options, connections_max, reconnect_timeout);
        let (server_limit, was_primary) = (Duration::ZERO, false);
        Self {
            connections,
            reconnect_timeout,
            server_limit,
            was_primary,
            defaults: Defaults::default(),
            limits: None,
            name: None,
            statements: Statements::default(),
            process: Arc::default(),
        }
    }
}
