//! Rates, pauses and permits: what the lanes of one credential share, and what they do not take from others.

use std::time::{Duration, SystemTime};

use chrono::TimeDelta;
use elven_sync::journal::RunStatus;
use httpdate::fmt_http_date;
use sqlx::PgPool;

use crate::stub::{Stub, StubRequest, StubResponse, respond};
use crate::support::{KEY, TestEnv, eventually, fault_rules, output_of, stderr};

/// A connector that works on one entity at once, and the entities `e1`, `e2`, ... with the credential `default`.
async fn scene(pool: PgPool, entities: usize) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "2");
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
    for n in 1..=entities {
        scene.entity(&format!("e{n}"), "UTC").await;
    }
    scene
}

/// Registers the entity `z` with a credential of its own.
async fn add_neighbour(scene: &mut TestEnv) {
    scene.set("ELVEN_SYNC_CREDENTIALS__SECOND__KEY_ENV", "SECOND_KEY");
    scene.set("ELVEN_SYNC_CREDENTIALS__SECOND__SECRET_ENV", "SECOND_SECRET");
    scene.set("SECOND_KEY", "key-2");
    scene.set("SECOND_SECRET", "secret-2");
    scene.entity("z", "UTC").await;
    scene.sql("update elven_sync.entities set credential = 'second' where entity_id = 'z'").await;
}

/// Adds rows to each registered entity, each of its own account.
async fn add_rows_to_all(scene: &TestEnv, count: i32) {
    sqlx::query(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select entity_id, entity_id || '-' || n, 'BTC', '2024-01-01Z', n
           from elven_sync.entities, generate_series(1, $1) n",
    )
    .bind(count)
    .execute(&scene.pool)
    .await
    .unwrap();
}

/// The clock of the API is off from the clock of the worker, by less than its signatures tolerate.
#[sqlx::test(migrations = false)]
async fn date_in_retry_after_is_read_by_the_clock_of_its_answer(pool: PgPool) {
    let mut scene = scene(pool, 1).await;
    add_rows_to_all(&scene, 1).await;
    for (now_s, after_s, expected) in [(600, 40, "40"), (-600, 40, "40"), (0, 40, "40"), (90, 7_200, "3600")]
    {
        scene.sql("update elven_sync.sync_state set not_before = null").await;
        let _stub = Stub::of(&mut scene, move |_| {
            // A whole second, as both dates have it.
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            let at = |s: i64| {
                let since = since.checked_add_signed(now_s + s).unwrap();
                fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(since))
            };
            let headers = vec![("date", at(0)), ("retry-after", at(after_s))];
            StubResponse { headers, ..respond(503) }
        })
        .await;
        assert_eq!(scene.run().await.status, RunStatus::Failed);
        let asked_for = "select round(extract(epoch from not_before - last_attempt.at))::text
                           from elven_sync.sync_state,
                                (select max(last_seen_at) as at from elven_sync.sync_errors) last_attempt";
        assert_eq!(scene.text(asked_for).await, expected, "the clock is {now_s} s ahead");
    }
}

/// Requests that waited for a pause do not make up for it afterwards.
#[sqlx::test(migrations = false)]
async fn request_rate_holds_after_a_pause(pool: PgPool) {
    let mut scene = scene(pool, 8).await;
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "8");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "4");
    scene.set("ELVEN_SYNC_API__REQUESTS_PER_SECOND", "10");
    add_rows_to_all(&scene, 5).await;
    scene.sandbox.set_rules(fault_rules(&["throttle=4s@once:6"]));
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    let mut at: Vec<_> = scene.sandbox.requests().into_iter().map(|request| request.at).collect();
    assert!(at.len() > 40, "all rows, and the throttled requests: {}", at.len());
    at.sort();
    let of_16 = at.windows(16).map(|requests| requests[15] - requests[0]).min().unwrap();
    // A busy machine may be late with a few of them.
    assert!(of_16 > TimeDelta::seconds(1), "16 requests within {of_16}");
}

/// Returns whether an import of the second credential arrived, and how many of the first one did.
fn arrived(stub: &Stub) -> (bool, usize) {
    let (first, second): (Vec<StubRequest>, Vec<StubRequest>) =
        stub.imports().into_iter().partition(|asked| asked.key == KEY);
    (!second.is_empty(), first.len())
}

