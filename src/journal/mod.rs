//! The journal: every statement about the sync tables is here, and nowhere else.
//!
//! Progress is monotonic and SQL enforces it: a write of a lane names the lease it holds and the
//! cursor it starts from, and changes nothing when either is not so any more.

mod batches;
mod entities;
mod errors;
mod lanes;
mod migrate;
mod moves;
mod problems;
mod runs;
mod steps;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool, Postgres, Transaction};
use std::{str::FromStr, time::Duration};

pub use batches::{Advance, Doing, Recorded, Settlement};
pub use entities::{Entity, Health};
pub use errors::{Kind, Problem};
pub use lanes::{Lane, Lease, OpenPass, Take};
pub use migrate::{check as check_schema, migrate, migrate_ledger};
pub use moves::{Earlier, FromNow, Seal};
pub use problems::{LastAnswer, RecordedError, Wanted};
pub use runs::{Counters, RunStatus};
pub(crate) use steps::invalid;

/// Begins a transaction whose commit is durable.
const DURABLE: &str = "begin; set local synchronous_commit = on";

/// The journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The lease went to another worker, or ran out: this worker may move nothing.
    #[error("the lease of the entity was lost to another worker, or ran out")]
    LeaseLost,
    /// All of a pass was read, and yet a batch of it has no answer: it is not closed over that.
    #[error(
        "pass {0} has a batch without an answer behind its cursor, so it cannot be closed; hint: look at \
         elven_sync.sync_batches; `elven-sync entity rewind` sends its rows again"
    )]
    Unfinished(i64),
    /// The run's row is not there, or is another worker's: nothing can be said of the run.
    #[error("the row of the run is gone; was the database restored, or failed over?")]
    RunLost,
    /// The sync schema is missing or older or newer than this program.
    #[error("{0}")]
    Schema(String),
    /// PostgreSQL refused or went away.
    #[error("the sync tables could not be used")]
    Database(#[from] sqlx::Error),
    /// A migration failed.
    #[error("the schema could not be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}

/// Connections to the database that holds ledger and sync tables.
///
/// `row_security = off`: a policy that would filter rows in silence becomes an error (PostgreSQL manual,
/// "Client Connection Defaults"). `synchronous_commit = on`: what was written outlives a crash of the server,
/// whatever the database's default is.
pub async fn connect(url: &SecretString, connections_max: u32) -> Result<PgPool, sqlx::Error> {
    let options = PgConnectOptions::from_str(url.expose_secret())?.application_name("elven-sync").options([
        ("row_security", "off"),
        ("synchronous_commit", "on"),
        ("timezone", "UTC"),
    ]);
    // A pool would try for as long as it may wait, and then only say that it waited: the first
    // connection is made outside of it, so that what is wrong is said at once.
    PgConnection::connect_with(&options).await?.close().await?;
    Ok(PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(Duration::from_secs(10))
        .connect_lazy_with(options))
}

/// The sync tables of one installation, for one worker.
#[derive(Clone, Debug)]
pub struct Journal {
    pool: PgPool,
    worker: String,
    lease: Duration,
    signature_window: Duration,
}

impl Journal {
    /// Opens the sync tables and makes sure that this program knows their version.
    pub async fn open(
        pool: PgPool,
        worker: String,
        lease: Duration,
        signature_window: Duration,
    ) -> Result<Self, JournalError> {
        migrate::check(&pool).await?;
        Ok(Self { pool, worker, lease, signature_window })
    }

    /// Begins a transaction that says itself that its commit is durable: a proxy may drop what was said
    /// when the connection began, and on these transactions the watermark rests.
    async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        self.pool.begin_with(DURABLE).await
    }

    fn lease_seconds(&self) -> f64 {
        self.lease.as_secs_f64()
    }
}
