//! The pooler is restarted, paused, and loses its connections to the server.

use elven_sync::journal::RunStatus;
use sqlx::PgPool;

use super::{arrivals, enter, scene_behind};
use crate::support::{TestEnv, assert_stays, eventually, stderr};

/// Twelve batches, the first of which waits for its answer.
async fn entered(scene: &mut TestEnv) {
    enter(scene, 2, 12).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
}

/// Asserts that no row is missing and none is pending, whichever run sent it.
async fn assert_complete(scene: &TestEnv) {
    let report = scene.run().await;
    assert_eq!(report.status, RunStatus::Succeeded, "{:?}", report.entities);
    let (least, most, rows) = arrivals(scene);
    assert_eq!((least, rows), (1, 24));
    assert!(most <= 2, "only what was in flight is sent again");
    let open = "select string_agg(status, ',') from elven_sync.sync_batches where status <> 'accepted'";
    assert_eq!(scene.text(open).await, "NULL");
    assert_eq!(scene.text("select string_agg(distinct status, ',') from elven_sync.sync_health").await, "ok");
}

/// The pooler is killed while answers are awaited, and is back before they come.
#[sqlx::test(migrations = false)]
async fn restarted_pooler_loses_no_row(pool: PgPool) {
    let (mut scene, mut pooler) = scene_behind(pool, "").await;
    entered(&mut scene).await;
    let (child, gate) = scene.held_run().await;
    pooler.kill();
    pooler.start().await;
    gate.open();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_complete(&scene).await;
}

/// The pooler is gone when the answers come, for longer than the run waits.
#[sqlx::test(migrations = false)]
async fn run_ends_with_an_error_without_its_pooler(pool: PgPool) {
    let (mut scene, mut pooler) = scene_behind(pool, "").await;
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "1s");
    entered(&mut scene).await;
    let (child, gate) = scene.held_run().await;
    pooler.kill();
    gate.open();
    let ended = tokio::time::timeout(std::time::Duration::from_mins(1), child.wait_with_output()).await;
    let output = ended.expect("the run ends").unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    pooler.start().await;
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "30s");
    assert_complete(&scene).await;
    assert!(scene.text("select status from elven_sync.sync_runs order by run_id limit 1").await != "running");
}

/// `PAUSE` prepares a pooler for a restart of the server: clients wait, and nothing is an error.
#[sqlx::test(migrations = false)]
async fn run_waits_for_a_paused_pooler(pool: PgPool) {
    let (mut scene, pooler) = scene_behind(pool, "").await;
    entered(&mut scene).await;
    let (mut child, gate) = scene.held_run().await;
    pooler.command("pause").await;
    gate.open();
    let waits = async || child.try_wait().unwrap().is_none();
    assert_stays("the run waits for the pooler", std::time::Duration::from_millis(500), waits).await;
    pooler.command("resume").await;
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_complete(&scene).await;
}

/// Server connections of the pooler are closed one after another during a run, as by `server_lifetime`, or all at
/// once, as by a restart of the server.
#[sqlx::test(migrations = false)]
async fn closed_server_connections_lose_no_row(pool: PgPool) {
    let (mut scene, pooler) = scene_behind(pool, "").await;
    entered(&mut scene).await;
    scene.sandbox.set_rules(vec!["slow=50ms".parse().unwrap()]);
    let (child, gate) = scene.held_run().await;
    // Connections without a transaction: the pooler replaces them, and no client notices.
    pooler.command("reconnect").await;
    gate.open();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    // Connections with a transaction.
    scene.sql("update ledger.balance_snapshots set balance = balance + 100").await;
    let child = scene.command(&["run"]).spawn().unwrap();
    let kill = "select coalesce(count(pg_terminate_backend(pid)), 0)::text from pg_stat_activity
                 where datname = current_database() and pid <> pg_backend_pid() and application_name like 'elven-sync%'";
    eventually("a connection is closed", async || scene.text(kill).await != "0").await;
    let ended = tokio::time::timeout(std::time::Duration::from_mins(1), child.wait_with_output()).await;
    ended.expect("the run ends").unwrap();
    let report = scene.run().await;
    assert_eq!(report.status, RunStatus::Succeeded, "{:?}", report.entities);
    let last: std::collections::BTreeMap<String, String> = scene.balances().into_iter().collect();
    assert_eq!((last.len(), last["e2-12"].as_str()), (24, "112"));
}
