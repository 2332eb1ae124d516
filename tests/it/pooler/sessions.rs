//! Sessions behind a pooler: the connector neither needs one nor changes one.

use elven_sync::sandbox::Fault;
use sqlx::{Executor, PgPool, Row};

use super::{Pooler, READER, SERVER_CONNECTIONS, database, enter, scene_behind};
use crate::support::{TestEnv, stderr};

/// Settings of a session that were changed. `PgBouncer` itself carries some from client to client.
const CHANGED: &str = "select string_agg(name || ' = ' || setting, ', ' order by name) from pg_settings
     where source = 'session'
       and name not in ('client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings', 'application_name')";

/// Other state of a session: statements, locks, temporary tables, channels.
const KEPT: &str = "select concat_ws(', ',
       (select string_agg(statement, '; ') from pg_prepared_statements),
       (select string_agg(objid::text, '; ') from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
       (select string_agg(relname, '; ') from pg_class where relnamespace = pg_my_temp_schema()),
       (select string_agg(channel, '; ') from pg_listening_channels() channel))";

/// Asserts that the connector left no state in the connections that others will get.
pub(super) async fn assert_no_trace(scene: &TestEnv, pooler: &Pooler) {
    let nothing = vec![String::new(); SERVER_CONNECTIONS];
    for sql in [CHANGED, KEPT] {
        assert_eq!(pooler.ask_each(&database(scene), sql).await, nothing, "{sql}");
    }
}

/// The other tests would prove little if a client kept its server connection, or could keep state in it.
#[sqlx::test(migrations = false)]
async fn a_client_has_no_session_of_its_own(pool: PgPool) {
    let (scene, pooler) = scene_behind(pool, "").await;
    let mut client = pooler.connect(&database(&scene)).await;
    let mut servers = Vec::new();
    for _ in 0..SERVER_CONNECTIONS {
        let row = client.fetch_one(sqlx::raw_sql("select pg_backend_pid()")).await.unwrap();
        servers.push(row.get::<i32, _>(0));
    }
    servers.sort_unstable();
    servers.dedup();
    assert_eq!(servers.len(), SERVER_CONNECTIONS, "each transaction met another server connection");
    client.execute("set lock_timeout = '7s'").await.unwrap();
    let changed = pooler.ask_each(&database(&scene), CHANGED).await;
    assert_eq!(changed.iter().filter(|changed| *changed == "lock_timeout = 7000").count(), 1, "{changed:?}");
}

