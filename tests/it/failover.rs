//! Faults of the server: a crash, a failover, a restore, an upgrade. Each one happens to a real server.

use std::collections::BTreeMap;

use elven_sync::journal::RunStatus;
use elven_sync::sandbox::{Fault, Gate};
use nix::sys::signal::Signal;
use sqlx::{Connection, Executor, PgConnection, PgPool};

use crate::check::assert_found;
use crate::cluster::Cluster;
use crate::seal::assert_each_command_refuses;
use crate::support::{FAULT_POINT, TestEnv, eventually, output_of, signal, stderr, wait_for_log};
use crate::unwritten::{BATCHES, PASSED, both_in_flight};

const SETTLED: &str = "select settled::text from elven_sync.sync_state";

/// An environment on its own cluster, with entity acme.
async fn scene_on(cluster: &Cluster) -> TestEnv {
    let scene = TestEnv::at(&cluster.url("ledger")).await;
    scene.entity("acme", "UTC").await;
    scene
}

/// Adds rows of acme, each in its own transaction.
async fn enter(scene: &TestEnv, rows: &[(&str, i64)]) {
    for (account, balance) in rows {
        sqlx::query(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', $1, 'BTC', '2024-01-01Z', $2)",
        )
        .bind(account)
        .bind(balance)
        .execute(&scene.pool)
        .await
        .unwrap();
    }
}

/// Asserts for every account of the ledger that the last received value is the last written one.
async fn assert_no_row_is_lost(scene: &TestEnv) {
    let last: BTreeMap<String, String> = scene.balances().into_iter().collect();
    let ledger: Vec<(String, String)> = sqlx::query_as(
        "select distinct on (entity_account_id) entity_account_id, trim_scale(balance)::text
           from ledger.balance_snapshots order by entity_account_id, id desc",
    )
    .fetch_all(&scene.pool)
    .await
    .unwrap();
    assert!(!ledger.is_empty());
    for (account, balance) in ledger {
        assert_eq!(last.get(&account), Some(&balance), "{account}");
    }
}

/// Asserts that a run is refused for its watermark with the reason `why`, and sends nothing.
async fn assert_refused(scene: &TestEnv, why: &str) {
    let before = scene.sandbox.requests().len();
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(scene.sandbox.requests().len(), before);
    let run = "select status from elven_sync.sync_runs order by run_id desc limit 1";
    assert_eq!(scene.text(run).await, "failed");
    let error = "select kind || ': ' || message from elven_sync.sync_errors where resolved_at is null";
    let error = scene.text(error).await;
    assert!(error.starts_with("watermark: ") && error.contains(why), "{error}");
}

/// Transaction ids are reused after it, and the lost watermark covered them.
#[sqlx::test(migrations = false)]
async fn asynchronous_failover_with_data_loss_skips_no_row(pool: PgPool) {
    let mut primary = Cluster::new(&pool).await;
    let mut scene = scene_on(&primary).await;
    enter(&scene, &[("a", 1), ("b", 1)]).await;
    scene.run().await;
    let standby = primary.standby().await;
    standby.caught_up_with(&primary).await;
    standby.stop_receiving().await;
    enter(&scene, &[("c", 1), ("d", 1), ("e", 1)]).await;
    scene.run().await;
    assert_no_row_is_lost(&scene).await;
    let lost = scene.text(SETTLED).await;

    primary.crash();
    standby.promote().await;
    scene.move_to(&standby.url("ledger")).await;
    assert_eq!(scene.text("select count(*)::text from ledger.balance_snapshots").await, "2");
    enter(&scene, &[("c", 2), ("f", 1)]).await;
    let below: bool = sqlx::query_scalar(
        "select bool_and(change_xid < pg_snapshot_xmax($1::pg_snapshot)) from ledger.balance_snapshots",
    )
    .bind(&lost)
    .fetch_one(&scene.pool)
    .await
    .unwrap();
    assert!(below, "ids below {lost} are handed out again");
    // Beyond the transaction id of the watermark, so that only the watermark itself can show the difference.
    standby.burn_transaction_ids(1000).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_no_row_is_lost(&scene).await;
}

