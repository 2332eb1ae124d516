//! The health of an entity: the words of `sync_health`, their precedence, and when `status` asks for a person.

use elven_sync::sandbox::Fault;
use serde_json::Value;
use sqlx::PgPool;

use crate::support::{TestEnv, output_of, stderr, stdout};

/// Returns the status of acme in the view, its status by the command with live pending counts, and the exit code of
/// the command.
async fn status(scene: &TestEnv) -> (String, String, i32) {
    let view = scene.text("select status from elven_sync.sync_health where entity_id = 'acme'").await;
    let output = scene.output(&["status", "--json"]).await;
    let json: Value =
        serde_json::from_str(&stdout(&output)).unwrap_or_else(|_| panic!("{}", stderr(&output)));
    let entities = json["entities"].as_array().unwrap();
    let acme = entities.iter().find(|entity| entity["entity_id"] == "acme").unwrap();
    (view, acme["status"].as_str().unwrap().to_owned(), output.status.code().unwrap())
}

fn is(word: &str, code: i32) -> (String, String, i32) {
    (word.to_owned(), word.to_owned(), code)
}

/// One row that is accepted, one that the API refuses, and one that cannot be sent.
async fn scene_with_rows_set_aside(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sandbox.set_rules(vec!["reject:account=x".parse().unwrap()]);
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance) values
                 ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('acme', 'x', 'BTC', '2024-01-01Z', 2),
                 ('acme', 'n', 'BTC', '2024-01-01Z', 'NaN')",
        )
        .await;
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(3));
    scene
}

const ONE_MORE: &str =
    "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
     values ('acme', 'b', 'BTC', clock_timestamp(), 4)";

#[sqlx::test(migrations = false)]
async fn entity_is_incomplete_until_each_row_error_is_resolved(pool: PgPool) {
    let scene = scene_with_rows_set_aside(pool).await;
    assert_eq!(status(&scene).await, is("incomplete", 3));
    let text = output_of(&scene, 3, &["status"]).await;
    assert!(text.contains("incomplete"), "{text}");
    assert!(
        text.contains("acme: 2 errors are open") && text.contains("elven-sync errors list --entity 'acme'"),
        "{text}"
    );
    // Older errors that are still open do not fail a run.
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(0));
    scene.sql(ONE_MORE).await;
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(0));
    assert_eq!(status(&scene).await, is("incomplete", 3));
    // A retry sends one row, and a person dismisses the other.
    scene.sandbox.set_rules(Vec::new());
    output_of(&scene, 3, &["errors", "retry"]).await;
    assert_eq!(status(&scene).await, is("incomplete", 3));
    let left =
        scene.text("select error_id::text from elven_sync.sync_errors where resolved_at is null").await;
    output_of(&scene, 0, &["errors", "resolve", &left, "--reason", "a test row"]).await;
    assert_eq!(status(&scene).await, is("ok", 0));
}

#[sqlx::test(migrations = false)]
async fn incomplete_ranks_below_paused_and_failing_and_above_behind(pool: PgPool) {
    let scene = scene_with_rows_set_aside(pool).await;
    scene.sql(ONE_MORE).await;
    assert_eq!(status(&scene).await, is("incomplete", 3), "with rows pending");
    scene.sql("update elven_sync.sync_state set pending_rows = 1").await;
    assert_eq!(status(&scene).await, is("incomplete", 3), "with rows pending in the view");
    scene.sandbox.inject(Fault::Answer { status: 401, body: String::new(), headers: Vec::new() });
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(1));
    assert_eq!(status(&scene).await, is("failing", 3));
    output_of(&scene, 0, &["entity", "pause", "acme"]).await;
    assert_eq!(status(&scene).await, is("paused", 0));
    output_of(&scene, 0, &["entity", "resume", "acme"]).await;
    scene.run().await;
    assert_eq!(status(&scene).await, is("incomplete", 3));
}

/// A row that is corrected in the ledger is uploaded by the next run, and resolves its error.
#[sqlx::test(migrations = false)]
async fn corrected_entity_is_ok_and_pending_entity_is_behind(pool: PgPool) {
    let scene = scene_with_rows_set_aside(pool).await;
    scene.sandbox.set_rules(Vec::new());
    scene.sql("update ledger.balance_snapshots set balance = 3 where entity_account_id in ('x', 'n')").await;
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(0));
    assert_eq!(status(&scene).await, is("ok", 0));
    scene.sql(ONE_MORE).await;
    let (_, live, code) = status(&scene).await;
    assert_eq!((live.as_str(), code), ("behind", 0));
}

/// Errors that concern no row do not make an entity incomplete.
#[sqlx::test(migrations = false)]
async fn unregistered_rows_do_not_make_another_entity_incomplete(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('ghost', 'g', 'BTC', '2024-01-01Z', 1), ('acme', 'a', 'BTC', '2024-01-01Z', 1)",
        )
        .await;
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(3));
    assert_eq!(status(&scene).await, is("ok", 0));
}

/// The view reads each open error once, however many errors are open. A query for one entity reads only its errors.
#[sqlx::test(migrations = false)]
async fn health_view_reads_each_open_error_once(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene
        .sql(
            "insert into elven_sync.entities (entity_id, timezone) select 'e' || n, 'UTC' from generate_series(1, 500) n;
             insert into elven_sync.sync_errors (entity_id, kind, ledger_id, message)
             select 'e1', 'invalid_row', n, 'm' from generate_series(1, 5000) n;
             analyze",
        )
        .await;
    for (of, rows_max) in [("", 5000), ("where entity_id = 'e2'", 0)] {
        let explain =
            format!("explain (analyze, timing off, format json) select * from elven_sync.sync_health {of}");
        let plan: Value =
            sqlx::query_scalar(sqlx::AssertSqlSafe(explain)).fetch_one(&scene.pool).await.unwrap();
        let read = rows_read(&plan[0]["Plan"], "sync_errors");
        assert!(read <= rows_max, "{read} rows {of}: {plan:#}");
    }
    assert_eq!(scene.text("select string_agg(entity_id || open_errors, ',') from elven_sync.sync_health where status = 'incomplete'").await, "e15000");
}

/// Returns the number of rows of a table that the nodes of a plan have read.
fn rows_read(node: &Value, table: &str) -> u64 {
    // PostgreSQL 18 prints row counts with a fraction.
    let number = |name: &str| {
        node[name].to_string().split('.').next().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    let rows: u64 = (number("Actual Rows") + number("Rows Removed by Filter")) * number("Actual Loops");
    let own = if node["Relation Name"] == table { rows } else { 0 };
    own + node["Plans"].as_array().into_iter().flatten().map(|node| rows_read(node, table)).sum::<u64>()
}
