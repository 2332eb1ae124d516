//! Connections, and those that lie idle between transactions.
//!
//! Not the pool of sqlx: that one asks a connection whether it is well each time it is given back, in a task of its
//! own, and so one transaction after the other had opened several connections, with a round trip more for each.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::within;

/// The longest that a connection may take to be made that nothing else waits for.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The longest that a transaction waits for others to give one back, and again for one to be made.
const TURN_MAX: Duration = Duration::from_secs(5);
/// One that was used so lately is not asked whether it is well: if it is not, the transaction is begun again.
const FRESH: Duration = Duration::from_secs(1);
/// How long an answer to that question, or a polite end, may take.
const WORD_MAX: Duration = Duration::from_secs(1);
/// One that is older is not kept: its server process has grown, and its address may lead elsewhere by now.
const AGE_MAX: Duration = Duration::from_mins(30);

/// The connections to one database.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) options: PgConnectOptions,
    pub(super) count_max: u32,
    turn_max: Duration,
    places: Arc<Semaphore>,
    /// The one used last comes last.
    idle: Mutex<Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    connection: PgConnection,
    made: Instant,
    since: Instant,
}

/// A connection in use.
#[derive(Debug)]
pub(super) struct InUse {
    pub(super) connection: PgConnection,
    made: Instant,
    _place: OwnedSemaphorePermit,
}

impl Connections {
    /// At most so many at once. `away_max`: how long the database may be away.
    pub(super) fn new(options: PgConnectOptions, count_max: u32, away_max: Duration) -> Self {
        let places = usize::try_from(count_max).unwrap_or(Semaphore::MAX_PERMITS);
        let (places, turn_max) = (Arc::new(Semaphore::new(places)), TURN_MAX.min(away_max));
        Self { options, count_max, turn_max, places, idle: Mutex::default() }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection: the one that was used last, or a new one.
    pub(super) async fn take(&self) -> Result<InUse, sqlx::Error> {
        let place = timeout(self.turn_max, self.places.clone().acquire_owned()).await;
        let place = place.map_err(|_| sqlx::Error::PoolTimedOut)?.map_err(|_| sqlx::Error::PoolClosed)?;
        let known = self.idle().pop();
        if let Some(Idle { mut connection, made, since }) = known {
            if since.elapsed() < FRESH || within(WORD_MAX, connection.ping()).await.is_ok() {
                return Ok(InUse { connection, made, _place: place });
            }
            self.forget_idle();
        }
        let connection = within(self.turn_max, PgConnection::connect_with(&self.options)).await?;
        Ok(InUse { connection, made: Instant::now(), _place: place })
    }

    /// A connection that is nobody else's, whatever their number.
    pub(super) async fn connect(&self, options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
        within(CONNECT_MAX, PgConnection::connect_with(options)).await
    }

    /// Takes one back whose last statement has ended.
    pub(super) fn give_back(&self, InUse { connection, made, _place }: InUse) {
        if made.elapsed() < AGE_MAX && !self.places.is_closed() {
            self.idle().push(Idle { connection, made, since: Instant::now() });
        }
    }

    /// Keeps one that was made, for whoever comes first.
    pub(super) fn keep(&self, connection: PgConnection) {
        let now = Instant::now();
        self.idle().push(Idle { connection, made: now, since: now });
    }

    /// Ends one in whatever state it is. What has befallen it may have befallen those that lie idle.
    pub(super) fn end(&self, InUse { connection, .. }: InUse) {
        self.forget_idle();
        // Politely, since servers and proxies log what just breaks off; without a runtime nobody is left to wait for that.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(timeout(WORD_MAX, connection.close()));
        }
    }

    fn forget_idle(&self) {
        self.idle().clear();
    }

    /// Ends all that lie idle, and makes no others.
    pub(super) async fn close(&self) {
        self.places.close();
        let idle = std::mem::take(&mut *self.idle());
        for Idle { connection, .. } in idle {
            let _ = timeout(WORD_MAX, connection.close()).await;
        }
    }
}
