//! Connections, in use or idle between transactions.
//!
//! This is not the pool of sqlx, because that pool pings each connection when it is returned, in a task of its own. So
//! even sequential transactions opened several connections, with one more round trip for each.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{
    Manager, Metrics, Object, Pool, PoolError, QueueMode, RecycleError, RecycleResult, TimeoutType, Timeouts,
};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use tokio::time::timeout;

use super::address::Address;
use super::defaults::{Defaults, OVERRIDDEN};
use super::hosts::Hosts;
use super::session_name::SessionName;
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

/// A connection, and the name that its session has.
#[derive(Debug)]
pub(super) struct Session {
    connection: PgConnection,
    /// `None`: its address names it.
    pub(super) name: Option<Arc<str>>,
}

impl Deref for Session {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

/// A connection in use. When it is dropped it becomes idle, so it must not be dropped before its last statement has
/// ended.
pub(super) type PooledConnection = Object<ConnectionManager>;

/// Where the servers are, and how to log in.
#[derive(Clone, Debug)]
enum Source {
    /// They stay the same.
    Hosts(Hosts),
    /// They are read again for each connection.
    Address(Address),
}

/// Opens connections, and decides which idle ones may be reused.
#[derive(Debug)]
pub(super) struct ConnectionManager {
    source: Source,
    /// The name of new connections. `None`: their address names them.
    name: Option<SessionName>,
    /// The time limit for a connection, when one of several servers is looked for.
    turn_max: Duration,
    /// A connection was opened before, so its address was right once.
    was_opened: AtomicBool,
    /// An idle connection failed its health check. Until a new connection is opened, other idle connections are
    /// discarded without a check: they have probably failed too, and to check each of them could take long.
    unwell: AtomicBool,
}

impl ConnectionManager {
    /// Opens a connection, with these settings of the session.
    async fn open(&self, settings: &[(&str, &str)]) -> Result<PgConnection, sqlx::Error> {
        let limit = if settings.is_empty() { self.turn_max } else { CONNECT_MAX };
        let opened = async {
            let hosts = match &self.source {
                Source::Hosts(hosts) => hosts.clone(),
                Source::Address(address) => address.hosts(false).await?,
            };
            let hosts = match self.name() {
                Some(name) => named(hosts, &name),
                None => hosts,
            };
            let with = |options: PgConnectOptions| options.options(settings.iter().copied());
            let hosts = if settings.is_empty() { hosts } else { hosts.with(with) };
            hosts.connect(limit).await
        };
        match opened.await {
            Err(problem) if self.may_pass(&problem) => Err(sqlx::Error::Io(std::io::Error::other(problem))),
            Err(problem) => Err(problem),
            Ok(connection) => {
                self.was_opened.store(true, Ordering::Relaxed);
                Ok(connection)
            }
        }
    }

    /// Returns the name that sessions have by now.
    pub(super) fn name(&self) -> Option<Arc<str>> {
        self.name.as_ref().map(SessionName::get)
    }

    /// Returns whether the next reading of the address may give another answer: a password that was changed may reach
    /// the server earlier than its file, and a file may be read while it is written.
    fn may_pass(&self, problem: &sqlx::Error) -> bool {
        let is_login = match problem {
            sqlx::Error::Configuration(_) => true,
            // invalid_authorization_specification
            sqlx::Error::Database(refused) => refused.code().is_some_and(|code| code.starts_with("28")),
            _ => false,
        };
        is_login && matches!(self.source, Source::Address(_)) && self.was_opened.load(Ordering::Relaxed)
    }
}

/// Names the connector to the server. Proxies refuse unknown start-up parameters.
fn named(hosts: Hosts, name: &str) -> Hosts {
    hosts.with(|options| options.application_name(name).extra_float_digits(None))
}

impl Manager for ConnectionManager {
    type Type = Session;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<Session, sqlx::Error> {
        self.unwell.store(false, Ordering::Relaxed);
        let name = self.name();
        // Boxed, because it is large and part of the future of every transaction.
        Ok(Session { connection: Box::pin(self.open(&[])).await?, name })
    }

