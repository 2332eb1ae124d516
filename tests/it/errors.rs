//! `errors`: how a person handles rows that were set aside.

mod batches;
mod causes;
mod parts;
mod resolve;

use std::time::Duration;

use elven_sync::sandbox::{Fault, Gate, Options};
use nix::sys::signal::Signal;
use sqlx::{AssertSqlSafe, PgPool};

use crate::support::{FAULT_POINT, TestEnv, eventually, output_of, signal, stderr, stdout, wait_for_log};

/// Five rows of acme: two that the API refuses, one that cannot be sent, and two that are accepted.
async fn scene_with_rows_set_aside(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sandbox.set_rules(vec!["reject:account=x".parse().unwrap(), "reject:account=y".parse().unwrap()]);
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance) values
                 ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('acme', 'x', 'BTC', '2024-01-01Z', 2.50),
                 ('acme', 'b', 'BTC', '2024-01-01Z', 3), ('acme', 'y', 'BTC', '2024-01-01Z', 12345678901234567890.5),
                 ('acme', 'c', 'BTC', '2024-01-01Z', 'NaN')",
        )
        .await;
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert_eq!(scene.balances().len(), 2);
    scene
}

const OPEN: &str =
    "select string_agg(concat_ws(' ', error_id, kind, ledger_id, occurrences), ',' order by ledger_id)
                      from elven_sync.sync_errors where resolved_at is null";

