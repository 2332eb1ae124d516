//! Output that cannot be written, and tables on a narrow terminal.

use std::process::Stdio;

use sqlx::PgPool;
use tokio::process::Child;

use crate::messages::on_a_terminal;
use crate::support::{TestEnv, output_of, stderr};

fn full_disk() -> Stdio {
    std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

async fn ended(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().await.unwrap();
    (output.status.code(), stderr(&output))
}

/// One row that was uploaded, one that is set aside, and one that is pending.
async fn scene(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "Europe/Zurich").await;
    scene
        .sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
              values ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('acme', 'b', 'BTC', '2024-01-01Z', 'NaN')")
        .await;
    output_of(&scene, 3, &["run"]).await;
    output_of(&scene, 3, &["backfill", "--from", "2024-01-01", "--to", "2024-02-01"]).await;
    scene
        .sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
              values ('acme', 'c', 'BTC', '2024-01-02Z', 1)")
        .await;
    scene
}

#[sqlx::test(migrations = false)]
async fn a_command_whose_product_is_its_output_fails_on_a_full_disk(pool: PgPool) {
    let scene = scene(pool).await;
    let range = ["backfill", "--from", "2024-01-01", "--to", "2024-02-01", "--dry-run"];
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["status", "--row", "1"],
        &["status", "--row", "1", "--json"],
        &["errors", "list"],
        &["errors", "list", "--json"],
        &["errors", "list", "--csv"],
        &["errors", "list", "--rows"],
        &["errors", "list", "--rows", "--csv"],
        &["errors", "list", "--rows", "--json"],
        &["errors", "list", "--kind", "timezone"],
        &["errors", "show", "1"],
        &["reference", "accounts"],
        &["reference", "currencies", "--json"],
        &["verify"],
        &["verify", "--json"],
        &["entity", "list"],
        &["backfill", "list"],
        &["run", "--dry-run"],
        &["run", "--dry-run", "--json"],
        &range,
        &["prune", "--older-than", "1d", "--dry-run"],
        &["attach", "--dry-run"],
        &["--help"],
        &["run", "--help"],
        &["--version"],
    ] {
        let (code, said) = ended(scene.command(arguments).stdout(full_disk()).spawn().unwrap()).await;
        assert_eq!(code, Some(1), "{arguments:?}: {said}");
        assert!(
            said.contains("could not be written") && said.contains("No space left"),
            "{arguments:?}: {said}"
        );
        assert_eq!(said.matches("No space left").count(), 1, "{arguments:?}: {said}");
    }
}

#[sqlx::test(migrations = false)]
async fn work_that_was_done_keeps_its_exit_code_on_a_full_disk(pool: PgPool) {
    let scene = scene(pool).await;
    let range = ["backfill", "--from", "2024-01-01", "--to", "2024-02-01"];
    for (arguments, expected) in [
        (&["run"][..], 0),
        (&["run", "--json"], 0),
        (&range, 3),
        (&["errors", "retry"], 3),
        (&["entity", "add", "beta", "--timezone", "UTC"], 0),
        (&["entity", "pause", "beta"], 0),
        (&["errors", "resolve", "1", "--reason", "a test"], 0),
        (&["prune", "--older-than", "1d"], 0),
        (&["reference", "pull"], 3),
        (&["migrate"], 0),
    ] {
        let (code, said) = ended(scene.command(arguments).stdout(full_disk()).spawn().unwrap()).await;
        assert_eq!(code, Some(expected), "{arguments:?}: {said}");
        assert_eq!(said.matches("No space left").count(), 1, "{arguments:?}: {said}");
    }
    assert_eq!(scene.received().len(), 5, "two runs and two backfills");
}

#[sqlx::test(migrations = false)]
async fn a_closed_pipe_is_silent(pool: PgPool) {
    let scene = scene(pool).await;
    for (arguments, expected) in
        [(&["status"][..], 3), (&["verify"], 0), (&["errors", "list"], 0), (&["run"], 0), (&["--help"], 0)]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        let child = scene.command(arguments).stdout(Stdio::from(writer)).spawn().unwrap();
        drop(reader);
        let (code, said) = ended(child).await;
        assert_eq!((code, &said[..]), (Some(expected), ""), "{arguments:?}");
    }
}

/// Whatever is in a cell can be read: it is wrapped, and not cut off.
#[sqlx::test(migrations = false)]
async fn tables_fit_a_terminal_of_80_columns(pool: PgPool) {
    let scene = scene(pool).await;
    let long = "a-subsidiary-with-a-long-name-in-liquidation";
    scene.entity(long, "America/Argentina/ComodRivadavia").await;
    let account = "an-account-with-a-name-that-is-longer-than-a-column-of-a-table";
    let range =
        ["backfill", "--from", "2024-01-01T00:00:00Z", "--to", "2024-02-01T00:00:00Z", "--account", account];
    // As wide as it usually is, no word is split.
    let text = on_a_terminal(&scene, 80, 0, &["backfill", "list"]).await;
    assert!(text.contains("incomplete") && text.contains("2024-02-01"), "{text}");
    output_of(&scene, 0, &range).await;
    for (arguments, code, expected) in [
        (&["status"][..], 3, &["incomplete", "2024-01-02"][..]),
        (&["status", "--row", "1"], 0, &["incremental", "accepted"]),
        (&["verify"], 0, &["holds", "still", "bodies"]),
        (&["backfill", "list"], 0, &["1", "2"]),
        (&["entity", "list"], 0, &["Europe/Zurich", "default"]),
        (&["errors", "list", "--rows"], 0, &["invalid_row"]),
        (&["run"], 0, &["done", "superseded"]),
    ] {
        let text = on_a_terminal(&scene, 80, code, arguments).await;
        // The lines of the table are those before the first sentence.
        let is_sentence = |line: &&str| line.contains(": ") || line.starts_with("proven");
        let table: Vec<&str> =
            text.lines().skip_while(is_sentence).take_while(|line| !is_sentence(line)).collect();
        let longest = table.iter().map(|line| line.trim_end().chars().count()).max().unwrap();
        assert!(longest <= 80, "{arguments:?}, {longest}: {text}");
        for expected in expected {
            assert!(text.contains(expected), "{arguments:?}, {expected}: {text}");
        }
    }
    let text = on_a_terminal(&scene, 80, 3, &["status"]).await;
    let mut lines = text.lines();
    let header = lines.next().unwrap();
    let columns = ["status", "time zone"].map(|name| header.find(name).unwrap());
    let cells = lines.skip(1).take_while(|line| !line.contains(": "));
    let (ids, zones): (String, String) =
        cells.map(|line| (line[..columns[0]].trim(), line[columns[1]..].trim())).unzip();
    assert!(ids.contains(long) && zones.contains("America/Argentina/ComodRivadavia"), "{text}");
}
