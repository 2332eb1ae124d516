//! Alerts about entities, their rows and their batches.

use sqlx::PgPool;

use super::{NONE, add_row, alert, alerts, named};
use crate::support::{TestEnv, fault_rules, output_of};

#[sqlx::test(migrations = false)]
async fn failing_entity_alerts_until_it_is_up_to_date(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    add_row(&scene, "acme").await;
    scene.sandbox.set_rules(fault_rules(&["revoked"]));
    output_of(&scene, 1, &["run"]).await;
    assert_eq!(named(&scene).await, ["Failing critical acme"]);
    let first = alert(&scene, "Failing").await;
    assert!(
        first.message.starts_with("the last attempt failed: ") && !first.message.contains("hint"),
        "{first:?}"
    );
    assert_eq!(first.hint, "elven-sync errors list --entity 'acme'");
    // An outage after that is the same failure.
    scene.sandbox.set_rules(fault_rules(&["cut-before"]));
    let mut scene = scene;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    output_of(&scene, 1, &["run"]).await;
    let second = alert(&scene, "Failing").await;
    assert_eq!((second.since, second.severity.as_str()), (first.since, "critical"));
    scene.sandbox.set_rules(Vec::new());
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE);
    // An outage needs no person.
    scene.sandbox.set_rules(fault_rules(&["unavailable"]));
    add_row(&scene, "acme").await;
    output_of(&scene, 1, &["run"]).await;
    assert_eq!(alert(&scene, "Failing").await.severity, "warning");
    output_of(&scene, 0, &["entity", "pause", "acme"]).await;
    assert_eq!(named(&scene).await, NONE, "a person knows of it");
}

#[sqlx::test(migrations = false)]
async fn throttled_entity_alerts_until_the_api_accepts_rows_again(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    add_row(&scene, "acme").await;
    scene.sandbox.set_rules(fault_rules(&["throttle=2m"]));
    output_of(&scene, 1, &["run"]).await;
    assert_eq!(named(&scene).await, ["Throttled warning acme"]);
    let first = alert(&scene, "Throttled").await;
    assert!(first.message.contains("nothing is sent before"), "{first:?}");
    output_of(&scene, 1, &["run"]).await;
    assert_eq!(alert(&scene, "Throttled").await.since, first.since);
    scene.sandbox.set_rules(Vec::new());
    scene.sql("update elven_sync.sync_state set not_before = null").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE);
}

#[sqlx::test(migrations = false)]
async fn entity_that_is_paused_for_long_alerts_until_it_is_resumed(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.entity("o'beta", "UTC").await;
    scene.run().await;
    output_of(&scene, 0, &["entity", "pause", "acme"]).await;
    let pause =
        "update elven_sync.entities set paused = true, timezone = 'Asia/Tokyo' where entity_id like 'o%'";
    scene.sql(pause).await;
    assert_eq!(named(&scene).await, NONE, "for a few days that is normal");
    scene.sql("update elven_sync.sync_actions set at = at - interval '8 days'").await;
    assert_eq!(named(&scene).await, ["Paused warning acme", "Paused warning o'beta"]);
    let paused = alerts(&scene).await;
    assert_eq!(paused[0].hint, "elven-sync entity resume 'acme'");
    assert_eq!(paused[1].hint, "elven-sync entity list", "the id would need escapes");
    // Another change of a paused entity begins nothing anew.
    scene.sql("update elven_sync.entities set timezone = 'Asia/Seoul'").await;
    assert_eq!(alerts(&scene).await, paused);
    output_of(&scene, 0, &["entity", "resume", "acme"]).await;
    assert_eq!(named(&scene).await, ["Paused warning o'beta"]);
    output_of(&scene, 0, &["entity", "pause", "acme"]).await;
    assert_eq!(named(&scene).await, ["Paused warning o'beta"], "paused anew");
}

