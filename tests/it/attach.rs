//! `attach` on existing tables.

use sqlx::{Connection, Executor, PgConnection, PgPool};

use crate::support::{TestEnv, stderr, stdout};

const PLAIN: &str = "create schema books;
    create table books.balances (id bigint primary key, entity_id text, entity_account_id text not null,
           currency text not null, captured_at timestamptz not null, balance numeric not null);
    insert into books.balances select n, 'acme', 'a' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 100) n;";

const PARTED: &str = "create schema books;
    create table books.balances (id bigint not null, entity_id text, entity_account_id text not null,
           currency text not null, captured_at timestamptz not null, balance numeric not null) partition by range (captured_at);
    create table books.old partition of books.balances for values from (minvalue) to ('2024-01-01Z');
    create table books.y24 partition of books.balances for values from ('2024-01-01Z') to ('2025-01-01Z') partition by list (currency);
    create table books.y24_btc partition of books.y24 for values in ('BTC');
    create table books.y24_rest partition of books.y24 default;
    insert into books.balances select n, 'acme', 'a' || n, case n % 2 when 0 then 'BTC' else 'ETH' end,
           timestamptz '2023-12-01Z' + n * interval '1 day', n from generate_series(1, 100) n;";

/// The rows of entity acme in a table without any part of elven-sync.
async fn scene_with(pool: PgPool, sql: &'static str) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sql(sql).await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.balances");
    scene
}

/// Returns the output of `attach`, which has to succeed.
async fn attach(scene: &TestEnv, more: &[&str]) -> String {
    let output = scene.output(&[&["attach"], more].concat()).await;
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    stdout(&output)
}

/// Returns everything in the catalogue that attaching changes.
async fn shape(scene: &TestEnv) -> String {
    scene
        .text(
            "select string_agg(what, E'\\n' order by what) from (
                select attrelid::regclass || '.' || attname || ' ' || attnotnull from pg_attribute
                 where attrelid in (select oid from pg_class where relnamespace = 'books'::regnamespace and relkind in ('r', 'p')) and attnum > 0 and not attisdropped
                union all
                select tgrelid::regclass || ' ' || tgname || ' ' || tgenabled::text from pg_trigger where tgrelid::regclass::text like 'books.%'
                union all
                select pg_get_indexdef(indexrelid) || indisvalid from pg_index where indrelid::regclass::text like 'books.%'
                union all
                select proname || prosrc from pg_proc where pronamespace = 'books'::regnamespace) x (what)",
        )
        .await
}

#[sqlx::test(migrations = false)]
async fn plain_table_is_attached_without_rewrite_and_detached(pool: PgPool) {
    let scene = scene_with(pool, PLAIN).await;
    let output = scene.output(&["run"]).await;
    assert!(stderr(&output).contains("attach"), "{}", stderr(&output));
    let file = "select pg_relation_filenode('books.balances')::text";
    let (before, stored) = (shape(&scene).await, scene.text(file).await);
    let rehearsal = attach(&scene, &["--dry-run"]).await;
    assert_eq!(shape(&scene).await, before, "a rehearsal changes nothing");
    attach(&scene, &[]).await;
    assert_eq!(scene.text(file).await, stored, "the rows were rewritten");
    assert!(attach(&scene, &[]).await.contains("nothing to do"));
    let analyzed =
        "select count(*)::text from pg_stats where schemaname = 'books' and attname = 'change_xid'";
    assert_eq!(scene.text(analyzed).await, "1", "analyzed");
    assert_eq!(scene.run().await.counters.rows_uploaded, 100);
    assert_eq!(scene.run().await.counters.rows_read, 0);

    // The printed statements of the dry run, executed by hand, do the same.
    let after = shape(&scene).await;
    attach(&scene, &["--undo"]).await;
    assert_eq!(shape(&scene).await, before);
    assert!(attach(&scene, &["--undo"]).await.contains("nothing to do"));
    for step in rehearsal.split("\n-- ") {
        let sql = step.split_once('\n').map_or("", |(_, sql)| sql);
        scene.pool.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql))).await.unwrap();
    }
    assert_eq!(shape(&scene).await, after);
    assert!(attach(&scene, &[]).await.contains("nothing to do"));
    // After another attach the column is a new one: the old watermark is refused, so that no row hides behind it.
    let refused = scene.run().await.entities[0].failure().unwrap();
    assert!(refused.contains("change_xid is read from a different column"), "{refused}");
    assert!(scene.output(&["entity", "rewind", "acme", "--yes"]).await.status.success());
    assert_eq!(scene.run().await.counters.rows_uploaded, 100);
}

