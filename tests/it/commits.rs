//! `sync_commits` is emptied in steps during runs, and abandoned statements end on the server.

use std::time::{Duration, Instant};

use elven_sync::database::Database;
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, PgPool};

use crate::support::{TestEnv, eventually, output_of, stderr};

/// Creates an environment with old rows of dead processes. With this `work_mem` no hash table can hold them.
async fn scene_with_old_commits(pool: PgPool, rows: i32) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "3s");
    scene.entity("acme", "UTC").await;
    scene.sql("do $$ begin execute format('alter database %I set work_mem = ''64kB''', current_database()); end $$").await;
    let insert = format!(
        "insert into elven_sync.sync_commits (process, number, begun_at)
         select n % 3, n, now() - interval '10 hours' from generate_series(1, {rows}) n;
         analyze elven_sync.sync_commits"
    );
    sqlx::raw_sql(AssertSqlSafe(insert)).execute(&scene.pool).await.unwrap();
    scene
}

const OLD: &str =
    "select count(*)::text from elven_sync.sync_commits where begun_at < now() - interval '3 hours'";
/// The number of backends of the connector in the middle of a statement.
const AT_WORK: &str = "select count(*)::text from pg_stat_activity
    where datname = current_database() and application_name like 'elven-sync%' and state = 'active'";

#[sqlx::test(migrations = false)]
async fn many_old_commit_records_are_removed_in_steps(pool: PgPool) {
    let scene = scene_with_old_commits(pool, 60_000).await;
    let since = Instant::now();
    for _ in 0..2 {
        let output = scene.output(&["run"]).await;
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(!stderr(&output).contains("in trouble"), "{}", stderr(&output));
    }
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    assert_eq!(scene.text(OLD).await, "0");
    assert_eq!(
        scene.text("select string_agg(distinct status, ',') from elven_sync.sync_runs").await,
        "succeeded"
    );
    eventually("no backend goes on", async || scene.text(AT_WORK).await == "0").await;
}

/// A process may still look up what it left an hour ago.
#[sqlx::test(migrations = false)]
async fn commit_records_of_live_processes_are_kept(pool: PgPool) {
    let scene = scene_with_old_commits(pool, 10).await;
    scene
        .sql(
            "insert into elven_sync.sync_commits (process, number, begun_at)
              select 7, n, now() - interval '1 hour' from generate_series(1, 20000) n",
        )
        .await;
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(0));
    assert_eq!(scene.text(OLD).await, "0");
    assert_eq!(
        scene.text("select count(*)::text from elven_sync.sync_commits where process = 7").await,
        "20000"
    );
}

/// The transactions of a long run leave only a few rows, whatever their number.
#[sqlx::test(migrations = false)]
async fn commit_records_of_a_long_run_are_removed_meanwhile(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'a', 'BTC', '2024-01-01Z', 1)",
        )
        .await;
    let before = scene.text("select count(*)::text from elven_sync.sync_commits").await;
    // Its heartbeats are transactions, some in each second.
    let (child, gate) = scene.held_run().await;
    let few = "select (max(number) >= 12 and count(*) <= 6)::text from elven_sync.sync_commits";
    eventually("most rows are gone before the run ends", async || scene.text(few).await == "true").await;
    gate.open();
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(0));
    let after = scene.text("select count(*)::text from elven_sync.sync_commits").await;
    assert_eq!(after, before, "a run leaves none");
}

#[sqlx::test(migrations = false)]
async fn several_processes_clean_up_commit_records_concurrently(pool: PgPool) {
    let scene = scene_with_old_commits(pool, 30_000).await;
    for entity_id in ["b", "c", "d"] {
        scene.entity(entity_id, "UTC").await;
    }
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select e, 'a' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 50) n, unnest('{acme,b,c,d}'::text[]) e",
        )
        .await;
    let from_to = ["--from", "2024-01-01", "--to", "2024-01-02"];
    let backfill = [&["backfill"], &from_to[..]].concat();
    let outputs = tokio::join!(
        scene.output(&["run"]),
        scene.output(&["run"]),
        scene.output(&["run"]),
        scene.output(&backfill),
        scene.output(&["prune", "--older-than", "1d"]),
        scene.output(&["entity", "add", "e", "--timezone", "UTC"]),
    );
    for output in [outputs.0, outputs.1, outputs.2, outputs.3, outputs.4, outputs.5] {
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(!stderr(&output).contains("in trouble"), "{}", stderr(&output));
    }
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(OLD).await, "0");
}

/// A clean-up that fails does not fail the run.
#[sqlx::test(migrations = false)]
async fn a_clean_up_that_fails_does_not_fail_the_run(pool: PgPool) {
    let scene = scene_with_old_commits(pool, 10).await;
    scene
        .sql(
            "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'not now'; end $$;
             create trigger refuse before delete on elven_sync.sync_commits for each row execute function refuse()",
        )
        .await;
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("not now"), "it is said: {}", stderr(&output));
    assert_eq!(scene.text(OLD).await, "10");
}

/// The limit for a write is a third of `reconnect_timeout`, at least a second, and for a read ten times that.
#[sqlx::test(migrations = false)]
async fn abandoned_statement_also_ends_on_the_server(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let url = SecretString::from(scene.url.clone());
    let database = Database::connect(&url, 4, Duration::from_millis(300)).await.unwrap();
    let asleep = "select count(*)::text from pg_stat_activity
                   where datname = current_database() and query like '%pg_sleep%' and state = 'active' and pid <> pg_backend_pid()";
    for how in ["a write", "a read", "a read in one message"] {
        let sleep = "select from pg_sleep(90)";
        let given_up = match how {
            "a write" => database.execute(|| sqlx::query(sleep)).await.is_err(),
            "a read" => {
                let mut transaction = database.begin_reading().await.unwrap();
                sqlx::query(sleep).execute(&mut transaction).await.is_err()
            }
            _ => sqlx::query(sleep).execute(database.single_round_trip()).await.is_err(),
        };
        assert!(given_up, "{how}");
        eventually("nothing of it goes on", async || scene.text(asleep).await == "0").await;
    }
}

/// A shorter limit of the role or the database is kept.
#[sqlx::test(migrations = false)]
async fn shorter_statement_timeout_of_the_database_is_kept(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.sql("do $$ begin execute format('alter database %I set statement_timeout = ''1500ms''', current_database()); end $$").await;
    let url = SecretString::from(scene.url.clone());
    let database = Database::connect(&url, 4, Duration::from_mins(1)).await.unwrap();
    let shown = async |mut transaction: elven_sync::database::Transaction| -> String {
        sqlx::query_scalar("select current_setting('statement_timeout')")
            .fetch_one(&mut transaction)
            .await
            .unwrap()
    };
    assert_eq!(shown(database.begin().await.unwrap()).await, "1500ms");
    assert_eq!(shown(database.begin_reading().await.unwrap()).await, "1500ms");
    assert_eq!(shown(database.begin_snapshot().await.unwrap()).await, "1500ms");
}
