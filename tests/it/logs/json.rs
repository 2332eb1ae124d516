//! The log as JSON, its documented fields, and what `--quiet` and `NO_COLOR` leave.

use std::collections::BTreeSet;
use std::process::Stdio;

use chrono::{DateTime, Utc};
use nix::pty::openpty;
use serde_json::{Map, Value};
use sqlx::PgPool;

use crate::support::{KEY, SECRET, TestEnv, fault_rules, files_in, scene_with_three_batches, stderr, stdout};

/// An id that a terminal obeys, and that looks like a line of its own.
const HOSTILE: &str = "a\"},{\"level\":\"ERROR\"}\n\u{1b}[2J\u{9b}\u{202e}";

/// The fields that the handbook documents.
fn documented() -> BTreeSet<String> {
    let handbook =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operating.md")).unwrap();
    let (_, logs) = handbook.split_once("### Logs\n").unwrap();
    let (logs, _) = logs.split_once("<!-- end of log fields -->").unwrap();
    let cells = logs.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" |"));
    cells.flat_map(|(cell, _)| cell.split('`').step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Parses each line, and asserts what holds for all of them.
fn lines(log: &str) -> Vec<Map<String, Value>> {
    let documented = documented();
    let parsed = log.lines().map(|line| match serde_json::from_str(line) {
        Ok(Value::Object(line)) => line,
        other => panic!("{line}: {other:?}"),
    });
    let parsed: Vec<Map<String, Value>> = parsed.collect();
    for line in &parsed {
        let text = |field: &str| line[field].as_str().unwrap_or_else(|| panic!("{field}: {line:?}"));
        let at: DateTime<Utc> = text("timestamp").parse().unwrap();
        assert!(text("timestamp").ends_with('Z') && (Utc::now() - at).num_minutes().abs() < 60, "{line:?}");
        assert!(["ERROR", "WARN", "INFO", "DEBUG"].contains(&text("level")), "{line:?}");
        assert!(!text("message").is_empty(), "{line:?}");
        if text("target").starts_with("elven_sync") {
            for field in line.keys() {
                assert!(documented.contains(field), "{field} is not documented: {line:?}");
            }
        }
    }
    assert!(!log.contains(crate::hostile::is_harmful), "{log:?}");
    parsed
}

/// The fields that the source logs, also on lines that no test sees.
fn logged() -> BTreeSet<String> {
    let sources = files_in("src", "rs");
    let calls = sources.values().flat_map(|source| source.split("tracing::").skip(1));
    let fields = calls.filter_map(|call| {
        let (call, rest) = call.split_once("!(")?;
        if !["error", "warn", "info", "debug", "trace", "error_span"].contains(&call) {
            return None;
        }
        let rest = rest.trim_start();
        let rest = rest
            .strip_prefix("target: ")
            .and_then(|rest| rest.split_once(','))
            .map_or(rest, |(_, rest)| rest);
        // A span begins with its name, an event ends with its message.
        let rest = if call == "error_span" { rest.split_once(',')?.1 } else { rest };
        let end = if call == "error_span" { ')' } else { '"' };
        let (before, _) = rest.split_once(end)?;
        let names = before.split(',').map(|field| field.split('=').next().unwrap_or_default().trim());
        let names = names.map(|name| name.trim_start_matches(['%', '?']).to_owned());
        Some(names.filter(|name| is_field(name)).collect::<Vec<_>>())
    });
    fields.flatten().collect()
}

fn is_field(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_')
}

#[test]
fn each_field_that_the_source_logs_is_documented() {
    let logged = logged();
    for known in ["run_id", "entity_id", "batch_id", "http_status", "rows_uploaded"] {
        assert!(logged.contains(known), "{known}: {logged:?}");
    }
    let documented = documented();
    let undocumented: Vec<&String> = logged.difference(&documented).collect();
    assert!(undocumented.is_empty(), "docs/operating.md#logs: {undocumented:?}");
}

#[sqlx::test(migrations = false)]
async fn each_line_of_runs_with_faults_is_an_object_with_documented_fields(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    scene.set("ELVEN_SYNC_LOG_FORMAT", "json");
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "10ms");
    scene.entity(HOSTILE, "UTC").await;
    scene.entity("lost", "No/Where").await;
    sqlx::query(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         values ($1, 'a', 'BTC', '2024-01-01Z', 1), ('lost', 'a', 'BTC', '2024-01-01Z', 1),
                ('stranger', 'a', 'BTC', '2024-01-01Z', 1)",
    )
    .bind(HOSTILE)
    .execute(&scene.pool)
    .await
    .unwrap();
    scene.sandbox.set_rules(fault_rules(&["unavailable@once:2", "reject:account=a5", "clock=+90s"]));
    let output = scene.output(&["run", "-vv"]).await;
    let log = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{log}");
    let of_run = lines(&log);
    let has = |message: &str, fields: &[&str]| {
        let is = |line: &&Map<String, Value>| line["message"].as_str().unwrap().starts_with(message);
        let mut found = of_run.iter().filter(is);
        assert!(
            found.any(|line| fields.iter().all(|field| line.contains_key(*field))),
            "{message} {fields:?}: {log}"
        );
    };
    has("run started", &["run_id", "kind", "entities"]);
    has("pass opened", &["run_id", "entity_id", "pass_id"]);
    has("request answered", &["run_id", "entity_id", "batch_id", "http_status", "elapsed_ms", "body_bytes"]);
    has("batch split", &["run_id", "entity_id", "batch_id", "first_part"]);
    has("entity failed", &["run_id", "entity_id", "kind"]);
    has("run finished", &["run_id", "rows_uploaded", "status"]);
    for line in &of_run {
        assert!(
            line.get("run_id").is_none_or(Value::is_u64) && line.get("batch_id").is_none_or(Value::is_u64)
        );
    }
    assert!(
        of_run.iter().any(|line| line.get("entity_id") == Some(&HOSTILE.into())),
        "the id is exact: {log}"
    );
    for secret in [KEY, SECRET] {
        assert!(!log.contains(secret), "{log}");
    }
    // The error with which a command ends, and a command without a run.
    scene.set("DATABASE_URL", "postgres://u:pw-5d2e@127.0.0.1:1/d");
    for (code, arguments) in
        [(1, &["run"][..]), (1, &["status"]), (3, &["check", "-vv", "--only", "database"])]
    {
        let output = scene.output(arguments).await;
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        let log = stderr(&output);
        let ended = lines(&log);
        assert!(code == 3 || ended.last().unwrap()["level"] == "ERROR", "{log}");
        assert!(!log.contains("5d2e"), "{log}");
    }
}

