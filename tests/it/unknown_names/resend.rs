//! Held rows are sent again once the API knows their name.

use elven_sync::sandbox::Options;
use sqlx::PgPool;

use super::{HELD, add, imports, knowing};
use crate::support::{TestEnv, fault_rules, output_of, stdout};

/// The lists that are stored count as old.
pub(super) const LISTS_ARE_OLD: &str =
    "update elven_sync.known_accounts set fetched_at = fetched_at - interval '6 minutes';
     update elven_sync.known_currencies set fetched_at = fetched_at - interval '6 minutes'";

/// Five of ten rows are held, because the API does not know the account `new`.
pub(super) async fn scene_with_held_rows(pool: PgPool) -> TestEnv {
    let mut scene = knowing(pool, &["known"]).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    add(&scene, 10, "case when n % 2 = 0 then 'known' else 'new' end", "'BTC'").await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "unknown_account new 3 5");
    scene
}

/// The same database and settings, with an API that knows these accounts.
pub(super) async fn with_accounts(scene: TestEnv, accounts: &[&str]) -> TestEnv {
    let accounts = accounts.iter().map(|account| (*account).to_owned()).collect();
    let options = Options { accounts: Some(accounts), ..Options::default() };
    let mut next = TestEnv::connect_like(scene.pool.clone(), options).await;
    next.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    next.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
    next
}

#[sqlx::test(migrations = false)]
async fn run_sends_held_rows_once_their_name_is_listed(pool: PgPool) {
    let scene = scene_with_held_rows(pool).await;
    let mut scene = with_accounts(scene, &["known", "new"]).await;
    // The batches arrive in order.
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    // The list is younger than five minutes.
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.sandbox.requests().len(), 0);
    scene.sql(LISTS_ARE_OLD).await;
    let text = output_of(&scene, 0, &["run"]).await;
    assert!(text.contains("5 uploaded"), "{text}");
    // In full batches, in the order of their times.
    assert_eq!(imports(&scene).len(), 2);
    let balances: Vec<String> = scene.balances().into_iter().map(|(_, balance)| balance).collect();
    assert_eq!(balances, ["1", "3", "5", "7", "9"]);
    assert_eq!(scene.text(HELD).await, "NULL");
    let resolution = "select string_agg(distinct resolution, ',') from elven_sync.sync_errors";
    assert_eq!(scene.text(resolution).await, "sent again after its name was mapped or listed, and uploaded");
    let health = "select concat_ws(' ', status, open_errors) from elven_sync.sync_health";
    assert_eq!(scene.text(health).await, "ok 0");
    let text = output_of(&scene, 0, &["status", "--row", "1"]).await;
    assert!(text.contains("uploaded"), "{text}");
    output_of(&scene, 0, &["verify"]).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(imports(&scene).len(), 2, "nothing is sent twice");
}

#[sqlx::test(migrations = false)]
async fn held_rows_are_sent_after_the_new_rows_of_their_entity(pool: PgPool) {
    let scene = scene_with_held_rows(pool).await;
    let scene = with_accounts(scene, &["known", "new"]).await;
    scene.sql(LISTS_ARE_OLD).await;
    add(&scene, 3, "'new'", "'ETH'").await;
    // A newer version is sent by the pass, and the old one is not sent again.
    scene.sql("update ledger.balance_snapshots set balance = 700 where id = 7").await;
    output_of(&scene, 0, &["run"]).await;
    let balances: Vec<String> = scene.balances().into_iter().map(|(_, balance)| balance).collect();
    assert_eq!(balances.len(), 8, "{balances:?}");
    assert!(balances[..4].contains(&"700".to_owned()) && !balances.contains(&"7".to_owned()), "{balances:?}");
    assert_eq!(balances[4..], ["1", "3", "5", "9"]);
    assert_eq!(scene.text(HELD).await, "NULL");
    output_of(&scene, 0, &["verify"]).await;
}

