//! Existing ledgers: other names, other types, views, and the ones that are refused.

use elven_sync::journal::RunStatus;
use sqlx::PgPool;

use crate::support::{TestEnv, stderr};

/// An environment whose ledger is the table or view that `sql` creates.
async fn scene_with(pool: PgPool, settings: &[(&str, &str)], sql: &'static str) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "Europe/Zurich").await;
    scene.sql(sql).await;
    for (name, value) in settings {
        scene.set(&format!("ELVEN_SYNC_LEDGER__{name}"), value);
    }
    scene
}

#[sqlx::test(migrations = false)]
async fn names_are_quoted_and_minor_units_and_local_times_are_read_exactly(pool: PgPool) {
    let scene = scene_with(
        pool,
        &[
            ("TABLE", "Büch\"er.Bal.ances"),
            ("COLUMNS__ID", "select"),
            ("COLUMNS__ENTITY_ACCOUNT_ID", "Account \"Id\""),
            ("COLUMNS__CAPTURED_AT", "taken at"),
            ("COLUMNS__BALANCE", "cents"),
            ("COLUMNS__CHANGE_XID", "Xid"),
            ("CAPTURED_AT_ZONE", "America/New_York"),
            ("BALANCE_SCALE", "2"),
            ("ENTITY", "acme"),
        ],
        r#"create schema "Büch""er";
           create table "Büch""er"."Bal.ances" ("select" uuid primary key, "Account ""Id""" text, currency varchar(8),
               "taken at" timestamp, cents bigint, "Xid" xid8 not null default pg_current_xact_id());
           insert into "Büch""er"."Bal.ances" values
               ('00000000-0000-0000-0000-000000000001', 'a', 'USD', '2024-01-01 12:00:00', 1234567890123456789),
               ('00000000-0000-0000-0000-000000000002', 'b', 'USD', '2024-07-01 12:00:00', -5),
               ('00000000-0000-0000-0000-000000000003', 'c', 'USD', '2024-11-03 01:30:00', 100),
               ('00000000-0000-0000-0000-000000000004', 'd', 'USD', 'infinity', 1);"#,
    );
    let mut scene = scene.await;
    // A name with a dot needs the quotes of SQL.
    assert!(stderr(&scene.output(&["run"]).await).contains("schema.table"));
    scene.set("ELVEN_SYNC_LEDGER__TABLE", r#""Büch""er"."Bal.ances""#);
    let report = scene.run().await;
    assert_eq!(report.status, RunStatus::Incomplete, "{report:?}");
    assert_eq!(
        scene.received(),
        [
            "a USD 2024-01-01 18:00:00 12345678901234567.89",
            "b USD 2024-07-01 18:00:00 -0.05",
            // A time in the repeated hour means the later instant, in standard time, as AT TIME ZONE decides.
            "c USD 2024-11-03 07:30:00 1",
        ]
    );
    assert_eq!(
        scene.text("select ledger_id || ' ' || kind from elven_sync.sync_errors").await,
        "00000000-0000-0000-0000-000000000004 invalid_row"
    );
    scene
        .sql(r#"update "Büch""er"."Bal.ances" set cents = 101, "Xid" = default where "Account ""Id""" = 'c'"#)
        .await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 1);
}

#[sqlx::test(migrations = false)]
async fn a_view_and_domains_and_text_ids_are_read(pool: PgPool) {
    let mut scene = scene_with(
        pool,
        &[("TABLE", "books.balances")],
        "create schema books;
         create domain books.amount as numeric(30, 10);
         create domain books.money as books.amount check (value > -1000);
         create table books.raw (id varchar primary key, owner text, account uuid, ccy text, at timestamptz, value books.money,
                                 stamp xid8 not null default pg_current_xact_id());
         create index on books.raw (owner, stamp, id);
         create view books.balances as select id, owner as entity_id, account as entity_account_id, ccy as currency,
                at as captured_at, value as balance, stamp as change_xid from books.raw where ccy <> 'test';
         insert into books.raw select 'row ' || n, 'acme', lpad(n::text, 32, '0')::uuid, 'BTC', '2024-01-01Z', n / 4.0
           from generate_series(1, 25) n;
         insert into books.raw values ('x', 'acme', '00000000-0000-0000-0000-000000000001', 'test', '2024-01-01Z', 1);",
    )
    .await;
    // Pages of 4 rows, so that cursors are compared with text ids.
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    assert_eq!(scene.run().await.counters.rows_uploaded, 25);
    assert!(
        scene
            .received()
            .contains(&"00000000-0000-0000-0000-000000000003 BTC 2024-01-01 01:00:00 0.75".to_owned())
    );
    assert_eq!(scene.run().await.counters.rows_read, 0);
}

/// Each one is refused before the first read, with its name, what was found and what is accepted.
#[sqlx::test(migrations = false)]
async fn unsuitable_ledger_columns_are_named(pool: PgPool) {
    let mut scene = scene_with(
        pool,
        &[("TABLE", "books.t")],
        "create schema books;
         create collation books.blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         create table books.t (id bigint primary key, entity_id text, entity_account_id text, currency text,
                captured_at timestamptz, balance numeric, change_xid xid8, local timestamp, cents bigint, double float8,
                day date, wide money, old_xid bigint, blind text collate books.blind, zone_name text);
         create materialized view books.m as select * from books.t;",
    )
    .await;
    for (settings, expected) in [
        (
            &[("COLUMNS__BALANCE", "double")][..],
            "column double of the ledger books.t is double precision, but balance has to be numeric or bigint",
        ),
        (&[("COLUMNS__BALANCE", "wide")], "is money"),
        (&[("COLUMNS__BALANCE", "cents")], "balance_scale"),
        (&[("BALANCE_SCALE", "2")], "remove balance_scale"),
        (
            &[("COLUMNS__CAPTURED_AT", "day")],
            "is date, but captured_at has to be timestamp with time zone or",
        ),
        (&[("COLUMNS__CAPTURED_AT", "local")], "captured_at_zone = \"UTC\""),
        (&[("CAPTURED_AT_ZONE", "UTC")], "remove captured_at_zone"),
        (&[("COLUMNS__CAPTURED_AT", "local"), ("CAPTURED_AT_ZONE", "Mars/Olympus")], "not an IANA time zone"),
        (&[("COLUMNS__CHANGE_XID", "old_xid")], "is bigint, but change_xid has to be xid8"),
        (&[("COLUMNS__CHANGE_XID", "none")], "no column none for change_xid; hint: `elven-sync attach`"),
        (&[("COLUMNS__ENTITY_ID", "none")], "[ledger] entity"),
        (&[("COLUMNS__ID", "double")], "id has to be bigint or integer"),
        (&[("COLUMNS__ID", "blind")], "treats different texts as equal"),
        (&[("COLUMNS__ENTITY_ID", "blind")], "treats different texts as equal"),
        (&[("COLUMNS__ENTITY_ID", "zone_name"), ("ENTITY", "acme")], "exclude each other"),
        (&[("TABLE", "Books.T")], "did you mean books.t?"),
        (&[("TABLE", "books.m")], "materialized view"),
    ] {
        for (name, value) in settings {
            scene.set(&format!("ELVEN_SYNC_LEDGER__{name}"), value);
        }
        let output = scene.output(&["run"]).await;
        assert_eq!(output.status.code(), Some(1), "{settings:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{settings:?}: {}", stderr(&output));
        for (name, _) in settings {
            scene.unset(&format!("ELVEN_SYNC_LEDGER__{name}"));
        }
        scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.t");
    }
    let begun = "select count(*)::text from elven_sync.sync_runs where status <> 'failed'";
    assert_eq!(scene.text(begun).await, "0");
}

/// A comparison with NULL is never true, so no page would have such rows. They are reported.
#[sqlx::test(migrations = false)]
async fn rows_with_null_key_columns_are_reported(pool: PgPool) {
    let mut scene = scene_with(
        pool,
        &[("TABLE", "ledger.loose")],
        "create table ledger.loose (id bigint, entity_id text, entity_account_id text, currency text,
                captured_at timestamptz, balance numeric, change_xid xid8);
         create index on ledger.loose (entity_id, change_xid, id);
         insert into ledger.loose select n, 'acme', 'a' || n, 'BTC', '2024-01-01Z', n, pg_current_xact_id() from generate_series(1, 20) n;",
    )
    .await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    for (hole, kind, repair) in [
        (
            "update ledger.loose set change_xid = null where id = 3",
            "watermark",
            "update ledger.loose set change_xid = pg_current_xact_id() where id = 3",
        ),
        // The row without an id sorts last in its transaction, after pages of other rows.
        (
            "update ledger.loose set change_xid = pg_current_xact_id(), id = nullif(id, 3)",
            "config",
            "update ledger.loose set id = 3 where id is null",
        ),
        (
            "update ledger.loose set entity_id = null where id = 3",
            "unregistered_entity",
            "update ledger.loose set entity_id = 'acme', change_xid = pg_current_xact_id() where id = 3",
        ),
    ] {
        scene.sql(hole).await;
        let report = scene.run().await;
        assert_ne!(report.status, RunStatus::Succeeded, "{hole}: {report:?}");
        let open =
            "select string_agg(kind || entity_id, ',') from elven_sync.sync_errors where resolved_at is null";
        assert!(scene.text(open).await.starts_with(kind), "{hole}: {}", scene.text(open).await);
        scene.sql("update elven_sync.sync_errors set resolved_at = now(), resolution = 'by the test' where kind = 'unregistered_entity'").await;
        scene.sql(repair).await;
        assert_eq!(scene.run().await.status, RunStatus::Succeeded, "{repair}");
    }
    let mut last = scene.balances();
    last.reverse();
    assert!(last.contains(&("a3".to_owned(), "3".to_owned())));
}

