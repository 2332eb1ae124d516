//! The configuration is read again for each run and on SIGHUP; one with a mistake is not used.

use std::time::Duration;

use nix::sys::signal::Signal;
use sqlx::PgPool;
use tempfile::TempDir;

use super::{Service, add_row, arrives};
use crate::support::{TestEnv, assert_stays, eventually};

/// A scene whose configuration is in a file that the test changes.
async fn scene_with_file(pool: PgPool) -> (TestEnv, TempDir) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let folder = tempfile::tempdir().unwrap();
    configure(&folder, "");
    scene.set("ELVEN_SYNC_CONFIG", folder.path().join("c.toml").to_str().unwrap());
    (scene, folder)
}

fn configure(folder: &TempDir, text: &str) {
    std::fs::write(folder.path().join("c.toml"), text).unwrap();
}

async fn add_two(scene: &TestEnv, name: &str) {
    add_row(scene, &format!("{name}1")).await;
    add_row(scene, &format!("{name}2")).await;
}

/// The number of records of the newest batch.
const ROWS: &str = "select row_count::text from elven_sync.sync_batches order by batch_id desc limit 1";
const ALERTS: &str = "select count(*)::text from elven_sync.alerts where name = 'ConfigBroken'";
const VALID: &str = "elven_sync_process_configuration_valid";

#[sqlx::test(migrations = false)]
async fn sighup_reads_configuration_and_entities_again_at_once(pool: PgPool) {
    let (scene, folder) = scene_with_file(pool).await;
    let service = Service::start(&scene, &["--every", "1h"]).await;
    service.answers("/readyz", 200).await;
    configure(&folder, "[sync]\nbatch_rows = 1\n");
    add_two(&scene, "a").await;
    let is_idle = async || scene.received().is_empty();
    assert_stays("the next run is an hour away", Duration::from_secs(1), is_idle).await;
    service.signal(Signal::SIGHUP);
    arrives(&scene, &service, "a2").await;
    assert_eq!(scene.text(ROWS).await, "1", "the new configuration is in use");
    assert_eq!(service.value(VALID).await.as_deref(), Some("1"));
    service.logs("the configuration was read again").await;
    service.stop().await;
}

#[sqlx::test(migrations = false)]
async fn a_configuration_with_a_mistake_is_not_used(pool: PgPool) {
    let (scene, folder) = scene_with_file(pool).await;
    configure(&folder, "[sync]\nbatch_rows = 1\n");
    let mut service = Service::start(&scene, &["--every", "1h"]).await;
    service.answers("/readyz", 200).await;
    configure(&folder, "[sync]\nbatch_rows = 5000 # secret-7f3a\n");
    add_two(&scene, "a").await;
    service.signal(Signal::SIGHUP);
    service.logs("the configuration has a mistake, so the one before stays in use").await;
    arrives(&scene, &service, "a2").await;
    assert_eq!(scene.text(ROWS).await, "1", "the old configuration is in use");
    assert!(service.runs());
    assert_eq!(service.value(VALID).await.as_deref(), Some("0"));
    assert_eq!(service.get("/readyz").await.status, 200);
    eventually("the alert begins", async || scene.text(ALERTS).await == "1").await;
    let alert = scene.text("select message from elven_sync.alerts where name = 'ConfigBroken'").await;
    assert!(alert.contains("batch_rows = 5000") && !alert.contains("7f3a"), "{alert}");
    let metric = "elven_sync_alerts{name=\"ConfigBroken\",severity=\"warning\"}";
    eventually("its metric", async || service.value(metric).await.as_deref() == Some("1")).await;
    assert!(!service.log().contains("7f3a"), "the line may hold a secret: {}", service.log());
    configure(&folder, "[sync]\nbatch_rows = 2\n");
    add_two(&scene, "b").await;
    service.signal(Signal::SIGHUP);
    arrives(&scene, &service, "b2").await;
    assert_eq!(scene.text(ROWS).await, "2", "the repaired configuration is in use");
    assert_eq!(service.value(VALID).await.as_deref(), Some("1"));
    eventually("the alert ends", async || scene.text(ALERTS).await == "0").await;
    service.stop().await;
    // The process that recorded a mistake is gone.
    scene.sql("update elven_sync.sync_facts set value = '{\"ok\": false}' where name = 'config'").await;
    let service = Service::start(&scene, &["--every", "1h"]).await;
    eventually("the next process ends the alert", async || scene.text(ALERTS).await == "0").await;
    service.stop().await;
}

