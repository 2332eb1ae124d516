//! The SQL of the documents for operators: each statement runs, and the alerts report what they promise.

use sqlx::{AssertSqlSafe, PgPool};

use crate::support::TestEnv;

const OPERATING: &str = include_str!("../../docs/operating.md");
const DELIVERY: &str = include_str!("../../docs/delivery.md");

/// The blocks of SQL of a page, in order.
fn blocks(page: &str) -> Vec<&str> {
    let mut rest = page;
    let mut blocks = Vec::new();
    while let Some((_, block)) = rest.split_once("```sql\n") {
        let (block, behind) = block.split_once("```").unwrap();
        blocks.push(block);
        rest = behind;
    }
    blocks
}

/// The statements of a block: each ends with a semicolon at the end of a line, but for those between two `$$`.
fn statements(block: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut statement = String::new();
    let mut is_quoted = false;
    for line in block.lines() {
        statement.extend([line, "\n"]);
        is_quoted ^= line.matches("$$").count() % 2 == 1;
        let code = line.split_once("--").map_or(line, |(code, _)| code);
        if !is_quoted && code.trim_end().ends_with(';') {
            statements.push(std::mem::take(&mut statement));
        }
    }
    assert_eq!(statement.trim(), "", "a statement of a document ends with a semicolon");
    statements
}

#[sqlx::test(migrations = false)]
async fn each_statement_of_the_documents_for_operators_runs(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "Europe/Zurich").await;
    scene.run().await;
    let blocks = blocks(OPERATING).into_iter().chain(blocks(DELIVERY));
    let mut count = 0;
    for statement in blocks.flat_map(statements) {
        let ran = sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&scene.pool).await;
        assert!(ran.is_ok(), "{statement}: {ran:?}");
        count += 1;
    }
    assert!(count > 10, "only {count} statements were found");
}

/// The name and the entity of each alert, as the query of the handbook reports them.
async fn alerts(scene: &TestEnv) -> Vec<String> {
    let query = blocks(OPERATING).into_iter().find(|block| block.contains("NoRun")).unwrap().trim_end();
    let query = format!(
        "select concat_ws(' ', alert, entity_id) from ({}) x order by 1",
        query.trim_end_matches(';')
    );
    sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&scene.pool).await.unwrap()
}

#[sqlx::test(migrations = false)]
async fn the_alerts_of_the_handbook_report_each_condition_and_end_with_it(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    assert_eq!(alerts(&scene).await, ["NoRun"], "nothing has run yet");
    scene.run().await;
    assert_eq!(alerts(&scene).await, Vec::<String>::new(), "all is well");

    scene
        .sql(
            "insert into elven_sync.entities (entity_id, timezone) values ('beta', 'Nowhere/Nowhere');
             insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance) values
                 ('acme', 'a', 'BTC', '2024-01-01Z', 'NaN'), ('acme', 'b', 'BTC', '2024-01-01Z', 1),
                 ('beta', 'b', 'BTC', '2024-01-01Z', 1), ('gamma', 'c', 'BTC', '2024-01-01Z', 1)",
        )
        .await;
    scene.run().await;
    let reported = ["EntityStopped beta", "RowsSetAside acme", "UnregisteredEntity gamma"];
    assert_eq!(alerts(&scene).await, reported);

    scene
        .sql(
            "update elven_sync.sync_runs set finished_at = finished_at - interval '1 hour';
             update elven_sync.sync_state set pending_rows = 1, last_success_at = now() - interval '2 hours'
              where entity_id = 'acme';
             insert into elven_sync.sync_backfills (range_from, range_to, status, finished_at)
                 values ('2024-01-01', '2024-02-01', 'failed', now())",
        )
        .await;
    let reported = [
        "BackfillStopped",
        "Behind acme",
        "EntityStopped beta",
        "NoRun",
        "RowsSetAside acme",
        "UnregisteredEntity gamma",
    ];
    assert_eq!(alerts(&scene).await, reported);

    scene
        .sql(
            "update elven_sync.entities set timezone = 'UTC';
             insert into elven_sync.entities (entity_id, timezone) values ('gamma', 'UTC');
             update ledger.balance_snapshots set balance = 2;
             update elven_sync.sync_backfills set status = 'cancelled'",
        )
        .await;
    scene.run().await;
    assert_eq!(alerts(&scene).await, Vec::<String>::new(), "all is well again");
}