#[sqlx::test(migrations = false)]
async fn errors_are_listed_and_shown_with_their_record(pool: PgPool) {
    let scene = scene_with_rows_set_aside(pool).await;
    let list = output_of(&scene, 0, &["errors", "list"]).await;
    assert!(list.contains("rejected_row") && list.contains("invalid_row"), "{list}");
    let of_kind = output_of(&scene, 0, &["errors", "list", "--kind", "invalid_row"]).await;
    assert!(!of_kind.contains("rejected_row"));
    assert!(output_of(&scene, 0, &["errors", "list", "--entity", "beta"]).await.contains("no error is open"));
    assert!(output_of(&scene, 2, &["errors", "list", "--kind", "nope"]).await.contains("rejected_batch"));
    let json: serde_json::Value =
        serde_json::from_str(&output_of(&scene, 0, &["errors", "list", "--json"]).await).unwrap();
    assert_eq!(json["causes"].as_array().unwrap().len(), 2);
    let json: serde_json::Value =
        serde_json::from_str(&output_of(&scene, 0, &["errors", "list", "--rows", "--json"]).await).unwrap();
    assert_eq!(json["errors"].as_array().unwrap().len(), 3);
    let number = scene.text("select error_id::text from elven_sync.sync_errors where ledger_id = '4'").await;
    let shown = output_of(&scene, 0, &["errors", "show", &number]).await;
    for expected in
        ["\"balance\": 12345678901234567890.5", "\"entityAccountId\": \"y\"", "400", "rejected_row", "acme"]
    {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert!(output_of(&scene, 1, &["errors", "show", "999"]).await.contains("there is no error 999"));
}

#[sqlx::test(migrations = false)]
async fn retry_sends_current_rows_and_resolves_or_counts_errors(pool: PgPool) {
    let scene = scene_with_rows_set_aside(pool).await;
    let before = scene.text(OPEN).await;
    assert!(before.contains("rejected_row 2 1") && before.contains("invalid_row 5 1"), "{before}");
    // Nothing has changed: each error is counted once more.
    output_of(&scene, 3, &["errors", "retry"]).await;
    let again = scene.text(OPEN).await;
    assert!(
        again.contains("rejected_row 2 2")
            && again.contains("rejected_row 4 2")
            && again.contains("invalid_row 5 2"),
        "{again}"
    );
    // An error that is closed by hand sends nothing either.
    let close = |was: &str| {
        format!(
            "update elven_sync.sync_errors set dismissed = {was}, resolved_at = case when {was} then now() end, resolution = case when {was} then 'r' end where ledger_id = '5'"
        )
    };
    for dismissed in ["true", "false"] {
        sqlx::query(AssertSqlSafe(close(dismissed))).execute(&scene.pool).await.unwrap();
        let plan = stdout(&scene.output(&["entity", "rewind", "acme"]).await);
        assert!(plan.contains("moves back over 5 rows, 2 of them accepted"), "{dismissed}: {plan}");
    }
    // The API knows the account now, and one row was corrected. The retry need not wait for the next run.
    scene.sandbox.set_rules(vec!["reject:account=y".parse().unwrap()]);
    scene.sql("update ledger.balance_snapshots set balance = 7 where id = 5").await;
    let retried = output_of(&scene, 3, &["errors", "retry"]).await;
    assert_eq!(retried.matches("uploaded").count(), 2, "{retried}");
    assert!(scene.text(OPEN).await.ends_with("rejected_row 4 3"), "{}", scene.text(OPEN).await);
    assert!(scene.balances().contains(&("x".to_owned(), "2.5".to_owned())));
    assert!(scene.balances().contains(&("c".to_owned(), "7".to_owned())));
    // An API outage says nothing about a row, and the row still exists.
    scene.sql("delete from ledger.balance_snapshots where id = 4").await;
    let gone = output_of(&scene, 0, &["errors", "retry"]).await;
    assert!(gone.contains("not in the ledger any more"), "{gone}");
    assert!(output_of(&scene, 0, &["errors", "retry"]).await.contains("no row is set aside"));
    let runs = "select string_agg(distinct kind || ' ' || status, ',' order by kind || ' ' || status) from elven_sync.sync_runs";
    assert_eq!(scene.text(runs).await, "incremental incomplete,retry incomplete,retry succeeded");
    let batches = "select string_agg(distinct concat_ws(' ', status, row_count), ',' order by concat_ws(' ', status, row_count))
                     from elven_sync.sync_batches where pass_id is null";
    assert_eq!(scene.text(batches).await, "accepted 1,rejected 0,split 2,split 3");
}

/// The later upload wins at the API: an older row must not be sent over a newer row of its key.
#[sqlx::test(migrations = false)]
async fn a_retry_never_puts_an_older_row_over_a_newer_one(pool: PgPool) {
    let scene = scene_with_rows_set_aside(pool).await;
    scene.sandbox.set_rules(Vec::new());
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'x', 'BTC', '2024-01-01 00:00:00.9Z', 99)",
        )
        .await;
    scene.run().await;
    let number = scene.text("select error_id::text from elven_sync.sync_errors where ledger_id = '2'").await;
    assert!(output_of(&scene, 0, &["errors", "retry", &number]).await.contains("superseded by row 6"));
    let last = scene.balances().into_iter().rfind(|(account, _)| account == "x").unwrap();
    assert_eq!(last.1, "99");
}

#[sqlx::test(migrations = false)]
async fn error_is_resolved_by_newer_version_or_by_hand(pool: PgPool) {
    let scene = scene_with_rows_set_aside(pool).await;
    scene.sandbox.set_rules(Vec::new());
    scene.sql("update ledger.balance_snapshots set balance = 8 where id in (2, 5)").await;
    scene.run().await;
    let resolved = "select string_agg(ledger_id, ',' order by ledger_id) from elven_sync.sync_errors
                     where resolution = 'a newer version of the row was uploaded'";
    assert_eq!(scene.text(resolved).await, "2,5");
    let number =
        scene.text("select error_id::text from elven_sync.sync_errors where resolved_at is null").await;
    assert!(output_of(&scene, 2, &["errors", "resolve", &number]).await.contains("--reason"));
    assert!(output_of(&scene, 1, &["errors", "resolve", &number, "--reason", " "]).await.contains("blank"));
    output_of(&scene, 0, &["errors", "resolve", &number, "--reason", "closed account"]).await;
    assert!(
        output_of(&scene, 1, &["errors", "resolve", &number, "--reason", "again"])
            .await
            .contains("closed account")
    );
    assert!(output_of(&scene, 1, &["errors", "retry", &number]).await.contains("already resolved"));
    assert!(output_of(&scene, 0, &["errors", "list", "--rows", "--all"]).await.contains("closed account"));
}

