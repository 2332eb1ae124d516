//! Signatures, keys that may only import, and records that the API cannot answer.

mod import_only;
mod rotation;
mod signatures;
mod unanswered;

use elven_sync::journal::RunStatus;
use sqlx::PgPool;

use crate::support::{TestEnv, output_of};

/// One entity, and a connector with a minimal back-off.
async fn scene(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "2");
    scene.set("ELVEN_SYNC_API__SIGNATURE_WINDOW", "5s");
    scene.entity("acme", "UTC").await;
    scene
}

/// Adds a row for each account, in this order, each of its own second.
async fn add(scene: &TestEnv, accounts: &[String]) {
    sqlx::query(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select 'acme', account, 'BTC', '2024-01-01Z'::timestamptz + place * interval '1 s', place
           from unnest($1::text[]) with ordinality a (account, place) order by place",
    )
    .bind(accounts)
    .execute(&scene.pool)
    .await
    .unwrap();
}

/// `a1`, `a2`, ...
fn good(count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("a{n}")).collect()
}

/// Returns the same accounts with others at some positions, counted from 0.
fn among(count: usize, others: &[(usize, &str)]) -> Vec<String> {
    let mut accounts = good(count);
    for (place, account) in others {
        (*account).clone_into(&mut accounts[*place]);
    }
    accounts
}

/// Returns the accounts of rows that are set aside.
async fn set_aside(scene: &TestEnv) -> String {
    scene
        .text(
            "select coalesce(string_agg(record->>'entityAccountId', ',' order by ledger_id::int), '')
               from elven_sync.sync_errors where ledger_id is not null and resolved_at is null",
        )
        .await
}

/// Asserts that no batch or pass is open, that runs and batches have the same counts, and that `verify` has no finding.
async fn assert_all_is_well(scene: &TestEnv) {
    let open = "select concat_ws(' ', (select count(*) from elven_sync.sync_batches where status in ('sending', 'unknown')),
                                      (select count(*) from elven_sync.sync_passes where finished_at is null))";
    assert_eq!(scene.text(open).await, "0 0", "nothing is left open");
    let runs = "select concat_ws(' ', sum(rows_read), sum(rows_uploaded), sum(rows_rejected)) from elven_sync.sync_runs";
    let leaves = "select concat_ws(' ', sum(rows_read), sum(row_count), sum(rows_rejected))
                    from elven_sync.sync_batches
                   where status = 'accepted' or (status = 'rejected' and row_count = 0)";
    assert_eq!(scene.text(runs).await, scene.text(leaves).await, "runs and batches count the same");
    let verified = output_of(scene, 0, &["verify"]).await;
    assert!(verified.contains("acme"), "{verified}");
}

/// Runs until a run does not fail. Returns the number of runs and the status of the last one.
async fn runs_until_done(scene: &TestEnv, runs_max: usize) -> (usize, RunStatus) {
    for run in 1..=runs_max {
        let status = scene.run().await.status;
        if status != RunStatus::Failed {
            return (run, status);
        }
    }
    panic!("no end after {runs_max} runs");
}
