//! Polls: `pending_since`, and looks that are older than what is recorded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use elven_sync::journal::{Journal, Lane, Poll, Take};
use elven_sync::ledger::Pending;
use elven_sync::sandbox::{Fault, Gate};
use sqlx::PgPool;

use super::{NONE, TWO_HOURS_PASS, add_row, alert, named};
use crate::support::{TestEnv, eventually, fault_rules, output_of};

const PENDING_SINCE: &str = "select pending_since::text from elven_sync.sync_state where entity_id = 'acme'";
const STATUS: &str = "select status from elven_sync.sync_health where entity_id = 'acme'";

async fn failing_run(scene: &TestEnv) {
    scene.sandbox.set_rules(fault_rules(&["revoked"]));
    output_of(scene, 1, &["run"]).await;
    scene.sandbox.set_rules(Vec::new());
}

/// Polls that find the same rows, rows that are written later, failures and a backfill do not move the time; a catch-up
/// ends it.
#[sqlx::test(migrations = false)]
async fn rows_are_pending_since_the_first_poll_that_found_some(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.run().await;
    assert_eq!(scene.text(PENDING_SINCE).await, "NULL");
    add_row(&scene, "acme").await;
    assert_eq!(scene.text(PENDING_SINCE).await, "NULL", "no poll has found the row");
    failing_run(&scene).await;
    let first = scene.text(PENDING_SINCE).await;
    let is_of_the_run = "select (pending_since = polled_at)::text
                           from elven_sync.sync_state, elven_sync.sync_runs order by run_id desc limit 1";
    assert_eq!(scene.text(is_of_the_run).await, "true");
    add_row(&scene, "acme").await;
    failing_run(&scene).await;
    assert_eq!(scene.text(PENDING_SINCE).await, first);
    output_of(&scene, 0, &["backfill", "--from", "2024-01-01", "--to", "2100-01-01"]).await;
    assert_eq!(scene.text(PENDING_SINCE).await, first);
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(PENDING_SINCE).await, "NULL");
    assert_eq!(scene.text(STATUS).await, "ok");
    add_row(&scene, "acme").await;
    failing_run(&scene).await;
    let again = "select (pending_since > last_success_at)::text from elven_sync.sync_state";
    assert_eq!(scene.text(again).await, "true");
}

/// The status follows the order of the contract, and the alert is there also while the last attempt failed.
#[sqlx::test(migrations = false)]
async fn entity_whose_rows_stay_pending_is_stale(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'n', 'BTC', '2024-01-01Z', 'NaN'), ('acme', 'a', 'BTC', '2024-01-01Z', 1)",
        )
        .await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.text(STATUS).await, "incomplete");
    add_row(&scene, "acme").await;
    failing_run(&scene).await;
    scene.sql(TWO_HOURS_PASS).await;
    failing_run(&scene).await;
    assert_eq!(scene.text(STATUS).await, "failing", "failing comes first");
    let expected = ["Failing critical acme", "OpenErrors warning acme", "Stale critical acme"];
    assert_eq!(named(&scene).await, expected);
    let stale = alert(&scene, "Stale").await;
    assert!(stale.message.starts_with("rows are pending since "), "{stale:?}");
    failing_run(&scene).await;
    assert_eq!(alert(&scene, "Stale").await, stale);
    scene.sql("update elven_sync.sync_state set consecutive_failures = 0").await;
    assert_eq!(scene.text(STATUS).await, "stale", "before incomplete");
    output_of(&scene, 3, &["status"]).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(STATUS).await, "incomplete");
    assert_eq!(named(&scene).await, ["OpenErrors warning acme"]);
}