/// Durability of commits and visibility of rows are set in each transaction, whether the pooler refuses options of a
/// connection (its default) or drops them.
#[sqlx::test(migrations = false)]
async fn every_transaction_that_writes_is_durable(pool: PgPool) {
    for settings in ["", "ignore_startup_parameters = options, extra_float_digits"] {
        let again = "drop schema if exists ledger, elven_sync cascade; drop table if exists public.seen;
            do $$ begin execute format('alter database %I set synchronous_commit = off', current_database()); end $$";
        sqlx::raw_sql(again).execute(&pool).await.unwrap();
        let (scene, pooler) = scene_behind(pool.clone(), settings).await;
        let default =
            pooler.ask_each(&database(&scene), "select current_setting('synchronous_commit')").await;
        assert_eq!(default, ["off"; SERVER_CONNECTIONS], "the database's default");
        enter(&scene, 2, 20).await;
        scene
            .sql(
                "create table public.seen (place text, synchronous_commit text, unique (place, synchronous_commit));
                 create or replace function public.see() returns trigger language plpgsql as $$ begin
                     insert into public.seen values (tg_table_name, current_setting('synchronous_commit')) on conflict do nothing;
                     return null; end $$;
                 do $$ declare place text; begin
                     for place in select relname from pg_class where relnamespace = 'elven_sync'::regnamespace and relkind = 'r'
                     loop execute format('create trigger see after insert or update or delete on elven_sync.%I
                                          for each statement execute function public.see()', place); end loop; end $$",
            )
            .await;
        scene.sandbox.set_rules(vec!["reject:account=e1-3".parse().unwrap()]);
        for (arguments, code) in [
            (&["entity", "add", "e3", "--timezone", "UTC"][..], 0),
            (&["entity", "add", "e4", "--timezone", "UTC", "--from-now"], 0),
            (&["run"], 3),
            (&["errors", "retry"], 3),
            (&["errors", "resolve", "1", "--reason", "closed"], 0),
            (&["entity", "pause", "e3"], 0),
            (&["entity", "rewind", "e1", "--yes"], 0),
        ] {
            let output = scene.output(arguments).await;
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        }
        let seen = "select string_agg(place, ',') from public.seen where synchronous_commit <> 'on'";
        assert_eq!(scene.text(seen).await, "NULL", "written without waiting for the disk");
        let seen = "select count(*)::text from public.seen where place in
                    ('entities', 'sync_state', 'sync_runs', 'sync_passes', 'sync_batches', 'sync_errors')";
        assert_eq!(scene.text(seen).await, "6", "all are written");
    }
}

/// A policy that hides rows from the connector is an error: reading transactions set `row_security` to off, since no
/// connection begins with it.
#[sqlx::test(migrations = false)]
async fn a_policy_that_hides_rows_is_an_error(pool: PgPool) {
    let create = format!(
        "do $$ begin create role {READER} login; exception when duplicate_object or unique_violation then null; end $$"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&pool).await.unwrap();
    for settings in ["", "ignore_startup_parameters = options, extra_float_digits"] {
        sqlx::raw_sql("drop schema if exists ledger, elven_sync cascade").execute(&pool).await.unwrap();
        let (mut scene, pooler) = scene_behind(pool.clone(), settings).await;
        enter(&scene, 1, 5).await;
        scene
            .sql(
                "grant usage on schema ledger, elven_sync to elven_sync_pooled;
                 grant select on ledger.balance_snapshots to elven_sync_pooled;
                 grant all on all tables in schema elven_sync to elven_sync_pooled;
                 grant all on all sequences in schema elven_sync to elven_sync_pooled;",
            )
            .await;
        let mut url = url::Url::parse(&pooler.url(&database(&scene))).unwrap();
        url.set_username(READER).unwrap();
        scene.set("DATABASE_URL", url.as_str());
        assert_eq!(scene.run().await.counters.rows_uploaded, 5, "these privileges suffice");
        scene
            .sql(
                "alter table ledger.balance_snapshots enable row level security;
                 create policy few on ledger.balance_snapshots using (balance < 3);
                 update ledger.balance_snapshots set balance = balance",
            )
            .await;
        let sent = scene.sandbox.requests().len();
        for arguments in [&["run"][..], &["run", "--dry-run"], &["status"]] {
            let output = scene.output(arguments).await;
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", stderr(&output));
            assert!(stderr(&output).contains("row-level security"), "{arguments:?}: {}", stderr(&output));
        }
        assert_eq!(scene.sandbox.requests().len(), sent, "nothing is sent");
    }
}

#[sqlx::test(migrations = false)]
async fn run_leaves_no_state_in_pooled_connections(pool: PgPool) {
    let (mut scene, pooler) = scene_behind(pool, "").await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "3");
    enter(&scene, 3, 20).await;
    assert_no_trace(&scene, &pooler).await;
    scene.sandbox.set_rules(vec!["reject:account=e1-3".parse().unwrap()]);
    // Also when an answer is lost, and when a run is refused.
    scene.sandbox.inject(Fault::CutAfterWrite);
    for (arguments, code) in [
        (&["run"][..], 3),
        (&["run"], 0),
        (&["errors", "retry"], 3),
        (&["status"], 3),
        (&["run", "--entity", "nobody"], 1),
    ] {
        let output = scene.output(arguments).await;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert_no_trace(&scene, &pooler).await;
    }
}

/// The pooler gives the name of a client to the server connection of each of its transactions.
#[sqlx::test(migrations = false)]
async fn transactions_behind_a_pooler_have_the_name_of_their_run(pool: PgPool) {
    let (scene, _pooler) = scene_behind(pool, "").await;
    enter(&scene, 3, 20).await;
    crate::session_names::record(&scene).await;
    for run_id in 1..=2 {
        let output = scene.output(&["run"]).await;
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let expected = format!("elven-sync/{} run {run_id}", env!("CARGO_PKG_VERSION"));
        assert_eq!(crate::session_names::names_of(&scene, "sync_batches").await, [expected]);
        scene
            .sql("delete from public.names; update ledger.balance_snapshots set balance = balance + 1")
            .await;
    }
}
