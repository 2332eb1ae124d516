//! The growth of the cost: linear in new rows, constant in existing rows, bounded in entities.

use super::Run;
use super::memory::LARGE_ROWS;
use crate::Bench;
use crate::receiver::{Options, Receiver};
use crate::report::Target::{AtLeast, AtMost};
use crate::report::median;

const NAME: &str = "curve";
const NEW_ROWS: u32 = 1000;
const MANY_ENTITIES: u32 = 1000;
/// Maximum time of a run over new rows behind the most old rows, relative to the fewest old rows. A constant cost is
/// 1; the rest is the noise of runs that are this short.
const FLAT: f64 = 1.25;
/// Maximum cost of a row among the most rows, relative to a tenth or less of them.
const LINEAR: f64 = 1.1;

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let entities = bench.arguments.entities;
    let mut sizes = vec![10_000, 100_000];
    sizes.retain(|rows| *rows < bench.arguments.rows);
    sizes.push(bench.arguments.rows);
    if bench.arguments.large {
        sizes.push(LARGE_ROWS);
    }
    let mut receiver = Receiver::start(&Options::default()).await?;
    let (mut costs, mut behind) = (Vec::new(), Vec::new());
    for rows in sizes.iter().copied() {
        let mut ledger = bench.ledgers.take(rows, entities).await?;
        let runs = full(bench, &ledger, &mut receiver).await?;
        let cpu: Vec<_> = runs.iter().map(|run| Some(run.cpu())).collect();
        costs.push(median(&cpu));
        let elapsed = runs.iter().map(|run| Some(run.elapsed_ms()));
        bench.report.add(NAME, format!("{rows} rows"), "ms", None, elapsed);
        let rates = runs.iter().map(|run| Some(run.rate()));
        bench.report.add(NAME, format!("{rows} rows: rate"), "rows/s", None, rates);
        bench.report.add(NAME, format!("{rows} rows: CPU"), "s per million rows", None, cpu);
        ledger.settle().await?;
        let mut few = Vec::new();
        for _ in 0..bench.arguments.runs {
            ledger.add(NEW_ROWS).await?;
            few.push(bench.sync(&ledger, &mut receiver, NEW_ROWS, &[]).await?);
        }
        bench.ledgers.drop(ledger).await?;
        let name = format!("{NEW_ROWS} new rows behind {rows}");
        let elapsed: Vec<_> = few.iter().map(|run| Some(run.elapsed_ms())).collect();
        behind.push(median(&elapsed));
        bench.report.add(NAME, name, "ms", None, elapsed);
    }
    // The smallest size measures the start of a process more than rows.
    let linear = [ratio(costs.get(1..).unwrap_or_default())];
    bench.report.add(NAME, "CPU per row: most rows, to fewer", "", Some(AtMost(LINEAR)), linear);
    let flat = [ratio(&behind)];
    bench.report.add(NAME, "new rows: behind the most, to the fewest", "", Some(AtMost(FLAT)), flat);
    many_entities(bench, &mut receiver).await
}

/// Returns the ratio of the last to the first.
fn ratio(medians: &[Option<f64>]) -> Option<f64> {
    let (first, last) = ((*medians.first()?)?, (*medians.last()?)?);
    Some(last / first)
}

async fn full(
    bench: &mut Bench,
    ledger: &crate::ledgers::Ledger,
    receiver: &mut Receiver,
) -> anyhow::Result<Vec<Run>> {
    let mut runs = Vec::new();
    for _ in 0..bench.arguments.runs {
        ledger.reset().await?;
        runs.push(bench.sync(ledger, receiver, ledger.rows, &[]).await?);
    }
    Ok(runs)
}

/// In turns, so that other load of the machine affects both alike.
async fn many_entities(bench: &mut Bench, receiver: &mut Receiver) -> anyhow::Result<()> {
    let rows = bench.arguments.rows;
    let few = bench.ledgers.take(rows, bench.arguments.entities).await?;
    let many = bench.ledgers.take(rows, MANY_ENTITIES).await?;
    let (mut rates, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..bench.arguments.runs {
        few.reset().await?;
        many.reset().await?;
        let few = bench.sync(&few, receiver, rows, &[]).await?;
        let many = bench.sync(&many, receiver, rows, &[]).await?;
        rates.push(Some(many.rate()));
        ratios.push(Some(many.rate() / few.rate()));
    }
    bench.ledgers.give_back(few);
    bench.ledgers.give_back(many);
    bench.report.add(NAME, format!("{MANY_ENTITIES} entities, row by row"), "rows/s", None, rates);
    bench.report.add(NAME, "ratio to few entities, in turns", "", Some(AtLeast(0.5)), ratios);
    Ok(())
}
