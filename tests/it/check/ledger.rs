//! The checks of the ledger table or view.

use sqlx::{Connection, Executor, PgConnection, PgPool};

use super::{assert_each_appears_and_ends, assert_found, synced};
use crate::support::output_of;

#[sqlx::test(migrations = false)]
async fn a_table_that_cannot_be_read_is_found(pool: PgPool) {
    let scene = synced(pool).await;
    assert_found(&scene, "ledger.table", "ok", &["balance_snapshots", "change_xid xid8"]).await;
    assert_each_appears_and_ends(
        &scene,
        &[
            (
                "ledger.table",
                "alter table ledger.balance_snapshots rename to gone",
                "failed",
                &["there is no ledger table"],
                "alter table ledger.gone rename to balance_snapshots",
            ),
            (
                "ledger.table",
                "alter table ledger.balance_snapshots alter balance type text",
                "failed",
                &["balance", "has to be numeric"],
                "alter table ledger.balance_snapshots alter balance type numeric using balance::numeric",
            ),
            (
                "ledger.guard",
                "alter table ledger.balance_snapshots disable trigger stamp_change_xid",
                "failed",
                &["is disabled", "elven-sync attach"],
                "alter table ledger.balance_snapshots enable always trigger stamp_change_xid",
            ),
            (
                "ledger.index",
                "alter index ledger.balance_snapshots_change rename to kept; drop index ledger.kept",
                "failed",
                &["missing or invalid", "elven-sync attach"],
                "create index balance_snapshots_change on ledger.balance_snapshots (entity_id, change_xid, id)",
            ),
            (
                "ledger.index",
                "update pg_index set indisvalid = false where indexrelid = 'ledger.balance_snapshots_change'::regclass",
                "failed",
                &["missing or invalid"],
                "update pg_index set indisvalid = true where indexrelid = 'ledger.balance_snapshots_change'::regclass",
            ),
            (
                "ledger.nulls",
                "alter table ledger.balance_snapshots alter entity_id drop not null;
                 insert into ledger.balance_snapshots (entity_account_id, currency, captured_at, balance)
                 values ('a', 'BTC', now(), 1)",
                "failed",
                &["entity_id is NULL"],
                "delete from ledger.balance_snapshots where entity_id is null",
            ),
            (
                "ledger.stamps",
                "alter table ledger.balance_snapshots disable trigger stamp_change_xid;
                 alter table ledger.balance_snapshots alter change_xid drop not null;
                 insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance, change_xid)
                 values ('acme', 'a', 'BTC', now(), 1, null);
                 alter table ledger.balance_snapshots enable always trigger stamp_change_xid",
                "failed",
                &["rows of `acme` have no change_xid"],
                "update ledger.balance_snapshots set change_xid = default where change_xid is null",
            ),
            (
                "ledger.publications",
                "create publication everything for all tables",
                "warning",
                &["everything carries the sync tables"],
                "drop publication everything",
            ),
        ],
    )
    .await;
    scene.sql("create publication feed for table ledger.balance_snapshots").await;
    assert_found(&scene, "ledger.publications", "ok", &["feed carries the ledger"]).await;
}

/// Names that look like a part of a statement.
#[sqlx::test(migrations = false)]
async fn a_table_with_the_name_index_is_checked(pool: PgPool) {
    let mut scene = synced(pool).await;
    scene
        .sql(
            "create table ledger.\"index\" (like ledger.balance_snapshots including all);
             create trigger stamp before insert or update on ledger.\"index\" for each row
                 execute function ledger.stamp_change_xid();
             alter table ledger.\"index\" enable always trigger stamp",
        )
        .await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.\"index\"");
    assert_found(&scene, "ledger.index", "ok", &[]).await;
    // A step that is not of the index, and names the table.
    scene.sql("alter table ledger.\"index\" disable trigger stamp").await;
    assert_found(&scene, "ledger.index", "ok", &[]).await;
    scene
        .sql(
            "do $$ declare i text; begin
                   select indexrelid::regclass::text into i from pg_index
                    where indrelid = 'ledger.\"index\"'::regclass and not indisprimary limit 1;
                   execute 'drop index ' || i; end $$",
        )
        .await;
    assert_found(&scene, "ledger.index", "failed", &["missing or invalid"]).await;
}

/// The statement of the remedy stamps the rows, whatever the columns are called.
#[sqlx::test(migrations = false)]
async fn the_remedy_for_rows_without_a_stamp_can_be_pasted(pool: PgPool) {
    let mut scene = synced(pool).await;
    scene
        .sql(
            "create table ledger.\"Own\" (\"Row\" bigint primary key, \"Who\" text, entity_account_id text, currency text,
                 captured_at timestamptz, balance numeric)",
        )
        .await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.\"Own\"");
    for (role, column) in [("ID", "Row"), ("ENTITY_ID", "Who"), ("CHANGE_XID", "Written By")] {
        scene.set(&format!("ELVEN_SYNC_LEDGER__COLUMNS__{role}"), column);
    }
    output_of(&scene, 0, &["attach", "--yes"]).await;
    scene.sql("delete from elven_sync.sync_state").await;
    for wrong in ["null", "'9000000000'"] {
        let insert = format!(
            "alter table ledger.\"Own\" disable trigger user; alter table ledger.\"Own\" alter \"Written By\" drop not null;
             insert into ledger.\"Own\" values (1, 'acme', 'a', 'BTC', now(), 1, {wrong});
             do $$ declare t text; begin
                 for t in select tgname from pg_trigger where tgrelid = 'ledger.\"Own\"'::regclass loop
                     execute format('alter table ledger.\"Own\" enable always trigger %I', t); end loop; end $$"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(insert)).execute(&scene.pool).await.unwrap();
        let (status, message, hint) = super::found(&scene, "ledger.stamps").await;
        assert_eq!(status, "failed", "{message}");
        let update = hint
            .strip_prefix("elven-sync attach, then in the database: ")
            .unwrap_or_else(|| panic!("{hint}"));
        sqlx::raw_sql(sqlx::AssertSqlSafe(update.to_owned())).execute(&scene.pool).await.unwrap();
        assert_found(&scene, "ledger.stamps", "ok", &[]).await;
        scene.sql("delete from ledger.\"Own\"").await;
    }
}

