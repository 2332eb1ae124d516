//! The documents for operators: each statement runs, and each alert and kind of error has a section.

use std::collections::{BTreeMap, BTreeSet};

use elven_sync::journal::Kind;
use sqlx::{AssertSqlSafe, PgPool};
use strum::VariantNames as _;

use crate::documents::anchors;
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

/// The sections of the handbook whose headings begin with a word, each with its text.
fn sections(word: &str) -> BTreeMap<&'static str, &'static str> {
    let begin = format!("\n### {word} ");
    let section = |rest: &'static str| {
        let (heading, text) = rest.split_once('\n').unwrap();
        (heading, text.split("\n### ").next().unwrap().split("\n## ").next().unwrap())
    };
    OPERATING.split(&begin).skip(1).map(section).collect()
}

/// What it means, what to look at, what to do, and the output of a try.
fn assert_is_complete(heading: &str, text: &str, has_output: bool) {
    assert!(text.trim_start().chars().next().is_some_and(|c| !"-`#".contains(c)), "{heading}: no meaning");
    assert!(text.contains("- **Look at**"), "{heading}: nothing to look at");
    assert!(text.contains("- **Do**") || text.contains("and **do** what ["), "{heading}: nothing to do");
    assert!(text.contains("```text\n") || !has_output, "{heading}: no output");
}

/// Without an output: one that is described with another alert, and one that no try has raised.
const WITHOUT_OUTPUT: [&str; 2] = ["ScrapeFailing", "WebhookFailing"];

/// The alerts of the view and of Prometheus have a section, and no others. The comment of the column `name` promises an
/// anchor in lower case.
#[sqlx::test(migrations = false)]
async fn each_alert_has_a_section_of_the_handbook(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let view = scene.text("select pg_get_viewdef('elven_sync.alerts')").await;
    let of_view: BTreeSet<&str> =
        view.split("SELECT '").skip(1).map(|rest| rest.split('\'').next().unwrap()).collect();
    assert!(of_view.len() >= 18, "{of_view:?}");
    let rules = include_str!("../../deploy/prometheus/alerts.yml");
    let of_rules = rules.split("- alert: ElvenSync").skip(1).map(|rest| rest.lines().next().unwrap());
    let all: BTreeSet<&str> = of_view.iter().copied().chain(of_rules).collect();
    let sections = sections("Alert");
    assert_eq!(sections.keys().copied().collect::<BTreeSet<_>>(), all);
    let anchors = anchors("docs/operating.md");
    for (name, text) in sections {
        assert_is_complete(name, text, !WITHOUT_OUTPUT.contains(&name));
        let lower = name.to_lowercase();
        assert!(anchors.contains(&lower) && anchors.contains(&format!("alert-{lower}")), "{name}");
    }
    let listed = OPERATING.lines().filter_map(|line| line.strip_prefix("| [`")?.split_once("`](#alert-"));
    let listed: BTreeSet<&str> = listed.map(|(name, _)| name).collect();
    assert_eq!(listed, of_view, "the list of alerts");
}

#[test]
fn each_kind_of_error_has_a_section_of_the_handbook() {
    let sections = sections("Error");
    assert_eq!(
        sections.keys().copied().collect::<BTreeSet<_>>(),
        Kind::VARIANTS.iter().copied().collect::<BTreeSet<_>>()
    );
    for (kind, text) in sections {
        assert_is_complete(kind, text, true);
        let row = format!("[`{kind}`](#error-{kind})");
        assert!(OPERATING.contains(&row), "the lists of kinds lack {row}");
    }
}
