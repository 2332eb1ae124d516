//! The four promises, end to end.

use elven_sync::journal::RunStatus;
use sqlx::PgPool;

use crate::support::{KEY, SECRET, TestEnv, stderr, stdout};

/// 12,345 rows of six entities in five zones, over two years with every clock change in them. Balances have up to 38
/// digits. No two rows share account, currency and second.
const SEED: &str = "
    insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
    select e.id, 'acct-' || e.id || '-' || n % 3, (array['BTC', 'ETH', 'USD'])[1 + n % 3],
           '2023-01-01 00:00:00.7Z'::timestamptz + n * interval '8483 seconds 123456 microseconds',
           case n % 7 when 0 then 0 when 1 then -n / 1000.0 when 2 then 12345678901234567890.123456789012345678
                      when 3 then 0.000000000000000001 * n when 4 then 99999999999999999999999999999999999999 - n
                      when 5 then n * 1.50 else n end
      from generate_series(0, 12344) n
      join (values (0, 'alpha'), (1, 'beta'), (2, 'gamma'), (3, 'delta'), (4, 'epsilon'), (5, 'zeta')) e (k, id)
        on e.k = n % 6";

/// The expected records, computed by PostgreSQL: an independent clock and an independent formatter of numbers.
const EXPECTED: &str = "
    select entity_account_id || ' ' || currency || ' '
           || to_char(date_trunc('second', captured_at at time zone e.timezone), 'YYYY-MM-DD HH24:MI:SS')
           || ' ' || trim_scale(balance)::text
      from ledger.balance_snapshots join elven_sync.entities e using (entity_id)";

async fn expected(scene: &TestEnv) -> Vec<String> {
    let mut rows: Vec<String> = sqlx::query_scalar(EXPECTED).fetch_all(&scene.pool).await.unwrap();
    rows.sort();
    rows
}

#[sqlx::test(migrations = false)]
async fn promises_1_2_3_every_row_arrives_exactly_once_and_exactly_right(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    for (entity_id, zone) in [
        ("alpha", "Europe/Zurich"),
        ("beta", "America/New_York"),
        ("gamma", "Asia/Kathmandu"),
        ("delta", "Australia/Lord_Howe"),
        ("epsilon", "UTC"),
        ("zeta", "Europe/Zurich"),
    ] {
        scene.entity(entity_id, zone).await;
    }
    scene.sql(SEED).await;
    let report = scene.run().await;
    assert_eq!(report.status, RunStatus::Succeeded);
    assert_eq!((report.counters.rows_read, report.counters.rows_uploaded), (12_345, 12_345));
    let (received, expected) = (scene.received(), expected(&scene).await);
    assert_eq!(received.len(), 12_345);
    assert_eq!(received.iter().zip(&expected).find(|(got, wanted)| got != wanted), None);

    let again = scene.run().await;
    assert_eq!(
        (again.counters.requests, scene.sandbox.records_accepted()),
        (0, 12_345),
        "a second run sends nothing"
    );
}

/// Hours that are skipped, repeated, half, negative or a day long, and offsets with seconds, from before there were
/// time zones.
const CHANGES: &str = "
    create table changes (entity_id text, at timestamptz);
    insert into changes values
        ('America/New_York', '2024-03-10 07:00Z'), ('America/New_York', '2024-11-03 06:00Z'),
        ('America/New_York', '1966-10-30 06:00Z'), ('America/New_York', '1883-11-18 17:00Z'),
        ('Australia/Lord_Howe', '2024-04-06 15:00Z'), ('Australia/Lord_Howe', '2024-10-05 15:30Z'),
        ('Europe/Dublin', '2024-03-31 01:00Z'), ('Europe/Dublin', '2024-10-27 01:00Z'),
        ('Europe/Dublin', '1971-10-31 02:00Z'), ('Europe/Dublin', '1916-05-21 02:25:21Z'),
        ('Africa/Casablanca', '2024-03-10 02:00Z'), ('Africa/Casablanca', '2024-04-14 02:00Z'),
        ('Africa/Monrovia', '1972-01-07 00:44:30Z'), ('Europe/Zurich', '1941-05-05 00:00Z'),
        ('Pacific/Apia', '2011-12-30 10:00Z');
    insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
    select entity_id, 'a', 'BTC', at + step, row_number() over ()
      from changes, lateral (
           select n * interval '10 minutes' from generate_series(-18, 18) n
           union all select n * interval '1 microsecond' from generate_series(-1, 1) n where n <> 0
           union all select n * interval '1 second' from generate_series(-1, 1) n where n <> 0) steps (step)";

#[sqlx::test(migrations = false)]
async fn promise_3_every_change_of_the_clocks_is_as_postgresql_has_it(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.sql(CHANGES).await;
    let zones: Vec<String> =
        sqlx::query_scalar("select distinct entity_id from changes").fetch_all(&scene.pool).await.unwrap();
    for zone in &zones {
        scene.entity(zone, zone).await;
    }
    let report = scene.run().await;
    assert_eq!(report.status, RunStatus::Succeeded);
    // Each entity has a single batch: of the rows of one second, or of one repeated hour, the newest is sent.
    let mut expected: Vec<String> = sqlx::query_scalar(
        "select distinct on (entity_id, local) concat_ws(' ', 'a', 'BTC', local, balance)
           from (select entity_id, captured_at, id, balance,
                        to_char(date_trunc('second', captured_at at time zone entity_id), 'YYYY-MM-DD HH24:MI:SS') as local
                   from ledger.balance_snapshots) rows
          order by entity_id, local, captured_at desc, id desc",
    )
    .fetch_all(&scene.pool)
    .await
    .unwrap();
    expected.sort();
    let received = scene.received();
    assert_eq!(received.iter().zip(&expected).find(|(got, wanted)| got != wanted), None);
    let (sent, superseded) = (report.counters.rows_uploaded, report.counters.rows_superseded);
    assert_eq!((received.len(), sent + superseded), (expected.len(), report.counters.rows_read));
    assert!(superseded > 60, "{superseded}: hours were repeated");
    assert!(!received.iter().any(|record| record.contains(" 2011-12-30 ")), "Samoa had no such day");
}

