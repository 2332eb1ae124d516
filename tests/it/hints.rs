//! The commands that the program and its documents name: each of them exists, and parses as it is written.

use std::fmt::Write as _;

use clap::CommandFactory;
use clap::error::ErrorKind;
use elven_sync::commands::Cli;
use sqlx::PgPool;

use crate::support::{TestEnv, files_in, output_of};

const PROGRAM: &str = "elven-sync ";

/// What a placeholder of a format string may stand for.
const STAND_INS: [&str; 7] = ["acme", "1", "1h", "--entity=acme", "2024-01-01T00:00:00Z", "127.0.0.1:1", ""];

/// The string literals of a source file, without those of its unit tests.
fn literals(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap();
    let mut literals = Vec::new();
    let mut rest = source;
    while let Some(at) = rest.find(['"', '/', '\'']) {
        let (begin, behind) = rest.split_at(at);
        if behind.starts_with("//") {
            rest = behind.split_once('\n').map_or("", |(_, next)| next);
        } else if let Some(next) =
            ["'\"'", "'\\\"'", "'/'", "'\\''"].iter().find_map(|c| behind.strip_prefix(c))
        {
            rest = next;
        } else if !behind.starts_with('"') {
            rest = &behind[1..];
        } else if begin.ends_with('r') || begin.ends_with('#') {
            let hashes = begin.len() - begin.trim_end_matches('#').len();
            let end = format!("\"{}", "#".repeat(hashes));
            let (literal, next) = behind[1..].split_once(&end).unwrap();
            literals.push(literal.to_owned());
            rest = next;
        } else {
            let mut escaped = false;
            let end = behind[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            let (literal, next) = behind[1..].split_at(end.unwrap());
            // A backslash at the end of a line joins it with the next one.
            let mut lines = literal.split("\\\n");
            let first = lines.next().unwrap_or_default().to_owned();
            literals.push(lines.fold(first, |joined, line| joined + line.trim_start()));
            rest = &next[1..];
        }
    }
    literals
}

/// A command in a text.
struct Named {
    /// The words behind the name of the program.
    words: String,
    /// The place says that a command follows: a backtick or `hint: `.
    is_certain: bool,
    /// A person is told to paste it. Elsewhere a command may be named without its arguments.
    is_hint: bool,
}

/// The commands in a text, each from the name of the program to what ends the command.
fn commands(text: &str) -> Vec<Named> {
    let mut commands = Vec::new();
    for (at, _) in text.match_indices(PROGRAM) {
        let (before, rest) = (&text[..at], &text[at + PROGRAM.len()..]);
        let is_quoted = before.ends_with('`');
        let ends: &[&str] = if is_quoted {
            &["`", " >", " |"]
        } else {
            &["`", ";", ",", "(", ")", "\n", "|", "'", "\"", "  "]
        };
        let end = ends.iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
        commands.push(Named {
            words: rest[..end].trim_end_matches('.').to_owned(),
            is_certain: is_quoted || before.ends_with("hint: "),
            is_hint: before.contains("hint: "),
        });
    }
    commands
}

/// Replaces the placeholders of a format string, in each possible way.
fn filled(command: &str) -> Vec<String> {
    let Some((before, rest)) = command.split_once('{') else { return vec![command.to_owned()] };
    let behind = rest.split_once('}').map_or("", |(_, behind)| behind);
    STAND_INS.iter().flat_map(|stand_in| filled(&format!("{before}{stand_in}{behind}"))).collect()
}

fn parses(command: &str) -> Result<(), String> {
    let mut problem = String::new();
    for command in filled(command) {
        // The names of arguments in the help texts.
        let words = command.split_whitespace().map(|word| match word {
            "N" | "N..." | "[N...]" => "1",
            "90d" | "D" => "2024-01-01",
            word => word.trim_matches('\''),
        });
        let words: Vec<&str> = if command.contains("--older-than") {
            command.split_whitespace().collect()
        } else {
            words.collect()
        };
        match Cli::command().try_get_matches_from(["elven-sync"].into_iter().chain(words)) {
            Ok(_) => return Ok(()),
            Err(refused)
                if matches!(
                    refused.kind(),
                    ErrorKind::DisplayHelp
                        | ErrorKind::DisplayVersion
                        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                ) =>
            {
                return Ok(());
            }
            Err(refused) => problem = refused.to_string(),
        }
    }
    Err(problem)
}

fn is_subcommand(command: &str) -> bool {
    let first = command.split_whitespace().next().unwrap_or_default();
    Cli::command().find_subcommand(first).is_some()
}

/// Whether a text begins with the name of a command, without arguments: `backfill`, `entity add does the same`.
fn is_name(text: &str, is_quoted: bool) -> bool {
    let mut command = Cli::command();
    for word in text.split_whitespace() {
        match command.find_subcommand(word).cloned() {
            Some(below) => command = below,
            None => return !is_quoted && !command.has_subcommands(),
        }
    }
    true
}

/// Returns what is wrong with the commands of a text, and how many there are.
fn wrong_commands(place: &str, text: &str) -> (String, usize) {
    let (mut wrong, mut count) = (String::new(), 0);
    for Named { words, is_certain, is_hint } in commands(text) {
        if !is_certain && !is_subcommand(&words) {
            continue;
        }
        count += 1;
        if let Err(problem) = parses(&words)
            && (is_hint || !is_name(&words, is_certain))
        {
            let _ = writeln!(wrong, "{place}: elven-sync {words}\n{problem}");
        }
    }
    (wrong, count)
}

#[test]
fn each_command_that_the_program_names_exists() {
    let (mut wrong, mut count) = (String::new(), 0);
    for (file, source) in files_in("src", "rs") {
        if file.ends_with("tests.rs") || file.contains("/tests/") {
            continue;
        }
        for literal in literals(&source) {
            let (more, found) = wrong_commands(&file, &literal);
            wrong += &more;
            count += found;
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(count > 40, "only {count} commands were found");
}

/// The comments of tables and columns, and commands within a sentence of a document.
#[test]
fn each_command_in_comments_and_sentences_exists() {
    let (mut wrong, mut count) = (String::new(), 0);
    let documents =
        files_in("docs", "md").into_iter().filter(|(file, _)| !file.starts_with("internals/decisions"));
    for (file, text) in files_in("migrations", "sql").into_iter().chain(documents) {
        let is_document = std::path::Path::new(&file).extension().is_some_and(|kind| kind == "md");
        for line in text.lines() {
            // Blocks of commands have a test of their own.
            if is_document && !line.contains("`elven-sync ") {
                continue;
            }
            let spans: Vec<String> = if is_document {
                let spans = line.split('`').skip(1).step_by(2).filter(|span| span.starts_with(PROGRAM));
                spans.map(|span| format!("`{span}`")).collect()
            } else {
                vec![line.to_owned()]
            };
            for span in spans {
                let (more, found) = wrong_commands(&file, &span);
                wrong += &more;
                count += found;
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(count > 40, "only {count} commands were found");
}

/// Executes the command after `hint: ` in a text, as a person pastes it.
async fn paste(scene: &TestEnv, text: &str, code: i32) -> String {
    let hint = text.rsplit_once("hint: ").unwrap().1.lines().next().unwrap();
    let hint = hint.replace("ZONE", "UTC").replace('\'', "");
    let words: Vec<&str> = hint.strip_prefix(PROGRAM).unwrap().split_whitespace().collect();
    output_of(scene, code, &words).await
}

#[sqlx::test(migrations = false)]
async fn pasted_hints_do_what_they_say(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene
        .sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
              values ('gamma', 'c', 'BTC', '2024-01-01Z', 1)")
        .await;
    // Nothing but the registration uploads rows of an entity that is not registered.
    let text = output_of(&scene, 3, &["run"]).await;
    let refused = output_of(&scene, 1, &["errors", "retry", "1"]).await;
    assert!(refused.contains("about the entity `gamma`, not about a row; nothing was sent"), "{refused}");
    assert_eq!(text.rsplit_once("hint: ").unwrap().1, refused.rsplit_once("hint: ").unwrap().1);
    assert!(paste(&scene, &refused, 0).await.contains("entity `gamma` is registered"));
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.received().len(), 1);
    // Of the entities that were asked for, the paused one is resumed.
    scene.entity("acme", "UTC").await;
    output_of(&scene, 0, &["entity", "pause", "gamma"]).await;
    let paused = output_of(&scene, 0, &["run", "--entity", "gamma"]).await;
    assert!(paste(&scene, &paused, 0).await.contains("entity `gamma` is resumed"));
    // Another table is no second ledger of the entity.
    scene.sql("create table ledger.more (like ledger.balance_snapshots including all)").await;
    output_of(&scene, 0, &["attach"]).await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.more");
    output_of(&scene, 0, &["attach"]).await;
    let refused = output_of(&scene, 3, &["run"]).await;
    assert!(refused.contains("an entity has one table; a view can join several"), "{refused}");
}

/// A row that was corrected beside the ledger table has no new version, so that no run reads it again.
#[sqlx::test(migrations = false)]
async fn a_row_that_a_view_made_invalid_is_sent_by_the_command_of_its_hint(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene
        .sql("create table ledger.names (ledger_name text primary key, elven_name text);
              create view ledger.named as
                  select r.id, r.entity_id, coalesce(n.elven_name, '') as entity_account_id, r.currency, r.captured_at,
                         r.balance, r.change_xid
                    from ledger.balance_snapshots r left join ledger.names n on n.ledger_name = r.entity_account_id;
              insert into ledger.names values ('b', 'B');
              insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
              values ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('acme', 'b', 'BTC', '2024-01-01Z', 1)")
        .await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.named");
    scene.entity("acme", "UTC").await;
    output_of(&scene, 3, &["run"]).await;
    let shown = output_of(&scene, 0, &["errors", "show", "1"]).await;
    assert!(
        shown.contains(
            "after a correction elsewhere (a view, a map, another row), run `elven-sync errors retry`"
        ),
        "{shown}"
    );
    scene.sql("insert into ledger.names values ('a', 'A')").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.received().len(), 1, "a run does not read it again");
    output_of(&scene, 0, &["errors", "retry"]).await;
    assert_eq!(scene.received().len(), 2);
}
