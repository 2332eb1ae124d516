//! What people type, through a pooler.

use sqlx::{Connection, Executor, PgConnection, PgPool};

use super::sessions::assert_no_trace;
use super::{database, enter, scene_behind};
use crate::support::{said, stderr};

#[sqlx::test(migrations = false)]
async fn two_migrations_at_once_make_one_schema(pool: PgPool) {
    let (scene, pooler) = scene_behind(pool, "").await;
    let shape = "select string_agg(oid::regclass || ' ' || relkind::text, ',' order by oid::regclass::text) from pg_class
                  where relnamespace in ('ledger'::regnamespace, 'elven_sync'::regnamespace)";
    let before = scene.text(shape).await;
    scene.sql("drop schema ledger, elven_sync cascade").await;
    let migrate = ["migrate", "--with-ledger"];
    let (first, second) = tokio::join!(scene.output(&migrate), scene.output(&migrate));
    for output in [first, second] {
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_eq!(scene.text(shape).await, before);
    said(&scene, 0, &migrate).await;
    assert_no_trace(&scene, &pooler).await;
    said(&scene, 0, &["entity", "add", "acme", "--timezone", "UTC"]).await;
    assert!(said(&scene, 0, &["run"]).await.contains("acme"));
}

#[sqlx::test(migrations = false)]
async fn every_command_works(pool: PgPool) {
    let (mut scene, pooler) = scene_behind(pool, "").await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    enter(&scene, 2, 20).await;
    scene.sandbox.set_rules(vec!["reject:account=e1-3".parse().unwrap()]);
    said(&scene, 0, &["entity", "add", "late", "--timezone", "Asia/Tokyo", "--from-now"]).await;
    assert!(said(&scene, 0, &["run", "--dry-run"]).await.contains("e2"));
    said(&scene, 3, &["run"]).await;
    let status: serde_json::Value =
        serde_json::from_str(&said(&scene, 3, &["status", "--json"]).await).unwrap();
    assert_eq!(status["entities"].as_array().unwrap().len(), 3, "{status}");
    assert!(said(&scene, 0, &["errors", "list"]).await.contains("rejected_row"));
    assert!(said(&scene, 0, &["errors", "show", "1"]).await.contains("e1-3"));
    said(&scene, 3, &["errors", "retry"]).await;
    said(&scene, 0, &["errors", "resolve", "1", "--reason", "closed"]).await;
    assert!(said(&scene, 0, &["errors", "list"]).await.contains("no error is open"));
    assert!(said(&scene, 0, &["entity", "rewind", "e2", "--yes"]).await.contains("20 rows"));
    said(&scene, 0, &["entity", "rebind", "--all"]).await;
    said(&scene, 0, &["entity", "pause", "e1"]).await;
    said(&scene, 0, &["run"]).await;
    said(&scene, 0, &["entity", "resume", "e1"]).await;
    let range = ["backfill", "--from", "1990-01-01", "--to", "2090-01-01"];
    assert!(said(&scene, 0, &[&range[..], &["--dry-run"]].concat()).await.contains("40 rows"));
    assert!(said(&scene, 3, &range).await.contains("39 uploaded, 1 set aside"));
    assert!(said(&scene, 0, &["backfill", "list"]).await.contains("incomplete"));
    said(&scene, 1, &["backfill", "cancel", "7"]).await;
    assert!(said(&scene, 0, &["entity", "list"]).await.contains("Asia/Tokyo"));
    let uploaded = "select string_agg(entity_id || ' ' || rows_uploaded, ',' order by entity_id) from elven_sync.sync_state";
    assert_eq!(scene.text(uploaded).await, "e1 38,e2 60,late 0");
    assert!(said(&scene, 0, &["verify", "--deep"]).await.contains("proven: for 3 of 3 entities"));
    said(&scene, 0, &["status", "--row", "1"]).await;
    said(&scene, 0, &["prune", "--older-than", "0s"]).await;
    assert!(said(&scene, 0, &["verify"]).await.contains("the pruned part of the journal"));
    assert_no_trace(&scene, &pooler).await;
}

/// An index that is built while writers go on takes no transaction, and no setting of a session reaches it.
#[sqlx::test(migrations = false)]
async fn a_table_is_attached_and_taken_back(pool: PgPool) {
    let (mut scene, pooler) = scene_behind(pool, "").await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "create schema books;
             create table books.balances (id bigint primary key, entity_id text, entity_account_id text not null,
                    currency text not null, captured_at timestamptz not null, balance numeric not null);
             insert into books.balances select n, 'acme', 'a' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 100) n",
        )
        .await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.balances");
    let mut reader = PgConnection::connect(&scene.url).await.unwrap();
    reader
        .execute("set application_name = 'the report'; begin; select count(*) from books.balances")
        .await
        .unwrap();
    let refused = tokio::time::timeout(
        std::time::Duration::from_secs(20),
        said(&scene, 1, &["attach", "--lock-timeout", "50ms"]),
    );
    let refused = refused.await.unwrap();
    assert!(refused.contains("the report") && refused.contains("--lock-timeout"), "{refused}");
    reader.execute("rollback").await.unwrap();
    assert_no_trace(&scene, &pooler).await;

    assert!(said(&scene, 0, &["attach", "--dry-run"]).await.contains("create index concurrently"));
    said(&scene, 0, &["attach", "--backfill-index"]).await;
    assert!(said(&scene, 0, &["attach", "--backfill-index"]).await.contains("nothing to do"));
    assert_no_trace(&scene, &pooler).await;
    let indexes =
        "select count(*)::text from pg_index where indrelid = 'books.balances'::regclass and indisvalid";
    assert_eq!(scene.text(indexes).await, "3");
    assert_eq!(scene.run().await.counters.rows_uploaded, 100);
    said(&scene, 0, &["attach", "--undo"]).await;
    assert_eq!(scene.text(indexes).await, "1");
    assert_no_trace(&scene, &pooler).await;
}

