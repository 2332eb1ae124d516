//! The server, and its activity during a measurement.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};

/// The application name that tells connections of the benchmark from measured ones.
pub(crate) const APPLICATION: &str = "elven-sync bench";

/// Clock ticks per second in `/proc` (manual page proc(5)).
const TICKS_PER_S: f64 = 100.0;
/// Maximum time for connections of a measured program to end.
const QUIET_MAX: Duration = Duration::from_secs(10);

const SETTINGS: [&str; 7] = [
    "server_version",
    "fsync",
    "synchronous_commit",
    "wal_sync_method",
    "shared_buffers",
    "max_connections",
    "wal_level",
];

/// $1 is a database. Returns the next transaction id, transactions that ended there, and bytes of WAL.
const METER: &str = "
    select pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
           (select xact_commit + xact_rollback from pg_stat_database where datname = $1),
           pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint";

/// $1 is a database, $2 the application name of the benchmark.
const BUSY: &str = "
    select count(*) from pg_stat_activity
     where datname = $1 and backend_type = 'client backend' and application_name <> $2";

pub(crate) struct Server {
    connection: PgConnection,
    version: i32,
    settings: BTreeMap<String, String>,
    /// The parent of all server processes, if it is on this machine.
    postmaster: Option<u32>,
}

/// Counters of the server at one moment, or their growth.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    /// CPU of all processes of the server.
    pub(crate) cpu_s: Option<f64>,
    /// Transactions that wrote, and so got an id.
    pub(crate) writes: i64,
    /// Transactions in the database, including read-only ones.
    pub(crate) transactions: i64,
    /// Flushes of the WAL to disk. Transactions that commit together share one.
    pub(crate) fsyncs: Option<i64>,
    pub(crate) wal_bytes: i64,
}

impl Meter {
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            cpu_s: self.cpu_s.zip(before.cpu_s).map(|(now, then)| now - then),
            writes: self.writes - before.writes,
            transactions: self.transactions - before.transactions,
            fsyncs: self.fsyncs.zip(before.fsyncs).map(|(now, then)| now - then),
            wal_bytes: self.wal_bytes - before.wal_bytes,
        }
    }
}

impl Server {
    pub(crate) async fn connect(url: &str) -> anyhow::Result<Self> {
        let options = PgConnectOptions::from_str(url)?.application_name(APPLICATION);
        let is_local = options.get_socket().is_some()
            || options.get_host().starts_with('/')
            || ["localhost", "127.0.0.1", "::1"].contains(&options.get_host());
        let mut connection = options.connect().await?;
        let version: String = sqlx::query_scalar("select current_setting('server_version_num')")
            .fetch_one(&mut connection)
            .await?;
        let named = sqlx::query_as("select name, current_setting(name) from unnest($1::text[]) name");
        let settings: Vec<(String, String)> =
            named.bind(SETTINGS.map(str::to_owned).to_vec()).fetch_all(&mut connection).await?;
        let backend: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut connection).await?;
        let postmaster =
            if is_local { Stat::read(&backend.to_string()).map(|stat| stat.parent) } else { None };
        Ok(Self {
            connection,
            version: version.parse()?,
            settings: settings.into_iter().collect(),
            postmaster,
        })
    }

    /// Version and settings.
    pub(crate) fn facts(&self) -> Value {
        json!(self.settings)
    }

    /// Reads all counters once only the benchmark is connected to the database: a server process reports its figures
    /// when it ends.
    pub(crate) async fn meter(&mut self, database: &str) -> anyhow::Result<Meter> {
        let waiting = async {
            loop {
                let busy = sqlx::query_scalar(BUSY).bind(database).bind(APPLICATION);
                let busy: i64 = busy.fetch_one(&mut self.connection).await?;
                if busy == 0 {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(QUIET_MAX, waiting).await.context("connections were left behind")??;
        if self.version < 150_000 {
            // Its statistics collector gets a message, and writes at most twice a second.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let cpu_s = self.cpu_s();
        let (writes, transactions, wal_bytes) =
            sqlx::query_as(METER).bind(database).fetch_one(&mut self.connection).await?;
        let fsyncs = match self.version {
            180_000.. => Some("select coalesce(sum(fsyncs), 0)::bigint from pg_stat_io where object = 'wal'"),
            140_000.. => Some("select wal_sync from pg_stat_wal"),
            _ => None,
        };
        let fsyncs = match fsyncs {
            Some(sql) => Some(sqlx::query_scalar(sql).fetch_one(&mut self.connection).await?),
            None => None,
        };
        Ok(Meter { cpu_s, writes, transactions, fsyncs, wal_bytes })
    }

    /// User and system time of the postmaster, its children, and its ended children.
    pub(crate) fn cpu_s(&self) -> Option<f64> {
        let postmaster = self.postmaster?;
        let processes = std::fs::read_dir("/proc").ok()?.filter_map(|entry| {
            let pid = entry.ok()?.file_name().into_string().ok()?;
            let is_postmaster = pid.parse::<u32>().ok()? == postmaster;
            Stat::read(&pid).filter(|stat| is_postmaster || stat.parent == postmaster)
        });
        Some(processes.map(|stat| stat.ticks).sum::<f64>() / TICKS_PER_S)
    }
}

/// From `/proc/PID/stat`: the parent, and the time of the process and of its ended children.
struct Stat {
    parent: u32,
    ticks: f64,
}

impl Stat {
    fn read(pid: &str) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in field 2 may have spaces, so fields are counted after it: 4 is the parent, 14 to 17 are the
        // times.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = fields.get(11..15)?.iter().map(|ticks| ticks.parse::<f64>().unwrap_or(0.0)).sum();
        Some(Self { parent: fields.get(1)?.parse().ok()?, ticks })
    }
}
