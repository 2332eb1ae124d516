//! `since` of alerts about rows that are set aside: it stays as it is until the condition ends.

use sqlx::PgPool;

use super::{NONE, alert, named};
use crate::support::TestEnv;

/// Sets rows of an entity aside, as a run records them. `kind`: of the error.
async fn set_aside(scene: &TestEnv, kind: &str, ids: std::ops::RangeInclusive<i32>) {
    sqlx::query(
        "insert into elven_sync.sync_errors (entity_id, ledger_id, kind, message)
         select 'acme', n::text, $1, 'a test' from generate_series($2::int, $3) n",
    )
    .bind(kind)
    .bind(*ids.start())
    .bind(*ids.end())
    .execute(&scene.pool)
    .await
    .unwrap();
}

/// Resolves the open errors of rows with these ids, as a person does by SQL.
async fn resolve(scene: &TestEnv, ids: std::ops::RangeInclusive<i32>) {
    sqlx::query(
        "update elven_sync.sync_errors set resolved_at = clock_timestamp(), resolution = 'a test'
          where ledger_id::int between $1 and $2 and resolved_at is null",
    )
    .bind(*ids.start())
    .bind(*ids.end())
    .execute(&scene.pool)
    .await
    .unwrap();
}

/// The oldest of several errors is resolved, and the last one; then another row is set aside.
#[sqlx::test(migrations = false)]
async fn alert_of_open_errors_keeps_its_begin_until_the_last_is_resolved(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    set_aside(&scene, "invalid_row", 1..=1).await;
    let first = alert(&scene, "OpenErrors").await;
    let seen =
        "select (first_seen_at = (select since from elven_sync.alerts))::text from elven_sync.sync_errors";
    assert_eq!(scene.text(seen).await, "true");
    set_aside(&scene, "rejected_row", 2..=3).await;
    resolve(&scene, 1..=1).await;
    assert_eq!(alert(&scene, "OpenErrors").await.since, first.since, "the oldest is resolved");
    scene.sql("delete from elven_sync.sync_errors where ledger_id = '2'").await;
    assert_eq!(alert(&scene, "OpenErrors").await.since, first.since, "a record is removed");
    resolve(&scene, 3..=3).await;
    assert_eq!(named(&scene).await, NONE);
    set_aside(&scene, "invalid_row", 4..=4).await;
    assert!(alert(&scene, "OpenErrors").await.since > first.since, "it began again");
    scene.sql("delete from elven_sync.sync_errors").await;
    assert_eq!(named(&scene).await, NONE);
    let left = "select count(*)::text from elven_sync.sync_facts where name = 'rows_set_aside'";
    assert_eq!(scene.text(left).await, "0");
}

/// The count passes the limit, the oldest error is resolved, the count falls below the limit and passes it again.
#[sqlx::test(migrations = false)]
async fn alert_near_the_rejection_bound_keeps_its_begin(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    set_aside(&scene, "rejected_row", 1..=79).await;
    let first = alert(&scene, "OpenErrors").await;
    set_aside(&scene, "invalid_row", 1001..=1200).await;
    assert_eq!(named(&scene).await, ["OpenErrors warning acme"], "one below");
    set_aside(&scene, "rejected_row", 80..=85).await;
    let near = alert(&scene, "NearRejectionBound").await;
    assert!(near.since > first.since, "it began when the count reached the limit");
    resolve(&scene, 1..=5).await;
    assert_eq!(alert(&scene, "NearRejectionBound").await.since, near.since);
    set_aside(&scene, "rejected_row", 90..=95).await;
    assert_eq!(alert(&scene, "NearRejectionBound").await.since, near.since);
    resolve(&scene, 6..=30).await;
    assert_eq!(named(&scene).await, ["OpenErrors warning acme"]);
    assert_eq!(alert(&scene, "OpenErrors").await.since, first.since);
    set_aside(&scene, "rejected_row", 100..=200).await;
    assert!(alert(&scene, "NearRejectionBound").await.since > near.since, "it began again");
}

/// A copy of the tables is written without triggers.
#[sqlx::test(migrations = false)]
async fn alerts_of_copied_errors_begin_with_the_oldest(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "begin; set local session_replication_role = replica;
             insert into elven_sync.sync_errors (entity_id, ledger_id, kind, message, first_seen_at)
             select 'acme', n::text, 'rejected_row', 'a copy', timestamptz '2024-01-01Z' + n * interval '1 day'
               from generate_series(1, 90) n;
             commit",
        )
        .await;
    let copied = named(&scene).await;
    assert_eq!(copied, ["NearRejectionBound warning acme", "OpenErrors warning acme"]);
    let begins = "select string_agg(since::date::text, ' ') from elven_sync.alerts";
    assert_eq!(scene.text(begins).await, "2024-01-02 2024-01-02");
    resolve(&scene, 90..=90).await;
    assert_eq!(scene.text(begins).await, "2024-01-02 2024-01-02");
    resolve(&scene, 1..=2).await;
    assert_eq!(scene.text(begins).await, "2024-01-02 2024-01-02", "the beginning is recorded now");
}

/// Who may only resolve errors needs no other rights.
#[sqlx::test(migrations = false)]
async fn role_that_may_only_resolve_errors_keeps_the_begin_of_alerts(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    set_aside(&scene, "invalid_row", 1..=2).await;
    let first = alert(&scene, "OpenErrors").await;
    let mut transaction = scene.pool.begin().await.unwrap();
    sqlx::raw_sql(
        "create role resolver; grant usage on schema elven_sync to resolver;
         grant select, update on elven_sync.sync_errors to resolver; set local role resolver;
         update elven_sync.sync_errors set resolved_at = now(), resolution = 'a test' where ledger_id = '1';
         reset role",
    )
    .execute(&mut *transaction)
    .await
    .unwrap();
    let since: sqlx::types::chrono::DateTime<sqlx::types::chrono::Utc> =
        sqlx::query_scalar("select since from elven_sync.alerts").fetch_one(&mut *transaction).await.unwrap();
    assert_eq!(since, first.since);
    transaction.rollback().await.unwrap();
}