/// Each way to bypass a default, as with the default ledger.
#[sqlx::test(migrations = false)]
async fn rows_written_after_attach_are_always_stamped(pool: PgPool) {
    for parted in [false, true] {
        let scene = TestEnv::new(pool.clone()).await;
        scene.sql("drop schema if exists books cascade; delete from elven_sync.entities; delete from elven_sync.sync_state").await;
        drop(scene);
        let scene = scene_with(pool.clone(), if parted { PARTED } else { PLAIN }).await;
        attach(&scene, &[]).await;
        scene.run().await;
        let mut writer = PgConnection::connect(&scene.url).await.unwrap();
        for (way, sql) in [
            ("insert", "insert into books.balances values (201, 'acme', 'x', 'BTC', '2024-02-01Z', 1)"),
            ("insert select *", "insert into books.balances select id + 300, entity_id, 'y', currency, captured_at, balance, change_xid from books.balances where id = 50"),
            ("update of the column", "update books.balances set balance = 2, change_xid = '3' where id = 50"),
            ("update that moves the row", "update books.balances set captured_at = '2023-01-01Z' where id = 60"),
            ("replica", "set session_replication_role = replica;
                         insert into books.balances values (202, 'acme', 'z', 'ETH', '2024-02-01Z', 1, '3'); reset session_replication_role"),
            ("search_path", "create schema evil; create function evil.pg_current_xact_id() returns xid8 language sql as $$ select '3'::xid8 $$;
                             set search_path = evil, pg_catalog; insert into books.balances values (203, 'acme', 'w', 'ETH', '2024-02-01Z', 1);
                             reset search_path; drop schema evil cascade"),
        ] {
            writer.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql))).await.unwrap();
            assert_eq!(scene.run().await.counters.rows_uploaded, 1, "{way}, parted: {parted}");
        }
        if parted {
            // A partition that is written to by its own name has the trigger, too.
            scene
                .sql("insert into books.y24_btc values (204, 'acme', 'v', 'BTC', '2024-03-01Z', 1, '3')")
                .await;
            assert_eq!(scene.run().await.counters.rows_uploaded, 1, "into the partition");
        }
    }
}

#[sqlx::test(migrations = false)]
async fn partitioned_table_is_attached_partition_by_partition(pool: PgPool) {
    let scene = scene_with(pool, PARTED).await;
    let before = shape(&scene).await;
    let rehearsal = attach(&scene, &["--dry-run", "--backfill-index"]).await;
    assert_eq!(rehearsal.matches("create index concurrently").count(), 6, "{rehearsal}");
    attach(&scene, &["--backfill-index"]).await;
    let valid = "select count(*) filter (where indisvalid) || ' of ' || count(*) from pg_index where indrelid::regclass::text like 'books.%'";
    assert_eq!(scene.text(valid).await, "10 of 10");
    assert!(attach(&scene, &["--backfill-index"]).await.contains("nothing to do"));
    assert_eq!(scene.run().await.counters.rows_uploaded, 100);

    // A later partition has everything. A partition with a disabled trigger gets it back.
    scene.sql("create table books.y25 partition of books.balances for values from ('2025-01-01Z') to ('2026-01-01Z')").await;
    assert!(attach(&scene, &[]).await.contains("nothing to do"));
    scene.sql("alter table books.y24_btc disable trigger elven_sync_stamp_change_xid").await;
    let output = scene.output(&["run"]).await;
    assert!(stderr(&output).contains("books.y24_btc"), "a run warns of it: {}", stderr(&output));
    let rehearsal = attach(&scene, &["--dry-run"]).await;
    assert!(
        rehearsal.contains("\"y24_btc\" enable always trigger")
            && rehearsal.contains("were not stamped, so no run reads them")
    );
    attach(&scene, &[]).await;
    assert!(attach(&scene, &[]).await.contains("nothing to do"));
    scene.sql("drop table books.y25").await;
    attach(&scene, &["--undo"]).await;
    assert_eq!(shape(&scene).await, before);
}

