//! The proof that no row was skipped, over all uploaded rows.

use std::path::Path;

use anyhow::ensure;
use serde_json::Value;

use super::environment;
use crate::Bench;
use crate::process;
use crate::receiver::{Options, Receiver};
use crate::report::Target::AtMost;

const NAME: &str = "verify";
/// Seconds for the rows of the benchmark.
const ELAPSED_MAX_S: f64 = 10.0;

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let (rows, entities) = (bench.arguments.rows, bench.arguments.entities);
    let mut receiver = Receiver::start(&Options::default()).await?;
    let ledger = bench.ledgers.take(rows, entities).await?;
    ledger.reset().await?;
    bench.sync(&ledger, &mut receiver, rows, &[]).await?;
    ledger.settle().await?;
    let environment = environment(&ledger.url, &receiver);
    for (name, arguments) in [
        ("a sample of the bodies", &["verify", "--json"][..]),
        ("all bodies", &["verify", "--deep", "--json"]),
        ("status --row", &["status", "--row", "1", "--json"]),
    ] {
        let command: Vec<&Path> =
            [bench.connector.as_path()].into_iter().chain(arguments.iter().map(Path::new)).collect();
        let (mut elapsed, mut cpu, mut memory) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..bench.arguments.runs {
            let taken = process::run(&command, &environment, None).await?;
            let report: Value = serde_json::from_str(&taken.output)?;
            let proven = report["entities"].as_array().into_iter().flatten();
            let proven: u64 = proven.filter_map(|entity| entity["rows_proven"].as_u64()).sum();
            ensure!(
                name == "status --row" || proven == u64::from(rows),
                "{proven} of {rows} rows are proven"
            );
            elapsed.push(Some(taken.elapsed_s));
            cpu.push(Some(taken.cpu_s));
            memory.push(Some(taken.peak_rss_mib));
        }
        let target = Some(AtMost(ELAPSED_MAX_S)).filter(|_| name != "status --row");
        bench.report.add(NAME, format!("{rows} rows, {name}"), "s from start to exit", target, elapsed);
        bench.report.add(NAME, format!("{name}: CPU"), "s", None, cpu);
        bench.report.add(NAME, format!("{name}: peak memory"), "MiB", None, memory);
    }
    bench.ledgers.drop(ledger).await
}
