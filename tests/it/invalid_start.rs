//! A lane whose first 1,000 rows are all invalid stops: a wrong mapping has this pattern.

use elven_sync::journal::RunStatus;
use elven_sync::sandbox::Gate;
use elven_sync::sync::Ended;
use sqlx::{AssertSqlSafe, PgPool};

use crate::support::{TestEnv, output_of};

/// The ledger is a view. Rows of acme with a negative balance cannot be sent.
async fn scene(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.feed");
    scene.sql(MISTAKEN).await;
    scene.entity("acme", "UTC").await;
    scene
}

const MISTAKEN: &str = "
    create or replace view ledger.feed as
    select id, entity_id, case when balance >= 0 then entity_account_id end as entity_account_id, currency, captured_at,
           balance, change_xid
      from ledger.balance_snapshots";

const CORRECTED: &str = "
    create or replace view ledger.feed as
    select id, entity_id, entity_account_id, currency, captured_at, balance, change_xid from ledger.balance_snapshots";

/// Adds rows, each in its own transaction: a negative number adds invalid rows, a positive one valid rows.
async fn add(scene: &TestEnv, rows: i32) {
    let (count, sign) = (rows.abs(), rows.signum());
    let sql = format!(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select 'acme', 'a' || n, 'BTC', clock_timestamp(), {sign} * n from generate_series(1, {count}) n"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&scene.pool).await.unwrap();
}

/// Runs. Returns the numbers of rows read, set aside and pending, and the reason of a stop.
async fn run(scene: &TestEnv) -> (i64, i64, i64, Option<String>) {
    let report = scene.run().await;
    let acme = report.entities.into_iter().find(|entity| entity.entity_id == "acme").unwrap();
    let reason = if let Ended::Failed(reason) = acme.ended { Some(reason) } else { None };
    (acme.rows_read, acme.rows_rejected, acme.rows_pending.unwrap(), reason)
}

const NOTHING_RECORDED: &str = "select concat_ws(' ', (select count(*) from elven_sync.sync_batches),
    (select string_agg(kind || ' ' || coalesce(ledger_id, '-'), ',') from elven_sync.sync_errors where resolved_at is null),
    (select cursor_id from elven_sync.sync_state), (select settled from elven_sync.sync_state))";

#[sqlx::test(migrations = false)]
async fn lane_with_1000_invalid_first_rows_stops_without_setting_aside(pool: PgPool) {
    let scene = scene(pool).await;
    add(&scene, -1000).await;
    add(&scene, 500).await;
    for _ in 0..2 {
        let (read, set_aside, pending, reason) = run(&scene).await;
        assert_eq!((read, set_aside, pending), (0, 0, 1500));
        let reason = reason.unwrap();
        for expected in [
            "the first 1,000 rows are all invalid",
            "1,000 rows: entity_account_id is NULL, e.g. row 1",
            "hint: ",
            "[ledger.columns]",
            "ELVEN_SYNC_SYNC__ON_INVALID_START=set_aside elven-sync run --entity 'acme'",
        ] {
            assert!(reason.contains(expected), "{expected}: {reason}");
        }
        assert_eq!(scene.text(NOTHING_RECORDED).await, "0 config -");
        assert!(scene.received().is_empty());
    }
    // Once the mapping is right all rows are sent, without an unlock command.
    scene.sql(CORRECTED).await;
    assert_eq!(run(&scene).await, (1500, 0, 0, None));
    assert_eq!(scene.text("select status from elven_sync.sync_health").await, "ok");
    assert_eq!(scene.received().len(), 1500);
}

/// The number of batches of these rows does not matter.
#[sqlx::test(migrations = false)]
async fn batches_of_invalid_rows_are_held_back_until_a_valid_row_is_read(pool: PgPool) {
    let mut scene = scene(pool).await;
    for batch_rows in ["10", "300", "999"] {
        scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", batch_rows);
        scene.sql("truncate ledger.balance_snapshots; truncate elven_sync.sync_batches, elven_sync.sync_passes cascade;
                   update elven_sync.sync_state set settled = null, pass_id = null, target = null").await;
        add(&scene, -1100).await;
        add(&scene, 5).await;
        let (read, set_aside, pending, reason) = run(&scene).await;
        assert_eq!((read, set_aside, pending), (0, 0, 1105), "{batch_rows}");
        assert!(reason.is_some_and(|reason| reason.contains("are all invalid")));
        assert_eq!(scene.text(NOTHING_RECORDED).await, "0 config -", "{batch_rows}");
    }
}

#[sqlx::test(migrations = false)]
async fn fewer_than_1000_invalid_rows_are_set_aside(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "300");
    add(&scene, -999).await;
    add(&scene, 301).await;
    assert_eq!(run(&scene).await, (1300, 999, 0, None));
    assert_eq!(scene.received().len(), 301);
    output_of(&scene, 0, &["verify", "--deep"]).await;
    // All existing rows, without a valid row after them.
    add(&scene, -999).await;
    assert_eq!(run(&scene).await, (999, 999, 0, None));
    // Any number of invalid rows after a valid row.
    add(&scene, 1).await;
    add(&scene, -2500).await;
    assert_eq!(run(&scene).await, (2501, 2500, 0, None));
    output_of(&scene, 0, &["verify", "--deep"]).await;
}

