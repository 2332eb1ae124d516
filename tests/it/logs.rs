//! The log: which lines are printed at which level, and the ids on them.

mod json;

use sqlx::PgPool;

use crate::support::fault_rules;
use crate::support::scene_with_three_batches;
use crate::support::{TestEnv, output_of, stderr, stdout};

/// The message of a log line with its fields, behind the spans.
fn message(line: &str) -> &str {
    let (_, message) = line.rsplit_once("}: ").unwrap_or_else(|| panic!("a line without a span: {line}"));
    message
}

/// The messages of a log without their fields: the words before the first `name=value`.
fn messages(log: &str) -> Vec<String> {
    let words = |line| {
        let words = message(line).split(' ').take_while(|word| !word.contains('='));
        words.collect::<Vec<_>>().join(" ")
    };
    log.lines().map(words).collect()
}

/// Logs a run at a level, and checks how it ends.
async fn log_of(scene: &TestEnv, code: i32, arguments: &[&str]) -> String {
    let output = scene.output(arguments).await;
    assert_eq!(output.status.code(), Some(code), "{}{}", stdout(&output), stderr(&output));
    stderr(&output)
}

#[sqlx::test(migrations = false)]
async fn milestones_of_a_run_are_logged_at_v_with_the_ids_on_each_line(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    let log = log_of(&scene, 0, &["run", "-v"]).await;
    assert_eq!(
        messages(&log),
        [
            "run started",
            "lease taken",
            "pass opened",
            "batch accepted",
            "batch accepted",
            "batch accepted",
            "pass closed",
            "run finished"
        ],
        "{log}"
    );
    for (number, line) in log.lines().enumerate() {
        let ids = match message(line) {
            of_run if of_run.starts_with("run ") => " run{run_id=1}: ".to_owned(),
            of_batch if of_batch.starts_with("batch ") => {
                format!(" run{{run_id=1}}:lane{{entity_id=acme}}:batch{{batch_id={}}}: ", number - 2)
            }
            _ => " run{run_id=1}:lane{entity_id=acme}: ".to_owned(),
        };
        assert!(line.contains(&ids), "{ids}: {line}");
        assert!(!message(line).contains("run_id") && !message(line).contains("entity_id"), "{line}");
    }
    let finished = "rows_read=6 rows_uploaded=6 rows_set_aside=0 rows_superseded=0 requests=3";
    assert!(log.lines().last().unwrap().contains(finished), "{log}");
}

#[sqlx::test(migrations = false)]
async fn a_normal_run_logs_nothing_by_default(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    assert_eq!(log_of(&scene, 0, &["run"]).await, "");
    let backfill = ["backfill", "--from", "2024-01-01", "--to", "2024-01-02"];
    output_of(&scene, 0, &["attach", "--backfill-index", "--yes"]).await;
    assert_eq!(log_of(&scene, 0, &backfill).await, "");
    let log = log_of(&scene, 0, &[&backfill[..], &["-v"]].concat()).await;
    let expected = ["run started", "lease taken", "slice started", "batch accepted", "range finished"];
    for message in expected.into_iter().chain(["run finished"]) {
        assert!(messages(&log).iter().any(|logged| logged == message), "{message}: {log}");
    }
    assert!(log.lines().all(|line| line.contains(" run{run_id=3}:")), "{log}");
}

#[sqlx::test(migrations = false)]
async fn refused_batches_are_logged_with_their_parts(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    scene.sandbox.set_rules(fault_rules(&["reject:account=a3"]));
    let log = log_of(&scene, 3, &["run", "-v"]).await;
    let messages = messages(&log);
    for (message, count) in
        [("batch refused", 2), ("batch split", 1), ("rows set aside", 1), ("batch accepted", 3)]
    {
        assert_eq!(messages.iter().filter(|logged| *logged == message).count(), count, "{message}: {log}");
    }
    let split = log.lines().find(|line| line.contains("batch split")).unwrap();
    assert!(split.contains("batch{batch_id=2}: "), "{split}");
    let set_aside = log.lines().find(|line| line.contains("rows set aside")).unwrap();
    let part = set_aside.split("batch{batch_id=").nth(1).unwrap().split('}').next().unwrap();
    assert!(split.contains(&format!("_part={part}")), "{split}\n{set_aside}");
}

