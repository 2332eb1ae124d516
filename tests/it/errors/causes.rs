//! The causes of errors: rows that were set aside for one reason are listed, retried and resolved together.

use elven_sync::text::quoted;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::messages::on_a_terminal;
use crate::stub::{Stub, StubRequest, StubResponse, list, respond};
use crate::support::{TestEnv, output_of, stderr, stdout};

/// The names that the API refuses begin with this.
const UNKNOWN: &str = "wallet-";

/// An API that names the refused record: its account is unknown, or its amount is negative.
fn refusal(asked: &StubRequest) -> StubResponse {
    if !asked.is_import() {
        return list();
    }
    let records: Vec<Value> = serde_json::from_str(&asked.body).unwrap();
    let wrong = records.iter().find_map(|record| {
        let (account, balance) = (record["entityAccountId"].as_str().unwrap(), record["balance"].to_string());
        let currency = record.get("currency").unwrap_or(&record["symbol"]);
        let datetime = record["datetime"].as_str().unwrap();
        if account.starts_with(UNKNOWN) {
            Some((40_006, format!("no account {account} for {currency} at {}", datetime.replace(' ', "T"))))
        } else {
            balance.starts_with('-').then(|| (40_010, format!("{balance} is below 0")))
        }
    });
    let Some((code, message)) = wrong else { return respond(200) };
    let body = json!({"status": "failed", "data": {"code": code, "message": message}}).to_string();
    StubResponse { body, ..respond(400) }
}

/// Seven rows of acme: three of unknown accounts, two with a negative amount, one that is invalid, one accepted.
pub async fn scene_with_causes(pool: PgPool) -> (TestEnv, Stub) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let stub = Stub::of(&mut scene, refusal).await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance) values
                 ('acme', 'a', 'BTC', '2024-01-01 00:00:01Z', 1),
                 ('acme', 'wallet-1', 'BTC', '2024-01-01 00:00:02Z', 2),
                 ('acme', 'wallet-2', 'ETH', '2024-01-02 00:00:03Z', 2.50),
                 ('acme', 'wallet-33', 'EUR', '2024-01-03 00:00:04Z', 400),
                 ('acme', 'b', 'BTC', '2024-01-01 00:00:05Z', -17), ('acme', 'c', 'ETH', '2024-01-02 00:00:06Z', -0.5),
                 ('acme', 'd', 'BTC', '2024-01-01Z', 'NaN')",
        )
        .await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(stub.accepted().len(), 1);
    (scene, stub)
}

async fn causes(scene: &TestEnv, more: &[&str]) -> Vec<Value> {
    let text = output_of(scene, 0, &[&["errors", "list", "--json"], more].concat()).await;
    serde_json::from_str::<Value>(&text).unwrap()["causes"].as_array().unwrap().clone()
}

/// The command of a hint, as a person pastes it.
fn words(hint: &str) -> Vec<String> {
    let command = hint.trim().strip_prefix("elven-sync ").unwrap();
    command.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect()
}

async fn paste(scene: &TestEnv, code: i32, hint: &str, more: &[&str]) -> String {
    let words = words(hint);
    let words: Vec<&str> = words.iter().map(String::as_str).chain(more.iter().copied()).collect();
    output_of(scene, code, &words).await
}