/// One run reads the pass that an earlier run left open and the pass after it.
#[sqlx::test(migrations = false)]
async fn invalid_rows_of_two_passes_are_counted_together(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_API__TIMEOUT", "200ms");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    add(&scene, 600).await;
    let gate = Gate::new();
    scene.sandbox.inject(elven_sync::sandbox::Fault::HoldResponse(gate.clone()));
    assert_eq!(scene.run().await.status, RunStatus::Failed);
    gate.open();
    // The batch of that pass has an unknown outcome. Its rows and the new ones are shown differently now.
    scene.sql("create or replace view ledger.feed as
               select id, entity_id, null::text as entity_account_id, currency, captured_at, balance, change_xid
                 from ledger.balance_snapshots").await;
    add(&scene, 600).await;
    let (_, set_aside, pending, reason) = run(&scene).await;
    assert!(reason.is_some_and(|reason| reason.contains("the first 1,200 rows are all invalid")));
    assert_eq!((set_aside, pending), (600, 600), "the rows of the finished pass");
}

/// Unanswered batches of an earlier run are read first.
#[sqlx::test(migrations = false)]
async fn invalid_rows_of_resent_batches_are_counted(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "400");
    scene.set("ELVEN_SYNC_API__TIMEOUT", "200ms");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    add(&scene, 4000).await;
    scene.sandbox.set_rules(vec!["error-500".parse().unwrap()]);
    assert_eq!(scene.run().await.status, RunStatus::Failed);
    scene.sandbox.set_rules(Vec::new());
    let unknown =
        "select count(*)::text from elven_sync.sync_batches where status in ('unknown', 'rejected')";
    assert!(scene.text(unknown).await.parse::<i32>().unwrap() >= 3);
    scene.sql("create or replace view ledger.feed as
               select id, entity_id, null::text as entity_account_id, currency, captured_at, balance, change_xid
                 from ledger.balance_snapshots").await;
    let (read, set_aside, pending, reason) = run(&scene).await;
    assert!(reason.is_some_and(|reason| reason.contains("rows are all invalid")));
    assert_eq!((read, set_aside, pending), (0, 0, 4000));
    scene.sql(CORRECTED).await;
    assert_eq!(run(&scene).await.3, None);
    assert_eq!(
        scene.text("select count(*)::text from elven_sync.sync_errors where resolved_at is null").await,
        "0"
    );
    output_of(&scene, 0, &["verify", "--deep"]).await;
}

/// For rows that are really invalid.
#[sqlx::test(migrations = false)]
async fn setting_allows_invalid_first_rows_to_be_set_aside(pool: PgPool) {
    let mut scene = scene(pool).await;
    add(&scene, -1500).await;
    add(&scene, 10).await;
    assert!(run(&scene).await.3.is_some());
    scene.set("ELVEN_SYNC_SYNC__ON_INVALID_START", "set_aside");
    assert_eq!(run(&scene).await, (1510, 1500, 0, None));
    scene.unset("ELVEN_SYNC_SYNC__ON_INVALID_START");
    add(&scene, 10).await;
    assert_eq!(run(&scene).await, (10, 0, 0, None));
    assert_eq!(scene.text("select status from elven_sync.sync_health").await, "incomplete");
}

#[sqlx::test(migrations = false)]
async fn backfill_with_invalid_first_rows_stops(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "100");
    add(&scene, 1500).await;
    assert_eq!(run(&scene).await, (1500, 0, 0, None));
    scene.sql("create or replace view ledger.feed as
               select id, entity_id, null::text as entity_account_id, currency, captured_at, balance, change_xid
                 from ledger.balance_snapshots").await;
    let range = ["backfill", "--from", "2020-01-01", "--to", "2100-01-01"];
    let rehearsed = output_of(&scene, 3, &[&range[..], &["--dry-run"]].concat()).await;
    assert!(rehearsed.contains("the first 1,000 rows are all invalid"), "{rehearsed}");
    let stopped = output_of(&scene, 1, &range).await;
    assert!(stopped.contains("the first 1,000 rows are all invalid"), "{stopped}");
    let rows = "select count(*)::text from elven_sync.sync_errors where ledger_id is not null";
    assert_eq!(scene.text(rows).await, "0");
    scene.sql(CORRECTED).await;
    output_of(&scene, 0, &range).await;
    assert_eq!(scene.received().len(), 3000);
}

#[sqlx::test(migrations = false)]
async fn dry_run_reports_that_the_lane_would_stop(pool: PgPool) {
    let scene = scene(pool).await;
    add(&scene, -1000).await;
    let rehearsed = output_of(&scene, 1, &["run", "--dry-run"]).await;
    assert!(rehearsed.contains("the first 1,000 rows are all invalid"), "{rehearsed}");
    assert!(rehearsed.contains("entity_account_id is NULL"), "{rehearsed}");
}

/// The lanes of other entities continue.
#[sqlx::test(migrations = false)]
async fn stopped_lane_delays_no_other_lane(pool: PgPool) {
    let scene = scene(pool).await;
    scene.entity("beta", "UTC").await;
    add(&scene, -1000).await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('beta', 'b', 'BTC', '2024-01-01Z', 1)",
        )
        .await;
    let report = scene.run().await;
    assert_eq!((report.status, report.counters.rows_uploaded), (RunStatus::Incomplete, 1));
}
