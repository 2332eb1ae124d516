//! Of several rows with the same account, currency and local second, the API ends with the newest.

use fastrand::Rng;
use sqlx::{AssertSqlSafe, PgPool};

use super::{accounts_since, backfill_2024, texts};
use crate::support::{TestEnv, fault_rules, output_of, stderr, variable};

/// An environment with one entity in a zone, and batches of this many rows.
async fn scene_in(pool: PgPool, zone: &str, batch_rows: &str) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", batch_rows);
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.entity("acme", zone).await;
    scene
}

fn balances_since(scene: &TestEnv, records: usize) -> Vec<String> {
    scene.balances().into_iter().skip(records).map(|(_, balance)| balance).collect()
}

#[sqlx::test(migrations = false)]
async fn older_rival_is_never_sent_after_a_newer_one(pool: PgPool) {
    for batch_rows in ["1", "2", "3"] {
        sqlx::raw_sql("drop schema if exists ledger, elven_sync cascade").execute(&pool).await.unwrap();
        let scene = scene_in(pool.clone(), "UTC", batch_rows).await;
        scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                   values ('acme', 'a', 'BTC', '2024-01-01 00:00:00.1Z', 1), ('acme', 'a', 'BTC', '2024-01-01 00:00:00.9Z', 4),
                          ('acme', 'a', 'BTC', '2024-01-01 00:00:00.5Z', 2), ('acme', 'a', 'BTC', '2024-01-01 00:00:00.9Z', 5),
                          ('acme', 'a', 'ETH', '2024-01-01 00:00:00.2Z', 6), ('acme', 'b', 'BTC', '2024-01-01 00:00:00.3Z', 7),
                          ('acme', 'a', 'BTC', '2024-01-01 00:00:01Z', 8)").await;
        let report = backfill_2024(&scene, 0, &[]).await;
        assert_eq!(balances_since(&scene, 0), ["6", "7", "5", "8"], "{batch_rows}");
        assert!(report.contains("7 rows read, 4 uploaded, 0 set aside, 3 superseded"), "{report}");
    }
}

#[sqlx::test(migrations = false)]
async fn range_end_inside_a_second_still_finds_newer_rivals(pool: PgPool) {
    let scene = scene_in(pool, "UTC", "2").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01 00:00:00.1Z', 1), ('acme', 'a', 'BTC', '2024-01-01 00:00:00.9Z', 2),
                      ('acme', 'b', 'BTC', '2024-01-01 00:00:00.1Z', 3), ('acme', 'b', 'BTC', '2024-01-01 00:00:01Z', 4),
                      ('acme', 'c', 'BTC', '2024-01-01 00:00:00.1Z', 5), ('acme', 'c', 'BTC', '2024-01-01 00:00:00.9Z', 'NaN')").await;
    output_of(&scene, 0, &["backfill", "--from", "2024-01-01", "--to", "2024-01-01T00:00:00.5Z"]).await;
    // The API has or will get the newer row of `a`. `c` has no newer row that can be sent.
    assert_eq!(balances_since(&scene, 0), ["3", "5"]);
}

/// Two instants an hour apart with one wall-clock time, many batches between them, and the later one after the range.
#[sqlx::test(migrations = false)]
async fn repeated_hour_is_sent_with_its_later_values(pool: PgPool) {
    let scene = scene_in(pool, "Europe/Zurich", "5").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', 'a', 'BTC', '2024-10-26 22:00Z'::timestamptz + n * interval '1 minute', n
                 from generate_series(0, 300) n").await;
    let expected = "select trim_scale(balance)::text from ledger.balance_snapshots s
                     where captured_at >= '2024-10-26 22:00Z' and captured_at < UNTIL
                       and not exists (select from ledger.balance_snapshots r where r.captured_at > s.captured_at
                                          and r.captured_at at time zone 'Europe/Zurich' = s.captured_at at time zone 'Europe/Zurich')
                     order by captured_at";
    let mut before = 0;
    for until in
        ["2024-10-27T00:30:00Z", "2024-10-27T01:00:00Z", "2024-10-27T01:30:00Z", "2024-10-28T00:00:00Z"]
    {
        output_of(&scene, 0, &["backfill", "--from", "2024-10-27", "--to", until]).await;
        let received = balances_since(&scene, before);
        before += received.len();
        assert_eq!(
            received,
            texts(&scene, &expected.replace("UNTIL", &format!("'{until}'"))).await,
            "{until}"
        );
    }
}

/// A newer row that the API has not got and will not get supersedes nothing.
#[sqlx::test(migrations = false)]
async fn rival_set_aside_supersedes_nothing(pool: PgPool) {
    let scene = scene_in(pool, "UTC", "1").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01 00:00:00.1Z', 1), ('acme', 'a', 'BTC', '2024-01-01 00:00:00.9Z', -6)").await;
    scene.sandbox.set_rules(fault_rules(&["reject:negative"]));
    scene.run().await;
    assert_eq!(balances_since(&scene, 0), ["1"]);
    output_of(&scene, 0, &["backfill", "--from", "2024-01-01", "--to", "2024-01-01T00:00:00.5Z"]).await;
    assert_eq!(balances_since(&scene, 1), ["1"]);
    // An updated row will be uploaded.
    scene.sandbox.set_rules(Vec::new());
    scene.sql("update ledger.balance_snapshots set balance = 2 where id = 2").await;
    scene.run().await;
    output_of(&scene, 0, &["backfill", "--from", "2024-01-01", "--to", "2024-01-01T00:00:00.5Z"]).await;
    assert_eq!(balances_since(&scene, 2), ["2"]);
}