#[sqlx::test(migrations = false)]
async fn error_of_an_entity_is_resolved_by_a_run(pool: PgPool) {
    let mut scene = scene_with_rows_set_aside(pool).await;
    scene.sql("update ledger.balance_snapshots set balance = balance where id = 1").await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.sandbox.set_rules(vec!["forbidden".parse().unwrap()]);
    scene.run().await;
    let number = scene.text("select error_id::text from elven_sync.sync_errors where kind = 'auth'").await;
    assert!(
        output_of(&scene, 1, &["errors", "retry", &number]).await.contains("elven-sync run --entity 'acme'")
    );
    // Rows are still refused, but no command dismissed them: they are counted once more, with the reason.
    let retried = output_of(&scene, 3, &["errors", "retry"]).await;
    assert!(retried.contains("credential"), "{retried}");
}

/// A newer row that is set aside does not supersede an older one. The older row is sent, and the newer one after it
/// if it is ever accepted.
#[sqlx::test(migrations = false)]
async fn row_set_aside_supersedes_no_older_row(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance) values
                 ('acme', 'a', 'BTC', '2024-01-01 10:00:00.1Z', 1), ('acme', 'a', 'BTC', '2024-01-01 10:00:00.9Z', -9)",
        )
        .await;
    scene.sandbox.set_rules(vec!["reject:account=a".parse().unwrap()]);
    scene.run().await;
    scene.sandbox.set_rules(vec!["reject:negative".parse().unwrap()]);
    let retried = output_of(&scene, 3, &["errors", "retry"]).await;
    assert!(!retried.contains("superseded"), "{retried}");
    assert_eq!(scene.balances(), [("a".to_owned(), "1".to_owned())]);
    // A dismissed row supersedes nothing either. An updated row does.
    scene.sql("update ledger.balance_snapshots set balance = 2 where id = 1").await;
    scene.sandbox.set_rules(vec!["reject:account=a".parse().unwrap()]);
    scene.run().await;
    let number = scene
        .text(
            "select error_id::text from elven_sync.sync_errors where ledger_id = '2' and resolved_at is null",
        )
        .await;
    output_of(&scene, 0, &["errors", "resolve", &number, "--reason", "a mistake"]).await;
    scene.sandbox.set_rules(Vec::new());
    assert!(output_of(&scene, 0, &["errors", "retry"]).await.contains("uploaded"));
    assert_eq!(scene.balances().last().unwrap().1, "2");
}

/// A retry that dies with a request in flight may have sent its row. The next retry is marked ambiguous.
#[sqlx::test(migrations = false)]
async fn killed_retry_leaves_unknown_batch_and_next_is_ambiguous(pool: PgPool) {
    let scene = scene_with_rows_set_aside(pool).await;
    scene.sandbox.set_rules(Vec::new());
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let number = scene.text("select error_id::text from elven_sync.sync_errors where ledger_id = '2'").await;
    let mut child = scene.command(&["errors", "retry", &number]).spawn().unwrap();
    gate.reached().await;
    child.kill().await.unwrap();
    gate.open();
    let expired =
        "select (lease_expires_at + interval '300 ms' < clock_timestamp())::text from elven_sync.sync_state";
    eventually("the lease runs out", async || scene.text(expired).await == "true").await;
    output_of(&scene, 0, &["errors", "retry", &number]).await;
    let batches = "select string_agg(concat_ws(' ', status, ambiguous), ',' order by batch_id) from elven_sync.sync_batches
                    where pass_id is null";
    assert_eq!(scene.text(batches).await, "unknown f,accepted t");
}

