//! A webhook that fails: no run fails, an alert says so, and nothing has the URL.

use std::fs;

use chrono::TimeDelta;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::net::TcpListener;

use super::{Answer, Request, TOKEN, minutes_pass, scene_with_webhook, set_guard, status};
use crate::alerts::{add_row, alert, named};
use crate::support::{TestEnv, output_of};

const NONE: [&str; 0] = [];
const BEGAN: &str = "began GuardBroken critical 1";

/// Everything that the sync tables hold, as text.
async fn tables(scene: &TestEnv) -> String {
    let names: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class where relnamespace = 'elven_sync'::regnamespace and relkind in ('r', 'v')",
    )
    .fetch_all(&scene.pool)
    .await
    .unwrap();
    let mut text = String::new();
    for name in names {
        let rows = format!("select coalesce(string_agg(t::text, ''), '') from elven_sync.{name} t");
        text += &sqlx::query_scalar::<_, String>(AssertSqlSafe(rows)).fetch_one(&scene.pool).await.unwrap();
    }
    text
}

#[sqlx::test(migrations = false)]
async fn webhook_that_fails_fails_no_run_and_is_an_alert_until_a_post_succeeds(pool: PgPool) {
    let (mut scene, receiver) = scene_with_webhook(pool).await;
    set_guard(&scene, false).await;
    let url = format!("{}/hook/{TOKEN}", receiver.url);
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let elsewhere = receiver.url.clone();
    let mut since = None;
    for (case, code, headers, words) in [
        ("", 500, vec![], "HTTP 500"),
        ("", 429, vec![("retry-after", "5".to_owned())], "HTTP 429"),
        ("", 410, vec![], "HTTP 410, so the URL is not in use any more"),
        ("", 403, vec![], "HTTP 403"),
        ("", 302, vec![("location", format!("{elsewhere}/moved"))], "HTTP 302, a redirect"),
        ("refused", 200, vec![], "error sending request"),
    ] {
        receiver.answer(move |_| Answer { status: code, headers: headers.clone() });
        let target = if case.is_empty() { url.clone() } else { format!("http://{unused}/{TOKEN}") };
        scene.set("ELVEN_SYNC_NOTIFY__WEBHOOK_URL", &target);
        minutes_pass(&scene, 11).await;
        let printed = output_of(&scene, 0, &["run"]).await;
        let warnings: Vec<&str> =
            printed.lines().filter(|line| line.contains("cannot be delivered to the webhook")).collect();
        assert_eq!(warnings.len(), 1, "{words}: {printed}");
        assert!(warnings[0].contains(words), "{printed}");
        let failing = alert(&scene, "WebhookFailing").await;
        assert!(failing.message.contains(words), "{failing:?}");
        // The command that the alert names says what fails, and what to do.
        assert_eq!(failing.hint, "elven-sync status");
        let status = output_of(&scene, 0, &["status"]).await;
        let line = status.lines().find(|line| line.contains("alerts cannot be delivered to the webhook"));
        let line = line.unwrap_or_else(|| panic!("{status}"));
        assert!(line.contains(words) && line.contains("; hint: "), "{status}");
        // Within the wait nothing is posted, and nothing is logged.
        let posted = receiver.requests().len();
        let printed = output_of(&scene, 0, &["run"]).await;
        assert!(!printed.contains("webhook"), "{printed}");
        assert_eq!(receiver.requests().len(), posted, "{words}");
        assert_eq!(named(&scene).await, ["GuardBroken critical", "WebhookFailing warning"]);
        // Everything, and so its begin, was moved back.
        let begun = since.map_or(failing.since, |since| since - TimeDelta::minutes(11));
        assert_eq!(failing.since, begun, "{words}: it is one condition");
        since = Some(begun);
    }
    assert!(
        receiver.requests().iter().all(|request| request.path.ends_with(TOKEN)),
        "no redirect is followed"
    );
    // The alert ends while the webhook is down; both messages are delivered, in order.
    set_guard(&scene, true).await;
    receiver.answer(|_| status(200));
    receiver.told();
    scene.set("ELVEN_SYNC_NOTIFY__WEBHOOK_URL", &url);
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(receiver.told(), NONE, "within the wait");
    minutes_pass(&scene, 11).await;
    output_of(&scene, 0, &["run"]).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(receiver.told(), [BEGAN, "ended GuardBroken critical 1"]);
    assert_eq!(named(&scene).await, NONE, "a post succeeded");
    assert!(!output_of(&scene, 0, &["status"]).await.contains("webhook"));
}

