//! Repairs: rows that were set aside and corrected are no finding, wherever they were corrected.

use elven_sync::audit::EntityProof;
use sqlx::PgPool;

use super::{assert_verified, findings, proof};
use crate::support::{TestEnv, output_of};

/// A table with nullable columns, a table of account names, and the view that joins them, which is the ledger.
const TREASURY: &str = "
    create schema treasury;
    create table treasury.positions (
        id bigint primary key, owner text, wallet text, asset text, taken_at timestamptz, amount numeric,
        stamp xid8 not null default pg_current_xact_id());
    create index on treasury.positions (owner, stamp, id);
    create function treasury.stamp() returns trigger language plpgsql as
        $$ begin new.stamp := pg_current_xact_id(); return new; end $$;
    create trigger stamp before insert or update on treasury.positions
        for each row execute function treasury.stamp();
    alter table treasury.positions enable always trigger stamp;
    create table treasury.accounts (wallet text primary key, account text not null);
    insert into treasury.accounts select 'w' || n, 'a' || n from generate_series(1, 100) n;
    create view treasury.feed as
        select p.id, p.owner as entity_id, a.account as entity_account_id, p.asset as currency,
               p.taken_at as captured_at, p.amount as balance, p.stamp as change_xid
          from treasury.positions p left join treasury.accounts a using (wallet);";

/// 40 rows in batches of ten. Each batch has one row with a currency that the API does not know, and one row that
/// cannot be sent: rows 4, 14, ... are in lower case, and rows 7, 17, ... have no account.
async fn scene_with_rows_set_aside(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "10");
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "treasury.feed");
    scene.sql(TREASURY).await;
    scene.entity("acme", "Europe/Zurich").await;
    scene
        .sql(
            "insert into treasury.positions
             select n, 'acme', case when n % 10 = 7 then 'new' || n else 'w' || n end,
                    case when n % 10 = 4 then 'btc' else 'BTC' end, '2024-07-01Z', n from generate_series(1, 40) n",
        )
        .await;
    scene.run().await;
    assert_eq!(scene.text(OPEN).await, "invalid_row 4, unknown_currency 4");
    assert_eq!(assert_verified(&scene).await, (40, 0));
    scene
}

/// Returns the number of rows of the entity whose errors are open.
fn still_open(entity: &EntityProof) -> i64 {
    serde_json::to_value(entity).unwrap()["rows_set_aside_open"].as_i64().unwrap()
}

const OPEN: &str = "select string_agg(kind || ' ' || rows, ', ' order by kind)
                      from (select kind, count(*) as rows from elven_sync.sync_errors where resolved_at is null group by kind) e";

const IN_UPPER_CASE: &str = "
    create or replace view treasury.feed as
        select p.id, p.owner as entity_id, a.account as entity_account_id, upper(p.asset) as currency,
               p.taken_at as captured_at, p.amount as balance, p.stamp as change_xid
          from treasury.positions p left join treasury.accounts a using (wallet)";

#[sqlx::test(migrations = false)]
async fn rows_corrected_in_the_view_are_no_finding(pool: PgPool) {
    let scene = scene_with_rows_set_aside(pool).await;
    scene.sql(IN_UPPER_CASE).await;
    assert_eq!(assert_verified(&scene).await, (40, 0), "corrected, and not sent yet");
    output_of(&scene, 3, &["errors", "retry"]).await;
    assert_eq!(scene.text(OPEN).await, "invalid_row 4");
    assert_eq!(assert_verified(&scene).await, (40, 0));
    let entity = proof(&scene, true).await.remove(0);
    assert_eq!((entity.rows_set_aside, still_open(&entity)), (8, 4));
}

#[sqlx::test(migrations = false)]
async fn rows_corrected_by_a_joined_table_are_no_finding(pool: PgPool) {
    let scene = scene_with_rows_set_aside(pool).await;
    scene
        .sql("insert into treasury.accounts select 'new' || n, 'a' || n from unnest('{7,17,27,37}'::int[]) n")
        .await;
    assert_eq!(assert_verified(&scene).await, (40, 0), "corrected, and not sent yet");
    output_of(&scene, 3, &["errors", "retry"]).await;
    assert_eq!(scene.text(OPEN).await, "unknown_currency 4");
    assert_eq!(assert_verified(&scene).await, (40, 0));
    scene.sql(IN_UPPER_CASE).await;
    output_of(&scene, 0, &["errors", "retry"]).await;
    assert!(output_of(&scene, 0, &["verify", "--deep"]).await.contains("(40 rows)"));
}

/// The other rows of their batches are unchanged, so that those bodies are verified.
#[sqlx::test(migrations = false)]
async fn rows_corrected_in_the_table_leave_batch_bodies_proven(pool: PgPool) {
    let scene = scene_with_rows_set_aside(pool).await;
    let before = proof(&scene, true).await.remove(0);
    scene
        .sql("update treasury.positions set asset = upper(asset), wallet = 'w' || id where asset <> 'BTC' or wallet like 'new%'")
        .await;
    scene.run().await;
    assert_eq!(assert_verified(&scene).await, (40, 0));
    let after = proof(&scene, true).await.remove(0);
    // All earlier bodies, and the body of the corrected rows.
    assert_eq!((after.bodies_proven, after.bodies_changed), (before.bodies_proven + 1, 0), "{after:?}");
    assert_eq!((after.rows_set_aside, still_open(&after)), (8, 0));
}

