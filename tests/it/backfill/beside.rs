//! Backfills next to runs: neither waits long, and the API ends with the newest values.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use elven_sync::journal::RunStatus;
use elven_sync::sandbox::{Fault, Gate};
use sqlx::PgPool;

use super::{add_minutes, backfill_2024};
use crate::support::{TestEnv, assert_stays, eventually, fault_rules, output_of, stderr};

/// A long backfill: slow requests, few rows in each, and slices of a fifth of a second.
async fn scene_with_long_backfill(pool: PgPool, rows: i32) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    for (name, value) in [
        ("ELVEN_SYNC_SYNC__BATCH_ROWS", "2"),
        ("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "2"),
        ("ELVEN_SYNC_SYNC__LEASE", "3s"),
    ] {
        scene.set(name, value);
    }
    scene.entity("acme", "UTC").await;
    add_minutes(&scene, "acme", rows).await;
    scene
}

/// During a backfill of all rows, rows are updated and runs executed, one after another.
#[sqlx::test(migrations = false)]
async fn concurrent_backfill_updates_and_runs_upload_newest_values(pool: PgPool) {
    let scene = scene_with_long_backfill(pool, 400).await;
    scene.run().await;
    scene.sandbox.set_rules(fault_rules(&["slow=8ms"]));
    let child = scene.command(&["backfill", "--from", "2024-01-01", "--to", "2025-01-01"]).spawn().unwrap();
    let is_running =
        "select count(*)::text from elven_sync.sync_backfills where rows_read > 0 and status = 'running'";
    eventually("the backfill is running", async || scene.text(is_running).await == "1").await;
    let mut runs = 0;
    while scene.text(is_running).await == "1" {
        scene.sql("update ledger.balance_snapshots set balance = balance + 1000 where random() < 0.1").await;
        let run = scene.run().await;
        assert!(matches!(run.status, RunStatus::Succeeded), "{run:?}");
        assert!(run.counters.rows_uploaded > 0, "the run was not kept from its work: {run:?}");
        runs += 1;
        // The interval of a schedule.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(runs >= 3, "{runs} runs");
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let counted = "select concat_ws(' ', status, rows_read, rows_uploaded) from elven_sync.sync_backfills";
    let odd = "select string_agg(concat_ws(' ', batch_id, run_id, status, attempts, ambiguous, rows_read, row_count, error), '; ' order by batch_id)
                 from elven_sync.sync_batches where backfill_id is not null and (rows_read <> 2 or status <> 'accepted')";
    assert_eq!(scene.text(counted).await, "succeeded 400 400", "{}", scene.text(odd).await);
    scene.run().await;
    let last: BTreeMap<String, String> = scene.balances().into_iter().collect();
    let ledger: Vec<(String, String)> =
        sqlx::query_as("select entity_account_id, trim_scale(balance)::text from ledger.balance_snapshots")
            .fetch_all(&scene.pool)
            .await
            .unwrap();
    assert_eq!(last, ledger.into_iter().collect());
    // No older value was sent after a newer one: the values only grow.
    let mut newest: BTreeMap<String, i64> = BTreeMap::new();
    for (account, balance) in scene.balances() {
        let balance: i64 = balance.parse().unwrap();
        let before = newest.insert(account.clone(), balance);
        assert!(before.is_none_or(|before| before <= balance), "{account}: {before:?}, then {balance}");
    }
}

#[sqlx::test(migrations = false)]
async fn run_gets_an_entity_from_a_long_backfill_quickly(pool: PgPool) {
    let scene = scene_with_long_backfill(pool, 4000).await;
    scene.run().await;
    // If it did not yield, the backfill would continue for much longer than a lease.
    scene.sandbox.set_rules(fault_rules(&["slow=50ms"]));
    let mut child =
        scene.command(&["backfill", "--from", "2024-01-01", "--to", "2025-01-01"]).spawn().unwrap();
    let is_running =
        "select count(*)::text from elven_sync.sync_backfills where rows_read > 0 and status = 'running'";
    eventually("the backfill is running", async || scene.text(is_running).await == "1").await;
    for n in 0..3 {
        scene.sql("update ledger.balance_snapshots set balance = balance + 1 where id = 4000").await;
        let begun = Instant::now();
        let run = scene.run().await;
        assert_eq!((run.status, run.counters.rows_uploaded), (RunStatus::Succeeded, 1), "run {n}");
        assert!(begun.elapsed() < Duration::from_secs(3), "run {n}: {:?}", begun.elapsed());
    }
    assert_eq!(scene.text(is_running).await, "1", "the backfill is not finished");
    let read = async || scene.text("select rows_read::text from elven_sync.sync_backfills").await;
    let before = read().await;
    eventually("it goes on", async || read().await != before).await;
    child.kill().await.unwrap();
}

/// The run waits however often the lease is renewed. It would skip an entity that another run holds.
#[sqlx::test(migrations = false)]
async fn run_waits_for_backfill_batches_in_flight(pool: PgPool) {
    let scene = scene_with_long_backfill(pool, 4).await;
    scene.run().await;
    scene.sql("update ledger.balance_snapshots set balance = 7 where id = 4").await;
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let child = scene.command(&["backfill", "--from", "2024-01-01", "--to", "2025-01-01"]).spawn().unwrap();
    gate.reached().await;
    let (report, ()) = tokio::join!(scene.run(), async {
        let running = "select count(*)::text from elven_sync.sync_runs where kind = 'incremental' and status = 'running'";
        let waits = async || scene.text(running).await == "1";
        eventually("the run has begun", waits).await;
        // Several heartbeats: the lease of 3 s is renewed every second.
        assert_stays("the run waits", Duration::from_millis(2500), waits).await;
        gate.open();
    });
    assert_eq!((report.status, report.counters.rows_uploaded), (RunStatus::Succeeded, 1));
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(0));
}