#[sqlx::test(migrations = false)]
async fn errors_of_one_cause_are_listed_once_with_the_command_that_settles_them(pool: PgPool) {
    let (scene, stub) = scene_with_causes(pool).await;
    let text = stdout(&scene.output(&["errors", "list"]).await);
    for expected in [
        "acme: 3 rejected_row, ",
        "acme: 2 rejected_row, ",
        "acme: 1 invalid_row, ",
        "\"no account <account> for \"<currency>\"",
        "<datetime>\" (code 40006)",
        "\"<amount> is below 0\" (code 40010)",
        "e.g. row 2",
        "balance is NaN",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert_eq!(text.matches("hint: elven-sync errors retry --entity 'acme' --cause ").count(), 3, "{text}");
    // Not a terminal: as wide as a terminal of 80 columns. On a narrow terminal, a command is continued.
    for (columns, text) in [(80, text), (60, on_a_terminal(&scene, 60, 0, &["errors", "list"]).await)] {
        let longest = text.lines().map(|line| line.trim_end().chars().count()).max().unwrap();
        assert!(longest <= columns, "{longest}: {text}");
    }
    // The cause was repaired at Elven. The command uploads its rows, and no others.
    let hint = causes(&scene, &["--cause", "no account"]).await[0]["hint"].as_str().unwrap().to_owned();
    stub.answer(|_| respond(200));
    let retried = paste(&scene, 0, &hint, &[]).await;
    assert_eq!(retried.matches("resolved: uploaded by `errors retry`").count(), 3, "{retried}");
    assert_eq!(stub.accepted().len(), 4);
    assert_eq!(stub.imports().last().unwrap().records().len(), 3, "in one request");
    assert_eq!(causes(&scene, &[]).await.len(), 2);
}

#[sqlx::test(migrations = false)]
async fn the_view_error_causes_is_the_list_of_causes(pool: PgPool) {
    let (scene, _stub) = scene_with_causes(pool).await;
    scene
        .sql(
            "insert into elven_sync.sync_errors (entity_id, kind, message) values
                 ('beta', 'auth', 'the key is wrong; hint: check the key'),
                 ('it''s', 'unavailable', 'no answer'),
                 ('ghost', 'unregistered_entity', 'rows stay; hint: elven-sync entity add ''ghost'' --timezone ZONE'),
                 ('*', 'unregistered_entity', 'more; hint: elven-sync entity add ''x'' --timezone ZONE, or leave out'),
                 ('zeta', 'watermark', 'another table; hint: correct it');
             insert into elven_sync.sync_errors (entity_id, kind, message, resolved_at, resolution) values
                 ('beta', 'auth', 'the key is wrong; hint: check the key', now(), 'repaired'),
                 ('eta', 'auth', 'the key is wrong; hint: check the key', now(), 'repaired')",
        )
        .await;
    let view = scene
        .text(
            "select json_agg(json_build_object('entity_id', entity_id, 'kind', kind, 'api_code', api_code, 'cause', cause,
                    'rows', rows, 'example_ledger_id', example_ledger_id, 'hint', hint)
                    order by rows desc, entity_id, kind, cause)::text from elven_sync.error_causes",
        )
        .await;
    let view: Vec<Value> = serde_json::from_str(&view).unwrap();
    let mut listed = causes(&scene, &[]).await;
    for cause in &mut listed {
        for seen in ["first_seen_at", "last_seen_at"] {
            assert!(cause.as_object_mut().unwrap().remove(seen).unwrap().is_string());
        }
        assert_eq!(cause.as_object_mut().unwrap().remove("resolved"), Some(json!(false)));
    }
    assert_eq!(view, listed);
    let columns = "select string_agg(attname, ',' order by attnum) from pg_attribute
                    where attrelid = 'elven_sync.error_causes'::regclass and attnum > 0";
    assert_eq!(
        scene.text(columns).await,
        "entity_id,kind,api_code,cause,rows,first_seen_at,last_seen_at,example_ledger_id,hint"
    );
    let hint = |entity_id: &str| {
        let cause = view.iter().find(|cause| cause["entity_id"] == entity_id).unwrap();
        cause["hint"].as_str().unwrap().to_owned()
    };
    assert_eq!(hint("beta"), "elven-sync run --entity 'beta'");
    assert_eq!(hint("it's"), "elven-sync run");
    assert_eq!(hint("ghost"), "elven-sync entity add 'ghost' --timezone ZONE");
    assert_eq!(hint("*"), "elven-sync entity add 'x' --timezone ZONE");
    assert_eq!(hint("zeta"), "elven-sync run --entity 'zeta'");
    for cause in &view {
        let words = words(cause["hint"].as_str().unwrap());
        let words = ["elven-sync".to_owned()].into_iter().chain(words);
        assert!(
            clap::Parser::try_parse_from(words).map(|_: elven_sync::commands::Cli| ()).is_ok(),
            "{cause}"
        );
    }
}

