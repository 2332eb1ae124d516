//! Runs with no new row, or with a single one: from the start of the process to its end.

use super::Run;
use crate::Bench;
use crate::ledgers::Ledger;
use crate::proxy::{Asked, Proxy};
use crate::receiver::{Options, Receiver};
use crate::report::Target::{self, AtMost};

const IDLE: &str = "idle";
const ONE_ROW: &str = "one-row";
const ROWS_PER_ENTITY: u32 = 3;
/// The ledger to which one row is added.
const OLD_ROWS: u32 = 10_000;
/// Small runs are short, so more of them are measured.
const RUNS_FACTOR: u32 = 3;

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let mut receiver = Receiver::start(&Options::default()).await?;
    let entities = bench.arguments.idle_entities;
    let mut ledger = up_to_date(bench, &mut receiver, entities * ROWS_PER_ENTITY, entities).await?;
    let runs = repeat(bench, &mut ledger, &mut receiver, 0).await?;
    let asked = counted(bench, &mut ledger, &mut receiver, 0).await?;
    bench.ledgers.drop(ledger).await?;
    let name = format!("{entities} entities without news");
    report(bench, IDLE, &name, Some(AtMost(1000.0)), &runs);
    let thousands = f64::from(entities) / 1e3;
    let per_thousand = [Some(f64::from(asked.statements) / thousands)];
    bench.report.add(IDLE, "statements", "per 1000 entities", Some(AtMost(5.0)), per_thousand);
    report_asked(bench, IDLE, asked);

    let entities = bench.arguments.entities;
    let mut ledger = up_to_date(bench, &mut receiver, OLD_ROWS, entities).await?;
    let nothing = repeat(bench, &mut ledger, &mut receiver, 0).await?;
    let one = repeat(bench, &mut ledger, &mut receiver, 1).await?;
    let asked = counted(bench, &mut ledger, &mut receiver, 1).await?;
    bench.ledgers.drop(ledger).await?;
    report(bench, ONE_ROW, "no new row", None, &nothing);
    report(bench, ONE_ROW, "one new row", Some(AtMost(50.0)), &one);
    report_asked(bench, ONE_ROW, asked);
    Ok(())
}

/// A ledger whose rows are all uploaded.
async fn up_to_date(
    bench: &mut Bench,
    receiver: &mut Receiver,
    rows: u32,
    entities: u32,
) -> anyhow::Result<Ledger> {
    let ledger = bench.ledgers.take(rows, entities).await?;
    ledger.reset().await?;
    bench.sync(&ledger, receiver, rows, &[]).await?;
    ledger.settle().await?;
    Ok(ledger)
}

/// Executes runs, each over this many new rows.
async fn repeat(
    bench: &mut Bench,
    ledger: &mut Ledger,
    receiver: &mut Receiver,
    new_rows: u32,
) -> anyhow::Result<Vec<Run>> {
    let mut runs = Vec::new();
    for _ in 0..bench.arguments.runs * RUNS_FACTOR {
        ledger.add(new_rows).await?;
        runs.push(bench.sync(ledger, receiver, new_rows, &[]).await?);
    }
    Ok(runs)
}

/// Executes the runs through a proxy that counts, which makes them slower.
async fn counted(
    bench: &mut Bench,
    ledger: &mut Ledger,
    receiver: &mut Receiver,
    new_rows: u32,
) -> anyhow::Result<Asked> {
    ledger.add(new_rows).await?;
    let proxy = Proxy::start(&ledger.url).await?;
    let direct = std::mem::replace(&mut ledger.url, proxy.url.clone());
    let run = bench.sync(ledger, receiver, new_rows, &[]).await;
    ledger.url = direct;
    run.map(|_| proxy.asked())
}

fn report(bench: &mut Bench, scenario: &'static str, name: &str, target: Option<Target>, runs: &[Run]) {
    let elapsed = runs.iter().map(|run| Some(run.elapsed_ms()));
    bench.report.add(scenario, name, "ms from start to exit", target, elapsed);
    let cpu = runs.iter().map(|run| Some(run.taken.cpu_s * 1e3));
    bench.report.add(scenario, format!("{name}: CPU"), "ms", None, cpu);
    let peak = runs.iter().map(|run| Some(run.taken.peak_rss_mib));
    bench.report.add(scenario, format!("{name}: peak memory"), "MiB", None, peak);
}

fn report_asked(bench: &mut Bench, scenario: &'static str, asked: Asked) {
    for (name, count) in [
        ("statements in all", asked.statements),
        ("of these begin and commit", asked.brackets),
        ("round trips to the server", asked.round_trips),
        ("connections", asked.connections),
    ] {
        bench.report.add(scenario, name, "", None, [Some(f64::from(count))]);
    }
}
