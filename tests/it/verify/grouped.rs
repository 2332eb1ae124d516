//! The output of `verify` for many findings, and for rows that were set aside.

use sqlx::PgPool;

use crate::support::{TestEnv, output_of};

/// Rows 1 to 20 are uploaded, rows 21 to 170 are set aside.
async fn scene(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (id, entity_id, entity_account_id, currency, captured_at, balance)
             overriding system value
             select n, 'acme', 'a' || n, 'BTC', '2024-07-01Z', case when n > 20 then 'NaN'::numeric else n end
               from generate_series(1, 170) n",
        )
        .await;
    output_of(&scene, 3, &["run"]).await;
    scene
}

#[sqlx::test(migrations = false)]
async fn many_findings_of_a_kind_are_grouped_and_all_rows_are_named(pool: PgPool) {
    let scene = scene(pool).await;
    scene.sql("delete from elven_sync.sync_errors where ledger_id::int > 30 and ledger_id <> '100'").await;
    let text = output_of(&scene, 3, &["verify"]).await;
    assert!(text.contains("acme, pass 1, batch 1: batch 1 set row 31 aside"), "{text}");
    let others = "acme: and 138 more of kind `no_error`, about rows 32-99, 101-170; \
                  --json shows the first 100, and the ids of all";
    assert!(text.contains(others), "{text}");
    assert_eq!(text.matches("no error in sync_errors").count(), 1, "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&output_of(&scene, 3, &["verify", "--json"]).await).unwrap();
    let group = &json["entities"][0]["groups"][0];
    assert_eq!((&group["what"], &group["count"]), (&"no_error".into(), &139.into()));
    assert_eq!(group["ledger_ids"].as_array().unwrap().len(), 139);
}

#[sqlx::test(migrations = false)]
async fn rows_once_set_aside_are_told_apart_from_open_ones(pool: PgPool) {
    let scene = scene(pool).await;
    let said = |text: &str, words: &str| assert!(text.contains(words), "{words}: {text}");
    said(&output_of(&scene, 0, &["verify"]).await, "(150 were set aside once, 150 are open now)");
    scene.sql("update ledger.balance_snapshots set balance = 1 where id between 21 and 168").await;
    output_of(&scene, 0, &["run"]).await;
    let text = output_of(&scene, 0, &["verify"]).await;
    said(&text, "(150 were set aside once, 2 are open now)");
    let header = text.lines().next().unwrap();
    assert!(header.contains("once set aside") && header.contains("still open"), "{text}");
}
