//! The page shows no amount, whatever the API echoes.

use elven_sync::sandbox::Received;
use sqlx::PgPool;

use super::{Page, body, path, started};
use crate::support::{TestEnv, fault_rules};

/// The amounts in the messages of the filled journal.
const AMOUNTS: [&str; 4] = ["918273", "7654321", "55443322", "1000.5"];

#[sqlx::test(migrations = false)]
async fn amounts_in_messages_are_not_shown(pool: PgPool) {
    let page = Page::filled(pool).await;
    // A message of a lane has no record whose amount could be replaced.
    page.scene
        .sql(
            "insert into elven_sync.sync_errors (entity_id, kind, message, api_code)
             values ('umbrella', 'rejected_batch', 'the API refused a batch of 3 records (HTTP 400): \"total 31,415,926.53 EUR\"', '31415926.53');
             insert into elven_sync.sync_errors (entity_id, kind, message)
             values ('umbrella', 'ledger', 'the database could not read the rows: invalid input syntax for type numeric: \"27182818,28\"');
             insert into elven_sync.sync_backfills (range_from, range_to, status, error, started_at)
             values ('2026-01-01', '2026-02-01', 'failed', 'lane failed: \"balance 16180339\"', now());
             insert into elven_sync.sync_facts (name, value)
             values ('webhook', '{\"ok\": false, \"message\": \"HTTP 400: balance 14142135\"}')",
        )
        .await;
    let mut read = String::new();
    for path in [
        "/".to_owned(),
        "/status.json".to_owned(),
        path("globex"),
        path("umbrella"),
        path("stark industries"),
    ] {
        let answer = page.service.get(&path).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        read += &body(&answer);
    }
    for amount in AMOUNTS.into_iter().chain(["31,415", "31415", "27182818", "16180339", "14142135"]) {
        assert!(!read.contains(amount), "{amount}: {read}");
    }
    for words in ["a batch of 3 records (HTTP 400)", "BackfillStopped", "WebhookFailing", "40105"] {
        assert!(read.contains(words), "{words}: {read}");
    }
    page.service.stop().await;
}

/// From the ledger to the page: the API refuses rows, and none of their amounts is on a page.
#[sqlx::test(migrations = false)]
async fn amounts_of_the_ledger_are_not_shown(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'acme', 'a' || n, 'BTC', '2024-01-01Z'::timestamptz, -77001100.25 - n from generate_series(1, 5) n
              union all select 'acme', 'good', 'BTC', '2024-01-01Z'::timestamptz, 88002200.25
              union all select 'acme', 'nan', 'BTC', '2024-01-01Z'::timestamptz, 'NaN'",
        )
        .await;
    scene.sandbox.set_rules(fault_rules(&["reject:negative"]));
    let service = started(&scene).await;
    assert_eq!(
        scene.text("select count(*)::text from elven_sync.sync_errors where resolved_at is null").await,
        "6"
    );
    assert!(scene.sandbox.received().iter().any(|Received { balance, .. }| balance == "88002200.25"));
    for path in ["/", "/status.json", "/entities/acme"] {
        let shown = body(&service.get(path).await);
        assert!(shown.contains("rejected_row"), "{shown}");
        for amount in ["77001", "88002"] {
            assert!(!shown.contains(amount), "{path}: {shown}");
        }
    }
    service.stop().await;
}
