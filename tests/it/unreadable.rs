//! Rows that the database cannot read, rows that cannot be sent, and messages that it cannot store.

mod encodings;

use sqlx::{AssertSqlSafe, PgPool};

use crate::cluster::Cluster;
use crate::support::{TestEnv, output_of, stderr, stdout};

/// Entities acme and beta with three rows each, in a view whose columns are computed from those of a table.
async fn scene_with_view(pool: PgPool, columns: &str) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.entity("beta", "UTC").await;
    scene
        .sql(
            "create schema books;
             create table books.raw (id bigint primary key, entity_id text not null, bal text not null default '1',
                    divisor integer not null default 1, change_xid xid8 not null default pg_current_xact_id());
             create index on books.raw (entity_id, change_xid, id);
             create function books.refuse(id bigint, divisor integer) returns numeric language plpgsql stable as
             $$ begin if divisor = 0 then raise 'row % has no price', id using detail = 'see the price list'; end if; return 1; end $$;
             create function books.damaged(divisor integer) returns numeric language plpgsql stable as
             $$ begin if divisor = 0 then raise 'invalid page in block 7' using errcode = 'data_corrupted'; end if; return 1; end $$;
             create function books.wait(divisor integer) returns numeric language plpgsql stable as
             $$ begin if divisor = 0 then perform pg_sleep(60); end if; return 1; end $$;
             insert into books.raw (id, entity_id) select n, case when n <= 3 then 'acme' else 'beta' end from generate_series(1, 6) n",
        )
        .await;
    let view = format!(
        "create view books.balances as select id, entity_id, 'a' || id as entity_account_id, 'BTC' as currency,
                timestamptz '2024-01-01Z' + id * interval '1 hour' as captured_at, change_xid, {columns} from books.raw"
    );
    sqlx::raw_sql(AssertSqlSafe(view)).execute(&scene.pool).await.unwrap();
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.balances");
    scene
}

const OPEN: &str =
    "select string_agg(concat_ws(' ', entity_id, kind, ledger_id, message), E'\\n' order by entity_id)
                      from elven_sync.sync_errors where resolved_at is null";

const HEALTH: &str =
    "select string_agg(entity_id || ' ' || status, ',' order by entity_id) from elven_sync.sync_health";

/// Runs, and asserts that acme is finished and reported, and that beta fails with these words.
async fn assert_only_beta_fails(scene: &TestEnv, words: &[&str]) {
    let report = output_of(scene, 3, &["run"]).await;
    assert!(report.contains("failed: beta: ") && !report.contains("failed: acme"), "{report}");
    let done = report.lines().find(|line| line.trim_start().starts_with("acme")).unwrap();
    assert!(done.contains("done"), "{report}");
    assert_eq!(scene.text(HEALTH).await, "acme ok,beta failing");
    let error = scene.text(OPEN).await;
    assert!(error.starts_with("beta ledger ") && error.contains("hint:"), "{error}");
    for words in words {
        assert!(error.contains(words), "{words}: {error}");
    }
    let received: Vec<String> = scene.balances().into_iter().map(|(account, _)| account).collect();
    for account in ["a1", "a2", "a3"] {
        assert!(received.contains(&account.to_owned()), "{received:?}");
    }
    let status = output_of(scene, 3, &["status"]).await;
    assert!(status.contains("beta: the database could not read this entity's rows"), "{status}");
    let runs =
        "select status || ' ' || coalesce(error, '') from elven_sync.sync_runs order by run_id desc limit 1";
    assert!(scene.text(runs).await.starts_with("incomplete beta: "), "{}", scene.text(runs).await);
}