/// Also of an entity that cannot be worked on.
#[sqlx::test(migrations = false)]
async fn poll_is_recorded_before_anything_is_sent(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.entity("beta", "UTC").await;
    scene.entity("gamma", "Nowhere/Nowhere").await;
    let other = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(other.clone()));
    for entity_id in ["acme", "beta", "gamma"] {
        add_row(&scene, entity_id).await;
    }
    let (mut child, gate) = scene.held_run().await;
    let since = "select string_agg(concat_ws(' ', entity_id, pending_since = polled_at, h.status), ', '
                                   order by entity_id)
                   from elven_sync.sync_health h, elven_sync.sync_runs r";
    // The problem of gamma is recorded beside the lanes.
    eventually("gamma is failing", async || scene.text(since).await.contains("failing")).await;
    assert_eq!(scene.text(since).await, "acme t behind, beta t behind, gamma t failing");
    gate.open();
    other.open();
    assert_eq!(child.wait().await.unwrap().code(), Some(3));
    let left = "select string_agg(concat_ws(' ', entity_id, status), ', ' order by entity_id)
                  from elven_sync.sync_health where pending_since is not null";
    assert_eq!(scene.text(left).await, "gamma failing");
}

/// A lane that ends says as of when its entity is caught up, although the run counts pending rows only at its end.
#[sqlx::test(migrations = false)]
async fn closed_pass_is_as_of_its_beginning(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1");
    scene.entity("acme", "UTC").await;
    scene.entity("beta", "UTC").await;
    add_row(&scene, "acme").await;
    scene.run().await;
    scene.sql(TWO_HOURS_PASS).await;
    add_row(&scene, "acme").await;
    add_row(&scene, "beta").await;
    let (mut child, gate) = scene.held_run().await;
    let next = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(next.clone()));
    gate.open();
    assert!(tokio::time::timeout(Duration::from_secs(20), next.reached()).await.is_ok());
    let done = "select concat_ws(' ', h.status, h.pending_rows, h.checked_at = p.started_at)
                  from elven_sync.sync_health h join elven_sync.sync_passes p using (entity_id)
                 where p.finished_at is not null order by p.pass_id desc limit 1";
    eventually("the first lane has ended", async || scene.text(done).await == "ok 0 t").await;
    next.open();
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
    assert_eq!(named(&scene).await, NONE);
}

/// A journal of the test, and the states of acme.
async fn journal_of(scene: &TestEnv) -> (Journal, BTreeMap<String, Lane>) {
    let database = scene.database(4).await;
    let (lease, window) = (Duration::from_secs(30), Duration::from_millis(300));
    let journal = Journal::open(database, "other".to_owned(), lease, window).await.unwrap();
    let seen = journal.lanes(&["acme".to_owned()], &Arc::from("{}")).await.unwrap();
    (journal, seen)
}

/// A count of the pending rows of acme.
fn counted(rows: i64) -> [Pending; 1] {
    [Pending { entity_id: "acme".to_owned(), rows, oldest_at: None }]
}

fn idle(seen: &BTreeMap<String, Lane>) -> Poll<'_> {
    Poll {
        polled_at: seen["acme"].read_at,
        idle: vec![("acme", &seen["acme"])],
        pending: Vec::new(),
        mapping: "{}",
    }
}

/// A worker looked at the entity and found nothing. Before it records that, another worker finds rows.
#[sqlx::test(migrations = false)]
async fn look_that_is_older_than_a_poll_does_not_undo_it(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let (journal, seen) = journal_of(&scene).await;
    let run_id = journal.begin_run("incremental", "-").await.unwrap();
    let later = journal.lanes(&["acme".to_owned()], &Arc::from("{}")).await.unwrap();
    let pending = vec![("acme", &later["acme"])];
    let found = Poll { polled_at: later["acme"].read_at, idle: Vec::new(), pending, mapping: "{}" };
    journal.note_poll(run_id, &found).await.unwrap();
    let first = scene.text(PENDING_SINCE).await;
    assert_ne!(first, "NULL");
    journal.note_poll(run_id, &idle(&seen)).await.unwrap();
    journal.note_pending(&counted(0), &seen).await.unwrap();
    assert_eq!(scene.text(PENDING_SINCE).await, first);
    // A count that found rows, recorded after an older poll that found none.
    let then = journal.lanes(&["acme".to_owned()], &Arc::from("{}")).await.unwrap();
    journal.note_pending(&counted(3), &then).await.unwrap();
    journal.note_poll(run_id, &idle(&later)).await.unwrap();
    let state = "select concat_ws(' ', pending_rows, pending_since is not null) from elven_sync.sync_state";
    assert_eq!(scene.text(state).await, "3 t");
    // A look after that.
    let seen = journal.lanes(&["acme".to_owned()], &Arc::from("{}")).await.unwrap();
    journal.note_poll(run_id, &idle(&seen)).await.unwrap();
    assert_eq!(scene.text(state).await, "0 f");
}

