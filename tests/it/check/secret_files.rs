//! Files that are no regular files: pipes, folders, devices. Nothing waits for them for long.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use elven_sync::journal::RunStatus;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use sqlx::PgPool;
use tempfile::TempDir;

use super::{assert_found, synced};
use crate::support::{KEY, SECRET, TestEnv, output_of, stderr, stdout};

/// A pipe that nothing writes to.
fn pipe_in(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("pipe");
    mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
    path
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[sqlx::test(migrations = false)]
async fn a_configuration_file_that_gives_no_answer_is_named(pool: PgPool) {
    let mut scene = synced(pool).await;
    let folder = tempfile::tempdir().unwrap();
    let (pipe, large) = (pipe_in(&folder), folder.path().join("large"));
    fs::write(&large, "# comment\n".repeat(200_000)).unwrap();
    for (file, words) in [
        (name(&pipe), "pipe gave no answer within 5 s, because it is a pipe that nothing writes to"),
        (name(folder.path()), "it is a directory"),
        ("/dev/zero", "more than 1048576 bytes"),
        (name(&large), "more than 1048576 bytes"),
    ] {
        scene.set("ELVEN_SYNC_CONFIG", file);
        assert_found(&scene, "configuration.load", "failed", &[words]).await;
        let printed = output_of(&scene, 1, &["run"]).await;
        assert!(printed.contains(words), "{printed}");
    }
    scene.set("ELVEN_SYNC_CONFIG", "/dev/null");
    assert_found(&scene, "configuration.load", "ok", &[]).await;
}

/// One key file that gives no answer stops its entity, and not the others.
#[sqlx::test(migrations = false)]
async fn a_key_file_that_gives_no_answer_stops_its_entities_alone(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    let folder = tempfile::tempdir().unwrap();
    let pipe = pipe_in(&folder);
    scene.set("ELVEN_SYNC_CREDENTIALS__SECOND__KEY_FILE", name(&pipe));
    scene.set("ELVEN_SYNC_CREDENTIALS__SECOND__SECRET_ENV", "SECOND_SECRET");
    scene.set("SECOND_SECRET", "secret-2");
    for entity in ["acme", "beta", "gamma"] {
        scene.entity(entity, "UTC").await;
    }
    scene.sql("update elven_sync.entities set credential = 'second' where entity_id <> 'acme';
               insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('beta', 'b', 'BTC', '2024-01-01Z', 2)").await;
    let report = scene.run().await;
    assert_eq!((report.status, report.counters.rows_uploaded), (RunStatus::Incomplete, 1), "{report:?}");
    let failure = scene.text("select last_error from elven_sync.sync_state where entity_id = 'beta'").await;
    assert!(failure.contains("pipe gave no answer within 5 s"), "{failure}");
    assert_found(
        &scene,
        "configuration.secrets",
        "warning",
        &[
            "credential `second`",
            "gave no answer within 5 s",
            "; the entities of other credentials are uploaded all the same",
        ],
    )
    .await;
    fs::remove_file(&pipe).unwrap();
    fs::write(&pipe, "key-2\n").unwrap();
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(0));
    assert_eq!(scene.balances().len(), 2);
}

/// A shell's `<(pass show elven)` can be read only once, and a run and a check need the key more often.
#[sqlx::test(migrations = false)]
async fn a_key_may_come_from_a_process(pool: PgPool) {
    let mut scene = synced(pool).await;
    for variable in ["ELVEN_API_KEY", "ELVEN_API_SECRET"] {
        scene.unset(variable);
    }
    scene.sql("update ledger.balance_snapshots set balance = 8").await;
    for arguments in ["check --only configuration --only entities --only api", "run"] {
        let binary = env!("CARGO_BIN_EXE_elven-sync");
        let script = format!(
            "ELVEN_API_KEY_FILE=<(printf {KEY}) ELVEN_API_SECRET_FILE=<(printf {SECRET}) exec {binary} {arguments} \
             --config <(printf '[sync]\nbatch_rows = 7\n')"
        );
        let mut command = scene.program("bash", &["-c", &script]);
        let output = command.stderr(Stdio::piped()).output().await.unwrap();
        let said = format!("{}{}", stdout(&output), stderr(&output));
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(
            arguments == "run" || said.contains("1 key is accepted") && said.contains("batch_rows"),
            "{said}"
        );
    }
    assert_eq!(scene.balances().len(), 6);
}
