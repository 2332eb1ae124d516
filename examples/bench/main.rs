//! The benchmark: whole runs, journal included, beside the limits of the database and of the wire, measured in
//! one go.
//!
//! | file | what it does |
//! |---|---|
//! | `ledgers` | scratch databases, seeded, vacuumed and checkpointed; dropped at the end |
//! | `receiver` | takes what is sent, counts it, and does nothing else; a process of its own |
//! | `known` | the names that the receiver knows; it refuses bodies with another one |
//! | `process` | runs a program, by default `elven-sync run` as it is shipped, and says what it took |
//! | `server` | what the server did meanwhile: CPU, transactions, fsyncs, WAL |
//! | `limits` | the same rows copied to nowhere; bodies made beforehand sent by the same client |
//! | `proxy` | counts the statements that go through it |
//! | `scenarios` | what is measured, and the targets |
//! | `report` | the table, and the same as JSON with every single run |
//!
//! Each run of the connector starts from a checkpoint. Records that arrived, records that the connector
//! says it sent and rows in the ledger have to be as many, or the run counts as failed.
//!
//! The role needs to be one that may create databases and checkpoint. What the server took is read from `/proc`,
//! and missing when it is on another machine or not on Linux. `ELVEN_SYNC_...` settings can be given in the
//! environment; a configuration file is not read.

#![expect(clippy::float_arithmetic, reason = "rates and medians; no amount is among them")]

mod known;
mod ledgers;
mod limits;
mod process;
mod proxy;
mod receiver;
mod report;
mod scenarios;
mod server;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Parser;
use elven_sync::config::{Environment, Flags, Settings};
use elven_sync::output;

use ledgers::Ledgers;
use report::Report;
use scenarios::Scenario;
use server::Server;

/// The speed, the cost and the memory of `elven-sync run`, beside the limits of database and wire
#[derive(Debug, Parser)]
#[command(max_term_width = 100)]
struct Arguments {
    /// Only these scenarios; all but the peers when it is not said
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,...")]
    only: Vec<Scenario>,
    /// Rows in the ledger
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// Entities that they are spread over
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    entities: u32,
    /// Entities without news, of the scenario `idle`
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..))]
    idle_entities: u32,
    /// Repetitions, of which the medians are shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Round trip of the scenario `latency`, in milliseconds
    #[arg(long, default_value_t = 50, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    latency: u32,
    /// Also 10,000,000 rows in `memory` and `curve`: some minutes and 10 GB more
    #[arg(long)]
    large: bool,
    /// Replace the ledger's index by one that holds all that a page needs (see docs/ledgers.md)
    #[arg(long)]
    covering: bool,
    /// Write all figures as JSON, to a file beside the table, or instead of it to stdout
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// The connector; else the `elven-sync` that `cargo build --release` made
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Python for the scenario `peers`, e.g. that of a virtual environment
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// Folder for the scenario `peers` in which `npm install pg pg-query-stream undici` was run
    #[arg(long, value_name = "DIR")]
    node: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// The other roles of this program, in processes that it starts itself.
#[derive(Debug, clap::Subcommand)]
enum Role {
    #[command(hide = true)]
    Receiver(receiver::Options),
    #[command(hide = true)]
    Measure(process::Options),
}

/// The values that the scenarios share.
struct Bench {
    arguments: Arguments,
    connector: PathBuf,
    server: Server,
    ledgers: Ledgers,
    report: Report,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match &arguments.role {
        Some(Role::Receiver(options)) => receiver::serve(options),
        Some(Role::Measure(options)) => process::measure(options),
        None => conduct(arguments),
    }
}

#[tokio::main]
async fn conduct(arguments: Arguments) -> anyhow::Result<()> {
    output::start_log(output::LogOptions {
        levels: Some("warn,sqlx=error,bench=info"),
        ..output::LogOptions::default()
    });
    let environment = Environment::capture();
    let url = environment.get("DATABASE_URL").context("set DATABASE_URL, or `make bench`")?;
    let connector = match &arguments.binary {
        Some(binary) => binary.clone(),
        None => shipped()?,
    };
    ensure!(
        connector.exists(),
        "there is no {}; hint: `cargo build --release`, or `make bench`",
        connector.display()
    );
    let server = Server::connect(url).await.context("the database cannot be reached")?;
    let flags = Flags { config: Some("/dev/null".into()), ..Flags::default() };
    let settings = Settings::load(&flags, environment.clone())?;
    let report = Report::new(&server.facts(), &settings.sync, &arguments);
    let ledgers = Ledgers::new(url, arguments.covering)?;
    let mut bench = Bench { arguments, connector, server, ledgers, report };
    let measured = tokio::select! {
        measured = bench.measure() => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let dropped = bench.ledgers.drop_all().await;
    bench.report.print(bench.arguments.json.as_deref())?;
    measured.and(dropped)
}

/// Returns the program of the release build: `target/release/elven-sync` for `target/release/examples/bench`.
fn shipped() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    let profile = this.parent().and_then(|examples| examples.parent());
    Ok(profile.context("this program has no folder")?.join("elven-sync"))
}

impl Bench {
    /// Executes all requested scenarios. A failure is noted, and the next scenario begins.
    async fn measure(&mut self) -> anyhow::Result<()> {
        let mut failed = Vec::new();
        for scenario in Scenario::selected(&self.arguments.only) {
            tracing::info!("{scenario}");
            if let Err(problem) = scenario.measure(self).await {
                tracing::error!("{scenario}: {problem:#}");
                failed.push(scenario.to_string());
            }
            self.ledgers.drop_unlike(self.arguments.rows).await?;
        }
        ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
        Ok(())
    }
}
