//! Crashes, signals and several workers.

use std::time::Duration;

use elven_sync::sandbox::{Fault, Gate};
use nix::sys::signal::Signal;
use sqlx::PgPool;

use crate::support::{
    TestEnv, assert_stays, eventually, fault_rules, scene_with_three_batches, signal, stderr, stdout,
    wait_for_log,
};

#[sqlx::test(migrations = false)]
async fn killed_run_is_marked_and_resends_only_batch_in_flight(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    let (mut child, gate) = scene.held_run().await;
    signal(&child, Signal::SIGKILL);
    child.wait().await.unwrap();
    gate.open();
    assert_eq!(scene.text("select string_agg(status, ',') from elven_sync.sync_runs").await, "running");
    // New rows are written in the meantime: the interrupted pass is finished, then a new one is opened.
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a7', 'BTC', '2024-01-01Z', 7)").await;
    let report = scene.run().await;
    assert_eq!((report.counters.rows_uploaded, report.counters.retries), (7, 1));
    let runs = "select string_agg(status || ' ' || (finished_at is not null), ',' order by run_id) from elven_sync.sync_runs";
    assert_eq!(scene.text(runs).await, "interrupted true,succeeded true");
    let batches =
        "select string_agg(concat_ws(' ', pass_id, status, attempts, ambiguous), ',' order by batch_id)
                     from elven_sync.sync_batches";
    assert_eq!(scene.text(batches).await, "1 accepted 2 t,1 accepted 1 f,1 accepted 1 f,2 accepted 1 f");
    let chain = "select bool_and(finished_at is not null)::text from elven_sync.sync_passes";
    assert_eq!(scene.text(chain).await, "true");
    let accounts: Vec<String> = scene.balances().into_iter().map(|(account, _)| account).collect();
    assert_eq!(accounts, ["a1", "a2", "a1", "a2", "a3", "a4", "a5", "a6", "a7"]);
}

/// Rows that change before a batch of unknown outcome is sent again belong to a later pass. The interval of the batch
/// shrinks.
#[sqlx::test(migrations = false)]
async fn rows_changed_before_a_batch_is_resent_are_not_lost(pool: PgPool) {
    for change in [
        "update ledger.balance_snapshots set balance = 100 where id <= 2",
        "update ledger.balance_snapshots set balance = 100 where id = 1",
    ] {
        sqlx::raw_sql("drop schema if exists ledger, elven_sync cascade").execute(&pool).await.unwrap();
        let scene = scene_with_three_batches(pool.clone()).await;
        scene.sandbox.inject(Fault::CutAfterWrite);
        scene.run().await;
        sqlx::query(sqlx::AssertSqlSafe(change)).execute(&pool).await.unwrap();
        scene.run().await;
        let last: std::collections::BTreeMap<String, String> = scene.balances().into_iter().collect();
        let ledger: Vec<(String, String)> = sqlx::query_as(
            "select entity_account_id, trim_scale(balance)::text from ledger.balance_snapshots",
        )
        .fetch_all(&pool)
        .await
        .unwrap();
        assert_eq!(last, ledger.into_iter().collect());
        assert_eq!(
            scene.text("select count(*)::text from elven_sync.sync_batches where status <> 'accepted'").await,
            "0"
        );
    }
}

#[sqlx::test(migrations = false)]
async fn signal_stops_a_run_after_batches_in_flight(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    // The lease is too long for the next run to wait for, so the worker has to release it.
    scene.set("ELVEN_SYNC_SYNC__LEASE", "1h");
    for (name, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let (mut child, gate) = scene.held_run().await;
        signal(&child, name);
        // The signal has to be noticed before the answer comes.
        wait_for_log(&mut child, "stopping after").await;
        gate.open();
        assert_eq!(child.wait().await.unwrap().code(), Some(code));
    }
    let runs =
        "select string_agg(status || ' ' || rows_uploaded, ',' order by run_id) from elven_sync.sync_runs";
    assert_eq!(scene.text(runs).await, "interrupted 2,interrupted 2");
    assert_eq!(scene.text("select lease_owner from elven_sync.sync_state").await, "NULL");
    let output = scene.output(&["run", "--json"]).await;
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["rows_uploaded"], 2);
    assert_eq!(scene.received().len(), 6, "each row once");
}

#[sqlx::test(migrations = false)]
async fn entity_with_a_renewed_lease_is_not_taken_over(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    let (child, gate) = scene.held_run().await;
    let report = scene.run().await;
    assert_eq!(report.counters.requests, 0);
    assert_eq!(report.status, elven_sync::journal::RunStatus::Succeeded);
    gate.open();
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(0));
    assert_eq!(scene.received().len(), 6, "each row once");
    assert_eq!(
        scene.text("select string_agg(status, ',') from elven_sync.sync_runs").await,
        "succeeded,succeeded"
    );
}

