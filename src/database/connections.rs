//! Connections, in use or idle between transactions.
//!
//! This is not the pool of sqlx, because that pool pings each connection when it is returned, in a task of its own. So
//! even sequential transactions opened several connections, with one more round trip for each.

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

/// The time limit for a connection that nothing else waits for.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The time limit for a transaction to wait for a returned connection, and again for a new connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that was used more recently than this is not pinged: if it is broken, the transaction is retried.
const PING_SKIP_AGE: Duration = Duration::from_secs(1);
/// The time limit for the answer to a ping, and for an orderly close.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// An older connection is not reused: its server process has grown, and the address may lead to another server by now.
const AGE_MAX: Duration = Duration::from_mins(30);

/// The connections to one database.
pub(super) type Connections = Pool<ConnectionManager>;

/// A connection in use. When it is dropped it becomes idle, so it must not be dropped before its last statement has
/// ended.
pub(super) type PooledConnection = Object<ConnectionManager>;

/// Opens connections, and decides which idle ones may be reused.
pub(super) struct ConnectionManager {
    pub(super) options: PgConnectOptions,
    /// An idle connection failed its health check. Until a new connection is opened, other idle connections are
    /// discarded without a check: they have probably failed too, and to check each of them could take long.
    unwell: AtomicBool,
}

impl std::fmt::Debug for ConnectionManager {
    /// Leaves out the options, because they hold the password.
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
            return Err(RecycleError::message("the connection must not be reused"));
        }
        if known.last_used() >= PING_SKIP_AGE {
            let answer = within(PING_TIMEOUT, connection.ping()).await;
            answer.inspect_err(|_| self.unwell.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    }
}

/// Creates the pool, for at most `count_max` connections at once. `away_max`: how long the database may be
/// unreachable.
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

/// The facts about the server that are read when the process connects.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server {
    /// `statement_timeout` of the role or the database; zero: none.
    pub limit: Duration,
    /// The server is a standby.
    pub is_standby: bool,
}

/// Opens the first connection, which then becomes idle. Returns the facts about the server.
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

/// Takes a connection: the most recently used one, or a new one.
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

/// Opens a connection outside the pool and its limit.
pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    within(CONNECT_MAX, PgConnection::connect_with(options)).await
}

/// Closes a connection in any state, and all idle ones: they may have failed for the same reason.
pub(super) fn end(connections: &Connections, connection: PooledConnection) {
    connections.retain(|_, _| false);
    let connection = Object::take(connection);
    // An orderly close, because servers and proxies log a broken connection. Without a runtime nothing can wait for
    // it.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(timeout(PING_TIMEOUT, connection.close()));
    }
}

/// Closes all idle connections, and opens no others.
pub(super) async fn close(connections: &Connections) {
    let idle = connections.retain(|_, _| false).removed;
    connections.close();
    for connection in idle {
        let _ = timeout(PING_TIMEOUT, connection.close()).await;
    }
}