#[sqlx::test(migrations = false)]
async fn a_form_of_the_log_that_does_not_exist_is_refused(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    for (format, is_known) in [("xml", false), ("JSON", false), ("", true), ("text", true), ("json", true)] {
        scene.set("ELVEN_SYNC_LOG_FORMAT", format);
        let output = scene.output(&["status"]).await;
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(i32::from(!is_known)), "{format}: {said}");
        let words =
            "ELVEN_SYNC_LOG_FORMAT is neither `text` nor `json`; hint: export ELVEN_SYNC_LOG_FORMAT=json";
        assert_eq!(said.contains(words), !is_known, "{format}: {said}");
    }
}

#[sqlx::test(migrations = false)]
async fn quiet_leaves_results_and_errors(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    scene.entity("lost", "No/Where").await;
    scene.set("ELVEN_SYNC_LOG", "debug");
    let loud = scene.output(&["run"]).await;
    assert!(stderr(&loud).contains("run started"), "{}", stderr(&loud));
    for arguments in [&["--quiet", "run"][..], &["run", "-q"]] {
        let output = scene.output(arguments).await;
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(3), ""));
        assert!(stdout(&output).contains("lost"), "{}", stdout(&output));
    }
    assert_eq!(scene.output(&["run", "--quiet", "-v"]).await.status.code(), Some(2));
    scene.set("DATABASE_URL", "postgres://u@127.0.0.1:1/d");
    let failed = scene.output(&["run", "--quiet"]).await;
    assert_eq!(failed.status.code(), Some(1));
    assert!(stderr(&failed).contains("the database cannot be reached"), "{}", stderr(&failed));
}

/// Returns what a command logs to a terminal.
async fn logged_to_a_terminal(scene: &TestEnv) -> String {
    let terminal = openpty(None, None).unwrap();
    let mut command = scene.command(&["status"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::from(terminal.slave)).spawn().unwrap();
    drop(command);
    let mut master = std::fs::File::from(terminal.master);
    let reading = std::thread::spawn(move || {
        let mut seen = Vec::new();
        // Once no process has it open any more, reading fails.
        let _ = std::io::Read::read_to_end(&mut master, &mut seen);
        String::from_utf8_lossy(&seen).into_owned()
    });
    child.wait().await.unwrap();
    drop(child);
    reading.join().unwrap()
}

#[sqlx::test(migrations = false)]
async fn no_color_leaves_no_colours_on_a_terminal(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_LOG", "loud");
    for (value, has_colours) in [(None, true), (Some(""), true), (Some("1"), false), (Some("0"), false)] {
        if let Some(value) = value {
            scene.set("NO_COLOR", value);
        }
        let log = logged_to_a_terminal(&scene).await;
        assert!(log.contains("ELVEN_SYNC_LOG is ignored"), "{log}");
        assert_eq!(log.contains("\u{1b}["), has_colours, "{value:?}: {log:?}");
    }
    scene.unset("NO_COLOR");
    scene.set("ELVEN_SYNC_LOG_FORMAT", "json");
    let log = logged_to_a_terminal(&scene).await;
    assert!(log.starts_with('{') && !log.contains('\u{1b}'), "{log:?}");
}