#[sqlx::test(migrations = false)]
async fn retry_obeys_watermark_check_and_pause(pool: PgPool) {
    let mut scene = scene_with_rows_set_aside(pool).await;
    scene.sql("create table ledger.other (like ledger.balance_snapshots including all);
               insert into ledger.other overriding system value select id, entity_id, 'other', currency, captured_at, 777
                 from ledger.balance_snapshots").await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.other");
    scene.sandbox.set_rules(Vec::new());
    let sent = scene.sandbox.requests().len();
    let refused = output_of(&scene, 3, &["errors", "retry"]).await;
    assert!(refused.contains("belongs to the ledger table"), "{refused}");
    scene.unset("ELVEN_SYNC_LEDGER__TABLE");
    scene.sandbox.set_rules(vec!["throttle=1800s".parse().unwrap()]);
    for _ in 0..2 {
        output_of(&scene, 3, &["errors", "retry"]).await;
    }
    assert_eq!(scene.sandbox.requests().len(), sent + 1, "rate limited by the API");
    let later =
        "select (not_before > clock_timestamp() + interval '25 minutes')::text from elven_sync.sync_state";
    assert_eq!(scene.text(later).await, "true");
}

/// A batch of unknown outcome whose remaining rows cannot be sent is closed with its present rows, and stays
/// ambiguous.
#[sqlx::test(migrations = false)]
async fn unknown_batch_without_records_keeps_its_ambiguous_mark(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', 'a' || n, 'BTC', '2024-01-01Z', case n when 3 then 'NaN'::numeric else n end from generate_series(1, 5) n").await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.sandbox.set_rules(vec!["answer-lost@once:1".parse().unwrap()]);
    scene.run().await;
    scene.sql("update ledger.balance_snapshots set balance = balance + 10 where id <> 3").await;
    scene.run().await;
    let batches = "select string_agg(concat_ws(' ', status, ambiguous, rows_read, row_count, (select count(*) from elven_sync.batch_row_ids(batch_id))), ',' order by batch_id)
                     from elven_sync.sync_batches";
    assert_eq!(scene.text(batches).await, "accepted t 1 0 1,accepted f 4 4 4");
    assert_eq!(scene.text("select rows_uploaded::text from elven_sync.sync_state").await, "4");
}

/// Freezes `errors retry` at a fault point, lets a run take over, and thaws it. Returns the status of the request
/// that the retry still sent.
async fn take_over_at(pool: PgPool, point: &str) -> Option<u16> {
    let database = elven_sync::database::Database::from(pool.clone());
    elven_sync::journal::migrate(&database).await.unwrap();
    elven_sync::journal::migrate_ledger(&database).await.unwrap();
    let options = Options { signature_window: Duration::from_millis(300), ..Options::default() };
    let scene = TestEnv::connect_like(pool, options).await;
    scene.entity("acme", "UTC").await;
    scene.sandbox.set_rules(vec!["reject:account=x".parse().unwrap()]);
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('acme', 'x', 'BTC', '2024-01-01Z', 2)").await;
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(3));
    scene.sandbox.set_rules(Vec::new());
    let mut retry = scene.command(&["errors", "retry"]);
    let mut retry = retry.env(FAULT_POINT, format!("{point}=stop")).spawn().unwrap();
    wait_for_log(&mut retry, "stopped at a fault point").await;
    scene.sql("update ledger.balance_snapshots set balance = 3").await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 2);
    let sent = scene.sandbox.requests().len();
    let journal = "select concat_ws(E'\\n', (select string_agg((to_jsonb(s) - 'checked_at')::text, '') from elven_sync.sync_state s),
                          (select string_agg(to_jsonb(b)::text, '' order by batch_id) from elven_sync.sync_batches b),
                          (select string_agg(to_jsonb(e)::text, '' order by error_id) from elven_sync.sync_errors e))";
    let (before, received) = (scene.text(journal).await, scene.received());
    signal(&retry, Signal::SIGCONT);
    retry.wait().await.unwrap();
    assert_eq!(scene.text(journal).await, before, "it moves nothing");
    assert_eq!(scene.received(), received, "and nothing of what it sends is taken");
    let requests = scene.sandbox.requests().split_off(sent);
    assert!(requests.len() < 2, "{requests:?}");
    requests.first().and_then(|request| request.status)
}

