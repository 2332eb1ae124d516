//! All rows over a network round trip: 8 requests in flight, distributed in several ways.

use super::entities_of;
use crate::Bench;
use crate::limits::Replay;
use crate::receiver::{Options, Receiver};
use crate::report::Target::AtLeast;

const NAME: &str = "latency";
const IN_FLIGHT: u32 = 8;
const RECORDS_PER_REQUEST: f64 = 1000.0;
const RATIO: f64 = 0.97;

/// Number of entities in the ledger, of entities at once, and of requests of each.
const WAYS: [(u32, u32, u32); 3] = [(1, 1, 8), (8, 2, 4), (8, 8, 1)];

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let (rows, latency) = (bench.arguments.rows, bench.arguments.latency);
    let limit = f64::from(IN_FLIGHT) * RECORDS_PER_REQUEST * 1e3 / f64::from(latency);
    let mut receiver = Receiver::start(&Options { latency, ..Options::default() }).await?;
    let replay = Replay::new(&receiver.url, IN_FLIGHT)?;
    bench.report.add(NAME, format!("limit: 8 in flight, {latency} ms"), "rows/s", None, [Some(limit)]);
    let mut replayed = Vec::new();
    for _ in 0..bench.arguments.runs {
        replayed.push(replay.send(rows).await?);
    }
    bench.report.add(NAME, "bodies replayed", "rows/s", None, replayed.iter().copied().map(Some));
    bench.report.add(
        NAME,
        "bodies replayed: ratio to the limit",
        "",
        None,
        replayed.iter().map(|rate| Some(rate / limit)),
    );
    for (entities, at_once, in_flight) in WAYS {
        let ledger = bench.ledgers.take(rows, entities).await?;
        let settings = [
            ("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", at_once),
            ("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", in_flight),
        ];
        let mut runs = Vec::new();
        for _ in 0..bench.arguments.runs {
            ledger.reset().await?;
            runs.push(bench.sync(&ledger, &mut receiver, rows, &settings).await?);
        }
        bench.ledgers.give_back(ledger);
        let way = format!("{}, {at_once} at once, {in_flight} in flight each", entities_of(entities));
        let rates = runs.iter().map(|run| Some(run.rate()));
        bench.report.add(NAME, way.clone(), "rows/s", None, rates);
        let ratios = runs.iter().map(|run| Some(run.rate() / limit));
        bench.report.add(NAME, format!("{way}: ratio to the limit"), "", Some(AtLeast(RATIO)), ratios);
        let cpu = runs.iter().map(|run| Some(run.cpu()));
        bench.report.add(NAME, format!("{way}: CPU"), "s per million rows", None, cpu);
    }
    Ok(())
}
