//! `audit --csv`: the files, their manifest, and what a failure leaves.

use std::process::Command;

use sqlx::PgPool;

use super::{Folder, audited, text_of};
use crate::hostile::is_harmful;
use crate::support::{TestEnv, eventually, output_of};

/// Text that a terminal or a table program obeys.
const HOSTILE: &str = "x\u{1b}[2J\n\"=cmd|'/c calc'!A1\",\u{202e}";

async fn scene(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', 'a' || n, 'BTC', '2024-01-05Z', n * 0.10 from generate_series(1, 30) n;
               insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'nan', 'BTC', '2024-01-05Z', 'NaN')").await;
    scene.run().await;
    scene
}

fn check(folder: &Folder) -> bool {
    let mut command = Command::new("sha256sum");
    command.args(["--check", "--strict", "manifest.sha256"]).current_dir(folder.path.path());
    command.output().unwrap().status.success()
}

#[sqlx::test(migrations = false)]
async fn files_and_their_manifest_are_whole(pool: PgPool) {
    let scene = scene(pool).await;
    let folder = Folder::of(&scene, 3, "2024-01-01", "2024-02-01").await;
    let mut names: Vec<String> = std::fs::read_dir(folder.path.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "actions.csv",
            "batches.csv",
            "exceptions.csv",
            "findings.csv",
            "manifest.sha256",
            "population.csv",
            "sent.csv",
            "summary.json",
            "summary.txt",
            "totals.csv",
        ]
    );
    assert_eq!(folder.text("manifest.sha256").lines().count(), names.len() - 1);
    assert!(check(&folder));
    let shown = folder.path.path().join("again");
    let shown = shown.to_str().unwrap();
    let said =
        output_of(&scene, 3, &["audit", "--from", "2024-01-01", "--to", "2024-02-01", "--csv", shown]).await;
    assert!(said.contains(&format!("\nhint: cd '{shown}' && sha256sum -c manifest.sha256\n")), "{said}");
    assert_eq!(folder.population().len(), 31);
    assert_eq!(folder.records("totals.csv").len(), 31);
    assert_eq!(folder.records("sent.csv").iter().filter(|total| total["evidence"] == "proven").count(), 30);
    let exceptions = folder.records("exceptions.csv");
    assert_eq!(
        (exceptions.len(), &*exceptions[0]["kind"], &*exceptions[0]["open_rows"]),
        (1, "invalid_row", "1")
    );
    assert_eq!(folder.records("batches.csv")[0]["body"], "proven");
    assert_eq!(folder.records("actions.csv")[0]["action"], "entity_add");
    let summary: serde_json::Value = serde_json::from_str(&folder.text("summary.json")).unwrap();
    let shown = audited(&scene, 3, "2024-01-01", "2024-02-01").await;
    assert_eq!(summary["entities"], shown["entities"]);
    let summary = folder.text("summary.txt");
    let first = "2024-01-01 to 2024-02-01 is NOT complete: 1 row set aside, of 31 rows, 30
  uploaded
";
    assert!(summary.starts_with(first), "{summary}");
    // An altered file is found.
    let population = folder.path.path().join("population.csv");
    std::fs::write(&population, folder.text("population.csv").replacen("0.1", "0.2", 1)).unwrap();
    assert!(!check(&folder));
}

#[sqlx::test(migrations = false)]
async fn folder_that_is_not_empty_is_refused(pool: PgPool) {
    let scene = scene(pool).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine"), "x").unwrap();
    let shown = folder.path().to_str().unwrap();
    let refused =
        output_of(&scene, 1, &["audit", "--from", "2024-01-01", "--to", "2024-02-01", "--csv", shown]).await;
    assert!(refused.contains("is not empty; hint: give a new folder"), "{refused}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let file = folder.path().join("mine");
    let shown = file.to_str().unwrap();
    let refused =
        output_of(&scene, 1, &["audit", "--from", "2024-01-01", "--to", "2024-02-01", "--csv", shown]).await;
    assert!(refused.contains("is no folder"), "{refused}");
}

/// An audit that cannot be made leaves neither a manifest nor other files, so that the folder can be given again.
#[sqlx::test(migrations = false)]
async fn failed_audit_leaves_no_manifest(pool: PgPool) {
    let scene = scene(pool).await;
    let folder = tempfile::tempdir().unwrap();
    let new = folder.path().join("march");
    let shown = new.to_str().unwrap();
    let wrong = ["audit", "--from", "2024-01-01", "--to", "2024-02-01", "--entity", "acne", "--csv", shown];
    let refused = output_of(&scene, 2, &wrong).await;
    assert!(refused.contains("did you mean `acme`"), "{refused}");
    assert!(!new.exists());
    scene.sql("alter table elven_sync.sync_errors rename to gone").await;
    output_of(&scene, 1, &["audit", "--from", "2024-01-01", "--to", "2024-02-01", "--csv", shown]).await;
    assert!(!new.exists());
}

/// Text from the ledger has no effect on a terminal or on the lines of a file.
#[sqlx::test(migrations = false)]
async fn hostile_names_stay_in_their_field(pool: PgPool) {
    let scene = scene(pool).await;
    sqlx::query(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         values ('acme', $1, 'BTC', '2024-01-05Z', 1)",
    )
    .bind(HOSTILE)
    .execute(&scene.pool)
    .await
    .unwrap();
    scene.run().await;
    sqlx::query("update elven_sync.sync_errors set message = $1, cause = $1")
        .bind(HOSTILE)
        .execute(&scene.pool)
        .await
        .unwrap();
    let text = text_of(&scene, 3, "2024-01-01", "2024-02-01").await;
    let json = output_of(&scene, 3, &["audit", "--from", "2024-01-01", "--to", "2024-02-01", "--json"]).await;
    for printed in [&text, &json] {
        assert!(!printed.contains(is_harmful), "{printed:?}");
    }
    let folder = Folder::of(&scene, 3, "2024-01-01", "2024-02-01").await;
    assert_eq!(folder.population().len(), 32);
    for name in ["population.csv", "totals.csv", "exceptions.csv", "summary.txt", "summary.json"] {
        assert!(!folder.text(name).contains(is_harmful), "{name}");
    }
}

/// A process that is killed while it writes leaves files without a manifest.
#[sqlx::test(migrations = false)]
async fn killed_audit_leaves_no_manifest(pool: PgPool) {
    let scene = scene(pool).await;
    let mut holder = scene.pool.begin().await.unwrap();
    // The audit has read the rows, and waits for the actions.
    sqlx::query("lock table elven_sync.sync_actions in access exclusive mode")
        .execute(&mut *holder)
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let shown = folder.path().to_str().unwrap();
    let arguments = ["audit", "--from", "2024-01-01", "--to", "2024-02-01", "--csv", shown];
    let mut child = scene.command(&arguments).spawn().unwrap();
    let waits = "select exists (select from pg_locks l join pg_stat_activity a using (pid)
                                 where not l.granted and a.datname = current_database())::text";
    eventually("the audit waits", async || scene.text(waits).await == "true").await;
    child.kill().await.unwrap();
    holder.rollback().await.unwrap();
    assert!(folder.path().join("population.csv").exists());
    assert!(!folder.path().join("manifest.sha256").exists());
}
