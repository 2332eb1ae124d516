//! A filter that matches nothing says what there is.

use sqlx::PgPool;

use crate::support::{TestEnv, output_of, stdout};

/// Two entities: `acme` has an invalid row, `beta` has a row that was uploaded.
async fn scene(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.entity("beta", "UTC").await;
    scene
        .sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
              values ('acme', 'a', 'BTC', '2024-01-01Z', 'NaN'), ('beta', 'b', 'ETH', '2024-01-01Z', 1)")
        .await;
    output_of(&scene, 3, &["run"]).await;
    scene
}

#[sqlx::test(migrations = false)]
async fn a_filter_by_an_entity_that_is_not_registered_names_the_registered_ones(pool: PgPool) {
    let scene = scene(pool).await;
    let day = ["backfill", "--from", "2024-01-01", "--to", "2024-01-02"];
    for (arguments, code) in [
        (&["run", "--entity"][..], 1),
        (&["run", "--dry-run", "--entity"], 1),
        (&["errors", "list", "--entity"], 0),
        (&["errors", "list", "--all", "--entity"], 0),
        (&["errors", "list", "--json", "--entity"], 0),
        (&["verify", "--entity"], 1),
        (&["status", "--row", "99", "--entity"], 1),
        (&["entity", "pause"], 1),
        (&[&day[..], &["--entity"]].concat(), 2),
        (&[&day[..], &["--dry-run", "--entity"]].concat(), 2),
    ] {
        for (typed, expected) in [
            ("ACM", "entity `ACM` is not registered; did you mean `acme`?"),
            (
                "subsidiary",
                "entity `subsidiary` is not registered; registered: `acme`, `beta`; hint: elven-sync entity list",
            ),
        ] {
            let text = output_of(&scene, code, &[arguments, &[typed]].concat()).await;
            assert!(text.contains(expected), "{arguments:?}: {text}");
        }
    }
}

#[sqlx::test(migrations = false)]
async fn a_filter_without_errors_says_which_errors_there_are(pool: PgPool) {
    let scene = scene(pool).await;
    let there = "open: 1 invalid_row of `acme`; hint: elven-sync errors list";
    for filter in
        [&["--entity", "beta"][..], &["--kind", "timezone"], &["--entity", "beta", "--kind", "invalid_row"]]
    {
        let text = output_of(&scene, 0, &[&["errors", "list"], filter].concat()).await;
        assert!(text.contains(&format!("no error is open that matches; {there}")), "{text}");
        let json = scene.output(&[&["errors", "list", "--json"], filter].concat()).await;
        assert_eq!(stdout(&json).trim(), r#"{"causes":[]}"#);
        let json = scene.output(&[&["errors", "list", "--rows", "--json"], filter].concat()).await;
        assert_eq!(stdout(&json).trim(), r#"{"errors":[]}"#);
    }
    let unknown_kind = output_of(&scene, 2, &["errors", "list", "--kind", "invalid"]).await;
    assert!(unknown_kind.contains("invalid_row"), "the kinds are listed: {unknown_kind}");
    output_of(&scene, 0, &["errors", "resolve", "1", "--reason", "a test"]).await;
    assert_eq!(output_of(&scene, 0, &["errors", "list", "--entity", "acme"]).await, "no error is open\n");
    let all = output_of(&scene, 0, &["errors", "list", "--all", "--entity", "beta"]).await;
    assert!(all.contains("recorded: 1 invalid_row of `acme`; hint: elven-sync errors list --all"), "{all}");
}

/// Rows of an entity that is not registered have errors of their own.
#[sqlx::test(migrations = false)]
async fn errors_of_an_unregistered_entity_can_be_listed(pool: PgPool) {
    let scene = scene(pool).await;
    scene
        .sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
              values ('gamma', 'c', 'BTC', '2024-01-01Z', 1)")
        .await;
    output_of(&scene, 3, &["run"]).await;
    let text = output_of(&scene, 0, &["errors", "list", "--entity", "gamma"]).await;
    assert!(text.contains("unregistered_entity"), "{text}");
}

#[sqlx::test(migrations = false)]
async fn a_row_of_another_entity_names_that_entity(pool: PgPool) {
    let scene = scene(pool).await;
    let text = output_of(&scene, 3, &["status", "--row", "1", "--entity", "beta"]).await;
    assert!(
        text.contains("has no row 1; there is one of `acme`; hint: elven-sync status --row '1'"),
        "{text}"
    );
    let nowhere = output_of(&scene, 3, &["status", "--row", "99", "--entity", "beta"]).await;
    assert!(nowhere.contains("neither in the ledger nor in the journal"), "{nowhere}");
}

#[sqlx::test(migrations = false)]
async fn a_paused_entity_that_was_asked_for_is_named(pool: PgPool) {
    let scene = scene(pool).await;
    output_of(&scene, 0, &["entity", "pause", "beta"]).await;
    for more in [&[][..], &["--dry-run"]] {
        let text = output_of(&scene, 0, &[&["run", "--entity", "beta"], more].concat()).await;
        assert!(text.contains("entity `beta` is paused; hint: elven-sync entity resume 'beta'"), "{text}");
    }
}

/// Of many accounts, the similar ones are named.
#[sqlx::test(migrations = false)]
async fn a_backfill_of_an_absent_account_names_similar_ones(pool: PgPool) {
    let scene = scene(pool).await;
    scene
        .sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
              select 'beta', 'wallet-' || n, 'ETH', '2024-01-01Z', n from generate_series(1, 30) n")
        .await;
    let asked =
        ["backfill", "--from", "2024-01-01", "--to", "2024-01-02", "--dry-run", "--account", "Wallet-7x"];
    let text = output_of(&scene, 0, &asked).await;
    assert!(text.contains("the range has `wallet-7`, `wallet-1`, `wallet-10` and 29 others"), "{text}");
    let empty = ["backfill", "--from", "2020-01-01", "--to", "2020-01-02", "--dry-run", "--currency", "BTC"];
    let text = output_of(&scene, 0, &empty).await;
    assert!(
        text.contains("no row of the range has currency `BTC`") && text.contains("the range has no row"),
        "{text}"
    );
}
