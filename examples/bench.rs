//! The benchmark: a whole run, journal included, beside the database's own limit, in one go.
//!
//! `make bench` seeds a scratch database, reads it once by binary `COPY` to nowhere (the limit), and lets
//! the connector upload it to a receiver in a process of its own. CPU and memory are the connector's
//! alone, read from `/proc` (Linux; elsewhere they are missing).

#![allow(
    clippy::print_stdout,
    clippy::float_arithmetic,
    reason = "a benchmark prints ratios; no amount is in them"
)]
#![allow(clippy::cast_precision_loss, reason = "a figure with three digits")]

use std::process::Stdio;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use elven_sync::config::{Environment, Flags, Settings};
use elven_sync::journal;
use elven_sync::sandbox::{Credential, Options, Sandbox};
use elven_sync::sync::Worker;
use futures_util::TryStreamExt;
use sqlx::postgres::PgPoolCopyExt;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::watch;

#[derive(Parser)]
struct Arguments {
    /// Rows in the ledger
    #[arg(long, default_value_t = 1_000_000)]
    rows: u32,
    /// Entities that they are spread over
    #[arg(long, default_value_t = 8)]
    entities: u32,
    /// Repetitions; medians are printed
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// For machines
    #[arg(long)]
    json: bool,
    /// Be the receiver
    #[arg(long, hide = true)]
    receiver: bool,
    /// Be the connector
    #[arg(long, hide = true)]
    connector: bool,
}

/// What one run of the connector took.
struct Taken {
    rows: f64,
    seconds: f64,
    cpu_seconds: f64,
    peak_mb: f64,
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
    let server = Environment::capture().get("DATABASE_URL").context("DATABASE_URL is not set")?.to_owned();
    let name = format!("elven_sync_bench_{}", std::process::id());
    let mut admin = PgConnection::connect(&server).await?;
    admin.execute(AssertSqlSafe(format!("create database {name}"))).await?;
    let mut url = url::Url::parse(&server)?;
    url.set_path(&name);
    let measured = measure(&arguments, url.as_str()).await;
    admin.execute(AssertSqlSafe(format!("drop database {name} with (force)"))).await?;
    measured
}

async fn measure(arguments: &Arguments, url: &str) -> anyhow::Result<()> {
    let pool = journal::connect(&url.to_owned().into(), 4).await?;
    seed(&pool, arguments).await?;
    let mut receiver = myself("--receiver")?.stdin(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(receiver.stdout.take().context("no receiver")?).lines();
    let api_url = lines.next_line().await?.context("the receiver did not start")?;
    let (mut copies, mut runs) = (Vec::new(), Vec::new());
    for _ in 0..arguments.runs.max(1) {
        copies.push(copy_to_nowhere(&pool).await?);
        pool.execute(
            "truncate elven_sync.sync_batches, elven_sync.sync_errors, elven_sync.sync_passes, elven_sync.sync_runs cascade;
             update elven_sync.sync_state set settled = null; checkpoint",
        )
        .await?;
        runs.push(upload(url, &api_url).await?);
    }
    drop(receiver.stdin.take());
    receiver.wait().await?;
    let durable: String = sqlx::query_scalar(
        "select current_setting('fsync') || ', ' || current_setting('synchronous_commit')",
    )
    .fetch_one(&pool)
    .await?;
    pool.close().await;
    report(arguments, &durable, &copies, &runs);
    Ok(())
}

async fn seed(pool: &PgPool, arguments: &Arguments) -> anyhow::Result<()> {
    journal::migrate(pool).await?;
    journal::migrate_ledger(pool).await?;
    pool.execute(AssertSqlSafe(format!(
        "insert into elven_sync.entities (entity_id, timezone)
         select 'entity-' || n, (array['Europe/Zurich', 'America/New_York', 'Asia/Kathmandu', 'UTC'])[1 + n % 4]
           from generate_series(0, {entities} - 1) n;
         insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select 'entity-' || n % {entities},
                substr(md5((n % 1000)::text) || 'pXiFf', 1, 32) || '-' || 1000 + n % 1000,
                (array['BTC', 'ETH', 'USD'])[1 + n % 3],
                '2020-01-01Z'::timestamptz + n * interval '61 seconds',
                ((n * 7919::bigint) % 1000003 / 1000.0 + n * 0.000000000000000001)::numeric(38, 18)
           from generate_series(1, {rows}) n",
        entities = arguments.entities.max(1),
        rows = arguments.rows
    )))
    .await?;
    pool.execute("vacuum (analyze) ledger.balance_snapshots").await?;
    Ok(())
}

/// The limit: rows per second of the same columns by binary `COPY`, thrown away.
async fn copy_to_nowhere(pool: &PgPool) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut messages = pool
        .copy_out_raw(
            "copy (select change_xid, id, entity_account_id, currency, captured_at, balance
                     from ledger.balance_snapshots) to stdout (format binary)",
        )
        .await?;
    let mut rows = 0u32;
    while messages.try_next().await?.is_some() {
        rows += 1;
    }
    Ok(f64::from(rows) / begun.elapsed().as_secs_f64())
}