/// Batches that wait for their turn at a slow rate are withdrawn for the run, and sent later, once.
#[sqlx::test(migrations = false)]
async fn run_does_not_wait_for_batches_before_they_are_sent(pool: PgPool) {
    let mut scene = scene_with_long_backfill(pool, 24).await;
    scene.run().await;
    let before = scene.received().len();
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'new', 'BTC', '2026-01-01Z', 1)").await;
    scene.set("ELVEN_SYNC_SYNC__LEASE", "30s");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "4");
    scene.set("ELVEN_SYNC_API__REQUESTS_PER_SECOND", "1");
    let child = scene.command(&["backfill", "--from", "2024-01-01", "--to", "2025-01-01"]).spawn().unwrap();
    let batches = "select count(*)::text from elven_sync.sync_batches where backfill_id is not null";
    eventually("seven batches are recorded", async || scene.text(batches).await.parse::<u32>().unwrap() >= 7)
        .await;
    let begun = Instant::now();
    assert_eq!(scene.run().await.counters.rows_uploaded, 1);
    assert!(begun.elapsed() < Duration::from_millis(3500), "{:?}", begun.elapsed());
    scene.unset("ELVEN_SYNC_API__REQUESTS_PER_SECOND");
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(scene.received().len() - before, 25, "each row once");
    let sent = "select concat_ws(' ', count(*), max(attempts), bool_or(ambiguous)) from elven_sync.sync_batches where backfill_id is not null";
    assert_eq!(scene.text(sent).await, "12 1 f");
}

/// A retry of an error and a rewind by a person get the entity as well.
#[sqlx::test(migrations = false)]
async fn a_retry_and_a_rewind_get_the_entity_from_a_backfill(pool: PgPool) {
    let scene = scene_with_long_backfill(pool, 2000).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'wrong', 'ETH', '2026-01-01Z', 1)").await;
    scene.sandbox.set_rules(fault_rules(&["reject:currency=ETH"]));
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    scene.sandbox.set_rules(fault_rules(&["slow=50ms"]));
    let mut child =
        scene.command(&["backfill", "--from", "2024-01-01", "--to", "2025-01-01"]).spawn().unwrap();
    let is_running =
        "select count(*)::text from elven_sync.sync_backfills where rows_read > 0 and status = 'running'";
    eventually("the backfill is running", async || scene.text(is_running).await == "1").await;
    let retried = output_of(&scene, 0, &["errors", "retry"]).await;
    assert!(retried.contains("resolved: uploaded by `errors retry`"), "{retried}");
    output_of(&scene, 0, &["entity", "rewind", "acme", "--yes"]).await;
    assert_eq!(scene.text(is_running).await, "1", "the backfill is not finished");
    child.kill().await.unwrap();
}

/// A backfill waits for an entity that a run holds, and works on other entities in the meantime.
#[sqlx::test(migrations = false)]
async fn backfill_waits_for_a_run_and_works_on_other_entities(pool: PgPool) {
    let mut scene = scene_with_long_backfill(pool, 4).await;
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1");
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let run = scene.command(&["run"]).spawn().unwrap();
    gate.reached().await;
    scene.entity("beta", "UTC").await;
    add_minutes(&scene, "beta", 4).await;
    let child = scene.command(&["backfill", "--from", "2024-01-01", "--to", "2025-01-01"]).spawn().unwrap();
    let lanes =
        "select string_agg(rows_read::text, ',' order by entity_id) from elven_sync.sync_backfill_lanes";
    eventually("beta is finished", async || scene.text(lanes).await == "0,4").await;
    gate.open();
    assert_eq!(run.wait_with_output().await.unwrap().status.code(), Some(0));
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(scene.text(lanes).await, "4,4");
}

/// A backfill does not record that the entity is up to date.
#[sqlx::test(migrations = false)]
async fn idle_run_records_success_of_entity_leased_by_backfill(pool: PgPool) {
    let mut scene = scene_with_long_backfill(pool, 4).await;
    scene.set("ELVEN_SYNC_SYNC__LEASE", "30s");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.run().await;
    scene.sql("update elven_sync.sync_state set last_success_at = null, consecutive_failures = 1").await;
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let child = scene.command(&["backfill", "--from", "2024-01-01", "--to", "2025-01-01"]).spawn().unwrap();
    gate.reached().await;
    let kind = "select concat_ws(' ', lease_kind, lease_owner is not null) from elven_sync.sync_state";
    assert_eq!(scene.text(kind).await, "backfill t");
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    let well = "select concat_ws(' ', status, last_success_at is not null) from elven_sync.sync_health";
    assert_eq!(scene.text(well).await, "ok t");
    gate.open();
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(0));
}

/// Two backfills of overlapping ranges take turns.
#[sqlx::test(migrations = false)]
async fn two_backfills_of_an_entity_take_turns(pool: PgPool) {
    let scene = scene_with_long_backfill(pool, 60).await;
    scene.sandbox.set_rules(fault_rules(&["slow=10ms"]));
    let (one, other) = tokio::join!(
        backfill_2024(&scene, 0, &[]),
        output_of(&scene, 0, &["backfill", "--from", "2024-01-01", "--to", "2024-02-01"])
    );
    assert!(one.contains("60 uploaded") && other.contains("60 uploaded"), "{one}{other}");
    assert_eq!(scene.received().len(), 120);
}