#[sqlx::test(migrations = false)]
async fn errors_are_filtered_by_cause_in_list_retry_and_resolve(pool: PgPool) {
    let (scene, stub) = scene_with_causes(pool).await;
    let id = causes(&scene, &["--cause", "is below"]).await[0]["hint"].as_str().unwrap().to_owned();
    let id = id.rsplit_once(' ').unwrap().1.to_owned();
    for cause in ["is below", "<amount> is", &id] {
        let filter = ["--rows", "--json", "--cause", cause];
        let rows = output_of(&scene, 0, &[&["errors", "list"][..], &filter].concat()).await;
        let rows: Value = serde_json::from_str(&rows).unwrap();
        let mut ids: Vec<&str> =
            rows["errors"].as_array().unwrap().iter().map(|row| row["ledger_id"].as_str().unwrap()).collect();
        ids.sort_unstable();
        assert_eq!(ids, ["5", "6"], "{cause}");
    }
    // Filters are combined, and two causes are either of them.
    let count = async |more: &[&str]| causes(&scene, more).await.len();
    assert_eq!(count(&["--cause", "is below", "--kind", "invalid_row"]).await, 0);
    assert_eq!(count(&["--cause", "is below", "--cause", "NaN"]).await, 2);
    assert_eq!(count(&["--cause", "%"]).await, 0, "no pattern");
    assert_eq!(count(&["--kind", "rejected_row", "--entity", "acme"]).await, 2);
    output_of(&scene, 2, &["errors", "list", "--cause", ""]).await;
    output_of(&scene, 2, &["errors", "retry", "1", "--cause", &id]).await;
    output_of(&scene, 2, &["errors", "resolve", "1", "--cause", &id, "--reason", "x"]).await;
    let sent = stub.imports().len();
    let none = output_of(&scene, 1, &["errors", "retry", "--cause", "nothing like it"]).await;
    assert!(none.contains("no row that matches is set aside; open: 5 rejected_row of `acme`"), "{none}");
    assert_eq!(stub.imports().len(), sent);
    let none =
        output_of(&scene, 1, &["errors", "resolve", "--cause", "nothing like it", "--reason", "x"]).await;
    assert!(none.contains("nothing was changed"), "{none}");
    let resolved =
        output_of(&scene, 0, &["errors", "resolve", "--cause", &id, "--reason", "by mistake"]).await;
    assert!(resolved.contains("2 errors are resolved: 2 rejected_row"), "{resolved}");
    let open = "select string_agg(ledger_id, ',' order by ledger_id) from elven_sync.sync_errors where resolved_at is null";
    assert_eq!(scene.text(open).await, "2,3,4,7");
    // Resolved errors are causes of their own, and are listed with their resolution.
    let all = causes(&scene, &["--all", "--cause", "is below"]).await;
    assert_eq!((all.len(), &all[0]["resolved"]), (1, &json!(true)));
    let listed = paste(&scene, 0, all[0]["hint"].as_str().unwrap(), &[]).await;
    assert_eq!(listed.matches("by mistake").count(), 2, "{listed}");
    let retried = output_of(&scene, 3, &["errors", "retry", "--kind", "invalid_row"]).await;
    assert_eq!(retried.lines().count(), 1, "{retried}");
}

#[sqlx::test(migrations = false)]
async fn a_list_of_errors_is_limited_and_says_what_is_left_out(pool: PgPool) {
    let (scene, _stub) = scene_with_causes(pool).await;
    let text = output_of(&scene, 0, &["errors", "list", "--limit", "1"]).await;
    assert!(text.contains("acme: 3 rejected_row"), "the cause with the most rows: {text}");
    assert!(text.contains("2 more causes are not listed (--limit)") && !text.contains("NaN"), "{text}");
    let text = output_of(&scene, 0, &["errors", "list", "--rows", "--limit", "5"]).await;
    assert!(text.contains("1 more error is not listed (--limit)"), "{text}");
    assert_eq!(causes(&scene, &["--limit", "2"]).await.len(), 2);
    let csv = output_of(&scene, 0, &["errors", "list", "--rows", "--csv", "--limit", "4"]).await;
    assert_eq!(csv.lines().count(), 5, "{csv}");
    output_of(&scene, 2, &["errors", "list", "--limit", "0"]).await;
}

