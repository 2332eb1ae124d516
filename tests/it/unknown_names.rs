//! Unknown names: a refused batch is split by account and currency, and the rows of a name that the API does not know
//! are held.

mod lists;
mod lookup;
mod resend;
mod stuck;

use std::collections::BTreeSet;

use elven_sync::sandbox::{Options, Request};
use sqlx::PgPool;

use crate::support::{IMPORT, TestEnv, fault_rules, output_of};

/// The open errors of held rows: kind, name, errors and rows of each name.
pub(crate) const HELD: &str =
    "select string_agg(concat_ws(' ', kind, name, errors, rows), ', ' order by kind, name)
       from (select kind, name, count(*) as errors, sum(rows) as rows from elven_sync.sync_errors
              where resolved_at is null and ledger_ids is not null group by 1, 2) held";

/// A sandbox that knows these accounts. With none, it knows every account and lists none.
async fn knowing(pool: PgPool, accounts: &[&str]) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    let accounts: BTreeSet<String> = accounts.iter().map(|account| (*account).to_owned()).collect();
    let options =
        Options { accounts: Some(accounts).filter(|known| !known.is_empty()), ..Options::default() };
    let mut scene = TestEnv::connect_like(scene.pool.clone(), options).await;
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
    scene.entity("acme", "UTC").await;
    scene
}

/// Adds rows of acme: for each number from 1 to `count` one with an account and a currency, which are SQL expressions
/// of `n`.
async fn add(scene: &TestEnv, count: i32, account: &str, currency: &str) {
    let sql = format!(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select 'acme', {account}, {currency}, timestamptz '2024-01-01Z' + n * interval '1 s', n
           from generate_series(1, {count}) n"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&scene.pool).await.unwrap();
}

/// The imports that arrived, in order.
fn imports(scene: &TestEnv) -> Vec<Request> {
    scene.sandbox.requests().into_iter().filter(|request| request.path == IMPORT).collect()
}

/// The pages of lists that were asked for.
fn pages(scene: &TestEnv) -> usize {
    scene.sandbox.requests().iter().filter(|request| request.path.ends_with("limit=100")).count()
}

#[sqlx::test(migrations = false)]
async fn quarter_of_3000_rows_with_an_unknown_currency_takes_at_most_12_imports(pool: PgPool) {
    let scene = knowing(pool, &[]).await;
    add(&scene, 3_000, "'a' || n % 50", "case when n % 4 = 0 then 'usd' else 'USD' end").await;
    let text = output_of(&scene, 3, &["run"]).await;
    assert!(imports(&scene).len() <= 12, "{} imports: {text}", imports(&scene).len());
    assert_eq!(scene.balances().len(), 2_250);
    assert_eq!(scene.text(HELD).await, "unknown_currency usd 3 750");
    assert_eq!(scene.text("select count(*)::text from elven_sync.error_causes").await, "1");
    let cause = "select concat_ws(' ', kind, rows, cause) from elven_sync.error_causes";
    let cause = scene.text(cause).await;
    assert!(
        cause.starts_with("unknown_currency 750 the API does not know the currency `usd` (near: `USD`"),
        "{cause}"
    );
    let others = "select count(*)::text from elven_sync.sync_errors where ledger_ids is null";
    assert_eq!(scene.text(others).await, "0");
    let health = "select concat_ws(' ', status, pending_rows, last_error) from elven_sync.sync_health";
    assert_eq!(scene.text(health).await, "incomplete 0");
    output_of(&scene, 0, &["verify"]).await;
}

#[sqlx::test(migrations = false)]
async fn refused_account_is_found_without_lists_in_under_60_requests(pool: PgPool) {
    let scene = knowing(pool, &[]).await;
    // 43 of 300 rows, and 258 accounts in 3 currencies.
    let account = "case when n % 7 = 0 or n = 1 then 'gone' else 'a' || n end";
    add(&scene, 300, account, "case n % 3 when 0 then 'BTC' when 1 then 'ETH' else 'EUR' end").await;
    scene.sandbox.set_rules(fault_rules(&["reject:account=gone"]));
    // The account list is empty, so it does not count.
    output_of(&scene, 3, &["run"]).await;
    assert!(imports(&scene).len() < 60, "{} imports", imports(&scene).len());
    println!("without lists: {} imports", imports(&scene).len());
    assert_eq!(scene.balances().len(), 257);
    assert!(scene.balances().iter().all(|(account, _)| account != "gone"));
    let held = "select sum(rows)::text from elven_sync.sync_errors
                 where resolved_at is null and kind = 'unknown_account' and name = 'gone'";
    assert_eq!(scene.text(held).await, "43");
    let others = "select count(*)::text from elven_sync.sync_errors where resolved_at is null and ledger_id is not null";
    assert_eq!(scene.text(others).await, "0");
    output_of(&scene, 0, &["verify"]).await;
}

#[sqlx::test(migrations = false)]
async fn later_batches_do_not_send_rows_of_a_refused_name(pool: PgPool) {
    let mut scene = knowing(pool, &["known"]).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "10");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    add(&scene, 100, "case when n % 2 = 0 then 'known' else 'gone' end", "'BTC'").await;
    output_of(&scene, 3, &["run"]).await;
    let imports = imports(&scene);
    let refused = imports.iter().filter(|request| request.status == Some(400)).count();
    // The first batch and its part with the account; each later batch is one import.
    assert_eq!((imports.len(), refused), (2 + 10, 2));
    assert_eq!(scene.text(HELD).await, "unknown_account gone 10 50");
    assert_eq!(scene.balances().len(), 50);
    let counted =
        "select concat_ws(' ', rows_read, rows_uploaded, rows_rejected, requests) from elven_sync.sync_runs";
    assert_eq!(scene.text(counted).await, "100 50 50 12");
    output_of(&scene, 0, &["verify"]).await;
}

