//! The guard check: each way in which the trigger that stamps rows can be broken, and its repair.

use elven_sync::ledger::{BrokenGuard, Guard, GuardFault, Ledger};
use sqlx::PgPool;

use crate::support::{TestEnv, stderr};

const PARTED: &str = "create schema books;
    create table books.balances (id bigint not null, entity_id text, entity_account_id text not null,
           currency text not null, captured_at timestamptz not null, balance numeric not null) partition by range (captured_at);
    create table books.y24 partition of books.balances for values from ('2024-01-01Z') to ('2025-01-01Z');
    create table books.rest partition of books.balances default;
    create table books.names (account text primary key, name text);";

/// A partitioned ledger that is attached.
async fn attached(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sql(PARTED).await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.balances");
    assert!(scene.output(&["attach"]).await.status.success());
    scene
}

async fn guard(scene: &TestEnv) -> Guard {
    let database = scene.database(2).await;
    let guard = Ledger::open(database, None, &scene.settings(&[])).await.unwrap().guard().await.unwrap();
    assert!(0 < guard.next_xid, "{guard:?}");
    Guard { next_xid: 0, ..guard }
}

fn broken(table: &str, fault: GuardFault, trigger: Option<&str>) -> BrokenGuard {
    BrokenGuard { table: table.to_owned(), fault, trigger: trigger.map(str::to_owned) }
}

#[sqlx::test(migrations = false)]
async fn default_ledger_and_attached_partitions_are_intact(pool: PgPool) {
    let mut scene = attached(pool).await;
    assert_eq!(guard(&scene).await, Guard { tables: 3, broken: vec![], ..Guard::default() });
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.balance_snapshots");
    assert_eq!(guard(&scene).await, Guard { tables: 1, broken: vec![], ..Guard::default() });
}

/// Each fault names the table and the trigger, is reported by the next run, and ends with the repair.
#[sqlx::test(migrations = false)]
async fn each_fault_of_the_trigger_is_found_and_ends_with_its_repair(pool: PgPool) {
    let scene = attached(pool).await;
    let stamp = "elven_sync_stamp_change_xid";
    let faults: [(&'static str, &'static str, BrokenGuard); 6] = [
        (
            "alter table books.y24 disable trigger elven_sync_stamp_change_xid",
            "alter table books.y24 enable always trigger elven_sync_stamp_change_xid",
            broken("books.y24", GuardFault::Disabled, Some(stamp)),
        ),
        (
            "alter table books.y24 enable trigger elven_sync_stamp_change_xid",
            "alter table books.y24 enable always trigger elven_sync_stamp_change_xid",
            broken("books.y24", GuardFault::NotAlways, Some(stamp)),
        ),
        (
            "create function books.mine() returns trigger language plpgsql as
                 'begin NEW.change_xid = coalesce(new.change_xid, pg_current_xact_id()); return new; end';
             create trigger z_mine before insert on books.y24 for each row execute function books.mine()",
            "drop trigger z_mine on books.y24",
            broken("books.y24", GuardFault::SetLater, Some("z_mine")),
        ),
        (
            "create or replace function books.elven_sync_stamp_change_xid() returns trigger language plpgsql as
                 'begin new.change_xid := 3; return new; end'",
            "create or replace function books.elven_sync_stamp_change_xid() returns trigger language plpgsql as
                 'BEGIN new.\"change_xid\" := pg_catalog.pg_current_xact_id();
                  return new;  end'",
            broken("books.balances", GuardFault::OtherBody, Some(stamp)),
        ),
        (
            "drop trigger elven_sync_stamp_change_xid on books.balances;
             create trigger elven_sync_stamp_change_xid before insert or update of balance on books.balances
                 for each row execute function books.elven_sync_stamp_change_xid()",
            "drop trigger elven_sync_stamp_change_xid on books.balances",
            broken("books.balances", GuardFault::NotEachWrite, Some(stamp)),
        ),
        ("select", "select", broken("books.balances", GuardFault::Missing, None)),
    ];
    for (sql, repair, expected) in faults {
        scene.sql(sql).await;
        let found = guard(&scene).await;
        assert_eq!(found.broken.first(), Some(&expected), "{sql}");
        let output = scene.output(&["run"]).await;
        assert!(stderr(&output).contains(&expected.to_string()), "{sql}: {}", stderr(&output));
        scene.sql(repair).await;
        if expected.table == "books.y24" {
            assert_eq!(guard(&scene).await.broken, [], "{repair}");
        }
    }
    assert!(scene.output(&["attach"]).await.status.success());
    assert_eq!(guard(&scene).await, Guard { tables: 3, broken: vec![], ..Guard::default() });
}