fn myself(role: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role).stdout(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}

async fn upload(url: &str, api_url: &str) -> anyhow::Result<Taken> {
    let mut connector = myself("--connector")?;
    connector.env("DATABASE_URL", url).env("ELVEN_API_URL", api_url);
    connector.env("ELVEN_API_KEY", "bench-key").env("ELVEN_API_SECRET", "bench-secret");
    let output = connector.output().await?;
    let figures: Vec<f64> =
        String::from_utf8(output.stdout)?.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [rows, seconds, cpu_seconds, peak_mb] = figures[..] else { anyhow::bail!("the connector failed") };
    Ok(Taken { rows, seconds, cpu_seconds, peak_mb })
}

/// The connector's process: one run, then its figures in a line.
async fn connect() -> anyhow::Result<()> {
    let begun = Instant::now();
    let settings = Settings::load(&Flags::default(), Environment::capture())?;
    let pool = journal::connect(settings.database_url()?, 10).await?;
    let (_running, stop) = watch::channel(false);
    let report = Worker::open(settings, pool, stop).await?.run(&[]).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let (cpu_seconds, peak_mb) = own_cost().unwrap_or((f64::NAN, f64::NAN));
    println!("{} {seconds} {cpu_seconds} {peak_mb}", report.counters.rows_uploaded);
    Ok(())
}

/// CPU seconds and peak memory in MB of this process, from `/proc` (manual page proc(5)).
fn own_cost() -> Option<(f64, f64)> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the name, which may have spaces: state is field 3; utime and stime are 14 and 15.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    let cpu_seconds = (ticks()? + ticks()?) / TICKS_PER_SECOND;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some((cpu_seconds, peak.trim().trim_end_matches(" kB").parse::<f64>().ok()? / 1024.0))
}

/// The receiver's process: checks signatures and counts records until its input ends.
async fn receive() -> anyhow::Result<()> {
    let credentials = vec![Credential::new("bench", "bench-key", "bench-secret")];
    let sandbox = Sandbox::start(Options { credentials, lax: true, ..Options::default() }).await?;
    println!("{}", sandbox.url());
    let mut input = tokio::io::stdin();
    while input.read(&mut [0; 64]).await? > 0 {}
    sandbox.stop().await;
    Ok(())
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn report(arguments: &Arguments, durable: &str, copies: &[f64], runs: &[Taken]) {
    let copy = median(copies.iter().copied());
    let rate = median(runs.iter().map(|run| run.rows / run.seconds));
    let cpu = median(runs.iter().map(|run| run.cpu_seconds / run.rows * 1e6));
    let peak = median(runs.iter().map(|run| run.peak_mb));
    if arguments.json {
        println!(
            "{}",
            serde_json::json!({ "rows": arguments.rows, "entities": arguments.entities, "copy_rows_per_second": copy,
                "rows_per_second": rate, "ratio": rate / copy, "cpu_seconds_per_million_rows": cpu,
                "peak_rss_mb": peak, "fsync, synchronous_commit": durable })
        );
        return;
    }
    println!(
        "{} rows, {} entities, medians of {}; fsync, synchronous_commit: {durable}\n\n\
         binary COPY to nowhere   {copy:>10.0} rows/s\n\
         elven-sync run           {rate:>10.0} rows/s   {:.2} of COPY\n\
         CPU of the connector     {cpu:>10.2} s per million rows\n\
         peak memory              {peak:>10.1} MB",
        arguments.rows,
        arguments.entities,
        runs.len(),
        rate / copy
    );
}
