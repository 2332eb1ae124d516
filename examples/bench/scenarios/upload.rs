//! All rows, no latency: the share of the limits of database and wire that the connector reaches.

use nix::sys::resource::UsageWho;

use super::{Run, float};
use crate::Bench;
use crate::ledgers::Ledger;
use crate::limits::{self, Replay};
use crate::process::cpu_s;
use crate::receiver::{Options, Receiver};
use crate::report::Target::{AtLeast, AtMost};

const NAME: &str = "upload";
const IN_FLIGHT: u32 = 8;
const LANES: usize = 8;

/// Rows per second, and the CPU of client and server in seconds per million rows.
struct Limit {
    rate: f64,
    client: f64,
    server: Option<f64>,
}

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let ledger = bench.ledgers.take(bench.arguments.rows, bench.arguments.entities).await?;
    let mut receiver = Receiver::start(&Options::default()).await?;
    let replay = Replay::new(&receiver.url, IN_FLIGHT)?;
    let mut limits: [(&str, Vec<Limit>); 4] = [
        ("binary COPY to nowhere", Vec::new()),
        ("pages to nowhere, 8 lanes", Vec::new()),
        ("bodies replayed, 8 in flight", Vec::new()),
        ("COPY and bodies at once", Vec::new()),
    ];
    let mut runs = Vec::new();
    for _ in 0..bench.arguments.runs {
        ledger.reset().await?;
        limits[1].1.push(limit(bench, &ledger, limits::pages(&ledger, LANES)).await?);
        limits[2].1.push(limit(bench, &ledger, replay.send(ledger.rows)).await?);
        limits[3].1.push(limit(bench, &ledger, replay.send_beside_copy(&ledger)).await?);
        // Right before the run that is compared with it, since the load of the machine changes all the time.
        limits[0].1.push(limit(bench, &ledger, limits::copy(&ledger)).await?);
        runs.push(bench.sync(&ledger, &mut receiver, ledger.rows, &[]).await?);
    }
    bench.ledgers.give_back(ledger);
    report_limits(bench, &limits);
    let copies: Vec<f64> = limits[0].1.iter().map(|limit| limit.rate).collect();
    report(bench, &copies, &runs);
    Ok(())
}

async fn limit(
    bench: &Bench,
    ledger: &Ledger,
    rate: impl Future<Output = anyhow::Result<f64>>,
) -> anyhow::Result<Limit> {
    let (client, server) = (cpu_s(UsageWho::RUSAGE_SELF)?, bench.server.cpu_s());
    let rate = rate.await?;
    let millions = f64::from(ledger.rows) / 1e6;
    Ok(Limit {
        rate,
        client: (cpu_s(UsageWho::RUSAGE_SELF)? - client) / millions,
        server: bench.server.cpu_s().zip(server).map(|(now, then)| (now - then) / millions),
    })
}

fn report_limits(bench: &mut Bench, limits: &[(&str, Vec<Limit>)]) {
    for (name, runs) in limits {
        bench.report.add(NAME, *name, "rows/s", None, runs.iter().map(|limit| Some(limit.rate)));
        let cpu = |part: &str| format!("{name}: CPU of the {part}");
        let unit = "s per million rows";
        bench.report.add(NAME, cpu("client"), unit, None, runs.iter().map(|limit| Some(limit.client)));
        bench.report.add(NAME, cpu("server"), unit, None, runs.iter().map(|limit| limit.server));
    }
}

fn report(bench: &mut Bench, copies: &[f64], runs: &[Run]) {
    let per_million = |seconds: f64, run: &Run| seconds * 1e6 / run.rows();
    let batches = |run: &Run| float(run.arrived.requests);
    let report = &mut bench.report;
    let ratios = runs.iter().zip(copies).map(|(run, copy)| Some(run.rate() / copy));
    report.add(NAME, "elven-sync run", "rows/s", None, runs.iter().map(|run| Some(run.rate())));
    report.add(NAME, "ratio to COPY", "", Some(AtLeast(0.6)), ratios);
    let unit = "s per million rows";
    let target = Some(AtMost(1.0));
    report.add(NAME, "CPU of the connector", unit, target, runs.iter().map(|run| Some(run.cpu())));
    let server = runs.iter().map(|run| run.server.cpu_s.map(|cpu| per_million(cpu, run)));
    report.add(NAME, "CPU of the server", unit, None, server);
    let receiver = runs.iter().map(|run| Some(per_million(run.arrived.cpu_s, run)));
    report.add(NAME, "CPU of the receiver", unit, None, receiver);
    let peak = runs.iter().map(|run| Some(run.taken.peak_rss_mib));
    report.add(NAME, "peak memory", "MiB", Some(AtMost(64.0)), peak);
    report.add(NAME, "batches", "", None, runs.iter().map(|run| Some(batches(run))));
    let signed = |count: i64| u64::try_from(count).map_or(0.0, float);
    let writes = runs.iter().map(|run| Some(signed(run.server.writes) / batches(run)));
    report.add(NAME, "durable commits", "per batch", Some(AtMost(2.0)), writes);
    let fsyncs = runs.iter().map(|run| run.server.fsyncs.map(|count| signed(count) / batches(run)));
    report.add(NAME, "fsyncs of WAL", "per batch", None, fsyncs);
    let all = runs.iter().map(|run| Some(signed(run.server.transactions) / batches(run)));
    report.add(NAME, "transactions", "per batch", None, all);
    let wal = runs.iter().map(|run| Some(signed(run.server.wal_bytes) / batches(run)));
    report.add(NAME, "WAL", "bytes per batch", None, wal);
}
