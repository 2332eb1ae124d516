//! The traps of a watermark, each tested with a real PostgreSQL.

use elven_sync::journal::RunStatus;
use sqlx::{Connection, Executor, PgConnection, PgPool};

use crate::support::{TestEnv, stderr};

/// Inserts a row of entity acme, whose account and balance are the same.
const INSERT: &str =
    "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                      values ('acme', $1::text, 'BTC', '2024-01-01Z', $1::numeric)";

async fn insert(connection: &mut PgConnection, number: i32) {
    sqlx::query(INSERT).bind(number.to_string()).execute(connection).await.unwrap();
}

fn accounts(scene: &TestEnv) -> Vec<String> {
    scene.balances().into_iter().map(|(account, _)| account).collect()
}

async fn scene_with_acme(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
}

async fn session(scene: &TestEnv) -> PgConnection {
    PgConnection::connect(&scene.url).await.unwrap()
}

#[sqlx::test(migrations = false)]
async fn a_row_that_commits_late_arrives_in_the_next_run(pool: PgPool) {
    let scene = scene_with_acme(pool).await;
    let (mut slow, mut quick) = (session(&scene).await, session(&scene).await);
    slow.execute("begin").await.unwrap();
    insert(&mut slow, 1).await;
    insert(&mut quick, 2).await;
    scene.run().await;
    assert_eq!(accounts(&scene), ["2"], "what has not committed is not sent");
    // More rows are written after it, so that a watermark of any single number has passed the slow row.
    insert(&mut quick, 3).await;
    scene.run().await;
    slow.execute("commit").await.unwrap();
    scene.run().await;
    assert_eq!(accounts(&scene), ["2", "3", "1"]);
    assert_eq!(scene.run().await.counters.rows_read, 0);
}

#[sqlx::test(migrations = false)]
async fn a_row_written_inside_a_savepoint_arrives(pool: PgPool) {
    let scene = scene_with_acme(pool).await;
    let (mut slow, mut quick) = (session(&scene).await, session(&scene).await);
    // The xmin of the row is the id of the subtransaction, which no snapshot lists.
    slow.execute("begin; select pg_current_xact_id(); savepoint s").await.unwrap();
    insert(&mut slow, 1).await;
    slow.execute("release savepoint s").await.unwrap();
    insert(&mut quick, 2).await;
    scene.run().await;
    slow.execute("commit").await.unwrap();
    scene.run().await;
    assert_eq!(accounts(&scene), ["2", "1"]);
}

#[sqlx::test(migrations = false)]
async fn a_row_of_a_prepared_transaction_arrives(pool: PgPool) {
    let scene = scene_with_acme(pool).await;
    let (mut slow, mut quick) = (session(&scene).await, session(&scene).await);
    slow.execute("begin").await.unwrap();
    insert(&mut slow, 1).await;
    slow.execute("prepare transaction 'late'").await.unwrap();
    insert(&mut quick, 2).await;
    scene.run().await;
    scene.run().await;
    slow.execute("commit prepared 'late'").await.unwrap();
    scene.run().await;
    assert_eq!(accounts(&scene), ["2", "1"]);
}

#[sqlx::test(migrations = false)]
async fn a_row_that_was_rolled_back_is_never_sent(pool: PgPool) {
    let scene = scene_with_acme(pool).await;
    let mut slow = session(&scene).await;
    slow.execute("begin").await.unwrap();
    insert(&mut slow, 1).await;
    scene.run().await;
    slow.execute("rollback").await.unwrap();
    insert(&mut slow, 2).await;
    scene.run().await;
    assert_eq!(accounts(&scene), ["2"]);
}

/// A partitioned ledger cannot have a unique id. Here rows that tie in `(change_xid, id)` cross every page boundary:
/// pages hold 4 rows, a batch 1, and ties have 5.
#[sqlx::test(migrations = false)]
async fn a_page_never_ends_inside_a_tie(pool: PgPool) {
    let mut scene = scene_with_acme(pool).await;
    scene.sql("create table ledger.parts (id bigint not null, entity_id text not null, entity_account_id text not null,
                   currency text not null, captured_at timestamptz not null, balance numeric not null,
                   change_xid xid8 not null) partition by list (currency);
               create table ledger.parts_btc partition of ledger.parts for values in ('BTC');
               create table ledger.parts_eth partition of ledger.parts for values in ('ETH');
               create table ledger.parts_usd partition of ledger.parts for values in ('USD');
               create index on ledger.parts (entity_id, change_xid, id);
               insert into ledger.parts select n, 'acme', 'a' || n, c, '2024-01-01Z', n, pg_current_xact_id()
                 from generate_series(1, 20) n, unnest('{BTC,ETH,USD}'::text[]) c;").await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.parts");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    assert_eq!(scene.run().await.counters.rows_uploaded, 60);
    assert_eq!(scene.received().len(), 60);
    // A tie that no batch can hold is refused, not split.
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    scene.sql("update ledger.parts set balance = 0, change_xid = pg_current_xact_id()").await;
    let report = scene.run().await;
    assert_eq!(report.status, RunStatus::Failed);
    assert!(report.entities[0].failure().unwrap().contains("share one change_xid and id"));
}

