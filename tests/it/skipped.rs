//! A newer row that `--from-now` skipped is not at Elven, and no run sends it, so it supersedes nothing.

use sqlx::PgPool;

use crate::support::{TestEnv, fault_rules, output_of};

/// Two rows of one second that exist when acme is registered with `--from-now`.
async fn scene_from_now(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'a', 'BTC', '2024-01-01 00:00:00.1Z', 1), ('acme', 'a', 'BTC', '2024-01-01 00:00:00.9Z', 2)",
        )
        .await;
    register(&scene).await;
    scene
}

async fn register(scene: &TestEnv) {
    output_of(scene, 0, &["entity", "add", "acme", "--timezone", "UTC", "--from-now"]).await;
    output_of(scene, 0, &["run"]).await;
}

/// Simulates that the entity was removed and registered again with `--from-now`.
async fn register_again(scene: &TestEnv) {
    output_of(scene, 0, &["entity", "rewind", "acme", "--yes"]).await;
    scene.sql("delete from elven_sync.entities").await;
    register(scene).await;
}

fn balances_since(scene: &TestEnv, records: usize) -> Vec<String> {
    scene.balances().into_iter().skip(records).map(|(_, balance)| balance).collect()
}

/// Executes a backfill whose end lies between the two rows. Returns what it sent.
async fn backfill_of_the_older(scene: &TestEnv) -> Vec<String> {
    let before = scene.balances().len();
    output_of(scene, 0, &["backfill", "--from", "2024-01-01", "--to", "2024-01-01T00:00:00.5Z"]).await;
    balances_since(scene, before)
}

