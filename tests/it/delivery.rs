//! Delivery against an API that fails: what follows from each answer, within a run and in the next ones.

mod faults;
mod in_flight;
mod isolation;
mod sizes;

use std::process::Output;
use std::time::{Duration, Instant};

use elven_sync::journal::RunStatus;
use elven_sync::sandbox::{Fault, Request};
use serde_json::Value;
use sqlx::PgPool;

use crate::support::{IMPORT, KEY, SECRET, TestEnv, fault_rules, stderr, stdout};

/// One entity, and a connector that hardly waits between its attempts.
async fn scene(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
    scene.entity("acme", "UTC").await;
    scene
}

/// Adds so many rows to an entity, each of an account of its own.
async fn add_rows(scene: &TestEnv, entity_id: &str, count: i32) {
    sqlx::query(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select $1, 'a' || n, 'BTC', '2024-01-01Z', n from generate_series(1, $2) n",
    )
    .bind(entity_id)
    .bind(count)
    .execute(&scene.pool)
    .await
    .unwrap();
}

/// The imports that arrived, in order.
fn imports(scene: &TestEnv) -> Vec<Request> {
    scene.sandbox.requests().into_iter().filter(|request| request.path == IMPORT).collect()
}

/// How many of the imports were answered so.
fn answered(scene: &TestEnv, status: u16) -> usize {
    imports(scene).iter().filter(|request| request.status == Some(status)).count()
}

fn failure(status: u16, message: &str) -> Fault {
    let body = format!(r#"{{"status":"failed","data":{{"code":19734,"message":"{message}"}}}}"#);
    Fault::Answer { status, body, headers: Vec::new() }
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap()
}

/// Status, attempts, `ambiguous` and HTTP status of the batches, in order.
const BATCHES: &str =
    "select string_agg(concat_ws(' ', status, attempts, ambiguous, http_status), ',' order by batch_id)
                         from elven_sync.sync_batches";

/// What is open in `sync_errors`.
const ERRORS: &str = "select string_agg(concat_ws(' ', kind, http_status, api_code), ',' order by error_id)
                        from elven_sync.sync_errors where resolved_at is null";

/// Each fault meets a batch of two rows of an entity of its own; then the API is well again.
#[sqlx::test(migrations = false)]
async fn each_fault_has_its_outcome_and_is_repaired_later(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "3");
    let batches = "select string_agg(concat_ws(' ', status, attempts, ambiguous, http_status), ',')
                     from elven_sync.sync_batches where pass_id = (select max(pass_id) from elven_sync.sync_passes)";
    // What the run leaves in the journal, what the next one does, and how often the records came in all.
    for (fault, batch, error, in_the_end, times) in [
        ("slow=0s", "accepted 1 f 200", "", "accepted 1 f 200", 1),
        ("throttle@once:1", "accepted 2 f 200", "", "accepted 2 f 200", 1),
        ("throttle", "rejected 3 f 429", "throttled 429", "accepted 4 f 200", 1),
        ("unavailable@first:2", "accepted 3 f 200", "", "accepted 3 f 200", 1),
        ("unavailable", "rejected 3 f 503", "unavailable 503", "accepted 4 f 200", 1),
        ("unavailable=0s", "rejected 3 f 503", "throttled 503", "accepted 4 f 200", 1),
        ("error-500@first:2", "accepted 3 t 200", "", "accepted 3 t 200", 1),
        ("error-500", "unknown 3 t 500", "unavailable 500", "accepted 4 t 200", 1),
        ("error-500-kept@once:1", "accepted 2 t 200", "", "accepted 2 t 200", 2),
        ("error-500-kept", "unknown 3 t 500", "unavailable 500", "accepted 4 t 200", 4),
        ("html-200", "unknown 3 t 200", "unavailable 200", "accepted 4 t 200", 1),
        ("html-502", "unknown 3 t 502", "unavailable 502", "accepted 4 t 200", 1),
        ("cut-before", "unknown 3 t", "unavailable", "accepted 4 t 200", 1),
        ("answer-lost@once:1", "accepted 2 t 200", "", "accepted 2 t 200", 2),
        ("answer-lost", "unknown 3 t", "unavailable", "accepted 4 t 200", 4),
        ("changed", "rejected 1 f 404", "config 404", "accepted 2 f 200", 1),
        ("redirect", "rejected 1 f 302", "config 302", "accepted 2 f 200", 1),
        ("revoked", "rejected 1 f 401", "auth 401 40106", "accepted 2 f 200", 1),
        ("forbidden", "rejected 1 f 403", "auth 403 40301", "accepted 2 f 200", 1),
    ] {
        add_rows(&scene, "acme", 2).await;
        let before = (imports(&scene).len(), scene.sandbox.records_accepted());
        scene.sandbox.set_rules(fault_rules(&[fault]));
        let output = scene.output(&["run", "--json"]).await;
        let report = json(&output);
        let (code, status) = if error.is_empty() { (0, "succeeded") } else { (1, "failed") };
        assert_eq!((output.status.code(), &report["status"]), (Some(code), &status.into()), "{fault}");
        assert_eq!(scene.text(batches).await, batch, "{fault}");
        assert_eq!(scene.text(ERRORS).await.replace("NULL", ""), error, "{fault}");
        let arrived = imports(&scene).split_off(before.0);
        assert_eq!(report["requests"], arrived.len(), "{fault}");
        assert_eq!(report["retries"], arrived.len() - 1, "{fault}");
        assert!(arrived.iter().all(|request| request.body_sha256 == arrived[0].body_sha256), "{fault}");

        scene.sandbox.set_rules(Vec::new());
        assert_eq!(scene.run().await.status, RunStatus::Succeeded, "{fault}");
        assert_eq!(scene.text(batches).await, in_the_end, "{fault}");
        assert_eq!(scene.text(ERRORS).await, "NULL", "{fault}");
        assert_eq!(scene.sandbox.records_accepted() - before.1, 2 * times, "{fault}");
        scene.sql("delete from ledger.balance_snapshots").await;
    }
    let followed = scene.sandbox.requests().iter().any(|request| request.path == "/open/redirected");
    assert!(!followed, "a redirect is never followed");
    let set_aside = "select count(*)::text from elven_sync.sync_errors where ledger_id is not null";
    assert_eq!(scene.text(set_aside).await, "0", "none of this sets a row aside");
}