/// Without a signal, the next run uses the new file. A mistake is logged once, and not with each run.
#[sqlx::test(migrations = false)]
async fn each_run_reads_the_configuration_again(pool: PgPool) {
    let (scene, folder) = scene_with_file(pool).await;
    let service = Service::start(&scene, &["--every", "1s"]).await;
    service.answers("/readyz", 200).await;
    configure(&folder, "[sync]\nbatch_row = 1\n");
    service.logs("the configuration has a mistake").await;
    add_two(&scene, "a").await;
    arrives(&scene, &service, "a2").await;
    add_row(&scene, "b").await;
    arrives(&scene, &service, "b").await;
    assert_eq!(service.log().matches("the configuration has a mistake").count(), 1);
    configure(&folder, "[sync]\nbatch_rows = 1\n");
    service.logs("the configuration was read again").await;
    add_two(&scene, "c").await;
    arrives(&scene, &service, "c2").await;
    assert_eq!(scene.text(ROWS).await, "1");
    service.stop().await;
}

/// The key and the secret are read again from their files, and the database from its file.
#[sqlx::test(migrations = false)]
async fn files_of_credentials_and_of_the_address_work(pool: PgPool) {
    let (mut scene, folder) = scene_with_file(pool).await;
    for (variable, value) in [
        ("DATABASE_URL", scene.url.clone()),
        ("ELVEN_API_KEY", crate::support::KEY.to_owned()),
        ("ELVEN_API_SECRET", crate::support::SECRET.to_owned()),
    ] {
        let path = folder.path().join(variable);
        std::fs::write(&path, value).unwrap();
        scene.unset(variable);
        scene.set(&format!("{variable}_FILE"), path.to_str().unwrap());
    }
    std::fs::write(folder.path().join("ELVEN_API_KEY"), "key-2").unwrap();
    std::fs::write(folder.path().join("ELVEN_API_SECRET"), "wrong").unwrap();
    add_row(&scene, "a").await;
    let service = Service::start(&scene, &["--every", "1s"]).await;
    service.logs("entity acme failed: ").await;
    std::fs::write(folder.path().join("ELVEN_API_SECRET"), "secret-2").unwrap();
    arrives(&scene, &service, "a").await;
    // The connection that works stays in use, whatever is in the file.
    let (url, path) = (scene.url.clone(), folder.path().join("DATABASE_URL"));
    for (account, text) in [("b", Some("mysql://u:s3cret@host/x")), ("c", Some("")), ("d", None)] {
        match text {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        eventually(account, async || service.value(VALID).await.as_deref() == Some("0")).await;
        eventually("the alert begins", async || scene.text(ALERTS).await == "1").await;
        add_row(&scene, account).await;
        arrives(&scene, &service, account).await;
        std::fs::write(&path, &url).unwrap();
        eventually(account, async || service.value(VALID).await.as_deref() == Some("1")).await;
        eventually("the alert ends", async || scene.text(ALERTS).await == "0").await;
    }
    let log = service.log();
    assert!(!log.contains("s3cret") && !log.contains("could not begin"), "{log}");
    service.stop().await;
}

/// A file that is written anew is empty for a moment, and the defaults may mean another ledger.
#[sqlx::test(migrations = false)]
async fn a_configuration_file_that_is_emptied_or_removed_is_a_mistake(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("elven-sync.toml");
    for is_named in [true, false] {
        std::fs::write(&file, "[sync]\nbatch_rows = 1\n").unwrap();
        if is_named {
            scene.set("ELVEN_SYNC_CONFIG", file.to_str().unwrap());
        } else {
            scene.unset("ELVEN_SYNC_CONFIG");
        }
        let service = Service::start_in(&scene, folder.path(), "127.0.0.1:0", &["--every", "1h"]).await;
        service.answers("/readyz", 200).await;
        for text in [Some(""), Some("# [sync]\n"), None] {
            match text {
                Some(text) => std::fs::write(&file, text).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            let name = format!("{is_named}{text:?}");
            add_two(&scene, &name).await;
            service.signal(Signal::SIGHUP);
            arrives(&scene, &service, &format!("{name}2")).await;
            assert_eq!(scene.text(ROWS).await, "1", "{name}: the old configuration is in use");
            assert_eq!(service.value(VALID).await.as_deref(), Some("0"), "{name}");
            eventually("the alert begins", async || scene.text(ALERTS).await == "1").await;
        }
        assert!(service.log().contains("was in use, and has no settings any more"), "{}", service.log());
        std::fs::write(&file, "[sync]\nbatch_rows = 2\n").unwrap();
        add_two(&scene, &format!("{is_named}")).await;
        service.signal(Signal::SIGHUP);
        arrives(&scene, &service, &format!("{is_named}2")).await;
        assert_eq!(scene.text(ROWS).await, "2", "the repaired configuration is in use");
        eventually("the alert ends", async || scene.text(ALERTS).await == "0").await;
        service.stop().await;
    }
}