/// A trigger of the user's that fires before ours, or that only looks, does no harm.
#[sqlx::test(migrations = false)]
async fn triggers_that_leave_the_stamp_alone_are_no_fault(pool: PgPool) {
    let scene = attached(pool).await;
    scene
        .sql(
            "create function books.mine() returns trigger language plpgsql as
                 'begin new.change_xid := 3; return new; end';
             create trigger a_mine before insert on books.balances for each row execute function books.mine();
             create function books.other() returns trigger language plpgsql as
                 'begin new.currency := upper(new.currency); return new; end';
             create trigger z_other before insert on books.balances for each row execute function books.other()",
        )
        .await;
    assert_eq!(guard(&scene).await.broken, []);
    for body in [
        "new.change_xid_note := now()::text; return new;",
        "if new.change_xid is null or new.change_xid = old.change_xid then raise ''no stamp''; end if; return new;",
        "insert into books.log values (new.change_xid); return new;",
    ] {
        let sql = format!(
            "create or replace function books.other() returns trigger language plpgsql as 'begin {body} end'"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&scene.pool).await.unwrap();
        assert_eq!(guard(&scene).await.broken, [], "{body}");
    }
}

/// A later trigger may set the whole row, and with it the stamp.
#[sqlx::test(migrations = false)]
async fn later_triggers_that_set_the_whole_row_are_found(pool: PgPool) {
    let scene = attached(pool).await;
    scene
        .sql(
            "create function books.other() returns trigger language plpgsql as 'begin return new; end';
             create trigger z_other before insert or update on books.y24
                 for each row execute function books.other()",
        )
        .await;
    assert_eq!(guard(&scene).await.broken, []);
    for body in [
        "new := old; return new;",
        "if tg_op = ''UPDATE'' then return old; end if; return new;",
        "select old.* into new; return new;",
        "new := jsonb_populate_record(new, to_jsonb(old)); return new;",
        "NEW . \"change_xid\" = old.change_xid; return new;",
        "select pg_current_xact_id() into strict new.change_xid; return new;",
    ] {
        let sql = format!(
            "create or replace function books.other() returns trigger language plpgsql as 'begin {body} end'"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&scene.pool).await.unwrap();
        let expected = [broken("books.y24", GuardFault::SetLater, Some("z_other"))];
        assert_eq!(guard(&scene).await.broken, expected, "{body}");
    }
}

/// A partition attached later gets the trigger of its parent. A table that inherits does not.
#[sqlx::test(migrations = false)]
async fn tables_that_join_the_ledger_later_are_checked(pool: PgPool) {
    let mut scene = attached(pool).await;
    scene
        .sql(
            "create table books.y25 (like books.balances including all);
             alter table books.balances attach partition books.y25 for values from ('2025-01-01Z') to ('2026-01-01Z');
             create table ledger.\"More rows\" () inherits (ledger.balance_snapshots)",
        )
        .await;
    assert_eq!(guard(&scene).await, Guard { tables: 4, broken: vec![], ..Guard::default() });
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.balance_snapshots");
    let missing = broken("ledger.\"More rows\"", GuardFault::Missing, None);
    assert_eq!(guard(&scene).await, Guard { tables: 2, broken: vec![missing], ..Guard::default() });
}

/// Behind a view, the tables are checked from which it takes the stamp, under any name and through other views. A table
/// that it only joins needs no trigger.
#[sqlx::test(migrations = false)]
async fn tables_behind_a_view_are_checked_where_they_give_the_stamp(pool: PgPool) {
    let mut scene = attached(pool).await;
    scene
        .sql(
            "create table books.old (id bigint, entity_id text, entity_account_id text, currency text,
                 captured_at timestamptz, balance numeric, stamped xid8);
             create view books.both as select id, entity_id, entity_account_id, currency, captured_at, balance, change_xid
                 from books.balances union all select * from books.old;
             create view books.shown as select b.*, n.name from books.both b left join books.names n
                 on n.account = b.entity_account_id",
        )
        .await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.shown");
    let missing = broken("books.old", GuardFault::Missing, None);
    assert_eq!(guard(&scene).await, Guard { tables: 4, broken: vec![missing], ..Guard::default() });
    scene
        .sql(
            "create function books.stamp() returns trigger language plpgsql as
                 'begin new.stamped := pg_catalog.pg_current_xact_id(); return new; end';
             create trigger stamp before insert or update on books.old for each row execute function books.stamp();
             alter table books.old enable always trigger stamp",
        )
        .await;
    assert_eq!(guard(&scene).await, Guard { tables: 4, broken: vec![], ..Guard::default() });
    scene
        .sql(
            "create or replace view books.shown as
                 select id, entity_id, entity_account_id, currency, captured_at, balance, xid8 '3' as change_xid, ''::text as name
                   from books.balances",
        )
        .await;
    assert_eq!(guard(&scene).await, Guard::default(), "nothing can be said");
}