/// Of two rows of one key the newer is refused and the older is sent. Later the view shows both differently.
#[sqlx::test(migrations = false)]
async fn corrected_row_that_superseded_another_is_no_finding(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.seen");
    scene
        .sql(
            "create view ledger.seen as select * from ledger.balance_snapshots;
             insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance) values
                 ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('acme', 'x', 'BTC', '2024-01-01 00:00:00.1Z', 2),
                 ('acme', 'x', 'BTC', '2024-01-01 00:00:00.2Z', -3), ('acme', 'b', 'BTC', '2024-01-01Z', 'NaN')",
        )
        .await;
    scene.entity("acme", "UTC").await;
    // Only the newer row is refused: the older row of the key is sent in its place.
    scene.sandbox.set_rules(vec!["reject:negative".parse().unwrap()]);
    scene.run().await;
    let sent: Vec<String> = scene.balances().into_iter().map(|(_, balance)| balance).collect();
    assert!(sent.contains(&"2".to_owned()) && !sent.contains(&"-3".to_owned()), "{sent:?}");
    assert_eq!(assert_verified(&scene).await, (4, 0));
    scene.sandbox.set_rules(Vec::new());
    scene
        .sql(
            "create or replace view ledger.seen as
             select id, entity_id, entity_account_id, currency, captured_at,
                    case when balance < 0 then 33 when balance = 'NaN' then 4 else balance end as balance, change_xid
               from ledger.balance_snapshots",
        )
        .await;
    output_of(&scene, 0, &["errors", "retry"]).await;
    assert_eq!(assert_verified(&scene).await, (4, 0));
}

/// Elven holds other values than the ledger shows: a finding that names the remedy and accuses nobody.
#[sqlx::test(migrations = false)]
async fn accepted_rows_with_changed_values_are_named_with_their_backfill(pool: PgPool) {
    let scene = scene_with_rows_set_aside(pool).await;
    scene.sql("update treasury.positions set taken_at = '2024-07-02 12:00:00.25Z' where id = 12").await;
    scene.run().await;
    scene.sql("update treasury.accounts set account = 'other' where wallet = 'w12'").await;
    let broken = proof(&scene, true).await.remove(0);
    assert_eq!(broken.findings.len(), 1, "{:?}", broken.findings);
    let finding = &broken.findings[0];
    assert_eq!((finding.what, &finding.ledger_ids), ("body", &vec!["12".to_owned()]));
    let backfill = "elven-sync backfill --entity 'acme' --from 2024-07-02T12:00:00.250000Z --to 2024-07-02T12:00:00.250001Z";
    for expected in [backfill, "a view or a mapping table that [ledger] reads has changed", "hint: "] {
        assert!(finding.message.contains(expected), "{}", finding.message);
    }
    // The command in the finding repairs it.
    let arguments: Vec<&str> = backfill.split(' ').skip(1).map(|word| word.trim_matches('\'')).collect();
    output_of(&scene, 0, &arguments).await;
    assert_eq!(scene.balances().last().unwrap(), &("other".to_owned(), "12".to_owned()));
    // From then on the journal refers to a newer version of the row.
    scene.sql("update treasury.positions set amount = amount where id = 12").await;
    scene.run().await;
    assert_eq!(assert_verified(&scene).await, (40, 0));
}

/// As after a change of a mapping with which many batches were made.
#[sqlx::test(migrations = false)]
async fn equal_findings_of_many_batches_are_printed_once(pool: PgPool) {
    let scene = scene_with_rows_set_aside(pool).await;
    scene
        .sql(
            "insert into treasury.positions
             select n, 'acme', 'w' || n, 'BTC', '2024-07-02Z', n from generate_series(41, 100) n",
        )
        .await;
    scene.run().await;
    scene.sql("update treasury.accounts set account = account || 'x'").await;
    let text = output_of(&scene, 3, &["verify", "--deep"]).await;
    let json: serde_json::Value =
        serde_json::from_str(&output_of(&scene, 3, &["verify", "--deep", "--json"]).await).unwrap();
    let findings = json["entities"][0]["findings"].as_array().unwrap();
    assert!(findings.len() > 8, "{}", findings.len());
    let more = format!("and {} more of kind `body`, in batches ", findings.len() - 1);
    assert!(text.contains(&more), "{more}: {text}");
    assert_eq!(text.matches("body_sha256").count(), 1, "{text}");
}

/// Rows that were set aside hide no finding about other rows.
#[sqlx::test(migrations = false)]
async fn balance_changed_without_change_xid_is_found_beside_corrected_rows(pool: PgPool) {
    let scene = scene_with_rows_set_aside(pool).await;
    scene.sql(IN_UPPER_CASE).await;
    scene
        .sql("insert into treasury.accounts select 'new' || n, 'a' || n from unnest('{7,17,27,37}'::int[]) n")
        .await;
    output_of(&scene, 0, &["errors", "retry"]).await;
    // The retry sent row 34, whose body is not verified.
    for id in [1, 12, 23, 35, 40] {
        let change = |sign: char| {
            format!(
                "alter table treasury.positions disable trigger stamp;
                 update treasury.positions set amount = amount {sign} 1 where id = {id};
                 alter table treasury.positions enable always trigger stamp"
            )
        };
        sqlx::raw_sql(sqlx::AssertSqlSafe(change('+'))).execute(&scene.pool).await.unwrap();
        let (found, said) = findings(&proof(&scene, true).await);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["body"], "row {id}: {said}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(change('-'))).execute(&scene.pool).await.unwrap();
    }
    assert_eq!(assert_verified(&scene).await, (40, 0));
}
