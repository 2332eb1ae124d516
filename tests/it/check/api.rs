//! The checks of the API.

use std::time::Duration;

use sqlx::PgPool;

use super::{assert_found, checked, synced};
use crate::stub::{Stub, StubResponse, list, respond};
use crate::support::fault_rules;

fn answer(status: u16, body: &str) -> StubResponse {
    StubResponse { body: body.to_owned(), ..respond(status) }
}

#[sqlx::test(migrations = false)]
async fn an_api_that_cannot_be_reached_is_found(pool: PgPool) {
    let mut scene = synced(pool).await;
    let right = scene.sandbox.url();
    assert_found(&scene, "api.reachable", "ok", &["answers"]).await;
    for (url, words) in [
        ("http://127.0.0.1:1", ["could not be reached", "check ELVEN_API_URL"]),
        ("https://does-not-exist.invalid", ["could not be reached", "check ELVEN_API_URL"]),
    ] {
        scene.set("ELVEN_API_URL", url);
        assert_found(&scene, "api.reachable", "failed", &words).await;
        assert_found(&scene, "api.key", "skipped", &["needs api.reachable"]).await;
    }
    let (code, _) = checked(&scene, &["--only", "api"]).await;
    assert_eq!(code, 3);
    scene.set("ELVEN_API_URL", &right);
    assert_found(&scene, "api.reachable", "ok", &[]).await;
}

#[sqlx::test(migrations = false)]
async fn something_else_than_the_api_is_found(pool: PgPool) {
    let mut scene = synced(pool).await;
    let api = Stub::of(&mut scene, |_| answer(404, "{}")).await;
    assert_found(&scene, "api.reachable", "failed", &["not the documented API (HTTP 404)"]).await;
    api.answer(|_| answer(403, "<html>blocked</html>"));
    assert_found(&scene, "api.reachable", "failed", &["a proxy or firewall answered"]).await;
    api.answer(|_| answer(503, "{}"));
    assert_found(&scene, "api.reachable", "failed", &["HTTP 503"]).await;
    api.answer(|_| list());
    assert_found(&scene, "api.reachable", "ok", &[]).await;
}