#[sqlx::test(migrations = false)]
async fn rows_that_are_gone_superseded_or_invalid_by_now_are_not_sent(pool: PgPool) {
    let scene = scene_with_held_rows(pool).await;
    let scene = with_accounts(scene, &["known", "new"]).await;
    scene.sql(LISTS_ARE_OLD).await;
    // Row 11 has the key of row 3, and is newer. Row 13 is older than row 5.
    scene.sql("delete from ledger.balance_snapshots where id = 1;
               insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', 'new', 'BTC', captured_at + interval '1 ms', 1000 from ledger.balance_snapshots where id = 3;
               insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', 'new', 'BTC', captured_at, 1 from ledger.balance_snapshots where id = 9").await;
    output_of(&scene, 0, &["run"]).await;
    let balances: Vec<String> = scene.balances().into_iter().map(|(_, balance)| balance).collect();
    assert_eq!(balances, ["1000", "1", "5", "7"], "the rivals of rows 3 and 9 have greater ids");
    let resolutions =
        "select string_agg(distinct resolution, '; ' order by resolution) from elven_sync.sync_errors";
    let resolutions = scene.text(resolutions).await;
    assert!(!resolutions.is_empty(), "{resolutions}");
    assert_eq!(scene.text(HELD).await, "NULL");
    output_of(&scene, 0, &["verify"]).await;
}

#[sqlx::test(migrations = false)]
async fn newer_held_row_of_a_key_is_sent_and_the_older_one_superseded(pool: PgPool) {
    let mut scene = knowing(pool, &["known"]).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    add(&scene, 4, "'known'", "'BTC'").await;
    output_of(&scene, 0, &["run"]).await;
    // The newer row is read first, and its error is the first one.
    for at in ["2024-01-01 00:00:00.9Z", "2024-01-01 00:00:00.1Z"] {
        let sql = format!(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'new', 'BTC', '{at}', {}), ('acme', 'known', 'ETH', '{at}', 5)",
            if at.contains(".9") { 9 } else { 1 }
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&scene.pool).await.unwrap();
        output_of(&scene, 3, &["run"]).await;
    }
    assert_eq!(scene.text(HELD).await, "unknown_account new 2 2");
    let scene = with_accounts(scene, &["known", "new"]).await;
    scene.sql(LISTS_ARE_OLD).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.balances(), [("new".to_owned(), "9".to_owned())]);
    assert_eq!(scene.text(HELD).await, "NULL");
    output_of(&scene, 0, &["verify"]).await;
}

#[sqlx::test(migrations = false)]
async fn name_that_is_refused_again_is_not_released_for_a_day(pool: PgPool) {
    let scene = scene_with_held_rows(pool).await;
    let scene = with_accounts(scene, &["known", "new"]).await;
    scene.sql(LISTS_ARE_OLD).await;
    scene.sandbox.set_rules(fault_rules(&["reject:account=new"]));
    let text = output_of(&scene, 3, &["run"]).await;
    assert!(text.contains("acme: 5 held rows were sent again and refused again"), "{text}");
    let refused = imports(&scene).len();
    assert!(refused > 0);
    let held = "select sum(rows)::text from elven_sync.sync_errors where resolved_at is null";
    assert_eq!(scene.text(held).await, "5");
    output_of(&scene, 0, &["verify"]).await;
    scene.sandbox.set_rules(Vec::new());
    scene.sql(LISTS_ARE_OLD).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(imports(&scene).len(), refused, "not within a day");
    scene.sql("update elven_sync.sync_errors set not_before = not_before - interval '1 day'").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(held).await, "NULL");
    assert_eq!(scene.balances().len(), 5);
    output_of(&scene, 0, &["verify"]).await;
}

