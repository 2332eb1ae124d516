//! Scratch databases: a ledger with a number of rows and entities, and the tables of the connector.

use std::str::FromStr;
use std::time::Instant;

use anyhow::Context;
use elven_sync::database::Database;
use elven_sync::journal;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use url::Url;

use crate::server::APPLICATION;

/// Enough for the lanes that are read at once.
const CONNECTIONS_MAX: u32 = 12;

/// $1 is the number of entities. Their zones differ.
const REGISTER: &str = "
    insert into elven_sync.entities (entity_id, timezone)
    select 'entity-' || n, (array['Europe/Zurich', 'America/New_York', 'Asia/Kathmandu',
                                  'Australia/Lord_Howe'])[1 + n % 4]
      from generate_series(0, $1 - 1) n";

/// $1 rows after the first $3, of $2 entities, interleaved row by row. An account belongs to one entity and has three
/// currencies. Rows of an account and currency are at least two days apart, so that none supersedes another, not even
/// in a repeated hour. Balances have 0 to 18 decimals.
const SEED: &str = "
    insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
    select 'entity-' || account % $2,
           translate(md5(account::text), '0123456789abcdef', '8nfrslW3U7pIvQDT') || '-' || 1000 + account % 9000,
           (array['BTC', 'ETH', 'USD'])[1 + n / accounts % 3],
           '2020-01-01 00:00:00Z'::timestamptz + n * interval '61 seconds',
           round(n * 1.234567890123456789, (n % 19)::integer)
      from (select n, greatest(1000, $2) as accounts, n % greatest(1000, $2) as account
              from generate_series($3, $3 + $1 - 1) n) s";

/// All columns that a page needs, so that a vacuumed ledger is read without its table. `id` belongs to the key.
const COVER: &str = "
    create index on ledger.balance_snapshots (entity_id, change_xid, id)
           include (entity_account_id, currency, captured_at, balance);
    drop index ledger.balance_snapshots_change";

/// The trigger writes the same value as the default, and costs more than the rest of the seed.
const TRIGGER_OFF: &str = "alter table ledger.balance_snapshots disable trigger stamp_change_xid";
const TRIGGER_ON: &str = "alter table ledger.balance_snapshots enable always trigger stamp_change_xid";

/// Resets the connector to the state before any run.
const RESET: [&str; 4] = [
    "truncate elven_sync.sync_errors, elven_sync.sync_batches, elven_sync.sync_backfill_lanes, elven_sync.sync_backfills,
              elven_sync.sync_passes, elven_sync.sync_runs",
    "update elven_sync.sync_state
        set settled = null, pass_id = null, target = null, cursor_xid = null, cursor_id = null, rows_uploaded = 0",
    "vacuum (analyze) elven_sync.sync_state",
    "checkpoint",
];

pub(crate) struct Ledger {
    pub(crate) database: String,
    pub(crate) url: Url,
    pub(crate) pool: PgPool,
    pub(crate) rows: u32,
    pub(crate) entities: u32,
}

/// The existing ledgers. A ledger that a scenario has left unchanged is used by the next one.
pub(crate) struct Ledgers {
    server: Url,
    covering: bool,
    names: Vec<String>,
    unused: Vec<Ledger>,
}

impl Ledgers {
    pub(crate) fn new(url: &str, covering: bool) -> anyhow::Result<Self> {
        let server = Url::parse(url).context("DATABASE_URL is not a URL")?;
        Ok(Self { server, covering, names: Vec::new(), unused: Vec::new() })
    }