/// The statuses that no standing fault of the sandbox has: for one batch of one row each.
#[sqlx::test(migrations = false)]
async fn each_http_status_has_its_documented_outcome(pool: PgPool) {
    const REFUSAL: &str = r#"{"status":"failed","data":{"code":19734,"message":"no"}}"#;
    let scene = scene(pool).await;
    let batch = "select concat_ws(' ', status, attempts, ambiguous, row_count) from elven_sync.sync_batches order by batch_id desc limit 1";
    let open = "select coalesce(string_agg(kind || ' ' || coalesce(api_code, ''), ','), '') from elven_sync.sync_errors where resolved_at is null";
    for (status, body, expected, error) in [
        (408, "", "accepted 2 f 1", ""),
        (425, "", "accepted 2 f 1", ""),
        (504, "<html>", "accepted 2 t 1", ""),
        (204, "", "accepted 2 t 1", ""),
        (422, "", "rejected 1 f 0", "rejected_row "),
        (402, REFUSAL, "rejected 1 f 0", "rejected_row 19734"),
        (409, REFUSAL, "rejected 1 f 0", "rejected_row 19734"),
        (409, "<html>", "rejected 1 f 1", "config "),
        (400, "<html>", "rejected 1 f 1", "config "),
        (401, "<html>", "rejected 1 f 1", "config "),
        (403, "<html>", "rejected 1 f 1", "config "),
        (422, "<html>", "rejected 1 f 1", "config "),
        (404, REFUSAL, "rejected 1 f 1", "config "),
        (405, REFUSAL, "rejected 1 f 1", "config "),
        (407, REFUSAL, "rejected 1 f 1", "config "),
        (410, REFUSAL, "rejected 1 f 1", "config "),
        (451, REFUSAL, "rejected 1 f 1", "config "),
        (403, "", "rejected 1 f 1", "auth "),
        (308, "", "rejected 1 f 1", "config "),
    ] {
        add_rows(&scene, "acme", 1).await;
        scene.sandbox.inject(Fault::Answer { status, body: body.to_owned(), headers: Vec::new() });
        scene.run().await;
        assert_eq!(scene.text(batch).await, expected, "{status} {body}");
        assert_eq!(scene.text(open).await, error, "{status} {body}");
        scene
            .sql(
                "delete from ledger.balance_snapshots;
                 update elven_sync.sync_errors set resolved_at = now(), resolution = 'by the test' where resolved_at is null",
            )
            .await;
        scene.run().await;
    }
}