#[sqlx::test(migrations = false)]
async fn held_rows_do_not_count_towards_the_limit_of_rejected_rows(pool: PgPool) {
    let mut scene = knowing(pool, &["known"]).await;
    scene.set("ELVEN_SYNC_SYNC__MAX_REJECTIONS", "1");
    scene.sandbox.set_rules(fault_rules(&["reject:negative"]));
    add(&scene, 10, "'known'", "'BTC'").await;
    scene.sql("update ledger.balance_snapshots set balance = -1 where id = 3").await;
    output_of(&scene, 3, &["run"]).await;
    add(&scene, 20, "case when n > 10 then 'gone' else 'known' end", "'ETH'").await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "unknown_account gone 1 10");
    assert_eq!(scene.balances().len(), 9 + 10);
}

#[sqlx::test(migrations = false)]
async fn batch_of_which_the_api_knows_no_account_stops_the_lane(pool: PgPool) {
    let scene = knowing(pool, &["bank-chf", "bank-eur"]).await;
    add(&scene, 60, "'Bank-CHF-' || least(n, 7)", "'BTC'").await;
    scene.sql("update ledger.balance_snapshots set entity_account_id = 'Bank-CHF' where id <= 3").await;
    let text = output_of(&scene, 1, &["run"]).await;
    assert_eq!(imports(&scene).len(), 1, "{text}");
    let error = "select concat_ws(' ', kind, message) from elven_sync.sync_errors";
    let error = scene.text(error).await;
    for part in [
        "config the API refused a batch of 60 records (HTTP 400",
        "none of its accounts: `Bank-CHF-7` (54 of 60 \
                 records, near `bank-chf`), `Bank-CHF` (3 of 60 records, near `bank-chf`)",
        "key of another entity?",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(scene.text("select count(*)::text from elven_sync.sync_errors").await, "1");
    // Once a record was accepted, the rows are held.
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'bank-eur', 'BTC', '2024-01-01Z', 1)").await;
    scene.sql("update elven_sync.sync_state set rows_uploaded = 1").await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(
        scene.text("select sum(rows)::text from elven_sync.sync_errors where resolved_at is null").await,
        "60"
    );
}

#[sqlx::test(migrations = false)]
async fn two_batches_in_flight_with_one_unknown_name_report_one_cause(pool: PgPool) {
    let mut scene = knowing(pool, &["known"]).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "10");
    add(&scene, 40, "case when n % 2 = 0 then 'known' else 'gone' end", "'BTC'").await;
    scene.sandbox.set_rules(fault_rules(&["slow=200ms"]));
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "unknown_account gone 4 20");
    assert_eq!(scene.text("select count(*)::text from elven_sync.error_causes").await, "1");
    assert_eq!(scene.balances().len(), 20);
    output_of(&scene, 0, &["verify"]).await;
}

