//! The checks of the data against the API.

use std::collections::BTreeSet;

use elven_sync::sandbox::Options;
use sqlx::PgPool;

use super::{assert_each_appears_and_ends, assert_found, synced};
use crate::support::TestEnv;

/// A ledger whose accounts the API knows.
async fn known(pool: PgPool) -> TestEnv {
    let scene = synced(pool).await;
    let accounts = Some(BTreeSet::from(["a1", "a2", "a3"].map(str::to_owned)));
    TestEnv::connect_like(scene.pool.clone(), Options { accounts, ..Options::default() }).await
}

#[sqlx::test(migrations = false)]
async fn names_that_the_api_does_not_know_are_found(pool: PgPool) {
    let scene = known(pool).await;
    assert_each_appears_and_ends(
        &scene,
        &[
            (
                "data.accounts",
                "update ledger.balance_snapshots set entity_account_id = ' A1' where entity_account_id = 'a1'",
                "warning",
                &["does not list 1 account", "` A1` of `acme` (near: `a1`)", "elven-sync map account"],
                "update ledger.balance_snapshots set entity_account_id = 'a1' where entity_account_id = ' A1'",
            ),
            (
                "data.currencies",
                "update ledger.balance_snapshots set currency = 'btc'",
                "warning",
                &["does not list 1 currency", "(near: `BTC`)", "elven-sync map currency"],
                "insert into elven_sync.currency_map (entity_id, ledger_currency, currency) values ('*', 'btc', 'BTC')",
            ),
            // Another asset is named and not proposed.
            (
                "data.currencies",
                "update ledger.balance_snapshots set currency = 'USDTX'",
                "warning",
                &["`USDTX` of `acme` (near: `USDT`", "elven-sync map currency 'USDTX' ELVEN_NAME"],
                "update ledger.balance_snapshots set currency = 'BTC'",
            ),
            // The ledger has the right name, too, so that a map would be refused.
            (
                "data.accounts",
                "update ledger.balance_snapshots set entity_account_id = 'A1' where entity_account_id = 'a2';
                 update ledger.balance_snapshots set entity_account_id = 'a1' where entity_account_id <> 'A1'",
                "warning",
                &["`A1` of `acme` (near: `a1`", "correct account `A1` to `a1` in the ledger"],
                "update ledger.balance_snapshots set entity_account_id = 'a1'",
            ),
        ],
    )
    .await;
}

/// Without a list nothing can be said, and that is no failure of the sync.
#[sqlx::test(migrations = false)]
async fn without_a_list_names_are_not_compared(pool: PgPool) {
    let scene = synced(pool).await;
    assert_found(&scene, "data.accounts", "skipped", &["the list of accounts could not be read"]).await;
    assert_found(&scene, "data.currencies", "ok", &["lists the currencies"]).await;
}

#[sqlx::test(migrations = false)]
async fn amounts_and_times_that_look_wrong_are_found(pool: PgPool) {
    let scene = known(pool).await;
    assert_each_appears_and_ends(
        &scene,
        &[
            (
                "data.amounts",
                "update ledger.balance_snapshots set balance = 'NaN' where entity_account_id = 'a1'",
                "warning",
                &["1 of the 3 newest rows has a balance", "`a1` BTC of `acme`"],
                "update ledger.balance_snapshots set balance = 1 where entity_account_id = 'a1'",
            ),
            (
                "data.amounts",
                "update ledger.balance_snapshots set balance = 0.12345678901234567891 where entity_account_id = 'a1'",
                "warning",
                &["more digits than a double holds", "sent exactly"],
                "update ledger.balance_snapshots set balance = 1.1 where entity_account_id = 'a1'",
            ),
            (
                "data.decimals",
                "update ledger.balance_snapshots set balance = 1234567890123456000 + id",
                "warning",
                &["each balance in `BTC` of `acme` is a whole number", "balance_scale"],
                "update ledger.balance_snapshots set balance = 1.5",
            ),
            (
                "data.decimals",
                "update ledger.balance_snapshots set balance = 0.1234567890123456789 where entity_account_id = 'a1'",
                "warning",
                &["more than 18 digits behind the decimal point"],
                "update ledger.balance_snapshots set balance = 1.5",
            ),
            (
                "data.times",
                "update ledger.balance_snapshots set captured_at = now() + interval '3 days' where entity_account_id = 'a1'",
                "warning",
                &["1 of the newest rows", "in the future"],
                "update ledger.balance_snapshots set captured_at = now()",
            ),
            (
                "data.times",
                "update ledger.balance_snapshots set captured_at = 'infinity' where entity_account_id = 'a1'",
                "warning",
                &["infinite or before 1970"],
                "update ledger.balance_snapshots set captured_at = now()",
            ),
        ],
    )
    .await;
}
