//! Harmful input from outside: text that a terminal or a shell obeys, and secrets in the wrong place.

use std::process::Command;

use elven_sync::sandbox::Fault;
use sqlx::PgPool;

use crate::support::{KEY, SECRET, TestEnv, output_of, stderr, stdout};

/// Text that a terminal obeys: an escape sequence, C1, a line break, and text that is shown from right to left.
const ENTITIES: [&str; 7] = [
    "x\u{1b}[2J\u{1b}]0;owned\u{7}\nrun 99 succeeded: all fine",
    "y' --timezone UTC; touch ./PWNED; echo '",
    "z\u{9b}31m'; touch ./PWNED; '\u{202e}\u{2028}",
    "-rf",
    "b'; touch ./PWNED; '\u{202e}\u{2028}\\'; touch ./PWNED; \\",
    "\\'; $(touch ./PWNED)`touch ./PWNED` \"!!\" *",
    "$(touch ./PWNED)`touch ./PWNED`\u{7f}",
];

pub fn is_harmful(c: char) -> bool {
    c != '\n' && c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

async fn add_row(scene: &TestEnv, entity_id: &str, account: &str) {
    sqlx::query(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         values ($1, $2, 'BTC', '2024-01-01Z', 1)",
    )
    .bind(entity_id)
    .bind(account)
    .execute(&scene.pool)
    .await
    .unwrap();
}

/// The commands after `hint:`, as a person would paste them.
fn hints(text: &str) -> Vec<String> {
    let of_line = |line: &str| {
        let (_, hint) = line.split_once("hint: elven-sync ")?;
        Some(hint.replace(" --timezone ZONE", " --timezone UTC"))
    };
    text.lines().filter_map(of_line).collect()
}

/// All text from the ledger is printed escaped and in one line, and each hint registers exactly the entity that it
/// names.
#[sqlx::test(migrations = false)]
async fn ledger_text_cannot_inject_lines_colours_or_commands(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    for entity_id in ENTITIES {
        add_row(&scene, entity_id, "a").await;
    }
    let printed = output_of(&scene, 3, &["run", "-vv"]).await;
    assert!(!printed.contains(is_harmful), "{printed:?}");
    assert!(!printed.lines().any(|line| line.starts_with("run 99")), "{printed}");
    let stored: Vec<String> =
        sqlx::query_scalar("select message from elven_sync.sync_errors order by error_id")
            .fetch_all(&scene.pool)
            .await
            .unwrap();
    let listed = output_of(&scene, 0, &["errors", "list"]).await;
    assert!(!listed.contains(is_harmful), "{listed:?}");

    // Pasted into a shell, in its own folder.
    let directory = tempfile::tempdir().unwrap();
    let from_stored: Vec<String> = stored
        .iter()
        .flat_map(|message| {
            // The text before the hint is kept as it is, and may have several lines.
            let (_, hint) = message.rsplit_once("hint: ").unwrap();
            hints(&format!("hint: {hint}"))
        })
        .collect();
    assert!(!from_stored.is_empty());
    for hint in hints(&printed).into_iter().chain(from_stored) {
        let script = format!("{} {hint}", env!("CARGO_BIN_EXE_elven-sync"));
        let mut command = Command::new("bash");
        command.args(["-c", &script]).current_dir(directory.path()).env("DATABASE_URL", &scene.url);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing else was run");
    let mut registered: Vec<String> =
        sqlx::query_scalar("select entity_id from elven_sync.entities").fetch_all(&scene.pool).await.unwrap();
    registered.sort();
    // A name with control characters cannot be registered, and the message says so.
    let (refused, fine): (Vec<&str>, Vec<&str>) =
        ENTITIES.into_iter().partition(|id| id.contains(char::is_control));
    let mut expected: Vec<String> = fine.into_iter().map(str::to_owned).collect();
    let said = stored.iter().filter(|message| message.contains("correct the entity_id of these rows"));
    assert_eq!(said.count(), refused.len());
    expected.sort();
    assert_eq!(registered, expected);
}

/// Entities that were registered by SQL, paused, and stopped: the tables, and the hints of the other commands.
#[sqlx::test(migrations = false)]
async fn every_command_escapes_text_of_journal_and_api(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    for entity_id in ENTITIES {
        scene.entity(entity_id, "UTC").await;
        add_row(&scene, entity_id, "acc\u{1b}[31m\nount").await;
        add_row(&scene, entity_id, "fine").await;
    }
    scene.sql("insert into elven_sync.entities (entity_id, timezone, credential)
               values (E'c\\u001b[1m', E'No\\u001b/Zone\\n', 'default'), (E'd\\u009b', 'UTC', E'cred\\n\\u001b]0;x\\u0007')").await;
    let body = r#"{"status":"failed","data":{"code":"\u001b[2J","message":"\u001b[31mno\nrun 99 succeeded\u009b\u202e"}}"#;
    scene.sandbox.inject(Fault::Answer { status: 403, body: body.to_owned(), headers: Vec::new() });
    for arguments in [
        &["run", "-vv"][..],
        &["run"],
        &["status"],
        &["status", "--json"],
        &["errors", "list"],
        &["errors", "list", "--json"],
        &["errors", "list", "--csv"],
        &["errors", "list", "--rows"],
        &["errors", "list", "--rows", "--json"],
        &["errors", "list", "--rows", "--csv"],
        &["errors", "show", "1"],
        &["entity", "list"],
        &["entity", "list", "--json"],
        &["entity", "pause", "nobody\u{1b}[31m"],
        &["entity", "add", "v\u{1b}[31m", "--timezone", "No\u{1b}where"],
        &["status", "--row", "1\u{1b}[31m"],
        &["status", "--row", "1"],
        &["backfill", "--from", "2024-01-01", "--to", "2024-01-02", "--account", "a\u{1b}[31m\nb"],
        &["backfill", "list"],
        &["verify"],
        &["errors", "retry"],
    ] {
        let output = scene.output(arguments).await;
        let printed = format!("{}{}", stdout(&output), stderr(&output));
        assert!(!printed.contains(is_harmful), "{arguments:?}: {printed:?}");
        assert!(
            !printed.lines().any(|line| line.starts_with("run 99") || line.starts_with("ount")),
            "{printed}"
        );
        if arguments.contains(&"--json") {
            let json: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
            assert!(json.to_string().contains("\\u001b[2J"), "exact: {json}");
        }
    }
}

/// Parameters of a URL that sqlx does not know, and passwords, at any level of the log.
#[sqlx::test(migrations = false)]
async fn no_secret_of_a_database_url_reaches_the_log(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    add_row(&scene, "acme", "a").await;
    let secret = "s3cret-5d2e";
    let url = scene.url.clone();
    let separator = if url.contains('?') { '&' } else { '?' };
    let with =
        format!("{url}{separator}sslpassword={secret}&connect_timeout=3&no{secret}=1&password={secret}");
    let passwords = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(passwords.path(), format!("{secret}\n*:*:*:*:{secret}\n")).unwrap();
    scene.set("PGPASSFILE", passwords.path().to_str().unwrap());
    for (variable, arguments) in [
        ("DATABASE_URL", &["run", "-vv"][..]),
        ("ELVEN_SYNC_LEDGER_URL", &["run", "-vv"]),
        ("DATABASE_URL", &["demo"]),
    ] {
        for level in ["", "trace", "sqlx_postgres::options::parse=trace,trace"] {
            let mut command = scene.command(arguments);
            let output = command.env(variable, &with).env("ELVEN_SYNC_LOG", level).output().await.unwrap();
            let printed = format!("{}{}", stdout(&output), stderr(&output));
            assert!(!printed.contains(secret), "{variable} {level}");
            assert!(!printed.contains(SECRET), "{variable} {level}");
            assert!(!printed.contains(KEY), "{variable} {level}");
            if level.is_empty() && variable == "DATABASE_URL" {
                assert!(printed.contains("sslpassword") && printed.contains("connect_timeout"), "{printed}");
            }
        }
    }
    let database = scene.database(1).await;
    assert!(!format!("{database:?}").contains("password"), "Debug has no options of the connection");
}

/// A secret under a wrong name, in the file and in the environment.
#[sqlx::test(migrations = false)]
async fn secret_under_an_unknown_setting_is_not_printed(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("elven.toml");
    std::fs::write(&path, "[credentials.acme]\nkey = \"REAL-KEY-7f3a\"\nsecret = \"REAL-SECRET-9c1b\"\n")
        .unwrap();
    let printed = output_of(&scene, 1, &["--config", path.to_str().unwrap(), "status"]).await;
    assert!(printed.contains("line 2: [credentials.acme] key: unknown field"), "{printed}");
    assert!(!printed.contains("7f3a") && !printed.contains("9c1b"), "{printed}");
    scene.set("ELVEN_SYNC_CREDENTIALS__ACME", "REAL-SECRET-9c1b");
    let printed = output_of(&scene, 1, &["status"]).await;
    assert!(printed.contains("ELVEN_SYNC_CREDENTIALS__ACME: "), "{printed}");
    assert!(!printed.contains("9c1b"), "{printed}");
}
