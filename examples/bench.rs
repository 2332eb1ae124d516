//! The benchmark: whole runs, journal included, beside the limit of the database, measured in one go.
//!
//! 1. A scratch database is seeded in one statement, then vacuumed and checkpointed.
//! 2. Binary `COPY` of the same columns, thrown away, says how fast the database can give rows away.
//! 3. A connector process uploads all rows to a receiver process: a lax sandbox, which checks signatures
//!    and counts records. CPU and memory are thus those of the connector alone. Then 2 again.
//!
//! The role needs to be one that may create databases and checkpoint. CPU and memory are read from `/proc`
//! (Linux; elsewhere they are missing). `ELVEN_SYNC_...` settings can be given in the environment; a
//! configuration file is not read.

#![expect(clippy::float_arithmetic, reason = "rates and medians; no amount is among them")]

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Parser;
use elven_sync::config::{Environment, Flags, Settings};
use elven_sync::database::Database;
use elven_sync::journal::{self, RunStatus};
use elven_sync::output::line;
use elven_sync::sandbox::{Credential, Options, Sandbox};
use elven_sync::sync::{EntityReport, Worker};
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPoolCopyExt;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use url::Url;

const KEY: &str = "bench-key";
const SECRET: &str = "bench-secret";

/// $1 entities; their zones differ.
const REGISTER: &str = "
    insert into elven_sync.entities (entity_id, timezone)
    select 'entity-' || n, (array['Europe/Zurich', 'America/New_York', 'Asia/Kathmandu',
                                  'Australia/Lord_Howe'])[1 + n % 4]
      from generate_series(0, $1 - 1) n";

/// $1 rows, $2 entities. An account belongs to one entity and has three currencies. Rows of an account
/// and currency lie at least two days apart, so that none supersedes another, not even in the hour
/// that a zone has twice. Balances have 0 to 18 decimals.
const SEED: &str = "
    insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
    select 'entity-' || account % $2,
           translate(md5(account::text), '0123456789abcdef', '8nfrslW3U7pIvQDT') || '-' || 1000 + account % 9000,
           (array['BTC', 'ETH', 'USD'])[1 + n / accounts % 3],
           '2020-01-01 00:00:00Z'::timestamptz + n * interval '61 seconds',
           round(n * 1.234567890123456789, (n % 19)::integer)
      from (select n, greatest(1000, $2) as accounts, n % greatest(1000, $2) as account
              from generate_series(0, $1 - 1) n) s";

const LIMIT: &str = "
    copy (select entity_account_id, currency, captured_at, balance, entity_id from ledger.balance_snapshots)
      to stdout (format binary)";

const SERVER: &str = "
    select current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit')";

/// Makes the connector forget that it ever ran.
const RESET: [&str; 4] = [
    "truncate elven_sync.sync_errors, elven_sync.sync_batches, elven_sync.sync_backfills,
              elven_sync.sync_passes, elven_sync.sync_runs",
    "update elven_sync.sync_state
        set settled = null, pass_id = null, target = null, cursor_xid = null, cursor_id = null, rows_uploaded = 0",
    "vacuum (analyze) elven_sync.sync_state",
    "checkpoint",
];

/// Rows per second of `elven-sync run`, its CPU and memory, beside the limit of the database
#[derive(Parser)]
struct Arguments {
    /// Rows in the ledger
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// Entities that they are spread over
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    entities: u32,
    /// Repetitions, of which the medians are printed
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Print a JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Be the receiver
    #[arg(long, hide = true)]
    receiver: bool,
    /// Be the connector
    #[arg(long, hide = true)]
    connector: bool,
}