/// A count found nothing. Before it is recorded, another worker takes the lease, because it has found rows.
#[sqlx::test(migrations = false)]
async fn count_that_is_older_than_a_lease_does_not_undo_its_poll(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    // The other worker read the state before the count, and found a row that was written after the count.
    scene.sql("update elven_sync.sync_state set pending_since = clock_timestamp()").await;
    let (journal, seen) = journal_of(&scene).await;
    let Take::Taken(..) = journal.take("acme").await.unwrap() else { panic!("the lease is free") };
    journal.note_pending(&counted(0), &seen).await.unwrap();
    assert_ne!(scene.text(PENDING_SINCE).await, "NULL");
    let seen = journal.lanes(&["acme".to_owned()], &Arc::from("{}")).await.unwrap();
    journal.note_pending(&counted(0), &seen).await.unwrap();
    assert_eq!(scene.text(PENDING_SINCE).await, "NULL");
}

/// While a pass is at work, another worker counts rows. Some of them may be behind the target of the pass.
#[sqlx::test(migrations = false)]
async fn rows_that_were_counted_during_a_pass_stay_pending_until_the_next_poll(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    // The run stops after its pass, before it counts.
    scene.set("ELVEN_SYNC_FAULT_POINT", "close_pass:after=kill");
    scene.entity("acme", "UTC").await;
    add_row(&scene, "acme").await;
    let (mut child, gate) = scene.held_run().await;
    add_row(&scene, "acme").await;
    let (journal, _) = journal_of(&scene).await;
    // A count leaves out a row that is locked, as by a heartbeat.
    eventually("the count is recorded", async || {
        let seen = journal.lanes(&["acme".to_owned()], &Arc::from("{}")).await.unwrap();
        journal.note_pending(&counted(2), &seen).await.unwrap();
        scene.text("select pending_rows::text from elven_sync.sync_state").await == "2"
    })
    .await;
    gate.open();
    assert_eq!(child.wait().await.unwrap().code(), None, "killed");
    let state = "select concat_ws(' ', pending_rows, pending_since = started_at)
                   from elven_sync.sync_state join elven_sync.sync_passes using (entity_id)";
    assert_eq!(scene.text(state).await, "2 t");
    scene.unset("ELVEN_SYNC_FAULT_POINT");
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(PENDING_SINCE).await, "NULL");
}

/// A paused entity is not polled, and a poll follows its resumption.
#[sqlx::test(migrations = false)]
async fn resumed_entity_is_not_stale_at_once(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    output_of(&scene, 0, &["run"]).await;
    output_of(&scene, 0, &["entity", "pause", "acme"]).await;
    scene.sql(TWO_HOURS_PASS).await;
    output_of(&scene, 0, &["entity", "resume", "acme"]).await;
    assert_eq!(named(&scene).await, NONE);
    output_of(&scene, 0, &["status"]).await;
    scene.sql("update elven_sync.entities set resumed_at = resumed_at - interval '2 hours'").await;
    assert_eq!(named(&scene).await, ["NoPoll critical", "Stale critical acme"]);
    // The test itself has changed created_at.
    let actions = "select string_agg(action, ' ' order by action_id) from elven_sync.sync_actions";
    assert_eq!(scene.text(actions).await, "entity_add entity_pause entity_set entity_resume");
}