#[sqlx::test(migrations = false)]
async fn promise_1_an_updated_row_is_uploaded_again(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('acme', 'b', 'BTC', '2024-01-01Z', 2)").await;
    scene.run().await;
    scene.sql("update ledger.balance_snapshots set balance = 3 where entity_account_id = 'a'").await;
    scene.sql("delete from ledger.balance_snapshots where entity_account_id = 'b'").await;
    scene.run().await;
    let balances = scene.balances();
    assert_eq!(balances.last().unwrap(), &("a".to_owned(), "3".to_owned()));
    assert_eq!(balances.len(), 3);
}

#[sqlx::test(migrations = false)]
async fn promise_1_rows_of_one_second_are_sent_once_and_counted(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    // The repeated hour: two instants with one wall-clock time. The later instant is newer.
    scene.entity("acme", "America/New_York").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-11-03 06:30:00Z', 2), ('acme', 'a', 'BTC', '2024-11-03 05:30:00Z', 1)").await;
    let report = scene.run().await;
    assert_eq!(
        (report.counters.rows_read, report.counters.rows_uploaded, report.counters.rows_superseded),
        (2, 1, 1)
    );
    assert_eq!(scene.received(), ["a BTC 2024-11-03 01:30:00 2"]);
}

#[sqlx::test(migrations = false)]
async fn promise_1_a_row_that_cannot_be_sent_is_set_aside_with_its_reason(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('acme', 'b', 'BTC', '2024-01-01Z', 'NaN'),
                      ('acme', 'c', 'BTC', 'infinity', 1), ('acme', ' ', 'BTC', '2024-01-01Z', 1),
                      ('acme', 'd', E'B\\tC', '2024-01-01Z', 1), ('acme', 'e', 'BTC', '294000-01-01Z', 1)").await;
    let report = scene.run().await;
    assert_eq!(report.status, RunStatus::Incomplete);
    assert_eq!((report.counters.rows_uploaded, report.counters.rows_rejected), (1, 5));
    let reasons = scene.text("select string_agg(ledger_id || ' ' || split_part(message, ';', 1), '|' order by ledger_id)
                                from elven_sync.sync_errors where kind = 'invalid_row' and resolved_at is null").await;
    assert_eq!(
        reasons,
        "2 balance is NaN|3 captured_at is infinite|4 entity_account_id is blank|\
                         5 currency has a control character|6 captured_at is outside the years 0001 to 9999"
    );
    // A corrected row is uploaded and its error resolved. The other errors stay open.
    scene.sql("update ledger.balance_snapshots set balance = 7 where id = 2").await;
    scene.run().await;
    assert_eq!(scene.balances().last().unwrap(), &("b".to_owned(), "7".to_owned()));
    let open = scene.text("select string_agg(ledger_id, ',' order by ledger_id) from elven_sync.sync_errors where resolved_at is null").await;
    assert_eq!(open, "3,4,5,6");
}

#[sqlx::test(migrations = false)]
async fn promise_4_pending_rows_and_unregistered_entities_are_shown(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('ghost', 'g', 'BTC', '2024-01-01Z', 2)").await;
    let status = stdout(&scene.output(&["status", "--json"]).await);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(
        (&status["entities"][0]["status"], &status["entities"][0]["pending_rows"]),
        (&"behind".into(), &1.into())
    );
    let report = scene.run().await;
    assert_eq!((report.status, report.unregistered), (RunStatus::Incomplete, vec!["ghost".to_owned()]));
    let health = "select status || ' ' || pending_rows || ' ' || open_errors from elven_sync.sync_health";
    assert_eq!(scene.text(health).await, "ok 0 0");
    // The entity is registered by SQL: its error is resolved at once, and the next run sends the rows.
    scene.sql("insert into elven_sync.entities (entity_id, timezone) values ('ghost', 'UTC')").await;
    assert_eq!(
        scene.text("select resolution from elven_sync.sync_errors").await,
        "the entity was registered"
    );
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(scene.balances().last().unwrap(), &("g".to_owned(), "2".to_owned()));
}

#[sqlx::test(migrations = false)]
async fn no_secret_is_in_any_output_or_table(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01Z', 1)").await;
    let mut seen = String::new();
    for (arguments, secret) in [
        (&["-vv", "run"][..], SECRET),
        (&["-vv", "run"], "wrong-secret-77aa"),
        (&["status"], SECRET),
        (&["entity", "list", "--json"], SECRET),
    ] {
        scene.set("ELVEN_API_SECRET", secret);
        scene.set("ELVEN_SYNC_LOG", "trace");
        scene.sql("update ledger.balance_snapshots set balance = balance + 1").await;
        let output = scene.output(arguments).await;
        seen += &(stdout(&output) + &stderr(&output));
    }
    assert!(seen.contains("refused credential"), "the wrong secret was tried: {seen}");
    let tables: Vec<String> = sqlx::query_scalar(
        "select query_to_xml('select * from elven_sync.' || tablename, true, false, '')::text
           from pg_tables where schemaname = 'elven_sync'",
    )
    .fetch_all(&scene.pool)
    .await
    .unwrap();
    seen += &tables.concat();
    for secret in [KEY, SECRET, "wrong-secret-77aa"] {
        assert!(!seen.contains(secret), "{secret} in {seen}");
    }
}
