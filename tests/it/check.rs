//! `check`, and the guard check of each run. Each finding is provoked, seen, and seen to end with its repair.

mod api;
mod blocked;
mod configuration;
mod coverage;
mod data;
mod database;
mod entities;
mod frame;
mod guard;
mod journal;
mod ledger;
mod secret_files;

use serde_json::Value;
use sqlx::PgPool;

use crate::support::{TestEnv, stderr, stdout};

/// An entity with rows that a run has uploaded.
async fn synced(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "Europe/Zurich").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', 'a' || n, 'BTC', '2024-01-01Z', n + 0.5 from generate_series(1, 3) n").await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 3);
    scene
}

/// Makes the checks with these arguments and returns the exit code and the report.
async fn checked(scene: &TestEnv, arguments: &[&str]) -> (i32, Value) {
    let output = scene.output(&[&["check", "--json"], arguments].concat()).await;
    let report = serde_json::from_str(&stdout(&output));
    let report = report.unwrap_or_else(|_| panic!("{}{}", stdout(&output), stderr(&output)));
    (output.status.code().unwrap(), report)
}

/// Makes the checks of the category of a check and returns its status, its message and its hint.
async fn found(scene: &TestEnv, id: &str) -> (String, String, String) {
    let (_, report) = checked(scene, &["--only", id.split_once('.').unwrap().0]).await;
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("{id}: {report}"));
    let text = |field: &str| check[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("message"), text("hint"))
}

/// Asserts that a check has this status and that its message and hint have these words.
pub(crate) async fn assert_found(scene: &TestEnv, id: &str, status: &str, words: &[&str]) {
    let (is, message, hint) = found(scene, id).await;
    let said = format!("{message}; hint: {hint}");
    assert_eq!(is, status, "{id}: {said}");
    for word in words {
        assert!(said.contains(word), "{id} lacks {word:?}: {said}");
    }
}

/// A finding: how it is provoked, what is found, and how it ends.
type Provoked = (&'static str, &'static str, &'static str, &'static [&'static str], &'static str);

/// Provokes each finding by SQL, sees it, and sees it end with its repair. Each is: check, SQL, status, words, repair.
async fn assert_each_appears_and_ends(scene: &TestEnv, provoked: &[Provoked]) {
    for (id, sql, status, words, repair) in provoked {
        let before = found(scene, id).await;
        assert!(matches!(before.0.as_str(), "ok" | "skipped"), "{id} before {sql}: {before:?}");
        scene.sql(sql).await;
        assert_found(scene, id, status, words).await;
        if !repair.is_empty() {
            scene.sql(repair).await;
            let after = found(scene, id).await;
            assert_eq!(after.0, before.0, "{id} after {repair}: {after:?}");
        }
    }
}
