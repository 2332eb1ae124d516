//! Maps: the ledger's names of accounts and currencies are sent as their names at Elven.

mod commands;
mod shared;
mod tables;

use elven_sync::sandbox::Fault;
use sqlx::PgPool;

use crate::support::{TestEnv, as_sent, output_of};

/// An entity whose ledger has names of its own.
async fn scene(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance) values
                 ('acme', 'main', 'USDC', '2024-01-01Z', 1), ('acme', 'main', 'BTC', '2024-01-02Z', 2),
                 ('acme', 'other', 'USDC', '2024-01-03Z', 3)",
        )
        .await;
    scene
}

async fn map(scene: &TestEnv, arguments: &[&str]) -> String {
    output_of(scene, 0, &[&["map"], arguments].concat()).await
}

/// The map versions of the batches, in order.
const VERSIONS: &str = "
    select string_agg(coalesce(map_version::text, '-'), ',' order by batch_id) from elven_sync.sync_batches";

#[sqlx::test(migrations = false)]
async fn mapped_names_are_sent_and_others_as_they_are(pool: PgPool) {
    let scene = scene(pool).await;
    map(&scene, &["account", "main", "8nfr-1"]).await;
    map(&scene, &["currency", "USDC", "USD"]).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(
        scene.received(),
        [
            "8nfr-1 BTC 2024-01-02 00:00:00 2",
            "8nfr-1 USD 2024-01-01 00:00:00 1",
            "other USD 2024-01-03 00:00:00 3"
        ]
    );
    assert_eq!(scene.text(VERSIONS).await, "2");
    output_of(&scene, 0, &["verify", "--deep"]).await;
}

/// A new map changes what is sent from then on, and no record that was accepted.
#[sqlx::test(migrations = false)]
async fn new_map_resends_nothing_and_names_the_backfill(pool: PgPool) {
    let scene = scene(pool).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(VERSIONS).await, "-");
    let said = map(&scene, &["account", "main", "8nfr-1"]).await;
    let backfill = "elven-sync backfill --entity 'acme' --account 'main' --from 2024-01-01 --to 2024-01-03";
    assert!(said.contains("are not sent again") && said.contains(backfill), "{said}");
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.received().len(), 3, "nothing is sent again");
    let backfill = backfill.replace('\'', "");
    let words: Vec<&str> = backfill.split(' ').skip(1).collect();
    output_of(&scene, 0, &words).await;
    assert_eq!(
        scene.received()[..2],
        ["8nfr-1 BTC 2024-01-02 00:00:00 2", "8nfr-1 USDC 2024-01-01 00:00:00 1"]
    );
    // Each body is proven with the maps of its own time.
    let proof = output_of(&scene, 0, &["verify", "--deep"]).await;
    assert!(proof.contains("and 1 bodies have the recorded hash"), "{proof}");
}

/// Bodies of old batches are made again with the maps of their time, whatever happened to the maps since.
#[sqlx::test(migrations = false)]
async fn verify_makes_the_same_bytes_after_maps_changed(pool: PgPool) {
    let scene = scene(pool).await;
    map(&scene, &["currency", "USDC", "USD"]).await;
    output_of(&scene, 0, &["run"]).await;
    map(&scene, &["currency", "USDC", "EUR"]).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'main', 'USDC', '2024-01-04Z', 4)").await;
    output_of(&scene, 0, &["run"]).await;
    map(&scene, &["remove", "currency", "USDC"]).await;
    map(&scene, &["account", "main", "8nfr-1"]).await;
    assert_eq!(scene.text(VERSIONS).await, "1,3");
    let proof = output_of(&scene, 0, &["verify", "--deep", "--json"]).await;
    let proof: serde_json::Value = serde_json::from_str(&proof).unwrap();
    assert_eq!(proof["entities"][0]["bodies_proven"], 2, "{proof}");
    // Seen to fail with another history: the bytes depend on it.
    scene.sql("update elven_sync.map_history set elven_name = 'EUR' where map_version = 1").await;
    output_of(&scene, 3, &["verify", "--deep"]).await;
    let sent = output_of(&scene, 0, &["status", "--row", "4"]).await;
    assert!(sent.contains(&as_sent(r#""currency":"EUR""#)), "{sent}");
}

/// The same bytes, unless a map of the batch changed meanwhile.
#[sqlx::test(migrations = false)]
async fn lost_answer_is_resent_with_the_same_bytes(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    map(&scene, &["currency", "USDC", "USD"]).await;
    scene.sandbox.inject(Fault::CutAfterWrite);
    output_of(&scene, 1, &["run"]).await;
    // Another name, which no row has.
    map(&scene, &["currency", "chf", "CHF"]).await;
    output_of(&scene, 0, &["run"]).await;
    let hashes =
        "select count(distinct body_sha256)::text || ' ' || min(attempts) || ' ' || bool_and(ambiguous)
                    from elven_sync.sync_batches";
    assert_eq!(scene.text(hashes).await, "1 2 true");
    output_of(&scene, 0, &["verify", "--deep"]).await;
}

#[sqlx::test(migrations = false)]
async fn record_is_found_by_either_name(pool: PgPool) {
    let scene = scene(pool).await;
    map(&scene, &["account", "main", "8nfr-1"]).await;
    map(&scene, &["currency", "USDC", "USD"]).await;
    output_of(&scene, 0, &["run"]).await;
    for (account, currency) in [("main", "USDC"), ("8nfr-1", "USD"), ("main", "USD"), ("8nfr-1", "USDC")] {
        let key = ["status", "--account", account, "--currency", currency, "--at", "2024-01-01 00:00:00"];
        let found = output_of(&scene, 0, &key).await;
        let sent =
            r#"{"entityAccountId":"8nfr-1","currency":"USD","datetime":"2024-01-01 00:00:00","balance":1}"#;
        assert!(found.contains("row 1 was uploaded") && found.contains(&as_sent(sent)), "{found}");
    }
}

#[sqlx::test(migrations = false)]
async fn dry_run_uses_the_maps(pool: PgPool) {
    let scene = scene(pool).await;
    scene.sql("update ledger.balance_snapshots set currency = 'USD' where id = 3").await;
    let rehearsed = output_of(&scene, 0, &["run", "--dry-run", "--json"]).await;
    assert!(rehearsed.contains(r#""rows_rejected":0"#), "{rehearsed}");
    scene.sql("insert into elven_sync.currency_map (ledger_currency, currency) values ('USDC', 'USD')").await;
    // The ledger itself has USD, so balances of two currencies would be mixed.
    let rehearsed = output_of(&scene, 3, &["run", "--dry-run", "--json"]).await;
    assert!(rehearsed.contains(r#""rows_rejected":1"#), "{rehearsed}");
}