/// An interrupted attempt leaves an invalid index, which the next attempt rebuilds. A suitable index of the table is
/// used.
#[sqlx::test(migrations = false)]
async fn invalid_index_is_rebuilt_and_valid_index_reused(pool: PgPool) {
    let scene = scene_with(pool, PLAIN).await;
    attach(&scene, &[]).await;
    scene
        .sql(
            "update pg_index set indisvalid = false where indexrelid = 'books.balances_elven_sync'::regclass",
        )
        .await;
    assert!(
        attach(&scene, &["--dry-run"]).await.contains("drop index concurrently books.balances_elven_sync")
    );
    attach(&scene, &[]).await;
    let valid =
        "select indisvalid::text from pg_index where indexrelid = 'books.balances_elven_sync'::regclass";
    assert_eq!(scene.text(valid).await, "true");
    scene.sql("drop index books.balances_elven_sync; create index mine on books.balances (entity_id, change_xid, id, currency)").await;
    assert!(attach(&scene, &[]).await.contains("nothing to do"));
}

/// A range orders ids that are texts by their bytes. A run orders them as the column does.
#[sqlx::test(migrations = false)]
async fn backfill_index_orders_text_ids_by_their_bytes(pool: PgPool) {
    let scene = scene_with(pool, PLAIN).await;
    let keys =
        "select string_agg(substring(pg_get_indexdef(indexrelid) from '\\(.*\\)'), ' ' order by indexrelid)
                  from pg_index where indrelid = 'books.balances'::regclass and not indisprimary";
    for (collation, id) in [
        ("alter table books.balances alter id type text", "id COLLATE \"C\""),
        ("alter table books.balances alter id type varchar collate \"und-x-icu\"", "id COLLATE \"C\""),
        ("alter table books.balances alter id type text collate \"C\"", "id"),
    ] {
        scene.sql(collation).await;
        attach(&scene, &["--backfill-index"]).await;
        let expected = format!("(entity_id, change_xid, id) (entity_id, captured_at, {id})");
        assert_eq!(scene.text(keys).await, expected, "{collation}");
        assert!(attach(&scene, &["--backfill-index"]).await.contains("nothing to do"), "{collation}");
        attach(&scene, &["--undo"]).await;
    }
}

#[sqlx::test(migrations = false)]
async fn attach_does_not_wait_and_names_the_lock_holder(pool: PgPool) {
    let scene = scene_with(pool, PLAIN).await;
    let before = shape(&scene).await;
    let mut reader = PgConnection::connect(&scene.url).await.unwrap();
    reader
        .execute("set application_name = 'the report'; begin; select count(*) from books.balances")
        .await
        .unwrap();
    let waiting = scene.output(&["attach", "--lock-timeout", "50ms"]);
    let output = tokio::time::timeout(std::time::Duration::from_secs(20), waiting).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(
        said.contains("the report")
            && said.contains("idle in transaction")
            && said.contains("--lock-timeout"),
        "{said}"
    );
    assert_eq!(shape(&scene).await, before);
    reader.execute("rollback").await.unwrap();
    attach(&scene, &["--lock-timeout", "50ms"]).await;
    for wrong in ["0s", "soon", "2h"] {
        assert_eq!(
            scene.output(&["attach", "--lock-timeout", wrong]).await.status.code(),
            Some(2),
            "{wrong}"
        );
    }
}

