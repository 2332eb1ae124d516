//! `status --account --currency --at`: the rows of a record, found by what people know of it.

use serde_json::Value;
use sqlx::PgPool;

use crate::support::{TestEnv, output_of};

/// Entities in New York and Zurich. In New York the local second 01:00:03 of 2024-11-03 occurs twice.
async fn scene(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "America/New_York").await;
    scene.entity("beta", "Europe/Zurich").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance) values
                 ('acme', 'a', 'BTC', '2024-11-03 05:00:03.25Z', 1), ('acme', 'a', 'BTC', '2024-11-03 06:00:03Z', 2.50),
                 ('acme', 'a', 'ETH', '2024-11-03 06:00:03Z', 3), ('acme', 'b', 'BTC', '2024-11-03 06:00:03Z', 4),
                 ('acme', 'a', 'BTC', '2024-11-03 06:00:04Z', 5), ('beta', 'a', 'BTC', '2024-11-03 00:00:03Z', 'NaN'),
                 ('acme', 'a', 'BTC', '2024-03-10 07:30:00Z', 7)",
        )
        .await;
    output_of(&scene, 3, &["run"]).await;
    scene
}

/// Traces a record, with a command that exits with this code.
async fn trace(scene: &TestEnv, code: i32, at: &str, more: &[&str]) -> String {
    let key = ["status", "--account", "a", "--currency", "BTC", "--at", at];
    output_of(scene, code, &[&key[..], more].concat()).await
}

/// The ids of the rows that a JSON report has, with their states.
fn rows(report: &str) -> Vec<String> {
    let json: Value = serde_json::from_str(report).unwrap();
    let row = |row: &Value| {
        let trace = &row["entities"][0];
        format!("{} {} {}", row["row"], trace["entity_id"], trace["verdict"]).replace('"', "")
    };
    json["rows"].as_array().unwrap().iter().map(row).collect()
}

#[sqlx::test(migrations = false)]
async fn record_is_found_by_the_local_time_of_its_entity(pool: PgPool) {
    let scene = scene(pool).await;
    let both = trace(&scene, 3, "2024-11-03 01:00:03", &["--json"]).await;
    assert_eq!(rows(&both), ["1 acme superseded", "2 acme uploaded", "6 beta set_aside"]);
    let only = trace(&scene, 0, "2024-11-03T01:00:03", &["--entity", "acme"]).await;
    let first = "acme: 2 rows of account `a` and currency `BTC` at 2024-11-03T01:00:03 (America/New_York, which \
                 occurs more than once there)";
    assert!(only.starts_with(first), "{only}");
    assert!(
        only.contains("row 1 was superseded by row 2") && only.contains("row 2 was uploaded in batch "),
        "{only}"
    );
    let sent = r#"as it was sent: {"entityAccountId":"a","currency":"BTC","datetime":"2024-11-03 01:00:03","balance":2.5}"#;
    assert!(only.contains(sent) && only.contains("HTTP"), "{only}");
    // An instant is one second, with the fractions of a second in it.
    assert_eq!(rows(&trace(&scene, 0, "2024-11-03T05:00:03Z", &["--json"]).await), ["1 acme superseded"]);
    assert_eq!(rows(&trace(&scene, 0, "2024-11-03T01:00:04-05:00", &["--json"]).await), ["5 acme uploaded"]);
}

#[sqlx::test(migrations = false)]
async fn record_that_the_ledger_lacks_is_explained(pool: PgPool) {
    let scene = scene(pool).await;
    let none = trace(&scene, 3, "2024-11-03 01:00:05", &[]).await;
    assert!(none.starts_with("the ledger has no row of account `a` and currency `BTC`"), "{none}");
    let skipped = trace(&scene, 3, "2024-03-10 02:30:00", &["--entity", "acme"]).await;
    assert!(skipped.contains("which clocks skip there"), "{skipped}");
    for (wrong, words) in [
        ("yesterday", "--at: `yesterday` is neither a local time"),
        ("2024-11-03", "is neither a local time"),
        ("2024-02-30 01:00:00", "is neither a local time"),
    ] {
        let refused = trace(&scene, 1, wrong, &[]).await;
        assert!(refused.contains(words), "{refused}");
    }
    let refused = trace(&scene, 1, "2024-11-03 01:00:03", &["--entity", "acne"]).await;
    assert!(refused.contains("`acne`") && refused.contains("did you mean"), "{refused}");
    for usage in
        [&["status", "--account", "a"][..], &["status", "--at", "x"], &["status", "--entity", "acme"]]
    {
        output_of(&scene, 2, usage).await;
    }
}

/// The values of an updated row were not sent yet, and the zone rules of an upload may be unknown.
#[sqlx::test(migrations = false)]
async fn record_as_it_was_sent_is_shown_only_if_it_is_known(pool: PgPool) {
    let scene = scene(pool).await;
    let at = "2024-11-03T06:00:04Z";
    assert!(trace(&scene, 0, at, &[]).await.contains("as it was sent"));
    scene.sql("update elven_sync.sync_batches set zone_rules = zone_rules || 'x'").await;
    assert!(!trace(&scene, 0, at, &[]).await.contains("as it was sent"));
    scene.sql("update ledger.balance_snapshots set balance = 50 where id = 5").await;
    let updated = trace(&scene, 0, at, &[]).await;
    assert!(updated.contains("is pending") && !updated.contains("as it was sent"), "{updated}");
}
