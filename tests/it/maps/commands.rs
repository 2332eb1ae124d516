//! `map account | currency | list | remove`.

use serde_json::Value;
use sqlx::PgPool;

use super::{map, scene};
use crate::support::{TestEnv, output_of};

#[sqlx::test(migrations = false)]
async fn maps_are_added_replaced_listed_and_removed(pool: PgPool) {
    let scene = scene(pool).await;
    assert!(map(&scene, &["list"]).await.starts_with("no name is mapped"));
    let added = map(&scene, &["account", "main", "8nfr-1"]).await;
    assert_eq!(added, "account `main` of entity `acme` is mapped to `8nfr-1` (map version 1)\n");
    let again = map(&scene, &["account", "main", "8nfr-1"]).await;
    assert_eq!(again, "account `main` of entity `acme` is mapped to `8nfr-1` already\n");
    let other = map(&scene, &["account", "main", "8nfr-9", "--entity", "acme"]).await;
    assert_eq!(
        other,
        "account `main` of entity `acme` is mapped to `8nfr-9` instead of `8nfr-1` (map version 3)\n"
    );
    let all = map(&scene, &["currency", "USDC", "USD"]).await;
    assert_eq!(all, "currency `USDC` of all entities is mapped to `USD` (map version 4)\n");
    let absent = map(&scene, &["currency", "--", "-x", "y z"]).await;
    assert!(absent.contains("note: no row of the ledger has the currency `-x` now"), "{absent}");
    let listed: Value = serde_json::from_str(&map(&scene, &["list", "--json"]).await).unwrap();
    let listed: Vec<String> = listed["maps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|map| {
            format!("{} {} {} {}", map["map"], map["entity_id"], map["ledger_name"], map["elven_name"])
        })
        .collect();
    let expected = [
        r#""account" "acme" "main" "8nfr-9""#,
        r#""currency" "*" "-x" "y z""#,
        r#""currency" "*" "USDC" "USD""#,
    ];
    assert_eq!(listed, expected);
    let table = map(&scene, &["list", "--entity", "acme"]).await;
    assert!(table.contains("8nfr-9") && table.contains("in the ledger"), "{table}");
    let removed = map(&scene, &["remove", "currency", "USDC"]).await;
    assert_eq!(
        removed,
        "currency `USDC` of all entities is not mapped to `USD` any more; the next run sends it as `USDC`\n"
    );
    let none = output_of(&scene, 1, &["map", "remove", "currency", "USDC"]).await;
    assert!(none.starts_with("there is no such map"), "{none}");
    let actions =
        "select string_agg(concat_ws(' ', action, entity_id, details ->> 'names'), ', ' order by action_id)
                     from elven_sync.sync_actions where action like 'map%'";
    assert_eq!(
        scene.text(actions).await,
        r#"map acme {"main": "8nfr-1"}, map_remove acme {"main": "8nfr-1"}, map acme {"main": "8nfr-9"}, "#
            .to_owned()
            + r#"map {"USDC": "USD"}, map {"-x": "y z"}, map_remove {"USDC": "USD"}"#
    );
}

#[sqlx::test(migrations = false)]
async fn wrong_input_changes_nothing_and_is_named(pool: PgPool) {
    let scene = scene(pool).await;
    scene.entity("beta", "UTC").await;
    for (code, arguments, words) in [
        (1, &["account", "main", "x"][..], "several are registered; hint: add --entity ID"),
        (1, &["account", "main", "x", "--entity", "*"], "an account belongs to one entity"),
        (1, &["account", "main", "x", "--entity", "acne"], "did you mean `acme`?"),
        (1, &["currency", "USDC", " "], "the currency at Elven is blank"),
        (1, &["currency", "", "USD"], "the currency in the ledger is blank"),
        (1, &["currency", "USDC", "US\u{7}D"], "the currency at Elven has a control character"),
        (
            1,
            &["currency", "USDC", "BTC"],
            "currency `BTC` is also a name in the ledger: 1 row of entity `acme`. With this map, balances of two names would replace each other at Elven. Nothing was changed; hint: if `USDC` and `BTC` mean the same: elven-sync map currency 'USDC' 'BTC' --shared",
        ),
        (2, &["currency", "USDC"], "<ELVEN_NAME>"),
        (2, &["currency", "USDC", "USD", "--entity", ""], "--entity"),
        (2, &["remove", "balance", "USDC"], "account, currency"),
    ] {
        let refused = output_of(&scene, code, &[&["map"], arguments].concat()).await;
        assert!(refused.contains(words), "{arguments:?}: {refused}");
    }
    assert_eq!(scene.text("select count(*)::text from elven_sync.map_history").await, "0");
}