/// Splits a line of CSV into its fields, by RFC 4180 alone.
fn fields(line: &str) -> Vec<String> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let mut field = String::new();
        if let Some(mut quoted) = rest.strip_prefix('"') {
            loop {
                let (part, behind) = quoted.split_once('"').unwrap_or_else(|| panic!("no end: {line}"));
                field.push_str(part);
                rest = behind;
                let Some(more) = behind.strip_prefix('"') else { break };
                field.push('"');
                quoted = more;
            }
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            assert!(!rest[..end].contains('"'), "a quotation mark in a field without: {line}");
            field.push_str(&rest[..end]);
            rest = &rest[end..];
        }
        fields.push(field);
        if rest.is_empty() {
            return fields;
        }
        rest = rest.strip_prefix(',').unwrap_or_else(|| panic!("text behind a quoted field: {line}"));
    }
}

#[sqlx::test(migrations = false)]
async fn csv_of_errors_has_the_fields_of_the_json(pool: PgPool) {
    let (scene, _stub) = scene_with_causes(pool).await;
    scene
        .sql(
            "insert into elven_sync.sync_errors (entity_id, kind, message)
             values ('a,\"b\"', 'config', E'two\\nlines, \"quoted\"\\u001b[31m')",
        )
        .await;
    for (rows, list) in [(&[][..], "causes"), (&["--rows"], "errors")] {
        let csv = output_of(&scene, 0, &[&["errors", "list", "--csv"], rows].concat()).await;
        let json = output_of(&scene, 0, &[&["errors", "list", "--json"], rows].concat()).await;
        let json: Value = serde_json::from_str(&json).unwrap();
        let mut lines = csv.lines().map(fields);
        let header = lines.next().unwrap();
        let lines: Vec<Vec<String>> = lines.collect();
        let json = json[list].as_array().unwrap();
        assert_eq!(lines.len(), json.len(), "{csv}");
        for (line, json) in lines.iter().zip(json) {
            assert_eq!(line.len(), json.as_object().unwrap().len(), "{csv}");
            for (name, field) in header.iter().zip(line) {
                let expected = match &json[name] {
                    Value::Null => String::new(),
                    Value::String(text) if name.ends_with("_at") => {
                        let same = |text: &str| chrono::DateTime::parse_from_rfc3339(text).unwrap();
                        assert_eq!(same(field), same(text));
                        continue;
                    }
                    Value::String(text) => elven_sync::text::escaped(text),
                    value => value.to_string(),
                };
                assert_eq!(*field, expected, "{name}: {csv}");
            }
        }
    }
}

#[sqlx::test(migrations = false)]
async fn status_and_run_say_one_line_at_most_per_entity_and_cause(pool: PgPool) {
    let (scene, _stub) = scene_with_causes(pool).await;
    scene.sql("update ledger.balance_snapshots set balance = balance").await;
    let run = scene.output(&["run"]).await;
    let status = scene.output(&["status"]).await;
    for output in [run, status] {
        let text = format!("{}{}", stdout(&output), stderr(&output));
        let about =
            |line: &&str| line.contains("set aside") || line.contains("refused") || line.contains("NaN");
        // The first line and the header of the summary have the totals.
        let lines: Vec<&str> = text.lines().filter(about).filter(|line| line.contains("acme")).collect();
        assert!(lines.len() <= 3, "three causes: {text}");
        assert!(text.lines().count() < 10, "{text}");
    }
}

/// The cause of a message, of a row with this record.
async fn cause(scene: &TestEnv, message: &str, record: &str, ledger_id: &str) -> String {
    sqlx::query_scalar("select elven_sync.error_cause($1, $2::jsonb, $3)")
        .bind(message)
        .bind(record)
        .bind(ledger_id)
        .fetch_one(&scene.pool)
        .await
        .unwrap()
}

