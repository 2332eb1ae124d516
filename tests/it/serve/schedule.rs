//! When runs begin, and what each of them reads again.

use std::time::Duration;

use elven_sync::sandbox::Options;
use nix::sys::signal::Signal;
use sqlx::PgPool;

use super::{Service, accounts, add_row, arrives};
use crate::support::{FAULT_POINT, TestEnv, assert_stays, eventually, output_of, scene_with_three_batches};

const RUNS: &str = "select count(*)::text from elven_sync.sync_runs";

#[sqlx::test(migrations = false)]
async fn the_first_run_begins_at_once_and_the_next_after_the_interval(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    add_row(&scene, "a").await;
    let service = Service::start(&scene, &["--every", "1h"]).await;
    arrives(&scene, &service, "a").await;
    service.logs("run 1 succeeded: 1 rows read, 1 uploaded").await;
    add_row(&scene, "b").await;
    let is_one = async || scene.text(RUNS).await == "1";
    assert_stays("the next run is an hour away", Duration::from_secs(3), is_one).await;
    service.stop().await;
    let scene_of_seconds = scene;
    let service = Service::start(&scene_of_seconds, &["--every", "1s"]).await;
    arrives(&scene_of_seconds, &service, "b").await;
    add_row(&scene_of_seconds, "c").await;
    arrives(&scene_of_seconds, &service, "c").await;
    service.stop().await;
    let kinds = "select string_agg(distinct kind || ' ' || status, ',') from elven_sync.sync_runs
                   where status <> 'interrupted'";
    assert_eq!(scene_of_seconds.text(kinds).await, "incremental succeeded", "each cycle is a normal run");
}

/// Entities that are registered, paused or removed while the service runs.
#[sqlx::test(migrations = false)]
async fn each_run_reads_the_entities_again(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let mut service = Service::start(&scene, &["--every", "1s"]).await;
    service.answers("/readyz", 200).await;
    scene.entity("acme", "UTC").await;
    add_row(&scene, "a").await;
    arrives(&scene, &service, "a").await;
    output_of(&scene, 0, &["entity", "pause", "acme"]).await;
    add_row(&scene, "b").await;
    let before = scene.text(RUNS).await;
    let went_on =
        async || scene.text(RUNS).await.parse::<i64>().unwrap() > before.parse::<i64>().unwrap() + 2;
    eventually("three more runs", went_on).await;
    assert_eq!(accounts(&scene), ["a"], "a paused entity is left alone");
    output_of(&scene, 0, &["entity", "resume", "acme"]).await;
    arrives(&scene, &service, "b").await;
    assert!(service.runs());
    service.stop().await;
}

/// A run that lasts longer than the interval: the next one begins after it, at once.
#[sqlx::test(migrations = false)]
async fn runs_never_overlap(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    scene.sandbox.set_rules(vec!["slow=1500ms".parse().unwrap()]);
    let service = Service::start(&scene, &["--every", "1s"]).await;
    eventually("three runs", async || scene.text(RUNS).await.parse::<i64>().unwrap() >= 3).await;
    scene.sandbox.set_rules(Vec::new());
    service.stop().await;
    assert_eq!(scene.received().len(), 6);
    let overlaps =
        "select count(*)::text from elven_sync.sync_runs a join elven_sync.sync_runs b on b.run_id > a.run_id
                     where b.started_at < a.finished_at or a.finished_at is null";
    assert_eq!(scene.text(overlaps).await, "0");
    let first =
        "select (finished_at - started_at > interval '4 s')::text from elven_sync.sync_runs order by run_id";
    assert_eq!(scene.text(first).await, "true", "the first run lasted for some intervals");
    let gap =
        "select (min(b.started_at) - min(a.finished_at) < interval '1 s')::text from elven_sync.sync_runs a
                 join elven_sync.sync_runs b on b.run_id = a.run_id + 1 where a.run_id = 1";
    assert_eq!(scene.text(gap).await, "true", "an interval that is over is not waited for");
}

#[sqlx::test(migrations = false)]
async fn a_panic_of_a_run_does_not_end_the_service(pool: PgPool) {
    for point in ["begin_run:before=panic", "settle:before=panic"] {
        let mut scene = if point.starts_with("begin") {
            let scene = TestEnv::new(pool.clone()).await;
            scene.entity("acme", "UTC").await;
            scene
        } else {
            TestEnv::connect_like(pool.clone(), Options::default()).await
        };
        let account = point.split(':').next().unwrap();
        add_row(&scene, account).await;
        scene.set(FAULT_POINT, point);
        let mut service = Service::start(&scene, &["--every", "1s"]).await;
        service.logs("a test asked for a panic").await;
        arrives(&scene, &service, account).await;
        let caught_up = "select (sum(pending_rows) = 0 and bool_and(last_error is null))::text from elven_sync.sync_health";
        eventually(point, async || scene.text(caught_up).await == "true").await;
        assert!(service.runs(), "{point}");
        assert_eq!(service.get("/healthz").await.status, 200);
        service.stop().await;
    }
}

/// What a person has to see is in the log, and not only in the tables.
#[sqlx::test(migrations = false)]
async fn a_run_that_fails_is_logged_and_the_next_one_is_made(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "Nowhere/City").await;
    add_row(&scene, "a").await;
    let service = Service::start(&scene, &["--every", "1s"]).await;
    service.logs("entity acme failed: ").await;
    scene.sql("update elven_sync.entities set timezone = 'UTC'").await;
    arrives(&scene, &service, "a").await;
    service.signal(Signal::SIGTERM);
    let (code, printed) = service.ended().await;
    assert_eq!((code, printed.as_str()), (Some(0), ""), "stdout is for results");
}

/// The lines of a cycle belong to its run, and those of an entity to the entity.
#[sqlx::test(migrations = false)]
async fn lines_of_a_cycle_have_the_run_and_the_entity(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_LOG_FORMAT", "json");
    scene.set("ELVEN_SYNC_LOG", "info");
    scene.entity("acme", "Nowhere/City").await;
    add_row(&scene, "a").await;
    let service = Service::start(&scene, &["--every", "30s"]).await;
    service.logs("entity acme failed: ").await;
    service.logs("run 1 failed").await;
    let log = service.log();
    service.stop().await;
    let line = |words: &str| -> serde_json::Value {
        let line = log.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{words}: {log}"));
        serde_json::from_str(line).unwrap()
    };
    let failure = line("entity acme failed: ");
    assert_eq!((&failure["run_id"], &failure["entity_id"]), (&1.into(), &"acme".into()), "{failure}");
    let summary = line("run 1 failed");
    assert_eq!((&summary["run_id"], summary.get("entity_id")), (&1.into(), None), "{summary}");
}