/// The application uses asynchronous commits, so a crash loses its newest rows, with every open transaction. Finished
/// work of a run and prepared transactions survive.
#[sqlx::test(migrations = false)]
async fn server_crash_resets_watermark_and_ledger_together(pool: PgPool) {
    let mut server = Cluster::new(&pool).await;
    let mut scene = scene_on(&server).await;
    server.sql("alter database ledger set synchronous_commit = off").await;
    scene.move_to(&server.url("ledger")).await;
    let insert =
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                  values ('acme', 'late', 'BTC', '2024-01-01Z', 1)";
    let mut session = PgConnection::connect(&scene.url).await.unwrap();
    for sql in ["begin", insert, "prepare transaction 'late'", "begin", insert] {
        session.execute(sql).await.unwrap();
    }
    enter(&scene, &[("a", 1)]).await;
    scene.run().await;
    let settled = scene.text(SETTLED).await;
    enter(&scene, &[("b", 1)]).await;
    server.crash();
    server.start().await;
    assert_eq!(scene.text(SETTLED).await, settled);
    enter(&scene, &[("b", 2), ("c", 1)]).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_no_row_is_lost(&scene).await;

    // Now in the middle of a run: a batch has been received, and its answer has not.
    scene.sql("commit prepared 'late'").await;
    let (child, gate) = scene.held_run().await;
    enter(&scene, &[("d", 1)]).await;
    server.crash();
    server.start().await;
    gate.open();
    child.wait_with_output().await.unwrap();
    enter(&scene, &[("d", 2), ("e", 1)]).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_no_row_is_lost(&scene).await;
}

/// Transaction ids of one cluster mean nothing in another, whichever of them has used more. A rebind cannot change
/// that: another transaction wrote the rows of a restored journal.
#[sqlx::test(migrations = false)]
async fn a_dump_restored_elsewhere_is_refused(pool: PgPool) {
    let (cluster, other) = (Cluster::new(&pool).await, Cluster::new(&pool).await);
    let mut scene = scene_on(&cluster).await;
    cluster.burn_transaction_ids(2000).await;
    enter(&scene, &[("a", 1)]).await;
    scene.run().await;
    cluster.dump_into(&other, "ledger").await;
    scene.move_to(&other.url("ledger")).await;
    enter(&scene, &[("b", 1)]).await;
    let ahead = "select (pg_snapshot_xmax(pg_current_snapshot()) > pg_snapshot_xmax(settled))::text
                   from elven_sync.sync_state";
    assert_eq!(scene.text(ahead).await, "false");
    assert_refused(&scene, "another PostgreSQL cluster").await;
    other.burn_transaction_ids(4000).await;
    assert_eq!(scene.text(ahead).await, "true");
    assert_refused(&scene, "another PostgreSQL cluster").await;
    let output = scene.output(&["entity", "rebind", "acme"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("entity rewind 'acme'"), "{}", stderr(&output));
    assert_refused(&scene, "entity rewind 'acme'").await;
    assert!(scene.output(&["entity", "rewind", "acme", "--yes"]).await.status.success());
    assert_eq!(scene.run().await.counters.rows_uploaded, 2);
    assert_no_row_is_lost(&scene).await;
}

/// A promoted copy has everything of its original. If a schedule runs there too, both upload.
#[sqlx::test(migrations = false)]
async fn check_warns_of_a_server_that_was_promoted_since_the_last_run(pool: PgPool) {
    let primary = Cluster::new(&pool).await;
    let mut scene = scene_on(&primary).await;
    enter(&scene, &[("a", 1)]).await;
    scene.run().await;
    assert_found(&scene, "database.timeline", "ok", &["was not promoted"]).await;
    let copy = primary.standby().await;
    copy.caught_up_with(&primary).await;
    copy.promote().await;
    scene.move_to(&copy.url("ledger")).await;
    let words = ["timeline 1 before, 2 now", "promoted copy", "unset ELVEN_API_KEY"];
    assert_found(&scene, "database.timeline", "warning", &words).await;
    scene.run().await;
    assert_found(&scene, "database.timeline", "ok", &["timeline 2"]).await;
}

/// A promoted clone has the identifier of its origin. When the journal of the origin is copied over that of the
/// clone, the watermark refers to transactions of the origin. Once the clone has used as many ids, only the seal
/// shows it.
#[sqlx::test(migrations = false)]
async fn journal_copied_to_a_promoted_clone_is_refused(pool: PgPool) {
    let primary = Cluster::new(&pool).await;
    let mut scene = scene_on(&primary).await;
    enter(&scene, &[("a", 1), ("refused", 1)]).await;
    scene.sandbox.set_rules(vec!["reject:account=refused".parse().unwrap()]);
    scene.run().await;
    let now = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let between = scene.text(now).await;
    let clone = primary.standby().await;
    clone.caught_up_with(&primary).await;
    clone.stop_receiving().await;
    clone.promote().await;
    let identifier = "select system_identifier::text from pg_control_system()";
    assert_eq!(clone.text(identifier).await, primary.text(identifier).await);
    // The origin continues. Its rows and those of the clone are written at the same transaction ids.
    primary.burn_transaction_ids(2000).await;
    enter(&scene, &[("b", 1)]).await;
    scene.run().await;
    primary.copy_journal_into(&clone, "ledger").await;
    scene.move_to(&clone.url("ledger")).await;
    enter(&scene, &[("b", 1), ("c", 1), ("d", 1)]).await;
    let ahead = "select (pg_snapshot_xmax(pg_current_snapshot()) > pg_snapshot_xmax(settled))::text
                   from elven_sync.sync_state";
    assert_eq!(scene.text(ahead).await, "false");
    clone.burn_transaction_ids(3000).await;
    assert_eq!(scene.text(ahead).await, "true");
    assert_each_command_refuses(&scene, &between, "this cluster did not write the journal of `acme`").await;
    let journal = ["entity", "rebind", "acme", "--journal", "--reason", "moved"];
    let refused = output_of(&scene, 1, &journal).await;
    assert!(refused.contains("is not proven") && refused.contains("entity rewind 'acme'"), "{refused}");
    scene.sandbox.set_rules(Vec::new());
    output_of(&scene, 0, &["entity", "rewind", "acme", "--yes"]).await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 5);
    assert_no_row_is_lost(&scene).await;
}

