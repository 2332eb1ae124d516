//! The SQL of the documents runs as it is written.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, PgPool};

use super::{Document, read};
use crate::support::{TestEnv, files_in, output_of};

const PAGES_WITH_SQL: [&str; 3] = ["docs/ledgers.md", "docs/backfills.md", "docs/time-zones.md"];
const ROLES: [&str; 3] = ["elven_sync_run", "elven_sync_read", "elven_sync_prune"];

/// The preconditions of the recipes: two tables of the ledger of a reader, and the table of another example.
const TABLES: &str = "
    create schema treasury;
    create table treasury.positions (
        position_id bigint generated always as identity primary key,
        company text not null, account text not null, asset text, taken_at timestamptz, amount numeric);
    create table treasury.btc_positions (
        id bigint generated always as identity primary key,
        company text not null, wallet text not null, taken_at timestamptz not null, satoshis bigint not null);
    insert into treasury.positions (company, account, asset, taken_at, amount)
        values ('acme', 'UBS main', 'chf', '2024-05-01Z', 12.5), ('acme', 'Kraken', 'chf', '2024-05-01Z', 7);
    insert into treasury.btc_positions (company, wallet, taken_at, satoshis)
        values ('acme', 'Hot wallet', '2024-05-01Z', 123456789);
    create schema accounting;
    create table accounting.balances (taken_at timestamptz, change_xid xid8 default pg_current_xact_id())";

const NAMES: &str = "
    insert into treasury.elven_accounts values ('acme', 'UBS main', 'acc-1'), ('acme', 'Hot wallet', 'acc-3');
    insert into treasury.elven_currencies values ('chf', 'CHF'), ('BTC', 'BTC')";

/// A careful administrator: no role has a right that was not granted to it.
const PUBLIC_HAS_NOTHING: &str = "
    revoke all on schema public, ledger, treasury, accounting, elven_sync from public;
    revoke all on all tables in schema public, ledger, treasury, accounting, elven_sync from public;
    revoke execute on all functions in schema public, ledger, treasury, accounting, elven_sync from public";

