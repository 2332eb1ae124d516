//! A run that lasts longer than the interval: a lane that is at work delays no other entity.

use std::time::Duration;

use elven_sync::sandbox::{Fault, Gate};
use nix::sys::signal::Signal;
use sqlx::PgPool;

use super::{Service, accounts, add_row, arrives};
use crate::support::{TestEnv, assert_stays, eventually, output_of};

const RUNS: &str = "select count(*)::text from elven_sync.sync_runs";
const POLLED_AT: &str = "select max(polled_at)::text from elven_sync.sync_runs";

/// Entity `big` with three batches, and `acme`, which has no rows yet. The answer to the first batch is held.
async fn held_scene(pool: PgPool) -> (TestEnv, Gate) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.set("ELVEN_SYNC_API__TIMEOUT", "10m");
    scene.entity("big", "UTC").await;
    scene.entity("acme", "UTC").await;
    add_big_rows(&scene).await;
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    (scene, gate)
}

async fn add_big_rows(scene: &TestEnv) {
    let rows =
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                select 'big', 'big' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 3) n";
    scene.sql(rows).await;
}

/// Waits until all rows have arrived, and checks that each was sent once.
async fn all_arrive_once(scene: &TestEnv, service: Service, expected: &[&str]) {
    arrives(scene, &service, "big3").await;
    service.stop().await;
    let mut arrived = accounts(scene);
    arrived.sort();
    assert_eq!(arrived, expected);
    let again =
        "select count(*)::text from elven_sync.sync_batches where attempts <> 1 or status <> 'accepted'";
    assert_eq!(scene.text(again).await, "0");
    output_of(scene, 0, &["verify"]).await;
}

#[sqlx::test(migrations = false)]
async fn a_busy_lane_delays_no_other_entity(pool: PgPool) {
    let (scene, gate) = held_scene(pool).await;
    let service = Service::start(&scene, &["--every", "1s"]).await;
    gate.reached().await;
    for account in ["a1", "a2"] {
        add_row(&scene, account).await;
        arrives(&scene, &service, account).await;
    }
    scene.entity("late", "UTC").await;
    let row =
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('late', 'late1', 'BTC', '2024-01-01Z', 1)";
    scene.sql(row).await;
    arrives(&scene, &service, "late1").await;
    let caught_up = "select (bool_and(pending_since is null and last_error is null) and count(*) = 2)::text
                       from elven_sync.sync_state where entity_id <> 'big'";
    eventually("they are noted to be up to date", async || scene.text(caught_up).await == "true").await;
    let polled_at = scene.text(POLLED_AT).await;
    eventually("the run polls again", async || scene.text(POLLED_AT).await != polled_at).await;
    assert_eq!(scene.text(RUNS).await, "1", "runs do not overlap");
    assert_eq!(accounts(&scene).iter().filter(|account| account.starts_with("big")).count(), 1);
    assert_eq!(service.get("/healthz").await.status, 200);
    output_of(&scene, 0, &["entity", "pause", "acme"]).await;
    add_row(&scene, "a3").await;
    let is_left_alone = async || !accounts(&scene).contains(&"a3".to_owned());
    assert_stays("a paused entity is left alone", Duration::from_secs(3), is_left_alone).await;
    gate.open();
    service
        .logs("run 1 succeeded: 6 rows read, 6 uploaded, 0 set aside, 0 superseded, 0 pending; 6 requests")
        .await;
    let lanes = "select string_agg(entity_id || ' ' || lease_epoch, ',' order by entity_id) from elven_sync.sync_state";
    assert_eq!(scene.text(lanes).await, "acme 2,big 1,late 1", "each entity had one lane at a time");
    all_arrive_once(&scene, service, &["a1", "a2", "big1", "big2", "big3", "late1"]).await;
}

/// An entity that failed is tried again with each poll, as it would be with each run.
#[sqlx::test(migrations = false)]
async fn an_entity_that_failed_is_tried_again_beside_a_busy_lane(pool: PgPool) {
    let (scene, gate) = held_scene(pool).await;
    scene.sql("update elven_sync.entities set timezone = 'Nowhere/City' where entity_id = 'acme'").await;
    add_row(&scene, "a1").await;
    let service = Service::start(&scene, &["--every", "1s"]).await;
    gate.reached().await;
    service.logs("entity acme failed: ").await;
    scene.sql("update elven_sync.entities set timezone = 'UTC' where entity_id = 'acme'").await;
    arrives(&scene, &service, "a1").await;
    assert_eq!(scene.text(RUNS).await, "1");
    gate.open();
    service.logs("run 1 succeeded: 4 rows read").await;
    all_arrive_once(&scene, service, &["a1", "big1", "big2", "big3"]).await;
}

