//! The schema: its comments for operators, and the invariants that SQL itself enforces.

use elven_sync::journal::BatchState;
use sqlx::{Connection, PgPool};

use crate::support::{TestEnv, stderr};

/// The internal parts of an object need none: sequences of identity columns, indexes of constraints. The trigger
/// `fence_is_over` belongs to the tests.
#[sqlx::test(migrations = false)]
async fn every_object_of_the_schema_has_a_comment(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let bare: Vec<String> = sqlx::query_scalar(
        "with objects (classid, objid, objsubid, name) as (
             select 'pg_namespace'::regclass, oid, 0, nspname::text from pg_namespace
              where nspname in ('elven_sync', 'ledger')
             union all
             select 'pg_class'::regclass, c.oid, a.attnum, c.oid::regclass || coalesce('.' || a.attname, '')
               from pg_class c
              cross join lateral (select 0 as attnum, null::name as attname
                                  union all
                                  select a.attnum, a.attname from pg_attribute a
                                   where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                                     and c.relkind in ('r', 'p', 'v', 'm', 'f')) a
              where c.relnamespace in ('elven_sync'::regnamespace, 'ledger'::regnamespace)
                and (c.relkind in ('r', 'p', 'v', 'm', 'f') or c.relnamespace = 'elven_sync'::regnamespace)
                and not exists (select from pg_depend d
                                 where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'i')
             union all
             select 'pg_proc'::regclass, oid, 0, oid::regprocedure::text from pg_proc
              where pronamespace in ('elven_sync'::regnamespace, 'ledger'::regnamespace)
             union all
             select 'pg_trigger'::regclass, t.oid, 0, t.tgname::text
               from pg_trigger t join pg_class c on c.oid = t.tgrelid
              where c.relnamespace = 'elven_sync'::regnamespace and not t.tgisinternal
                and t.tgname <> 'fence_is_over')
         select name from objects o
          where not exists (select from pg_description d
                             where d.classoid = o.classid and d.objoid = o.objid and d.objsubid = o.objsubid
                               and btrim(d.description) <> '')
          order by name",
    )
    .fetch_all(&scene.pool)
    .await
    .unwrap();
    assert_eq!(bare, Vec::<String>::new());
}

#[sqlx::test(migrations = false)]
async fn repeated_and_concurrent_migrations_are_harmless(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let (first, second) =
        tokio::join!(scene.output(&["migrate", "--with-ledger"]), scene.output(&["migrate"]));
    assert!(first.status.success() && second.status.success());
    assert_eq!(
        scene
            .text(
                "select count(*)::text from information_schema.tables where table_name like '%\\_migrations'"
            )
            .await,
        "2"
    );
    assert_eq!(
        scene.text("select to_regclass('public._sqlx_migrations')::text").await,
        "NULL",
        "not among the ledger's own"
    );
}

/// The ids that a batch lists are those of the ledger, of any size, sign and type.
#[sqlx::test(migrations = false)]
async fn batch_row_ids_lists_the_rows_of_a_batch(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (id, entity_id, entity_account_id, currency, captured_at, balance)
               overriding system value
               select id, 'acme', 'a' || id, 'BTC', '2024-01-01Z', 1
                 from unnest('{1,2,3,64,65,-1,-64,-65,300,8192,1000000,9223372036854775807,-9223372036854775808}'::bigint[]) id").await;
    scene.run().await;
    let listed = "select string_agg(id, ',' order by id) from elven_sync.sync_batches, elven_sync.batch_row_ids(batch_id) id";
    let ledger = "select string_agg(id::text, ',' order by id::text) from ledger.balance_snapshots";
    assert_eq!(scene.text(listed).await, scene.text(ledger).await);

    scene.sql("create table ledger.by_uuid as select ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid as id,
                      'acme' as entity_id, 'u' || n as entity_account_id, 'BTC' as currency, now() as captured_at,
                      1::numeric as balance, pg_current_xact_id() as change_xid from generate_series(1, 3) n;
               update elven_sync.sync_state set ledger_table = null, mapping = null;").await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.by_uuid");
    scene.run().await;
    let uuids = "select string_agg(right(id, 2), ',') from elven_sync.batch_row_ids((select max(batch_id) from elven_sync.sync_batches)) id";
    assert_eq!(scene.text(uuids).await, "01,02,03");
}

/// The watermark of a lane moves only with the lease, and only from its current place.
#[sqlx::test(migrations = false)]
async fn sync_state_without_an_open_pass_has_no_cursor(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let broken = sqlx::query("update elven_sync.sync_state set cursor_xid = '1', cursor_id = '1'")
        .execute(&scene.pool)
        .await;
    assert!(broken.is_err());
}

