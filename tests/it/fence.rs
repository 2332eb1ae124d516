//! A request whose answer was lost may still arrive: until its signature is too old, nothing else is sent for its keys.

use std::time::{Duration, Instant};

use elven_sync::journal::RunStatus;
use elven_sync::sandbox::{Fault, Options, Request};
use elven_sync::sync::Ended;
use serde_json::Value;
use sqlx::PgPool;

use crate::sandbox::IMPORT;
use crate::sandbox_faults::parsed;
use crate::support::{TestEnv, eventually, said, stdout};

/// One entity, requests one after the other, each for one row.
async fn scene(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await.with_fences().await;
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    // With 3 s on top: long enough for a slow machine to be there before the end.
    scene.set("ELVEN_SYNC_API__SIGNATURE_WINDOW", "2s");
    scene.entity("acme", "UTC").await;
    scene
}

/// Adds a row of this account and balance, of the same second in all of them.
async fn add(scene: &TestEnv, entity_id: &str, account: &str, balance: i32) {
    sqlx::query(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         values ($1, $2, 'BTC', '2024-01-01Z', $3)",
    )
    .bind(entity_id)
    .bind(account)
    .bind(balance)
    .execute(&scene.pool)
    .await
    .unwrap();
}

/// What arrived, in order, as account and balance.
fn arrived(scene: &TestEnv) -> Vec<String> {
    scene.balances().into_iter().map(|(account, balance)| format!("{account}={balance}")).collect()
}

fn imports(scene: &TestEnv) -> Vec<Request> {
    scene.sandbox.requests().into_iter().filter(|request| request.path == IMPORT).collect()
}

/// For how long the entity is fenced. `None`: it is not.
async fn fenced_for(scene: &TestEnv) -> Option<Duration> {
    let left =
        "select extract(epoch from max(fence_until) - clock_timestamp())::text from elven_sync.sync_state";
    Duration::try_from_secs_f64(scene.text(left).await.parse().ok()?).ok()
}

/// Waits for the end of the fence, and then a run finds all delivered.
async fn and_then_all_is_delivered(scene: &TestEnv) {
    assert!(fenced_for(scene).await.is_some());
    eventually("the fence ends", async || fenced_for(scene).await.is_none()).await;
    let report = scene.run().await;
    assert_eq!((report.status, report.entities[0].rows_pending), (RunStatus::Succeeded, Some(0)));
    assert_eq!(report.entities[0].ended, Ended::Done);
    said(scene, 0, &["verify"]).await;
}

/// The request is cut off, is sent again and accepted, and arrives once more when the row has a newer value.
#[sqlx::test(migrations = false)]
async fn a_late_request_never_comes_behind_a_newer_row(pool: PgPool) {
    let scene = scene(pool).await;
    add(&scene, "acme", "a", 1).await;
    scene.sandbox.set_rules(parsed(&["late=1s@once:1"]));
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    let left = fenced_for(&scene).await.unwrap();
    assert!(left > Duration::from_secs(2) && left <= Duration::from_secs(5), "{left:?}");

    scene.sql("update ledger.balance_snapshots set balance = 2").await;
    let run = scene.output(&["run"]).await;
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    let shown = stdout(&run);
    assert!(shown.contains("succeeded: 0 rows read") && shown.contains("1 pending"), "{shown}");
    assert!(shown.contains("pending: acme: the answer to a request was lost"), "{shown}");
    let state = "select concat_ws(' ', lease_owner is null, last_error, consecutive_failures, pending_rows)
                   from elven_sync.sync_state";
    assert_eq!(scene.text(state).await, "t 0 1", "no failure, and the row is shown as pending");
    eventually("the first request arrives", async || arrived(&scene).len() == 2).await;
    and_then_all_is_delivered(&scene).await;
    assert_eq!(arrived(&scene), ["a=1", "a=1", "a=2"]);
}