#[sqlx::test(migrations = false)]
async fn webhook_that_does_not_answer_fails_no_run(pool: PgPool) {
    let (scene, receiver) = scene_with_webhook(pool).await;
    set_guard(&scene, false).await;
    add_row(&scene, "ghost").await;
    receiver.hold(true);
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(receiver.told(), [BEGAN], "one attempt, not one for each message");
    assert!(alert(&scene, "WebhookFailing").await.message.ends_with(": no answer within 10s"));
}

/// The wait that the webhook asks for is obeyed, up to an hour.
#[sqlx::test(migrations = false)]
async fn retry_after_is_obeyed(pool: PgPool) {
    let (scene, receiver) = scene_with_webhook(pool).await;
    set_guard(&scene, false).await;
    receiver.answer(|_| Answer { status: 429, headers: vec![("retry-after", "86400".to_owned())] });
    output_of(&scene, 0, &["run"]).await;
    // Another alert would be posted at once, if the webhook worked.
    add_row(&scene, "ghost").await;
    minutes_pass(&scene, 55).await;
    receiver.answer(|_| status(200));
    receiver.told();
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(
        receiver.told(),
        ["began Unregistered warning 1"],
        "a new message finds out whether it works again"
    );
    minutes_pass(&scene, 6).await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(receiver.told(), [BEGAN]);
}

/// A receiver that does not understand one message.
#[sqlx::test(migrations = false)]
async fn refused_message_does_not_delay_others_and_is_an_alert(pool: PgPool) {
    let (scene, receiver) = scene_with_webhook(pool).await;
    set_guard(&scene, false).await;
    add_row(&scene, "ghost").await;
    let refuses = |request: &Request| status(if request.body.contains("GuardBroken") { 400 } else { 200 });
    receiver.answer(refuses);
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(receiver.told(), [BEGAN, "began Unregistered warning 1"]);
    assert_eq!(
        alert(&scene, "WebhookFailing").await.message,
        "alerts cannot be delivered to the webhook: HTTP 400"
    );
    // Another message is delivered, and the one that is refused keeps the alert.
    output_of(&scene, 0, &["entity", "add", "ghost", "--timezone", "UTC"]).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(receiver.told(), ["ended Unregistered warning 1"]);
    assert!(named(&scene).await.contains(&"WebhookFailing warning".to_owned()));
    receiver.answer(|_| status(200));
    minutes_pass(&scene, 11).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(receiver.told(), [BEGAN]);
    assert_eq!(named(&scene).await, ["GuardBroken critical"]);
}

