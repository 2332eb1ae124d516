//! Random faults of all kinds at once, drawn from a seed. Every row is processed in the end.
//!
//! `ELVEN_FAULT_SEED=17` repeats a seed, `ELVEN_FAULT_ROWS=500000` takes that many rows.

use std::collections::{BTreeMap, BTreeSet};

use elven_sync::journal::RunStatus;
use elven_sync::sandbox::{Credential, Options, Sandbox};
use sqlx::PgPool;

use super::{imports, scene};
use crate::support::{KEY, SECRET, SOURCE, eventually, fault_rules, variable};

const ROWS: i64 = 50_000;

/// About three of ten requests get one of these faults.
const FAULTS: [&str; 12] = [
    // First, so that refused records are never kept.
    "reject:account=a13",
    "reject:account=a14",
    "reject:account=a77",
    "slow=15ms@5%",
    "throttle@5%",
    "unavailable=0s@3%",
    "answer-lost@5%",
    "cut-before@4%",
    "html-200@3%",
    "html-502@2%",
    "error-500@4%",
    "error-500-kept@4%",
];

#[sqlx::test(migrations = false)]
async fn random_faults_leave_each_row_uploaded_or_set_aside(pool: PgPool) {
    let mut scene = scene(pool).await;
    let seed = variable("ELVEN_FAULT_SEED").unwrap_or_else(|| fastrand::i64(0..1_000_000));
    let rows = variable("ELVEN_FAULT_ROWS").unwrap_or(ROWS);
    println!("{rows} rows; to repeat it: ELVEN_FAULT_SEED={seed}");
    scene.sandbox = Sandbox::start(Options {
        credentials: vec![Credential::new("default", KEY, SECRET)],
        rules: fault_rules(&FAULTS),
        seed: seed.unsigned_abs(),
        keep_records_max: usize::MAX,
        sources: [SOURCE.to_owned()].into(),
        ..Options::default()
    })
    .await
    .unwrap();
    scene.set("ELVEN_API_URL", &scene.sandbox.url());
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "100");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "2");
    // An account has a row for each of ten seconds, and some rows share it with another row.
    sqlx::query(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select 'acme', 'a' || n / 10, 'BTC', '2024-01-01Z'::timestamptz + (n % 10 - (n % 50 = 7)::int) * interval '1s', n
           from generate_series(0, $1 - 1) n",
    )
    .bind(rows)
    .execute(&scene.pool)
    .await
    .unwrap();
    let mut runs = 0;
    let mut killed = 0;
    loop {
        runs += 1;
        assert!(runs < 300, "it does not come to its end");
        if runs % 4 == 2 {
            // Killed at a random point, some imports later.
            let enough = imports(&scene).len() + 7;
            let mut child = scene.command(&["run"]).spawn().unwrap();
            eventually("it is some batches further, or at its end", async || {
                imports(&scene).len() >= enough
                    || scene
                        .text("select count(*)::text from elven_sync.sync_runs where status = 'running'")
                        .await
                        == "0"
            })
            .await;
            child.kill().await.unwrap();
            killed += 1;
        } else if matches!(scene.run().await.status, RunStatus::Succeeded | RunStatus::Incomplete) {
            let open = "select count(*)::text from elven_sync.sync_passes where finished_at is null";
            if scene.text(open).await == "0"
                && scene.text("select pending_rows::text from elven_sync.sync_state").await == "0"
            {
                break;
            }
        }
    }
    println!("{runs} runs, {killed} of them killed, {} imports", imports(&scene).len());

    // Each row is accepted, superseded by an accepted row, or set aside.
    let leaves = "select concat_ws(' ', count(*), count(distinct id)) from elven_sync.sync_batches b, elven_sync.batch_row_ids(batch_id) id
                   where b.status <> 'split'";
    assert_eq!(scene.text(leaves).await, format!("{rows} {rows}"), "each row is in one batch");
    let states = "select string_agg(distinct status, ',' order by status) from elven_sync.sync_batches";
    assert_eq!(scene.text(states).await, "accepted,rejected,split");
    let counted = "select (sum(row_count) + sum(rows_rejected) + sum(rows_superseded))::text from elven_sync.sync_batches
                    where status <> 'split'";
    assert_eq!(scene.text(counted).await, rows.to_string());
    let sums = "select concat_ws(' ', (select sum(row_count) from elven_sync.sync_batches where status = 'accepted'),
                                      (select sum(rows_uploaded) from elven_sync.sync_state),
                                      (select sum(rows_uploaded) from elven_sync.sync_runs))";
    let sums = scene.text(sums).await;
    assert!(sums.split(' ').all(|sum| sums.starts_with(sum)), "uploaded, by batches, state and runs: {sums}");
    let refused = "select string_agg(distinct record->>'entityAccountId', ',') || ' ' || count(distinct id)
                     from elven_sync.sync_errors, elven_sync.error_row_ids(error_id) id
                    where kind in ('rejected_row', 'unknown_account')";
    assert_eq!(
        scene.text(refused).await,
        "a13,a14,a77 30",
        "all rows of these accounts, also those that lost to a refused one"
    );

    // A record that arrived twice belongs to an ambiguous batch, or to a part of one.
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for record in scene.sandbox.received() {
        *times.entry(record.balance).or_default() += 1;
    }
    let ambiguous: Vec<String> = sqlx::query_scalar(
        "select (id::bigint - 1)::text from elven_sync.sync_batches b, elven_sync.batch_row_ids(b.batch_id) id where b.ambiguous",
    )
    .fetch_all(&scene.pool)
    .await
    .unwrap();
    let ambiguous: BTreeSet<String> = ambiguous.into_iter().collect();
    let unexplained: Vec<&String> = times
        .iter()
        .filter(|(row, times)| **times > 1 && !ambiguous.contains(*row))
        .map(|(row, _)| row)
        .collect();
    assert_eq!(unexplained, Vec::<&String>::new());

    // The last value of each account, currency and second is that of the ledger.
    let wanted: Vec<String> = sqlx::query_scalar(
        "select distinct on (entity_account_id, captured_at) concat_ws(' ', entity_account_id, extract(second from captured_at)::int, balance)
           from ledger.balance_snapshots where entity_account_id not in ('a13', 'a14', 'a77')
          order by entity_account_id, captured_at, change_xid desc, id desc",
    )
    .fetch_all(&scene.pool)
    .await
    .unwrap();
    let last: BTreeMap<(String, String), String> = scene
        .sandbox
        .received()
        .into_iter()
        .map(|record| ((record.entity_account_id, record.datetime[18..].to_owned()), record.balance))
        .collect();
    let last: BTreeSet<String> = last
        .into_iter()
        .map(|((account, second), balance)| format!("{account} {second} {balance}"))
        .collect();
    let wanted: BTreeSet<String> = wanted.into_iter().collect();
    assert_eq!(last.symmetric_difference(&wanted).next(), None);
}