/// A proxy gave up, and the request arrives all the same.
#[sqlx::test(migrations = false)]
async fn machines_are_told_what_waits(pool: PgPool) {
    let scene = scene(pool).await;
    add(&scene, "acme", "a", 1).await;
    scene.sandbox.inject(Fault::Answer { status: 504, body: String::new(), headers: Vec::new() });
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    scene.sql("update ledger.balance_snapshots set balance = 2").await;
    let run: Value = serde_json::from_str(&stdout(&scene.output(&["run", "--json"]).await)).unwrap();
    assert_eq!((&run["status"], &run["rows_pending"]), (&"succeeded".into(), &1.into()));
    assert_eq!(run["entities"][0]["ended"], "fenced");
}

/// In one run: the next batch has another row of the same key.
#[sqlx::test(migrations = false)]
async fn another_batch_of_the_key_waits_although_the_first_was_accepted_meanwhile(pool: PgPool) {
    let scene = scene(pool).await;
    for (account, balance) in [("a", 1), ("b", 2), ("a", 3), ("c", 4)] {
        add(&scene, "acme", account, balance).await;
    }
    scene.sandbox.set_rules(parsed(&["late=1s@once:1"]));
    let report = scene.run().await;
    assert_eq!((report.status, report.entities[0].rows_pending), (RunStatus::Succeeded, Some(2)));
    assert_eq!(arrived(&scene), ["a=1", "b=2"], "another key does not wait");
    eventually("the first request arrives", async || arrived(&scene).len() == 3).await;
    and_then_all_is_delivered(&scene).await;
    assert_eq!(arrived(&scene), ["a=1", "b=2", "a=1", "a=3", "c=4"]);
}

/// What may have arrived, and may arrive later, and what not.
#[sqlx::test(migrations = false)]
async fn each_unknown_outcome_fences_and_no_other_answer_does(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.set("ELVEN_SYNC_API__TIMEOUT", "500ms");
    for (number, (fault, fences)) in [
        ("slow=0s", false),
        ("cut-before", true),
        ("answer-lost", true),
        ("late=1h", true),
        ("error-500", true),
        ("error-500-kept", true),
        ("html-502", true),
        ("html-200", true),
        ("slow=2s", true),
        ("throttle", false),
        ("unavailable", false),
        ("refuses-all", false),
        ("reject:currency=BTC", false),
        ("revoked", false),
        ("changed", false),
    ]
    .into_iter()
    .enumerate()
    {
        let entity_id = format!("e{number}");
        scene.entity(&entity_id, "UTC").await;
        add(&scene, &entity_id, "a", 1).await;
        scene.sandbox.set_rules(parsed(&[fault]));
        scene.output(&["run", "--entity", &entity_id]).await;
        let fenced =
            "select extract(epoch from fence_until - clock_timestamp())::text from elven_sync.sync_state
                       where fence_until is not null";
        let left = sqlx::query_scalar::<_, String>(fenced).fetch_optional(&scene.pool).await.unwrap();
        assert_eq!(left.is_some(), fences, "{fault}");
        assert!(left.is_none_or(|left| left.parse::<f64>().unwrap() > 2.0), "{fault}");
        scene.sql("update elven_sync.sync_state set fence_until = null").await;
    }
}

/// A run finds what another has left: the batch of the lost request goes again at once, as it was, and nothing else does.
#[sqlx::test(migrations = false)]
async fn under_the_fence_nothing_is_sent_but_the_batch_of_the_lost_request(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    add(&scene, "acme", "a", 1).await;
    add(&scene, "acme", "b", 2).await;
    scene.sandbox.set_rules(parsed(&["late=1s@once:1"]));
    assert_eq!(scene.run().await.status, RunStatus::Failed);
    let report = scene.run().await;
    assert_eq!((report.status, report.entities[0].rows_pending), (RunStatus::Succeeded, Some(1)));
    assert_eq!(arrived(&scene), ["a=1"]);
    // And the next one, since the first attempt still may arrive.
    assert_eq!(scene.run().await.entities[0].rows_pending, Some(1));
    eventually("the first request arrives", async || arrived(&scene).len() == 2).await;
    and_then_all_is_delivered(&scene).await;
    assert_eq!(arrived(&scene), ["a=1", "a=1", "b=2"]);
}

