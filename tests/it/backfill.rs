//! Backfills: which rows belong to a range, in which order they are sent, and what is recorded.

mod beside;
mod crashes;
mod progress;
mod ranges;
mod rivals;

use elven_sync::sandbox::Fault;
use sqlx::{AssertSqlSafe, PgPool};

use crate::support::{TestEnv, as_sent, fault_rules, output_of, stderr, stdout};

/// Adds rows of an entity, one minute apart from 2024-01-01 on, each of its own account.
pub async fn add_minutes(scene: &TestEnv, entity_id: &str, rows: i32) {
    sqlx::query(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select $1, $1 || '-' || n, 'BTC', '2024-01-01Z'::timestamptz + n * interval '1 minute', n
           from generate_series(0, $2 - 1) n",
    )
    .bind(entity_id)
    .bind(rows)
    .execute(&scene.pool)
    .await
    .unwrap();
}

/// Returns the values of a query as text.
pub async fn texts(scene: &TestEnv, sql: &str) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(&scene.pool).await.unwrap()
}

/// Returns the accounts that were received after the first `records` records, in order.
pub fn accounts_since(scene: &TestEnv, records: usize) -> Vec<String> {
    scene.balances().into_iter().skip(records).map(|(account, _)| account).collect()
}

/// Runs a backfill of 2024 and expects this exit code.
pub async fn backfill_2024(scene: &TestEnv, code: i32, more: &[&str]) -> String {
    let arguments = [&["backfill", "--from", "2024-01-01", "--to", "2025-01-01"], more].concat();
    output_of(scene, code, &arguments).await
}

/// Returns the JSON report of a backfill of 2024.
async fn json(scene: &TestEnv, code: i32, more: &[&str]) -> serde_json::Value {
    let arguments = [&["backfill", "--from", "2024-01-01", "--to", "2025-01-01"], more].concat();
    let output = scene.output(&arguments).await;
    assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

const STATE: &str =
    "select concat_ws(' ', settled, pass_id, target, cursor_xid, cursor_id, last_success_at, checked_at)
                       from elven_sync.sync_state order by entity_id";

#[sqlx::test(migrations = false)]
async fn backfill_does_not_move_the_watermark(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.entity("acme", "UTC").await;
    add_minutes(&scene, "acme", 6).await;
    // Its pass stops in the middle.
    scene.sandbox.set_rules(fault_rules(&["throttle@once:2"]));
    let stopped = scene.output(&["run"]).await;
    scene.sandbox.set_rules(Vec::new());
    assert_eq!(stopped.status.code(), Some(1), "{}", stdout(&stopped));
    let before = scene.text(STATE).await;
    let done = scene.balances().len();
    assert_eq!(done, 2);
    backfill_2024(&scene, 0, &[]).await;
    assert_eq!(scene.text(STATE).await, before);
    assert_eq!(accounts_since(&scene, done).len(), 6);
    let batches = "select string_agg(distinct concat_ws(' ', pass_id is null, last_xid is null), ',')
                     from elven_sync.sync_batches where backfill_id is not null";
    assert_eq!(scene.text(batches).await, "t t");
    // The pass resumes at its cursor.
    let run = scene.run().await;
    assert_eq!((run.counters.rows_read, run.counters.rows_uploaded), (4, 4));
}

#[sqlx::test(migrations = false)]
async fn backfill_records_and_reports_its_result(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    scene.entity("acme", "UTC").await;
    scene.entity("beta", "UTC").await;
    add_minutes(&scene, "acme", 10).await;
    add_minutes(&scene, "beta", 5).await;
    let report = json(&scene, 0, &["--json"]).await;
    let number = |name: &str| report[name].as_i64().unwrap();
    assert_eq!((number("rows_read"), number("rows_uploaded"), number("requests")), (15, 15, 5));
    assert_eq!((&report["backfill"]["backfill_id"], &report["resumed"]), (&1.into(), &false.into()));
    let recorded =
        "select concat_ws(' ', b.status, b.rows_total, b.rows_read, b.rows_uploaded, b.rows_rejected,
                                     b.finished_at is not null, b.error, r.kind, r.status, r.rows_uploaded)
                      from elven_sync.sync_backfills b join elven_sync.sync_runs r using (run_id)";
    assert_eq!(scene.text(recorded).await, "succeeded 15 15 15 0 t backfill succeeded 15");
    let lanes = "select string_agg(concat_ws(' ', entity_id, rows_total, rows_read, rows_uploaded,
                                   finished_at is not null, to_char(cursor_at at time zone 'UTC', 'HH24:MI'), cursor_id),
                                   ',' order by entity_id) from elven_sync.sync_backfill_lanes";
    assert_eq!(scene.text(lanes).await, "acme 10 10 10 t 00:09 10,beta 5 5 5 t 00:04 15");
    let free = "select bool_and(lease_owner is null and lease_kind is null)::text from elven_sync.sync_state";
    assert_eq!(scene.text(free).await, "true");
    let list = output_of(&scene, 0, &["backfill", "list"]).await;
    assert!(list.contains("succeeded") && list.contains("2024-01-01"), "{list}");
    let list = output_of(&scene, 0, &["backfill", "list", "--json"]).await;
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["backfills"][0]["rows_uploaded"], 15);
    // The backfill is done: the same range is a new backfill.
    let again = backfill_2024(&scene, 0, &[]).await;
    assert!(again.contains("backfill 2 from 2024-01-01 to 2025-01-01: succeeded"), "{again}");
    let refused = output_of(&scene, 1, &["backfill", "--resume", "1"]).await;
    assert!(refused.contains("backfill 1 is succeeded and cannot be resumed"), "{refused}");
    let missing = output_of(&scene, 1, &["backfill", "--resume", "7"]).await;
    assert!(missing.contains("there is no backfill 7"), "{missing}");
}