async fn backfill_of_both(scene: &TestEnv) -> Vec<String> {
    let before = scene.balances().len();
    output_of(scene, 0, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02"]).await;
    balances_since(scene, before)
}

#[sqlx::test(migrations = false)]
async fn row_skipped_by_from_now_does_not_supersede_in_backfill(pool: PgPool) {
    let scene = scene_from_now(pool).await;
    assert_eq!(scene.balances().len(), 0);
    let cut = ["backfill", "--from", "2024-01-01", "--to", "2024-01-01T00:00:00.5Z", "--dry-run"];
    assert!(output_of(&scene, 0, &cut).await.contains("1 uploaded"));
    assert_eq!(backfill_of_the_older(&scene).await, ["1"]);
    // A backfill whose range includes the newer row sends it, so that the row supersedes.
    assert_eq!(backfill_of_both(&scene).await, ["2"]);
    // The newer row was accepted: the older one must not be sent after it.
    assert!(backfill_of_the_older(&scene).await.is_empty());
    assert!(output_of(&scene, 0, &cut).await.contains("0 uploaded"));
}

#[sqlx::test(migrations = false)]
async fn skipped_row_supersedes_once_a_run_has_sent_it(pool: PgPool) {
    let scene = scene_from_now(pool).await;
    // Rewound to the registration, the row is skipped as before.
    output_of(&scene, 0, &["entity", "rewind", "acme", "--to", "2999-01-01T00:00:00Z", "--yes"]).await;
    assert_eq!(backfill_of_the_older(&scene).await, ["1"]);
    // Rewound to the start, the next run sends the row.
    output_of(&scene, 0, &["entity", "rewind", "acme", "--yes"]).await;
    assert!(backfill_of_the_older(&scene).await.is_empty());
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(balances_since(&scene, 1), ["2"]);
    // Registered with `--from-now` once more, the row is skipped again. But it was sent before that.
    register_again(&scene).await;
    assert!(backfill_of_the_older(&scene).await.is_empty());
    // Rows written between the two registrations were never sent.
    scene.sql("update ledger.balance_snapshots set balance = 3 where id = 2").await;
    register_again(&scene).await;
    assert_eq!(backfill_of_the_older(&scene).await, ["1"]);
    // An updated row is pending for the next run.
    scene.sql("update ledger.balance_snapshots set balance = 4 where id = 2").await;
    assert!(backfill_of_the_older(&scene).await.is_empty());
}

/// Rows that a backfill has not reached, or does not include, were not accepted.
#[sqlx::test(migrations = false)]
async fn backfill_rows_supersede_only_up_to_its_cursor(pool: PgPool) {
    let mut scene = scene_from_now(pool).await;
    output_of(&scene, 0, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02", "--account", "b"]).await;
    output_of(&scene, 0, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02", "--currency", "ETH"])
        .await;
    output_of(&scene, 0, &["backfill", "--from", "2024-01-02", "--to", "2024-01-03"]).await;
    assert_eq!(backfill_of_the_older(&scene).await, ["1"]);
    // A backfill that stops before the row.
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.sandbox.set_rules(fault_rules(&["throttle=1s@once:1"]));
    output_of(&scene, 1, &["backfill", "--from", "2024-01-01", "--to", "2024-01-03"]).await;
    scene.sandbox.set_rules(Vec::new());
    assert_eq!(backfill_of_the_older(&scene).await, ["1"]);
    // A backfill that set the row aside.
    scene.sandbox.set_rules(fault_rules(&["reject:account=a"]));
    output_of(&scene, 3, &["backfill", "--from", "2024-01-01T00:00:00.5Z", "--to", "2024-01-02"]).await;
    scene.sandbox.set_rules(Vec::new());
    assert_eq!(backfill_of_the_older(&scene).await, ["1"]);
    output_of(&scene, 0, &["errors", "retry"]).await;
    assert!(backfill_of_the_older(&scene).await.is_empty());
}

/// A backfill has sent the newer row, and the answer was lost.
#[sqlx::test(migrations = false)]
async fn newer_row_with_unknown_outcome_supersedes(pool: PgPool) {
    let mut scene = scene_from_now(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.sandbox.set_rules(fault_rules(&["answer-lost@once:1"]));
    output_of(&scene, 1, &["backfill", "--from", "2024-01-01T00:00:00.5Z", "--to", "2024-01-02"]).await;
    assert_eq!(balances_since(&scene, 0), ["2"]);
    assert!(backfill_of_the_older(&scene).await.is_empty());
    output_of(&scene, 0, &["backfill", "cancel", "1"]).await;
    assert!(backfill_of_the_older(&scene).await.is_empty());
}

#[sqlx::test(migrations = false)]
async fn row_skipped_by_from_now_does_not_supersede_in_retry(pool: PgPool) {
    let scene = scene_from_now(pool).await;
    let set_aside = async |balance: i32| {
        scene.sandbox.set_rules(fault_rules(&["reject:account=a"]));
        sqlx::query("update ledger.balance_snapshots set balance = $1 where id = 1")
            .bind(balance)
            .execute(&scene.pool)
            .await
            .unwrap();
        output_of(&scene, 3, &["run"]).await;
        scene.sandbox.set_rules(Vec::new());
    };
    set_aside(10).await;
    let retried = output_of(&scene, 0, &["errors", "retry"]).await;
    assert!(retried.contains("uploaded") && !retried.contains("superseded"), "{retried}");
    assert_eq!(balances_since(&scene, 0), ["10"]);
    // A backfill has sent the newer row.
    assert_eq!(backfill_of_both(&scene).await, ["2"]);
    set_aside(11).await;
    assert!(output_of(&scene, 0, &["errors", "retry"]).await.contains("superseded by row 2"));
    assert_eq!(balances_since(&scene, 2), [""; 0]);
}

/// A pending newer row may still be refused or deleted: the error of the older row stays open until then.
#[sqlx::test(migrations = false)]
async fn error_stays_open_until_the_newer_row_is_uploaded(pool: PgPool) {
    let scene = scene_from_now(pool).await;
    let open =
        "select coalesce(string_agg(ledger_id, ',' order by ledger_id), '') from elven_sync.sync_errors
                 where resolved_at is null";
    scene.sandbox.set_rules(fault_rules(&["reject:account=a"]));
    scene.sql("update ledger.balance_snapshots set balance = 10 where id = 1").await;
    output_of(&scene, 3, &["run"]).await;
    scene.sql("update ledger.balance_snapshots set balance = -20 where id = 2").await;
    scene.sandbox.set_rules(Vec::new());
    let retried = output_of(&scene, 3, &["errors", "retry"]).await;
    assert!(
        retried.contains("row 2 of the same account, currency and second is newer and still pending"),
        "{retried}"
    );
    assert_eq!((scene.text(open).await.as_str(), scene.balances().len()), ("1", 0));
    // The newer row is refused, so the older one is sent.
    scene.sandbox.set_rules(fault_rules(&["reject:account=a"]));
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.text(open).await, "1,2");
    scene.sandbox.set_rules(fault_rules(&["reject:negative"]));
    output_of(&scene, 3, &["errors", "retry"]).await;
    assert_eq!((scene.text(open).await.as_str(), balances_since(&scene, 0)), ("2", vec!["10".to_owned()]));
    // Once a version of the newer row was uploaded, it supersedes.
    scene.sandbox.set_rules(fault_rules(&["reject:account=a"]));
    scene.sql("update ledger.balance_snapshots set balance = 11 where id = 1").await;
    output_of(&scene, 3, &["run"]).await;
    scene.sandbox.set_rules(Vec::new());
    scene.sql("update ledger.balance_snapshots set balance = 21 where id = 2").await;
    output_of(&scene, 3, &["errors", "retry"]).await;
    scene.sql("update ledger.balance_snapshots set balance = 22 where id = 2").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(open).await, "1");
    assert!(output_of(&scene, 0, &["errors", "retry"]).await.contains("superseded by row 2"));
    assert_eq!(balances_since(&scene, 1), ["21", "22"], "a retry sends a row as it is now");
    assert_eq!(scene.text(open).await, "");
}

#[sqlx::test(migrations = false)]
async fn row_is_sent_after_its_pending_rival_is_deleted(pool: PgPool) {
    let scene = scene_from_now(pool).await;
    scene.sandbox.set_rules(fault_rules(&["reject:account=a"]));
    scene.sql("update ledger.balance_snapshots set balance = 10 where id = 1").await;
    output_of(&scene, 3, &["run"]).await;
    scene.sandbox.set_rules(Vec::new());
    scene.sql("update ledger.balance_snapshots set balance = 20 where id = 2").await;
    output_of(&scene, 3, &["errors", "retry"]).await;
    scene.sql("delete from ledger.balance_snapshots where id = 2").await;
    output_of(&scene, 0, &["run"]).await;
    assert!(output_of(&scene, 0, &["errors", "retry"]).await.contains("uploaded"));
    assert_eq!(balances_since(&scene, 0), ["10"]);
}