/// A page that cannot be decoded is abandoned in the middle. Its connection is not used again, or answers to
/// statements of other entities would be mixed up.
#[sqlx::test(migrations = false)]
async fn failed_page_affects_no_other_entity(pool: PgPool) {
    let scene = scene_with(
        pool,
        &[("TABLE", "ledger.loose")],
        "create table ledger.loose (id bigint, entity_id text, entity_account_id text, currency text,
                captured_at timestamptz, balance numeric, change_xid xid8);
         insert into ledger.loose select nullif(n % 1000, 500), 'e' || n % 4, 'a' || n, 'BTC', '2024-01-01Z', n, pg_current_xact_id()
           from generate_series(1, 4000) n;",
    )
    .await;
    for entity_id in ["e0", "e1", "e2", "e3"] {
        scene.entity(entity_id, "UTC").await;
    }
    for _ in 0..5 {
        let report = scene.run().await;
        let failed: Vec<&str> = report
            .entities
            .iter()
            .filter(|entity| entity.failure().is_some())
            .map(|entity| entity.entity_id.as_str())
            .collect();
        assert_eq!(failed, ["e0"], "{report:?}");
        assert!(report.entities[1].failure().unwrap().contains("id is NULL"));
        scene.sql("update ledger.loose set change_xid = pg_current_xact_id()").await;
    }
}