#[sqlx::test(migrations = false)]
async fn backfill_sends_rows_by_captured_at_then_id(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "3");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.entity("acme", "UTC").await;
    // Rows are written in another order than they were captured in, many of them at the same instant.
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', 'a' || n, 'BTC', '2024-01-01Z'::timestamptz + (n * 7 % 11) * interval '1 hour', n
                 from generate_series(1, 60) n").await;
    backfill_2024(&scene, 0, &[]).await;
    let expected = "select entity_account_id from ledger.balance_snapshots order by captured_at, id";
    assert_eq!(accounts_since(&scene, 0), texts(&scene, expected).await);
}

/// Text keys sort by their bytes, whatever the collation of the database. This order decides which row is the newest.
#[sqlx::test(migrations = false)]
async fn text_ids_are_ordered_by_their_bytes(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.sql("create table ledger.named (
                   id text collate \"en-x-icu\" primary key, entity_id text not null, entity_account_id text not null,
                   currency text not null, captured_at timestamptz not null, balance numeric not null,
                   change_xid xid8 not null default pg_current_xact_id());
               insert into ledger.named
               select id, 'acme', 'a', 'BTC', '2024-01-01Z', row_number() over ()
                 from unnest(array['a', 'B', 'C', '_', 'D']) id").await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.named");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    scene.entity("acme", "UTC").await;
    backfill_2024(&scene, 0, &[]).await;
    // All rows have one key: only the row with the greatest id is sent.
    let newest = "select trim_scale(balance)::text from ledger.named order by id collate \"C\" desc limit 1";
    let balances: Vec<String> = scene.balances().into_iter().map(|(_, balance)| balance).collect();
    assert_eq!(balances, texts(&scene, newest).await);
}

#[sqlx::test(migrations = false)]
async fn rows_set_aside_make_a_backfill_incomplete(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    scene.entity("acme", "UTC").await;
    add_minutes(&scene, "acme", 12).await;
    scene
        .sql(
            "update ledger.balance_snapshots set balance = 'NaN' where id = 3;
               update ledger.balance_snapshots set currency = 'ETH' where id = 7",
        )
        .await;
    scene.sandbox.set_rules(fault_rules(&["reject:currency=ETH"]));
    let report = backfill_2024(&scene, 3, &[]).await;
    assert!(report.contains("12 rows read, 10 uploaded, 2 set aside"), "{report}");
    let recorded = "select concat_ws(' ', b.status, b.rows_uploaded, b.rows_rejected, l.rows_rejected,
                                     l.finished_at is not null, r.status)
                      from elven_sync.sync_backfills b join elven_sync.sync_runs r using (run_id)
                      join elven_sync.sync_backfill_lanes l using (backfill_id)";
    assert_eq!(scene.text(recorded).await, "incomplete 10 2 2 t incomplete");
    let errors = "select string_agg(concat_ws(' ', ledger_id, kind), ',' order by ledger_id)
                    from elven_sync.sync_errors where resolved_at is null";
    assert_eq!(scene.text(errors).await, "3 invalid_row,7 rejected_row");
    assert_eq!(scene.received().len(), 10);
    // A row that a later backfill uploads is no longer an error.
    scene.sandbox.set_rules(Vec::new());
    backfill_2024(&scene, 3, &[]).await;
    assert_eq!(scene.text(errors).await, "3 invalid_row");
}

