//! The cost of `attach` for the writers of the ledger: column, trigger and index, one after another. A scratch
//! database has the same table five times: unchanged, with the column, with the trigger, as `attach` leaves it, and
//! with the index for backfills too. Each kind of write is timed on each table in turn, from empty, and the medians
//! are compared.

#![expect(clippy::float_arithmetic, reason = "ratios of times; no amount is among them")]

use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::Parser;
use elven_sync::config::{Environment, LedgerSettings};
use elven_sync::ledger::attach::{self, Wanted};
use elven_sync::output::line;
use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use url::Url;

/// The cost of column, trigger and index to writers of the ledger
#[derive(Parser)]
struct Arguments {
    /// Rows that are written each time
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// Repetitions, of which the medians are printed
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
}

const DATABASE: &str = "elven_sync_writer_cost";
/// The names of the tables, from unchanged to complete.
const STAGES: [&str; 5] = ["bare", "column", "trigger", "index", "backfill"];

/// The columns that are written, apart from those with generated values.
const COLUMNS: &str = "entity_id, entity_account_id, currency, captured_at, balance";

#[derive(Clone, Copy, PartialEq)]
enum Way {
    InsertSelect,
    Copy,
    SingleInserts,
    Update,
}

const WAYS: [(&str, Way); 4] = [
    ("INSERT ... SELECT", Way::InsertSelect),
    ("COPY", Way::Copy),
    ("INSERT of single rows", Way::SingleInserts),
    ("UPDATE", Way::Update),
];

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let environment = Environment::capture();
    let url =
        environment.get("DATABASE_URL").context("DATABASE_URL is not set; `make writer-cost` sets it")?;
    let mut admin = PgConnection::connect(url).await?;
    let drop = format!("drop database if exists {DATABASE} with (force)");
    admin.execute(AssertSqlSafe(drop.clone())).await?;
    admin.execute(AssertSqlSafe(format!("create database {DATABASE}"))).await?;
    let mut scratch = Url::parse(url)?;
    scratch.set_path(DATABASE);
    let measured = measure(scratch.as_str(), &arguments).await;
    admin.execute(AssertSqlSafe(drop)).await?;
    measured
}

async fn measure(url: &str, arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { rows, runs } = *arguments;
    let mut connection = PgConnection::connect(url).await?;
    let copied = prepare(url, &mut connection, rows).await?;
    line(format_args!("{rows} rows, medians of {runs}, µs a row, and in % of the bare table\n"));
    line(format_args!(
        "{:24}{:>14}{:>14}{:>14}{:>14}{:>14}",
        "", STAGES[0], STAGES[1], STAGES[2], STAGES[3], STAGES[4]
    ));
    for (name, way) in WAYS {
        let mut times = vec![Vec::new(); STAGES.len()];
        for run in 0..runs as usize {
            for turn in 0..STAGES.len() {
                // Each round begins with another table, so that none is always first.
                let stage = (run + turn) % STAGES.len();
                times[stage].push(time(&mut connection, STAGES[stage], way, &copied).await?);
            }
        }
        let medians: Vec<f64> = times
            .into_iter()
            .map(|mut times| {
                times.sort_unstable();
                times[times.len() / 2].as_secs_f64() * 1e6 / f64::from(rows)
            })
            .collect();
        let shown: Vec<String> = medians
            .iter()
            .map(|median| format!("{median:>8.2} {:>4.0}%", 100.0 * median / medians[0]))
            .collect();
        line(format_args!("{name:24}{}", shown.concat()));
    }
    Ok(())
}

/// Creates the source of the rows, and the table in each of its stages. Returns the rows in COPY format.
async fn prepare(url: &str, connection: &mut PgConnection, rows: u32) -> anyhow::Result<Bytes> {
    let source = format!(
        "create table source as
         select 'entity-' || n % 8 as entity_id, md5((n % 1000)::text) as entity_account_id, 'BTC' as currency,
                '2020-01-01Z'::timestamptz + n * interval '61 seconds' as captured_at, n * 1.25 as balance
           from generate_series(1, {rows}) n"
    );
    connection.execute(AssertSqlSafe(source)).await?;
    for stage in STAGES {
        let table = format!(
            "create table \"{stage}\" (id bigint generated always as identity primary key, entity_id text not null,
                 entity_account_id text not null, currency text not null, captured_at timestamptz not null,
                 balance numeric not null)"
        );
        connection.execute(AssertSqlSafe(table)).await?;
        let settings = LedgerSettings { table: format!("public.{stage}"), ..LedgerSettings::default() };
        let wanted = Wanted { lock_timeout: Duration::from_secs(2), backfill_index: stage == "backfill" };
        let plan = attach::plan(&PgPool::connect(url).await?.into(), &settings, &wanted).await?;
        for step in &plan.steps {
            let is_index = step.sql.contains("concurrently");
            if stage != "bare" && (!is_index || ["index", "backfill"].contains(&stage)) {
                attach::take(connection, step).await?;
            }
        }
    }
    connection.execute("drop trigger elven_sync_stamp_change_xid on \"column\"").await?;
    let chunks: Vec<Bytes> = connection.copy_out_raw("copy source to stdout").await?.try_collect().await?;
    Ok(chunks.concat().into())
}

/// Times a kind of write to a table that is empty before, or full for updates.
async fn time(
    connection: &mut PgConnection,
    table: &str,
    way: Way,
    copied: &Bytes,
) -> anyhow::Result<Duration> {
    let insert = format!("insert into \"{table}\" ({COLUMNS}) select * from source");
    connection.execute(AssertSqlSafe(format!("truncate \"{table}\""))).await?;
    if way == Way::Update {
        connection.execute(AssertSqlSafe(insert.clone())).await?;
    }
    connection.execute("checkpoint").await?;
    let begun = Instant::now();
    match way {
        Way::InsertSelect => {
            connection.execute(AssertSqlSafe(insert)).await?;
        }
        Way::SingleInserts => {
            let each = format!(
                "do $$ declare r record; begin
                     for r in select * from source loop
                         insert into \"{table}\" ({COLUMNS})
                         values (r.entity_id, r.entity_account_id, r.currency, r.captured_at, r.balance);
                     end loop; end $$"
            );
            connection.execute(AssertSqlSafe(each)).await?;
        }
        Way::Copy => {
            let mut copy =
                connection.copy_in_raw(&format!("copy \"{table}\" ({COLUMNS}) from stdin")).await?;
            copy.send(copied.clone()).await?;
            copy.finish().await?;
        }
        Way::Update => {
            let update = format!("update \"{table}\" set balance = balance + 1");
            connection.execute(AssertSqlSafe(update)).await?;
        }
    }
    Ok(begun.elapsed())
}
