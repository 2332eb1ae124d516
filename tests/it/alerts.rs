//! The view `alerts`: each condition appears when it begins, keeps its `since`, and ends.

mod entities;
mod facts;
mod gap;
mod plans;
mod polls;
mod runs;
mod since;

use sqlx::PgPool;
use sqlx::types::chrono::{DateTime, Utc};

use crate::support::{TestEnv, fault_rules, output_of};

/// A row of the view.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Alert {
    pub name: String,
    pub severity: String,
    pub entity_id: Option<String>,
    pub since: DateTime<Utc>,
    pub message: String,
    pub hint: String,
}

/// Returns the alerts, ordered by name and entity.
pub async fn alerts(scene: &TestEnv) -> Vec<Alert> {
    sqlx::query_as("select * from elven_sync.alerts order by name, entity_id")
        .fetch_all(&scene.pool)
        .await
        .unwrap()
}

/// Returns name, severity and entity of each alert.
pub async fn named(scene: &TestEnv) -> Vec<String> {
    let alerts = alerts(scene).await;
    let named = |alert: Alert| match alert.entity_id {
        Some(entity_id) => format!("{} {} {entity_id}", alert.name, alert.severity),
        None => format!("{} {}", alert.name, alert.severity),
    };
    alerts.into_iter().map(named).collect()
}

/// Returns the only alert of this name.
pub async fn alert(scene: &TestEnv, name: &str) -> Alert {
    let alerts = alerts(scene).await;
    let mut of_name = alerts.iter().filter(|alert| alert.name == name);
    let found = of_name.next().unwrap_or_else(|| panic!("no {name} in {alerts:#?}"));
    assert_eq!(of_name.next(), None);
    found.clone()
}

pub const NONE: [&str; 0] = [];

/// Lets two hours pass for everything that the journal knows about polls.
pub const TWO_HOURS_PASS: &str = "
    update elven_sync.entities set created_at = created_at - interval '2 hours';
    update elven_sync.sync_state
       set checked_at = checked_at - interval '2 hours', pending_since = pending_since - interval '2 hours',
           last_success_at = last_success_at - interval '2 hours';
    update elven_sync.sync_runs
       set started_at = started_at - interval '2 hours', finished_at = finished_at - interval '2 hours',
           polled_at = polled_at - interval '2 hours', alive_until = alive_until - interval '2 hours';";

/// Adds a valid row of an entity to the ledger.
pub async fn add_row(scene: &TestEnv, entity_id: &str) {
    sqlx::query(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         values ($1, 'a', 'BTC', clock_timestamp(), 1)",
    )
    .bind(entity_id)
    .execute(&scene.pool)
    .await
    .unwrap();
}

#[sqlx::test(migrations = false)]
async fn installation_without_polls_alerts_until_a_run_has_polled(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    assert_eq!(named(&scene).await, NONE, "just registered");
    scene.sql(TWO_HOURS_PASS).await;
    assert_eq!(named(&scene).await, ["NoPoll critical", "Stale critical acme"]);
    let [no_poll, stale] = &alerts(&scene).await[..] else { panic!("two alerts") };
    assert_eq!(no_poll.hint, "elven-sync run");
    assert_eq!(stale.hint, "elven-sync run --entity 'acme'");
    let registered = "select (created_at = any (array(select since from elven_sync.alerts)))::text
                        from elven_sync.entities";
    assert_eq!(scene.text(registered).await, "true", "since the registration");
    assert_eq!(no_poll.since, stale.since);
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE);

    scene.sql(TWO_HOURS_PASS).await;
    assert_eq!(named(&scene).await, ["NoPoll critical", "Stale critical acme"]);
    let since = "select (min(a.since) = max(s.checked_at) and max(a.since) = max(r.polled_at))::text
                   from elven_sync.alerts a, elven_sync.sync_state s, elven_sync.sync_runs r";
    assert_eq!(scene.text(since).await, "true", "since the last poll");
    assert_eq!(alerts(&scene).await, alerts(&scene).await);
    // The run of another worker has not polled yet, and is alive.
    scene
        .sql(
            "insert into elven_sync.sync_runs (worker, version, tzdata, alive_until)
             values ('other', '0', '-', now() + interval '1 minute')",
        )
        .await;
    assert_eq!(named(&scene).await, ["Stale critical acme"]);
    scene.sql("update elven_sync.sync_runs set alive_until = now() - interval '1 second'").await;
    assert_eq!(named(&scene).await, ["NoPoll critical", "Stale critical acme"]);
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE);
}

/// What a run over one entity polls is not polled for the others. A paused entity is not polled at all.
#[sqlx::test(migrations = false)]
async fn entity_that_no_run_polls_is_stale(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    for entity_id in ["acme", "beta", "gamma"] {
        scene.entity(entity_id, "UTC").await;
    }
    output_of(&scene, 0, &["run"]).await;
    output_of(&scene, 0, &["entity", "pause", "gamma"]).await;
    scene.sql(TWO_HOURS_PASS).await;
    output_of(&scene, 0, &["run", "--entity", "beta"]).await;
    assert_eq!(named(&scene).await, ["Stale critical acme"]);
    let status = output_of(&scene, 3, &["status"]).await;
    assert!(status.contains("acme: no run has polled it since ") && status.contains("paused"), "{status}");
    output_of(&scene, 0, &["entity", "set", "acme", "--freshness", "1d"]).await;
    assert_eq!(named(&scene).await, NONE);
    output_of(&scene, 0, &["status"]).await;
    output_of(&scene, 0, &["entity", "set", "acme", "--freshness", "90m"]).await;
    assert_eq!(named(&scene).await, ["Stale critical acme"]);
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE);
}

/// The monitor needs no rights but to read.
#[sqlx::test(migrations = false)]
async fn role_that_may_only_read_sees_the_alerts(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sandbox.set_rules(fault_rules(&["revoked"]));
    add_row(&scene, "acme").await;
    scene.output(&["run"]).await;
    let mut transaction = scene.pool.begin().await.unwrap();
    sqlx::raw_sql(
        "create role alerts_reader; grant usage on schema elven_sync to alerts_reader;
         grant select on elven_sync.alerts to alerts_reader; set local role alerts_reader;
         set local transaction read only",
    )
    .execute(&mut *transaction)
    .await
    .unwrap();
    let names: Vec<String> =
        sqlx::query_scalar("select name from elven_sync.alerts").fetch_all(&mut *transaction).await.unwrap();
    assert_eq!(names, ["Failing"]);
    transaction.rollback().await.unwrap();
}