#[sqlx::test(migrations = false)]
async fn every_request_is_logged_at_vv_and_no_body(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "10ms");
    scene.sandbox.set_rules(fault_rules(&["unavailable@once:2", "reject:account=a5"]));
    let log = log_of(&scene, 3, &["run", "-vv"]).await;
    let imports = scene.sandbox.requests().len();
    let requests: Vec<&str> = log.lines().filter(|line| message(line).starts_with("request ")).collect();
    let probes = log.lines().filter(|line| message(line).starts_with("credential probe ")).count();
    let pages = log.lines().filter(|line| message(line).starts_with("page of a list ")).count();
    assert_eq!(requests.len() + probes + pages, imports, "{log}");
    for line in &requests {
        assert!(line.contains(":batch{batch_id="), "{line}");
        for field in ["http_status=", "elapsed_ms=", "attempt=", "body_bytes="] {
            assert!(line.contains(field), "{field}: {line}");
        }
    }
    assert_eq!(requests.iter().filter(|line| line.contains("attempt=2 ")).count(), 1, "{log}");
    for secret in [crate::support::KEY, crate::support::SECRET, "entityAccountId", "BTC"] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
    let without = log_of(&scene, 0, &["run", "-v"]).await;
    assert!(!without.contains("request answered"), "{without}");
}

#[sqlx::test(migrations = false)]
async fn the_message_of_a_failed_lane_is_printed_once(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    scene.sandbox.set_rules(fault_rules(&["revoked"]));
    let words = "the API refused credential `default`";
    for arguments in [&["run"][..], &["run", "-v"], &["run", "--json"]] {
        let output = scene.output(arguments).await;
        let (printed, log) = (stdout(&output), stderr(&output));
        assert_eq!(output.status.code(), Some(1), "{printed}{log}");
        assert_eq!(format!("{printed}{log}").matches(words).count(), 1, "{arguments:?}: {printed}{log}");
        assert!(!log.contains(words), "{arguments:?}: {log}");
        assert_eq!(log.contains("entity failed kind=\"auth\""), arguments.contains(&"-v"), "{log}");
        if arguments.contains(&"--json") {
            let json: serde_json::Value = serde_json::from_str(&printed).unwrap();
            assert!(json["entities"][0]["reason"].as_str().unwrap().contains(words), "{json}");
        }
    }
}

/// The run ends without a summary, so the log has the message.
#[sqlx::test(migrations = false)]
async fn without_a_summary_the_log_has_the_message_of_a_failed_lane(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    scene.entity("beta", "No/Where").await;
    scene
        .sql(
            "create function broken() returns trigger language plpgsql as $$ begin raise exception 'broken'; end $$;
             create trigger broken before insert on elven_sync.sync_batches
                 for each row execute function broken()",
        )
        .await;
    let output = scene.output(&["run"]).await;
    let (printed, log) = (stdout(&output), stderr(&output));
    assert_eq!((output.status.code(), printed.as_str()), (Some(1), ""), "{log}");
    let failures: Vec<&str> = log.lines().filter(|line| line.contains("entity beta failed: ")).collect();
    assert_eq!(failures.len(), 1, "{log}");
    assert!(
        failures[0].contains("WARN run{run_id=1}:lane{entity_id=beta}: ") && failures[0].contains("No/Where"),
        "{log}"
    );
}

/// An entity id that a terminal obeys, or that looks like another span.
#[sqlx::test(migrations = false)]
async fn an_entity_id_forges_no_span_and_no_line(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let hostile = "a}:batch{batch_id=9}: batch accepted\n\u{1b}[2J\u{9b}\u{202e}2024 WARN run";
    scene.entity(hostile, "UTC").await;
    sqlx::query(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         values ($1, 'a', 'BTC', '2024-01-01Z', 1)",
    )
    .bind(hostile)
    .execute(&scene.pool)
    .await
    .unwrap();
    let log = log_of(&scene, 0, &["run", "-vv"]).await;
    let shown =
        r#":lane{entity_id="a}:batch{batch_id=9}: batch accepted\n\u{1b}[2J\u{9b}\u{202e}2024 WARN run"}: "#;
    let lines: Vec<&str> = log.lines().filter(|line| !line.contains(" run{run_id=1}: ")).collect();
    assert!(lines.len() >= 4, "{log}");
    for line in lines {
        assert!(line.replace(":batch{batch_id=1}: ", ": ").contains(shown), "{line}");
    }
    assert!(!log.contains(crate::hostile::is_harmful), "{log:?}");
}

/// A word that is no level would switch all warnings off.
#[sqlx::test(migrations = false)]
async fn wrong_log_level_is_reported_and_ignored(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    for (level, is_wrong) in [
        ("loud", true),
        ("elven_sync=debug,wrn", true),
        ("elven_sync=loud", true),
        ("warn", false),
        ("WARN", false),
        ("elven_sync=debug, warn", false),
        ("off", false),
    ] {
        scene.set("ELVEN_SYNC_LOG", level);
        let log = stderr(&scene.output(&["status"]).await);
        assert_eq!(log.contains("ELVEN_SYNC_LOG is ignored"), is_wrong, "{level}: {log}");
    }
}