/// The newest row is not in the batch. The batch is bisected, and no part has the superseded row.
#[sqlx::test(migrations = false)]
async fn parts_of_a_batch_exclude_superseded_rows(pool: PgPool) {
    let scene = scene_in(pool, "UTC", "4").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01 00:00:00.1Z', 1), ('acme', 'b', 'BTC', '2024-01-01 00:00:00.2Z', -6),
                      ('acme', 'c', 'BTC', '2024-01-01 00:00:00.3Z', 3), ('acme', 'd', 'BTC', '2024-01-01 00:00:00.4Z', 4),
                      ('acme', 'a', 'BTC', '2024-01-01 00:00:00.5Z', 5), ('acme', 'c', 'BTC', '2024-01-01 00:00:00.6Z', 6)").await;
    scene.sandbox.set_rules(fault_rules(&["reject:negative"]));
    backfill_2024(&scene, 3, &[]).await;
    let mut received = balances_since(&scene, 0);
    received.sort();
    assert_eq!(received, ["4", "5", "6"]);
    let counted = "select concat_ws(' ', rows_read, rows_uploaded, rows_rejected, rows_superseded) from elven_sync.sync_backfills";
    assert_eq!(scene.text(counted).await, "6 3 1 2");
}

/// All accounts are captured at one instant, in many batches, and some of them once more within the second.
#[sqlx::test(migrations = false)]
async fn rivals_are_found_among_many_accounts_of_one_second(pool: PgPool) {
    let scene = scene_in(pool, "UTC", "50").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', 'a' || n % 4800, 'BTC', '2024-01-01Z'::timestamptz + n / 4800 * interval '0.5 seconds', n
                 from generate_series(0, 4999) n").await;
    backfill_2024(&scene, 0, &[]).await;
    let counted =
        "select concat_ws(' ', rows_read, rows_uploaded, rows_superseded) from elven_sync.sync_backfills";
    assert_eq!(scene.text(counted).await, "5000 4800 200");
    let last: std::collections::BTreeMap<String, String> = scene.balances().into_iter().collect();
    assert_eq!((last.len(), last["a0"].as_str(), last["a199"].as_str()), (4800, "4800", "4999"));
}

/// For any rows, zone, batch size and end of the range: a row is sent if and only if the ledger has no newer row of
/// its account, currency and local second. `ELVEN_SEEDS=200` takes that many seeds.
#[sqlx::test(migrations = false)]
async fn backfill_sends_exactly_the_newest_row_of_each_key(pool: PgPool) {
    // The zone, and the instant at which its clocks go back: by an hour, by half an hour, by a day.
    const CHANGES: [(&str, &str); 6] = [
        ("Europe/Zurich", "2024-10-27 01:00Z"),
        ("Australia/Lord_Howe", "2024-04-06 15:00Z"),
        ("America/Sao_Paulo", "2018-02-18 02:00Z"),
        ("America/Juneau", "1867-10-18 23:29:41Z"),
        ("Europe/Zurich", "2024-03-31 01:00Z"),
        ("UTC", "2024-03-31 01:00Z"),
    ];
    let scene = TestEnv::new(pool).await;
    for seed in 0..variable("ELVEN_SEEDS").unwrap_or(24) {
        let mut rng = Rng::with_seed(seed.cast_unsigned());
        let (zone, at) = CHANGES[usize::try_from(seed).unwrap() % CHANGES.len()];
        let id = format!("acme-{seed}");
        scene.entity(&id, zone).await;
        let hours = if zone == "America/Juneau" { 50 } else { 3 };
        // Few minutes and few accounts, so that many rows have rivals.
        let rows = format!(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select '{id}', 'a' || (hashint4(n + {seed}) & 1), 'BTC',
                    '{at}'::timestamptz + ((hashint4(n * 7 + {seed}) & 1023) - 512) * interval '{} seconds'
                    + (hashint4(n * 5) & 3) * interval '0.3 seconds', n
               from generate_series(1, 300) n returning ''",
            (hours * 3600 / 512 / 600 * 600).max(60)
        );
        texts(&scene, &rows).await;
        let cut = format!(
            "select to_char(('{at}'::timestamptz + {} * interval '1 second') at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.5\"Z\"')",
            rng.i64(-hours * 3600..hours * 3600)
        );
        let until = texts(&scene, &cut).await.pop().unwrap();
        let before = scene.balances().len();
        let batch_rows = rng.usize(1..40).to_string();
        let mut command =
            scene.command(&["backfill", "--from", "1800-01-01", "--to", &until, "--entity", &id]);
        command.env("ELVEN_SYNC_SYNC__BATCH_ROWS", &batch_rows);
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let expected = format!(
            "select trim_scale(balance)::text from (
                select *, row_number() over (partition by entity_account_id,
                       date_trunc('second', captured_at at time zone '{zone}') order by captured_at desc, id desc) as place
                  from ledger.balance_snapshots where entity_id = '{id}') r
              where place = 1 and captured_at < '{until}' order by 1"
        );
        let expected: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(expected)).fetch_all(&scene.pool).await.unwrap();
        let mut received = balances_since(&scene, before);
        let mut expected = expected;
        received.sort();
        expected.sort();
        assert_eq!(received, expected, "seed {seed}: {zone} until {until}, batches of {batch_rows}");
    }
    assert!(!accounts_since(&scene, 0).is_empty());
}