/// Statements of this database are cut short. An index that is built while writers go on waits for them, takes
/// no transaction, and so has no setting of its own behind a pooler: attaching says what cut it, and goes on there.
#[sqlx::test(migrations = false)]
async fn an_index_that_was_cut_short_is_built_again(pool: PgPool) {
    sqlx::raw_sql(
        "do $$ begin execute format('alter database %I set statement_timeout = 300', current_database()); end $$",
    )
    .execute(&pool)
    .await
    .unwrap();
    let (mut scene, pooler) = scene_behind(pool, "").await;
    scene
        .sql(
            "create schema books;
             create table books.balances (id bigint primary key, entity_id text, entity_account_id text not null,
                    currency text not null, captured_at timestamptz not null, balance numeric not null);
             insert into books.balances select n, 'acme', 'a' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 100) n",
        )
        .await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.balances");
    // Another snapshot that the last phase of the build has to wait for, and that keeps nobody from the table.
    let mut reader = PgConnection::connect(&scene.url).await.unwrap();
    reader
        .execute("set statement_timeout = 0; begin isolation level repeatable read; select 1 from pg_class")
        .await
        .unwrap();
    let attach = scene.command(&["attach"]).spawn().unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    reader.execute("commit").await.unwrap();
    let output = attach.wait_with_output().await.unwrap();
    assert!(output.status.success() || stderr(&output).contains("statement timeout"), "{}", stderr(&output));
    said(&scene, 0, &["attach"]).await;
    let indexes =
        "select string_agg(indisvalid::text, ',') from pg_index where indrelid = 'books.balances'::regclass";
    assert_eq!(scene.text(indexes).await, "true,true");
    let timeouts = pooler.ask_each(&database(&scene), "select current_setting('statement_timeout')").await;
    assert!(timeouts.iter().all(|timeout| timeout == "300ms"), "{timeouts:?}");
}
