//! The measurements, and the targets.

mod curve;
mod latency;
mod memory;
mod names;
mod peers;
mod proof;
mod small;
mod upload;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde_json::Value;
use url::Url;

use crate::Bench;
use crate::ledgers::Ledger;
use crate::limits::{KEY, SECRET};
use crate::process::{self, Taken};
use crate::receiver::{Arrived, Receiver};
use crate::server::Meter;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// All rows, as fast as it goes, beside the limits of database and wire
    Upload,
    /// All rows over a round trip, 8 requests in flight
    Latency,
    /// Peak memory by rows, by entities, and while the receiver stands still
    Memory,
    /// A run that finds nothing to do, and one that finds a single row
    Idle,
    /// Cost by rows, behind old rows, and by entities
    Curve,
    /// `verify`, a sample of the bodies and all of them, and `status --row`, over all rows
    Verify,
    /// Rows of an account that the API does not know: held, then mapped and delivered
    Names,
    /// The same upload by other programs; only when it is named
    Peers,
}

impl std::fmt::Display for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}

impl Scenario {
    /// Returns the requested scenarios, in the order of the list above.
    pub(crate) fn selected(only: &[Self]) -> Vec<Self> {
        let wanted = |scenario: &Self| match only {
            [] => *scenario != Self::Peers,
            only => only.contains(scenario),
        };
        Self::value_variants().iter().copied().filter(wanted).collect()
    }

    pub(crate) async fn measure(self, bench: &mut Bench) -> anyhow::Result<()> {
        match self {
            Self::Upload => upload::measure(bench).await,
            Self::Latency => latency::measure(bench).await,
            Self::Memory => memory::measure(bench).await,
            Self::Idle => small::measure(bench).await,
            Self::Curve => curve::measure(bench).await,
            Self::Verify => proof::measure(bench).await,
            Self::Names => names::measure(bench).await,
            Self::Peers => peers::measure(bench).await,
        }
    }
}

/// One run of a program, and the work of other processes for it.
struct Run {
    taken: Taken,
    server: Meter,
    arrived: Arrived,
}

impl Run {
    /// Rows per second.
    fn rate(&self) -> f64 {
        self.rows() / self.taken.elapsed_s
    }

    fn rows(&self) -> f64 {
        float(self.arrived.records)
    }

    /// Client CPU in seconds per million rows.
    fn cpu(&self) -> f64 {
        self.taken.cpu_s * 1e6 / self.rows()
    }

    fn elapsed_ms(&self) -> f64 {
        self.taken.elapsed_s * 1e3
    }
}

impl Bench {
    /// Executes one run of the connector, with settings over those of the environment. Asserts the number of rows
    /// that were sent and received.
    async fn sync(
        &mut self,
        ledger: &Ledger,
        receiver: &mut Receiver,
        rows: u32,
        settings: &[(&str, u32)],
    ) -> anyhow::Result<Run> {
        let mut environment = environment(&ledger.url, receiver);
        environment.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())));
        let command = self.connector_command();
        let command: Vec<&Path> = command.iter().map(AsRef::as_ref).collect();
        let run = self.run(ledger, receiver, &command, &environment).await?;
        let summary: Value = serde_json::from_str(&run.taken.output).context("the summary is not JSON")?;
        let (uploaded, arrived) = (&summary["rows_uploaded"], run.arrived.records);
        ensure!(
            *uploaded == rows && arrived == u64::from(rows),
            "{rows} rows waited, {uploaded} were uploaded, {arrived} arrived"
        );
        Ok(run)
    }

    fn connector_command(&self) -> [std::path::PathBuf; 3] {
        [self.connector.clone(), "run".into(), "--json".into()]
    }

    /// Executes one run of any program that uploads the ledger.
    async fn run(
        &mut self,
        ledger: &Ledger,
        receiver: &mut Receiver,
        command: &[&Path],
        environment: &[(String, String)],
    ) -> anyhow::Result<Run> {
        let (server, arrived) = (self.server.meter(&ledger.database).await?, receiver.arrived().await?);
        let taken = process::run(command, environment, None).await?;
        let after = receiver.arrived().await?;
        let arrived = Arrived {
            requests: after.requests - arrived.requests,
            records: after.records - arrived.records,
            cpu_s: after.cpu_s - arrived.cpu_s,
        };
        let server = self.server.meter(&ledger.database).await?.since(&server);
        Ok(Run { taken, server, arrived })
    }

    /// Returns the peak memory of a run that is killed after a while.
    async fn sync_killed(
        &self,
        ledger: &Ledger,
        receiver: &Receiver,
        after: Duration,
    ) -> anyhow::Result<Taken> {
        let command = self.connector_command();
        let command: Vec<&Path> = command.iter().map(AsRef::as_ref).collect();
        process::run(&command, &environment(&ledger.url, receiver), Some(after)).await
    }
}

fn environment(database: &Url, receiver: &Receiver) -> Vec<(String, String)> {
    [
        ("DATABASE_URL", database.as_str()),
        ("ELVEN_API_URL", &receiver.url),
        ("ELVEN_API_KEY", KEY),
        ("ELVEN_API_SECRET", SECRET),
        ("ELVEN_SYNC_CONFIG", "/dev/null"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

fn entities_of(count: u32) -> String {
    format!("{count} {}", if count == 1 { "entity" } else { "entities" })
}

#[expect(clippy::cast_precision_loss, reason = "counters are far below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}