/// Its rows were changed meanwhile, one of them or all: it is not the same batch any more.
#[sqlx::test(migrations = false)]
async fn a_batch_that_was_changed_meanwhile_waits(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    for entity_id in ["acme", "one"] {
        if entity_id == "one" {
            scene.entity(entity_id, "UTC").await;
        }
        add(&scene, entity_id, "a", 1).await;
        add(&scene, entity_id, "b", 1).await;
    }
    scene.sandbox.set_rules(parsed(&["late=1s@first:2"]));
    assert_eq!(scene.run().await.status, RunStatus::Failed);
    scene.sql("update ledger.balance_snapshots set balance = 2 where entity_id = 'acme' or entity_account_id = 'b'").await;
    let before = scene.text("select string_agg(body_sha256, ',' order by batch_id) from elven_sync.sync_batches where entity_id = 'one'").await;
    let sent = imports(&scene).len();
    let report = scene.run().await;
    assert_eq!(report.status, RunStatus::Succeeded);
    assert!(imports(&scene).len() <= sent + 2, "but for what arrives late");
    let pending: Vec<Option<i64>> = report.entities.iter().map(|entity| entity.rows_pending).collect();
    assert_eq!(pending, [Some(2), Some(2)]);
    let one = "select string_agg(concat_ws(' ', status, attempts), ',') from elven_sync.sync_batches where entity_id = 'one'";
    assert_eq!(scene.text(one).await, "unknown 1");
    assert_eq!(
        scene.text("select string_agg(body_sha256, ',' order by batch_id) from elven_sync.sync_batches where entity_id = 'one'").await,
        before
    );
    eventually("both arrive", async || arrived(&scene).len() == 4).await;
    and_then_all_is_delivered(&scene).await;
    let mut last = arrived(&scene).split_off(4);
    last.sort();
    assert_eq!(last, ["a=1", "a=2", "b=2", "b=2"]);
}

/// The newer of two rows of a key is lost, then refused and set aside: the older one does not go out while the newer one
/// may arrive.
#[sqlx::test(migrations = false)]
async fn a_row_that_was_superseded_by_a_refused_one_waits(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "10");
    add(&scene, "acme", "a", 1).await;
    add(&scene, "acme", "a", 2).await;
    scene.sandbox.set_rules(parsed(&["late=1s@once:1", "reject:account=a@once:1"]));
    let report = scene.run().await;
    assert_eq!((report.status, report.counters.rows_rejected), (RunStatus::Incomplete, 1));
    assert_eq!(report.entities[0].rows_pending, Some(2), "the batch is not done");
    assert_eq!(arrived(&scene), [""; 0]);
    eventually("the first request arrives", async || arrived(&scene).len() == 1).await;
    and_then_all_is_delivered(&scene).await;
    assert_eq!(arrived(&scene), ["a=2", "a=1"]);
}

/// What keeps an entity waiting keeps no other.
#[sqlx::test(migrations = false)]
async fn an_entity_that_waits_has_no_place_and_no_lease(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1");
    add(&scene, "acme", "a", 1).await;
    scene.sandbox.set_rules(parsed(&["late=1h@once:1"]));
    scene.run().await;
    scene.entity("b", "UTC").await;
    add(&scene, "acme", "a", 2).await;
    add(&scene, "b", "b", 3).await;
    let begun = Instant::now();
    let report = scene.run().await;
    assert!(begun.elapsed() < Duration::from_secs(2), "it is not waited for: {:?}", begun.elapsed());
    assert!(matches!(report.entities[0].ended, Ended::Fenced(_)), "{report:?}");
    assert_eq!(arrived(&scene), ["a=1", "b=3"]);
    // The command that asks for a range waits, with its other entities done meanwhile.
    let range = ["backfill", "--from", "2024-01-01", "--to", "2024-01-02"];
    said(&scene, 0, &range).await;
    assert_eq!(arrived(&scene), ["a=1", "b=3", "b=3", "a=2"]);
    assert!(fenced_for(&scene).await.is_none());
}

