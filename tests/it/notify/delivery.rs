//! What is posted, by whom, and how often.

use std::fs;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use elven_sync::config::Severity;
use elven_sync::fault_point::Side;
use elven_sync::journal::{AlertsNow, MessageKind, Told, claim_message, record_message};
use hmac::{Hmac, KeyInit, Mac};
use nix::sys::signal::Signal;
use serde_json::json;
use sha2::Sha256;
use sqlx::PgPool;

use super::{Request, minutes_pass, scene_with_webhook, set_guard, status};
use crate::alerts::add_row;
use crate::crashes::points::{OF_A_NOTIFICATION, points};
use crate::serve::Service;
use crate::support::{FAULT_POINT, eventually, fault_rules, output_of, signal};

const NONE: [&str; 0] = [];
const BEGAN: &str = "began GuardBroken critical 1";

#[sqlx::test(migrations = false)]
async fn message_is_signed_as_in_standard_webhooks(pool: PgPool) {
    let (mut scene, receiver) = scene_with_webhook(pool).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    let keys = ["a key of twenty-four byte", "an older key, still valid"];
    let lines: Vec<String> = keys.iter().map(|key| format!("whsec_{}\n", STANDARD.encode(key))).collect();
    fs::write(&file, lines.concat()).unwrap();
    scene.set("ELVEN_SYNC_NOTIFY__SECRET_FILE", file.to_str().unwrap());
    scene.sandbox.set_rules(fault_rules(&["revoked"]));
    add_row(&scene, "acme").await;
    output_of(&scene, 1, &["run"]).await;
    let [message] = &receiver.messages()[..] else { panic!("one message: {:?}", receiver.requests()) };
    assert_eq!(message.summary(), "began Failing critical 1");
    assert_eq!(message.header("content-type"), "application/json");
    assert!(message.header("user-agent").starts_with("elven-sync/"), "{message:?}");
    let (id, timestamp) = (message.header("webhook-id"), message.header("webhook-timestamp"));
    assert!(id.starts_with("msg_") && id.len() == 36 && !id.contains('.'), "{id}");
    let age = chrono::Utc::now().timestamp() - timestamp.parse::<i64>().unwrap();
    assert!((-60..600).contains(&age), "{age}");
    let signature = |key: &str| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
        mac.update(format!("{id}.{timestamp}.{}", message.body).as_bytes());
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    };
    assert_eq!(message.header("webhook-signature"), keys.map(signature).join(" "));
    let json = message.json();
    assert_eq!(json["data"]["entities"], json!(["acme"]));
    assert_eq!(json["data"]["hint"], "elven-sync errors list --entity 'acme'");
    let since =
        "select to_char(since at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') from elven_sync.alerts";
    assert_eq!(json["data"]["since"], scene.text(since).await);
    assert!(
        json["text"].as_str().unwrap().starts_with("*Failing* began: critical, 1 entity: `acme`"),
        "{json}"
    );
}

/// An installation that is older than its webhook.
#[sqlx::test(migrations = false)]
async fn alerts_that_hold_already_are_told_once(pool: PgPool) {
    let (mut scene, receiver) = scene_with_webhook(pool).await;
    let url = scene.settings(&[]).notify.webhook_url.unwrap();
    scene.unset("ELVEN_SYNC_NOTIFY__WEBHOOK_URL");
    set_guard(&scene, false).await;
    add_row(&scene, "ghost").await;
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(receiver.told(), NONE);
    scene.set("ELVEN_SYNC_NOTIFY__WEBHOOK_URL", secrecy::ExposeSecret::expose_secret(&url));
    for run in [&["run"][..], &["run"], &["run", "--entity", "acme"]] {
        scene.output(run).await;
    }
    assert_eq!(receiver.told(), [BEGAN, "began Unregistered warning 1"]);
    // The webhook is removed and added again: what ended meanwhile is told then.
    scene.unset("ELVEN_SYNC_NOTIFY__WEBHOOK_URL");
    set_guard(&scene, true).await;
    output_of(&scene, 3, &["run"]).await;
    scene.set("ELVEN_SYNC_NOTIFY__WEBHOOK_URL", secrecy::ExposeSecret::expose_secret(&url));
    output_of(&scene, 3, &["run"]).await;
    assert_eq!(receiver.told(), ["ended GuardBroken critical 1"]);
}

#[sqlx::test(migrations = false)]
async fn only_runs_tell_alerts(pool: PgPool) {
    let (scene, receiver) = scene_with_webhook(pool).await;
    add_row(&scene, "acme").await;
    scene.run().await;
    scene
        .sql(
            "insert into elven_sync.sync_facts (name, value) values ('guard', '{\"ok\": false}')
             on conflict (name, coalesce(entity_id, '')) do update set value = excluded.value",
        )
        .await;
    for command in [
        &["run", "--dry-run"][..],
        &["status"],
        &["verify"],
        &["errors", "retry"],
        &["backfill", "--from", "2024-01-01", "--to", "2024-01-02"],
    ] {
        output_of(&scene, 0, command).await;
    }
    assert_eq!(receiver.requests().len(), 0);
}