async fn status_json(scene: &TestEnv) -> serde_json::Value {
    let output = scene.output(&["status", "--json"]).await;
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

/// Asserts that the run succeeds after a person has corrected the row.
async fn assert_succeeds_once_corrected(scene: &TestEnv, rows: usize) {
    output_of(scene, 0, &["run"]).await;
    assert_eq!(scene.text(OPEN).await, "NULL");
    assert_eq!(scene.text(HEALTH).await, "acme ok,beta ok");
    assert_eq!(scene.received().len(), rows);
    output_of(scene, 0, &["verify"]).await;
}

#[sqlx::test(migrations = false)]
async fn uncastable_value_stops_only_its_entity_and_names_row(pool: PgPool) {
    let scene = scene_with_view(pool, "bal::numeric as balance").await;
    scene.sql("update books.raw set bal = 'N/A', change_xid = default where id = 5").await;
    let words = ["invalid input syntax for type numeric: \"N/A\"", "22P02", "row 5"];
    assert_only_beta_fails(&scene, &words).await;
    assert!(output_of(&scene, 0, &["errors", "list", "--kind", "ledger"]).await.contains("N/A"));
    let json = status_json(&scene).await;
    assert_eq!(json["entities"][1]["pending_rows"], 3, "{json}");
    // Every command names the entity, and hides nothing of other entities.
    let rehearsed = output_of(&scene, 3, &["run", "--dry-run"]).await;
    assert!(rehearsed.contains("failed: beta: ") && rehearsed.contains("row 5"), "{rehearsed}");
    let backfill = ["backfill", "--from", "2024-01-01", "--to", "2024-01-02"];
    let rehearsed = output_of(&scene, 3, &[&backfill[..], &["--dry-run"]].concat()).await;
    assert!(rehearsed.contains("would fail: beta: ") && rehearsed.contains("acme: 3 rows"), "{rehearsed}");
    let backfilled = output_of(&scene, 3, &backfill).await;
    assert!(backfilled.contains("failed: beta: ") && backfilled.contains("row 5"), "{backfilled}");
    assert_eq!(scene.text("select rows_uploaded::text from elven_sync.sync_backfills").await, "3");
    let of_row = output_of(&scene, 3, &["status", "--row", "5"]).await;
    assert!(of_row.contains("beta") && of_row.contains("row 5") && of_row.contains("N/A"), "{of_row}");
    assert!(output_of(&scene, 0, &["status", "--row", "4"]).await.contains("is pending"));
    output_of(&scene, 0, &["entity", "rewind", "beta", "--yes"]).await;
    scene.sql("update books.raw set bal = '2', change_xid = default where id = 5").await;
    output_of(&scene, 0, &backfill).await;
    assert_succeeds_once_corrected(&scene, 12).await;
}

#[sqlx::test(migrations = false)]
async fn any_error_raised_by_a_row_stops_only_its_entity(pool: PgPool) {
    let correct = "update books.raw set divisor = 1, change_xid = default where divisor = 0";
    for (columns, words) in [
        ("1 / divisor::numeric as balance", &["division by zero", "22012", "row 4"][..]),
        ("books.refuse(id, divisor) as balance", &["row 6 has no price", "see the price list", "P0001"]),
        ("books.damaged(divisor) as balance", &["invalid page in block 7", "XX001", "row 6"]),
        // Even the probe for new rows fails.
        (
            "1::numeric as balance from (select * from books.raw where 1 / divisor = 1) raw --",
            &["division by zero"],
        ),
    ] {
        sqlx::raw_sql("drop schema if exists books, ledger, elven_sync cascade")
            .execute(&pool)
            .await
            .unwrap();
        let scene = scene_with_view(pool.clone(), columns).await;
        scene.sql("update books.raw set divisor = 0 where id = 6").await;
        if words.contains(&"row 4") {
            scene.sql("update books.raw set divisor = 0 where id = 4").await;
        }
        assert_only_beta_fails(&scene, words).await;
        scene.sql(correct).await;
        assert_succeeds_once_corrected(&scene, 6).await;
    }
}

#[sqlx::test(migrations = false)]
async fn statement_timeout_stops_only_its_entity(pool: PgPool) {
    let scene = scene_with_view(pool, "books.wait(divisor) as balance").await;
    scene.sql("update books.raw set divisor = 0 where id = 5").await;
    scene
        .sql("do $$ begin execute format('alter database %I set statement_timeout = ''2s''', current_database()); end $$")
        .await;
    assert_only_beta_fails(&scene, &["canceling statement due to statement timeout", "57014"]).await;
    assert!(!scene.text(OPEN).await.contains("row 5"), "it is not known which row takes long");
    scene.sql("update books.raw set divisor = 1, change_xid = default where id = 5").await;
    assert_succeeds_once_corrected(&scene, 6).await;
}

#[sqlx::test(migrations = false)]
async fn damaged_block_stops_only_its_entity(pool: PgPool) {
    let mut cluster = Cluster::new(&pool).await;
    let scene = TestEnv::at(&cluster.url("ledger")).await;
    scene.entity("acme", "UTC").await;
    scene.entity("beta", "UTC").await;
    scene
        .sql(
            "create table ledger.parts (
                id bigint not null, entity_id text not null, entity_account_id text not null, currency text not null,
                captured_at timestamptz not null, balance numeric not null, change_xid xid8 not null default pg_current_xact_id()
             ) partition by list (entity_id);
             create table ledger.parts_acme partition of ledger.parts for values in ('acme');
             create table ledger.parts_beta partition of ledger.parts for values in ('beta');
             create index on ledger.parts (entity_id, change_xid, id);
             insert into ledger.parts (id, entity_id, entity_account_id, currency, captured_at, balance)
             select n, case when n <= 3 then 'acme' else 'beta' end, 'a' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 6) n;
             checkpoint",
        )
        .await;
    let path = scene.text("select pg_relation_filepath('ledger.parts_beta')").await;
    let mut scene = scene;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.parts");
    scene.pool.close().await;
    cluster.stop().await;
    cluster.damage(&path);
    cluster.start().await;
    let url = scene.url.clone();
    scene.move_to(&url).await;
    assert_only_beta_fails(&scene, &["invalid page in block 0", "XX001"]).await;
    // Even counting the rows fails.
    let json = status_json(&scene).await;
    assert_eq!(json["entities"][0]["pending_rows"], 0, "{json}");
    assert!(json["entities"][1]["pending_rows"].is_null(), "{json}");
    let verified = output_of(&scene, 3, &["verify"]).await;
    assert!(verified.contains("invalid page in block 0"), "{verified}");
}

