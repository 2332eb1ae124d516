//! The number of statements of a run: independent of the number of entities, and small for each pending one.

use sqlx::PgPool;

use crate::proxy::Network;
use crate::support::{TestEnv, stderr};

/// A ledger of entities without pending rows, and a network to it.
async fn scene_with(pool: PgPool, entities: i32) -> (TestEnv, Network) {
    let mut scene = TestEnv::new(pool).await;
    let network = Network::to(&scene.url).await;
    scene.set("DATABASE_URL", network.url());
    // The run ends before its first heartbeat.
    scene.set("ELVEN_SYNC_SYNC__LEASE", "10m");
    sqlx::query(
        "insert into elven_sync.entities (entity_id, timezone) select 'e' || n, 'UTC' from generate_series(1, $1) n",
    )
    .bind(entities)
    .execute(&scene.pool)
    .await
    .unwrap();
    add_rows_to(&scene, entities).await;
    scene
        .sql(
            "update elven_sync.sync_state
                set settled = pg_current_snapshot(), ledger_table = '\"ledger\".\"balance_snapshots\"',
                    system_identifier = (select system_identifier from pg_control_system());
             insert into elven_sync.sync_passes (entity_id, target, finished_at)
             select entity_id, settled, now() from elven_sync.sync_state",
        )
        .await;
    (scene, network)
}

/// Adds a row to each of the first entities.
async fn add_rows_to(scene: &TestEnv, entities: i32) {
    sqlx::query(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select 'e' || n, 'a', 'BTC', clock_timestamp(), n from generate_series(1, $1) n",
    )
    .bind(entities)
    .execute(&scene.pool)
    .await
    .unwrap();
}

/// Returns the connections and statements of a run that uploads this many rows.
async fn cost(scene: &TestEnv, network: &Network, rows: i64) -> (u64, u64) {
    let received = scene.received().len();
    network.count();
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(scene.received().len() - received, usize::try_from(rows).unwrap());
    network.count()
}

#[sqlx::test(migrations = false)]
async fn idle_run_statement_count_is_independent_of_entities(pool: PgPool) {
    let (scene, network) = scene_with(pool, 2000).await;
    // The first run records the time zone rules of each entity.
    cost(&scene, &network, 0).await;
    let (connections, statements) = cost(&scene, &network, 0).await;
    assert!(statements <= 30, "{statements} statements");
    assert_eq!(connections, 1, "one transaction after the other");
    let well = "select count(*)::text from elven_sync.sync_health where status = 'ok' and last_success_at is not null";
    assert_eq!(scene.text(well).await, "2000", "all are noted to be well");
}

#[sqlx::test(migrations = false)]
async fn pending_entity_costs_a_bounded_number_of_statements(pool: PgPool) {
    let (scene, network) = scene_with(pool, 100).await;
    let mut costs = Vec::new();
    for entities in [1, 21] {
        add_rows_to(&scene, entities).await;
        costs.push(cost(&scene, &network, entities.into()).await.1);
    }
    let [one, many] = costs[..] else { unreachable!() };
    assert!(one <= 77, "{one} statements for one row");
    let each = (many - one) / 20;
    assert!(each <= 34, "{each} statements for each entity with a row");
}

/// Rows that are still invalid are recorded page by page, and rows that can be sent go in whole batches.
#[sqlx::test(migrations = false)]
async fn retry_of_many_rows_costs_a_bounded_number_of_statements(pool: PgPool) {
    let (mut scene, network) = scene_with(pool, 1).await;
    scene.set("ELVEN_SYNC_SYNC__ON_INVALID_START", "set_aside");
    let rows: u64 = 5_000;
    sqlx::query(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select 'e1', 'b' || n, 'BTC', '2024-01-01Z', 'NaN' from generate_series(1, $1) n",
    )
    .bind(i64::try_from(rows).unwrap())
    .execute(&scene.pool)
    .await
    .unwrap();
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(3));
    let retry = async |code: i32| {
        network.count();
        let output = scene.output(&["errors", "retry"]).await;
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        network.count().1
    };
    let statements = retry(3).await;
    assert!(statements <= 120, "{statements} statements for {rows} rows that are still invalid");
    let counted = "select string_agg(distinct occurrences::text, ',') from elven_sync.sync_errors";
    assert_eq!(scene.text(counted).await, "2");
    scene.sql("alter table ledger.balance_snapshots disable trigger stamp_change_xid").await;
    scene.sql("update ledger.balance_snapshots set balance = 1").await;
    let received = scene.sandbox.requests().len();
    let statements = retry(0).await;
    assert_eq!(scene.sandbox.requests().len() - received, 5, "requests for 5,000 rows");
    assert!(statements <= 200, "{statements} statements for {rows} rows that can be sent");
}
