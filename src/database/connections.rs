//! Connections, and those that lie idle between transactions.
//!
//! Not the pool of sqlx: that one asks a connection whether it is well each time it is given back, in a task of its
//! own, and so one transaction after the other had opened several connections, with a round trip more for each.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{
    Manager, Metrics, Object, Pool, PoolError, QueueMode, RecycleError, RecycleResult, TimeoutType, Timeouts,
};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};
use tokio::time::timeout;

use super::transient::{no_answer, within};

/// The longest that a connection may take to be made that nothing else waits for.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The longest that a transaction waits for others to give one back, and again for one to be made.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// One that was taken so lately is not asked whether it is well: if it is not, the transaction is begun again.
const PING_SKIP_AGE: Duration = Duration::from_secs(1);
/// How long an answer to that question, or a polite end, may take.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// One that is older is not used: its server process has grown, and its address may lead elsewhere by now.
const AGE_MAX: Duration = Duration::from_mins(30);

/// The connections to one database.
pub(super) type Connections = Pool<ConnectionManager>;

/// A connection in use. Dropped it lies idle, so only one whose last statement has ended may be.
pub(super) type PooledConnection = Object<ConnectionManager>;

/// Makes connections, and says which of those that lie idle may be used.
pub(super) struct ConnectionManager {
    pub(super) options: PgConnectOptions,
    /// One was not well that lay idle, and no new one is being made yet: what has befallen it may have befallen the
    /// others, and to ask them all could take long.
    unwell: AtomicBool,
}

impl std::fmt::Debug for ConnectionManager {
    /// Without the options, which hold the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectionManager").field("unwell", &self.unwell).finish_non_exhaustive()
    }
}

impl Manager for ConnectionManager {
    type Type = PgConnection;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<PgConnection, sqlx::Error> {
        self.unwell.store(false, Ordering::Relaxed);
        PgConnection::connect_with(&self.options).await
    }

    async fn recycle(&self, connection: &mut PgConnection, known: &Metrics) -> RecycleResult<sqlx::Error> {
        if known.age() >= AGE_MAX || self.unwell.load(Ordering::Relaxed) {
            return Err(RecycleError::message("not to be used again"));
        }
        if known.last_used() >= PING_SKIP_AGE {
            let answer = within(PING_TIMEOUT, connection.ping()).await;
            answer.inspect_err(|_| self.unwell.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    }
}

/// At most so many at once. `away_max`: how long the database may be away.
#[expect(clippy::expect_used, reason = "it has the runtime without which its limits would be refused")]
pub(super) fn new(options: PgConnectOptions, count_max: usize, away_max: Duration) -> Connections {
    let turn_max = Some(ACQUIRE_TIMEOUT.min(away_max));
    Pool::builder(ConnectionManager { options, unwell: AtomicBool::new(false) })
        .max_size(count_max)
        .queue_mode(QueueMode::Lifo)
        .runtime(Runtime::Tokio1)
        .timeouts(Timeouts { wait: turn_max, create: turn_max, recycle: None })
        .build()
        .expect("a pool with a runtime")
}

/// What the server says of itself to a process that connects.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server {
    /// `statement_timeout` of the role or the database; zero: none.
    pub limit: Duration,
    /// It is a standby.
    pub is_standby: bool,
}

/// Makes the first one, which then lies idle. Returns `statement_timeout` as the role or the database has it; zero:
/// none.
pub(super) async fn first(connections: &Connections) -> Result<Server, sqlx::Error> {
    let limits = Timeouts { create: Some(CONNECT_MAX), ..connections.timeouts() };
    let mut connection = take(connections, limits).await?;
    let ask = "select extract(epoch from current_setting('statement_timeout')::interval)::float8, pg_is_in_recovery()";
    let told = within(CONNECT_MAX, connection.fetch_one(sqlx::raw_sql(ask))).await;
    match told.and_then(|row| Ok((row.try_get::<f64, _>(0)?, row.try_get(1)?))) {
        Ok((seconds, is_standby)) => {
            Ok(Server { limit: Duration::try_from_secs_f64(seconds).unwrap_or_default(), is_standby })
        }
        Err(problem) => {
            end(connections, connection);
            Err(problem)
        }
    }
}

/// A connection: the one that was used last, or a new one.
pub(super) async fn take(
    connections: &Connections,
    limits: Timeouts,
) -> Result<PooledConnection, sqlx::Error> {
    connections.timeout_get(&limits).await.map_err(|problem| match problem {
        PoolError::Backend(problem) => problem,
        PoolError::Timeout(TimeoutType::Create) => no_answer(limits.create.unwrap_or_default()),
        PoolError::Timeout(_) => sqlx::Error::PoolTimedOut,
        PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_) => {
            sqlx::Error::PoolClosed
        }
    })
}

/// A connection that is nobody else's, whatever their number.
pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    within(CONNECT_MAX, PgConnection::connect_with(options)).await
}

/// Ends one in whatever state it is. What has befallen it may have befallen those that lie idle.
pub(super) fn end(connections: &Connections, connection: PooledConnection) {
    connections.retain(|_, _| false);
    let connection = Object::take(connection);
    // Politely, since servers and proxies log what just breaks off; without a runtime nobody is left to wait for that.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(timeout(PING_TIMEOUT, connection.close()));
    }
}

/// Ends all that lie idle, and makes no others.
pub(super) async fn close(connections: &Connections) {
    let idle = connections.retain(|_, _| false).removed;
    connections.close();
    for connection in idle {
        let _ = timeout(PING_TIMEOUT, connection.close()).await;
    }
}
