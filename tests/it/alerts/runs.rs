//! Runs that fail: each leaves a row, and an alert until a run works again.

use sqlx::{AssertSqlSafe, PgPool};

use super::{NONE, add_row, alert, alerts, named};
use crate::support::{TestEnv, eventually, fault_rules, output_of, stderr};

const LAST_RUN: &str = "select concat_ws(' ', status, polled_at is not null, finished_at is not null)
                          from elven_sync.sync_runs order by run_id desc limit 1";

/// Also because of a change of the ledger, after months of runs that succeeded.
#[sqlx::test(migrations = false)]
async fn run_that_fails_before_it_begins_is_recorded_and_alerts_until_a_run_works(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    output_of(&scene, 0, &["run"]).await;
    for (breaks, repairs, words) in [
        (
            "alter table ledger.balance_snapshots rename balance to amount",
            "alter table ledger.balance_snapshots rename amount to balance",
            "balance",
        ),
        (
            "alter table ledger.balance_snapshots alter captured_at type timestamp",
            "alter table ledger.balance_snapshots alter captured_at type timestamptz",
            "captured_at",
        ),
        (
            "alter table ledger.balance_snapshots rename to elsewhere",
            "alter table ledger.elsewhere rename to balance_snapshots",
            "ledger.balance_snapshots",
        ),
    ] {
        scene.sql(breaks).await;
        let failed = scene.output(&["run"]).await;
        assert_eq!(failed.status.code(), Some(1), "{breaks}: {}", stderr(&failed));
        assert_eq!(scene.text(LAST_RUN).await, "failed f t", "{breaks}");
        assert_eq!(named(&scene).await, ["RunFailed critical"], "{breaks}");
        let first = alert(&scene, "RunFailed").await;
        let recorded =
            "select (error like '%; hint: %')::text from elven_sync.sync_runs order by run_id desc limit 1";
        assert_eq!(scene.text(recorded).await, "true", "{breaks}");
        assert!(
            first.message.starts_with("the last run failed: ")
                && first.message.contains(words)
                && first.message.contains("; remedy: "),
            "{first:?}"
        );
        assert_eq!(first.hint, "elven-sync check");
        let listed = output_of(&scene, 0, &["errors", "list"]).await;
        assert!(listed.contains("no error is open\nthe last run failed: "), "{listed}");
        scene.output(&["run"]).await;
        assert_eq!(alert(&scene, "RunFailed").await.since, first.since, "{breaks}");
        scene.sql(repairs).await;
        output_of(&scene, 0, &["run"]).await;
        assert_eq!(named(&scene).await, NONE, "{breaks}");
    }
}

/// A right that is missing fails the poll, and no entity.
#[sqlx::test(migrations = false)]
async fn run_that_may_not_read_the_ledger_alerts(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    output_of(&scene, 0, &["run"]).await;
    let role = scene
        .text("select 'elven_sync_unread_' || oid from pg_database where datname = current_database()")
        .await;
    let grants = format!(
        "create role {role} login; grant usage on schema elven_sync, ledger to {role};
         grant all on all tables in schema elven_sync to {role};
         grant all on all sequences in schema elven_sync to {role};
         grant execute on all functions in schema elven_sync to {role};
         grant select on ledger.balance_snapshots to {role}"
    );
    sqlx::raw_sql(AssertSqlSafe(grants)).execute(&scene.pool).await.unwrap();
    let owner = scene.url.clone();
    let separator = if owner.contains('?') { '&' } else { '?' };
    scene.set("DATABASE_URL", &format!("{owner}{separator}options=-c%20role%3D{role}"));
    output_of(&scene, 0, &["run"]).await;
    let revoke = format!("revoke select on ledger.balance_snapshots from {role}");
    sqlx::raw_sql(AssertSqlSafe(revoke)).execute(&scene.pool).await.unwrap();
    output_of(&scene, 1, &["run"]).await;
    assert_eq!(named(&scene).await, ["RunFailed critical"]);
    let failed = alert(&scene, "RunFailed").await;
    assert!(failed.message.contains("permission denied"), "{failed:?}");
    scene.set("DATABASE_URL", &owner);
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE);
    let drop = format!("drop owned by {role}; drop role {role}");
    sqlx::raw_sql(AssertSqlSafe(drop)).execute(&scene.pool).await.unwrap();
}

/// Where each entity has failed, the alerts about the entities say why.
#[sqlx::test(migrations = false)]
async fn run_whose_entities_all_failed_is_no_alert_of_its_own(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    add_row(&scene, "acme").await;
    scene.sandbox.set_rules(fault_rules(&["revoked"]));
    output_of(&scene, 1, &["run"]).await;
    assert_eq!(scene.text(LAST_RUN).await, "failed t t");
    assert_eq!(named(&scene).await, ["Failing critical acme"]);
    // An entity that does not exist is a mistake of the command.
    scene.output(&["run", "--entity", "acmee"]).await;
    assert_eq!(scene.text(LAST_RUN).await, "failed t t");
    assert_eq!(alerts(&scene).await.len(), 1);
}

/// A service tries again each few seconds, and records that less often.
#[sqlx::test(migrations = false)]
async fn service_whose_runs_fail_records_the_same_failure_once_a_minute(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sql("alter table ledger.balance_snapshots rename to elsewhere").await;
    let service = crate::serve::Service::start(&scene, &["--every", "1s"]).await;
    let failed = "elven_sync_process_cycles_total{outcome=\"failed\"}";
    let times = async || service.value(failed).await.and_then(|times| times.parse::<i64>().ok());
    eventually("some cycles fail", async || times().await >= Some(4)).await;
    assert_eq!(named(&scene).await, ["RunFailed critical"]);
    let recorded = "select (count(*) <= 2)::text from elven_sync.sync_runs";
    assert_eq!(scene.text(recorded).await, "true");
    scene.sql("alter table ledger.elsewhere rename to balance_snapshots").await;
    eventually("the alert ends", async || named(&scene).await == NONE).await;
    service.stop().await;
}
