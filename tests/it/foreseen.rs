//! What a dry run foresees: rows that would be set aside, names that Elven does not know, entities without a credential.

use std::collections::BTreeSet;

use elven_sync::sandbox::Options;
use serde_json::Value;
use sqlx::PgPool;

use crate::support::{TestEnv, output_of};

/// An entity with rows that cannot be sent, and with names that Elven does not know.
async fn scene(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    let accounts = Some(BTreeSet::from(["main".to_owned(), "8nfr-1".to_owned()]));
    let scene = TestEnv::connect_like(scene.pool.clone(), Options { accounts, ..Options::default() }).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance) values
                 ('acme', 'main', 'usd', '2024-01-01Z', 1), ('acme', 'main', 'usd', '2024-01-02Z', 2),
                 ('acme', 'other', 'USD', '2024-01-03Z', 3), ('acme', 'main', 'BTC', '2024-01-04Z', 'NaN'),
                 ('acme', 'main', 'BTC', '2024-01-05Z', 'NaN'), ('acme', 'main', '', '2024-01-06Z', 1)",
        )
        .await;
    scene
}

#[sqlx::test(migrations = false)]
async fn dry_run_says_why_rows_would_be_set_aside_and_what_elven_does_not_know(pool: PgPool) {
    let scene = scene(pool).await;
    for command in
        [&["run", "--dry-run"][..], &["backfill", "--from", "2024-01-01", "--to", "2025-01-01", "--dry-run"]]
    {
        let text = output_of(&scene, 3, command).await;
        for words in [
            "would be set aside: 2 rows of entity `acme`: balance is NaN, e.g. row 4",
            "would be set aside: 1 row of entity `acme`: currency is blank, e.g. row 6",
        ] {
            assert!(text.contains(words), "{text}");
        }
        assert!(!text.contains("unknown to Elven"), "{text}");
        let not_compared = "no list is stored for `default`; hint: elven-sync reference pull";
        assert_eq!(text.contains(not_compared), command[0] == "run", "{text}");
    }
    output_of(&scene, 0, &["reference", "pull"]).await;
    output_of(&scene, 0, &["map", "account", "other", "8nfr-9"]).await;
    for command in
        [&["run", "--dry-run"][..], &["backfill", "--from", "2024-01-01", "--to", "2025-01-01", "--dry-run"]]
    {
        let text = output_of(&scene, 3, command).await;
        for words in [
            "unknown to Elven: currency `usd` of entity `acme`, in 2 records; hint: correct currency `usd` to `USD` in the \
             ledger",
            "unknown to Elven: account `other` of entity `acme`, mapped to `8nfr-9`, in 1 record; hint: elven-sync map \
             account --entity 'acme' 'other' ELVEN_NAME",
        ] {
            assert!(text.contains(words), "{text}");
        }
        assert!(!text.contains("no list is stored"), "{text}");
        let json: Value =
            serde_json::from_str(&output_of(&scene, 3, &[command, &["--json"]].concat()).await).unwrap();
        let foreseen = &json["foreseen"];
        assert_eq!(foreseen["set_aside"][0]["rows"], 2, "{json}");
        assert_eq!(
            (&foreseen["unknown_names"][0]["name"], &foreseen["unknown_names"][1]["name"]),
            (&"usd".into(), &"8nfr-9".into())
        );
    }
    assert_eq!(scene.text("select count(*)::text from elven_sync.sync_runs").await, "0");
}

#[sqlx::test(migrations = false)]
async fn dry_run_names_entities_without_a_credential(pool: PgPool) {
    let scene = scene(pool).await;
    scene.sql("delete from ledger.balance_snapshots where id > 3").await;
    scene.sql("insert into elven_sync.entities (entity_id, timezone, credential) values ('beta', 'UTC', 'gone')").await;
    let text = output_of(&scene, 0, &["run", "--dry-run"]).await;
    assert!(
        text.contains("note: entity `beta` could not send anything: ") && text.contains("`gone`"),
        "{text}"
    );
    let alone = output_of(&scene, 0, &["run", "--dry-run", "--entity", "acme"]).await;
    assert!(!alone.contains("could not send"), "{alone}");
}
