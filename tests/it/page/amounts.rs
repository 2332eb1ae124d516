//! The page shows no amount, whatever the API echoes.

use elven_sync::sandbox::Fault;
use sqlx::PgPool;

use super::{Page, body, path, started};
use crate::support::TestEnv;

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
             values ('webhook', '{\"ok\": false, \"message\": \"HTTP 400: balance 14142135\"}')
             on conflict (name, coalesce(entity_id, '')) do update set value = excluded.value",
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

/// From the ledger to the page: the API refuses a row and formats its amount, so that `cause` cannot replace it.
#[sqlx::test(migrations = false)]
async fn an_amount_that_the_api_echoes_is_not_shown(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'a1', 'BTC', '2024-01-01Z', 88002200.25)",
        )
        .await;
    let body = r#"{"status": "failed", "data": {"code": 40011, "message": "balance 88,002,200.25 of a1 is too large"}}"#;
    for _ in 0..3 {
        scene.sandbox.inject(Fault::Answer { status: 400, body: body.to_owned(), headers: Vec::new() });
    }
    let service = started(&scene).await;
    let stored = scene.text("select cause from elven_sync.sync_errors where kind = 'rejected_row'").await;
    assert!(stored.contains("88,002,200.25"), "{stored}");
    for path in ["/", "/status.json", "/entities/acme"] {
        let shown = super::body(&service.get(path).await);
        assert!(shown.contains("40011") && shown.contains("rejected_row"), "{shown}");
        assert!(!shown.contains("88,002") && !shown.contains("88002"), "{path}: {shown}");
    }
    service.stop().await;
}