#[sqlx::test(migrations = false)]
async fn keys_that_are_refused_or_may_not_list_are_found(pool: PgPool) {
    let mut scene = synced(pool).await;
    assert_found(&scene, "api.key", "ok", &["1 key is accepted"]).await;
    scene.set("ELVEN_API_SECRET", "not-the-secret");
    assert_found(&scene, "api.key", "failed", &["refused credential `default`", "HTTP 401"]).await;
    let api = Stub::of(&mut scene, |_| answer(403, r#"{"message":"no permission"}"#)).await;
    let words = ["may not list accounts", "may still be permitted to import", "no permission"];
    assert_found(&scene, "api.key", "warning", &words).await;
    assert_found(&scene, "api.envelope", "skipped", &["no list was answered"]).await;
    api.answer(|_| StubResponse { headers: vec![("retry-after", "7".to_owned())], ..answer(429, "{}") });
    assert_found(&scene, "api.key", "warning", &["rate limited by the API (HTTP 429); not before 20"]).await;
    api.answer(|_| answer(400, r#"{"message":"unknown parameter"}"#));
    let words = ["says nothing about the key", "HTTP 400", "unknown parameter", "check ELVEN_API_URL"];
    assert_found(&scene, "api.key", "warning", &words).await;
    api.answer(|_| list());
    assert_found(&scene, "api.key", "ok", &[]).await;
    scene.unset("ELVEN_API_KEY");
    assert_found(&scene, "api.key", "skipped", &["no credential"]).await;
}

#[sqlx::test(migrations = false)]
async fn form_clock_and_duration_of_answers_are_shown(pool: PgPool) {
    let mut scene = synced(pool).await;
    assert_found(&scene, "api.clock", "ok", &[]).await;
    scene.unset("ELVEN_SYNC_API__SIGNATURE_WINDOW");
    scene.sandbox.set_rules(fault_rules(&["clock=+90s"]));
    assert_found(&scene, "api.clock", "warning", &[" s behind the API's", "signature_window = 30s"]).await;
    // As in a run, the clock is corrected, and the key is good.
    assert_found(&scene, "api.key", "ok", &[]).await;
    scene.sandbox.set_rules(fault_rules(&["slow=1100ms"]));
    scene.set("ELVEN_SYNC_API__TIMEOUT", "2s");
    assert_found(&scene, "api.round_trip", "warning", &["raise [api] timeout"]).await;
    scene.sandbox.set_rules(Vec::new());
    assert_found(&scene, "api.round_trip", "ok", &["the slowest answer took"]).await;
    assert_found(&scene, "api.clock", "ok", &[]).await;
    let api = Stub::of(&mut scene, |_| list()).await;
    assert_found(&scene, "api.envelope", "ok", &["at the top level"]).await;
    api.answer(|_| answer(200, r#"{"status":"success","data":{"total":0,"list":[]}}"#));
    assert_found(&scene, "api.envelope", "ok", &["under `data`"]).await;
    assert!(api.requests().iter().all(|request| !request.is_import()) && !api.requests().is_empty());
}

/// Two keys, of which one is answered by something in between.
#[sqlx::test(migrations = false)]
async fn answers_of_different_forms_are_found(pool: PgPool) {
    let mut scene = synced(pool).await;
    for (name, value) in [
        ("ELVEN_SYNC_CREDENTIALS__SECOND__KEY_ENV", "SECOND_KEY"),
        ("ELVEN_SYNC_CREDENTIALS__SECOND__SECRET_ENV", "SECOND_SECRET"),
        ("SECOND_KEY", "key-2"),
        ("SECOND_SECRET", "secret-2"),
    ] {
        scene.set(name, value);
    }
    scene.entity("beta", "UTC").await;
    scene.sql("update elven_sync.entities set credential = 'second' where entity_id = 'beta'").await;
    let wrapped = r#"{"status":"success","data":{"total":0,"list":[]}}"#;
    let api = Stub::of(
        &mut scene,
        move |request| if request.key == "key-2" { answer(200, wrapped) } else { list() },
    )
    .await;
    assert_found(&scene, "api.envelope", "warning", &["lists have different forms", "a proxy"]).await;
    api.answer(|_| list());
    assert_found(&scene, "api.envelope", "ok", &["at the top level"]).await;
}

/// An API that throttles is asked once with each key.
#[sqlx::test(migrations = false)]
async fn an_api_that_throttles_costs_no_time(pool: PgPool) {
    let mut scene = synced(pool).await;
    let api = Stub::of(&mut scene, |_| StubResponse {
        headers: vec![("retry-after", "7".to_owned())],
        ..answer(429, "{}")
    })
    .await;
    for id in ["data.accounts", "data.currencies"] {
        let before = api.requests().len();
        assert_found(
            &scene,
            id,
            "skipped",
            &["could not be read", "rate limited by the API (HTTP 429); not before 20"],
        )
        .await;
        assert_eq!(api.requests().len() - before, 1);
    }
    // Only the second page is throttled, and it is not asked for again.
    let first = r#"{"total":1,"list":[{"id":"BTC","symbol":"BTC"}]}"#;
    api.answer(
        move |request| {
            if request.path.contains("account") { answer(200, first) } else { answer(429, "{}") }
        },
    );
    let before = api.requests().len();
    assert_found(&scene, "data.currencies", "skipped", &["could not be read", "rate limited by the API"])
        .await;
    assert!(api.requests().len() - before <= 4, "{:?}", api.requests());
}

#[sqlx::test(migrations = false)]
async fn the_permission_to_import_is_not_tried(pool: PgPool) {
    let scene = synced(pool).await;
    assert_found(&scene, "api.import", "ok", &["records of 1 entity were accepted before"]).await;
    scene.sql("update elven_sync.sync_state set rows_uploaded = 0").await;
    assert_found(&scene, "api.import", "skipped", &["cannot be tried without sending", "the first run"])
        .await;
}

/// An API that does not answer does not hold the checks up for ever.
#[sqlx::test(migrations = false)]
async fn an_answer_that_does_not_come_ends_with_the_timeout(pool: PgPool) {
    let mut scene = synced(pool).await;
    scene.set("ELVEN_SYNC_API__TIMEOUT", "300ms");
    let _api = Stub::of(&mut scene, |_| StubResponse { after: Duration::from_mins(1), ..list() }).await;
    assert_found(&scene, "api.reachable", "failed", &["no answer"]).await;
}