/// Each way to bypass a column default, which would put a row behind the watermark.
#[sqlx::test(migrations = false)]
async fn change_xid_is_always_the_id_of_the_writing_transaction(pool: PgPool) {
    let scene = scene_with_acme(pool).await;
    let mut writer = session(&scene).await;
    insert(&mut writer, 1).await;
    scene.run().await;
    for (way, sql) in [
        ("insert select *", "insert into ledger.balance_snapshots overriding system value
                             select id + 100, entity_id, 'select', currency, captured_at, balance, change_xid
                               from ledger.balance_snapshots where id = 1"),
        ("explicit value", "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance, change_xid)
                            values ('acme', 'value', 'BTC', '2024-01-01Z', 1, '3')"),
        ("update of the column", "update ledger.balance_snapshots set entity_account_id = 'update', change_xid = '3' where id = 1"),
        ("replica", "set session_replication_role = replica;
                     insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance, change_xid)
                     values ('acme', 'replica', 'BTC', '2024-01-01Z', 1, '3'); reset session_replication_role"),
        ("search_path", "create schema evil; create function evil.pg_current_xact_id() returns xid8 language sql as $$ select '3'::xid8 $$;
                         set search_path = evil, pg_catalog;
                         insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                         values ('acme', 'search_path', 'BTC', '2024-01-01Z', 1); reset search_path"),
    ] {
        let before = scene.sandbox.records_accepted();
        writer.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql))).await.unwrap();
        scene.run().await;
        assert_eq!(scene.sandbox.records_accepted(), before + 1, "{way}");
    }
    let before = scene.sandbox.records_accepted();
    let mut copy = writer
        .copy_in_raw("copy ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance, change_xid) from stdin")
        .await
        .unwrap();
    copy.send("acme\tcopy\tBTC\t2024-01-01 00:00:00Z\t1\t3\n".as_bytes()).await.unwrap();
    copy.finish().await.unwrap();
    scene.run().await;
    assert_eq!(scene.sandbox.records_accepted(), before + 1, "copy of the column");
}