#[sqlx::test(migrations = false)]
async fn newer_version_of_a_held_row_releases_it(pool: PgPool) {
    let scene = knowing(pool, &["known", "other"]).await;
    add(&scene, 10, "case when n <= 2 then 'gone' else 'known' end", "'BTC'").await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "unknown_account gone 1 2");
    assert_eq!(scene.text("select string_agg(id, ',') from elven_sync.error_row_ids(1) id").await, "1,2");
    let text = output_of(&scene, 3, &["status", "--row", "1"]).await;
    assert!(text.contains("does not know the account `gone`"), "{text}");
    scene.sql("update ledger.balance_snapshots set entity_account_id = 'other' where id = 1").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "unknown_account gone 1 1");
    assert_eq!(scene.text("select string_agg(id, ',') from elven_sync.error_row_ids(1) id").await, "2");
    output_of(&scene, 0, &["verify"]).await;
    // A version that is held again moves to the newer error.
    scene.sql("update ledger.balance_snapshots set balance = 7 where id = 2").await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "unknown_account gone 1 1");
    let resolved = "select concat_ws(' ', resolution, rows) from elven_sync.sync_errors where error_id = 1";
    assert_eq!(scene.text(resolved).await, "another problem of the row took its place 2");
    scene.sql("update ledger.balance_snapshots set entity_account_id = 'other' where id = 2").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "NULL");
    let health = "select status from elven_sync.sync_health";
    assert_eq!(scene.text(health).await, "ok");
    output_of(&scene, 0, &["verify"]).await;
}

/// A map to a name that the ledger has itself would be refused, so it is not proposed; nor is another currency.
#[sqlx::test(migrations = false)]
async fn only_a_map_that_is_possible_is_proposed(pool: PgPool) {
    let scene = knowing(pool, &["bank-chf", "bank-eur", "bank-usd"]).await;
    add(&scene, 1, "'bank-eur'", "'BTC'").await;
    scene.run().await;
    add(&scene, 12, "(array['Bank-CHF', 'bank-chf', 'BANK USD', 'bank-chx'])[n % 4 + 1]", "'BTC'").await;
    output_of(&scene, 3, &["run"]).await;
    let hints = "select string_agg(concat_ws(': ', name, hint), E'\\n' order by name collate \"C\")
                   from elven_sync.sync_errors where resolved_at is null";
    let expected = [
        "BANK USD: elven-sync map account --entity 'acme' 'BANK USD' 'bank-usd'",
        "Bank-CHF: correct account `Bank-CHF` to `bank-chf` in the ledger",
        "bank-chx: elven-sync map account --entity 'acme' 'bank-chx' ELVEN_NAME",
    ];
    assert_eq!(scene.text(hints).await, expected.join("\n"));
}

/// The ledger has the right name in rows of an earlier run, which this run does not read.
#[sqlx::test(migrations = false)]
async fn map_to_a_name_of_rows_of_an_earlier_run_is_not_proposed(pool: PgPool) {
    let scene = knowing(pool, &["solo", "duo"]).await;
    add(&scene, 1, "'solo'", "'BTC'").await;
    scene.run().await;
    add(&scene, 4, "(array['Solo', 'Duo'])[n % 2 + 1]", "'BTC'").await;
    output_of(&scene, 3, &["run"]).await;
    let listed = output_of(&scene, 0, &["errors", "list"]).await;
    assert!(listed.contains("hint: correct account `Solo` to `solo` in the ledger"), "{listed}");
    assert!(listed.contains("elven-sync map account --entity 'acme' 'Duo' 'duo'"), "{listed}");
    assert!(!listed.contains("'Solo' 'solo'"), "{listed}");
    let message = "select message from elven_sync.sync_errors where name = 'Solo' and resolved_at is null";
    assert!(scene.text(message).await.ends_with("; hint: correct account `Solo` to `solo` in the ledger"));
    // What the hint says settles it.
    scene
        .sql(
            "update ledger.balance_snapshots set entity_account_id = 'solo' where entity_account_id = 'Solo'",
        )
        .await;
    output_of(&scene, 0, &["map", "account", "--entity", "acme", "Duo", "duo"]).await;
    output_of(&scene, 0, &["run"]).await;
}