/// What a run of the connector took, as its process says.
#[derive(Debug, Deserialize, Serialize)]
struct Taken {
    rows_uploaded: u32,
    batches: u32,
    elapsed_s: f64,
    cpu_s: Option<f64>,
    peak_rss_mib: Option<f64>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if arguments.receiver {
        return receive().await;
    }
    if arguments.connector {
        return connect().await;
    }
    let server =
        Environment::capture().get("DATABASE_URL").context("set DATABASE_URL, or `make bench`")?.to_owned();
    let name = format!("elven_sync_bench_{}_{}", std::process::id(), chrono::Utc::now().timestamp_millis());
    let mut url = Url::parse(&server).context("DATABASE_URL is not a URL")?;
    url.set_path(&name);
    let mut admin = PgConnection::connect(&server).await.context("the database cannot be reached")?;
    admin.execute(AssertSqlSafe(format!("create database {name}"))).await?;
    let measured = tokio::select! {
        measured = measure(&arguments, url.as_str()) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let dropped = admin.execute(AssertSqlSafe(format!("drop database {name} with (force)"))).await;
    measured.and(dropped.map(drop).with_context(|| format!("the scratch database {name} was left behind")))
}

async fn measure(arguments: &Arguments, url: &str) -> anyhow::Result<()> {
    let pool = PgPool::connect(url).await?;
    seed(&pool, arguments).await?;
    let receiver = Receiver::start().await?;
    let (mut limits, mut runs) = (Vec::new(), Vec::new());
    for _ in 0..arguments.runs {
        for statement in RESET {
            pool.execute(statement).await?;
        }
        limits.push(f64::from(arguments.rows) / copy_to_nowhere(&pool).await?);
        let taken = upload(url, &receiver.url).await?;
        ensure!(taken.rows_uploaded == arguments.rows, "not all rows were uploaded: {taken:?}");
        runs.push(taken);
    }
    let (sent, arrived) = (u64::from(arguments.rows) * u64::from(arguments.runs), receiver.stop().await?);
    ensure!(arrived == sent, "{sent} records were sent, but {arrived} arrived");
    let server = sqlx::query_as(SERVER).fetch_one(&pool).await?;
    pool.close().await;
    report(arguments, &server, limits, &runs);
    Ok(())
}

async fn seed(pool: &PgPool, arguments: &Arguments) -> anyhow::Result<()> {
    let entities = i64::from(arguments.entities);
    let database = Database::from(pool.clone());
    journal::migrate(&database).await?;
    journal::migrate_ledger(&database).await?;
    sqlx::query(REGISTER).bind(entities).execute(pool).await?;
    sqlx::query(SEED).bind(i64::from(arguments.rows)).bind(entities).execute(pool).await?;
    pool.execute("vacuum (analyze) ledger.balance_snapshots").await?;
    pool.execute("checkpoint").await?;
    Ok(())
}

/// Seconds that the limit takes.
async fn copy_to_nowhere(pool: &PgPool) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut messages = pool.copy_out_raw(LIMIT).await?;
    while messages.try_next().await?.is_some() {}
    Ok(begun.elapsed().as_secs_f64())
}

fn myself(role: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
    Ok(command)
}

async fn upload(database_url: &str, api_url: &str) -> anyhow::Result<Taken> {
    let output = myself("--connector")?
        .env("DATABASE_URL", database_url)
        .env("ELVEN_API_URL", api_url)
        .env("ELVEN_API_KEY", KEY)
        .env("ELVEN_API_SECRET", SECRET)
        .env("ELVEN_SYNC_CONFIG", "/dev/null")
        .spawn()?
        .wait_with_output() // Not output(), which would keep what the connector says on stderr.
        .await?;
    ensure!(output.status.success(), "the connector failed ({})", output.status);
    serde_json::from_slice(&output.stdout).context("the connector did not say what it took")
}

/// The role of the connector: one run, then a line of JSON.
async fn connect() -> anyhow::Result<()> {
    let begun = Instant::now();
    let settings = Settings::load(&Flags::default(), Environment::capture())?;
    let database =
        Database::connect(settings.database_url()?, 10, settings.database.reconnect_timeout).await?;
    let (_running, stop) = watch::channel(false);
    let report = Worker::open(settings, database, stop).await?.run(&[]).await?;
    if report.status != RunStatus::Succeeded {
        let failure = report.entities.iter().find_map(EntityReport::failure).unwrap_or_default();
        bail!("the run ended {}: {failure}", report.status.as_ref());
    }
    let taken = Taken {
        rows_uploaded: report.counters.rows_uploaded.try_into()?,
        batches: report.counters.requests.try_into()?,
        elapsed_s: begun.elapsed().as_secs_f64(),
        cpu_s: cpu_s(),
        peak_rss_mib: peak_rss_mib(),
    };
    line(serde_json::to_string(&taken)?);
    Ok(())
}

