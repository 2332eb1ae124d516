//! Maps are one to one, unless they are shared: two names of the ledger never replace each other's balances at Elven.

use sqlx::PgPool;

use super::{map, scene};
use crate::support::{TestEnv, output_of};

const ERRORS: &str = "
    select string_agg(ledger_id || ' ' || kind || ' ' || message, E'\n' order by ledger_id)
      from elven_sync.sync_errors where resolved_at is null";

/// An account that was renamed in the ledger: its rows have the old or the new name.
async fn renamed(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    map(&scene, &["account", "old", "8nfr-1", "--shared"]).await;
    map(&scene, &["account", "new", "8nfr-1", "--shared"]).await;
    scene
}

#[sqlx::test(migrations = false)]
async fn target_of_another_name_is_refused_unless_shared(pool: PgPool) {
    let scene = scene(pool).await;
    map(&scene, &["currency", "USDC", "USD"]).await;
    for arguments in [&["currency", "dollar", "USD"][..], &["currency", "dollar", "USD", "--shared"]] {
        let refused = output_of(&scene, 1, &[&["map"], arguments].concat()).await;
        let words = "two names of the ledger would be one currency at Elven: 'USDC' and 'dollar' are both mapped to 'USD'";
        assert!(refused.contains(words) && refused.contains("hint: a map is one to one"), "{refused}");
    }
    map(&scene, &["currency", "USDC", "USD", "--shared"]).await;
    map(&scene, &["currency", "dollar", "USD", "--shared"]).await;
    assert!(map(&scene, &["list"]).await.contains("dollar"));
}

/// A map of the entity takes precedence over one of all entities.
#[sqlx::test(migrations = false)]
async fn map_of_the_entity_hides_that_of_all(pool: PgPool) {
    let scene = scene(pool).await;
    map(&scene, &["currency", "USDC", "USD"]).await;
    map(&scene, &["currency", "USDC", "EUR", "--entity", "acme"]).await;
    // For acme, USD is no target any more.
    map(&scene, &["currency", "dollar", "USD", "--entity", "acme"]).await;
    output_of(&scene, 0, &["run"]).await;
    assert!(scene.received().contains(&"main EUR 2024-01-01 00:00:00 1".to_owned()));
    // Without its own map, acme would have two names for USD.
    let refused = output_of(&scene, 1, &["map", "remove", "currency", "USDC", "--entity", "acme"]).await;
    assert!(refused.contains("are both mapped to 'USD' for entity 'acme'"), "{refused}");
    assert!(map(&scene, &["list"]).await.contains("EUR"));
}

/// What no command can see: the ledger gets rows under a name at Elven after another name was mapped to it.
#[sqlx::test(migrations = false)]
async fn name_at_elven_of_another_name_is_not_sent_as_itself(pool: PgPool) {
    let scene = scene(pool).await;
    map(&scene, &["account", "main", "8nfr-1"]).await;
    output_of(&scene, 0, &["run"]).await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', '8nfr-1', 'USDC', '2024-01-01Z', 99)",
        )
        .await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.received()[1], "8nfr-1 USDC 2024-01-01 00:00:00 1");
    assert_eq!(scene.received().len(), 3);
    let errors = scene.text(ERRORS).await;
    assert!(
        errors.starts_with("4 invalid_row entity_account_id `8nfr-1` is the name at Elven to which `main`"),
        "{errors}"
    );
    map(&scene, &["account", "main", "8nfr-1", "--shared"]).await;
    scene.sql("update ledger.balance_snapshots set captured_at = '2024-01-05Z' where id = 4").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(ERRORS).await, "NULL");
}

#[sqlx::test(migrations = false)]
async fn renamed_account_goes_on_under_one_name(pool: PgPool) {
    let scene = renamed(pool).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'old', 'BTC', '2024-01-01Z', 1), ('acme', 'new', 'BTC', '2024-01-02Z', 2)").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.received(), ["8nfr-1 BTC 2024-01-01 00:00:00 1", "8nfr-1 BTC 2024-01-02 00:00:00 2"]);
    // A backfill of one name sends the rows of both, because the newest of a key counts.
    let range = ["backfill", "--from", "2024-01-01", "--to", "2024-02-01", "--account", "old"];
    output_of(&scene, 0, &range).await;
    assert_eq!(scene.received().len(), 4, "{:?}", scene.received());
    output_of(&scene, 0, &["verify", "--deep"]).await;
}