#[sqlx::test(migrations = false)]
async fn file_that_cannot_be_used_stops_no_run_and_is_found_by_check(pool: PgPool) {
    let (mut scene, receiver) = scene_with_webhook(pool).await;
    set_guard(&scene, false).await;
    let folder = tempfile::tempdir().unwrap();
    let (url, secret) = (folder.path().join("url"), folder.path().join("secret"));
    scene.unset("ELVEN_SYNC_NOTIFY__WEBHOOK_URL");
    scene.set("ELVEN_SYNC_NOTIFY__WEBHOOK_URL_FILE", url.to_str().unwrap());
    scene.set("ELVEN_SYNC_NOTIFY__SECRET_FILE", secret.to_str().unwrap());
    let check = ["check", "--only", "configuration"];
    for (file, text, words) in [
        (None, "", "[notify] webhook_url_file names cannot be read"),
        (Some(&url), TOKEN, "[notify] webhook_url_file is not a URL"),
        (Some(&url), &format!("{}/{TOKEN}", receiver.url), "[notify] secret_file names cannot be read"),
        (Some(&secret), TOKEN, "the file of [notify] secret_file needs one secret per line"),
    ] {
        if let Some(file) = file {
            fs::write(file, text).unwrap();
        }
        let run = output_of(&scene, 0, &["run"]).await;
        assert!(run.contains(words), "{run}");
        let warning = run.lines().find(|line| line.contains("to the webhook")).unwrap();
        assert_eq!(warning.matches("hint:").count(), 1, "{warning}");
        assert!(alert(&scene, "WebhookFailing").await.message.contains(words));
        // A run uploads without it.
        let checked = output_of(&scene, 0, &check).await;
        assert!(!run.contains(TOKEN) && !checked.contains(TOKEN), "{run}{checked}");
        assert!(checked.split_whitespace().collect::<Vec<_>>().join(" ").contains(words), "{checked}");
    }
    fs::write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
    let checked = output_of(&scene, 0, &check).await;
    assert!(checked.contains("every user of this machine may read"), "{checked}");
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(receiver.told(), [BEGAN]);
    assert_eq!(named(&scene).await, ["GuardBroken critical"]);
}

/// It failed, and nothing waits to be told any more: the webhook is removed, or there is no message left.
#[sqlx::test(migrations = false)]
async fn webhook_that_was_removed_does_not_fail_any_more(pool: PgPool) {
    let (mut scene, receiver) = scene_with_webhook(pool).await;
    set_guard(&scene, false).await;
    receiver.answer(|_| status(500));
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, ["GuardBroken critical", "WebhookFailing warning"]);
    let url = format!("{}/{TOKEN}", receiver.url);
    scene.unset("ELVEN_SYNC_NOTIFY__WEBHOOK_URL");
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, ["GuardBroken critical"]);
    scene.set("ELVEN_SYNC_NOTIFY__WEBHOOK_URL", &url);
    minutes_pass(&scene, 11).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, ["GuardBroken critical", "WebhookFailing warning"]);
    // As the handbook says: to be told of everything anew.
    scene.sql("delete from elven_sync.sync_notifications").await;
    receiver.answer(|_| status(200));
    receiver.told();
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(receiver.told(), [BEGAN]);
    assert_eq!(named(&scene).await, ["GuardBroken critical"]);
}

/// At any level of the log, whatever the receiver does.
#[sqlx::test(migrations = false)]
async fn no_url_and_no_secret_reaches_log_or_tables(pool: PgPool) {
    let (mut scene, receiver) = scene_with_webhook(pool).await;
    set_guard(&scene, false).await;
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
    scene.set("ELVEN_SYNC_NOTIFY__SECRET_FILE", secret.to_str().unwrap());
    scene.set("ELVEN_SYNC_LOG", "trace");
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    // First an address at which nobody listens. The message is not delivered before the last run.
    for base in [format!("http://{dead}"), receiver.url.clone()] {
        for code in [500, 302, 200] {
            receiver
                .answer(move |_| Answer { status: code, headers: vec![("location", format!("/{TOKEN}"))] });
            for setting in ["WEBHOOK_URL", "HEARTBEAT_URL"] {
                scene.set(&format!("ELVEN_SYNC_NOTIFY__{setting}"), &format!("{base}/{TOKEN}?key={TOKEN}"));
            }
            let mut printed = output_of(&scene, 0, &["run"]).await;
            printed += &output_of(&scene, 0, &["check", "--only", "configuration", "--json"]).await;
            let signature =
                receiver.messages().pop().map(|message| message.header("webhook-signature").to_owned());
            for secret in [TOKEN, "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"].into_iter().chain(signature.as_deref())
            {
                let line = printed.lines().find(|line| line.contains(secret));
                assert_eq!(line, None, "{base} {code}");
            }
            minutes_pass(&scene, 61).await;
        }
    }
    assert_eq!(receiver.messages().len(), 3);
    assert!(!tables(&scene).await.contains(TOKEN));
}
