//! Signals: batches in flight are finished within a grace, or abandoned and reported.

use std::process::Stdio;
use std::time::{Duration, Instant};

use elven_sync::sandbox::{Fault, Gate};
use nix::sys::signal::Signal;
use sqlx::PgPool;
use tokio::process::Child;

use crate::support::{
    TestEnv, eventually, fault_rules, scene_with_three_batches, signal, stderr, wait_for_log,
};

const BATCHES: &str = "select string_agg(concat_ws(' ', status, attempts, ambiguous), ',' order by batch_id) from elven_sync.sync_batches";

async fn request_stop(child: &mut Child, name: Signal) {
    signal(child, name);
    wait_for_log(child, "stopping after").await;
}

/// The answer never comes. The request may still arrive, so the lease is not released but expires. The next run sends
/// the batch again and marks it ambiguous.
#[sqlx::test(migrations = false)]
async fn request_beyond_shutdown_grace_is_abandoned_and_its_lease_expires(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    scene.set("ELVEN_SYNC_SYNC__SHUTDOWN_GRACE", "300ms");
    scene.set("ELVEN_SYNC_SYNC__LEASE", "2s");
    let (mut child, gate) = scene.held_run().await;
    request_stop(&mut child, Signal::SIGTERM).await;
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
    request_stop(&mut child, Signal::SIGTERM).await;
    let begun = Instant::now();
    signal(&child, Signal::SIGINT);
    assert_eq!(child.wait().await.unwrap().code(), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(10), "it does not wait for the grace of 25 s");
    gate.open();
    let report = scene.run().await;
    assert_eq!((report.counters.rows_uploaded, report.counters.retries), (6, 1));
}

/// Nothing can be recorded, so the run ends without recording.
#[sqlx::test(migrations = false)]
async fn shutdown_does_not_wait_for_an_unreachable_database(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    scene.set("ELVEN_SYNC_SYNC__SHUTDOWN_GRACE", "100ms");
    let (mut child, gate) = scene.held_run().await;
    let mut lock = scene.pool.begin().await.unwrap();
    sqlx::query("lock table elven_sync.sync_batches in exclusive mode").execute(&mut *lock).await.unwrap();
    request_stop(&mut child, Signal::SIGTERM).await;
    let output = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output()).await;
    let output = output.expect("it ends").unwrap();
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    lock.rollback().await.unwrap();
    gate.open();
    assert_next_run_completes(&scene).await;
}

async fn assert_next_run_completes(scene: &TestEnv) {
    let report = scene.run().await;
    assert_eq!((report.counters.rows_uploaded, report.counters.retries), (6, 1));
    // The dead run gave signs of life to the end, so that only a later run may mark it as interrupted.
    let silent = "select bool_and(alive_until < clock_timestamp())::text from elven_sync.sync_runs where status = 'running'";
    eventually("its time is over", async || scene.text(silent).await != "false").await;
    scene.run().await;
    let runs = "select string_agg(status, ',' order by run_id) from elven_sync.sync_runs";
    assert_eq!(scene.text(runs).await, "interrupted,succeeded,succeeded");
}

/// An error of a row that the API refused once and would accept now.
async fn scene_with_an_error(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sandbox.set_rules(fault_rules(&["reject:account=x"]));
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('acme', 'x', 'BTC', '2024-01-01Z', 2)").await;
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(3));
    scene.sandbox.set_rules(Vec::new());
    scene
}

const OF_THE_RETRY: &str = "select (select status from elven_sync.sync_runs where kind = 'retry') || ' ' ||
    (select concat_ws(' ', status, attempts) from elven_sync.sync_batches where pass_id is null) || ' ' ||
    (select resolved_at is not null from elven_sync.sync_errors)";

/// Nothing more is sent, and the retry does not wait for the end of the back-off.
#[sqlx::test(migrations = false)]
async fn a_signal_ends_the_back_off_of_a_retry(pool: PgPool) {
    let scene = scene_with_an_error(pool).await;
    let headers = vec![("retry-after".to_owned(), "20".to_owned())];
    scene.sandbox.inject(Fault::Answer { status: 503, body: String::new(), headers });
    let requests = scene.sandbox.requests().len();
    let mut child = scene.command(&["errors", "retry"]).spawn().unwrap();
    eventually("it was throttled", async || scene.sandbox.requests().len() == requests + 1).await;
    request_stop(&mut child, Signal::SIGTERM).await;
    let ended = tokio::time::timeout(Duration::from_secs(10), child.wait()).await;
    assert_eq!(ended.expect("it does not wait").unwrap().code(), Some(143));
    assert_eq!(scene.sandbox.requests().len(), requests + 1, "nothing more was sent");
    assert_eq!(scene.text(OF_THE_RETRY).await, "interrupted rejected 1 false");
}