#[sqlx::test(migrations = false)]
async fn attach_reports_conflicts_before_it_changes_anything(pool: PgPool) {
    let mut scene = scene_with(pool, PLAIN).await;
    scene.sql("create publication feed for table books.balances; alter table books.balances enable row level security").await;
    let before = shape(&scene).await;
    let output = scene.output(&["attach"]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = stdout(&output);
    assert!(said.contains("would break: publication \"feed\""), "{said}");
    assert!(said.contains("row-level security") && said.contains("COPY"), "{said}");
    assert_eq!(shape(&scene).await, before);
    attach(&scene, &["--yes"]).await;
    attach(&scene, &["--undo"]).await;
    // A publication of some columns is not affected.
    if scene.text("select (current_setting('server_version_num')::int >= 150000)::text").await == "true" {
        scene
            .sql("drop publication feed; create publication feed for table books.balances (id, balance)")
            .await;
        assert!(!attach(&scene, &["--dry-run"]).await.contains("would break"));
    }
    scene
        .sql(
            "create view books.shown as select * from books.balances where currency <> 'test';
               create table books.child () inherits (books.balances);
               create materialized view books.kept as select * from books.balances",
        )
        .await;
    for (table, expected) in [
        ("books.shown", "books.balances"),
        ("books.balances", "inherit"),
        ("books.kept", "neither a table nor a view"),
        ("books.none", "there is no ledger table books.none"),
    ] {
        scene.set("ELVEN_SYNC_LEDGER__TABLE", table);
        let output = scene.output(&["attach"]).await;
        assert_eq!(output.status.code(), Some(1), "{table}");
        assert!(stderr(&output).contains(expected), "{table}: {}", stderr(&output));
    }
}

/// The default ledger is ready as it is, and a view can be read once its table is attached.
#[sqlx::test(migrations = false)]
async fn default_ledger_needs_no_attach_and_view_needs_its_table(pool: PgPool) {
    let mut scene = scene_with(pool, PLAIN).await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.balance_snapshots");
    assert!(attach(&scene, &[]).await.contains("nothing to do"));
    scene.sql("alter table books.balances rename column id to number").await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.balances");
    scene.set("ELVEN_SYNC_LEDGER__COLUMNS__ID", "number");
    attach(&scene, &[]).await;
    scene.sql("create view books.shown as select number as id, entity_id, entity_account_id, currency, captured_at, balance, change_xid from books.balances").await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.shown");
    scene.unset("ELVEN_SYNC_LEDGER__COLUMNS__ID");
    assert_eq!(scene.run().await.counters.rows_uploaded, 100);
    scene.sql("update books.balances set balance = 7 where number = 7").await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 1);
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.balances");
    scene.set("ELVEN_SYNC_LEDGER__COLUMNS__ID", "number");
    let output = scene.output(&["attach", "--undo"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("another object depends on the column"), "{}", stderr(&output));
}

#[sqlx::test(migrations = false)]
async fn single_entity_needs_no_entity_column(pool: PgPool) {
    let mut scene = scene_with(pool, PLAIN).await;
    scene.sql("alter table books.balances drop column entity_id").await;
    scene.set("ELVEN_SYNC_LEDGER__ENTITY", "acme");
    assert!(attach(&scene, &["--dry-run"]).await.contains("(\"change_xid\", \"id\")"));
    attach(&scene, &[]).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "7");
    assert_eq!(scene.run().await.counters.rows_uploaded, 100);
    assert_eq!(scene.run().await.counters.rows_read, 0);
    scene.set("ELVEN_SYNC_LEDGER__ENTITY", "it's another");
    let report = scene.run().await;
    assert_eq!(report.unregistered, ["it's another"]);
}

