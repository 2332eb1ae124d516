//! A retry of many errors keeps only a part of them in memory.

use sqlx::PgPool;

use super::batches::scene_with_repaired_rows;
use crate::support::{TestEnv, is_import, output_of};

/// Batches of two rows, so that a part of a retry is 32 rows.
async fn scene_with_parts(pool: PgPool, rows: i32) -> TestEnv {
    let mut scene = scene_with_repaired_rows(pool, rows).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    scene
}

#[sqlx::test(migrations = false)]
async fn a_retry_of_several_parts_is_one_run_with_full_batches(pool: PgPool) {
    let scene = scene_with_parts(pool, 101).await;
    let retried = output_of(&scene, 0, &["errors", "retry", "--cause", "balance is NaN"]).await;
    assert_eq!(retried.matches("resolved: uploaded by `errors retry`").count(), 101, "{retried}");
    assert_eq!(retried.lines().count(), 101, "each error once: {retried}");
    assert_eq!(scene.balances().len(), 101);
    let requests = scene.sandbox.requests().iter().filter(|request| is_import(&request.path)).count();
    assert_eq!(requests, 51);
    let runs = "select string_agg(concat_ws(' ', status, rows_uploaded), ',') from elven_sync.sync_runs where kind = 'retry'";
    assert_eq!(scene.text(runs).await, "succeeded 101");
    output_of(&scene, 0, &["verify", "--deep"]).await;
}

#[sqlx::test(migrations = false)]
async fn a_retry_that_cannot_go_on_leaves_the_other_parts_alone(pool: PgPool) {
    let mut scene = scene_with_parts(pool, 101).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.sandbox.set_rules(vec!["forbidden".parse().unwrap()]);
    let retried = output_of(&scene, 3, &["errors", "retry"]).await;
    let about =
        retried.lines().filter(|line| line.contains(": still open: the API refused credential")).count();
    assert_eq!(about, 101, "{retried}");
    let requests = scene.sandbox.requests().iter().filter(|request| is_import(&request.path)).count();
    assert!(requests <= 4, "{requests} requests");
}

/// The newer row of a key is in another part than the older one, and is sent first.
#[sqlx::test(migrations = false)]
async fn a_row_that_an_earlier_part_superseded_is_not_sent(pool: PgPool) {
    let scene = scene_with_parts(pool, 40).await;
    scene.sql("alter table ledger.balance_snapshots disable trigger stamp_change_xid").await;
    scene.sql("update ledger.balance_snapshots set entity_account_id = 'a1', captured_at = '2023-12-31 23:59:59.5Z'
                where id = 40; update ledger.balance_snapshots set captured_at = '2023-12-31 23:59:59.9Z' where id = 1").await;
    let retried = output_of(&scene, 0, &["errors", "retry"]).await;
    assert!(retried.contains("resolved: superseded by row 1 of the same account"), "{retried}");
    assert_eq!(scene.balances().iter().filter(|(account, _)| account == "a1").count(), 1);
    assert_eq!(scene.balances().len(), 39);
}