/// The commands that `reference` prints map the unknown names.
#[sqlx::test(migrations = false)]
async fn reference_shows_maps_and_the_commands_that_make_them(pool: PgPool) {
    let scene = scene(pool).await;
    scene.sql("update ledger.balance_snapshots set currency = 'usd' where currency = 'USDC'").await;
    // The sandbox lists no accounts.
    output_of(&scene, 3, &["reference", "pull"]).await;
    let shown = output_of(&scene, 0, &["reference", "currencies", "--unknown"]).await;
    assert!(shown.contains("  elven-sync map currency 'usd' 'USD'\n"), "{shown}");
    output_of(&scene, 0, &["map", "currency", "usd", "USD"]).await;
    let shown = output_of(&scene, 0, &["reference", "currencies"]).await;
    assert!(shown.contains("mapped to USD") && shown.contains("unknown to Elven: none of 2"), "{shown}");
    let json: Value =
        serde_json::from_str(&output_of(&scene, 0, &["reference", "currencies", "--json"]).await).unwrap();
    let usd = json["currencies"].as_array().unwrap().iter().find(|name| name["currency"] == "usd").unwrap();
    assert_eq!((&usd["mapped_to"], &usd["known"]), (&"USD".into(), &true.into()));
    assert!(json["unused"].as_array().unwrap().iter().all(|name| name["currency"] != "USD"));
    let note = map(&scene, &["currency", "usd", "USDollar"]).await;
    assert!(note.contains("Elven's list for credential `default` has no currency `USDollar`"), "{note}");
}

/// A credential feeds one account of Elven from one entity.
#[sqlx::test(migrations = false)]
async fn two_entities_of_a_credential_share_no_account(pool: PgPool) {
    let scene: TestEnv = scene(pool).await;
    scene.entity("beta", "UTC").await;
    map(&scene, &["account", "main", "8nfr-1", "--entity", "acme"]).await;
    let refused =
        output_of(&scene, 1, &["map", "account", "b", "8nfr-1", "--entity", "beta", "--shared"]).await;
    assert!(
        refused.contains("account '8nfr-1' at Elven would be fed by two entities of credential 'default'"),
        "{refused}"
    );
    scene.sql("update elven_sync.entities set credential = 'second' where entity_id = 'beta'").await;
    map(&scene, &["account", "b", "8nfr-1", "--entity", "beta"]).await;
    let back = "update elven_sync.entities set credential = 'default' where entity_id = 'beta'";
    let refused = sqlx::raw_sql(back).execute(&scene.pool).await.unwrap_err().to_string();
    assert!(refused.contains("two entities of credential"), "{refused}");
}

/// A command that a hint proposes has a word in capitals for the name that a person chooses.
#[sqlx::test(migrations = false)]
async fn placeholder_of_a_hint_is_no_name_at_elven(pool: PgPool) {
    let scene = scene(pool).await;
    for (of, list) in [("account", "accounts"), ("currency", "currencies")] {
        let refused = output_of(&scene, 1, &["map", of, "main", "ELVEN_NAME"]).await;
        let hint = format!("hint: elven-sync reference {list}");
        assert!(refused.contains("`ELVEN_NAME` stands for") && refused.contains(&hint), "{refused}");
    }
    assert_eq!(scene.text("select count(*)::text from elven_sync.map_history").await, "0");
}

/// Another spelling of a name that the ledger has, too: the refusal says the same as `reference` and `check`.
#[sqlx::test(migrations = false)]
async fn refused_map_says_what_to_do(pool: PgPool) {
    let scene = scene(pool).await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance) values
                 ('acme', 'Main', 'usdc', '2024-02-01Z', 1), ('beta', 'theirs', 'BTC', '2024-02-01Z', 1)",
        )
        .await;
    scene.entity("beta", "UTC").await;
    for (arguments, words) in [
        (
            &["account", "Main", "main", "--entity", "acme"][..],
            "hint: correct account `Main` to `main` in the ledger, or, if both are the same account: elven-sync map \
             account --entity 'acme' 'Main' 'main' --shared",
        ),
        (
            &["currency", "usdc", "USDC"],
            "hint: correct currency `usdc` to `USDC` in the ledger, or, if both are the same currency: elven-sync map \
             currency 'usdc' 'USDC' --shared",
        ),
        (
            &["account", "main", "theirs", "--entity", "acme"],
            "hint: choose another account at Elven (`elven-sync reference accounts`), or correct the account of the \
             rows of entity `beta` in the ledger",
        ),
    ] {
        let refused = output_of(&scene, 1, &[&["map"], arguments].concat()).await;
        assert!(refused.contains(words), "{arguments:?}: {refused}");
    }
}
