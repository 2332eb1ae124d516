//! `audit`: the evidence of a period agrees with plain SQL over the ledger, and with `status --row` on each row.

mod evidence;
mod files;
mod kinds;
mod totals;
mod usage;

use std::collections::BTreeMap;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor};

use crate::support::{TestEnv, output_of};

/// Executes `audit --json` for these days, and returns the document.
pub async fn audited(scene: &TestEnv, code: i32, from: &str, to: &str) -> Value {
    let printed = scene.output(&["audit", "--from", from, "--to", to, "--json"]).await;
    let (out, err) = (crate::support::stdout(&printed), crate::support::stderr(&printed));
    assert_eq!(printed.status.code(), Some(code), "{out}{err}");
    serde_json::from_str(&out).unwrap()
}

/// The number of rows of each outcome of an audit that has any.
pub fn outcomes(audit: &Value) -> BTreeMap<String, i64> {
    let rows = audit["rows"].as_object().unwrap();
    let counts = rows.iter().map(|(outcome, count)| (outcome.clone(), count.as_i64().unwrap()));
    counts.filter(|(_, count)| *count > 0).collect()
}

/// Returns such counts.
pub fn counted(counts: &[(&str, i64)]) -> BTreeMap<String, i64> {
    counts.iter().map(|(outcome, count)| ((*outcome).to_owned(), *count)).collect()
}

pub async fn execute(scene: &TestEnv, sql: String) {
    (&scene.pool).execute(AssertSqlSafe(sql)).await.unwrap();
}

/// Executes `audit` for these days, and returns the text without its line breaks.
pub async fn text_of(scene: &TestEnv, code: i32, from: &str, to: &str) -> String {
    let text = output_of(scene, code, &["audit", "--from", from, "--to", to]).await;
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A folder with the files of an audit, with each file as its records.
pub struct Folder {
    pub path: tempfile::TempDir,
}

impl Folder {
    /// Executes `audit --csv` for these days.
    pub async fn of(scene: &TestEnv, code: i32, from: &str, to: &str) -> Self {
        let path = tempfile::tempdir().unwrap();
        let folder = path.path().to_str().unwrap().to_owned();
        output_of(scene, code, &["audit", "--from", from, "--to", to, "--csv", &folder]).await;
        Self { path }
    }

    pub fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path.path().join(name)).unwrap()
    }

    /// Returns the records of a CSV file, each by the names of its columns. The values of these tests have no commas.
    pub fn records(&self, name: &str) -> Vec<BTreeMap<String, String>> {
        let text = self.text(name);
        let mut lines = text.lines();
        let header: Vec<&str> = lines.next().unwrap().split(',').collect();
        let record = |line: &str| {
            let fields = fields(line);
            assert_eq!(fields.len(), header.len(), "{line}");
            header.iter().map(|name| (*name).to_owned()).zip(fields).collect()
        };
        lines.map(record).collect()
    }

    /// Returns each row of the population by its id.
    pub fn population(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let records = self.records("population.csv");
        let count = records.len();
        let by_id: BTreeMap<_, _> =
            records.into_iter().map(|record| (record["ledger_id"].clone(), record)).collect();
        assert_eq!(by_id.len(), count, "each row is there once");
        by_id
    }
}

/// Splits a line of CSV.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut field, mut is_quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if is_quoted && chars.peek() == Some(&'"') => field.extend(chars.next()),
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    fields.push(field);
    fields
}

/// Asserts that an audit and `status --row` agree on each row of the ledger. Returns the population.
pub async fn assert_agrees_with_status(
    scene: &TestEnv,
    code: i32,
    from: &str,
    to: &str,
) -> BTreeMap<String, BTreeMap<String, String>> {
    let population = Folder::of(scene, code, from, to).await.population();
    for (id, row) in &population {
        let output = scene.output(&["status", "--row", id, "--entity", &row["entity_id"], "--json"]).await;
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let report = &report["entities"][0];
        let verdict = report["verdict"].as_str().unwrap();
        let outcome = row["outcome"].as_str();
        let expected: &[&str] = match verdict {
            "uploaded" | "pruned" => &["uploaded"],
            "superseded" => &["superseded"],
            "set_aside" => &["set_aside"],
            "resolved" => &["not_synced", "superseded"],
            "pending" => &["pending"],
            "skipped" => &["not_synced"],
            "missing" => &["unaccounted"],
            other => panic!("{other}"),
        };
        assert!(expected.contains(&outcome), "{id}: {row:?}, but status --row: {report}");
        let says = report["says"].as_str().unwrap();
        if outcome == "superseded" && verdict == "superseded" {
            assert!(says.contains(&format!("by row {} ", row["winner_id"])), "{row:?}: {says}");
        }
    }
    population
}
