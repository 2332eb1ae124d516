//! Prints: what `digest` and runs print, and which texts `verify --against` takes.

use serde_json::Value;
use sqlx::PgPool;

use super::{execute, print, verify_against};
use crate::backfill::add_minutes;
use crate::support::{TestEnv, output_of, stdout};

async fn synced(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "5");
    scene.entity("acme", "UTC").await;
    scene.entity("beta", "UTC").await;
    add_minutes(&scene, "acme", 12).await;
    scene
}

/// A run makes a print when the last one is older than an hour, and tells the latest one.
#[sqlx::test(migrations = false)]
async fn run_prints_at_most_once_an_hour(pool: PgPool) {
    let scene = synced(pool).await;
    let first = output_of(&scene, 0, &["run"]).await;
    let line = first.lines().find_map(|line| line.strip_prefix("print: ")).unwrap().to_owned();
    assert!(line.starts_with("1 ") && line.len() == 66, "{first}");
    add_minutes(&scene, "beta", 3).await;
    let json: Value = serde_json::from_str(&stdout(&scene.output(&["run", "--json"]).await)).unwrap();
    assert_eq!(format!("{} {}", json["print"]["print_id"], json["print"]["root"].as_str().unwrap()), line);
    execute(&scene, "update elven_sync.sync_prints set at = at - interval '61 minutes'").await;
    let later = output_of(&scene, 0, &["run"]).await;
    assert!(later.contains("\nprint: 2 "), "{later}");
    let covers = "select string_agg(h ->> 'entity_id', ' ') from elven_sync.sync_prints,
                         jsonb_array_elements(heads) h where print_id = 2";
    assert_eq!(scene.text(covers).await, "beta *", "what has changed since the first one, and the actions");
}

#[sqlx::test(migrations = false)]
async fn digest_prints_one_line_or_json(pool: PgPool) {
    let scene = synced(pool).await;
    assert_eq!(print(&scene).await.split(' ').next(), Some("1"), "nothing has happened yet");
    scene.run().await;
    let json: Value = serde_json::from_str(&output_of(&scene, 0, &["digest", "--json"]).await).unwrap();
    let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["at", "entities", "previous", "print_id", "root", "system_identifier"]);
    assert_eq!(
        (json["print_id"].as_i64(), json["entities"][1]["entity_id"].as_str()),
        (Some(2), Some("acme"))
    );
    let head =
        "select links || ' ' || encode(head, 'hex') from elven_sync.sync_state where entity_id = 'acme'";
    let shown =
        format!("{} {}", json["entities"][1]["links"], json["entities"][1]["digest"].as_str().unwrap());
    assert_eq!(shown, scene.text(head).await);
    // Each print commits to those before it.
    let third = print(&scene).await;
    let previous = "select encode(previous, 'hex') from elven_sync.sync_prints where print_id = 3";
    assert_eq!(scene.text(previous).await, json["root"].as_str().unwrap());
    verify_against(&scene, &format!("{json}\n{third}\n"), 0).await;
}

#[sqlx::test(migrations = false)]
async fn verify_takes_lines_of_logs_and_refuses_other_files(pool: PgPool) {
    let scene = synced(pool).await;
    let run = output_of(&scene, 0, &["run"]).await;
    let said = verify_against(&scene, &run, 0).await;
    assert!(said.contains("the journal extends print 1"), "{said}");
    let root = "0".repeat(64);
    let other = verify_against(&scene, &format!("1 {root}"), 3).await;
    assert!(other.contains("print 1 has the root") && other.contains(&root), "{other}");
    let unknown = verify_against(&scene, &format!("99 {root}"), 3).await;
    assert!(unknown.contains("print 99 is not in sync_prints"), "{unknown}");
    let none = verify_against(&scene, "nothing here", 1).await;
    assert!(none.contains("-print.txt has no print") && none.contains("elven-sync digest"), "{none}");
    let missing = output_of(&scene, 1, &["verify", "--against", "/no/such/file"]).await;
    assert!(missing.contains("/no/such/file could not be read"), "{missing}");
}

/// What is pruned cannot be shown with an older print; a print that was made after that proves the rest.
#[sqlx::test(migrations = false)]
async fn print_from_before_a_prune_says_what_cannot_be_shown(pool: PgPool) {
    let scene = synced(pool).await;
    scene.run().await;
    let first = print(&scene).await;
    for _ in 0..3 {
        add_minutes(&scene, "acme", 3).await;
        scene.run().await;
    }
    output_of(&scene, 0, &["verify"]).await;
    output_of(&scene, 0, &["prune", "--older-than", "0s"]).await;
    output_of(&scene, 0, &["verify"]).await;
    let said = verify_against(&scene, &first, 3).await;
    assert!(said.contains("print 2 covers links 1 to 1") && said.contains("elven-sync prune"), "{said}");
    let second = print(&scene).await;
    add_minutes(&scene, "acme", 3).await;
    scene.run().await;
    verify_against(&scene, &second, 0).await;
    let kept = "select string_agg(link::text, ' ' order by link) from elven_sync.sync_links where entity_id = 'acme'";
    assert_eq!(
        scene.text(kept).await,
        "1 3 4 5",
        "the one of a print, the last one that is folded, and the later ones"
    );
}
