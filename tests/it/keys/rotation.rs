//! Keys and secrets that are replaced while a run uses them, and keys in a form that no API accepts.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use elven_sync::journal::RunStatus;
use sqlx::PgPool;
use tempfile::TempDir;

use super::{add, assert_all_is_well, good, scene};
use crate::stub::{Stub, StubResponse, respond};
use crate::support::{TestEnv, output_of, stderr};

/// A connector that reads key and secret from files, with one attempt per batch and one row per batch.
struct Rotation {
    scene: TestEnv,
    key: PathBuf,
    secret: PathBuf,
    _files: TempDir,
}

async fn rotation(pool: PgPool) -> Rotation {
    let mut scene = scene(pool).await;
    let files = tempfile::tempdir().unwrap();
    let (key, secret) = (files.path().join("key"), files.path().join("secret"));
    std::fs::write(&key, "key-1").unwrap();
    std::fs::write(&secret, "secret-1").unwrap();
    for (name, path) in [("ELVEN_API_KEY", &key), ("ELVEN_API_SECRET", &secret)] {
        scene.unset(name);
        scene.set(&format!("{name}_FILE"), path.to_str().unwrap());
    }
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    Rotation { scene, key, secret, _files: files }
}

/// Asserts that each of the accounts `a1`, `a2`, ... was accepted once, and that the journal says the same.
async fn assert_each_row_once(scene: &TestEnv, stub: &Stub, rows: usize) {
    let accounts: BTreeSet<String> = stub.accepted().into_iter().map(|(account, _)| account).collect();
    assert_eq!((stub.accepted().len(), accounts.len()), (rows, rows), "each row once");
    assert_all_is_well(scene).await;
}

/// The file of the key is replaced before that of the secret, and a request in between reads both.
#[sqlx::test(migrations = false)]
async fn key_replaced_before_its_secret_is_read_once_more(pool: PgPool) {
    let Rotation { mut scene, key, secret, _files } = rotation(pool).await;
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    add(&scene, &good(12)).await;
    let is_complete = AtomicBool::new(false);
    let stub = Stub::of(&mut scene, move |asked| {
        if asked.key != "key-2" {
            std::fs::write(&key, "key-2").unwrap();
            return StubResponse { after: Duration::from_millis(50), ..respond(401) };
        }
        // The stub does not check signatures: the first request with the new key has the old secret.
        if !is_complete.swap(true, Ordering::Relaxed) {
            std::fs::write(&secret, "secret-2").unwrap();
            return respond(401);
        }
        respond(200)
    })
    .await;
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_each_row_once(&scene, &stub, 12).await;
}

#[sqlx::test(migrations = false)]
async fn key_replaced_twice_in_a_run_is_read_again_twice(pool: PgPool) {
    let Rotation { mut scene, key, secret: _, _files } = rotation(pool).await;
    add(&scene, &good(30)).await;
    let accepted = std::sync::Mutex::new(0);
    let stub = Stub::of(&mut scene, move |asked| {
        let mut accepted = accepted.lock().unwrap();
        let valid = if *accepted < 10 {
            "key-1"
        } else if *accepted < 20 {
            "key-2"
        } else {
            "key-3"
        };
        if asked.key == valid {
            *accepted += 1;
            return respond(200);
        }
        std::fs::write(&key, valid).unwrap();
        respond(401)
    })
    .await;
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let read_again = stderr(&output).matches("the new key from its file is used").count();
    assert_eq!(read_again, 2, "{}", stderr(&output));
    assert_each_row_once(&scene, &stub, 30).await;
}

/// The run stops and says why, and the next run continues with the right file.
#[sqlx::test(migrations = false)]
async fn unusable_new_key_is_named_and_nothing_is_lost(pool: PgPool) {
    let Rotation { mut scene, key, secret: _, _files } = rotation(pool).await;
    add(&scene, &good(12)).await;
    let file = key.clone();
    let stub = Stub::of(&mut scene, move |asked| {
        if asked.key == "key-2" {
            return respond(200);
        }
        std::fs::write(&file, "\"key-2\"").unwrap();
        respond(401)
    })
    .await;
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let said = stderr(&output).matches("is in quotation marks").count();
    assert_eq!(said, 1, "{}", stderr(&output));
    assert!(!stderr(&output).contains("key-2"), "{}", stderr(&output));
    std::fs::write(&key, "key-2").unwrap();
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_each_row_once(&scene, &stub, 12).await;
}

/// As files for environment variables have them that no shell reads.
#[sqlx::test(migrations = false)]
async fn secret_in_quotation_marks_is_refused_by_name_and_not_sent(pool: PgPool) {
    let mut scene = scene(pool).await;
    add(&scene, &good(2)).await;
    let stub = Stub::of(&mut scene, |_| respond(401)).await;
    scene.set("ELVEN_API_SECRET", "\"s3cret-91cd\"");
    let refused = output_of(&scene, 1, &["run"]).await;
    assert!(refused.contains("the secret of credential `default` is in quotation marks"), "{refused}");
    assert!(
        refused.contains("environment variable ELVEN_API_SECRET") && refused.contains("hint:"),
        "{refused}"
    );
    assert!(!refused.contains("s3cret"), "{refused}");

    // One of two credentials: its entity fails, and the other one is uploaded.
    scene.set("ELVEN_API_SECRET", "s3cret-91cd");
    scene.set("ELVEN_SYNC_CREDENTIALS__SECOND__KEY_ENV", "SECOND_KEY");
    scene.set("ELVEN_SYNC_CREDENTIALS__SECOND__SECRET_ENV", "SECOND_SECRET");
    scene.set("SECOND_KEY", "'key-2'");
    scene.set("SECOND_SECRET", "secret-2");
    scene.entity("other", "UTC").await;
    scene.sql("update elven_sync.entities set credential = 'second' where entity_id = 'other'").await;
    stub.answer(|_| respond(200));
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    let recorded = "select kind || ': ' || message from elven_sync.sync_errors where resolved_at is null";
    let recorded = scene.text(recorded).await;
    assert!(
        recorded.starts_with("config: the key of credential `second` is in quotation marks"),
        "{recorded}"
    );
    assert!(recorded.contains("environment variable SECOND_KEY"), "{recorded}");
    assert_eq!((stub.requests().len(), stub.accepted().len()), (1, 2), "nothing was sent with a quoted key");
}