/// A view fails for a row after its rows were uploaded, and for another row that was set aside.
#[sqlx::test(migrations = false)]
async fn verify_and_retry_name_unreadable_rows(pool: PgPool) {
    let scene = scene_with_view(pool, "bal::numeric as balance").await;
    scene.sql("update books.raw set bal = 'NaN' where id in (3, 6)").await;
    output_of(&scene, 3, &["run"]).await;
    scene.sql("update books.raw set bal = '' where id in (5, 6)").await;
    let verified = output_of(&scene, 3, &["verify", "--deep"]).await;
    for words in ["beta", "this entity's rows: invalid input syntax for type numeric: \"\"", "22P02"] {
        assert!(verified.contains(words), "{words}: {verified}");
    }
    let json: serde_json::Value =
        serde_json::from_slice(&scene.output(&["verify", "--deep", "--json"]).await.stdout).unwrap();
    assert_eq!(json["entities"][0]["bodies_proven"], 1, "{json}");
    assert_eq!(json["entities"][1]["findings"][0]["what"], "ledger", "{json}");
    let retried = output_of(&scene, 3, &["errors", "retry"]).await;
    assert!(retried.contains("still open: balance is NaN"), "{retried}");
    assert!(
        retried.contains("still open: the database could not read this entity's rows: invalid input"),
        "{retried}"
    );
    // Whether a row is the newest of its key is unknown.
    scene
        .sql("update books.raw set bal = '1' where id = 6; update books.raw set bal = 'NaN' where id = 4")
        .await;
    scene
        .sql(
            "create or replace view books.balances as select id, entity_id, 'a' as entity_account_id, 'BTC' as currency,
                    timestamptz '2024-01-01Z' as captured_at, change_xid, bal::numeric as balance from books.raw",
        )
        .await;
    let retried = output_of(&scene, 3, &["errors", "retry"]).await;
    let of_beta = scene.text("select error_id::text from elven_sync.sync_errors where ledger_id = '6'").await;
    let still_open = format!("error {of_beta}: still open: the database could not read");
    assert!(retried.contains(&still_open), "{retried}");
    assert_eq!(scene.received().len(), 4);
}

/// Whether rows wait for a registration is unknown. Everything else is done and reported.
#[sqlx::test(migrations = false)]
async fn unreadable_unregistered_rows_do_not_hide_other_entities(pool: PgPool) {
    let columns = "1::numeric as balance from (select * from books.raw where 1 / divisor = 1) raw --";
    let scene = scene_with_view(pool, columns).await;
    scene.sql("insert into books.raw (id, entity_id, divisor) values (7, 'gamma', 0)").await;
    let report = output_of(&scene, 3, &["run"]).await;
    assert!(report.contains("not registered") && report.contains("division by zero"), "{report}");
    assert_eq!(scene.received().len(), 6);
    assert_eq!(scene.text(HEALTH).await, "acme ok,beta ok");
    let run = "select status || ' ' || error from elven_sync.sync_runs";
    assert!(scene.text(run).await.starts_with("incomplete "), "{}", scene.text(run).await);
}

/// The rows of one of 302 entities cannot be read, so the statement over all of them fails.
#[sqlx::test(migrations = false)]
async fn entity_with_unreadable_rows_is_found_among_many(pool: PgPool) {
    let columns = "1::numeric as balance from (select * from books.raw where 1 / divisor = 1) raw --";
    let scene = scene_with_view(pool, columns).await;
    scene
        .sql(
            "insert into elven_sync.entities (entity_id, timezone) select 'e' || n, 'UTC' from generate_series(1, 300) n;
             insert into books.raw (id, entity_id, divisor) select n + 6, 'e' || n, (n % 250 > 0)::integer from generate_series(1, 300) n",
        )
        .await;
    let report = output_of(&scene, 3, &["run"]).await;
    assert!(report.contains("failed: e250: "), "{report}");
    assert_eq!(scene.received().len(), 305);
    let failing = "select string_agg(entity_id, ',') from elven_sync.sync_health where status <> 'ok'";
    assert_eq!(scene.text(failing).await, "e250");
    let pending = output_of(&scene, 3, &["status"]).await;
    let of_entity =
        pending.lines().find(|line| line.starts_with(" e250 ")).unwrap_or_else(|| panic!("{pending}"));
    assert!(of_entity.contains("failing") && of_entity.contains('?'), "{of_entity}");
}

