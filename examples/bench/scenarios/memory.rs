//! Peak memory: the same for few rows and many, for one entity and a thousand, and with a receiver that reads
//! nothing.

use std::time::Duration;

use super::{Run, entities_of};
use crate::Bench;
use crate::receiver::{Options, Receiver};
use crate::report::Target::AtMost;

const NAME: &str = "memory";
const LIMIT_MIB: f64 = 64.0;
const FEW_ROWS: u32 = 100_000;
pub(super) const LARGE_ROWS: u32 = 10_000_000;
const MANY_ENTITIES: u32 = 1000;
/// Long enough to fill all buffers, and less than the request timeout of the connector.
const STALL: Duration = Duration::from_secs(10);

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let (rows, entities) = (bench.arguments.rows, bench.arguments.entities);
    let mut sizes = vec![(FEW_ROWS, entities), (rows, entities), (rows, 1), (rows, MANY_ENTITIES)];
    if bench.arguments.large {
        sizes.push((LARGE_ROWS, entities));
    }
    let mut receiver = Receiver::start(&Options::default()).await?;
    for (rows, entities) in sizes {
        let ledger = bench.ledgers.take(rows, entities).await?;
        ledger.reset().await?;
        let Run { taken, .. } = bench.sync(&ledger, &mut receiver, rows, &[]).await?;
        bench.ledgers.give_back(ledger);
        let name = format!("{rows} rows, {}", entities_of(entities));
        bench.report.add(NAME, name, "MiB", Some(AtMost(LIMIT_MIB)), [Some(taken.peak_rss_mib)]);
    }
    let stalled = Receiver::start(&Options { stalled: true, ..Options::default() }).await?;
    for entities in [1, entities] {
        let ledger = bench.ledgers.take(rows, entities).await?;
        ledger.reset().await?;
        let taken = bench.sync_killed(&ledger, &stalled, STALL).await?;
        // Its journal must not affect the next scenario.
        bench.ledgers.drop(ledger).await?;
        let name = format!("receiver stalled, {}", entities_of(entities));
        bench.report.add(NAME, name, "MiB", Some(AtMost(LIMIT_MIB)), [Some(taken.peak_rss_mib)]);
    }
    Ok(())
}
