//! The end of a service, and starts that fail.

use std::time::{Duration, Instant};

use elven_sync::sandbox::{Fault, Gate, Options};
use nix::sys::signal::Signal;
use sqlx::PgPool;

use super::{Service, add_row};
use crate::support::{TestEnv, output_of, scene_with_three_batches};

#[sqlx::test(migrations = false)]
async fn sigterm_in_mid_run_finishes_the_requests_in_flight_and_loses_nothing(pool: PgPool) {
    for name in [Signal::SIGTERM, Signal::SIGINT] {
        let scene = if name == Signal::SIGTERM {
            scene_with_three_batches(pool.clone()).await
        } else {
            let mut scene = TestEnv::connect_like(pool.clone(), Options::default()).await;
            scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
            scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
            scene.sql("update ledger.balance_snapshots set balance = balance + 1").await;
            scene
        };
        let gate = Gate::new();
        scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
        let service = Service::start(&scene, &["--every", "1h"]).await;
        gate.reached().await;
        service.signal(name);
        service.logs("stopping after the requests in flight").await;
        assert_eq!(service.get("/healthz").await.status, 200, "it answers to the end");
        gate.open();
        let (code, printed) = service.ended().await;
        assert_eq!((code, printed.as_str()), (Some(0), ""), "{name}");
        let last = "select concat_ws(' ', status, rows_uploaded) from elven_sync.sync_runs order by run_id desc limit 1";
        assert_eq!(scene.text(last).await, "interrupted 2", "{name}");
        let lease = "select (lease_owner is null)::text from elven_sync.sync_state";
        assert_eq!(scene.text(lease).await, "true", "the lease is released at once");
        let report = scene.run().await;
        assert_eq!((report.counters.rows_uploaded, report.counters.retries), (4, 0), "{name}");
        assert_eq!(scene.received().len(), 6, "each row once");
    }
}

#[sqlx::test(migrations = false)]
async fn a_service_between_two_runs_stops_at_once(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let service = Service::start(&scene, &["--every", "1h"]).await;
    service.answers("/readyz", 200).await;
    let begun = Instant::now();
    service.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(10), "it does not wait for the next run");
}

/// Nothing of the run can be recorded. The service ends after the grace, and the next run recovers the batch.
#[sqlx::test(migrations = false)]
async fn shutdown_does_not_wait_for_longer_than_the_grace(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    scene.set("ELVEN_SYNC_SYNC__SHUTDOWN_GRACE", "100ms");
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let service = Service::start(&scene, &[]).await;
    gate.reached().await;
    let mut lock = scene.pool.begin().await.unwrap();
    sqlx::query("lock table elven_sync.sync_batches in exclusive mode").execute(&mut *lock).await.unwrap();
    service.signal(Signal::SIGTERM);
    service.logs("the run did not end within 3.1s, because the database or Elven did not answer").await;
    assert_eq!(service.ended().await.0, Some(0));
    lock.rollback().await.unwrap();
    gate.open();
    let report = scene.run().await;
    assert_eq!((report.counters.rows_uploaded, report.counters.retries), (6, 1));
}

#[sqlx::test(migrations = false)]
async fn a_second_signal_ends_the_service_at_once(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let service = Service::start(&scene, &[]).await;
    gate.reached().await;
    service.signal(Signal::SIGTERM);
    service.logs("a second signal stops at once").await;
    service.signal(Signal::SIGINT);
    assert_eq!(service.ended().await.0, Some(130));
    gate.open();
}

/// Mistakes at the very start end the service before it listens; nothing later does.
#[sqlx::test(migrations = false)]
async fn a_start_with_a_mistake_fails_before_it_listens(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    for (code, arguments, expected) in [
        (2, &["--every", "0s"][..], "expected 1s to 24h"),
        (2, &["--every", "1"], "expected a duration, e.g. 60s"),
        (2, &["--every", "soon"], "--every"),
        (2, &["--listen", "localhost"], "--listen"),
        (1, &["--listen", "192.0.2.1:9464"], "serve cannot listen on 192.0.2.1:9464"),
        (1, &["--config", "/nowhere.toml"], "cannot be read"),
        (1, &["--database-url", "mysql://u:s3cret@host/x"], "DATABASE_URL: "),
        (1, &["--database-url", "postgres://u:s3cret@host:port/x"], "DATABASE_URL: "),
        (2, &["--host", "a:9464"], "expected a host name or an IP address"),
        (2, &["--host", "Elven."], "--host"),
        (2, &["--host", "http://x"], "--host"),
        (2, &["--host", ""], "--host"),
        (2, &["--host", "*"], "--host"),
        (2, &["--host", "a b"], "--host"),
        (2, &["--host", "[::1]"], "--host"),
    ] {
        let arguments = [&["serve"], arguments].concat();
        let printed = output_of(&scene, code, &arguments).await;
        assert!(printed.contains(expected) && !printed.contains("serving"), "{arguments:?}: {printed}");
        assert!(!printed.contains("s3cret"), "{arguments:?}: {printed}");
    }
    scene.set("ELVEN_SYNC_LEDGER_URL", "mysql://u:s3cret@host/x");
    let printed = output_of(&scene, 1, &["serve"]).await;
    assert!(printed.contains("ELVEN_SYNC_LEDGER_URL: ") && !printed.contains("s3cret"), "{printed}");
    scene.unset("ELVEN_SYNC_LEDGER_URL");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "0");
    let printed = output_of(&scene, 1, &["serve"]).await;
    assert!(printed.contains("batch_rows = 0") && !printed.contains("serving"), "{printed}");
    scene.unset("ELVEN_SYNC_SYNC__BATCH_ROWS");
    scene.unset("DATABASE_URL");
    let printed = output_of(&scene, 1, &["serve"]).await;
    assert!(printed.contains("DATABASE_URL is not set"), "{printed}");
}

/// A password in the address, keys and secrets are in no answer and in no line of the log.
#[sqlx::test(migrations = false)]
async fn no_secret_is_shown(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    add_row(&scene, "a").await;
    scene.set("DATABASE_URL", "postgres://user:pw-5d2e@127.0.0.1:1/ledger");
    let service = Service::start(&scene, &["--every", "1s"]).await;
    service.logs("the run could not begin").await;
    let mut shown = service.log();
    for path in ["/healthz", "/readyz", "/metrics", "/", "/none"] {
        let answer = service.get(path).await;
        shown += &answer.headers;
        shown += &answer.body;
    }
    for secret in ["pw-5d2e", crate::support::KEY, crate::support::SECRET] {
        assert!(!shown.contains(secret), "{secret}: {shown}");
    }
    service.stop().await;
}
