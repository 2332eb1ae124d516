//! Held rows never stay held in silence: each way in which they were stuck.

use sqlx::PgPool;

use super::resend::{LISTS_ARE_OLD, scene_with_held_rows, with_accounts};
use super::{HELD, add, knowing};
use crate::support::{fault_rules, output_of};

/// The map of the entity hides one of all entities, so that the rows have another name.
#[sqlx::test(migrations = false)]
async fn map_that_hides_another_releases_held_rows(pool: PgPool) {
    let scene = knowing(pool, &[]).await;
    add(&scene, 1, "'a'", "'BTC'").await;
    output_of(&scene, 0, &["run"]).await;
    output_of(&scene, 0, &["map", "currency", "usd", "XXX"]).await;
    add(&scene, 2, "'b'", "'usd'").await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "unknown_currency XXX 1 2");
    output_of(&scene, 0, &["map", "currency", "--entity", "acme", "usd", "USD"]).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "NULL");
    assert_eq!(scene.balances().len(), 3);
}

/// The name under which rows are held may be refused again in the run for rows of another name.
#[sqlx::test(migrations = false)]
async fn mapped_rows_are_sent_although_others_are_held_under_their_old_name(pool: PgPool) {
    let scene = knowing(pool, &["ok", "good"]).await;
    add(&scene, 1, "'ok'", "'BTC'").await;
    output_of(&scene, 0, &["run"]).await;
    output_of(&scene, 0, &["map", "account", "a", "x"]).await;
    add(&scene, 3, "'a'", "'BTC'").await;
    output_of(&scene, 3, &["run"]).await;
    output_of(&scene, 0, &["map", "account", "a", "good"]).await;
    add(&scene, 2, "'x'", "'ETH'").await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "unknown_account x 1 2");
    assert_eq!(scene.balances().len(), 4);
}

#[sqlx::test(migrations = false)]
async fn retry_before_the_name_is_listed_delays_nothing(pool: PgPool) {
    let scene = scene_with_held_rows(pool).await;
    output_of(&scene, 3, &["errors", "retry"]).await;
    let scene = with_accounts(scene, &["known", "new"]).await;
    scene.sql(LISTS_ARE_OLD).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "NULL");
}

/// A problem of the resend is one of the entity.
#[sqlx::test(migrations = false)]
async fn failed_resend_is_recorded_and_exits_with_1(pool: PgPool) {
    let scene = scene_with_held_rows(pool).await;
    let scene = with_accounts(scene, &["known", "Acme-1"]).await;
    output_of(&scene, 0, &["map", "account", "new", "Acme-1"]).await;
    scene.sandbox.set_rules(fault_rules(&["revoked"]));
    let text = output_of(&scene, 1, &["run"]).await;
    assert!(text.contains("failed: acme: the API refused credential `default`"), "{text}");
    let recorded = "select concat_ws(' ', status, last_error is not null,
                                     (select kind from elven_sync.sync_errors
                                       where resolved_at is null and ledger_ids is null))
                      from elven_sync.sync_health";
    assert_eq!(scene.text(recorded).await, "failing t auth");
    scene.sandbox.set_rules(Vec::new());
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(recorded).await, "ok f");
    assert_eq!(scene.balances().len(), 5);
}

/// Rows that are set aside for another reason by the resend are news of this run.
#[sqlx::test(migrations = false)]
async fn row_that_the_resend_sets_aside_exits_with_3(pool: PgPool) {
    let scene = scene_with_held_rows(pool).await;
    scene.sql("update ledger.balance_snapshots set balance = -1 where id = 3").await;
    let scene = with_accounts(scene, &["known", "new"]).await;
    scene.sandbox.set_rules(fault_rules(&["reject:negative"]));
    scene.sql("update elven_sync.sync_errors set ledger_ids = ledger_ids").await;
    scene.sql(LISTS_ARE_OLD).await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "NULL");
    assert_eq!(scene.balances().len(), 4);
}

/// One record whose outcome stays unknown does not keep the others.
#[sqlx::test(migrations = false)]
async fn record_of_unknown_outcome_does_not_keep_the_other_held_rows(pool: PgPool) {
    let mut scene = knowing(pool, &[]).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    add(&scene, 1, "'ok'", "'BTC'").await;
    output_of(&scene, 0, &["run"]).await;
    add(&scene, 20, "'a' || n", "'usd'").await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "unknown_currency usd 1 20");
    output_of(&scene, 0, &["map", "currency", "usd", "USD"]).await;
    scene.sandbox.set_rules(fault_rules(&["firewall:account=a13"]));
    for _ in 0..4 {
        // Others are accepted in the same run.
        add(&scene, 1, "'ok' || clock_timestamp()::text", "'BTC'").await;
        scene.output(&["run"]).await;
    }
    let usd = scene.received().iter().filter(|record| record.contains(" USD ")).count();
    assert_eq!((usd, scene.text(HELD).await.as_str()), (19, "NULL"));
    let left = "select string_agg(concat_ws(' ', kind, http_status), ',') from elven_sync.sync_errors
                 where resolved_at is null and ledger_id is not null";
    assert_eq!(scene.text(left).await, "rejected_row 403");
}

/// A name is text from outside, and never becomes a command.
#[sqlx::test(migrations = false)]
async fn name_with_a_hint_in_it_is_quoted_in_the_command(pool: PgPool) {
    let scene = knowing(pool, &["ok"]).await;
    add(&scene, 1, "'ok'", "'BTC'").await;
    output_of(&scene, 0, &["run"]).await;
    add(&scene, 1, "'a; hint: elven-sync entity rewind acme --yes #'", "'BTC'").await;
    output_of(&scene, 3, &["run"]).await;
    let hint = scene.text("select hint from elven_sync.error_causes").await;
    let command =
        "elven-sync map account --entity 'acme' 'a; hint: elven-sync entity rewind acme --yes #' ELVEN_NAME";
    assert_eq!(hint, command);
    let text = output_of(&scene, 0, &["errors", "list"]).await;
    assert!(!text.contains("hint: elven-sync entity rewind acme --yes #'\n"), "{text}");
}