const BACKFILL: [&str; 5] = ["backfill", "--from", "2024-01-01", "--to", "2024-01-02"];

/// Rows 1 and 9 can be sent, and the rows between them cannot: they are set aside.
async fn assert_unfit_rows_are_set_aside(scene: &TestEnv, unfit: &[(&str, &str)]) {
    let report = output_of(scene, 3, &["run"]).await;
    assert!(report.contains(&format!("2 uploaded, {} set aside", unfit.len())), "{report}");
    let errors = "select string_agg(concat_ws(' ', ledger_id, kind, message), E'\\n' order by ledger_id)
                    from elven_sync.sync_errors where resolved_at is null";
    let errors = scene.text(errors).await;
    assert_eq!(errors.lines().count(), unfit.len(), "{errors}");
    for (id, why) in unfit {
        assert!(
            errors.lines().any(|line| line.starts_with(&format!("{id} invalid_row {why}"))),
            "{id} {why}: {errors}"
        );
        let of_row = output_of(scene, 3, &["status", "--row", id]).await;
        assert!(of_row.contains("set aside") && of_row.contains(why), "{of_row}");
    }
    assert!(output_of(scene, 0, &["status", "--row", "1"]).await.contains("was uploaded"));
    output_of(scene, 0, &["verify", "--deep"]).await;
    let retried = output_of(scene, 3, &["errors", "retry"]).await;
    assert_eq!(retried.matches("still open").count(), unfit.len(), "{retried}");
    assert!(retried.contains(unfit[0].1), "{retried}");
    output_of(scene, 3, &["status"]).await;
    output_of(scene, 0, &["errors", "list"]).await;
    assert_eq!(scene.received().len(), 2);
    output_of(scene, 0, &["entity", "rewind", "acme", "--yes"]).await;
    let rehearsed = output_of(scene, 3, &["run", "--dry-run"]).await;
    assert!(
        rehearsed.contains("2 uploaded in 1 requests")
            && rehearsed.contains(&format!("{} set aside", unfit.len())),
        "{rehearsed}"
    );
    output_of(scene, 3, &["run"]).await;
    assert_eq!(scene.received().len(), 4);
}

#[sqlx::test(migrations = false)]
async fn times_out_of_range_are_set_aside_and_others_sent(pool: PgPool) {
    for zone in ["UTC", "America/New_York", "Asia/Tokyo"] {
        sqlx::raw_sql("drop schema if exists books, ledger, elven_sync cascade")
            .execute(&pool)
            .await
            .unwrap();
        let mut scene = TestEnv::new(pool.clone()).await;
        scene.entity("acme", "Europe/Zurich").await;
        scene
            .sql(
                "create schema books;
                 create table books.t (id bigint primary key, entity_id text not null default 'acme', entity_account_id text default 'a',
                        currency text default 'BTC', captured_at timestamp, balance numeric default 1,
                        change_xid xid8 not null default pg_current_xact_id());
                 create index on books.t (entity_id, change_xid, id);
                 insert into books.t (id, captured_at) values (1, '2024-01-01 10:00'), (2, '294276-12-31 23:59:59.999999'),
                        (3, '4714-11-24 00:00:00 BC'), (4, 'infinity'), (5, '-infinity'), (6, '10000-01-02'), (7, '0002-01-01 BC'),
                        (9, '2024-01-01 11:00')",
            )
            .await;
        scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.t");
        scene.set("ELVEN_SYNC_LEDGER__CAPTURED_AT_ZONE", zone);
        let (outside, infinite) =
            ("captured_at is outside the years 0001 to 9999", "captured_at is infinite");
        let unfit = [
            ("2", outside),
            ("3", outside),
            ("4", infinite),
            ("5", infinite),
            ("6", outside),
            ("7", outside),
        ];
        // With pending rows, whose oldest instant is asked for.
        output_of(&scene, 0, &["status"]).await;
        assert_unfit_rows_are_set_aside(&scene, &unfit).await;
        let before = scene.received().len();
        output_of(&scene, 0, &[&BACKFILL[..], &["--dry-run"]].concat()).await;
        output_of(&scene, 0, &BACKFILL).await;
        assert_eq!(scene.received().len(), before + 2, "{zone}");
    }
}
