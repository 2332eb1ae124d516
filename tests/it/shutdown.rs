//! Signals: what is in flight is finished within a grace, or given up and said so.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sqlx::PgPool;
use tokio::process::Child;

use crate::support::{Scene, stderr, until_it_says};
use crate::workers::{scene_with_three_batches, signal};

const BATCHES: &str = "select string_agg(concat_ws(' ', status, attempts, ambiguous), ',' order by batch_id) from elven_sync.sync_batches";

async fn told_to_stop(child: &mut Child, name: Signal) {
    signal(child, name);
    until_it_says(child, "stopping after").await;
}

/// The answer never comes. What was sent may still arrive, so the lease is not released but runs out, and
/// the next run sends the batch again and says so.
#[sqlx::test(migrations = false)]
async fn what_takes_longer_than_the_grace_is_given_up_and_its_lease_runs_out(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    scene.set("ELVEN_SYNC_SYNC__SHUTDOWN_GRACE", "300ms");
    scene.set("ELVEN_SYNC_SYNC__LEASE", "2s");
    let (mut child, gate) = scene.held_run().await;
    told_to_stop(&mut child, Signal::SIGTERM).await;
    assert_eq!(child.wait().await.unwrap().code(), Some(143));
    assert_eq!(
        scene.text("select concat_ws(' ', status, rows_uploaded) from elven_sync.sync_runs").await,
        "interrupted 0"
    );
    assert_eq!(scene.text(BATCHES).await, "unknown 1 f");
    assert_eq!(scene.text("select (lease_owner is not null)::text from elven_sync.sync_state").await, "true");
    gate.open();
    let begun = Instant::now();
    let report = scene.run().await;
    assert!(begun.elapsed() > Duration::from_millis(800), "the next run waits for the lease and the window");
    assert_eq!((report.counters.rows_uploaded, report.counters.retries), (6, 1));
    assert_eq!(scene.text(BATCHES).await, "accepted 2 t,accepted 1 f,accepted 1 f");
}

#[sqlx::test(migrations = false)]
async fn a_second_signal_stops_at_once(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    let (mut child, gate) = scene.held_run().await;
    told_to_stop(&mut child, Signal::SIGTERM).await;
    let begun = Instant::now();
    signal(&child, Signal::SIGINT);
    assert_eq!(child.wait().await.unwrap().code(), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(10), "it does not wait for the grace of 25 s");
    gate.open();
    let report = scene.run().await;
    assert_eq!((report.counters.rows_uploaded, report.counters.retries), (6, 1));
}

/// Nothing can be recorded: then it ends without.
#[sqlx::test(migrations = false)]
async fn a_stop_does_not_wait_for_a_database_that_does_not_answer(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    scene.set("ELVEN_SYNC_SYNC__SHUTDOWN_GRACE", "100ms");
    let (mut child, gate) = scene.held_run().await;
    let mut lock = scene.pool.begin().await.unwrap();
    sqlx::query("lock table elven_sync.sync_batches in exclusive mode").execute(&mut *lock).await.unwrap();
    told_to_stop(&mut child, Signal::SIGTERM).await;
    let output = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output()).await;
    let output = output.expect("it ends").unwrap();
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    lock.rollback().await.unwrap();
    gate.open();
    the_next_run_finishes(&scene).await;
}

async fn the_next_run_finishes(scene: &Scene) {
    let report = scene.run().await;
    assert_eq!((report.counters.rows_uploaded, report.counters.retries), (6, 1));
    let runs = "select string_agg(status, ',' order by run_id) from elven_sync.sync_runs";
    assert_eq!(scene.text(runs).await, "interrupted,succeeded");
}
