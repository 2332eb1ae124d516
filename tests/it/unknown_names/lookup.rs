//! How held rows are found: in the ledger by their ids, and in the errors that hold them.

use sqlx::PgPool;

use super::resend::{LISTS_ARE_OLD, with_accounts};
use super::{HELD, add, imports, knowing};
use crate::support::{TestEnv, eventually, output_of};

/// A ledger whose ids are texts: numbers, numbers with leading zeros, and words.
const TEXT_IDS: &str = "
    create table ledger.by_text (id text primary key, entity_id text not null, entity_account_id text not null,
        currency text not null, captured_at timestamptz not null, balance numeric not null,
        change_xid xid8 not null default pg_current_xact_id());
    create trigger stamp_change_xid before insert or update on ledger.by_text
        for each row execute function ledger.stamp_change_xid();
    alter table ledger.by_text enable always trigger stamp_change_xid;
    create index on ledger.by_text (entity_id, change_xid, id);
    insert into ledger.by_text (id, entity_id, entity_account_id, currency, captured_at, balance)
    select case n % 3 when 0 then n::text when 1 then '00' || n else 'row-' || n end, 'acme',
           case when n % 2 = 0 then 'known' else 'new' end, 'BTC', timestamptz '2024-01-01Z' + n * interval '1 s', n
      from generate_series(1, 24) n;";

/// The ids that the open errors hold.
const IDS: &str = "select string_agg(i.id, ' ' order by i.id) from elven_sync.sync_errors e
                    cross join elven_sync.error_row_ids(e.error_id) i (id) where e.resolved_at is null";

async fn scene_with_text_ids(pool: PgPool) -> TestEnv {
    let mut scene = knowing(pool, &["known"]).await;
    scene.sql(TEXT_IDS).await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.by_text");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "6");
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "unknown_account new 4 12");
    assert_eq!(scene.text(IDS).await, "001 0013 0019 007 15 21 3 9 row-11 row-17 row-23 row-5");
    scene
}

#[sqlx::test(migrations = false)]
async fn newer_versions_of_held_rows_with_text_ids_release_them(pool: PgPool) {
    let scene = scene_with_text_ids(pool).await;
    scene
        .sql(
            "update ledger.by_text set entity_account_id = 'known', balance = balance + 1000
              where id in ('0013', '21', 'row-11', 'row-23')",
        )
        .await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(IDS).await, "001 0019 007 15 3 9 row-17 row-5");
    output_of(&scene, 0, &["verify"]).await;
}

#[sqlx::test(migrations = false)]
async fn held_rows_with_text_ids_are_sent_again_once(pool: PgPool) {
    let scene = scene_with_text_ids(pool).await;
    let mut scene = with_accounts(scene, &["known", "new"]).await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.by_text");
    scene.sql(LISTS_ARE_OLD).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "NULL");
    let mut balances: Vec<i32> =
        scene.balances().into_iter().filter_map(|(_, balance)| balance.parse().ok()).collect();
    balances.sort_unstable();
    assert_eq!(balances, [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]);
    output_of(&scene, 0, &["verify"]).await;
}

/// Errors that were recorded before there were hashes are found, too.
#[sqlx::test(migrations = false)]
async fn migration_makes_earlier_errors_findable(pool: PgPool) {
    let scene = scene_with_text_ids(pool).await;
    let found = "select string_agg(concat_ws(' ', first_id, last_id, id_hashes), ', ' order by error_id)
                   from elven_sync.sync_errors";
    let recorded = scene.text(found).await;
    scene.sql("update elven_sync.sync_errors set first_id = null, last_id = null, id_hashes = null").await;
    let migration = include_str!("../../../migrations/sync/0032_held_lookup.sql");
    let update = &migration[migration.find("update elven_sync").unwrap()..];
    let update = &update[..=update.find(';').unwrap()];
    sqlx::raw_sql(sqlx::AssertSqlSafe(update)).execute(&scene.pool).await.unwrap();
    assert_eq!(scene.text(found).await, recorded);
}

/// The searches of the ledger's index on the id.
async fn searches(scene: &TestEnv) -> i64 {
    scene
        .text("select idx_scan::text from pg_stat_user_indexes where indexrelname = 'balance_snapshots_pkey'")
        .await
        .parse()
        .unwrap()
}

async fn sessions_end(scene: &TestEnv) {
    let others = "select count(*)::text from pg_stat_activity
                   where datname = current_database() and backend_type = 'client backend'
                     and pid <> pg_backend_pid() and application_name like 'elven-sync%'";
    eventually("the sessions end", async || scene.text(others).await == "0").await;
}

#[sqlx::test(migrations = false)]
async fn held_rows_that_lie_close_together_are_read_by_one_search(pool: PgPool) {
    let mut scene = knowing(pool, &["known"]).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1000");
    add(&scene, 4_000, "case when n % 2 = 0 then 'known' else 'new' end", "'BTC'").await;
    // Their values cannot be read, and they are between the rows of acme.
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'other', 'x', 'BTC', '2024-01-01Z', 'NaN' from generate_series(1, 500)",
        )
        .await;
    add(&scene, 2_000, "case when n % 2 = 0 then 'known' else 'new' end", "'ETH'").await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.text(HELD).await, "unknown_account new 6 3000");
    let mut scene = with_accounts(scene, &["known", "new"]).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1000");
    scene.sql(LISTS_ARE_OLD).await;
    // Of a large entity, PostgreSQL would look up each id by itself. These rows are behind the watermark.
    scene
        .sql(
            "alter table ledger.balance_snapshots disable trigger stamp_change_xid;
             insert into ledger.balance_snapshots
                    (entity_id, entity_account_id, currency, captured_at, balance, change_xid)
             select 'acme', 'known', 'BTC', '2020-01-01Z', n, '3' from generate_series(1, 200000) n;
             alter table ledger.balance_snapshots enable always trigger stamp_change_xid;
             analyze ledger.balance_snapshots",
        )
        .await;
    sessions_end(&scene).await;
    let before = searches(&scene).await;
    output_of(&scene, 3, &["run"]).await;
    sessions_end(&scene).await;
    assert_eq!(scene.text(HELD).await, "NULL");
    assert_eq!(imports(&scene).len(), 3);
    let searched = searches(&scene).await - before;
    assert!(searched < 50, "{searched} searches for 3,000 rows");
}