#[sqlx::test(migrations = false)]
async fn ledger_recipes_work(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.sql(TABLES).await;
    scene.set("ELVEN_SYNC_LEDGER__COLUMNS__ENTITY_ID", "company");
    scene.set("ELVEN_SYNC_LEDGER__COLUMNS__CAPTURED_AT", "taken_at");
    for (table, id) in [("treasury.positions", "position_id"), ("treasury.btc_positions", "id")] {
        scene.set("ELVEN_SYNC_LEDGER__TABLE", table);
        scene.set("ELVEN_SYNC_LEDGER__COLUMNS__ID", id);
        output_of(&scene, 0, &["attach", "--backfill-index"]).await;
    }
    // Roles belong to the whole cluster, and other tests may use it.
    let suffix = scene.text("select '_' || oid from pg_database where datname = current_database()").await;
    for name in PAGES_WITH_SQL {
        let page = Document { name: name.to_owned(), text: read(name) };
        for fence in page.fences().iter().filter(|fence| fence.language == "sql") {
            let mut sql = fence.text.clone();
            for role in ROLES {
                sql = sql.replace(role, &format!("{role}{suffix}"));
            }
            // One at a time: a concurrent index build cannot share a message with another statement.
            for statement in sql.split(";\n") {
                let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&scene.pool).await;
                assert!(done.is_ok(), "{name} line {}: {statement}: {done:?}", fence.line);
            }
        }
    }
    scene.sql(PUBLIC_HAS_NOTHING).await;
    scene.sql(NAMES).await;
    scene.entity("acme", "Europe/Zurich").await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "treasury.elven_named");
    scene.set("ELVEN_SYNC_LEDGER__COLUMNS__ENTITY_ACCOUNT_ID", "account");
    scene.set("ELVEN_SYNC_LEDGER__COLUMNS__BALANCE", "amount");

    // The rights that the page grants are enough, and no name is lost.
    let url = scene.url.clone();
    let as_role = |role: &str| {
        let separator = if url.contains('?') { '&' } else { '?' };
        format!("{url}{separator}options=-c%20role%3Delven_sync_{role}{suffix}")
    };
    scene.set("DATABASE_URL", &as_role("run"));
    let run = output_of(&scene, 3, &["run"]).await;
    assert!(run.contains("3 rows read, 2 uploaded, 1 set aside"), "{run}");
    scene.sql("insert into treasury.elven_accounts values ('acme', 'Kraken', 'acc-9')").await;
    output_of(&scene, 0, &["errors", "retry"]).await;
    scene
        .sql("update treasury.elven_accounts set elven_account = 'acc-2' where ledger_account = 'Kraken'")
        .await;
    scene.sql("update treasury.positions set change_xid = default where account = 'Kraken'").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(
        scene.received(),
        [
            "acc-1 CHF 2024-05-01 02:00:00 12.5",
            "acc-2 CHF 2024-05-01 02:00:00 7",
            "acc-3 BTC 2024-05-01 02:00:00 1.23456789",
            "acc-9 CHF 2024-05-01 02:00:00 7",
        ]
    );
    output_of(&scene, 0, &["backfill", "--from", "2024-05-01", "--to", "2024-06-01"]).await;
    for arguments in [
        &["status"][..],
        &["status", "--row", "btc-1"],
        &["verify"],
        &["errors", "list", "--all"],
        &["errors", "show", "1"],
        &["entity", "list"],
        &["backfill", "list"],
        &["entity", "rewind", "acme", "--yes", "--reason", "to try the rights"],
        &["run"],
        &["map", "currency", "CHF", "chf"],
        &["map", "remove", "currency", "CHF"],
    ] {
        output_of(&scene, 0, arguments).await;
    }
    // The sandbox knows every account, so it lists none.
    output_of(&scene, 3, &["reference", "pull"]).await;
    scene.sql("insert into elven_sync.known_accounts select 'default', 'acc-' || n, null, now() from generate_series(1, 9) n").await;
    scene.set("DATABASE_URL", &as_role("read"));
    for arguments in [
        &["status"][..],
        &["status", "--row", "btc-1"],
        &["verify", "--deep"],
        &["errors", "list"],
        &["reference", "accounts"],
        &["map", "list"],
        &["run", "--dry-run"],
        &["backfill", "--from", "2024-05-01", "--to", "2024-06-01", "--dry-run"],
    ] {
        output_of(&scene, 0, arguments).await;
    }
    scene.set("DATABASE_URL", &as_role("prune"));
    output_of(&scene, 0, &["prune", "--older-than", "1ms"]).await;
    for role in ROLES {
        let drop = format!("drop owned by {role}{suffix}; drop role {role}{suffix}");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&scene.pool).await.unwrap();
    }
}

/// The rights to delete are granted for the tables from which the program deletes, and for no other.
#[test]
fn rights_to_delete_are_those_that_the_program_needs() {
    let names_after = |texts: &mut dyn Iterator<Item = String>, words: &str| -> BTreeSet<String> {
        let all: String = texts.map(|text| text.to_lowercase() + "\n").collect();
        let rest =
            all.split(words).skip(1).map(|rest| rest.split([';', '"']).next().unwrap_or_default().to_owned());
        let tables = rest.flat_map(|rest| {
            let list = rest.split(" to ").next().unwrap_or_default().to_owned();
            let names =
                list.split(',').filter_map(|name| name.trim().strip_prefix("elven_sync.").map(str::to_owned));
            names.collect::<Vec<_>>()
        });
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        tables.map(|table| table.chars().take_while(|c| is_word(*c)).collect()).collect()
    };
    let granted = names_after(&mut [read("docs/ledgers.md")].into_iter(), "grant delete on ");
    let mut sources = files_in("src", "rs").into_values();
    assert_eq!(granted, names_after(&mut sources, "delete from "));
}