/// An error that is no failure of the entity, because the database could not do what it should.
#[sqlx::test(migrations = false)]
async fn a_lane_that_ends_with_an_error_is_logged_and_tried_again_beside_a_busy_lane(pool: PgPool) {
    let (scene, gate) = held_scene(pool).await;
    scene
        .sql(
            "create function refuse() returns trigger language plpgsql as $$ begin raise 'refused by a test'; end $$;
             create trigger refuse before insert on elven_sync.sync_passes
                 for each row when (new.entity_id = 'acme') execute function refuse()",
        )
        .await;
    let service = Service::start(&scene, &["--every", "1s"]).await;
    gate.reached().await;
    add_row(&scene, "a1").await;
    service.logs("entity acme failed: ").await;
    assert!(service.log().contains("refused by a test"), "{}", service.log());
    scene.sql("drop trigger refuse on elven_sync.sync_passes").await;
    arrives(&scene, &service, "a1").await;
    assert_eq!(scene.text(RUNS).await, "1");
    gate.open();
    service.logs("run 1 succeeded: 4 rows read").await;
    all_arrive_once(&scene, service, &["a1", "big1", "big2", "big3"]).await;
}

/// A poll that fails ends no lane, and the next one tries again.
#[sqlx::test(migrations = false)]
async fn a_poll_that_fails_ends_no_lane(pool: PgPool) {
    let (scene, gate) = held_scene(pool).await;
    let service = Service::start(&scene, &["--every", "1s"]).await;
    gate.reached().await;
    scene.sql("alter table elven_sync.entities rename to away").await;
    service.logs("the run could not poll again").await;
    let polled_at = scene.text(POLLED_AT).await;
    scene.sql("alter table elven_sync.away rename to entities").await;
    eventually("the run polls again", async || scene.text(POLLED_AT).await != polled_at).await;
    assert_eq!(service.log().matches("the run could not poll again").count(), 1);
    gate.open();
    service.logs("run 1 succeeded: 3 rows read").await;
    all_arrive_once(&scene, service, &["big1", "big2", "big3"]).await;
}

#[sqlx::test(migrations = false)]
async fn sighup_polls_at_once_beside_a_busy_lane(pool: PgPool) {
    let (scene, gate) = held_scene(pool).await;
    let service = Service::start(&scene, &["--every", "1h"]).await;
    gate.reached().await;
    add_row(&scene, "a1").await;
    let is_idle = async || accounts(&scene).len() == 1;
    assert_stays("the next poll is an hour away", Duration::from_secs(2), is_idle).await;
    service.signal(Signal::SIGHUP);
    arrives(&scene, &service, "a1").await;
    assert_eq!(scene.text(RUNS).await, "1");
    gate.open();
    all_arrive_once(&scene, service, &["a1", "big1", "big2", "big3"]).await;
}

#[sqlx::test(migrations = false)]
async fn a_run_that_stops_does_not_poll_again(pool: PgPool) {
    let (scene, gate) = held_scene(pool).await;
    let service = Service::start(&scene, &["--every", "1s"]).await;
    gate.reached().await;
    service.signal(Signal::SIGTERM);
    service.logs("stopping after the requests in flight").await;
    add_row(&scene, "a1").await;
    let is_idle = async || accounts(&scene).len() == 1;
    assert_stays("no lane begins", Duration::from_secs(3), is_idle).await;
    gate.open();
    assert_eq!(service.ended().await.0, Some(0));
    let report = scene.run().await;
    assert_eq!((report.counters.rows_uploaded, report.counters.retries), (3, 0));
}

/// Otherwise a new setting could wait for hours.
#[sqlx::test(migrations = false)]
async fn a_changed_configuration_ends_a_run_after_its_requests_in_flight(pool: PgPool) {
    let (mut scene, gate) = held_scene(pool).await;
    scene.unset("ELVEN_SYNC_SYNC__BATCH_ROWS");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    std::fs::write(&path, "[sync]\nbatch_rows = 1\n").unwrap();
    scene.set("ELVEN_SYNC_CONFIG", path.to_str().unwrap());
    let service = Service::start(&scene, &["--every", "1s"]).await;
    gate.reached().await;
    std::fs::write(&path, "[sync]\nbatch_rows = 2\n").unwrap();
    service.logs("the configuration has changed, so the run under way ends").await;
    assert_eq!(scene.text(RUNS).await, "1", "the request in flight is waited for");
    gate.open();
    service.logs("run 2 succeeded: 2 rows read, 2 uploaded").await;
    assert!(service.log().contains("run 1 succeeded: 1 rows read, 1 uploaded"), "{}", service.log());
    let sizes = "select string_agg(row_count::text, ',' order by batch_id) from elven_sync.sync_batches";
    assert_eq!(scene.text(sizes).await, "1,2", "the new configuration is in use");
    all_arrive_once(&scene, service, &["big1", "big2", "big3"]).await;
}

/// Cron begins a run per minute, so a run of the command line need not poll again.
#[sqlx::test(migrations = false)]
async fn a_run_of_the_command_line_polls_once(pool: PgPool) {
    let (scene, gate) = held_scene(pool).await;
    let run = scene.command(&["run"]).spawn().unwrap();
    gate.reached().await;
    add_row(&scene, "a1").await;
    let polled_at = scene.text(POLLED_AT).await;
    let is_left_alone = async || scene.text(POLLED_AT).await == polled_at;
    assert_stays("it does not poll again", Duration::from_secs(2), is_left_alone).await;
    gate.open();
    assert_eq!(run.wait_with_output().await.unwrap().status.code(), Some(0));
    assert_eq!(accounts(&scene).len(), 3);
}
