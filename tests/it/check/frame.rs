//! The frame: categories, JSON, exit codes, output, and that nothing is written.

use std::collections::BTreeSet;
use std::fs::OpenOptions;

use elven_sync::check::{doc_of, ids};
use serde_json::Value;
use sqlx::PgPool;

use super::{checked, synced};
use crate::support::{TestEnv, stderr, stdout};

const CATEGORIES: [&str; 8] =
    ["configuration", "database", "ledger", "entities", "api", "data", "journal", "host"];

/// All rows of the ledger and the sync tables.
const EVERYTHING: &str = "
    select string_agg(query_to_xml(format('select * from %I.%I t order by t::text', n.nspname, c.relname), true, true, '')::text,
                      '' order by c.oid)
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where n.nspname in ('ledger', 'elven_sync') and c.relkind = 'r'";

#[sqlx::test(migrations = false)]
async fn an_installation_that_works_passes_and_nothing_is_written(pool: PgPool) {
    let mut scene = synced(pool).await;
    // The tests have short ones.
    scene.unset("ELVEN_SYNC_SYNC__LEASE");
    scene.unset("ELVEN_SYNC_API__SIGNATURE_WINDOW");
    let (rows, received) = (scene.text(EVERYTHING).await, scene.received());
    let posts = scene.sandbox.requests().len();
    let (code, report) = checked(&scene, &[]).await;
    assert_eq!(report["ok"], true, "{report}");
    assert_eq!(code, 0);
    let checks = report["checks"].as_array().unwrap();
    let made: Vec<&str> = checks.iter().map(|check| check["id"].as_str().unwrap()).collect();
    assert_eq!(made, ids().collect::<Vec<_>>());
    for check in checks {
        let id = check["id"].as_str().unwrap();
        let fields: BTreeSet<&str> = check.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = ["id", "category", "status", "message", "hint", "doc", "elapsed_ms"];
        assert_eq!(fields, BTreeSet::from(expected));
        assert_eq!(check["category"], id.split_once('.').unwrap().0);
        // Key and secret of the tests are short, and other tests use the same server.
        let may_warn = ["configuration.secrets", "database.installations", "database.connections"];
        let is_well = ["ok", "skipped"].contains(&check["status"].as_str().unwrap());
        assert!(is_well || may_warn.contains(&id), "{check}");
        assert_eq!(check["doc"], doc_of(id));
        assert!(check["elapsed_ms"].is_u64() && !check["message"].as_str().unwrap().is_empty(), "{check}");
    }
    assert_eq!(scene.text(EVERYTHING).await, rows, "a row was written");
    assert_eq!(scene.received(), received);
    let asked = &scene.sandbox.requests()[posts..];
    assert!(!asked.is_empty() && asked.iter().all(|request| request.method == "GET"), "{asked:?}");
}

#[sqlx::test(migrations = false)]
async fn a_category_alone_makes_only_its_checks(pool: PgPool) {
    let scene = synced(pool).await;
    for category in CATEGORIES {
        let (code, report) = checked(&scene, &["--only", category]).await;
        let checks = report["checks"].as_array().unwrap();
        assert!(!checks.is_empty() && checks.iter().all(|check| check["category"] == category), "{report}");
        assert_eq!(code, 0, "{report}");
    }
    assert_eq!(scene.output(&["check", "--only", "nothing"]).await.status.code(), Some(2));
}

/// A fatal check stops the later ones of its category, and those of others that need the same; each says why.
#[sqlx::test(migrations = false)]
async fn a_fatal_check_stops_the_later_ones_and_nothing_else(pool: PgPool) {
    let mut scene = synced(pool).await;
    scene.set("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nowhere");
    let (code, report) = checked(&scene, &[]).await;
    assert_eq!((code, &report["ok"]), (3, &Value::Bool(false)), "{report}");
    for check in report["checks"].as_array().unwrap() {
        let (id, status) = (check["id"].as_str().unwrap(), check["status"].as_str().unwrap());
        let expected = match id.split_once('.').unwrap().0 {
            "database" if id == "database.connection" => "failed",
            "database" | "ledger" | "entities" | "data" | "journal" => "skipped",
            _ => status,
        };
        assert_eq!(status, expected, "{check}");
        if status == "skipped" && id.starts_with("ledger") {
            assert_eq!(check["message"], "needs database.connection, which failed");
        }
    }
    // The API is asked all the same, with the credential of the configuration.
    let (code, report) = checked(&scene, &["--only", "api"]).await;
    assert_eq!((code, &report["checks"][0]["status"]), (0, &Value::from("ok")), "{report}");
    // Where nothing can be checked, that is no success.
    let (code, report) = checked(&scene, &["--only", "ledger"]).await;
    assert_eq!((code, &report["ok"]), (1, &Value::Bool(false)), "{report}");
    // The reason is reported, although it is a check of another category.
    let reported: Vec<(&str, &str)> = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| (check["id"].as_str().unwrap(), check["status"].as_str().unwrap()))
        .filter(|(id, _)| !id.starts_with("ledger."))
        .collect();
    assert_eq!(reported, [("database.connection", "failed")], "{report}");
}