#[sqlx::test(migrations = false)]
async fn answer_after_the_timeout_is_an_unknown_outcome(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_API__TIMEOUT", "700ms");
    add_rows(&scene, "acme", 2).await;
    scene.sandbox.set_rules(fault_rules(&["slow=2s@once:1"]));
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(scene.text(BATCHES).await, "accepted 2 t 200");
    assert_eq!(scene.sandbox.records_accepted(), 4, "the first time it had arrived");
}

#[sqlx::test(migrations = false)]
async fn request_without_connection_is_retried_and_not_ambiguous(pool: PgPool) {
    let mut scene = scene(pool).await;
    add_rows(&scene, "acme", 2).await;
    let url = scene.sandbox.url();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    scene.set("ELVEN_API_URL", &format!("http://{}", free.local_addr().unwrap()));
    drop(free);
    let report = scene.run().await;
    assert_eq!((report.status, report.counters.requests), (RunStatus::Failed, 0), "none got out");
    assert_eq!(scene.text(BATCHES).await, "rejected 6 f");
    assert_eq!(scene.text(ERRORS).await, "unavailable");
    scene.set("ELVEN_API_URL", &url);
    scene.run().await;
    assert_eq!(scene.text(BATCHES).await, "accepted 7 f 200");
}

#[sqlx::test(migrations = false)]
async fn short_retry_after_is_awaited_as_seconds_or_date(pool: PgPool) {
    let scene = scene(pool).await;
    // A date has whole seconds, so that up to one of the two is gone when it is written.
    for fault in ["throttle=1s@once:1", "unavailable=2s@once:1"] {
        add_rows(&scene, "acme", 2).await;
        let before = imports(&scene).len();
        scene.sandbox.set_rules(fault_rules(&[fault]));
        assert_eq!(scene.run().await.status, RunStatus::Succeeded);
        let arrived = imports(&scene).split_off(before);
        let waited = arrived[1].at - arrived[0].at;
        assert_eq!(arrived.len(), 2, "{fault}");
        assert!((900..10_000).contains(&waited.num_milliseconds()), "{fault}: {waited}");
    }
}

/// An entity called `other`, with a key of its own, called `second`.
async fn add_other_with_its_own_key(scene: &mut TestEnv) {
    scene.set("ELVEN_SYNC_CREDENTIALS__SECOND__KEY_ENV", "SECOND_KEY");
    scene.set("ELVEN_SYNC_CREDENTIALS__SECOND__SECRET_ENV", "SECOND_SECRET");
    scene.set("SECOND_KEY", "key-2");
    scene.set("SECOND_SECRET", "secret-2");
    scene.entity("other", "UTC").await;
    scene.sql("update elven_sync.entities set credential = 'second' where entity_id = 'other'").await;
}

