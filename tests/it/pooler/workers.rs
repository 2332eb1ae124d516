//! Runs, crashes and several workers, through a pooler.

use elven_sync::journal::RunStatus;
use nix::sys::signal::Signal;
use sqlx::PgPool;

use super::{arrivals, enter, scene_behind};
use crate::support::{TestEnv, eventually, signal, stderr};

/// Asserts that all batches were accepted, each on its first attempt.
async fn assert_accepted(scene: &TestEnv) {
    let others = "select string_agg(concat_ws(' ', batch_id, status, attempts, ambiguous), ', ') from elven_sync.sync_batches
                   where status <> 'accepted' or ambiguous or attempts <> 1";
    assert_eq!(scene.text(others).await, "NULL");
}

#[sqlx::test(migrations = false)]
async fn each_row_arrives_once_and_the_next_run_is_idle(pool: PgPool) {
    let (mut scene, _pooler) = scene_behind(pool, "").await;
    enter(&scene, 8, 40).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "3");
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(arrivals(&scene), (1, 1, 8 * 40));
    assert_accepted(&scene).await;
    let sent = scene.sandbox.requests().len();
    let report = scene.run().await;
    assert_eq!((report.status, report.counters.rows_read), (RunStatus::Succeeded, 0));
    assert_eq!(scene.sandbox.requests().len(), sent);
    assert_eq!(scene.text("select sum(pending_rows)::text from elven_sync.sync_health").await, "0");
}

#[sqlx::test(migrations = false)]
async fn two_workers_share_the_entities(pool: PgPool) {
    let (mut scene, _pooler) = scene_behind(pool, "").await;
    enter(&scene, 10, 30).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "2");
    scene.sandbox.set_rules(vec!["slow=20ms".parse().unwrap()]);
    let run = || scene.command(&["run"]).spawn().unwrap().wait_with_output();
    let (first, second) = tokio::join!(run(), run());
    for output in [first.unwrap(), second.unwrap()] {
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    scene.run().await;
    assert_eq!(arrivals(&scene), (1, 1, 10 * 30));
    assert_accepted(&scene).await;
    let workers =
        "select count(*)::text from elven_sync.sync_runs where rows_uploaded > 0 and status = 'succeeded'";
    assert_eq!(scene.text(workers).await, "2", "both had something to do");
}

#[sqlx::test(migrations = false)]
async fn crash_resends_only_batches_in_flight(pool: PgPool) {
    let (mut scene, _pooler) = scene_behind(pool, "").await;
    enter(&scene, 1, 10).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    let (mut child, gate) = scene.held_run().await;
    signal(&child, Signal::SIGKILL);
    child.wait().await.unwrap();
    gate.open();
    let report = scene.run().await;
    assert_eq!((report.counters.rows_uploaded, report.counters.retries), (10, 1));
    let runs = "select string_agg(status, ',' order by run_id) from elven_sync.sync_runs";
    assert_eq!(scene.text(runs).await, "interrupted,succeeded");
    let twice = "select string_agg(concat_ws(' ', status, attempts, ambiguous), ',' order by batch_id) from elven_sync.sync_batches
                  where attempts > 1";
    assert_eq!(scene.text(twice).await, "accepted 2 t");
    assert_eq!((arrivals(&scene).0, scene.balances().len()), (1, 12), "two rows came again");
}

/// A worker that was frozen, lost its lease and is thawed moves nothing, whichever server connection it gets.
#[sqlx::test(migrations = false)]
async fn a_worker_that_lost_its_lease_can_move_nothing(pool: PgPool) {
    let (mut scene, _pooler) = scene_behind(pool, "").await;
    enter(&scene, 1, 10).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    let (child, gate) = scene.held_run().await;
    signal(&child, Signal::SIGSTOP);
    assert_eq!(scene.run().await.counters.rows_uploaded, 10);
    let state =
        "select concat_ws(' ', settled, pass_id, rows_uploaded, lease_epoch) from elven_sync.sync_state";
    let before = scene.text(state).await;
    gate.open();
    signal(&child, Signal::SIGCONT);
    let output = child.wait_with_output().await.unwrap();
    assert!(stderr(&output).contains("lease"), "{}", stderr(&output));
    assert_eq!(scene.text(state).await, before);
}

/// A run longer than its lease keeps it: another run finds nothing to do in the meantime.
#[sqlx::test(migrations = false)]
async fn lease_is_renewed_during_a_long_run(pool: PgPool) {
    let (mut scene, _pooler) = scene_behind(pool, "").await;
    enter(&scene, 1, 10).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    let (child, gate) = scene.held_run().await;
    let lease = "select concat_ws(' ', lease_owner, lease_epoch) from elven_sync.sync_state";
    let before = scene.text(lease).await;
    let longer =
        "select (lease_expires_at > (select started_at from elven_sync.sync_runs) + interval '3 s')::text
                    from elven_sync.sync_state";
    eventually("the lease is renewed", async || scene.text(longer).await == "true").await;
    let report = scene.run().await;
    assert_eq!((report.status, report.counters.requests), (RunStatus::Succeeded, 0));
    assert_eq!(scene.text(lease).await, before);
    gate.open();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(arrivals(&scene), (1, 1, 10));
}
