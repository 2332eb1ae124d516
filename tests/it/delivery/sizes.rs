//! Bodies that are too large: the limit is learned, and later bodies stay below it.

use elven_sync::journal::RunStatus;
use sqlx::PgPool;

use super::{OpenError, add_rows, answered, imports, open_error, scene};

use crate::support::fault_rules;

#[sqlx::test(migrations = false)]
async fn body_size_limit_is_learned_and_remembered(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "100");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    add_rows(&scene, "acme", 3000).await;
    // A batch of a hundred rows has 8 kB.
    scene.sandbox.set_rules(fault_rules(&["body-limit=5kB"]));
    let report = scene.run().await;
    assert_eq!((report.status, report.counters.rows_uploaded), (RunStatus::Succeeded, 3000));
    assert_eq!(scene.balances().len(), 3000);
    // One request in 25 probes whether the limit was raised.
    let (refused, probes) = (answered(&scene, 413), imports(&scene).len().div_ceil(25));
    assert!((1..=5 + probes).contains(&refused), "{refused} bodies were too large: the limit is not learned");
    let learned: Vec<u64> = imports(&scene)
        .iter()
        .rev()
        .filter(|import| import.status != Some(413))
        .skip(3)
        .take(20)
        .map(|import| import.body_bytes)
        .collect();
    assert!(
        learned.iter().all(|bytes| (4_500..=5_000).contains(bytes)),
        "close below the limit: {learned:?}"
    );

    add_rows(&scene, "acme", 1000).await;
    let before = imports(&scene).len();
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    let within = imports(&scene)[before..].iter().filter(|import| import.body_bytes <= 5_000).count();
    let probes = (imports(&scene).len() - before).div_ceil(25);
    assert!(imports(&scene).len() - before - within <= probes + 1, "remembered by the next run");
    assert!(answered(&scene, 413) <= refused + 1 + probes);
}

/// One small record was too large for the API once; or its limit was that small, and was raised.
#[sqlx::test(migrations = false)]
async fn bodies_grow_again_after_the_limit_was_raised(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "100");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    add_rows(&scene, "acme", 100).await;
    scene.sandbox.set_rules(fault_rules(&["body-limit=500B"]));
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);

    scene.sandbox.set_rules(Vec::new());
    add_rows(&scene, "acme", 2000).await;
    let before = imports(&scene).len();
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    let requests = imports(&scene).len() - before;
    // Five records fit into 500 bytes: without a probe these are 400 requests.
    assert!(requests <= 70, "{requests} requests");

    add_rows(&scene, "acme", 200).await;
    let before = imports(&scene).len();
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(imports(&scene).len() - before, 2, "the next run knows that the limit was raised");
}

#[sqlx::test(migrations = false)]
async fn batch_bytes_splits_batches_before_they_are_sent(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_BYTES", "3000");
    add_rows(&scene, "acme", 500).await;
    scene.sandbox.set_rules(fault_rules(&["body-limit=3000B"]));
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!((answered(&scene, 413), scene.balances().len()), (0, 500));
    let largest = imports(&scene).iter().map(|import| import.body_bytes).max().unwrap();
    assert!((2_850..=3_000).contains(&largest), "{largest}");
    let recorded = "select max(body_bytes)::text from elven_sync.sync_batches";
    assert_eq!(scene.text(recorded).await, largest.to_string());
}

#[sqlx::test(migrations = false)]
async fn single_record_above_body_limit_is_set_aside(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    add_rows(&scene, "acme", 6).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', repeat('x', 1000), 'BTC', '2024-01-01Z', 1)").await;
    add_rows(&scene, "acme", 6).await;
    scene.sandbox.set_rules(fault_rules(&["body-limit=900B"]));
    let report = scene.run().await;
    assert_eq!(report.status, RunStatus::Incomplete);
    assert_eq!((report.counters.rows_uploaded, report.counters.rows_rejected), (12, 1));
    assert_eq!(OpenError::all(&scene).await, [open_error("rejected_row").http(413)]);
    let whole = "select (length(record->>'entityAccountId') = 1000 and message like '%too large%')::text
                   from elven_sync.sync_errors";
    assert_eq!(scene.text(whole).await, "true");
}
