//! Which lists count when a batch is refused, and when they are requested.

use serde_json::json;
use sqlx::PgPool;

use super::{HELD, add, imports, knowing, pages};
use crate::stub::{Stub, StubRequest, StubResponse, respond};
use crate::support::{TestEnv, fault_rules, output_of};

#[sqlx::test(migrations = false)]
async fn lists_are_requested_at_the_first_refusal_and_stored_for_five_minutes(pool: PgPool) {
    let mut scene = knowing(pool, &["known"]).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "5");
    add(&scene, 10, "'known'", "'BTC'").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(pages(&scene), 0, "nothing was refused");
    add(&scene, 20, "case when n % 4 = 0 then 'gone' else 'known' end", "'ETH'").await;
    output_of(&scene, 3, &["run"]).await;
    let read = pages(&scene);
    assert!(read >= 2, "{read}");
    assert_eq!(
        scene.text("select string_agg(entity_account_id, ',') from elven_sync.known_accounts").await,
        "known"
    );
    add(&scene, 20, "case when n % 4 = 0 then 'also' else 'known' end", "'EUR'").await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(pages(&scene), read, "the stored lists are new enough");
    scene.sql("update elven_sync.known_accounts set fetched_at = fetched_at - interval '6 minutes'").await;
    add(&scene, 20, "case when n % 4 = 0 then 'third' else 'known' end", "'CHF'").await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(pages(&scene), read + 1, "the list of accounts is old");
}

/// An API that knows the accounts `known` and `other`, and answers the lists in a way of its own.
async fn api(scene: &mut TestEnv, accounts: fn(&StubRequest) -> StubResponse) -> Stub {
    let api = move |asked: &StubRequest| match &asked.path {
        path if path.contains("entityAccount") => accounts(asked),
        path if path.contains("currency") => list(1, &["BTC"], "currency"),
        _ if asked.has("gone") => respond(400),
        _ => respond(200),
    };
    Stub::of(scene, api).await
}

fn list(total: usize, ids: &[&str], field: &str) -> StubResponse {
    let entries: Vec<_> = ids.iter().map(|id| json!({ field: id })).collect();
    StubResponse { body: json!({"total": total, "list": entries}).to_string(), ..respond(200) }
}

/// With a list that counts, the second request would be the part with `gone`: three rows with it in one import. Without
/// one, `known` and `other` are in doubt as well, and single records of `gone` have to show that it is unknown.
#[sqlx::test(migrations = false)]
async fn lists_that_are_empty_short_or_changing_do_not_count(pool: PgPool) {
    let mut scene = knowing(pool, &[]).await;
    for (number, accounts) in [
        (|_: &StubRequest| list(0, &[], "entityAccountId")) as fn(&StubRequest) -> StubResponse,
        |_| list(3, &["known", "other"], "entityAccountId"),
        |asked| {
            let is_first = asked.path.contains("page=1&");
            list(if is_first { 3 } else { 2 }, &["known"], "entityAccountId")
        },
        |_| respond(403),
    ]
    .into_iter()
    .enumerate()
    {
        let stub = api(&mut scene, accounts).await;
        let account = "(array['known', 'other', 'gone'])[n % 3 + 1]";
        add(&scene, 12, account, "'BTC'").await;
        output_of(&scene, 3, &["run"]).await;
        assert_eq!(scene.text("select count(*)::text from elven_sync.known_accounts").await, "0", "{number}");
        let held = "select concat_ws(' ', sum(rows), min(name)) from elven_sync.sync_errors
                     where resolved_at is null and run_id = (select max(run_id) from elven_sync.sync_runs)";
        assert_eq!(scene.text(held).await, "4 gone", "{number}");
        drop(stub);
    }
}

/// Without a list no name is in doubt for long: a record that is refused for another reason is set aside alone.
#[sqlx::test(migrations = false)]
async fn without_lists_a_single_refused_record_is_a_rejected_row(pool: PgPool) {
    let scene = knowing(pool, &[]).await;
    scene.sandbox.set_rules(fault_rules(&["reject:negative"]));
    add(&scene, 40, "'a' || n % 4", "'BTC'").await;
    scene.sql("update ledger.balance_snapshots set balance = -1 where id in (5, 17, 30)").await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "NULL");
    let rejected = "select string_agg(ledger_id, ',' order by ledger_id::int) from elven_sync.sync_errors
                     where kind = 'rejected_row'";
    assert_eq!(scene.text(rejected).await, "5,17,30");
    assert_eq!(scene.balances().len(), 37);
    println!("3 of 40 rows: {} imports", imports(&scene).len());
}

/// An account that the API accepts is known, even if its list lacks it; a listed one is not unknown.
#[sqlx::test(migrations = false)]
async fn no_row_is_held_whose_name_was_not_refused(pool: PgPool) {
    let mut scene = knowing(pool, &[]).await;
    let api = |asked: &StubRequest| match &asked.path {
        path if path.contains("entityAccount") => list(1, &["listed"], "entityAccountId"),
        path if path.contains("currency") => list(1, &["BTC"], "currency"),
        _ if asked.has("gone") || asked.body.contains("\"balance\":-") => respond(400),
        _ => respond(200),
    };
    let stub = Stub::of(&mut scene, api).await;
    add(&scene, 60, "(array['listed', 'new', 'other', 'gone'])[n % 4 + 1]", "'BTC'").await;
    scene.sql("update ledger.balance_snapshots set balance = -1 where balance in (8, 20)").await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "unknown_account gone 1 15");
    let rejected = "select string_agg(record ->> 'entityAccountId', ',') from elven_sync.sync_errors
                     where kind = 'rejected_row'";
    assert_eq!(scene.text(rejected).await, "listed,listed");
    assert_eq!(scene.text("select rows_uploaded::text from elven_sync.sync_state").await, "43");
    output_of(&scene, 0, &["verify"]).await;
    drop(stub);
}
