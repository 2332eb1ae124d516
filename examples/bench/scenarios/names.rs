//! Rows of an account that the API does not know: half of all rows is held, then the account is mapped, and the rows are
//! delivered. Each step beside a plain upload of as many rows.

use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{Run, environment};
use crate::Bench;
use crate::ledgers::Ledger;
use crate::receiver::{Options, Receiver};
use crate::report::Target::AtMost;

const NAME: &str = "names";
/// Times of a plain upload.
const TIMES_MAX: f64 = 3.0;
const LIMIT_MIB: f64 = 64.0;

/// Every second row is of one account.
const ONE_ACCOUNT: &str = "
    update ledger.balance_snapshots set entity_account_id = 'no-account-at-elven' where id % 2 = 0";
const ACCOUNTS: &str = "
    select string_agg(distinct entity_account_id, E'\\n') from ledger.balance_snapshots
     where entity_account_id <> 'no-account-at-elven'";
const MAP: &str = "
    insert into elven_sync.account_map (entity_id, ledger_account, entity_account_id)
    values ('entity-0', 'no-account-at-elven', 'new-at-elven')";

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let rows = bench.arguments.rows;
    let file = std::env::temp_dir().join(format!("elven-sync-bench-accounts-{}", std::process::id()));
    let options = Options { accounts: Some(file.clone()), ..Options::default() };
    let (mut held, mut delivered) = (Vec::new(), Vec::new());
    for _ in 0..bench.arguments.runs {
        let ledger = bench.ledgers.take(rows, 1).await?;
        sqlx::query(ONE_ACCOUNT).execute(&ledger.pool).await?;
        ledger.settle().await?;
        let accounts: String = sqlx::query_scalar(ACCOUNTS).fetch_one(&ledger.pool).await?;
        std::fs::write(&file, format!("{accounts}\nno-account-at-elven\nnew-at-elven\n"))?;
        let mut all = Receiver::start(&options).await?;
        let plain = upload(bench, &ledger, &mut all, rows).await?;
        ledger.reset().await?;
        std::fs::write(&file, format!("{accounts}\nnew-at-elven\n"))?;
        let mut some = Receiver::start(&options).await?;
        let half = rows / 2;
        held.push((plain.taken.elapsed_s, upload(bench, &ledger, &mut some, rows - half).await?));
        sqlx::query(MAP).execute(&ledger.pool).await?;
        ledger.settle().await?;
        let deliver = upload(bench, &ledger, &mut some, half).await?;
        delivered.push((plain.taken.elapsed_s / 2.0, deliver));
        bench.ledgers.drop(ledger).await?;
    }
    std::fs::remove_file(&file)?;
    let half = rows / 2;
    for (name, runs) in [
        (format!("{rows} rows, half of them held"), held),
        (format!("{half} held rows delivered"), delivered),
    ] {
        let elapsed = runs.iter().map(|(_, run)| Some(run.taken.elapsed_s));
        bench.report.add(NAME, &name, "s from start to exit", None, elapsed);
        let times = runs.iter().map(|(plain, run)| Some(run.taken.elapsed_s / plain));
        bench.report.add(
            NAME,
            format!("{name}: times of a plain upload"),
            "",
            Some(AtMost(TIMES_MAX)),
            times,
        );
        let memory = runs.iter().map(|(_, run)| Some(run.taken.peak_rss_mib));
        bench.report.add(NAME, format!("{name}: peak memory"), "MiB", Some(AtMost(LIMIT_MIB)), memory);
    }
    Ok(())
}

/// Executes one run of the connector, and asserts the number of records that were accepted.
async fn upload(
    bench: &mut Bench,
    ledger: &Ledger,
    receiver: &mut Receiver,
    rows: u32,
) -> anyhow::Result<Run> {
    let environment = environment(&ledger.url, receiver);
    let command = bench.connector_command();
    let command: Vec<&Path> = command.iter().map(AsRef::as_ref).collect();
    let run = bench.run(ledger, receiver, &command, &environment).await?;
    let summary: Value = serde_json::from_str(&run.taken.output).context("the summary is not JSON")?;
    let arrived = run.arrived.records;
    ensure!(arrived == u64::from(rows), "{arrived} of {rows} records were accepted: {summary}");
    Ok(run)
}