/// A worker that was frozen, lost its lease and is thawed moves nothing.
#[sqlx::test(migrations = false)]
async fn a_worker_that_lost_its_lease_can_move_nothing(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    let (child, gate) = scene.held_run().await;
    signal(&child, Signal::SIGSTOP);
    let report = scene.run().await;
    assert_eq!(report.counters.rows_uploaded, 6);
    let state =
        "select concat_ws(' ', settled, pass_id, rows_uploaded, lease_epoch) from elven_sync.sync_state";
    let before = scene.text(state).await;
    gate.open();
    signal(&child, Signal::SIGCONT);
    child.wait_with_output().await.unwrap();
    assert_eq!(scene.text(state).await, before);
}

/// A worker dies after it has closed a pass and before it records the success. The next worker finds the entity idle
/// and records it.
#[sqlx::test(migrations = false)]
async fn entity_finished_by_a_dead_worker_is_reported_ok(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.sandbox.inject(Fault::Answer { status: 429, body: String::new(), headers: Vec::new() });
    scene.run().await;
    assert_eq!(scene.text("select status from elven_sync.sync_health").await, "failing");
    // Holds the worker where it records the success, until it is killed there.
    scene.sql("create function die() returns trigger language plpgsql as $$ begin perform pg_sleep(60); return new; end $$;
               create trigger die before update of last_success_at on elven_sync.sync_state
                   for each row when (old.last_error is not null) execute function die()").await;
    let mut child = scene.command(&["run"]).spawn().unwrap();
    let sleeping = "select count(*)::text from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()";
    eventually("the worker is held", async || scene.text(sleeping).await == "1").await;
    signal(&child, Signal::SIGKILL);
    child.wait().await.unwrap();
    scene.sql("select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database();
               drop trigger die on elven_sync.sync_state").await;
    let expired = "select (lease_expires_at < clock_timestamp())::text from elven_sync.sync_state";
    eventually("the lease runs out", async || scene.text(expired).await == "true").await;
    scene.run().await;
    assert_eq!(
        scene
            .text("select status || open_errors || coalesce(last_error, '') from elven_sync.sync_health")
            .await,
        "ok0"
    );
}

/// Adds an entity with rows, each of which is its own batch.
async fn add_rows(scene: &TestEnv, entity_id: &str, rows: i32) {
    scene.entity(entity_id, "UTC").await;
    sqlx::query(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select $1, $1 || n, 'BTC', '2024-01-01Z', n from generate_series(1, $2) n",
    )
    .bind(entity_id)
    .bind(rows)
    .execute(&scene.pool)
    .await
    .unwrap();
}

/// With one entity at a time and the huge one first: it yields to the small ones, and is still finished.
#[sqlx::test(migrations = false)]
async fn one_huge_entity_does_not_starve_others(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    add_rows(&scene, "a-huge", 150).await;
    add_rows(&scene, "b-small", 1).await;
    add_rows(&scene, "c-small", 1).await;
    for (name, value) in [
        ("ELVEN_SYNC_SYNC__BATCH_ROWS", "1"),
        ("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1"),
        ("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1"),
        ("ELVEN_SYNC_SYNC__LEASE", "150ms"),
    ] {
        scene.set(name, value);
    }
    scene.sandbox.set_rules(fault_rules(&["slow=10ms"]));
    let report = scene.run().await;
    assert_eq!((report.counters.rows_uploaded, report.counters.retries), (152, 0));
    let arrived: Vec<String> = scene.balances().into_iter().map(|(account, _)| account).collect();
    assert_eq!(arrived.len(), 152, "each row once");
    let place = |prefix: &str| arrived.iter().position(|account| account.starts_with(prefix)).unwrap();
    assert!(place("a-huge") < place("b-small"), "the huge one is first");
    assert!(place("b-small") < 150 && place("c-small") < 150, "and makes room: {arrived:?}");
    let leases = "select lease_epoch > 1 and lease_owner is null from elven_sync.sync_state where entity_id = 'a-huge'";
    assert!(sqlx::query_scalar::<_, bool>(leases).fetch_one(&scene.pool).await.unwrap());
}

/// Two workers have twice as many requests in flight as one.
#[sqlx::test(migrations = false)]
async fn two_workers_share_the_entities_and_send_no_record_twice(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    for entity in ["e1", "e2", "e3", "e4", "e5", "e6", "e7", "e8"] {
        add_rows(&scene, entity, 5).await;
    }
    for (name, value) in [
        ("ELVEN_SYNC_SYNC__BATCH_ROWS", "1"),
        ("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "2"),
        ("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1"),
    ] {
        scene.set(name, value);
    }
    let gates: Vec<Gate> = (0..4).map(|_| Gate::new()).collect();
    for gate in &gates {
        scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    }
    let workers = [scene.command(&["run"]).spawn().unwrap(), scene.command(&["run"]).spawn().unwrap()];
    for gate in &gates {
        let reached = tokio::time::timeout(Duration::from_secs(20), gate.reached()).await;
        assert!(reached.is_ok(), "one worker has two requests in flight, two workers have four");
    }
    gates.iter().for_each(Gate::open);
    for worker in workers {
        let output = worker.wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    assert_eq!(scene.received().len(), 40, "each record once");
    assert_eq!(
        scene.text("select count(*)::text from elven_sync.sync_batches where attempts > 1").await,
        "0"
    );
    let share =
        "select string_agg(status, ',') || ' ' || sum(rows_uploaded) || ' ' || bool_and(rows_uploaded >= 10)
                   from elven_sync.sync_runs";
    assert_eq!(scene.text(share).await, "succeeded,succeeded 40 true");
}

/// A locked row of an entity, as in a psql session that was left open, stops no other lane.
#[sqlx::test(migrations = false)]
async fn locked_state_row_stops_no_other_lane(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "3s");
    add_rows(&scene, "beta", 1).await;
    let gates = [Gate::new(), Gate::new()];
    for gate in &gates {
        scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    }
    let child = scene.command(&["run"]).spawn().unwrap();
    for gate in &gates {
        gate.reached().await;
    }
    let mut lock = scene.pool.begin().await.unwrap();
    let beta = "select from elven_sync.sync_state where entity_id = 'beta' for update";
    sqlx::query(beta).execute(&mut *lock).await.unwrap();
    let lease = "select (lease_expires_at > clock_timestamp())::text from elven_sync.sync_state where entity_id = 'acme'";
    // Longer than a heartbeat waits for a lock.
    let is_renewed = async || scene.text(lease).await == "true";
    assert_stays("the lease of acme is renewed", Duration::from_secs(5), is_renewed).await;
    gates.iter().for_each(Gate::open);
    let acme = "select concat_ws(' ', rows_uploaded, settled is not null) from elven_sync.sync_state where entity_id = 'acme'";
    eventually("acme is finished", async || scene.text(acme).await == "6 t").await;
    lock.rollback().await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(scene.received().len(), 7, "each row once");
}

/// An older probe does not clear a failure that another worker has recorded since.
#[sqlx::test(migrations = false)]
async fn outdated_probe_does_not_clear_a_newer_failure(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    scene.entity("beta", "UTC").await;
    // The run finds beta idle, and then works on acme for a long time.
    let (child, gate) = scene.held_run().await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('beta', 'b', 'BTC', '2024-01-01Z', 1)").await;
    scene.sandbox.set_rules(fault_rules(&["revoked"]));
    let other = scene.output(&["run", "--entity", "beta"]).await;
    assert_eq!(other.status.code(), Some(1), "{}", stderr(&other));
    scene.sandbox.set_rules(Vec::new());
    gate.open();
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(0));
    let health = "select concat_ws(' ', status, pending_rows, open_errors) from elven_sync.sync_health where entity_id = 'beta'";
    assert_eq!(scene.text(health).await, "failing 1 1");
}

/// A failed lane releases its entity at once, however long the other lanes of its worker take.
#[sqlx::test(migrations = false)]
async fn failed_lane_releases_its_entity_for_other_workers(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    scene.set("ELVEN_SYNC_SYNC__LEASE", "1m");
    add_rows(&scene, "beta", 1).await;
    scene.sql("create function broken() returns trigger language plpgsql as $$ begin raise exception 'broken'; end $$;
               create trigger broken before insert on elven_sync.sync_batches
                   for each row when (new.entity_id = 'beta') execute function broken()").await;
    let (child, gate) = scene.held_run().await;
    let free = "select coalesce(bool_and(lease_epoch > 0 and lease_owner is null), false)::text
                  from elven_sync.sync_state where entity_id = 'beta'";
    eventually("beta was given back", async || scene.text(free).await == "true").await;
    scene.sql("drop trigger broken on elven_sync.sync_batches").await;
    let other = scene.output(&["run", "--entity", "beta"]).await;
    assert_eq!(other.status.code(), Some(0), "{}", stderr(&other));
    gate.open();
    // The failure is reported at the end.
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(1));
    assert_eq!(scene.received().len(), 7, "each row once");
}

/// A worker that was frozen for longer than its lease sets a row aside in its last write, while another worker takes the
/// lease. The other one uploads the corrected row.
#[sqlx::test(migrations = false)]
async fn row_set_aside_while_a_lease_is_taken_is_resolved_by_its_correction(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__LEASE", "1m");
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'a', 'BTC', '2024-01-01Z', 1);
             create function wait() returns trigger language plpgsql as $$ begin perform pg_sleep(1); return new; end $$;
             create trigger wait before insert on elven_sync.sync_passes for each row execute function wait()",
        )
        .await;
    let run = scene.command(&["run"]).spawn().unwrap();
    // The statement that takes the lease has its snapshot, and opens the pass.
    let waits = "select count(*)::text from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()";
    eventually("the lease is being taken", async || scene.text(waits).await == "1").await;
    scene
        .sql(
            "insert into elven_sync.sync_errors (entity_id, kind, ledger_id, message)
             values ('acme', 'invalid_row', '1', 'balance is NaN')",
        )
        .await;
    assert!(run.wait_with_output().await.unwrap().status.success());
    assert_eq!(scene.balances().len(), 1);
    let open = "select count(*)::text from elven_sync.sync_errors where resolved_at is null";
    assert_eq!(scene.text(open).await, "0");
}
