//! The texts of messages: grammar, width, and hints that can be pasted.

use std::io::Read;
use std::process::Stdio;

use nix::pty::{Winsize, openpty};
use sqlx::PgPool;

use crate::support::{TestEnv, output_of};

/// Two rows that are set aside, of an entity with a long account.
async fn scene_with_errors(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance) values
                 ('acme', 'an account with a long name', 'BTC', '2024-01-01Z', 'NaN'),
                 ('acme', 'another account', 'BTC', '2024-01-01Z', 'NaN')",
        )
        .await;
    output_of(&scene, 3, &["run"]).await;
    scene
}

/// What a command prints on a terminal of this width. Asserts its exit code.
pub async fn on_a_terminal(scene: &TestEnv, columns: u16, code: i32, arguments: &[&str]) -> String {
    let size = Winsize { ws_row: 40, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(Some(&size), None).unwrap();
    let mut child = scene.command(arguments).stdout(Stdio::from(terminal.slave)).spawn().unwrap();
    let mut master = std::fs::File::from(terminal.master);
    let reading = std::thread::spawn(move || {
        let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
        // Once no process has it open any more, reading fails.
        while let Ok(count @ 1..) = master.read(&mut buffer) {
            seen.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    });
    assert_eq!(child.wait().await.unwrap().code(), Some(code));
    drop(child);
    reading.join().unwrap()
}

#[sqlx::test(migrations = false)]
async fn the_list_of_errors_fits_a_terminal_and_is_whole_elsewhere(pool: PgPool) {
    let scene = scene_with_errors(pool).await;
    let message = scene.text("select max(message) from elven_sync.sync_errors").await;
    let whole = output_of(&scene, 0, &["errors", "list", "--rows"]).await;
    assert!(whole.contains(&message), "{whole}");
    for columns in [80, 100] {
        let list = on_a_terminal(&scene, columns, 0, &["errors", "list", "--rows"]).await;
        let lines: Vec<&str> = list.lines().collect();
        assert_eq!(lines.len(), 3, "a line each: {list}");
        let longest = lines.iter().map(|line| line.chars().count()).max().unwrap();
        assert!(longest <= columns.into(), "{longest}: {list}");
        assert!(list.contains('…') && list.contains("invalid_row"), "{list}");
    }
    assert!(on_a_terminal(&scene, 80, 0, &["errors", "list", "--json"]).await.contains(&message));
    let number = scene.text("select max(error_id)::text from elven_sync.sync_errors").await;
    let of_it = "select message from elven_sync.sync_errors order by error_id desc limit 1";
    let shown = on_a_terminal(&scene, 80, 0, &["errors", "show", &number]).await;
    assert!(shown.contains(&scene.text(of_it).await), "{shown}");
}

#[sqlx::test(migrations = false)]
async fn one_open_error_is_singular(pool: PgPool) {
    let scene = scene_with_errors(pool).await;
    assert!(output_of(&scene, 3, &["status"]).await.contains("acme: 2 errors are open"));
    output_of(&scene, 0, &["errors", "resolve", "1", "--reason", "a typing error"]).await;
    assert!(output_of(&scene, 3, &["status"]).await.contains("acme: 1 error is open"));
}

#[sqlx::test(migrations = false)]
async fn paused_entities_are_named_with_the_command_that_resumes_them(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let range = ["backfill", "--from", "2024-01-01", "--to", "2025-01-01"];
    for command in [&["run"][..], &["run", "--dry-run"]] {
        assert!(output_of(&scene, 0, command).await.contains("hint: elven-sync entity add"));
    }
    scene.entity("it's", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('it''s', 'a', 'BTC', '2024-01-01Z', 1)").await;
    output_of(&scene, 0, &["entity", "pause", "it's"]).await;
    let hint = r"paused; hint: elven-sync entity resume 'it'\''s'";
    let commands = [
        (&["run"][..], 0),
        (&["run", "--dry-run"], 0),
        (&range, 1),
        (&["backfill", "--from", "2024-01-01", "--to", "2025-01-01", "--dry-run"], 1),
        (&["status", "--row", "1"], 0),
    ];
    for (command, code) in commands {
        let text = output_of(&scene, code, command).await;
        assert!(text.contains(hint) && !text.contains("entity add"), "{command:?}: {text}");
    }
}

#[sqlx::test(migrations = false)]
async fn a_time_without_an_offset_is_refused_as_such(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    for from in ["2024-03-01T12:00:00", "2024-03-01 12:00:00", "2024-03-01T12:00"] {
        let refused = output_of(&scene, 2, &["backfill", "--from", from, "--to", "2024-03-02"]).await;
        let expected = format!("`{from}` has no offset from UTC; hint: 2024-03-01T12:00:00Z");
        assert!(refused.contains(&expected), "{refused}");
    }
}

#[sqlx::test(migrations = false)]
async fn accounts_and_currencies_that_no_row_has_are_named(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.entity("beta", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('beta', 'b', 'ETH', '2024-01-01Z', 2),
                      ('beta', 'later', 'USD', '2025-01-01Z', 3)").await;
    let range = ["backfill", "--from", "2024-01-01", "--to", "2025-01-01"];
    let filter = ["--account", "a", "A", "b", "later", "--currency", "BTC", "btc", "ETH"];
    for more in [&["--dry-run"][..], &[]] {
        let text = output_of(&scene, 0, &[&range[..], &filter, more].concat()).await;
        let notes: Vec<&str> = text.lines().filter(|line| line.starts_with("note: ")).collect();
        assert_eq!(
            notes,
            [
                "note: no row of the range has account `A`; accounts are spelled as in the ledger; the range has `a`, `b`",
                "note: no row of the range has account `later`; accounts are spelled as in the ledger; the range has `a`, `b`",
                "note: no row of the range has currency `btc`; currencies are spelled as in the ledger; the range has `BTC`, `ETH`",
            ],
            "{text}"
        );
    }
    let text = output_of(&scene, 0, &[&range[..], &["--account", "a", "b"]].concat()).await;
    assert!(!text.contains("note: "), "{text}");
}

#[sqlx::test(migrations = false)]
async fn attach_has_no_stray_blanks_and_no_empty_parentheses(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene
        .sql(
            "create schema books;
               create table books.balances as select * from ledger.balance_snapshots;
               create view books.fixed as
                   select 1 as id, 'acme' as entity_id, 'a' as entity_account_id, 'BTC' as currency,
                          '2024-01-01Z'::timestamptz as captured_at, 1.5 as balance",
        )
        .await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.balances");
    let plan = output_of(&scene, 0, &["attach", "--dry-run"]).await;
    let note = plan.lines().find(|line| line.contains("statement_timeout = 0")).unwrap();
    assert!(!note.contains("  "), "{note}");
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.fixed");
    let refused = output_of(&scene, 1, &["attach"]).await;
    assert!(
        refused.contains("books.fixed cannot be prepared: it is a view that reads no table"),
        "{refused}"
    );
    assert!(!refused.contains("()"), "{refused}");
}

#[sqlx::test(migrations = false)]
async fn a_sandbox_whose_port_is_in_use_names_it_and_another(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let taken = scene.sandbox.address();
    let refused = output_of(&scene, 1, &["sandbox", "--listen", &taken.to_string()]).await;
    assert!(
        refused.contains(&format!("cannot listen on {taken}"))
            && refused.contains("hint: elven-sync sandbox --listen 127.0.0.1:0"),
        "{refused}"
    );
    // The port of a service is fixed, since the monitoring has to find it.
    let refused = output_of(&scene, 1, &["serve", "--listen", &taken.to_string()]).await;
    let process = format!("`ss -ltnp 'sport = :{}'` shows the process that has it; or ", taken.port());
    assert!(
        refused.contains(&process)
            && refused.contains(&format!("elven-sync serve --listen 127.0.0.1:{}", taken.port() + 1)),
        "{refused}"
    );
}

#[sqlx::test(migrations = false)]
async fn a_denied_permission_names_the_rights_of_roles(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let role = scene
        .text("select 'elven_sync_denied_' || oid from pg_database where datname = current_database()")
        .await;
    let create = format!(
        "create role {role}; grant usage on schema elven_sync to {role};
         grant select on all tables in schema elven_sync to {role}"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&scene.pool).await.unwrap();
    let separator = if scene.url.contains('?') { '&' } else { '?' };
    let url = format!("{}{separator}options=-c%20role%3D{role}", scene.url);
    scene.set("DATABASE_URL", &url);
    let refused = output_of(&scene, 1, &["entity", "pause", "acme"]).await;
    assert!(
        refused.contains("permission denied for table ")
            && refused.contains("; hint: use a role that has the right: docs/ledgers.md#grant-the-rights"),
        "{refused}"
    );
    let drop = format!("drop owned by {role}; drop role {role}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&scene.pool).await.unwrap();
}