    pub(crate) async fn take(&mut self, rows: u32, entities: u32) -> anyhow::Result<Ledger> {
        let fits = |ledger: &Ledger| ledger.rows == rows && ledger.entities == entities;
        if let Some(place) = self.unused.iter().position(fits) {
            return Ok(self.unused.swap_remove(place));
        }
        let began = Instant::now();
        let now = chrono::Utc::now().timestamp_micros();
        let database = format!("elven_sync_bench_{}_{now}", std::process::id());
        self.on_server(&format!("create database {database}")).await?;
        self.names.push(database.clone());
        let mut url = self.server.clone();
        url.set_path(&database);
        let options = PgConnectOptions::from_str(url.as_str())?.application_name(APPLICATION);
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS_MAX).connect_lazy_with(options);
        let mut ledger = Ledger { database, url, pool, rows: 0, entities };
        ledger.make().await?;
        if self.covering {
            ledger.pool.execute(COVER).await?;
        }
        ledger.seed(rows).await?;
        let elapsed_s = began.elapsed().as_secs_f64();
        tracing::info!("{rows} rows of {entities} entities were written in {elapsed_s:.1} s");
        Ok(ledger)
    }

    /// Returns a ledger for another scenario that wants as many rows and entities.
    pub(crate) fn give_back(&mut self, ledger: Ledger) {
        self.unused.push(ledger);
    }

    pub(crate) async fn drop(&mut self, ledger: Ledger) -> anyhow::Result<()> {
        ledger.pool.close().await;
        self.on_server(&format!("drop database {} with (force)", ledger.database)).await?;
        self.names.retain(|name| *name != ledger.database);
        Ok(())
    }

    /// Drops returned ledgers with another number of rows.
    pub(crate) async fn drop_unlike(&mut self, rows: u32) -> anyhow::Result<()> {
        while let Some(place) = self.unused.iter().position(|ledger| ledger.rows != rows) {
            let ledger = self.unused.swap_remove(place);
            self.drop(ledger).await?;
        }
        Ok(())
    }

    pub(crate) async fn drop_all(&mut self) -> anyhow::Result<()> {
        for name in std::mem::take(&mut self.names) {
            self.on_server(&format!("drop database if exists {name} with (force)"))
                .await
                .with_context(|| format!("the scratch database {name} was left behind"))?;
        }
        Ok(())
    }

    async fn on_server(&self, sql: &str) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(self.server.as_str()).await?;
        connection.execute(AssertSqlSafe(sql.to_owned())).await?;
        Ok(connection.close().await?)
    }
}

impl Ledger {
    async fn make(&self) -> anyhow::Result<()> {
        let database = Database::from(self.pool.clone());
        journal::migrate(&database).await?;
        journal::migrate_ledger(&database).await?;
        sqlx::query(REGISTER).bind(i64::from(self.entities)).execute(&self.pool).await?;
        Ok(())
    }

    /// Inserts the first rows, all in one transaction.
    async fn seed(&mut self, rows: u32) -> anyhow::Result<()> {
        let mut transaction = self.pool.begin().await?;
        transaction.execute(TRIGGER_OFF).await?;
        let seed = sqlx::query(SEED).bind(i64::from(rows)).bind(i64::from(self.entities)).bind(0_i64);
        seed.execute(&mut *transaction).await?;
        transaction.execute(TRIGGER_ON).await?;
        transaction.commit().await?;
        self.rows = rows;
        self.settle().await
    }

    /// Inserts more rows, all in one transaction.
    pub(crate) async fn add(&mut self, rows: u32) -> anyhow::Result<()> {
        let (before, entities) = (i64::from(self.rows), i64::from(self.entities));
        sqlx::query(SEED).bind(i64::from(rows)).bind(entities).bind(before).execute(&self.pool).await?;
        self.rows += rows;
        Ok(())
    }

    /// Does the work that the server would do by itself later.
    pub(crate) async fn settle(&self) -> anyhow::Result<()> {
        self.pool.execute("vacuum (analyze)").await?;
        self.pool.execute("checkpoint").await?;
        Ok(())
    }

    /// Resets the connector to the state before any run.
    pub(crate) async fn reset(&self) -> anyhow::Result<()> {
        for statement in RESET {
            self.pool.execute(statement).await?;
        }
        Ok(())
    }
}