    async fn recycle(&self, connection: &mut Session, known: &Metrics) -> RecycleResult<sqlx::Error> {
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

/// Creates the pool for an address, for at most `count_max` connections at once. `away_max`: how long the database may
/// be unreachable.
pub(super) async fn to(
    address: &Address,
    name: SessionName,
    count_max: usize,
    away_max: Duration,
) -> Result<Connections, sqlx::Error> {
    // It is read here in any case, so that a mistake in it is reported once.
    let hosts = Box::pin(address.hosts(true)).await?;
    let source = if address.may_change() { Source::Address(address.clone()) } else { Source::Hosts(hosts) };
    Ok(new(source, Some(name), count_max, away_max))
}

/// Creates the pool for the server of these options.
pub(super) fn like(options: PgConnectOptions, count_max: usize, away_max: Duration) -> Connections {
    new(Source::Hosts(Hosts::from(options)), None, count_max, away_max)
}

/// Creates another pool for the same servers, with the same names of sessions.
pub(super) fn beside(connections: &Connections, count_max: usize, away_max: Duration) -> Connections {
    let ConnectionManager { source, name, .. } = connections.manager();
    new(source.clone(), name.clone(), count_max, away_max)
}

#[expect(clippy::expect_used, reason = "it has the runtime without which its limits would be refused")]
fn new(source: Source, name: Option<SessionName>, count_max: usize, away_max: Duration) -> Connections {
    let turn_max = ACQUIRE_TIMEOUT.min(away_max);
    let (was_opened, unwell) = (AtomicBool::new(false), AtomicBool::new(false));
    Pool::builder(ConnectionManager { source, name, turn_max, was_opened, unwell })
        .max_size(count_max)
        .queue_mode(QueueMode::Lifo)
        .runtime(Runtime::Tokio1)
        .timeouts(Timeouts { wait: Some(turn_max), create: Some(turn_max), recycle: None })
        .build()
        .expect("a pool with a runtime")
}

/// The facts about the server that are read when the process connects.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// `statement_timeout` of the role or the database; zero: none.
    pub limit: Duration,
    /// The server is a standby.
    pub is_standby: bool,
    /// The settings of the role and the database that the connector does not obey.
    pub defaults: Defaults,
}

/// Opens the first connection, which then becomes idle. Returns the facts about the server.
pub(super) async fn first(connections: &Connections) -> Result<Server, sqlx::Error> {
    let limits = Timeouts { create: Some(CONNECT_MAX), ..connections.timeouts() };
    let mut connection = take(connections, limits).await?;
    let ask = format!(
        "select extract(epoch from current_setting('statement_timeout')::interval)::float8, pg_is_in_recovery(), \
         {OVERRIDDEN}"
    );
    let told = within(CONNECT_MAX, connection.fetch_one(sqlx::raw_sql(AssertSqlSafe(ask)))).await;
    match told.and_then(|row| Ok((row.try_get::<f64, _>(0)?, row.try_get(1)?, row.try_get::<String, _>(2)?)))
    {
        Ok((seconds, is_standby, overridden)) => Ok(Server {
            limit: Duration::try_from_secs_f64(seconds).unwrap_or_default(),
            is_standby,
            defaults: Defaults::of(&overridden)?,
        }),
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

/// Opens a connection outside the pool and its limit, with these settings of the session.
pub(super) async fn connect(
    connections: &Connections,
    settings: &[(&str, &str)],
) -> Result<PgConnection, sqlx::Error> {
    within(CONNECT_MAX, Box::pin(connections.manager().open(settings))).await
}

/// Closes a connection in any state, and all idle ones: they may have failed for the same reason.
pub(super) fn end(connections: &Connections, connection: PooledConnection) {
    connections.retain(|_, _| false);
    let Session { connection, .. } = Object::take(connection);
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
        let _ = timeout(PING_TIMEOUT, connection.connection.close()).await;
    }
}