#[sqlx::test(migrations = false)]
async fn retry_reports_an_answer_later_than_shutdown_grace(pool: PgPool) {
    let mut scene = scene_with_an_error(pool).await;
    scene.set("ELVEN_SYNC_SYNC__SHUTDOWN_GRACE", "300ms");
    scene.set("ELVEN_SYNC_SYNC__LEASE", "1m");
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let mut child = scene.command(&["errors", "retry"]).spawn().unwrap();
    gate.reached().await;
    request_stop(&mut child, Signal::SIGTERM).await;
    assert_eq!(child.wait().await.unwrap().code(), Some(143));
    gate.open();
    assert_eq!(scene.text(OF_THE_RETRY).await, "interrupted unknown 1 false");
    let lease = "select (lease_owner is not null)::text from elven_sync.sync_state";
    assert_eq!(scene.text(lease).await, "true", "what was sent may still arrive");
}

/// Starts a command, stops it with a signal while its first request waits for the answer, and returns its exit code.
async fn stopped_by(scene: &TestEnv, name: Signal, arguments: &[&str]) -> Option<i32> {
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let plain = scene.command(arguments);
    let variables = plain.as_std().get_envs().filter_map(|(name, value)| Some((name, value?)));
    // The tests may have been started with SIGHUP ignored, e.g. by nohup; the command then would ignore it, too.
    let mut command = tokio::process::Command::new("/usr/bin/env");
    command.arg("--default-signal=HUP").arg(plain.as_std().get_program()).args(arguments);
    command.env_clear().envs(variables).kill_on_drop(true);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    gate.reached().await;
    request_stop(&mut child, name).await;
    gate.open();
    child.wait().await.unwrap().code()
}

/// At the end of a session or of a terminal, what is in flight is finished, and nothing more is sent.
#[sqlx::test(migrations = false)]
async fn sighup_stops_work_like_sigterm(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    let statuses = "select string_agg(status, ',' order by run_id) from elven_sync.sync_runs";
    assert_eq!(stopped_by(&scene, Signal::SIGHUP, &["run"]).await, Some(129));
    assert_eq!((scene.text(statuses).await.as_str(), scene.received().len()), ("interrupted", 2));
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(0), "the next run continues at once");
    assert_eq!(scene.received().len(), 6);
    let range = ["backfill", "--from", "2024-01-01", "--to", "2024-02-01"];
    assert_eq!(stopped_by(&scene, Signal::SIGHUP, &range).await, Some(129));
    assert_eq!(scene.text(statuses).await, "interrupted,succeeded,interrupted");
    assert_eq!(scene.received().len(), 8);
}

#[sqlx::test(migrations = false)]
async fn sighup_stops_a_retry_like_sigterm(pool: PgPool) {
    let scene = scene_with_an_error(pool).await;
    assert_eq!(stopped_by(&scene, Signal::SIGHUP, &["errors", "retry"]).await, Some(129));
    assert_eq!(scene.text(OF_THE_RETRY).await, "interrupted accepted 1 true");
}

/// Whoever starts a run with `nohup` wants it to outlive the session.
#[cfg(target_os = "linux")]
#[sqlx::test(migrations = false)]
async fn a_run_that_was_started_with_sighup_ignored_goes_on(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let plain = scene.command(&["run"]);
    let variables = plain.as_std().get_envs().filter_map(|(name, value)| Some((name, value?)));
    let mut ignoring = tokio::process::Command::new("/bin/sh");
    ignoring.args(["-c", "trap '' HUP; exec \"$0\" run"]).arg(plain.as_std().get_program());
    let mut child = ignoring.env_clear().envs(variables).kill_on_drop(true).spawn().unwrap();
    gate.reached().await;
    signal(&child, Signal::SIGHUP);
    gate.open();
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
    assert_eq!(scene.received().len(), 6);
}
