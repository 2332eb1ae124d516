//! The commands as people type them, with wrong input too.

use std::time::Duration;

use sqlx::PgPool;

use crate::support::{KEY, SECRET, TestEnv, stderr, stdout};

#[sqlx::test(migrations = false)]
async fn wrong_input_has_one_clear_message_and_changes_nothing(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01Z', 1)").await;
    // A run that cannot begin is recorded as failed, for those who monitor it.
    let before = "select concat_ws(' ', (select count(*) from elven_sync.sync_runs where status <> 'failed'),
                                        (select count(*) from elven_sync.entities),
                                        (select md5(string_agg(s::text, '')) from elven_sync.sync_state s))";
    let state = scene.text(before).await;
    let (url, api) = (scene.url.clone(), scene.sandbox.url());
    let nowhere = "postgres://postgres@127.0.0.1:1/nothing";
    for (name, value, arguments, code, expected) in [
        ("DATABASE_URL", "", &["run"][..], 1, "DATABASE_URL is not set"),
        ("DATABASE_URL", "not a url", &["run"], 1, "hint: check DATABASE_URL"),
        ("DATABASE_URL", nowhere, &["run"], 1, "hint: check DATABASE_URL"),
        ("ELVEN_API_KEY", "", &["run"], 1, "ELVEN_API_KEY is not set"),
        ("ELVEN_API_SECRET", "", &["run"], 1, "ELVEN_API_SECRET is not set"),
        ("ELVEN_API_URL", "http://openapi.elven.com", &["run"], 1, "use https"),
        ("ELVEN_SYNC_SYNC__BATCH_ROWS", "0", &["run"], 1, "batch_rows = 0"),
        ("ELVEN_SYNC_SYNC__BATCH_ROWS", "1001", &["run"], 1, "1 to 1000"),
        ("", "", &["run", "--entity", "acmee"], 1, "did you mean `acme`"),
        ("", "", &["entity", "pause", "nobody"], 1, "`nobody` is not registered"),
        ("", "", &["entity", "add", "x", "--timezone", "Europe/Zurch"], 1, "did you mean Europe/Zurich"),
        ("", "", &["entity", "add", "acme", "--timezone", "Europe/Zurich"], 1, "already registered"),
        ("", "", &["entity", "add", "x"], 2, "--timezone"),
        ("", "", &["runn"], 2, "run"),
        ("", "", &["--config", "/nonexistent.toml", "run"], 1, "/nonexistent.toml cannot be read"),
    ] {
        if !name.is_empty() {
            scene.set(name, value);
        }
        let output = scene.output(arguments).await;
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {name}={value}: {message}");
        assert!(message.contains(expected), "{arguments:?} {name}={value}: {message}");
        assert!(code == 2 || message.trim_end().lines().count() == 1, "one message: {message}");
        scene.unset("ELVEN_SYNC_SYNC__BATCH_ROWS");
        scene.set("DATABASE_URL", &url);
        scene.set("ELVEN_API_URL", &api);
        scene.set("ELVEN_API_KEY", KEY);
        scene.set("ELVEN_API_SECRET", SECRET);
    }
    assert_eq!(scene.text(before).await, state);
    assert_eq!(scene.sandbox.requests().len(), 0);
}

#[sqlx::test(migrations = false)]
async fn missing_migrations_are_reported(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.sql("drop schema elven_sync cascade").await;
    for arguments in [&["run"][..], &["status"], &["entity", "list"]] {
        let output = scene.output(arguments).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("run `elven-sync migrate`"), "{}", stderr(&output));
    }
}

#[sqlx::test(migrations = false)]
async fn a_dry_run_says_what_would_be_sent_and_changes_nothing(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', 'a' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 2500) n").await;
    let tables = "select md5(concat((select string_agg(s::text, '') from elven_sync.sync_state s),
                                    (select count(*) from elven_sync.sync_runs), (select count(*) from elven_sync.sync_batches),
                                    (select count(*) from elven_sync.sync_passes), (select count(*) from elven_sync.sync_errors)))";
    let before = scene.text(tables).await;
    let output = scene.output(&["run", "--dry-run", "--json"]).await;
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&report["rows_uploaded"], &report["requests"]), (&2500.into(), &3.into()));
    assert_eq!(scene.text(tables).await, before);
    assert_eq!(scene.sandbox.requests().len(), 0);
}

#[sqlx::test(migrations = false)]
async fn paused_entity_is_skipped_until_resumed(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    assert!(scene.output(&["entity", "add", "acme", "--timezone", "UTC"]).await.status.success());
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01Z', 1)").await;
    assert!(scene.output(&["entity", "pause", "acme"]).await.status.success());
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(0));
    assert!(stdout(&scene.output(&["status"]).await).contains("paused"));
    assert_eq!(scene.received().len(), 0);
    assert!(scene.output(&["entity", "resume", "acme"]).await.status.success());
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(0));
    assert_eq!(scene.received().len(), 1);
}

#[sqlx::test(migrations = false)]
async fn exit_code_follows_the_run_status(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(0));
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01Z', 'NaN')").await;
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(3), "a row was set aside in this run");
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(0), "an older error is still open");
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01Z', 1)").await;
    scene.set("ELVEN_API_SECRET", "wrong");
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(1), "every entity failed");
    let statuses = "select string_agg(status, ',' order by run_id) from elven_sync.sync_runs";
    assert_eq!(scene.text(statuses).await, "succeeded,incomplete,succeeded,failed");
}

#[sqlx::test(migrations = false)]
async fn run_of_one_entity_leaves_other_entities_pending(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.entity("beta", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('beta', 'b', 'BTC', '2024-01-01Z', 1)").await;
    assert_eq!(scene.output(&["run", "--entity", "beta"]).await.status.code(), Some(0));
    assert_eq!(scene.received(), ["b BTC 2024-01-01 00:00:00 1"]);
}

#[sqlx::test(migrations = false)]
async fn demo_shows_all_steps_and_drops_its_database(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let databases = "select string_agg(datname, ',' order by datname) from pg_database where datname like 'elven\\_sync\\_demo%'";
    let output = tokio::time::timeout(Duration::from_mins(1), scene.output(&["demo"])).await.unwrap();
    let (text, log) = (stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(0), "{text}{log}");
    for expected in ["late", "America/New_York", "sync_health"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert_eq!(scene.text(databases).await, "NULL");
}