/// The first worker waits for the answer to its post while others run; and many workers begin at once.
#[sqlx::test(migrations = false)]
async fn workers_at_once_post_a_message_once(pool: PgPool) {
    let (scene, receiver) = scene_with_webhook(pool).await;
    set_guard(&scene, false).await;
    receiver.hold(true);
    let mut first = scene.command(&["run"]).spawn().unwrap();
    eventually("the post arrives", async || receiver.messages().len() == 1).await;
    output_of(&scene, 0, &["run"]).await;
    output_of(&scene, 0, &["run"]).await;
    receiver.hold(false);
    assert_eq!(first.wait().await.unwrap().code(), Some(0));
    assert_eq!(receiver.told(), [BEGAN]);
    set_guard(&scene, true).await;
    let mut children: Vec<_> = (0..4).map(|_| scene.command(&["run"]).spawn().unwrap()).collect();
    for child in &mut children {
        assert_eq!(child.wait().await.unwrap().code(), Some(0));
    }
    assert_eq!(receiver.told(), ["ended GuardBroken critical 1"]);
}

/// Killed between claim and post, and between post and record.
#[sqlx::test(migrations = false)]
async fn message_of_a_worker_that_died_is_posted_again_under_its_id(pool: PgPool) {
    let (mut scene, receiver) = scene_with_webhook(pool).await;
    let mut is_intact = false;
    for point in points(&OF_A_NOTIFICATION) {
        set_guard(&scene, is_intact).await;
        scene.set(FAULT_POINT, &format!("{point}=kill"));
        assert_eq!(scene.output(&["run"]).await.status.code(), None, "{point}: killed");
        scene.unset(FAULT_POINT);
        let first = receiver.messages();
        assert_eq!(first.len(), usize::from(point.1 == Side::After), "{point}");
        output_of(&scene, 0, &["run"]).await;
        assert_eq!(receiver.messages().len(), first.len(), "{point}: the claim lasts");
        let id = scene.text("select message_id from elven_sync.sync_notifications").await;
        minutes_pass(&scene, 3).await;
        output_of(&scene, 0, &["run"]).await;
        output_of(&scene, 0, &["run"]).await;
        let posted = receiver.messages();
        assert_eq!(posted.len(), first.len() + 1, "{point}");
        for Request { headers, body, .. } in &posted {
            assert_eq!(
                (headers["webhook-id"].to_str().unwrap(), body),
                (id.as_str(), &posted[0].body),
                "{point}"
            );
        }
        receiver.told();
        is_intact = !is_intact;
        minutes_pass(&scene, 61).await;
    }
}

/// Two workers see an alert. One tells it, and is answered, before the other one records what it has decided.
#[sqlx::test(migrations = false)]
async fn decision_on_an_older_state_records_nothing(pool: PgPool) {
    let (scene, _receiver) = scene_with_webhook(pool).await;
    let database = scene.database(2).await;
    let expiry = Duration::from_mins(1);
    let told = Told {
        kind: MessageKind::Began,
        at: AlertsNow::read(&database).await.unwrap().now,
        severity: Severity::Critical,
        count: 1,
        since: chrono::DateTime::UNIX_EPOCH,
        entities: Vec::new(),
        subjects: Vec::new(),
    };
    for revision in [0, 2] {
        record_message(&database, "GuardBroken", revision, &told, &[], "{}").await.unwrap();
        record_message(&database, "GuardBroken", revision, &told, &[], "{\"other\":1}").await.unwrap();
        let claimed = claim_message(&database, expiry, &[]).await.unwrap().unwrap();
        assert_eq!((claimed.json.as_str(), claimed.attempts), ("{}", 1));
        assert!(claim_message(&database, expiry, &[]).await.unwrap().is_none(), "claimed");
        claimed.delivered(&database).await.unwrap();
        record_message(&database, "GuardBroken", revision, &told, &[], "{}").await.unwrap();
        assert!(claim_message(&database, expiry, &[]).await.unwrap().is_none(), "told already");
        let [known] = &AlertsNow::read(&database).await.unwrap().notifications[..] else { panic!("one row") };
        assert_eq!((known.revision, known.told.as_ref()), (revision + 2, Some(&told)));
    }
    database.close().await;
}