/// Ledger and journal are copied to another cluster, whose transaction ids are beyond those of the watermark. The
/// proof shows that the watermark is valid there, and nothing is uploaded again.
#[sqlx::test(migrations = false)]
async fn journal_moved_with_its_ledger_is_accepted_only_by_proof(pool: PgPool) {
    let (cluster, other) = (Cluster::new(&pool).await, Cluster::new(&pool).await);
    let mut scene = scene_on(&cluster).await;
    cluster.burn_transaction_ids(2000).await;
    enter(&scene, &[("a", 1), ("b", 1)]).await;
    scene.run().await;
    cluster.dump_into(&other, "ledger").await;
    scene.move_to(&other.url("ledger")).await;
    let both = ["entity", "rebind", "acme", "--journal", "--mapping", "--reason", "a new server", "--yes"];
    assert!(output_of(&scene, 1, &both).await.contains("have not happened yet"));
    other.burn_transaction_ids(3000).await;
    enter(&scene, &[("c", 1)]).await;
    assert_refused(&scene, "another PostgreSQL cluster").await;
    output_of(&scene, 0, &both).await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 1, "nothing again, and nothing skipped");
    assert_no_row_is_lost(&scene).await;
    output_of(&scene, 0, &["verify", "--deep"]).await;
}

/// Transaction ids continue after an upgrade, and a person confirms it.
#[sqlx::test(migrations = false)]
async fn pg_upgrade_needs_a_rebind(pool: PgPool) {
    let cluster = Cluster::new(&pool).await;
    let mut scene = scene_on(&cluster).await;
    cluster.burn_transaction_ids(1000).await;
    enter(&scene, &[("a", 1)]).await;
    scene.run().await;
    let identifier = "select system_identifier::text from pg_control_system()";
    let before = cluster.text(identifier).await;
    let upgraded = cluster.upgraded().await;
    assert_ne!(upgraded.text(identifier).await, before);
    scene.move_to(&upgraded.url("ledger")).await;
    enter(&scene, &[("b", 1)]).await;
    let behind = "select bool_and(not pg_visible_in_snapshot(change_xid, settled))::text
                    from ledger.balance_snapshots, elven_sync.sync_state where entity_account_id = 'b'";
    assert_eq!(scene.text(behind).await, "true", "transaction ids go on");
    assert_refused(&scene, "entity rebind 'acme'").await;
    let output = scene.output(&["entity", "rebind", "acme"]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(scene.run().await.counters.rows_uploaded, 1, "nothing again, and nothing skipped");
    assert_no_row_is_lost(&scene).await;
}

/// A run that probed before a failover, and continues after it at the same address, must not trust its probe: the
/// transaction ids that it saw are reused.
#[sqlx::test(migrations = false)]
async fn run_across_a_failover_loses_no_row(pool: PgPool) {
    let primary = Cluster::new(&pool).await;
    let mut scene = scene_on(&primary).await;
    scene.entity("zeta", "UTC").await;
    let insert =
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                  values ('zeta', 'z', 'BTC', '2024-01-01Z', 1)";
    scene.sql(insert).await;
    enter(&scene, &[("a", 1)]).await;
    // The second entity waits for its turn while the first one waits for its answer.
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1");
    let mut standby = primary.standby().await;
    // The standby has received the run, but not the ledger rows that the run sees.
    let mut session = PgConnection::connect(&scene.url).await.unwrap();
    session.execute("begin; lock table ledger.balance_snapshots").await.unwrap();
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let child = scene.command(&["run"]).spawn().unwrap();
    let waiting = "select count(*)::text from pg_locks where not granted";
    eventually("the run waits for the ledger", async || scene.text(waiting).await == "1").await;
    assert_eq!(scene.text("select count(*)::text from elven_sync.sync_runs").await, "1");
    standby.caught_up_with(&primary).await;
    standby.stop_receiving().await;
    primary.burn_transaction_ids(100).await;
    session.execute("rollback").await.unwrap();
    gate.reached().await;

    standby.promote().await;
    standby.replace(primary).await;
    gate.open();
    child.wait_with_output().await.unwrap();
    scene.sql("update ledger.balance_snapshots set balance = balance + 1").await;
    standby.burn_transaction_ids(200).await;
    scene.run().await;
    assert_no_row_is_lost(&scene).await;
}

/// A worker that survives a failover finds that its lease is lost, even where the next worker got a lease, a pass and
/// a batch with the same numbers: those are reused too.
#[sqlx::test(migrations = false)]
async fn a_lease_that_was_lost_in_a_failover_moves_nothing(pool: PgPool) {
    let primary = Cluster::new(&pool).await;
    let mut scene = scene_on(&primary).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    let mut standby = primary.standby().await;
    standby.caught_up_with(&primary).await;
    standby.stop_receiving().await;
    primary.burn_transaction_ids(100).await;
    enter(&scene, &[("a", 1), ("b", 1)]).await;
    let (first, first_gate) = scene.held_run().await;

    standby.promote().await;
    standby.replace(primary).await;
    enter(&scene, &[("c", 1), ("d", 1), ("e", 1), ("f", 1)]).await;
    let (second, second_gate) = scene.held_run().await;
    for (child, gate) in [(first, first_gate), (second, second_gate)] {
        gate.open();
        child.wait_with_output().await.unwrap();
    }
    scene.run().await;
    assert_no_row_is_lost(&scene).await;
}

/// A failover that loses an announced batch reuses its id for a batch of another entity. The answer to the first
/// batch is not recorded for the second one.
#[sqlx::test(migrations = false)]
async fn failover_that_reuses_batch_ids_loses_no_row(pool: PgPool) {
    let primary = Cluster::new(&pool).await;
    let scene = scene_on(&primary).await;
    scene.entity("beta", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('beta', 'b', 'BTC', '2024-01-01Z', 1)").await;
    // A sequence writes 32 numbers ahead: the next number is the first one after another write.
    scene.sql("select setval('elven_sync.sync_batches_batch_id_seq', 100)").await;
    let mut standby = primary.standby().await;
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let mut acme = scene.command(&["run", "--entity", "acme"]);
    let mut acme = acme.env(FAULT_POINT, "announce:before=stop").spawn().unwrap();
    wait_for_log(&mut acme, "stopped at a fault point").await;
    standby.caught_up_with(&primary).await;
    standby.stop_receiving().await;
    signal(&acme, Signal::SIGCONT);
    gate.reached().await;
    let batches =
        "select string_agg(concat_ws(' ', batch_id, entity_id, status), ',') from elven_sync.sync_batches";
    assert_eq!(scene.text(batches).await, "101 acme sending");
    standby.promote().await;
    standby.replace(primary).await;
    let mut beta = scene.command(&["run", "--entity", "beta"]);
    beta.env(FAULT_POINT, "send:before=kill").output().await.unwrap();
    assert_eq!(scene.text(batches).await, "101 beta sending");
    gate.open();
    acme.wait().await.unwrap();
    assert_eq!(scene.text(batches).await, "101 beta sending", "the answer was acme's");
    let last = scene.output(&["run"]).await;
    assert_eq!(last.status.code(), Some(0), "{}", stderr(&last));
    // The failover lost the record that the row of acme was sent, so it is sent once more.
    assert_eq!(
        scene.received(),
        ["a BTC 2024-01-01 00:00:00 1", "a BTC 2024-01-01 00:00:00 1", "b BTC 2024-01-01 00:00:00 1"]
    );
}

/// A failover may lose answers and keep the lease and the batches. The cursor does not pass a batch whose answer is
/// lost.
#[sqlx::test(migrations = false)]
async fn the_cursor_passes_no_answer_that_was_lost_in_a_failover(pool: PgPool) {
    let primary = Cluster::new(&pool).await;
    let mut scene = scene_on(&primary).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "2");
    enter(&scene, &[("a", 1), ("b", 1)]).await;
    let mut standby = primary.standby().await;
    let (child, [first, second]) = both_in_flight(&scene, &["run"], "a").await;
    standby.caught_up_with(&primary).await;
    standby.stop_receiving().await;
    second.open();
    eventually("the second answer is recorded", async || scene.text(BATCHES).await == "sending accepted")
        .await;
    standby.promote().await;
    standby.replace(primary).await;
    assert_eq!(scene.text(BATCHES).await, "sending sending");
    first.open();
    child.wait_with_output().await.unwrap();
    assert_eq!(scene.text(PASSED).await, "0");
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_no_row_is_lost(&scene).await;
    output_of(&scene, 0, &["verify", "--deep"]).await;
}