/// Dropping the column and adding it again gives all rows the id of the ALTER. It is a new column, so the watermark
/// is refused. After a rewind all rows are sent again, and no row hides behind the old watermark.
#[sqlx::test(migrations = false)]
async fn rows_written_without_the_change_xid_column_arrive(pool: PgPool) {
    let scene = scene_with_acme(pool).await;
    let mut writer = session(&scene).await;
    insert(&mut writer, 1).await;
    scene.run().await;
    scene
        .sql(
            "drop trigger stamp_change_xid on ledger.balance_snapshots;
               alter table ledger.balance_snapshots drop column change_xid",
        )
        .await;
    insert(&mut writer, 2).await;
    scene.sql("alter table ledger.balance_snapshots add column change_xid xid8 not null default pg_current_xact_id();
               create index on ledger.balance_snapshots (entity_id, change_xid, id);
               create trigger stamp_change_xid before insert or update on ledger.balance_snapshots
                   for each row execute function ledger.stamp_change_xid()").await;
    let refused = scene.run().await.entities[0].failure().unwrap();
    assert!(refused.contains("change_xid is read from a different column change_xid"), "{refused}");
    assert_eq!(accounts(&scene), ["1"]);
    assert!(scene.output(&["entity", "rewind", "acme", "--yes"]).await.status.success());
    scene.run().await;
    assert_eq!(accounts(&scene), ["1", "1", "2"]);
}

/// A restore resets ledger and watermark together, since they live in one database. Rows that were lost and are
/// entered again are sent.
#[sqlx::test(migrations = false)]
async fn restore_resets_ledger_and_watermark_together(pool: PgPool) {
    let mut scene = scene_with_acme(pool).await;
    let mut writer = session(&scene).await;
    insert(&mut writer, 1).await;
    scene.run().await;
    let database = scene.text("select current_database()::text").await;
    writer.close().await.unwrap();
    let restored = format!("{database}_r").split_off(1);
    let base = scene.url.replace(&database, "postgres");
    let mut admin = PgConnection::connect(&base).await.unwrap();
    scene.pool.close().await;
    admin.execute(sqlx::AssertSqlSafe(format!("drop database if exists \"{restored}\""))).await.unwrap();
    admin
        .execute(sqlx::AssertSqlSafe(format!("create database \"{restored}\" template \"{database}\"")))
        .await
        .unwrap();
    // The original server continues for a while: this tail is lost.
    let mut lost = PgConnection::connect(&scene.url).await.unwrap();
    insert(&mut lost, 2).await;
    scene.run().await;
    lost.close().await.unwrap();
    let url = scene.url.replace(&database, &restored);
    scene.set("DATABASE_URL", &url);
    let mut writer = PgConnection::connect(&url).await.unwrap();
    insert(&mut writer, 3).await;
    scene.run().await;
    assert_eq!(accounts(&scene), ["1", "2", "3"]);
    writer.close().await.unwrap();
    admin.execute(sqlx::AssertSqlSafe(format!("drop database \"{restored}\" with (force)"))).await.unwrap();
}

#[sqlx::test(migrations = false)]
async fn mismatched_watermark_is_refused(pool: PgPool) {
    let mut scene = scene_with_acme(pool).await;
    let mut writer = session(&scene).await;
    insert(&mut writer, 1).await;
    scene.run().await;
    scene.sql("create table before as select * from elven_sync.sync_state").await;
    for (what, spoil) in [
        ("another PostgreSQL cluster", "update elven_sync.sync_state set system_identifier = 1"),
        ("belongs to the ledger table", "update elven_sync.sync_state set ledger_table = 'other.table'"),
        ("have not happened yet", "update elven_sync.sync_state set settled = '9000000000:9000000000:'"),
        ("not been given out yet", "alter table ledger.balance_snapshots disable trigger stamp_change_xid;
                                    update ledger.balance_snapshots set change_xid = '9000000000';
                                    alter table ledger.balance_snapshots enable always trigger stamp_change_xid"),
    ] {
        scene.pool.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(spoil))).await.unwrap();
        let report = scene.run().await;
        assert_eq!(report.status, RunStatus::Failed, "{what}");
        assert!(report.entities[0].failure().unwrap().contains(what), "{what}: {:?}", report.entities[0]);
        assert_eq!(scene.text("select kind from elven_sync.sync_errors where resolved_at is null").await, "watermark");
        scene.sql("update elven_sync.sync_state s set settled = b.settled, ledger_table = b.ledger_table,
                          system_identifier = b.system_identifier from before b").await;
    }
    // A refused entity does not affect another one.
    scene.entity("beta", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('beta', 'b', 'BTC', '2024-01-01Z', 1);
               update elven_sync.sync_state set system_identifier = 1 where entity_id = 'acme'").await;
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    scene.sql("update elven_sync.sync_state s set system_identifier = b.system_identifier from before b where s.entity_id = 'acme'").await;
    assert!(accounts(&scene).contains(&"b".to_owned()));
    // After a new stamp the row is valid, and the next success resolves the error of the lane.
    scene.sql("update ledger.balance_snapshots set balance = balance").await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(
        scene.text("select string_agg(distinct resolution, '') from elven_sync.sync_errors").await,
        "the entity was brought up to date"
    );
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.nothing");
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("there is no ledger table ledger.nothing"), "{}", stderr(&output));
}

#[sqlx::test(migrations = false)]
async fn row_level_security_that_hides_rows_is_an_error(pool: PgPool) {
    let mut scene = scene_with_acme(pool).await;
    let mut writer = session(&scene).await;
    insert(&mut writer, 1).await;
    scene.sql("do $$ begin create role elven_sync_reader login; exception when duplicate_object then null; end $$;
               grant usage on schema ledger, elven_sync to elven_sync_reader;
               alter table ledger.balance_snapshots add column internal_note text;
               grant select (id, entity_id, entity_account_id, currency, captured_at, balance, change_xid)
                  on ledger.balance_snapshots to elven_sync_reader;
               grant all on all tables in schema elven_sync to elven_sync_reader;
               grant all on all sequences in schema elven_sync to elven_sync_reader;").await;
    let mut url = url::Url::parse(&scene.url).unwrap();
    url.set_username("elven_sync_reader").unwrap();
    scene.set("DATABASE_URL", url.as_str());
    assert_eq!(scene.run().await.counters.rows_uploaded, 1, "these privileges suffice");
    scene.sql("alter table ledger.balance_snapshots enable row level security").await;
    insert(&mut writer, 2).await;
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("row-level security"), "{}", stderr(&output));
}