#[sqlx::test(migrations = false)]
async fn failed_entity_is_resumed_and_delays_no_other_entity(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    scene.entity("acme", "UTC").await;
    scene.sql("insert into elven_sync.entities (entity_id, timezone, credential) values ('beta', 'UTC', 'unknown')").await;
    add_minutes(&scene, "acme", 4).await;
    add_minutes(&scene, "beta", 4).await;
    let report = backfill_2024(&scene, 3, &[]).await;
    assert!(report.contains("1 entity is not finished; hint: elven-sync backfill --resume 1"), "{report}");
    let lanes = "select string_agg(entity_id || ' ' || (finished_at is not null), ',' order by entity_id)
                   from elven_sync.sync_backfill_lanes";
    assert_eq!(scene.text(lanes).await, "acme true,beta false");
    assert_eq!(scene.text("select status from elven_sync.sync_backfills").await, "incomplete");
    let health =
        "select concat_ws(' ', status, open_errors) from elven_sync.sync_health where entity_id = 'beta'";
    assert_eq!(scene.text(health).await, "failing 1");
    scene.sql("update elven_sync.entities set credential = 'default' where entity_id = 'beta'").await;
    let report = output_of(&scene, 0, &["backfill", "--resume", "1"]).await;
    assert!(report.contains("4 rows read, 4 uploaded"), "{report}");
    assert_eq!(scene.text("select status from elven_sync.sync_backfills").await, "succeeded");
    assert_eq!(accounts_since(&scene, 4).iter().filter(|account| account.starts_with("beta")).count(), 4);
}

#[sqlx::test(migrations = false)]
async fn a_dry_run_says_what_would_be_sent_and_changes_nothing(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    scene.entity("acme", "Europe/Zurich").await;
    scene.entity("beta", "UTC").await;
    add_minutes(&scene, "acme", 10).await;
    add_minutes(&scene, "beta", 3).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'acme-0', 'BTC', '2024-01-01 00:00:00.5Z', 77), ('beta', 'x', 'BTC', '2024-01-02Z', 'NaN')").await;
    let said = backfill_2024(&scene, 3, &["--dry-run"]).await;
    for expected in [
        "15 rows in 4 batches would be read, 13 uploaded in 4 requests",
        "1 set aside, 1 superseded",
        &as_sent(
            r#"first record: {"entityAccountId":"beta-0","currency":"BTC","datetime":"2024-01-01 00:00:00","balance":0}"#,
        ),
        &as_sent(
            r#"last record: {"entityAccountId":"acme-9","currency":"BTC","datetime":"2024-01-01 01:09:00","balance":9}"#,
        ),
        "its duration is not known, since [api] requests_per_second is not set",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    scene.set("ELVEN_SYNC_API__REQUESTS_PER_SECOND", "2");
    let report = json(&scene, 3, &["--dry-run", "--json"]).await;
    assert_eq!(
        (&report["batches"], &report["requests"], &report["at_rate_s"]),
        (&4.into(), &4.into(), &2.into())
    );
    let recorded = "select count(*)::text from (select from elven_sync.sync_backfills union all
                                                select from elven_sync.sync_runs union all
                                                select from elven_sync.sync_errors) n";
    assert_eq!((scene.text(recorded).await.as_str(), scene.sandbox.requests().len()), ("0", 0));
    // The dry run was right.
    scene.unset("ELVEN_SYNC_API__REQUESTS_PER_SECOND");
    let report = backfill_2024(&scene, 3, &[]).await;
    assert!(report.contains("15 rows read, 13 uploaded, 1 set aside, 1 superseded"), "{report}");
    assert_eq!(scene.sandbox.requests().len(), 4);
}