/// Longer than a run waits: then it stops, and so do all who use the credential, and runs that come too early.
#[sqlx::test(migrations = false)]
async fn long_retry_after_pauses_the_credential_across_runs(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_RETRY__MAX", "5s");
    // In the order of their ids: acme comes to its turn before beta, which knows of the pause.
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1");
    add_other_with_its_own_key(&mut scene).await;
    scene.entity("beta", "UTC").await;
    add_rows(&scene, "beta", 2).await;
    scene.sandbox.set_rules(fault_rules(&["throttle=2m@once:1"]));
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    let pause = "select (not_before - clock_timestamp() between interval '100s' and interval '120s')::text
                   from elven_sync.sync_state where entity_id = 'beta'";
    assert_eq!(scene.text(pause).await, "true");
    assert_eq!(scene.text(ERRORS).await, "throttled 429");

    // Acme has the same credential, and had nothing to do with it so far.
    for entity_id in ["acme", "other"] {
        add_rows(&scene, entity_id, 1).await;
    }
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    let by: Vec<Option<String>> = imports(&scene).into_iter().map(|request| request.credential).collect();
    assert_eq!(by, [Some("default".to_owned()), Some("second".to_owned())], "nobody called too early");
    assert_eq!(scene.text(ERRORS).await, "throttled,throttled");

    scene.sql("update elven_sync.sync_state set not_before = clock_timestamp()").await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(scene.sandbox.records_accepted(), 4);
}

#[sqlx::test(migrations = false)]
async fn clock_offset_is_corrected_once_and_logged(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    let mut accepted = 0;
    for (fault, at_once) in [("clock=+90s", 1), ("clock=-90s", 1), ("clock=+90s", 4), ("clock=-90s", 4)] {
        scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", &at_once.to_string());
        add_rows(&scene, "acme", 12).await;
        accepted += 12;
        scene.sandbox.set_rules(fault_rules(&[fault]));
        let before = answered(&scene, 401);
        let output = scene.output(&["run"]).await;
        assert_eq!(output.status.code(), Some(0), "{fault} {at_once}: {}", stderr(&output));
        assert!(stderr(&output).contains("clock is off"), "{fault}: {}", stderr(&output));
        // Those that were under way when the first answer came are as wrong as that one.
        let refused = answered(&scene, 401) - before;
        assert!((1..=at_once).contains(&refused), "{fault}: {refused} of {at_once} at once");
        assert_eq!(scene.sandbox.records_accepted(), accepted);
    }
}

#[sqlx::test(migrations = false)]
async fn unknown_batch_is_sent_once_per_run_after_three_runs(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "2");
    add_rows(&scene, "acme", 2).await;
    scene.sandbox.set_rules(fault_rules(&["cut-before"]));
    for (run, requests) in [(1, 2), (2, 2), (3, 2), (4, 1), (5, 1)] {
        let before = imports(&scene).len();
        assert_eq!(scene.run().await.status, RunStatus::Failed);
        assert_eq!(imports(&scene).len() - before, requests, "run {run}");
    }
    let imports = imports(&scene);
    assert!(imports.iter().all(|import| import.body_sha256 == imports[0].body_sha256), "the same bytes");
    scene.sandbox.set_rules(Vec::new());
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(scene.text(BATCHES).await, "accepted 9 t 200");
}

#[sqlx::test(migrations = false)]
async fn ambiguous_batch_can_be_held_for_review(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__ON_AMBIGUOUS", "hold");
    add_rows(&scene, "acme", 2).await;
    scene.sandbox.set_rules(fault_rules(&["answer-lost@once:1"]));
    for _ in 0..2 {
        assert_eq!(scene.run().await.status, RunStatus::Failed);
        assert_eq!((scene.text(BATCHES).await.as_str(), imports(&scene).len()), ("unknown 1 f", 1));
    }
    let hint = "select message from elven_sync.sync_errors where resolved_at is null";
    assert!(scene.text(hint).await.contains("ON_AMBIGUOUS=resend"));
    scene.set("ELVEN_SYNC_SYNC__ON_AMBIGUOUS", "resend");
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(scene.text(BATCHES).await, "accepted 2 t 200");
}