/// Indexes without the right order, names that are in use, and a function that two tables share.
#[sqlx::test(migrations = false)]
async fn attach_leaves_objects_of_others_unchanged(pool: PgPool) {
    let mut scene = scene_with(pool, PARTED).await;
    scene.sql("alter table books.balances alter column id type text using id::text").await;
    attach(&scene, &[]).await;
    attach(&scene, &["--undo"]).await;
    scene
        .sql(
            "alter table books.balances add column change_xid xid8 not null default pg_current_xact_id();
               create index other_order on books.old (entity_id collate \"C\", change_xid, id);
               create index other_class on books.y24_btc (entity_id text_pattern_ops, change_xid, id);
               create table books.balances_elven_sync ()",
        )
        .await;
    attach(&scene, &[]).await;
    assert!(attach(&scene, &[]).await.contains("nothing to do"));
    assert_eq!(scene.run().await.counters.rows_uploaded, 100);

    scene.sql("create table books.second (like books.balances including defaults)").await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.second");
    attach(&scene, &[]).await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.balances");
    attach(&scene, &["--undo"]).await;
    scene.sql("insert into books.second values ('1', 'acme', 'a', 'BTC', '2024-01-01Z', 1, '3')").await;

    scene.sql("create function books.elven_sync_stamp_mine() returns trigger language plpgsql as 'begin return new; end'").await;
    scene.set("ELVEN_SYNC_LEDGER__COLUMNS__CHANGE_XID", "mine");
    let output = scene.output(&["attach"]).await;
    assert!(stderr(&output).contains("none of elven-sync's"), "{}", stderr(&output));
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.old");
    let output = scene.output(&["attach"]).await;
    assert!(stderr(&output).contains("it is a partition"), "{}", stderr(&output));
}

/// The rows of a foreign table carry the ids of another server's transactions. A run would skip them in silence.
#[sqlx::test(migrations = false)]
async fn foreign_partition_is_refused_by_attach_and_by_a_run(pool: PgPool) {
    let mut scene = scene_with(pool, PARTED).await;
    attach(&scene, &[]).await;
    scene
        .sql(
            "create foreign data wrapper none; create server far foreign data wrapper none;
             create table books.y25 partition of books.balances for values from ('2025-01-01Z') to ('2026-01-01Z') partition by list (currency);
             create foreign table books.y25_far partition of books.y25 default server far",
        )
        .await;
    for (arguments, table) in
        [(&["run"][..], "books.balances"), (&["attach"], "books.balances"), (&["run"], "books.shown")]
    {
        if table == "books.shown" {
            scene.sql("create view books.shown as select * from books.balances").await;
        }
        scene.set("ELVEN_SYNC_LEDGER__TABLE", table);
        let output = scene.output(arguments).await;
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("y25_far"), "{arguments:?}: {said}");
    }
    assert_eq!(scene.received().len(), 0);
}

/// PostgreSQL fires the triggers of a kind by their names. One that comes first sees the row as it would be without a
/// new `change_xid`, so it can drop an update that changes nothing.
#[sqlx::test(migrations = false)]
async fn no_op_updates_are_not_sent_again_behind_a_trigger_that_drops_them(pool: PgPool) {
    let scene = scene_with(pool, PLAIN).await;
    attach(&scene, &[]).await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 100);
    let upsert = "insert into books.balances (id, entity_id, entity_account_id, currency, captured_at, balance)
        select id, entity_id, entity_account_id, currency, captured_at, balance + (id = 7)::int from books.balances
        on conflict (id) do update set balance = excluded.balance, currency = excluded.currency";
    scene.sql(upsert).await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 100, "without the trigger, each row is sent again");
    scene
        .sql(
            "create trigger a_drop_no_op_updates before update on books.balances
                 for each row execute function suppress_redundant_updates_trigger()",
        )
        .await;
    scene.sql(upsert).await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 1, "only the row with another balance");
}