/// An entity gives its lease back so that others have their turn, and takes it again.
#[sqlx::test(migrations = false)]
async fn a_lane_that_made_room_knows_the_keys_that_it_has_lost(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1");
    scene.set("ELVEN_SYNC_API__SIGNATURE_WINDOW", "1m");
    scene.entity("b", "UTC").await;
    for number in 0..40 {
        add(&scene, "acme", &format!("a{number}"), number).await;
    }
    add(&scene, "b", "b", 1).await;
    scene.sandbox.set_rules(parsed(&["late=1h@once:1", "slow=30ms"]));
    let report = scene.run().await;
    assert_eq!((report.status, report.entities[0].rows_pending), (RunStatus::Succeeded, Some(0)));
    assert_eq!(report.entities[0].ended, Ended::Done);
    let epoch = "select lease_epoch::text from elven_sync.sync_state where entity_id = 'acme'";
    assert!(scene.text(epoch).await.parse::<i64>().unwrap() > 1, "it made room");
    assert!(fenced_for(&scene).await.is_some());
}

/// Backfills send under the same leases.
#[sqlx::test(migrations = false)]
async fn a_backfill_leaves_a_fence_behind(pool: PgPool) {
    let scene = scene(pool).await;
    add(&scene, "acme", "a", 1).await;
    scene.run().await;
    scene.sandbox.set_rules(parsed(&["late=1s@once:1"]));
    said(&scene, 0, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02"]).await;
    scene.sql("update ledger.balance_snapshots set balance = 2").await;
    assert!(matches!(scene.run().await.entities[0].ended, Ended::Fenced(_)));
    eventually("the first request arrives", async || arrived(&scene).len() == 3).await;
    and_then_all_is_delivered(&scene).await;
    assert_eq!(arrived(&scene), ["a=1", "a=1", "a=1", "a=2"]);
}

/// So does `errors retry`.
#[sqlx::test(migrations = false)]
async fn a_retry_leaves_a_fence_behind_and_obeys_it(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.sandbox.set_rules(parsed(&["reject:account=a"]));
    add(&scene, "acme", "b", 0).await;
    add(&scene, "acme", "a", 1).await;
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    scene.sandbox.set_rules(parsed(&["late=1s@once:1"]));
    said(&scene, 3, &["errors", "retry"]).await;
    assert!(fenced_for(&scene).await.is_some());
    let sent = imports(&scene).len();
    let again = said(&scene, 3, &["errors", "retry"]).await;
    assert!(
        again.contains("the network may still deliver that request")
            && again.contains("elven-sync errors retry, in "),
        "{again}"
    );
    scene.sql("update ledger.balance_snapshots set balance = 2 where entity_account_id = 'a'").await;
    assert!(matches!(scene.run().await.entities[0].ended, Ended::Fenced(_)));
    eventually("the first request arrives", async || arrived(&scene).len() == 2).await;
    assert_eq!(imports(&scene).len(), sent + 1);
    and_then_all_is_delivered(&scene).await;
    assert_eq!(arrived(&scene), ["b=0", "a=1", "a=2"]);
}

/// A lease that ended without a lost answer leaves nothing to wait for.
#[sqlx::test(migrations = false)]
async fn who_has_lost_nothing_fences_nothing(pool: PgPool) {
    let scene = scene(pool).await;
    add(&scene, "acme", "a", 1).await;
    scene.run().await;
    scene.run().await;
    assert_eq!(scene.text("select fence_until::text from elven_sync.sync_state").await, "NULL");
}

/// The machine's clock is ahead of the API's by less than the API minds: the API takes its signatures for so much longer.
#[sqlx::test(migrations = false)]
async fn a_clock_that_is_ahead_of_the_apis_makes_the_fence_longer(pool: PgPool) {
    let scene = TestEnv::new(pool).await.with_fences().await;
    let options = Options { clock_ahead: chrono::TimeDelta::seconds(-20), ..Options::default() };
    let mut scene = TestEnv::connect_like(scene.pool, options).await;
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.entity("acme", "UTC").await;
    add(&scene, "acme", "a", 1).await;
    add(&scene, "acme", "b", 2).await;
    scene.sandbox.set_rules(parsed(&["late=1h@once:2"]));
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    let left = fenced_for(&scene).await.unwrap();
    assert!(left > Duration::from_secs(20), "{left:?}");
}
