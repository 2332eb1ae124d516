//! Ledgers that several tests use.

use sqlx::PgPool;

use super::TestEnv;

/// A ledger without a unique id: up to three rows that were written together tie in `(change_xid, id)`.
pub const PARTS: &str = "
    create table ledger.parts (
        id bigint not null generated always as (entity_account_id::bigint / 3) stored,
        entity_id text not null, entity_account_id text not null, currency text not null,
        captured_at timestamptz not null, balance numeric not null, change_xid xid8 not null
    ) partition by hash (entity_account_id);
    create table ledger.parts_0 partition of ledger.parts for values with (modulus 2, remainder 0);
    create table ledger.parts_1 partition of ledger.parts for values with (modulus 2, remainder 1);
    create index on ledger.parts (entity_id, change_xid, id);
    create trigger stamp_change_xid before insert or update on ledger.parts
        for each row execute function ledger.stamp_change_xid();";

/// Creates an environment whose next run has three batches of two rows.
pub async fn scene_with_three_batches(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', 'a' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 6) n").await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    // One request at a time, so that it is known which batch a crash interrupts.
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene
}
