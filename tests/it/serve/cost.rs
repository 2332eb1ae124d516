//! What an idle service costs.

use sqlx::PgPool;

use super::Service;
use crate::proxy::Network;
use crate::support::{TestEnv, eventually, output_of};

const RUNS: &str = "select count(*)::text from elven_sync.sync_runs where finished_at is not null";

/// Between two runs the service asks nothing, and a run of it asks no more than `elven-sync run`.
#[sqlx::test(migrations = false)]
async fn an_idle_cycle_costs_no_more_statements_than_an_idle_run(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    let network = Network::to(&scene.url).await;
    scene.set("DATABASE_URL", network.url());
    // A run ends before its first heartbeat.
    scene.set("ELVEN_SYNC_SYNC__LEASE", "10m");
    scene.entity("acme", "UTC").await;
    output_of(&scene, 0, &["run"]).await;
    network.count();
    output_of(&scene, 0, &["run"]).await;
    let (_, of_run) = network.count();
    let runs = async || scene.text(RUNS).await.parse::<u64>().unwrap();
    let before = runs().await;
    let service = Service::start(&scene, &["--every", "1s"]).await;
    eventually("runs of the service", async || runs().await >= before + 5).await;
    service.stop().await;
    let (connections, of_service) = network.count();
    let cycles = runs().await - before;
    assert!(of_service <= cycles * of_run, "{of_service} statements in {cycles} cycles; a run has {of_run}");
    assert_eq!(connections, 1, "the connection is kept");
}
