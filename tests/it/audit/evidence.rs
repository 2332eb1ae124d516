//! What was sent is proven from bodies that are made again, and what cannot be proven is shown apart.

use serde_json::Value;
use sqlx::PgPool;

use super::{assert_agrees_with_status, audited, text_of};
use crate::support::{TestEnv, fault_rules, output_of};

async fn scene(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
    scene.entity("acme", "Europe/Berlin").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', 'a' || n % 2, 'BTC', timestamptz '2024-01-05Z' + n * interval '1 h', n from generate_series(1, 12) n").await;
    scene
}

async fn january(scene: &TestEnv, code: i32) -> Value {
    audited(scene, code, "2024-01-01", "2024-02-01").await["entities"][0].clone()
}

/// The rows and the sum of totals, over all accounts.
fn rows(totals: &Value) -> i64 {
    totals.as_array().unwrap().iter().map(|total| total["rows"].as_i64().unwrap()).sum()
}

#[sqlx::test(migrations = false)]
async fn rows_of_batches_that_changed_are_shown_apart(pool: PgPool) {
    let scene = scene(pool).await;
    scene.sql("update ledger.balance_snapshots set currency = 'btc'").await;
    output_of(&scene, 0, &["map", "currency", "btc", "BTC"]).await;
    scene.run().await;
    let audit = january(&scene, 0).await;
    let sent = &audit["sent"];
    assert_eq!((rows(&sent["proven"]), rows(&sent["others"])), (12, 0), "{sent}");
    assert_eq!(sent["proven"][0]["currency"], "BTC", "as it was sent");
    assert_eq!(audit["totals"][0]["currency"], "btc", "as the ledger has it");
    // The other rows of the batch of a changed row cannot be proven, and the changed row is proven by its new batch.
    scene.sql("update ledger.balance_snapshots set balance = 100 where id = 2").await;
    assert_eq!(january(&scene, 3).await["rows"]["pending"], 1);
    scene.run().await;
    let audit = january(&scene, 0).await;
    let sent = &audit["sent"];
    assert_eq!((rows(&sent["proven"]), rows(&sent["others"])), (9, 3), "{sent}");
    assert_eq!(sent["others"][0]["evidence"], "changed_since");
    let text = text_of(&scene, 0, "2024-01-01", "2024-02-01").await;
    assert!(text.contains("Uploaded, changed since: 3 rows"), "{text}");
}

/// A body that differs although no row has a newer transaction is a finding of verify.
#[sqlx::test(migrations = false)]
async fn finding_of_verify_keeps_a_period_from_being_complete(pool: PgPool) {
    let scene = scene(pool).await;
    scene.run().await;
    scene
        .sql(
            "alter table ledger.balance_snapshots disable trigger stamp_change_xid;
               update ledger.balance_snapshots set balance = 100 where id = 2;
               alter table ledger.balance_snapshots enable always trigger stamp_change_xid",
        )
        .await;
    let audit = january(&scene, 3).await;
    assert_eq!(audit["verify"]["groups"][0]["what"], "body", "{audit}");
    assert_eq!(audit["sent"]["others"][0]["evidence"], "differs", "{audit}");
    let text = text_of(&scene, 3, "2024-01-01", "2024-02-01").await;
    assert!(
        text.starts_with("2024-01-01 to 2024-02-01 is NOT complete: 1 finding of verify, of 12 rows"),
        "{text}"
    );
    // Batches of other periods are not checked.
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-02-05Z', 1)").await;
    scene.run().await;
    audited(&scene, 0, "2024-02-01", "2024-03-01").await;
}

/// What a retry and a backfill have sent is proven from their bodies, where these can be made again.
#[sqlx::test(migrations = false)]
async fn what_a_retry_and_a_backfill_sent_is_proven(pool: PgPool) {
    let scene = scene(pool).await;
    scene.sandbox.set_rules(fault_rules(&["reject:account=a1"]));
    scene.run().await;
    scene.sandbox.set_rules(Vec::new());
    output_of(&scene, 0, &["errors", "retry"]).await;
    let audit = january(&scene, 0).await;
    assert_eq!(rows(&audit["sent"]["proven"]), 12, "{audit}");

    output_of(&scene, 0, &["entity", "rewind", "acme", "--yes"]).await;
    scene.sql("delete from elven_sync.entities").await;
    output_of(&scene, 0, &["entity", "add", "acme", "--timezone", "Europe/Berlin", "--from-now"]).await;
    scene.run().await;
    let audit = january(&scene, 0).await;
    assert_eq!(
        audit["rows"]["not_synced"], 12,
        "what was sent before the rewind is not proven by this journal: {audit}"
    );
    output_of(&scene, 0, &["backfill", "--from", "2024-01-01", "--to", "2024-02-01"]).await;
    assert_agrees_with_status(&scene, 0, "2024-01-01", "2024-02-01").await;
    let audit = january(&scene, 0).await;
    assert_eq!((&audit["rows"]["uploaded"], rows(&audit["sent"]["proven"])), (&12.into(), 12), "{audit}");
}

/// The versions that decided the bytes of the batches are listed.
#[sqlx::test(migrations = false)]
async fn zones_rules_and_versions_of_the_batches_are_listed(pool: PgPool) {
    let scene = scene(pool).await;
    scene.run().await;
    output_of(&scene, 0, &["entity", "set", "acme", "--timezone", "America/New_York"]).await;
    scene.sql("update ledger.balance_snapshots set balance = 5 where id = 12").await;
    scene.run().await;
    let audit = january(&scene, 0).await;
    let made: Vec<(&str, i64)> = audit["batches"]["made_with"]
        .as_array()
        .unwrap()
        .iter()
        .map(|made| (made["timezone"].as_str().unwrap(), made["batches"].as_i64().unwrap()))
        .collect();
    assert_eq!(made, [("America/New_York", 1), ("Europe/Berlin", 3)]);
    let first = &audit["batches"]["made_with"][0];
    assert_eq!(first["version"], env!("CARGO_PKG_VERSION"));
    assert!(first["zone_rules"].as_str().unwrap().contains("20"), "{first}");
}