/// A category without a result is one line of the text.
#[sqlx::test(migrations = false)]
async fn a_category_that_is_skipped_for_one_reason_is_one_line(pool: PgPool) {
    let mut scene = synced(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROW", "1");
    let text = stdout(&scene.output(&["check"]).await);
    let ledger: Vec<&str> =
        text.lines().skip_while(|line| *line != "ledger").take_while(|line| !line.is_empty()).collect();
    assert_eq!(ledger, ["ledger", "  - skipped 11 checks: needs configuration.load, which failed"], "{text}");
    assert!(text.contains("  x failed  configuration.load: "), "{text}");
    assert!(text.lines().last().unwrap().contains(" skipped"), "{text}");
}

#[sqlx::test(migrations = false)]
async fn text_has_a_mark_a_word_the_remedy_and_the_place_in_the_handbook(pool: PgPool) {
    let scene = synced(pool).await;
    scene.sql("alter table ledger.balance_snapshots disable trigger stamp_change_xid").await;
    let output = scene.output(&["check", "--only", "ledger"]).await;
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "ledger");
    let place = lines.iter().position(|line| line.starts_with("  x failed  ledger.guard: ")).unwrap();
    assert!(lines[place].contains("is disabled") && lines[place].ends_with(" ms)"), "{text}");
    assert!(lines[place + 1].trim().starts_with("hint: elven-sync attach"), "{text}");
    assert_eq!(lines[place + 2].trim(), "see docs/operating.md#check-ledgerguard");
    assert!(text.contains("  + ok      ledger.table: "), "{text}");
    assert!(lines.last().unwrap().starts_with("something would stop or endanger the sync: "), "{text}");
}

/// On a terminal of 80 columns each line but the remedy fits.
#[sqlx::test(migrations = false)]
async fn text_fits_a_terminal_of_80_columns(pool: PgPool) {
    let scene = synced(pool).await;
    let text = crate::messages::on_a_terminal(&scene, 80, 0, &["check", "--only", "configuration"]).await;
    assert!(text.contains("ok"), "{text}");
    for line in text.lines().filter(|line| !line.contains("hint: ")) {
        assert!(line.trim_end().chars().count() <= 80, "{line}");
    }
}

#[sqlx::test(migrations = false)]
async fn a_report_that_cannot_be_written_is_a_failure(pool: PgPool) {
    let scene = synced(pool).await;
    let mut command = scene.command(&["check", "--only", "host"]);
    command.stdout(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let output = command.spawn().unwrap().wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("could not be written"), "{}", stderr(&output));
}

/// Neither the report nor the log shows a secret, whatever fails.
#[sqlx::test(migrations = false)]
async fn no_secret_is_shown(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    for (name, value) in [
        ("ELVEN_API_KEY", "key-7f3a91"),
        ("ELVEN_API_SECRET", "secret-9c1b52"),
        ("DATABASE_URL", "postgres://u:pw-5d2e@127.0.0.1:1/d"),
        ("ELVEN_SYNC_KEY", "wrong-4b7d"),
    ] {
        scene.set(name, value);
        for arguments in [&["check"][..], &["check", "--json"], &["-vv", "check"]] {
            let output = scene.output(arguments).await;
            let said = format!("{}{}", stdout(&output), stderr(&output));
            for secret in ["7f3a91", "9c1b52", "5d2e", "4b7d"] {
                assert!(!said.contains(secret), "{secret}: {said}");
            }
        }
    }
}

/// The handbook has a section for each check, and no others.
#[test]
fn the_handbook_describes_each_check() {
    let handbook =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operating.md")).unwrap();
    let described: BTreeSet<&str> =
        handbook.lines().filter_map(|line| line.strip_prefix("### Check ")).collect();
    assert_eq!(described, ids().collect::<BTreeSet<_>>());
}
