//! `account_map` and `currency_map` by SQL do the same as the command.

use sqlx::PgPool;

use super::{VERSIONS, map, scene};
use crate::support::output_of;

const HISTORY: &str = "
    select string_agg(concat_ws(' ', map_version, entity_id, ledger_name, elven_name, removed_in), ', ' order by map_version)
      from elven_sync.map_history";

#[sqlx::test(migrations = false)]
async fn rows_inserted_by_sql_are_maps(pool: PgPool) {
    let scene = scene(pool).await;
    scene
        .sql(
            "insert into elven_sync.account_map (entity_id, ledger_account, entity_account_id)
               values ('acme', 'main', '8nfr-1'), ('acme', 'other', '8nfr-2');
               insert into elven_sync.currency_map (entity_id, ledger_currency, currency, shared)
               values ('*', 'USDC', 'USD', false)",
        )
        .await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.received()[1], "8nfr-1 USD 2024-01-01 00:00:00 1");
    assert_eq!(scene.text(VERSIONS).await, "3");
    let actions = "select string_agg(concat_ws(' ', action, details ->> 'map', details ->> 'names'), ', ' order by action_id)
                     from elven_sync.sync_actions where action like 'map%'";
    let expected = r#"map account {"main": "8nfr-1", "other": "8nfr-2"}, map currency {"USDC": "USD"}"#;
    assert_eq!(scene.text(actions).await, expected, "one action per statement and entity");
}

#[sqlx::test(migrations = false)]
async fn map_is_never_changed_in_place(pool: PgPool) {
    let scene = scene(pool).await;
    map(&scene, &["currency", "USDC", "USD"]).await;
    for update in [
        "update elven_sync.currency_map set currency = 'EUR'",
        "insert into elven_sync.currency_map (ledger_currency, currency) values ('USDC', 'EUR')
             on conflict (entity_id, ledger_currency) do update set currency = excluded.currency",
    ] {
        let refused = sqlx::raw_sql(update).execute(&scene.pool).await.unwrap_err().to_string();
        assert!(refused.contains("is never updated"), "{refused}");
    }
    scene.sql("delete from elven_sync.currency_map").await;
    scene.sql("insert into elven_sync.currency_map (ledger_currency, currency, map_version) values ('USDC', 'EUR', 1)").await;
    scene.sql("truncate elven_sync.currency_map").await;
    let history = scene.text(HISTORY).await;
    let versions: Vec<&str> = history.split(", ").collect();
    assert!(versions.len() == 2 && versions[0].starts_with("1 * USDC USD "), "{history}");
    assert!(versions.iter().all(|map| map.split(' ').count() == 5), "all are removed: {history}");
}

/// Versions are given in the order in which maps become visible, so that the maps of a version never change.
#[sqlx::test(migrations = false)]
async fn maps_of_a_version_never_change(pool: PgPool) {
    let scene = scene(pool).await;
    let mut first = scene.pool.begin().await.unwrap();
    sqlx::raw_sql("insert into elven_sync.currency_map (ledger_currency, currency) values ('USDC', 'USD')")
        .execute(&mut *first)
        .await
        .unwrap();
    let mut second = scene.pool.begin().await.unwrap();
    sqlx::raw_sql("set local lock_timeout = '300ms'").execute(&mut *second).await.unwrap();
    let refused = sqlx::raw_sql(
        "insert into elven_sync.currency_map (ledger_currency, currency) values ('chf', 'CHF')",
    )
    .execute(&mut *second)
    .await;
    assert!(refused.unwrap_err().to_string().contains("lock timeout"), "the second map waits for the first");
    second.rollback().await.unwrap();
    // A run does not wait, and its batch has the maps that it read.
    output_of(&scene, 0, &["run"]).await;
    first.commit().await.unwrap();
    assert_eq!(scene.text(VERSIONS).await, "-");
    output_of(&scene, 0, &["verify", "--deep"]).await;
}

/// By SQL as by command.
#[sqlx::test(migrations = false)]
async fn tables_refuse_maps_that_mix_balances(pool: PgPool) {
    let scene = scene(pool).await;
    for (insert, words) in [
        (
            "account_map (entity_id, ledger_account, entity_account_id) values ('acme', 'a', 'x'), ('acme', 'b', 'x')",
            "would be one account at Elven",
        ),
        (
            "account_map (entity_id, ledger_account, entity_account_id) values ('*', 'a', 'x')",
            "check constraint",
        ),
        (
            "account_map (entity_id, ledger_account, entity_account_id) values ('acme', 'a', ' ')",
            "check constraint",
        ),
        (
            "currency_map (entity_id, ledger_currency, currency) values ('*', 'a', 'x'), ('acme', 'b', 'x')",
            "would be one currency at Elven",
        ),
        (
            "currency_map (ledger_currency, currency, shared) values ('a', 'x', true), ('b', 'x', false)",
            "would be one currency at Elven",
        ),
    ] {
        let insert = format!("insert into elven_sync.{insert}");
        let refused = sqlx::raw_sql(sqlx::AssertSqlSafe(insert)).execute(&scene.pool).await.unwrap_err();
        assert!(refused.to_string().contains(words), "{refused}");
    }
    assert_eq!(scene.text(HISTORY).await, "NULL");
    // Different entities have different accounts, so their names do not meet.
    scene
        .sql(
            "insert into elven_sync.currency_map (entity_id, ledger_currency, currency)
               values ('acme', 'a', 'x'), ('beta', 'b', 'x')",
        )
        .await;
}