#[sqlx::test(migrations = false)]
async fn policies_that_apply_to_the_role_are_found(pool: PgPool) {
    let mut scene = synced(pool).await;
    let role = scene
        .text("select 'elven_sync_filtered_' || oid from pg_database where datname = current_database()")
        .await;
    let sql = format!(
        "create role {role} login; grant usage on schema ledger, elven_sync to {role};
         grant select on all tables in schema ledger, elven_sync to {role};
         alter table ledger.balance_snapshots enable row level security"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&scene.pool).await.unwrap();
    assert_found(&scene, "ledger.row_security", "ok", &[]).await;
    let separator = if scene.url.contains('?') { '&' } else { '?' };
    let url = format!("{}{separator}options=-c%20role%3D{role}", scene.url);
    scene.set("DATABASE_URL", &url);
    let hint = format!("alter role \"{role}\" bypassrls;");
    assert_found(&scene, "ledger.row_security", "failed", &["balance_snapshots", &role, &hint]).await;
    scene.sql("alter table ledger.balance_snapshots disable row level security").await;
    assert_found(&scene, "ledger.row_security", "ok", &[]).await;
    let drop = format!("drop owned by {role}; drop role {role}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&scene.pool).await.unwrap();
}

#[sqlx::test(migrations = false)]
async fn a_view_is_checked_by_the_tables_that_it_reads(pool: PgPool) {
    let mut scene = synced(pool).await;
    scene
        .sql(
            "create view ledger.shown as select * from ledger.balance_snapshots;
             create view ledger.unstamped as select id, entity_id, entity_account_id, currency, captured_at, balance,
                    pg_current_xact_id() as change_xid from ledger.balance_snapshots",
        )
        .await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.shown");
    assert_found(&scene, "ledger.guard", "ok", &[]).await;
    assert_found(&scene, "ledger.index", "skipped", &["is a view"]).await;
    assert_found(&scene, "ledger.nulls", "ok", &["never is"]).await;
    scene.sql("alter table ledger.balance_snapshots disable trigger stamp_change_xid").await;
    assert_found(&scene, "ledger.guard", "failed", &["ledger.balance_snapshots is disabled"]).await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.unstamped");
    assert_found(&scene, "ledger.guard", "warning", &["takes no column of type xid8"]).await;
}

#[sqlx::test(migrations = false)]
async fn transactions_that_stay_open_are_found(pool: PgPool) {
    let scene = synced(pool).await;
    assert_found(&scene, "ledger.writers", "ok", &["no open transaction"]).await;
    let mut writer = PgConnection::connect(&scene.url).await.unwrap();
    writer.execute("begin; update ledger.balance_snapshots set balance = 9").await.unwrap();
    assert_found(&scene, "ledger.writers", "ok", &["is open for", "after it commits"]).await;
    writer.execute("rollback").await.unwrap();
    assert_found(&scene, "ledger.writers", "ok", &["no open transaction"]).await;
}

/// Neither an attached table nor a rewrite fires the trigger.
#[sqlx::test(migrations = false)]
async fn tables_that_were_attached_or_rewritten_since_a_run_are_found(pool: PgPool) {
    let mut scene = synced(pool).await;
    scene
        .sql(
            "create schema books;
             create table books.balances (like ledger.balance_snapshots) partition by range (captured_at);
             create table books.rest partition of books.balances default;
             create table books.later (like ledger.balance_snapshots)",
        )
        .await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.balances");
    scene.sql("delete from elven_sync.sync_facts where name = 'ledger_files'").await;
    assert_found(&scene, "ledger.files", "skipped", &["no run has recorded"]).await;
    // The run refuses the other ledger, after it has looked at it.
    output_of(&scene, 1, &["run"]).await;
    assert_found(&scene, "ledger.files", "ok", &["none of the 2 tables"]).await;
    scene
        .sql(
            "alter table books.balances attach partition books.later
                 for values from ('2030-01-01Z') to ('2031-01-01Z')",
        )
        .await;
    assert_found(&scene, "ledger.files", "warning", &["since the last run 'books.later' joined", "verify"])
        .await;
    scene.sql("alter table books.balances detach partition books.later").await;
    assert_found(&scene, "ledger.files", "ok", &[]).await;
    scene.sql("alter table books.balances alter balance type numeric using balance * 100").await;
    assert_found(&scene, "ledger.files", "warning", &["since the last run 'books.rest' got a new file"])
        .await;
    // A run records the change, which is reported for a week.
    output_of(&scene, 1, &["run"]).await;
    assert_found(&scene, "ledger.files", "warning", &["ago a run saw that 'books.rest' got a new file"])
        .await;
    scene
        .sql("update elven_sync.sync_facts set since = now() - interval '8 days' where name = 'ledger_files'")
        .await;
    assert_found(&scene, "ledger.files", "ok", &[]).await;
}