#[sqlx::test(migrations = false)]
async fn rows_that_are_set_aside_alert_until_their_errors_are_resolved(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__MAX_REJECTIONS", "5");
    scene.entity("acme", "UTC").await;
    scene.sandbox.set_rules(fault_rules(&["reject:negative"]));
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'acme', 'a' || n, 'BTC', '2024-01-01Z', case n when 1 then 'NaN'::numeric when 2 then 2 else -n end
               from generate_series(1, 5) n",
        )
        .await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(named(&scene).await, ["OpenErrors warning acme"]);
    let first = alert(&scene, "OpenErrors").await;
    assert_eq!(first.message, "4 rows are set aside: 1 invalid_row, 3 rejected_row");
    assert_eq!(first.hint, "elven-sync errors list --entity 'acme'");
    // The fourth of five rows that may be refused.
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'a6', 'BTC', '2024-01-01Z', -6), ('acme', 'a7', 'BTC', '2024-01-01Z', 7)",
        )
        .await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(named(&scene).await, ["NearRejectionBound warning acme", "OpenErrors warning acme"]);
    let near = alert(&scene, "NearRejectionBound").await;
    assert_eq!(near.message, "4 rows that the API refused are set aside; at 5 the entity stops");
    assert_eq!(near.hint, "elven-sync errors list --kind rejected_row --entity 'acme'");
    assert_eq!(alert(&scene, "OpenErrors").await.since, first.since);
    output_of(
        &scene,
        0,
        &["errors", "resolve", "--kind", "rejected_row", "--entity", "acme", "--reason", "a test"],
    )
    .await;
    assert_eq!(named(&scene).await, ["OpenErrors warning acme"]);
    assert_eq!(alert(&scene, "OpenErrors").await.message, "1 row is set aside: 1 invalid_row");
    scene.sql("update ledger.balance_snapshots set balance = 1 where balance = 'NaN'").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE);
}

#[sqlx::test(migrations = false)]
async fn batch_of_unknown_outcome_alerts_until_its_outcome_is_known(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.entity("acme", "UTC").await;
    add_row(&scene, "acme").await;
    scene.sandbox.set_rules(fault_rules(&["answer-lost@once:1"]));
    output_of(&scene, 1, &["run"]).await;
    assert_eq!(named(&scene).await, ["Failing warning acme", "UnknownOutcome warning acme"]);
    let unknown = alert(&scene, "UnknownOutcome").await;
    assert!(unknown.message.starts_with("the outcome of 1 batch is unknown"), "{unknown:?}");
    assert_eq!(unknown.hint, "elven-sync run --entity 'acme'");
    let mut transaction = scene.pool.begin().await.unwrap();
    sqlx::query("delete from elven_sync.entities").execute(&mut *transaction).await.unwrap();
    let left: i64 = sqlx::query_scalar("select count(*) from elven_sync.alerts")
        .fetch_one(&mut *transaction)
        .await
        .unwrap();
    assert_eq!(left, 0, "no run can send the batch of an entity that is not registered");
    transaction.rollback().await.unwrap();
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE);
}

#[sqlx::test(migrations = false)]
async fn unregistered_entity_alerts_until_it_is_registered(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    add_row(&scene, "ghost").await;
    output_of(&scene, 3, &["run"]).await;
    let ghost = alert(&scene, "Unregistered").await;
    assert_eq!(named(&scene).await, ["Unregistered warning ghost"]);
    assert_eq!(ghost.hint, "elven-sync entity add 'ghost' --timezone ZONE");
    assert!(!ghost.message.contains("hint"), "{ghost:?}");
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(alert(&scene, "Unregistered").await, ghost);
    output_of(&scene, 0, &["entity", "add", "ghost", "--timezone", "UTC"]).await;
    assert_eq!(named(&scene).await, NONE);
}

#[sqlx::test(migrations = false)]
async fn backfill_that_stopped_alerts_until_it_is_resumed(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    add_row(&scene, "acme").await;
    scene.run().await;
    scene.sandbox.set_rules(fault_rules(&["revoked"]));
    let backfill = ["backfill", "--from", "2024-01-01", "--to", "2100-01-01"];
    output_of(&scene, 1, &backfill).await;
    scene.sandbox.set_rules(Vec::new());
    let stopped = alert(&scene, "BackfillStopped").await;
    assert_eq!((stopped.severity.as_str(), stopped.entity_id.as_deref()), ("warning", None));
    assert_eq!(stopped.hint, "elven-sync backfill --resume 1");
    output_of(&scene, 0, &["backfill", "--resume", "1"]).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE);
}
