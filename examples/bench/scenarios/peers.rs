//! The same upload without a journal, by other programs. A program is left out where its dependencies are missing.

use std::path::{Path, PathBuf};

use anyhow::ensure;

use super::{Run, environment};
use crate::Bench;
use crate::ledgers::Ledger;
use crate::receiver::{Options, Receiver};

const NAME: &str = "peers";

/// Its name, its script, and a command that shows whether it can run.
const PYTHON: [(&str, &str, &str); 2] = [
    ("Python: cursor, orjson, 8 in flight", "cursor_orjson.py", "import psycopg, orjson, aiohttp"),
    (
        "dlt: custom destination",
        "dlt_destination.py",
        "import dlt.sources.sql_database, pyarrow, psycopg, orjson, requests",
    ),
];
const NODE: (&str, &str, &str) = (
    "Node: query stream, undici, 8 in flight",
    "query_stream.cjs",
    "for (const name of ['pg', 'pg-query-stream', 'undici']) require(name)",
);

struct Peer {
    name: &'static str,
    program: PathBuf,
    script: PathBuf,
    check: [String; 2],
}

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/bench/peers");
    let python = bench.arguments.python.clone().unwrap_or_else(|| "python3".into());
    let mut peers: Vec<Peer> = PYTHON
        .into_iter()
        .map(|(name, script, check)| Peer {
            name,
            program: python.clone(),
            script: scripts.join(script),
            check: ["-c".to_owned(), check.to_owned()],
        })
        .collect();
    let (name, script, check) = NODE;
    peers.push(Peer {
        name,
        program: "node".into(),
        script: scripts.join(script),
        check: ["-e".to_owned(), check.to_owned()],
    });
    let ledger = bench.ledgers.take(bench.arguments.rows, bench.arguments.entities).await?;
    let mut receiver = Receiver::start(&Options::default()).await?;
    let modules = bench.arguments.node.as_ref().map(|folder| folder.join("node_modules"));
    for peer in peers {
        let mut variables = environment(&ledger.url, &receiver);
        if let Some(modules) = &modules {
            variables.push(("NODE_PATH".to_owned(), modules.display().to_string()));
        }
        if !is_there(&peer, &variables).await {
            bench.report.note(format!("{}: left out, `{}` does not work here", peer.name, peer.check[1]));
            continue;
        }
        let runs = match repeat(bench, &peer, &ledger, &mut receiver, &variables).await {
            Ok(runs) => runs,
            Err(problem) => {
                bench.report.note(format!("{}: {problem:#}", peer.name));
                continue;
            }
        };
        let report = &mut bench.report;
        report.add(NAME, peer.name, "rows/s", None, runs.iter().map(|run| Some(run.rate())));
        let unit = "s per million rows";
        report.add(NAME, format!("{}: CPU", peer.name), unit, None, runs.iter().map(|run| Some(run.cpu())));
        let server = runs.iter().map(|run| run.server.cpu_s.map(|cpu| cpu * 1e6 / run.rows()));
        report.add(NAME, format!("{}: CPU of the server", peer.name), unit, None, server);
        report.add(
            NAME,
            format!("{}: peak memory", peer.name),
            "MiB",
            None,
            runs.iter().map(|run| Some(run.taken.peak_rss_mib)),
        );
    }
    bench.ledgers.give_back(ledger);
    Ok(())
}

async fn repeat(
    bench: &mut Bench,
    peer: &Peer,
    ledger: &Ledger,
    receiver: &mut Receiver,
    variables: &[(String, String)],
) -> anyhow::Result<Vec<Run>> {
    let mut runs = Vec::new();
    for _ in 0..bench.arguments.runs {
        let run = bench.run(ledger, receiver, &[&peer.program, &peer.script], variables).await?;
        let (rows, arrived) = (ledger.rows, run.arrived.records);
        ensure!(arrived == u64::from(rows), "of {rows} records {arrived} arrived");
        runs.push(run);
    }
    Ok(runs)
}

async fn is_there(peer: &Peer, environment: &[(String, String)]) -> bool {
    let checked = tokio::process::Command::new(&peer.program)
        .args(&peer.check)
        .envs(environment.iter().cloned())
        .output()
        .await;
    checked.is_ok_and(|output| output.status.success())
}
