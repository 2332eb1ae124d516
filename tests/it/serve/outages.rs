//! Outages of the database and of Elven: the service survives them, and says what it should to probes.

use std::time::{Duration, Instant};

use sqlx::PgPool;

use super::{Service, add_row, arrives, value};
use crate::cluster::Cluster;
use crate::proxy::Network;
use crate::support::{TestEnv, assert_stays, eventually, fault_rules};

const UP: &str = "elven_sync_up";

/// Before the first poll, in a short outage, in a long one, and after it.
#[sqlx::test(migrations = false)]
async fn the_service_survives_a_database_restart(pool: PgPool) {
    let mut cluster = Cluster::new(&pool).await;
    let mut scene = TestEnv::at(&cluster.url("ledger")).await;
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "1s");
    scene.entity("acme", "UTC").await;
    add_row(&scene, "a").await;
    cluster.crash();
    let mut service = Service::start(&scene, &["--every", "1s"]).await;
    service.logs("the run could not begin").await;
    let unready = service.get("/readyz").await;
    assert_eq!((unready.status, unready.body.as_str()), (503, "the database was not reached yet\n"));
    assert_eq!(service.get("/healthz").await.status, 200, "no dependency makes it unhealthy");
    let metrics = service.get("/metrics").await;
    assert_eq!((metrics.status, value(&metrics.body, UP).as_deref()), (200, Some("0")));
    let away = value(&metrics.body, "elven_sync_process_cycles_total{outcome=\"database_away\"}").unwrap();
    assert!(away.parse::<i64>().unwrap() >= 1, "{}", metrics.body);

    cluster.start().await;
    arrives(&scene, &service, "a").await;
    service.answers("/readyz", 200).await;
    assert_eq!(service.value(UP).await.as_deref(), Some("1"));

    cluster.crash();
    let begun = Instant::now();
    let is_ready = async || {
        assert_eq!(service.get("/healthz").await.status, 200);
        service.get("/readyz").await.status == 200
    };
    assert_stays("it stays ready over a short outage", Duration::from_secs(50), is_ready).await;
    let mut answer = service.get("/readyz").await;
    while answer.status == 200 && begun.elapsed() < Duration::from_secs(90) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        answer = service.get("/readyz").await;
    }
    assert!(answer.body.starts_with("the database has been away for 6"), "{answer:?}");
    assert_eq!(service.get("/healthz").await.status, 200);
    assert!(service.runs());

    cluster.start().await;
    service.answers("/readyz", 200).await;
    add_row(&scene, "b").await;
    arrives(&scene, &service, "b").await;
    service.stop().await;
}

#[sqlx::test(migrations = false)]
async fn an_outage_of_elven_does_not_make_the_service_unready(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "2");
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "10ms");
    scene.entity("acme", "UTC").await;
    add_row(&scene, "a").await;
    scene.sandbox.set_rules(fault_rules(&["error-500"]));
    let service = Service::start(&scene, &["--every", "1s"]).await;
    service.logs("entity acme failed: ").await;
    for path in ["/readyz", "/healthz"] {
        assert_eq!(service.get(path).await.status, 200, "{path}");
    }
    let failed = "elven_sync_entities{status=\"failing\"}";
    assert_eq!(service.value(failed).await.as_deref(), Some("1"));
    scene.sandbox.set_rules(Vec::new());
    arrives(&scene, &service, "a").await;
    service.stop().await;
}

/// A database without the sync tables is not ready, and the service waits for them.
#[sqlx::test(migrations = false)]
async fn the_service_waits_for_the_schema(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.sql("alter schema elven_sync rename to away").await;
    let service = Service::start(&scene, &["--every", "24h"]).await;
    service.logs("the sync tables do not exist").await;
    let unready = service.get("/readyz").await;
    assert!(unready.status == 503 && unready.body.contains("elven-sync migrate"), "{unready:?}");
    scene.sql("alter schema away rename to elven_sync").await;
    service.answers("/readyz", 200).await;
    service.stop().await;
}

/// The database gives no answer, as behind a firewall that drops packets. A check of it takes 2 s then.
#[sqlx::test(migrations = false)]
async fn a_probe_waits_less_than_a_check_of_a_silent_database(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    let network = Network::to(&scene.url).await;
    scene.set("DATABASE_URL", network.url());
    scene.entity("acme", "UTC").await;
    let service = Service::start(&scene, &["--every", "24h"]).await;
    service.answers("/readyz", 200).await;
    network.cut();
    for _ in 0..3 {
        let answer = tokio::time::timeout(Duration::from_millis(1900), service.get("/readyz")).await;
        assert_eq!(answer.expect("it does not wait for the check").status, 200, "in a short outage");
    }
    network.mend();
    service.stop().await;
}

/// A scrape reads the tables that it knows, whatever the version of the schema.
#[sqlx::test(migrations = false)]
async fn a_scrape_does_not_make_a_wrong_schema_ready(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let service = Service::start(&scene, &["--every", "24h"]).await;
    service.answers("/readyz", 200).await;
    scene
        .sql(
            "insert into elven_sync._migrations (version, description, success, checksum, execution_time)
             values (9999, 'newer', true, '', 0)",
        )
        .await;
    service.answers("/readyz", 503).await;
    for path in ["/metrics", "/status.json", "/readyz"] {
        service.get(path).await;
        assert_eq!(service.get("/readyz").await.status, 503, "after {path}");
    }
    service.stop().await;
}

/// A cycle that fails each second does not fill the log.
#[sqlx::test(migrations = false)]
async fn the_same_failure_of_a_cycle_is_logged_once(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.sql("alter schema elven_sync rename to away").await;
    let service = Service::start(&scene, &["--every", "1s"]).await;
    let failed = "elven_sync_process_cycles_total{outcome=\"failed\"}";
    let times = async || service.value(failed).await.and_then(|times| times.parse::<i64>().ok());
    eventually("some cycles fail", async || times().await >= Some(4)).await;
    assert_eq!(service.log().matches("the sync tables do not exist").count(), 1, "{}", service.log());
    service.stop().await;
}