/// One credential is throttled for longer than the test lasts, with many entities. Another one is not.
#[sqlx::test(migrations = false)]
async fn entities_of_a_throttled_key_delay_no_entity_of_another_key(pool: PgPool) {
    let mut scene = scene(pool, 12).await;
    add_neighbour(&mut scene).await;
    add_rows_to_all(&scene, 20).await;
    let stub = Stub::of(&mut scene, |asked| match asked.key.as_str() {
        KEY => StubResponse { headers: vec![("retry-after", "29".to_owned())], ..respond(429) },
        _ => respond(200),
    })
    .await;
    let mut child = scene.command(&["run"]).spawn().unwrap();
    let done = "select (rows_uploaded = 20)::text from elven_sync.sync_state where entity_id = 'z'";
    eventually("all rows of the other entity are uploaded", async || scene.text(done).await == "true").await;
    let (_, of_first) = arrived(&stub);
    assert!(of_first <= 2, "{of_first} requests of the throttled key: the requests that were in flight");
    child.kill().await.unwrap();
}

/// The API answers to one key after longer than the test lasts.
#[sqlx::test(migrations = false)]
async fn entities_of_a_slow_key_delay_no_entity_of_another_key(pool: PgPool) {
    let mut scene = scene(pool, 12).await;
    add_neighbour(&mut scene).await;
    add_rows_to_all(&scene, 20).await;
    let stub = Stub::of(&mut scene, |asked| match asked.key.as_str() {
        KEY => StubResponse { after: Duration::from_secs(29), ..respond(200) },
        _ => respond(200),
    })
    .await;
    let mut child = scene.command(&["run"]).spawn().unwrap();
    let done = "select (rows_uploaded = 20)::text from elven_sync.sync_state where entity_id = 'z'";
    eventually("all rows of the other entity are uploaded", async || scene.text(done).await == "true").await;
    assert_eq!(arrived(&stub), (true, 2), "the limit of requests holds for one key");
    child.kill().await.unwrap();
}

/// The words of the warning about a key that several entities use.
const SHARED: &str = "use one API key";

/// At Elven a key belongs to one entity. The warning ends when each entity has uploaded rows, because the key is
/// right then.
#[sqlx::test(migrations = false)]
async fn entities_that_share_a_key_are_named_until_each_has_uploaded_rows(pool: PgPool) {
    let mut scene = scene(pool, 2).await;
    add_neighbour(&mut scene).await;
    add_rows_to_all(&scene, 1).await;
    scene.sandbox.set_rules(fault_rules(&["reject:account=e2-1"]));
    let warnings = async |scene: &TestEnv, code| {
        let output = scene.output(&["run"]).await;
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        let lines: Vec<String> =
            stderr(&output).lines().filter(|line| line.contains(SHARED)).map(str::to_owned).collect();
        lines
    };
    let of_first = warnings(&scene, 3).await;
    assert_eq!(of_first.len(), 1, "once per run: {of_first:?}");
    assert!(
        of_first[0].contains("entities `e1`, `e2` use one API key (credential `default`)"),
        "{of_first:?}"
    );
    // The API still refuses a row of one of them.
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select entity_id, entity_id, 'BTC', '2024-01-02Z', 1 from elven_sync.entities").await;
    assert_eq!(warnings(&scene, 0).await.len(), 1);
    // Nothing is done for them.
    assert_eq!(warnings(&scene, 0).await.len(), 0);
    scene.sandbox.set_rules(Vec::new());
    output_of(&scene, 0, &["errors", "retry"]).await;
    scene.sql("update ledger.balance_snapshots set balance = balance + 1").await;
    assert_eq!(warnings(&scene, 0).await.len(), 0, "the key is right");

    // Two credentials with the same key.
    scene.set("SECOND_KEY", KEY);
    scene.set("SECOND_SECRET", crate::support::SECRET);
    scene
        .sql(
            "update ledger.balance_snapshots set balance = balance + 1;
               update elven_sync.sync_state set rows_uploaded = 0 where entity_id = 'z'",
        )
        .await;
    let of_two = warnings(&scene, 0).await;
    assert_eq!(of_two.len(), 1, "{of_two:?}");
    let all = "entities `e1`, `e2`, `z` use one API key (credentials `default`, `second`)";
    assert!(of_two[0].contains(all), "{of_two:?}");

    let added = output_of(&scene, 0, &["entity", "add", "e3", "--timezone", "UTC"]).await;
    assert!(added.contains("credential `default` is also that of entity `e1` and 1 more"), "{added}");
    let added =
        output_of(&scene, 0, &["entity", "add", "e4", "--timezone", "UTC", "--credential", "x"]).await;
    assert!(!added.contains("is also that of"), "{added}");
}
