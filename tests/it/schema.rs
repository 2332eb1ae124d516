//! The schema: its comments for operators, and the invariants that SQL itself enforces.

use sqlx::PgPool;

use crate::support::{TestEnv, stderr};

#[sqlx::test(migrations = false)]
async fn every_table_and_column_has_a_comment(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let bare: Vec<String> = sqlx::query_scalar(
        "select c.relname || coalesce('.' || a.attname, '') from pg_class c
           join pg_namespace n on n.oid = c.relnamespace and n.nspname in ('elven_sync', 'ledger')
           left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
          where c.relkind in ('r', 'v') and c.relname not like '\\_%'
            and (col_description(c.oid, a.attnum) is null or obj_description(c.oid, 'pg_class') is null)",
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
             if current_setting('synchronous_commit') <> 'on' and current_setting('application_name') = 'elven-sync' then
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