#[sqlx::test(migrations = false)]
async fn errors_of_held_rows_are_listed_retried_and_resolved(pool: PgPool) {
    let scene = scene_with_held_rows(pool).await;
    let text = output_of(&scene, 0, &["errors", "list"]).await;
    assert!(text.contains("acme: 5 unknown_account"), "{text}");
    assert!(text.contains("hint: elven-sync map account --entity 'acme' 'new' ELVEN_NAME"), "{text}");
    assert_eq!(text.matches("unknown_account").count(), 1, "{text}");
    let text = output_of(&scene, 0, &["errors", "list", "--rows", "--kind", "unknown_account"]).await;
    assert!(text.contains("2 rows") && text.contains("1 row"), "{text}");
    let text = output_of(&scene, 0, &["errors", "show", "1"]).await;
    assert!(text.contains("elven_sync.error_row_ids(1)") && text.contains("new"), "{text}");
    let text = output_of(&scene, 3, &["errors", "retry", "1"]).await;
    assert!(text.contains("error 1: still open: the API does not know the account `new`"), "{text}");
    assert_eq!(
        scene.text("select sum(rows)::text from elven_sync.sync_errors where resolved_at is null").await,
        "5"
    );
    let scene = with_accounts(scene, &["known", "new"]).await;
    let newest = "select max(error_id)::text from elven_sync.sync_errors where resolved_at is null";
    let newest = scene.text(newest).await;
    let text = output_of(&scene, 0, &["errors", "retry", &newest]).await;
    assert!(text.contains(&format!("error {newest}: resolved: uploaded by `errors retry`")), "{text}");
    output_of(&scene, 0, &["verify"]).await;
    let resolve = ["errors", "resolve", "--kind", "unknown_account", "--reason", "closed"];
    output_of(&scene, 0, &resolve).await;
    assert_eq!(scene.text(HELD).await, "NULL");
    output_of(&scene, 0, &["verify"]).await;
    let json = scene.output(&["status", "--json"]).await;
    assert!(stdout(&json).contains("\"ok\""), "{}", stdout(&json));
}

#[sqlx::test(migrations = false)]
async fn backfill_releases_the_held_rows_that_it_uploads(pool: PgPool) {
    let scene = scene_with_held_rows(pool).await;
    let scene = with_accounts(scene, &["known", "new"]).await;
    output_of(&scene, 0, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02"]).await;
    assert_eq!(scene.text(HELD).await, "NULL");
    assert_eq!(scene.balances().len(), 10);
    output_of(&scene, 0, &["verify"]).await;
}

/// The API knows `Acme-1` for the ledger's `new`.
#[sqlx::test(migrations = false)]
async fn held_rows_are_sent_once_their_name_is_mapped(pool: PgPool) {
    let scene = scene_with_held_rows(pool).await;
    let hint = scene.text("select hint from elven_sync.error_causes").await;
    assert_eq!(hint, "elven-sync map account --entity 'acme' 'new' ELVEN_NAME");
    let mut scene = with_accounts(scene, &["known", "Acme-1"]).await;
    // The batches arrive in order.
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    // To a name that the API does not know either: the rows are held under that name.
    output_of(&scene, 0, &["map", "account", "new", "Acme-2"]).await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "unknown_account Acme-2 2 5");
    output_of(&scene, 0, &["map", "account", "new", "Acme-1"]).await;
    let text = output_of(&scene, 0, &["run"]).await;
    assert!(text.contains("5 uploaded"), "{text}");
    let sent: Vec<(String, String)> =
        ["1", "3", "5", "7", "9"].map(|balance| ("Acme-1".to_owned(), balance.to_owned())).to_vec();
    assert_eq!(scene.balances(), sent);
    assert_eq!(scene.text(HELD).await, "NULL");
    output_of(&scene, 0, &["verify", "--deep"]).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.balances().len(), 5, "nothing is sent twice");
}

/// A map releases rows at once, also those of a name that was refused again within a day.
#[sqlx::test(migrations = false)]
async fn map_releases_rows_of_a_name_that_was_refused_again(pool: PgPool) {
    let scene = scene_with_held_rows(pool).await;
    let scene = with_accounts(scene, &["known", "Acme-1"]).await;
    output_of(&scene, 3, &["errors", "retry"]).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "unknown_account new 3 5");
    scene
        .sql(
            "insert into elven_sync.account_map (entity_id, ledger_account, entity_account_id)
               values ('acme', 'new', 'Acme-1'), ('acme', 'unrelated', 'known-not')",
        )
        .await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "NULL");
    assert_eq!(scene.balances().len(), 5);
}