#[sqlx::test(migrations = false)]
async fn retry_taken_over_before_signing_sends_nothing(pool: PgPool) {
    assert_eq!(take_over_at(pool, "announce:after").await, None);
}

#[sqlx::test(migrations = false)]
async fn retry_taken_over_before_sending_is_refused_for_its_timestamp(pool: PgPool) {
    assert_eq!(take_over_at(pool, "send:before").await, Some(401));
}

#[sqlx::test(migrations = false)]
async fn retry_taken_over_before_recording_records_nothing(pool: PgPool) {
    assert_eq!(take_over_at(pool, "settle:before").await, None);
}

#[sqlx::test(migrations = false)]
async fn retry_taken_over_before_announcing_announces_nothing(pool: PgPool) {
    assert_eq!(take_over_at(pool, "announce:before").await, None);
}

/// The superseding row may still be refused.
#[sqlx::test(migrations = false)]
async fn error_of_a_superseded_row_stays_open(pool: PgPool) {
    let scene = scene_with_rows_set_aside(pool).await;
    scene.sandbox.set_rules(Vec::new());
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'x', 'BTC', '2024-01-01 00:00:00.5Z', 5)",
        )
        .await;
    output_of(&scene, 3, &["backfill", "--from", "2024-01-01", "--to", "2024-01-01T00:00:00.200Z"]).await;
    let open = scene.text(OPEN).await;
    assert!(open.contains("rejected_row 2 1"), "{open}");
    scene.sandbox.set_rules(vec!["reject:account=x".parse().unwrap()]);
    output_of(&scene, 3, &["run"]).await;
    let open = scene.text(OPEN).await;
    assert!(open.contains(" rejected_row 2 ") && open.contains(" rejected_row 6 "), "{open}");
}

/// A retry of many rows takes long. It releases the entity after each slice.
#[sqlx::test(migrations = false)]
async fn run_does_not_wait_for_the_end_of_a_retry(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.set("ELVEN_SYNC_SYNC__LEASE", "3s");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'acme', 'x' || n, 'BTC', '2024-01-01Z'::timestamptz + n * interval '1 minute', -n from generate_series(1, 30) n",
        )
        .await;
    scene.sandbox.set_rules(vec!["reject:negative".parse().unwrap()]);
    output_of(&scene, 3, &["run"]).await;
    scene.sandbox.set_rules(vec!["slow=200ms".parse().unwrap()]);
    let retry = scene.command(&["errors", "retry"]).spawn().unwrap();
    eventually("the retry has begun", async || scene.balances().len() >= 2).await;
    // One row of those that are set aside is corrected, and another row is new.
    scene.sql("update ledger.balance_snapshots set balance = 1000 where id = 29").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'y', 'BTC', '2024-01-02Z', 31)",
        )
        .await;
    let run = output_of(&scene, 0, &["run"]).await;
    assert!(run.contains("2 uploaded"), "{run}");
    let open = "select count(*)::text from elven_sync.sync_errors where resolved_at is null";
    let left: i64 = scene.text(open).await.parse().unwrap();
    assert!(left > 5, "the run came to an end before the retry, {left} errors are open");
    let retried = retry.wait_with_output().await.unwrap();
    assert!(retried.status.success(), "{}{}", stdout(&retried), stderr(&retried));
    assert!(stdout(&retried).contains("resolved by another worker meanwhile"), "{}", stdout(&retried));
    assert_eq!(scene.text(open).await, "0");
    assert_eq!(scene.balances().iter().filter(|(_, balance)| balance == "1000").count(), 1);
    assert_eq!(scene.balances().len(), 31);
    output_of(&scene, 0, &["verify"]).await;
}
