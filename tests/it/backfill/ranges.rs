//! The rows that belong to a range.

use sqlx::PgPool;

use super::{accounts_since, backfill_2024, texts};
use crate::support::{TestEnv, output_of};

#[sqlx::test(migrations = false)]
async fn a_range_is_half_open_to_the_microsecond(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "America/New_York").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', at::text, 'BTC', at::timestamptz, 1
                 from unnest(array['2024-03-01 11:59:59.999999Z', '2024-03-01 12:00:00Z', '2024-03-01 12:00:00.000001Z',
                                   '2024-03-02 06:29:59.999999Z', '2024-03-02 06:30:00Z', 'infinity', '-infinity']) at;
               insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'long ago', 'BTC', '0001-06-01Z', 1), ('acme', 'before', 'BTC', '0044-03-15 BC', 1)").await;
    let range = ["backfill", "--from", "2024-03-01T12:00:00Z", "--to", "2024-03-02T08:30:00+02:00"];
    output_of(&scene, 0, &range).await;
    assert_eq!(
        accounts_since(&scene, 0),
        ["2024-03-01 12:00:00Z", "2024-03-01 12:00:00.000001Z", "2024-03-02 06:29:59.999999Z"]
    );
    let range = ["backfill", "--from", "2024-03-01T12:00:00.000001Z", "--to", "2024-03-02T06:29:59.999999Z"];
    output_of(&scene, 0, &range).await;
    assert_eq!(accounts_since(&scene, 3), ["2024-03-01 12:00:00.000001Z"]);
    output_of(&scene, 0, &["backfill", "--from", "0001-01-01", "--to", "0002-01-01"]).await;
    assert_eq!(accounts_since(&scene, 4), ["long ago"]);
    // However long a range is, arithmetic loses no instant.
    output_of(&scene, 0, &["backfill", "--from", "0001-01-01", "--to", "9999-12-31"]).await;
    assert_eq!(accounts_since(&scene, 5).len(), 6);
}

#[sqlx::test(migrations = false)]
async fn a_date_is_a_day_in_each_entitys_own_zone(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    for zone in [
        "Pacific/Kiritimati",
        "Asia/Kathmandu",
        "Europe/Zurich",
        "UTC",
        "America/New_York",
        "Pacific/Pago_Pago",
    ] {
        scene.entity(zone, zone).await;
    }
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select entity_id, entity_id || n, 'BTC', '2024-04-30Z'::timestamptz + n * interval '15 minutes', n
                 from elven_sync.entities, generate_series(0, 400) n").await;
    output_of(&scene, 0, &["backfill", "--from", "2024-05-01", "--to", "2024-05-03"]).await;
    let expected = "select s.entity_account_id from ledger.balance_snapshots s join elven_sync.entities e using (entity_id)
                     where (captured_at at time zone e.timezone)::date in ('2024-05-01', '2024-05-02')";
    let (mut received, mut expected) = (accounts_since(&scene, 0), texts(&scene, expected).await);
    received.sort();
    expected.sort();
    assert_eq!(received, expected);
    assert_eq!(received.len(), 6 * 192);
}

/// Days of 23 and 25 hours, of 23:30 and 24:30, and days whose midnight is skipped or repeated.
#[sqlx::test(migrations = false)]
async fn ranges_across_clock_changes_match_postgresql(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    for (zone, day, quarters) in [
        ("Europe/Zurich", "2024-03-31", 92),
        ("Europe/Zurich", "2024-10-27", 100),
        ("Australia/Lord_Howe", "2024-10-06", 94),
        ("Australia/Lord_Howe", "2024-04-07", 98),
        ("America/Sao_Paulo", "2017-10-15", 92),
        ("America/Sao_Paulo", "2018-02-17", 100),
        ("Atlantic/Azores", "2024-10-27", 100),
        ("Pacific/Apia", "2011-12-31", 96),
        ("Pacific/Apia", "2011-12-29", 96),
    ] {
        scene.sql("truncate elven_sync.entities; delete from ledger.balance_snapshots").await;
        scene.entity("acme", zone).await;
        let rows = format!(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'acme', n, 'BTC', '{day} 00:00Z'::timestamptz + n * interval '15 minutes', n
               from generate_series(-200, 300) n returning ''"
        );
        texts(&scene, &rows).await;
        let next = texts(&scene, &format!("select ('{day}'::date + 1)::text")).await.pop().unwrap();
        let before = scene.balances().len();
        output_of(&scene, 0, &["backfill", "--from", day, "--to", &next]).await;
        let read = texts(
            &scene,
            "select rows_read::text from elven_sync.sync_backfills order by backfill_id desc limit 1",
        );
        assert_eq!(read.await, [quarters.to_string()], "{zone} {day}");
        let expected = format!(
            "select entity_account_id from ledger.balance_snapshots
              where (captured_at at time zone '{zone}')::date = '{day}'"
        );
        let mut expected = texts(&scene, &expected).await;
        let mut received = accounts_since(&scene, before);
        expected.sort();
        received.sort();
        assert_eq!(received, expected, "{zone} {day}");
    }
}

/// The range stays as it was at the request.
#[sqlx::test(migrations = false)]
async fn later_zone_change_does_not_move_a_range(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.entity("acme", "Asia/Tokyo").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', n, 'BTC', '2023-12-31Z'::timestamptz + n * interval '1 hour', n from generate_series(0, 47) n").await;
    scene.sandbox.inject(elven_sync::sandbox::Fault::Answer {
        status: 429,
        body: String::new(),
        headers: Vec::new(),
    });
    backfill_2024(&scene, 1, &[]).await;
    scene.sql("update elven_sync.entities set timezone = 'UTC'").await;
    output_of(&scene, 0, &["backfill", "--resume", "1"]).await;
    assert_eq!(accounts_since(&scene, 0).len(), 33, "from 15:00 UTC on");
}
