//! Delivery to an API that fails: the effect of each answer, within a run and in the next ones.

mod faults;
mod imported;
mod in_flight;
mod isolation;
mod sizes;
mod unknown;

use std::process::Output;
use std::time::{Duration, Instant};

use elven_sync::journal::RunStatus;
use elven_sync::sandbox::{Fault, Request};
use serde_json::Value;
use sqlx::PgPool;

use crate::support::{KEY, SECRET, TestEnv, fault_rules, is_import, stderr, stdout};

/// One entity, and a connector with a minimal back-off.
async fn scene(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
    scene.entity("acme", "UTC").await;
    scene
}

/// Adds a number of rows to an entity, each of its own account.
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

/// Returns the imports that arrived, in order.
fn imports(scene: &TestEnv) -> Vec<Request> {
    scene.sandbox.requests().into_iter().filter(|request| is_import(&request.path)).collect()
}

/// Returns the number of imports that were answered with this status.
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

/// The state of a batch in the journal.
#[derive(sqlx::FromRow, Debug, PartialEq)]
struct BatchSummary {
    status: String,
    attempts: i32,
    ambiguous: bool,
    http_status: Option<i32>,
    row_count: i32,
}

/// A batch without an HTTP status, whose outcome was never unknown.
fn batch(status: &str, attempts: i32, row_count: i32) -> BatchSummary {
    BatchSummary { status: status.to_owned(), attempts, ambiguous: false, http_status: None, row_count }
}

impl BatchSummary {
    fn http(self, status: i32) -> Self {
        Self { http_status: Some(status), ..self }
    }

    fn ambiguous(self) -> Self {
        Self { ambiguous: true, ..self }
    }

    /// Returns all batches in the order of their ids.
    async fn all(scene: &TestEnv) -> Vec<Self> {
        let sql = "select status, attempts, ambiguous, http_status, row_count from elven_sync.sync_batches order by batch_id";
        sqlx::query_as(sql).fetch_all(&scene.pool).await.unwrap()
    }

    /// Returns the batches of the newest pass.
    async fn of_newest_pass(scene: &TestEnv) -> Vec<Self> {
        let sql = "select status, attempts, ambiguous, http_status, row_count from elven_sync.sync_batches
                    where pass_id = (select max(pass_id) from elven_sync.sync_passes) order by batch_id";
        sqlx::query_as(sql).fetch_all(&scene.pool).await.unwrap()
    }
}

/// An error that is not resolved.
#[derive(sqlx::FromRow, Debug, PartialEq)]
struct OpenError {
    kind: String,
    http_status: Option<i32>,
    api_code: Option<String>,
}

/// An error without an HTTP status.
fn open_error(kind: &str) -> OpenError {
    OpenError { kind: kind.to_owned(), http_status: None, api_code: None }
}

impl OpenError {
    fn http(self, status: i32) -> Self {
        Self { http_status: Some(status), ..self }
    }

    fn code(self, api_code: &str) -> Self {
        Self { api_code: Some(api_code.to_owned()), ..self }
    }

    /// Returns all open errors in the order of their ids.
    async fn all(scene: &TestEnv) -> Vec<Self> {
        let sql = "select kind, http_status, api_code from elven_sync.sync_errors where resolved_at is null order by error_id";
        sqlx::query_as(sql).fetch_all(&scene.pool).await.unwrap()
    }
}