/// A batch that a dead worker was sending is held too; one in which there was nothing to send is not.
#[sqlx::test(migrations = false)]
async fn batch_of_a_dead_worker_is_held(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__ON_AMBIGUOUS", "hold");
    add_rows(&scene, "acme", 2).await;
    let (mut child, gate) = scene.held_run().await;
    child.kill().await.unwrap();
    gate.open();
    assert_eq!(scene.run().await.status, RunStatus::Failed);
    assert_eq!((scene.text(BATCHES).await.as_str(), imports(&scene).len()), ("unknown 1 f", 1));
    scene.set("ELVEN_SYNC_SYNC__ON_AMBIGUOUS", "resend");
    scene.run().await;

    scene.set("ELVEN_SYNC_SYNC__ON_AMBIGUOUS", "hold");
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'x', 'BTC', '2024-01-01Z', 'NaN')").await;
    // As if it had died between recording the batch and its end.
    scene.run().await;
    scene
        .sql(
            "update elven_sync.sync_batches set status = 'sending', finished_at = null where row_count = 0;
               update elven_sync.sync_state s set pass_id = p.pass_id, target = p.target, settled = p.settled
                 from (select * from elven_sync.sync_passes order by pass_id desc limit 1) p;
               update elven_sync.sync_passes
                  set finished_at = null, last_xid = null, last_id = null, written_by = pg_current_xact_id()
                where pass_id = (select max(pass_id) from elven_sync.sync_passes)",
        )
        .await;
    assert_ne!(scene.run().await.status, RunStatus::Failed, "{}", scene.text(ERRORS).await);
}

#[sqlx::test(migrations = false)]
async fn requests_stay_within_their_rate(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_API__REQUESTS_PER_SECOND", "20");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    add_rows(&scene, "acme", 30).await;
    let begun = Instant::now();
    scene.run().await;
    assert!(begun.elapsed() >= Duration::from_millis(1_400), "{:?}", begun.elapsed());
    let times: Vec<_> = imports(&scene).into_iter().map(|request| request.at).collect();
    assert_eq!(times.len(), 30);
    // Twenty of them take 0.95 s at the least. A busy machine may see some late, and so closer together.
    let fastest = times.windows(20).map(|window| (window[19] - window[0]).num_milliseconds()).min();
    assert!(fastest.unwrap() > 600, "{fastest:?} ms");
}

/// Whatever goes wrong, and whatever the API repeats of what it was sent.
#[sqlx::test(migrations = false)]
async fn no_failure_shows_key_or_secret(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "2");
    scene.set("ELVEN_SYNC_LOG", "trace");
    let mut seen = String::new();
    let echo = format!("key {KEY} with {SECRET} is not good");
    for fault in [
        "reject:account=a1",
        "refuses-all",
        "revoked",
        "clock=+90s",
        "throttle",
        "answer-lost",
        "html-200",
        "changed",
        "body-limit=1B",
        "cut-before",
    ] {
        add_rows(&scene, "acme", 3).await;
        scene.sandbox.set_rules(fault_rules(&[fault]));
        let output = scene.output(&["-vv", "run"]).await;
        seen += &(stdout(&output) + &stderr(&output));
    }
    for status in [400, 401, 422] {
        scene.sandbox.set_rules(Vec::new());
        scene.sandbox.inject(failure(status, &echo));
        add_rows(&scene, "acme", 1).await;
        let output = scene.output(&["-vv", "run"]).await;
        seen += &(stdout(&output) + &stderr(&output));
    }
    let tables: Vec<String> = sqlx::query_scalar(
        "select query_to_xml('select * from elven_sync.' || quote_ident(tablename), true, false, '')::text
           from pg_tables where schemaname = 'elven_sync'",
    )
    .fetch_all(&scene.pool)
    .await
    .unwrap();
    seen += &tables.concat();
    assert!(seen.contains("is not good"), "what the API said is there");
    for secret in [KEY, SECRET] {
        let at = seen.find(secret).map(|at| &seen[at.saturating_sub(200)..at]);
        assert_eq!(at, None, "{secret}");
    }
}