#[sqlx::test(migrations = false)]
async fn a_cause_is_the_message_without_the_values_of_its_row(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let record = r#"{"entityAccountId": "acc-9.x", "currency": "BTC", "datetime": "2024-03-01 12:00:05",
                     "balance": -12.50}"#;
    for (message, expected) in [
        ("account acc-9.x, `acc-9.x`.", "account <account>, `<account>`."),
        ("acc-9.xy and aacc-9.x and acc-9.x-1 are others", "acc-9.xy and aacc-9.x and acc-9.x-1 are others"),
        ("BTC \"BTC\" (BTC) BTC/EUR BTCX", "<currency> \"<currency>\" (<currency>) <currency>/EUR BTCX"),
        ("at 2024-03-01 12:00:05, 2024-03-01T12:00:05Z", "at <datetime>, <datetime>"),
        ("at 2024-03-01T12:00:05.000+00:00 on 2024-03-01", "at <datetime> on <datetime>"),
        ("amounts -12.50, -12.5 and 12.5", "amounts <amount>, -12.5 and 12.5"),
        ("row 4711, not 14711", "row <id>, not 14711"),
        ("(HTTP 4711) no (code 4711) but 4711", "(HTTP 4711) no (code 4711) but <id>"),
        ("no acc-9.x; hint: correct acc-9.x", "no <account>; hint: correct acc-9.x"),
        ("its body of 180 bytes is too large", "its body of <size> bytes is too large"),
        ("nothing of it", "nothing of it"),
        ("", ""),
    ] {
        assert_eq!(cause(&scene, message, record, "4711").await, expected);
    }
    // A single character is a value only where it is quoted, and the reason for an amount is no amount.
    let record = r#"{"entityAccountId": "a", "currency": "currency", "captured_at": "captured_at is infinite",
                     "balance": "balance is NaN"}"#;
    for (message, expected) in [
        ("a row 7 of a", "a row 7 of a"),
        ("a row of 'a', \"7\"", "a row of '<account>', \"<id>\""),
        ("balance is NaN", "balance is NaN"),
        ("captured_at is infinite, <currency>", "captured_at is infinite, <currency>"),
    ] {
        assert_eq!(cause(&scene, message, record, "7").await, expected);
    }
}

/// A text from outside must not make the journal fail, nor be read as a pattern.
#[sqlx::test(migrations = false)]
async fn any_text_has_a_cause(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let special =
        ["(", "[", "[.", "[[:", "{1,", "\\", "\\y", "*", "?", "|", "^", "$", ".", "a", "1", "é", "'", "<"];
    let part = prop_oneof![
        proptest::sample::select(special.to_vec()).prop_map(str::to_owned),
        any::<char>().prop_filter("no text in PostgreSQL has NUL", |c| *c != '\0').prop_map(String::from),
    ];
    let text = proptest::collection::vec(part, 2..12).prop_map(|parts| parts.concat());
    let mut runner = TestRunner::deterministic();
    for _ in 0..300 {
        let (account, other) = (text.clone(), text.clone(), Just(()))
            .prop_map(|(a, o, ())| (a, o))
            .new_tree(&mut runner)
            .unwrap()
            .current();
        let record =
            json!({"entityAccountId": account, "currency": other, "datetime": other, "balance": account});
        let message = format!("no \"{account}\" {other} {}", quoted(&account));
        let cause = cause(&scene, &message, &record.to_string(), &other).await;
        if account.chars().count() > 1 && !other.contains(&account) && !account.contains(&other) {
            assert!(cause.starts_with("no \"<"), "{message:?}: {cause:?}");
        }
    }
}

/// Errors of before the upgrade are grouped like new ones.
#[sqlx::test(migrations = false)]
async fn a_migration_gives_open_errors_their_cause(pool: PgPool) {
    let (scene, _stub) = scene_with_causes(pool).await;
    output_of(&scene, 0, &["errors", "resolve", "--cause", "NaN", "--reason", "a test"]).await;
    let shown = "select string_agg(coalesce(cause, '-'), ',' order by error_id) from elven_sync.sync_errors";
    let recorded = scene
        .text(
            "select string_agg(cause, ',' order by error_id) from elven_sync.sync_errors
                                where resolved_at is null",
        )
        .await;
    scene
        .sql(
            "drop view elven_sync.error_causes;
             drop function elven_sync.error_cause, elven_sync.cause_id, elven_sync.has_cause, elven_sync.error_hint;
             alter table elven_sync.sync_errors drop column cause;
             delete from elven_sync._migrations where version = 25",
        )
        .await;
    output_of(&scene, 0, &["migrate"]).await;
    let again = scene.text(shown).await;
    assert_eq!(
        again.split(',').filter(|cause| *cause != "-").count(),
        recorded.split(',').count(),
        "{again}"
    );
    assert!(recorded.contains("<account>") && again.contains("<account>"), "{again}");
    // Without a cause, the message is the cause.
    scene.sql("update elven_sync.sync_errors set cause = null").await;
    assert_eq!(causes(&scene, &[]).await.len(), 5);
    assert_eq!(causes(&scene, &["--cause", "wallet-33"]).await.len(), 1);
}