/// User and system time of this process. `/proc` counts in ticks of 10 ms (manual page proc(5)).
fn cpu_s() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Fields 14 and 15; the name in field 2 may have spaces, so they are counted from behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11).map(str::parse::<f64>);
    Some((fields.next()?.ok()? + fields.next()?.ok()?) / 100.0)
}

/// The most memory that this process ever had resident.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(peak.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1024.0)
}

/// The role of the receiver: says where it listens, and at the end of its input how much came.
async fn receive() -> anyhow::Result<()> {
    let credentials = vec![Credential::new("bench", KEY, SECRET)];
    let sandbox = Sandbox::start(Options { credentials, lax: true, ..Options::default() }).await?;
    line(sandbox.url());
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    line(sandbox.records_accepted());
    sandbox.stop().await;
    Ok(())
}

struct Receiver {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    url: String,
}

impl Receiver {
    async fn start() -> anyhow::Result<Self> {
        let mut process = myself("--receiver")?.stdin(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(process.stdout.take().context("the receiver has no output")?).lines();
        let url = lines.next_line().await?.context("the receiver did not start")?;
        Ok(Self { process, lines, url })
    }

    /// Ends it; returns how many records it accepted.
    async fn stop(mut self) -> anyhow::Result<u64> {
        drop(self.process.stdin.take());
        Ok(self.lines.next_line().await?.context("the receiver ended early")?.parse()?)
    }
}

/// The median, of two in the middle their mean. `None` when figures are missing.
fn median(figures: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let mut figures: Vec<f64> = figures.into_iter().collect::<Option<_>>()?;
    figures.sort_by(f64::total_cmp);
    let middle = |count: usize| figures.get(count / 2).copied();
    Some(f64::midpoint(middle(figures.len().checked_sub(1)?)?, middle(figures.len())?))
}

fn report(arguments: &Arguments, server: &(String, String, String), limits: Vec<f64>, runs: &[Taken]) {
    let &Arguments { rows, entities, runs: repetitions, json, .. } = arguments;
    let (version, fsync, commit) = server;
    let copy = median(limits.into_iter().map(Some));
    let rate = median(runs.iter().map(|run| Some(f64::from(run.rows_uploaded) / run.elapsed_s)));
    let ratio = rate.zip(copy).map(|(rate, copy)| rate / copy);
    let cpu = median(runs.iter().map(|run| Some(run.cpu_s? * 1e6 / f64::from(run.rows_uploaded))));
    let peak = median(runs.iter().map(|run| run.peak_rss_mib));
    let batches = median(runs.iter().map(|run| Some(f64::from(run.batches))));
    if json {
        return line(serde_json::json!({
            "rows": rows, "entities": entities, "runs": repetitions, "server_version": version,
            "fsync": fsync, "synchronous_commit": commit, "copy_rows_per_s": copy, "connector_rows_per_s": rate, "ratio": ratio,
            "cpu_s_per_million_rows": cpu, "peak_rss_mib": peak, "batches": batches
        }));
    }
    line(format_args!(
        "{rows} rows of {entities} entities, medians of {repetitions} runs\n\
         PostgreSQL {version}, fsync {fsync}, synchronous_commit {commit}\n"
    ));
    for (label, figure, decimals, unit) in [
        ("binary COPY to nowhere", copy, 0, "rows/s"),
        ("elven-sync run", rate, 0, "rows/s"),
        ("ratio", ratio, 3, ""),
        ("CPU of the connector", cpu, 2, "s per million rows"),
        ("peak memory", peak, 1, "MiB resident"),
        ("batches", batches, 0, ""),
    ] {
        let figure = figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.decimals$}"));
        line(format!("{label:<24}{figure:>10} {unit}").trim_end());
    }
}