/// Each fault affects a batch of two rows. Then the API works again.
#[sqlx::test(migrations = false)]
async fn each_fault_has_its_outcome_and_is_repaired_later(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "3");
    let accepted = |attempts| batch("accepted", attempts, 2).http(200);
    let rejected = |attempts, http_status| batch("rejected", attempts, 2).http(http_status);
    let unknown = || batch("unknown", 3, 2).ambiguous();
    let unavailable = |http_status| Some(open_error("unavailable").http(http_status));
    // The batch and the error after the first run, the batch after the next run, and how often the API got the records.
    for (fault, batch, error, repaired, times) in [
        ("slow=0s", accepted(1), None, accepted(1), 1),
        ("throttle@once:1", accepted(2), None, accepted(2), 1),
        ("throttle", rejected(3, 429), Some(open_error("throttled").http(429)), accepted(4), 1),
        ("unavailable@first:2", accepted(3), None, accepted(3), 1),
        ("unavailable", rejected(3, 503), unavailable(503), accepted(4), 1),
        ("unavailable=0s", rejected(3, 503), Some(open_error("throttled").http(503)), accepted(4), 1),
        ("error-500@first:2", accepted(3).ambiguous(), None, accepted(3).ambiguous(), 1),
        ("error-500", unknown().http(500), unavailable(500), accepted(4).ambiguous(), 1),
        ("error-500-kept@once:1", accepted(2).ambiguous(), None, accepted(2).ambiguous(), 2),
        ("error-500-kept", unknown().http(500), unavailable(500), accepted(4).ambiguous(), 4),
        ("html-200", unknown().http(200), unavailable(200), accepted(4).ambiguous(), 1),
        ("html-502", unknown().http(502), unavailable(502), accepted(4).ambiguous(), 1),
        ("cut-before", unknown(), Some(open_error("unavailable")), accepted(4).ambiguous(), 1),
        ("answer-lost@once:1", accepted(2).ambiguous(), None, accepted(2).ambiguous(), 2),
        ("answer-lost", unknown(), Some(open_error("unavailable")), accepted(4).ambiguous(), 4),
        ("changed", rejected(1, 404), Some(open_error("config").http(404)), accepted(2), 1),
        ("redirect", rejected(1, 302), Some(open_error("config").http(302)), accepted(2), 1),
        ("revoked", rejected(1, 401), Some(open_error("auth").http(401).code("40106")), accepted(2), 1),
        ("forbidden", rejected(1, 403), Some(open_error("auth").http(403).code("40301")), accepted(2), 1),
    ] {
        add_rows(&scene, "acme", 2).await;
        let before = (imports(&scene).len(), scene.sandbox.records_accepted());
        scene.sandbox.set_rules(fault_rules(&[fault]));
        let output = scene.output(&["run", "--json"]).await;
        let report = json(&output);
        let (code, status) = if error.is_none() { (0, "succeeded") } else { (1, "failed") };
        assert_eq!((output.status.code(), &report["status"]), (Some(code), &status.into()), "{fault}");
        assert_eq!(BatchSummary::of_newest_pass(&scene).await, [batch], "{fault}");
        assert_eq!(OpenError::all(&scene).await, Vec::from_iter(error), "{fault}");
        let arrived = imports(&scene).split_off(before.0);
        assert_eq!(report["requests"], arrived.len(), "{fault}");
        assert_eq!(report["retries"], arrived.len() - 1, "{fault}");
        assert!(arrived.iter().all(|request| request.body_sha256 == arrived[0].body_sha256), "{fault}");

        scene.sandbox.set_rules(Vec::new());
        assert_eq!(scene.run().await.status, RunStatus::Succeeded, "{fault}");
        assert_eq!(BatchSummary::of_newest_pass(&scene).await, [repaired], "{fault}");
        assert_eq!(OpenError::all(&scene).await, [], "{fault}");
        assert_eq!(scene.sandbox.records_accepted() - before.1, 2 * times, "{fault}");
        scene.sql("delete from ledger.balance_snapshots").await;
    }
    let followed = scene.sandbox.requests().iter().any(|request| request.path == "/open/redirected");
    assert!(!followed, "a redirect is never followed");
    let set_aside = "select count(*)::text from elven_sync.sync_errors where ledger_id is not null";
    assert_eq!(scene.text(set_aside).await, "0", "none of this sets a row aside");
}

