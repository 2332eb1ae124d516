//! Rows that were written while the trigger of the ledger was broken: the alert stays until they are stamped.

use sqlx::PgPool;

use super::{NONE, add_row, alert, named};
use crate::support::{TestEnv, output_of};

const DISABLE: &str = "alter table ledger.balance_snapshots disable trigger stamp_change_xid";
const ENABLE: &str = "alter table ledger.balance_snapshots enable always trigger stamp_change_xid";
const GAP: &str = "select (value ? 'gap_from')::text from elven_sync.sync_facts where name = 'guard'";

/// Returns the statement that `verify` prints for the rows without a stamp.
fn printed_statement(verified: &str) -> String {
    let from = verified.find("update \"ledger\".").unwrap_or_else(|| panic!("no statement: {verified}"));
    verified[from..].split("; the next run").next().unwrap().replace('\n', " ")
}

/// A row of a batch of which another row has changed since: neither batch nor interval shows the change.
#[sqlx::test(migrations = false)]
async fn row_that_was_updated_without_the_trigger_is_found_and_uploaded(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    for _ in 0..3 {
        add_row(&scene, "acme").await;
    }
    output_of(&scene, 0, &["run"]).await;
    scene.sql("update ledger.balance_snapshots set balance = 2 where id = 1").await;
    // The row of a savepoint has another xmin than stamp, too.
    scene
        .sql(
            "begin; savepoint a;
             insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'savepoint', 'BTC', now(), 4);
             release a; commit",
        )
        .await;
    output_of(&scene, 0, &["run"]).await;
    scene.sql(DISABLE).await;
    scene.sql("update ledger.balance_snapshots set balance = 9999 where id = 3").await;
    output_of(&scene, 0, &["run"]).await;
    let broken = alert(&scene, "GuardBroken").await;
    assert_eq!(broken.hint, "elven-sync attach --dry-run");
    assert_eq!(broken.message.matches("may be skipped").count(), 1, "{broken:?}");
    let traced = output_of(&scene, 0, &["status", "--row", "3"]).await;
    assert!(traced.contains("may have been changed since") && !traced.contains("as it was sent"), "{traced}");
    let verified = output_of(&scene, 3, &["verify"]).await;
    assert!(verified.contains("elven-sync attach and elven-sync run; then update"), "{verified}");

    scene.sql(ENABLE).await;
    add_row(&scene, "acme").await;
    output_of(&scene, 0, &["run"]).await;
    let repaired = alert(&scene, "GuardBroken").await;
    assert_eq!((repaired.since, repaired.hint.as_str()), (broken.since, "elven-sync verify"));
    assert!(repaired.message.contains("was broken until "), "{repaired:?}");
    let verified = output_of(&scene, 3, &["verify"]).await;
    assert!(
        verified.contains("rows 3 of the ledger were written while the trigger was broken"),
        "{verified}"
    );
    assert!(named(&scene).await.contains(&"GuardBroken critical".to_owned()));

    sqlx::query(sqlx::AssertSqlSafe(printed_statement(&verified))).execute(&scene.pool).await.unwrap();
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.balances().last().unwrap().1, "9999", "it was uploaded at last");
    output_of(&scene, 0, &["verify"]).await;
    assert_eq!(named(&scene).await, NONE);
    assert_eq!(scene.text(GAP).await, "false");
    assert!(output_of(&scene, 0, &["status", "--row", "3"]).await.contains("as it was sent: "));
}

/// `verify` of a person can close the gap before the next run does.
#[sqlx::test(migrations = false)]
async fn gap_ends_with_the_run_or_verify_that_finds_no_row_in_it(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    add_row(&scene, "acme").await;
    output_of(&scene, 0, &["run"]).await;
    scene.sql(DISABLE).await;
    output_of(&scene, 0, &["run"]).await;
    scene.sql("update ledger.balance_snapshots set balance = 5").await;
    scene.sql(ENABLE).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, ["GuardBroken critical"]);
    // Stamped by a correction of the row, and not by the statement.
    scene.sql("update ledger.balance_snapshots set balance = 6").await;
    output_of(&scene, 0, &["verify"]).await;
    assert_eq!(named(&scene).await, NONE);
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.balances().last().unwrap().1, "6");

    // Broken again, before a run has seen the end of the first time.
    scene.sql(DISABLE).await;
    output_of(&scene, 0, &["run"]).await;
    scene.sql("alter table ledger.balance_snapshots enable replica trigger stamp_change_xid").await;
    output_of(&scene, 0, &["run"]).await;
    scene.sql("update ledger.balance_snapshots set balance = 7").await;
    scene.sql(ENABLE).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, ["GuardBroken critical"]);
    scene.sql("update ledger.balance_snapshots set balance = 8").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE, "a run closes the gap, too");
}

/// Where no run has seen the trigger intact, the ledger may be stamped in another way: then nothing is said about rows.
#[sqlx::test(migrations = false)]
async fn trigger_that_was_broken_from_the_start_has_no_gap(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    add_row(&scene, "acme").await;
    scene.sql(DISABLE).await;
    scene.sql("update ledger.balance_snapshots set balance = 5").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, ["GuardBroken critical"]);
    output_of(&scene, 0, &["verify"]).await;
    scene.sql(ENABLE).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE);
}