/// The answer comes after the claim has expired, and another worker has posted the message again.
#[sqlx::test(migrations = false)]
async fn late_answer_does_no_harm(pool: PgPool) {
    let (scene, receiver) = scene_with_webhook(pool).await;
    set_guard(&scene, false).await;
    receiver.hold(true);
    let mut late = scene.command(&["run"]).spawn().unwrap();
    eventually("the post arrives", async || receiver.messages().len() == 1).await;
    scene.sql("update elven_sync.sync_notifications set claimed_until = now() - interval '1 second'").await;
    let mut other = scene.command(&["run"]).spawn().unwrap();
    eventually("the second post arrives", async || receiver.messages().len() == 2).await;
    receiver.hold(false);
    assert_eq!(late.wait().await.unwrap().code(), Some(0));
    assert_eq!(other.wait().await.unwrap().code(), Some(0));
    let ids: Vec<String> =
        receiver.messages().iter().map(|message| message.header("webhook-id").to_owned()).collect();
    assert_eq!(ids[0], ids[1]);
    let state = "select concat_ws(' ', told_type, message_id, attempts) from elven_sync.sync_notifications";
    assert_eq!(scene.text(state).await, "alert.began 0");
    receiver.told();
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(receiver.told(), NONE);
    // No other worker has claimed it.
    set_guard(&scene, true).await;
    receiver.hold(true);
    let mut late = scene.command(&["run"]).spawn().unwrap();
    eventually("the post arrives", async || receiver.messages().len() == 1).await;
    scene.sql("update elven_sync.sync_notifications set claimed_until = now() - interval '1 second'").await;
    receiver.hold(false);
    assert_eq!(late.wait().await.unwrap().code(), Some(0));
    assert_eq!(scene.text(state).await, "alert.ended 0");
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(receiver.told(), ["ended GuardBroken critical 1"]);
}

/// A run that cannot work at all, here without its ledger, tells that, and later that nothing is polled.
#[sqlx::test(migrations = false)]
async fn run_that_fails_tells_alerts(pool: PgPool) {
    let (scene, receiver) = scene_with_webhook(pool).await;
    output_of(&scene, 0, &["run"]).await;
    scene.sql("alter table ledger.balance_snapshots rename to elsewhere").await;
    output_of(&scene, 1, &["run"]).await;
    assert_eq!(receiver.told(), ["began RunFailed critical 1"]);
    minutes_pass(&scene, 61).await;
    output_of(&scene, 1, &["run"]).await;
    assert_eq!(receiver.told(), ["began NoPoll critical 1", "began Stale critical 1"]);
    scene.sql("alter table ledger.elsewhere rename to balance_snapshots").await;
    output_of(&scene, 0, &["run"]).await;
    let ended = ["ended NoPoll critical 1", "ended RunFailed critical 1", "ended Stale critical 1"];
    assert_eq!(receiver.told(), ended);
}

#[sqlx::test(migrations = false)]
async fn cycles_of_a_service_tell_alerts(pool: PgPool) {
    let (mut scene, receiver) = scene_with_webhook(pool).await;
    scene.set("ELVEN_SYNC_NOTIFY__HEARTBEAT_URL", &format!("{}/beat", receiver.url));
    let service = Service::start(&scene, &["--every", "1s"]).await;
    eventually("a heartbeat per run", async || receiver.heartbeats() >= 2).await;
    set_guard(&scene, false).await;
    eventually("the begin", async || receiver.messages().len() == 1).await;
    // The receiver does not answer any more. The service goes on to run, and ends when it is asked to.
    receiver.hold(true);
    set_guard(&scene, true).await;
    eventually("the end", async || receiver.messages().len() == 2).await;
    service.stop().await;
    let told: Vec<String> = receiver.messages().iter().map(Request::summary).collect();
    assert_eq!(told, [BEGAN, "ended GuardBroken critical 1"]);
}

/// A scheduler that stops a run does not wait for the webhook.
#[sqlx::test(migrations = false)]
async fn request_to_stop_ends_a_post(pool: PgPool) {
    let (scene, receiver) = scene_with_webhook(pool).await;
    set_guard(&scene, false).await;
    receiver.hold(true);
    let mut child = scene.command(&["run"]).spawn().unwrap();
    eventually("the post arrives", async || receiver.messages().len() == 1).await;
    signal(&child, Signal::SIGTERM);
    assert_eq!(child.wait().await.unwrap().code(), Some(0), "the run itself had ended");
    let state = "select concat_ws(' ', attempts, last_error) from elven_sync.sync_notifications";
    assert_eq!(scene.text(state).await, "1", "nobody waited for the answer");
    let id = scene.text("select message_id from elven_sync.sync_notifications").await;
    receiver.hold(false);
    receiver.answer(|_| status(200));
    minutes_pass(&scene, 3).await;
    output_of(&scene, 0, &["run"]).await;
    let ids: Vec<String> =
        receiver.messages().iter().map(|message| message.header("webhook-id").to_owned()).collect();
    assert_eq!(ids, [id.clone(), id]);
}
