//! The commands of people, through a pooler.

use sqlx::{Connection, Executor, PgConnection, PgPool};

use super::sessions::assert_no_trace;
use super::{database, enter, scene_behind};
use crate::support::{eventually, output_of, stderr};

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
    output_of(&scene, 0, &migrate).await;
    assert_no_trace(&scene, &pooler).await;
    output_of(&scene, 0, &["entity", "add", "acme", "--timezone", "UTC"]).await;
    assert!(output_of(&scene, 0, &["run"]).await.contains("acme"));
}

#[sqlx::test(migrations = false)]
async fn every_command_works(pool: PgPool) {
    let (mut scene, pooler) = scene_behind(pool, "").await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    enter(&scene, 2, 20).await;
    scene.sandbox.set_rules(vec!["reject:account=e1-3".parse().unwrap()]);
    output_of(&scene, 0, &["entity", "add", "late", "--timezone", "Asia/Tokyo", "--from-now"]).await;
    assert!(output_of(&scene, 0, &["run", "--dry-run"]).await.contains("e2"));
    output_of(&scene, 3, &["run"]).await;
    let status: serde_json::Value =
        serde_json::from_str(&output_of(&scene, 3, &["status", "--json"]).await).unwrap();
    assert_eq!(status["entities"].as_array().unwrap().len(), 3, "{status}");
    assert!(output_of(&scene, 0, &["errors", "list"]).await.contains("rejected_row"));
    assert!(output_of(&scene, 0, &["errors", "show", "1"]).await.contains("e1-3"));
    output_of(&scene, 3, &["errors", "retry"]).await;
    output_of(&scene, 0, &["errors", "resolve", "1", "--reason", "closed"]).await;
    assert!(output_of(&scene, 0, &["errors", "list"]).await.contains("no error is open"));
    assert!(output_of(&scene, 0, &["entity", "rewind", "e2", "--yes"]).await.contains("20 rows"));
    output_of(&scene, 0, &["entity", "rebind", "--all"]).await;
    output_of(&scene, 0, &["entity", "pause", "e1"]).await;
    output_of(&scene, 0, &["run"]).await;
    output_of(&scene, 0, &["entity", "resume", "e1"]).await;
    let range = ["backfill", "--from", "1990-01-01", "--to", "2090-01-01"];
    assert!(output_of(&scene, 0, &[&range[..], &["--dry-run"]].concat()).await.contains("40 rows"));
    assert!(output_of(&scene, 3, &range).await.contains("39 uploaded, 1 set aside"));
    assert!(output_of(&scene, 0, &["backfill", "list"]).await.contains("incomplete"));
    output_of(&scene, 1, &["backfill", "cancel", "7"]).await;
    assert!(output_of(&scene, 0, &["entity", "list"]).await.contains("Asia/Tokyo"));
    let uploaded = "select string_agg(entity_id || ' ' || rows_uploaded, ',' order by entity_id) from elven_sync.sync_state";
    assert_eq!(scene.text(uploaded).await, "e1 38,e2 60,late 0");
    assert!(output_of(&scene, 0, &["verify", "--deep"]).await.contains("proven: for 3 of 3 entities"));
    output_of(&scene, 0, &["status", "--row", "1"]).await;
    let checked = output_of(&scene, 0, &["check", "--only", "database", "--only", "ledger"]).await;
    assert!(checked.contains("each of 3 transactions had one server process"), "{checked}");
    // The sandbox knows every account, so it lists none.
    assert!(output_of(&scene, 3, &["reference", "pull"]).await.contains("currencies stored"));
    scene
        .sql(
            "insert into elven_sync.known_accounts
             select distinct on (entity_account_id) 'default', entity_account_id, null, now()
               from ledger.balance_snapshots order by entity_account_id limit 39",
        )
        .await;
    assert!(output_of(&scene, 0, &["reference", "accounts"]).await.contains("unknown to Elven: 1 of 40"));
    output_of(&scene, 0, &["prune", "--older-than", "0s"]).await;
    assert!(output_of(&scene, 0, &["verify"]).await.contains("the pruned part of the journal"));
    assert_no_trace(&scene, &pooler).await;
}

/// A concurrent index build cannot run in a transaction, so no setting of a session applies to it.
#[sqlx::test(migrations = false)]
async fn table_is_attached_and_detached(pool: PgPool) {
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
        output_of(&scene, 1, &["attach", "--lock-timeout", "50ms"]),
    );
    let refused = refused.await.unwrap();
    assert!(refused.contains("the report") && refused.contains("--lock-timeout"), "{refused}");
    reader.execute("rollback").await.unwrap();
    assert_no_trace(&scene, &pooler).await;

    assert!(output_of(&scene, 0, &["attach", "--dry-run"]).await.contains("create index concurrently"));
    output_of(&scene, 0, &["attach", "--backfill-index"]).await;
    assert!(output_of(&scene, 0, &["attach", "--backfill-index"]).await.contains("nothing to do"));
    assert_no_trace(&scene, &pooler).await;
    let indexes =
        "select count(*)::text from pg_index where indrelid = 'books.balances'::regclass and indisvalid";
    assert_eq!(scene.text(indexes).await, "3");
    assert_eq!(scene.run().await.counters.rows_uploaded, 100);
    output_of(&scene, 0, &["attach", "--undo"]).await;
    assert_eq!(scene.text(indexes).await, "1");
    assert_no_trace(&scene, &pooler).await;
}

/// This database has a short statement timeout. A concurrent index build waits for other transactions and has no
/// setting of its own behind a pooler. `attach` reports the timeout, and the next `attach` resumes.
#[sqlx::test(migrations = false)]
async fn interrupted_index_build_is_repeated(pool: PgPool) {
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
    // Another snapshot, for which the last phase of the build has to wait, and which locks nobody out of the table.
    let mut reader = PgConnection::connect(&scene.url).await.unwrap();
    reader
        .execute("set statement_timeout = 0; begin isolation level repeatable read; select 1 from pg_class")
        .await
        .unwrap();
    let mut attach = scene.command(&["attach"]).spawn().unwrap();
    let waits = "select count(*)::text from pg_stat_activity
                  where datname = current_database() and query ilike 'create index concurrently%' and state = 'active'
                    and clock_timestamp() - query_start > interval '1s'";
    let is_cut_or_waits = async || attach.try_wait().unwrap().is_some() || scene.text(waits).await == "1";
    eventually("the index build is cancelled, or waits for the reader", is_cut_or_waits).await;
    reader.execute("commit").await.unwrap();
    let output = attach.wait_with_output().await.unwrap();
    assert!(output.status.success() || stderr(&output).contains("statement timeout"), "{}", stderr(&output));
    output_of(&scene, 0, &["attach"]).await;
    let indexes =
        "select string_agg(indisvalid::text, ',') from pg_index where indrelid = 'books.balances'::regclass";
    assert_eq!(scene.text(indexes).await, "true,true");
    let timeouts = pooler.ask_each(&database(&scene), "select current_setting('statement_timeout')").await;
    assert!(timeouts.iter().all(|timeout| timeout == "300ms"), "{timeouts:?}");
}