/// The statuses that no fault rule of the sandbox has, each for one batch of one row.
#[sqlx::test(migrations = false)]
async fn each_http_status_has_its_documented_outcome(pool: PgPool) {
    const REFUSAL: &str = r#"{"status":"failed","data":{"code":19734,"message":"no"}}"#;
    let scene = scene(pool).await;
    for (status, body, expected, error) in [
        (408, "", batch("accepted", 2, 1).http(200), None),
        (425, "", batch("accepted", 2, 1).http(200), None),
        (504, "<html>", batch("accepted", 2, 1).ambiguous().http(200), None),
        (204, "", batch("accepted", 2, 1).ambiguous().http(200), None),
        (422, "", batch("rejected", 1, 0).http(422), Some(open_error("rejected_row").http(422))),
        (
            402,
            REFUSAL,
            batch("rejected", 1, 0).http(402),
            Some(open_error("rejected_row").http(402).code("19734")),
        ),
        (
            409,
            REFUSAL,
            batch("rejected", 1, 0).http(409),
            Some(open_error("rejected_row").http(409).code("19734")),
        ),
        (409, "<html>", batch("rejected", 1, 1).http(409), Some(open_error("config").http(409))),
        (400, "<html>", batch("rejected", 1, 1).http(400), Some(open_error("config").http(400))),
        (401, "<html>", batch("rejected", 1, 1).http(401), Some(open_error("config").http(401))),
        (403, "<html>", batch("rejected", 1, 1).http(403), Some(open_error("config").http(403))),
        (422, "<html>", batch("rejected", 1, 1).http(422), Some(open_error("config").http(422))),
        (404, REFUSAL, batch("rejected", 1, 1).http(404), Some(open_error("config").http(404))),
        (405, REFUSAL, batch("rejected", 1, 1).http(405), Some(open_error("config").http(405))),
        (407, REFUSAL, batch("rejected", 1, 1).http(407), Some(open_error("config").http(407))),
        (410, REFUSAL, batch("rejected", 1, 1).http(410), Some(open_error("config").http(410))),
        (451, REFUSAL, batch("rejected", 1, 1).http(451), Some(open_error("config").http(451))),
        (403, "", batch("rejected", 1, 1).http(403), Some(open_error("auth").http(403))),
        (308, "", batch("rejected", 1, 1).http(308), Some(open_error("config").http(308))),
    ] {
        add_rows(&scene, "acme", 1).await;
        scene.sandbox.inject(Fault::Answer { status, body: body.to_owned(), headers: Vec::new() });
        scene.run().await;
        assert_eq!(BatchSummary::all(&scene).await.pop(), Some(expected), "{status} {body}");
        assert_eq!(OpenError::all(&scene).await, Vec::from_iter(error), "{status} {body}");
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
    assert_eq!(BatchSummary::all(&scene).await, [batch("accepted", 2, 2).ambiguous().http(200)]);
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
    assert_eq!(BatchSummary::all(&scene).await, [batch("rejected", 6, 2)]);
    assert_eq!(OpenError::all(&scene).await, [open_error("unavailable")]);
    scene.set("ELVEN_API_URL", &url);
    scene.run().await;
    assert_eq!(BatchSummary::all(&scene).await, [batch("accepted", 7, 2).http(200)]);
}

#[sqlx::test(migrations = false)]
async fn short_retry_after_is_awaited_as_seconds_or_date(pool: PgPool) {
    let scene = scene(pool).await;
    // A date has whole seconds, so that up to one of the two seconds is over when it is written.
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

/// Adds an entity called `other`, with its own credential, called `second`.
async fn add_other_with_its_own_key(scene: &mut TestEnv) {
    scene.set("ELVEN_SYNC_CREDENTIALS__SECOND__KEY_ENV", "SECOND_KEY");
    scene.set("ELVEN_SYNC_CREDENTIALS__SECOND__SECRET_ENV", "SECOND_SECRET");
    scene.set("SECOND_KEY", "key-2");
    scene.set("SECOND_SECRET", "secret-2");
    scene.entity("other", "UTC").await;
    scene.sql("update elven_sync.entities set credential = 'second' where entity_id = 'other'").await;
}

/// The pause is longer than a run waits. So the run stops, as do all lanes of the credential, and runs that come too
/// early.
#[sqlx::test(migrations = false)]
async fn long_retry_after_pauses_the_credential_across_runs(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_RETRY__MAX", "5s");
    // One entity at a time, in the order of their ids: acme has its turn before beta, which knows of the pause.
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1");
    add_other_with_its_own_key(&mut scene).await;
    scene.entity("beta", "UTC").await;
    add_rows(&scene, "beta", 2).await;
    scene.sandbox.set_rules(fault_rules(&["throttle=2m@once:1"]));
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    let pause = "select (not_before - clock_timestamp() between interval '100s' and interval '120s')::text
                   from elven_sync.sync_state where entity_id = 'beta'";
    assert_eq!(scene.text(pause).await, "true");
    assert_eq!(OpenError::all(&scene).await, [open_error("throttled").http(429)]);

    // Acme has the same credential, and was not affected so far.
    for entity_id in ["acme", "other"] {
        add_rows(&scene, entity_id, 1).await;
    }
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    let by: Vec<Option<String>> = imports(&scene).into_iter().map(|request| request.credential).collect();
    assert_eq!(by, [Some("default".to_owned()), Some("second".to_owned())], "nobody called too early");
    assert_eq!(OpenError::all(&scene).await, [open_error("throttled"), open_error("throttled")]);

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
        // Requests that were in flight when the first answer came have the wrong time as well.
        let refused = answered(&scene, 401) - before;
        assert!((1..=at_once).contains(&refused), "{fault}: {refused} of {at_once} at once");
        assert_eq!(scene.sandbox.records_accepted(), accepted);
    }
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
    // Twenty requests take at least 0.95 s. A busy machine may see some of them late, and so closer together.
    let fastest = times.windows(20).map(|window| (window[19] - window[0]).num_milliseconds()).min();
    assert!(fastest.unwrap() > 600, "{fastest:?} ms");
}

/// For all faults, and also when the API repeats the credential in its answer.
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
