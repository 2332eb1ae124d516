//! Control totals equal plain SQL over the ledger, over clock changes and zones.

use std::collections::BTreeSet;

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};

use super::{Folder, audited, execute};
use crate::support::TestEnv;

/// The totals of a report as text, one for each account and currency.
fn totals(audit: &Value, of: impl Fn(&Value) -> Vec<Value>) -> BTreeSet<String> {
    let entities = audit["entities"].as_array().unwrap();
    let totals = entities.iter().flat_map(|entity| {
        let entity_id = entity["entity_id"].as_str().unwrap().to_owned();
        of(entity).into_iter().map(move |total| {
            let text = |key: &str| total[key].as_str().unwrap().to_owned();
            let names = [text("entity_account_id"), text("currency")].join(" ");
            let span = [text("first_captured_at"), text("last_captured_at")].join(" ");
            format!("{entity_id} {names} {} {} {span}", total["rows"], text("sum"))
        })
    });
    totals.collect()
}

/// The same totals by plain SQL, of the rows for which a condition holds.
async fn by_sql(scene: &TestEnv, condition: &str) -> BTreeSet<String> {
    let sql = format!(
        "select concat_ws(' ', t.entity_id, entity_account_id, currency, count(*), trim_scale(sum(balance)),
                          to_char(min(captured_at) at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
                          to_char(max(captured_at) at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'))
           from ledger.balance_snapshots t join elven_sync.entities e using (entity_id)
          where {condition} group by t.entity_id, entity_account_id, currency"
    );
    let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&scene.pool).await.unwrap();
    rows.into_iter().collect()
}

/// Zones with a change of the clock in the period, in both directions, and with offsets that are no whole hours. Apia
/// skipped 30 December 2011.
const ZONES: [&str; 6] =
    ["Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Apia", "UTC", "Australia/Lord_Howe"];

/// Adds rows around these days, every 20 minutes, with amounts of many digits and both signs.
async fn fill(scene: &TestEnv, around: &str) {
    for zone in ZONES {
        execute(
            scene,
            format!(
                "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                 select '{zone}', 'a' || abs(n % 3), 'BTC',
                        timestamptz '{around} 00:00Z' + n * interval '20 min' + n * interval '0.000001 s',
                        (n - 70) * 12345678901234567890.000000000123456789 / 7
                   from generate_series(-120, 120) n"
            ),
        )
        .await;
    }
}

#[sqlx::test(migrations = false)]
async fn totals_equal_plain_sql_over_clock_changes_and_zones(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "50");
    for zone in ZONES {
        scene.entity(zone, zone).await;
    }
    // Clocks go forward and back in Berlin, New York and Lord Howe, and Apia skips a day.
    let days = [
        ("2024-03-10", "2024-03-10", "2024-03-11"),
        ("2024-03-31", "2024-03-31", "2024-04-01"),
        ("2024-04-07", "2024-04-06", "2024-04-08"),
        ("2024-10-06", "2024-10-06", "2024-10-07"),
        ("2024-10-27", "2024-10-27", "2024-10-28"),
        ("2024-11-03", "2024-11-03", "2024-11-04"),
        ("2011-12-30", "2011-12-29", "2011-12-31"),
    ];
    for (around, ..) in days {
        fill(&scene, around).await;
    }
    scene.run().await;
    for (_, from, to) in days {
        // PostgreSQL has the zone rules of the system, which say the same about these years.
        let period = format!(
            "captured_at >= '{from}'::timestamp at time zone timezone and captured_at < '{to}'::timestamp at time zone timezone"
        );
        let audit = audited(&scene, 0, from, to).await;
        let population = Folder::of(&scene, 0, from, to).await.population();
        let ids: BTreeSet<String> = population.keys().cloned().collect();
        assert_eq!(ids, ids_by_sql(&scene, &period).await, "{from}");
        assert!(ids.len() > 100, "{from}: {}", ids.len());
        for outcome in ["uploaded", "superseded"] {
            let ids: Vec<&str> = population
                .values()
                .filter(|row| row["outcome"] == outcome)
                .map(|row| row["ledger_id"].as_str())
                .collect();
            let expected = by_sql(&scene, &format!("id = any ('{{{}}}')", ids.join(","))).await;
            let of_outcome = |entity: &Value| {
                let totals = entity["totals"].as_array().unwrap();
                totals.iter().filter(|total| total["outcome"] == outcome).cloned().collect()
            };
            assert_eq!(totals(&audit, of_outcome), expected, "{from} {outcome}");
            if outcome == "uploaded" {
                // What was sent: under the same names, since nothing is mapped.
                let proven = |entity: &Value| entity["sent"]["proven"].as_array().unwrap().clone();
                assert_eq!(totals(&audit, proven), expected, "{from}");
            }
        }
    }
    let superseded: i64 =
        sqlx::query_scalar("select sum(rows_superseded)::bigint from elven_sync.sync_batches")
            .fetch_one(&scene.pool)
            .await
            .unwrap();
    assert!(superseded > 0, "rows of a repeated hour supersede others");
}

/// The ids of the rows for which a condition holds.
async fn ids_by_sql(scene: &TestEnv, condition: &str) -> BTreeSet<String> {
    let sql = format!(
        "select id::text from ledger.balance_snapshots join elven_sync.entities using (entity_id) where {condition}"
    );
    let ids: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&scene.pool).await.unwrap();
    ids.into_iter().collect()
}

/// The present version counts once, wherever it was sent, and the period is half-open.
#[sqlx::test(migrations = false)]
async fn first_instant_belongs_to_the_period_and_the_end_does_not(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "America/New_York").await;
    for at in [
        "2024-03-01 04:59:59.999999Z",
        "2024-03-01 05:00Z",
        "2024-04-01 03:59:59.999999Z",
        "2024-04-01 04:00Z",
    ] {
        execute(&scene, format!(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'a', 'BTC', '{at}', 1)"
        )).await;
    }
    scene.run().await;
    let audit = audited(&scene, 0, "2024-03-01", "2024-04-01").await;
    assert_eq!(audit["rows"]["all"], 2, "{audit}");
    let total = &audit["entities"][0]["totals"][0];
    assert_eq!(
        (&total["first_captured_at"], &total["last_captured_at"]),
        (&"2024-03-01T05:00:00.000000Z".into(), &"2024-04-01T03:59:59.999999Z".into())
    );
    let audit = audited(&scene, 0, "2024-04-01T04:00:00Z", "2024-04-01T04:00:00.000001Z").await;
    assert_eq!(audit["rows"]["all"], 1, "{audit}");
}

/// Amounts that are no numbers are counted, and are not in the sum.
#[sqlx::test(migrations = false)]
async fn amounts_that_are_no_numbers_are_not_summed(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01Z', 0.10), ('acme', 'a', 'BTC', '2024-01-02Z', 'NaN'),
                      ('acme', 'a', 'BTC', 'infinity', 5)").await;
    scene.run().await;
    let audit = audited(&scene, 3, "2024-01-01", "2024-02-01").await;
    let totals = audit["entities"][0]["totals"].as_array().unwrap();
    let of = |outcome: &str| totals.iter().find(|total| total["outcome"] == outcome).unwrap();
    assert_eq!((&of("uploaded")["sum"], &of("uploaded")["not_summed"]), (&"0.1".into(), &0.into()));
    assert_eq!((&of("set_aside")["sum"], &of("set_aside")["not_summed"]), (&"0".into(), &1.into()));
}
