//! The SQL of the documents for operators: each statement runs, and each alert is described.

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

/// The alerts of the view have an anchor in the handbook, and the handbook describes no others.
#[sqlx::test(migrations = false)]
async fn each_alert_of_the_view_has_a_row_in_the_handbook(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let view = scene.text("select pg_get_viewdef('elven_sync.alerts')").await;
    let of_view = view.split("SELECT '").skip(1).map(|rest| rest.split('\'').next().unwrap());
    let mut of_view: Vec<String> =
        of_view.map(|name| format!("<a id=\"{}\"></a>`{name}`", name.to_lowercase())).collect();
    let rows = OPERATING.lines().filter_map(|line| line.strip_prefix("| <a id="));
    let mut of_handbook: Vec<String> =
        rows.map(|row| format!("<a id={}", row.split(' ').next().unwrap())).collect();
    of_view.sort();
    of_handbook.sort();
    assert!(of_view.len() >= 18, "{of_view:?}");
    assert_eq!(of_handbook, of_view);
}