#[sqlx::test(migrations = false)]
async fn wrong_backfill_arguments_are_refused_before_anything_is_recorded(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.entity("idle", "UTC").await;
    output_of(&scene, 0, &["entity", "pause", "idle"]).await;
    add_minutes(&scene, "acme", 3).await;
    for (code, arguments, expected) in [
        (2, &["--from", "2024-01-01"][..], "--to"),
        (2, &[], "--from"),
        (2, &["--from", "1 January", "--to", "2024-02-01"], "neither a date like"),
        (2, &["--from", "2024-02-30", "--to", "2024-03-01"], "neither a date like"),
        (2, &["--from", "2024-01-01T00:00:00", "--to", "2024-03-01"], "has no offset from UTC"),
        (2, &["--from", "2024-01-02", "--to", "2024-01-02"], "is not before"),
        (2, &["--from", "2024-01-02T01:00:00+01:00", "--to", "2024-01-02"], "is not before"),
        (2, &["--from", "2024-01-01", "--to", "2024-01-02", "--entity", "acmé"], "did you mean `acme`"),
        (2, &["--resume", "1", "--from", "2024-01-01", "--to", "2024-01-02"], "cannot be used with"),
        (1, &["--from", "2024-01-01", "--to", "2024-01-02", "--entity", "idle"], "is paused"),
    ] {
        let arguments = [&["backfill"], arguments].concat();
        let words = output_of(&scene, code, &arguments).await;
        assert!(words.contains(expected), "{arguments:?}: {words}");
    }
    let recorded = "select count(*)::text from (select from elven_sync.sync_backfills union all
                                                select from elven_sync.sync_runs) n";
    assert_eq!((scene.text(recorded).await.as_str(), scene.sandbox.requests().len()), ("0", 0));
    // A backfill of all entities leaves out paused ones.
    backfill_2024(&scene, 0, &[]).await;
    assert_eq!(
        scene.text("select string_agg(entity_id, ',') from elven_sync.sync_backfill_lanes").await,
        "acme"
    );
}

#[sqlx::test(migrations = false)]
async fn backfill_sends_only_requested_accounts_and_currencies(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.entity("beta", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select e, a, c, '2024-01-01Z', 1
                 from unnest(array['acme', 'beta']) e, unnest(array['a', 'A', E'it''s \\\\ {\"x\"},', 'b']) a,
                      unnest(array['BTC', 'USD', 'ETH']) c").await;
    for (filters, expected) in [
        (&["--account", "a"][..], "entity_account_id = 'a'"),
        (&["--account", "it's \\ {\"x\"},", "b"], "entity_account_id in (E'it''s \\\\ {\"x\"},', 'b')"),
        (&["--currency", "BTC", "--currency", "ETH"], "currency in ('BTC', 'ETH')"),
        (
            &["--entity", "acme", "--account", "A", "--currency", "USD"],
            "entity_id = 'acme' and entity_account_id = 'A' and currency = 'USD'",
        ),
        (&["--account", "none"], "false"),
    ] {
        let before = scene.sandbox.received().len();
        backfill_2024(&scene, 0, filters).await;
        let mut received: Vec<String> = scene
            .sandbox
            .received()
            .into_iter()
            .skip(before)
            .map(|record| format!("{} {}", record.entity_account_id, record.currency))
            .collect();
        received.sort();
        let expected = format!(
            "select entity_account_id || ' ' || currency from ledger.balance_snapshots where {expected}"
        );
        let mut expected = texts(&scene, &expected).await;
        expected.sort();
        assert_eq!(received, expected, "{filters:?}");
    }
}

#[sqlx::test(migrations = false)]
async fn missing_captured_at_index_is_reported_once(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    add_minutes(&scene, "acme", 3).await;
    let words = backfill_2024(&scene, 0, &[]).await;
    let remedy = "create index concurrently on \"ledger\".\"balance_snapshots\" (\"entity_id\", \"captured_at\", \"id\")";
    assert_eq!(words.matches(remedy).count(), 1, "{words}");
    sqlx::query(AssertSqlSafe(remedy.to_owned())).execute(&scene.pool).await.unwrap();
    assert!(!backfill_2024(&scene, 0, &[]).await.contains("index"));
}

/// A requested pause holds for a backfill as for a run.
#[sqlx::test(migrations = false)]
async fn long_retry_after_stops_a_backfill_at_its_cursor(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.entity("acme", "UTC").await;
    add_minutes(&scene, "acme", 4).await;
    let later = vec![("retry-after".to_owned(), "600".to_owned())];
    scene.sandbox.inject(Fault::Answer { status: 429, body: String::new(), headers: later });
    let report = backfill_2024(&scene, 1, &[]).await;
    assert!(report.contains("failed"), "{report}");
    let state = "select concat_ws(' ', not_before > now() + interval '5 minutes', consecutive_failures, lease_owner is null,
                                  (select status from elven_sync.sync_backfills)) from elven_sync.sync_state";
    assert_eq!(scene.text(state).await, "t 1 t failed");
    // A run waits for the same pause.
    scene.run().await;
    assert_eq!(scene.received().len(), 0);
    scene.sql("update elven_sync.sync_state set not_before = null").await;
    output_of(&scene, 0, &["backfill", "--resume", "1"]).await;
    assert_eq!(scene.received().len(), 4);
}