/// For any default of the database: a trigger refuses each journal write whose commit would not wait for the disk.
#[sqlx::test(migrations = false)]
async fn journal_writes_are_durable_under_any_database_default(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.sql(
        "do $$ begin execute format('alter database %I set synchronous_commit = off', current_database()); end $$;
         create function demand_durability() returns trigger language plpgsql as $$ begin
             if current_setting('synchronous_commit') <> 'on' and current_setting('application_name') like 'elven-sync%' then
                 raise exception 'a write of % is not durable', tg_table_name;
             end if;
             return null;
         end $$;
         do $$ declare t text; begin
             foreach t in array '{entities,sync_state,sync_runs,sync_passes,sync_batches,sync_errors}'::text[] loop
                 execute format('create trigger demand after insert or update or delete on elven_sync.%I
                                 for each statement execute function demand_durability()', t);
             end loop;
         end $$;",
    )
    .await;
    for arguments in [
        &["entity", "add", "acme", "--timezone", "UTC"][..],
        &["entity", "pause", "acme"],
        &["entity", "resume", "acme"],
    ] {
        let output = scene.output(arguments).await;
        assert!(output.status.success(), "{}", stderr(&output));
    }
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('acme', 'b', 'BTC', '2024-01-01Z', 'NaN'),
                    ('ghost', 'g', 'BTC', '2024-01-01Z', 1)",
        )
        .await;
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert_eq!(scene.text("select count(*)::text from elven_sync.sync_errors").await, "2");
}

/// What the program and the database call open is the same.
#[sqlx::test(migrations = false)]
async fn an_open_batch_is_defined_the_same_in_sql_and_in_the_program(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    for status in ["sending", "accepted", "rejected", "split", "unknown"] {
        for (row_count, attempts) in [(0, 0), (0, 1), (5, 0), (5, 1)] {
            let state = BatchState::decode(status, row_count, attempts).unwrap();
            let is_open: bool = sqlx::query_scalar("select elven_sync.is_open($1, $2)")
                .bind(status)
                .bind(row_count)
                .fetch_one(&scene.pool)
                .await
                .unwrap();
            assert_eq!(state.is_open(), is_open, "{status} {row_count} {attempts}: {state:?}");
        }
    }
    assert!(BatchState::decode("another", 1, 1).is_err());
}

/// A role that may execute functions, but write nothing, makes triggers of them on tables of its own, whose types have
/// casts that call its functions.
#[sqlx::test(migrations = false)]
async fn function_with_the_rights_of_its_owner_serves_only_its_own_tables(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let definers: Vec<(String, bool)> = sqlx::query_as(
        "select p.oid::regprocedure::text, p.prorettype = 'trigger'::regtype from pg_proc p
          where p.prosecdef and p.pronamespace in ('elven_sync'::regnamespace, 'ledger'::regnamespace) order by 1",
    )
    .fetch_all(&scene.pool)
    .await
    .unwrap();
    assert_eq!(definers.len(), 5, "{definers:?}");
    let mut transaction = scene.pool.begin().await.unwrap();
    sqlx::raw_sql(
        "create role only_reader; grant usage on schema elven_sync to only_reader;
         grant execute on all functions in schema elven_sync to only_reader;
         grant select on all tables in schema elven_sync to only_reader; set local role only_reader;
         create temp table mine (entity_id text, error_id bigint, paused boolean, shared boolean, map_version bigint)",
    )
    .execute(&mut *transaction)
    .await
    .unwrap();
    for (function, is_trigger) in definers {
        assert!(is_trigger, "anybody can call {function}");
        for event in ["insert", "update", "delete", "truncate"] {
            let mut nested = (*transaction).begin().await.unwrap();
            let attach = format!(
                "insert into mine values ('acme', 1, false, false, 1);
                 create trigger t before {event} on mine for each statement execute function {function};
                 {}",
                match event {
                    "insert" => "insert into mine values ('beta', 2, false, false, 2)",
                    "update" => "update mine set entity_id = 'gamma'",
                    "delete" => "delete from mine",
                    _ => "truncate mine",
                }
            );
            let refused = sqlx::raw_sql(sqlx::AssertSqlSafe(attach)).execute(&mut *nested).await.unwrap_err();
            assert!(
                refused.to_string().contains("only for triggers of elven_sync."),
                "{function}: {refused}"
            );
            nested.rollback().await.unwrap();
        }
    }
    transaction.rollback().await.unwrap();
}