/// Neither of two rows with different names is superseded: both are set aside, and each names the other.
#[sqlx::test(migrations = false)]
async fn two_names_in_one_second_are_both_set_aside(pool: PgPool) {
    let scene = renamed(pool).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'old', 'BTC', '2024-01-01 00:00:00.1Z', 1), ('acme', 'old', 'BTC', '2024-01-01Z', 2),
                      ('acme', 'new', 'BTC', '2024-01-01Z', 3), ('acme', 'new', 'BTC', '2024-01-02Z', 4)").await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(scene.received(), ["8nfr-1 BTC 2024-01-02 00:00:00 4"]);
    let errors = scene.text(ERRORS).await;
    let others =
        ["1 invalid_row row 3 has other names", "2 invalid_row row 3 has", "3 invalid_row row 1 has"];
    let named: Vec<bool> =
        errors.lines().zip(others).map(|(error, words)| error.starts_with(words)).collect();
    assert_eq!(named, [true, true, true], "{errors}");
    output_of(&scene, 0, &["verify", "--deep"]).await;
    // One after the other they would replace each other, too.
    for row in ["3", "1"] {
        let id = format!("select error_id::text from elven_sync.sync_errors where ledger_id = '{row}'");
        let id: String = sqlx::query_scalar(sqlx::AssertSqlSafe(id)).fetch_one(&scene.pool).await.unwrap();
        let refused = output_of(&scene, 3, &["errors", "retry", &id]).await;
        assert!(refused.contains("so neither row is sent"), "{refused}");
    }
    assert_eq!(scene.received().len(), 1);
    scene.sql("delete from ledger.balance_snapshots where id = 3").await;
    output_of(&scene, 0, &["errors", "retry"]).await;
    assert_eq!(scene.received()[0], "8nfr-1 BTC 2024-01-01 00:00:00 1");
}

/// A row of another name that a backfill does not send again is a rival, too.
#[sqlx::test(migrations = false)]
async fn backfill_does_not_let_one_name_replace_another(pool: PgPool) {
    let scene = renamed(pool).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'old', 'BTC', '2024-01-01 23:59:59.2Z', 1), ('acme', 'new', 'BTC', '2024-01-01 23:59:59.8Z', 2)").await;
    let range = ["backfill", "--from", "2024-01-01", "--to", "2024-01-01T23:59:59.5Z"];
    output_of(&scene, 3, &range).await;
    assert!(scene.received().is_empty());
    assert!(scene.text(ERRORS).await.starts_with("1 invalid_row row 2 has other names"));
}

/// A map that is inserted by SQL is compared with the ledger by the next run.
#[sqlx::test(migrations = false)]
async fn map_by_sql_to_a_name_of_the_ledger_stops_the_entity(pool: PgPool) {
    let scene = scene(pool).await;
    output_of(&scene, 0, &["run"]).await;
    scene.sql("insert into elven_sync.account_map (entity_id, ledger_account, entity_account_id) values ('acme', 'main', 'other');
               insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'main', 'USDC', '2024-01-03Z', 99)").await;
    for arguments in [&["run"][..], &["backfill", "--from", "2024-01-01", "--to", "2025-01-01"]] {
        let text = output_of(&scene, 1, arguments).await;
        let words =
            "account `main` is mapped to `other`, but the ledger has rows with account `other` itself";
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(scene.received().len(), 3);
    output_of(&scene, 0, &["map", "remove", "account", "main"]).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.received().len(), 4);
}

/// A run compares with rows that were sent before, and with those of its other batches.
#[sqlx::test(migrations = false)]
async fn run_does_not_let_one_name_replace_another_of_another_batch(pool: PgPool) {
    let mut scene = renamed(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'old', 'BTC', '2024-01-01Z', 1), ('acme', 'new', 'BTC', '2024-01-01Z', 2)").await;
    output_of(&scene, 3, &["run"]).await;
    assert!(scene.received().is_empty());
    let errors = scene.text(ERRORS).await;
    assert!(
        errors.contains("1 invalid_row row 2 has") && errors.contains("2 invalid_row row 1 has"),
        "{errors}"
    );
}

/// A run compares with rows that were sent before.
#[sqlx::test(migrations = false)]
async fn run_does_not_let_one_name_replace_another_that_was_sent(pool: PgPool) {
    let scene = renamed(pool).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'old', 'BTC', '2024-01-01Z', 1), ('acme', 'old', 'BTC', '2024-01-02Z', 2)").await;
    output_of(&scene, 0, &["run"]).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'new', 'BTC', '2024-01-01 00:00:00.5Z', 9), ('acme', 'new', 'BTC', '2024-01-03Z', 3)").await;
    output_of(&scene, 3, &["run"]).await;
    assert!(scene.text(ERRORS).await.starts_with("3 invalid_row row 1 has other names"));
    let balances: Vec<String> = scene.balances().into_iter().map(|(_, balance)| balance).collect();
    assert_eq!(balances, ["1", "2", "3"]);
    // A newer version of the row of the same name goes on.
    scene.sql("update ledger.balance_snapshots set balance = 20 where id = 2").await;
    output_of(&scene, 0, &["run"]).await;
    output_of(&scene, 0, &["verify", "--deep"]).await;
    scene.sql("delete from ledger.balance_snapshots where id = 1").await;
    output_of(&scene, 0, &["errors", "retry"]).await;
    assert_eq!(scene.text(ERRORS).await, "NULL");
}
