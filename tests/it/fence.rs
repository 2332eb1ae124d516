//! A request whose answer was lost may still arrive. Until its signature has expired, no other batch is sent for its
//! keys.

use std::time::{Duration, Instant};

use elven_sync::journal::RunStatus;
use elven_sync::sandbox::{Fault, Options, Request};
use elven_sync::sync::Ended;
use serde_json::Value;
use sqlx::PgPool;

use crate::support::{TestEnv, eventually, fault_rules, is_import, output_of, stdout};

/// One entity, one request at a time, and one row per request.
async fn scene(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await.with_fences().await;
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    // With 3 s in addition: a slow machine still gets there before the end of the fence.
    scene.set("ELVEN_SYNC_API__SIGNATURE_WINDOW", "2s");
    scene.entity("acme", "UTC").await;
    scene
}

/// Adds a row with this account and balance. All rows have the same second.
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

/// Returns accounts and balances that were received, in order.
fn arrived(scene: &TestEnv) -> Vec<String> {
    scene.balances().into_iter().map(|(account, balance)| format!("{account}={balance}")).collect()
}

fn imports(scene: &TestEnv) -> Vec<Request> {
    scene.sandbox.requests().into_iter().filter(|request| is_import(&request.path)).collect()
}

/// Returns the remaining duration of the fence of the entity, if it has one.
async fn fenced_for(scene: &TestEnv) -> Option<Duration> {
    let left =
        "select extract(epoch from max(fence_until) - clock_timestamp())::text from elven_sync.sync_state";
    Duration::try_from_secs_f64(scene.text(left).await.parse().ok()?).ok()
}

/// Waits for the end of the fence, and asserts that the next run uploads everything.
async fn assert_all_delivered_after_fence(scene: &TestEnv) {
    assert!(fenced_for(scene).await.is_some());
    eventually("the fence ends", async || fenced_for(scene).await.is_none()).await;
    let report = scene.run().await;
    assert_eq!((report.status, report.entities[0].rows_pending), (RunStatus::Succeeded, Some(0)));
    assert_eq!(report.entities[0].ended, Ended::Done);
    output_of(scene, 0, &["verify"]).await;
}

/// The request is cut off, is sent again and accepted, and arrives once more after the row has a newer value.
#[sqlx::test(migrations = false)]
async fn late_request_never_overwrites_a_newer_row(pool: PgPool) {
    let scene = scene(pool).await;
    add(&scene, "acme", "a", 1).await;
    scene.sandbox.set_rules(fault_rules(&["late=1s@once:1"]));
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
    assert_all_delivered_after_fence(&scene).await;
    assert_eq!(arrived(&scene), ["a=1", "a=1", "a=2"]);
}

/// A proxy gives up, and the request still arrives.
#[sqlx::test(migrations = false)]
async fn json_report_counts_rows_that_wait_for_a_fence(pool: PgPool) {
    let scene = scene(pool).await;
    add(&scene, "acme", "a", 1).await;
    scene.sandbox.inject(Fault::Answer { status: 504, body: String::new(), headers: Vec::new() });
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    scene.sql("update ledger.balance_snapshots set balance = 2").await;
    let run: Value = serde_json::from_str(&stdout(&scene.output(&["run", "--json"]).await)).unwrap();
    assert_eq!((&run["status"], &run["rows_pending"]), (&"succeeded".into(), &1.into()));
    assert_eq!(run["entities"][0]["ended"], "fenced");
}

/// Within one run: the next batch has another row of the same key.
#[sqlx::test(migrations = false)]
async fn next_batch_of_key_waits_for_fence_after_acceptance(pool: PgPool) {
    let scene = scene(pool).await;
    for (account, balance) in [("a", 1), ("b", 2), ("a", 3), ("c", 4)] {
        add(&scene, "acme", account, balance).await;
    }
    scene.sandbox.set_rules(fault_rules(&["late=1s@once:1"]));
    let report = scene.run().await;
    assert_eq!((report.status, report.entities[0].rows_pending), (RunStatus::Succeeded, Some(2)));
    assert_eq!(arrived(&scene), ["a=1", "b=2"], "another key does not wait");
    eventually("the first request arrives", async || arrived(&scene).len() == 3).await;
    assert_all_delivered_after_fence(&scene).await;
    assert_eq!(arrived(&scene), ["a=1", "b=2", "a=1", "a=3", "c=4"]);
}

/// Which answers leave a request that may still arrive, and which do not.
#[sqlx::test(migrations = false)]
async fn only_unknown_outcomes_set_a_fence(pool: PgPool) {
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
        scene.sandbox.set_rules(fault_rules(&[fault]));
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

/// A run finds the fence of another run: it sends the batch of the lost request at once and unchanged, and nothing
/// else.
#[sqlx::test(migrations = false)]
async fn only_the_unanswered_batch_is_sent_during_a_fence(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    add(&scene, "acme", "a", 1).await;
    add(&scene, "acme", "b", 2).await;
    scene.sandbox.set_rules(fault_rules(&["late=1s@once:1"]));
    assert_eq!(scene.run().await.status, RunStatus::Failed);
    let report = scene.run().await;
    assert_eq!((report.status, report.entities[0].rows_pending), (RunStatus::Succeeded, Some(1)));
    assert_eq!(arrived(&scene), ["a=1"]);
    // Nor does the next run, since the first attempt may still arrive.
    assert_eq!(scene.run().await.entities[0].rows_pending, Some(1));
    eventually("the first request arrives", async || arrived(&scene).len() == 2).await;
    assert_all_delivered_after_fence(&scene).await;
    assert_eq!(arrived(&scene), ["a=1", "a=1", "b=2"]);
}

/// One or all of its rows were changed in the meantime, so that it is no longer the same batch.
#[sqlx::test(migrations = false)]
async fn changed_batch_waits_for_the_fence(pool: PgPool) {
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
    scene.sandbox.set_rules(fault_rules(&["late=1s@first:2"]));
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
    assert_all_delivered_after_fence(&scene).await;
    let mut last = arrived(&scene).split_off(4);
    last.sort();
    assert_eq!(last, ["a=1", "a=2", "b=2", "b=2"]);
}

/// The newer of two rows of a key is lost, then refused and set aside. The older row is not sent while the newer one
/// may still arrive.
#[sqlx::test(migrations = false)]
async fn row_superseded_by_a_refused_row_waits_for_fence(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "10");
    add(&scene, "acme", "a", 1).await;
    add(&scene, "acme", "a", 2).await;
    scene.sandbox.set_rules(fault_rules(&["late=1s@once:1", "reject:account=a@once:1"]));
    let report = scene.run().await;
    assert_eq!((report.status, report.counters.rows_rejected), (RunStatus::Incomplete, 1));
    assert_eq!(report.entities[0].rows_pending, Some(1), "the other row is set aside");
    assert_eq!(arrived(&scene), [""; 0]);
    eventually("the first request arrives", async || arrived(&scene).len() == 1).await;
    assert_all_delivered_after_fence(&scene).await;
    assert_eq!(arrived(&scene), ["a=2", "a=1"]);
}

/// A fenced entity does not delay others.
#[sqlx::test(migrations = false)]
async fn fenced_entity_holds_no_permit_and_no_lease(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1");
    add(&scene, "acme", "a", 1).await;
    scene.sandbox.set_rules(fault_rules(&["late=1h@once:1"]));
    scene.run().await;
    scene.entity("b", "UTC").await;
    add(&scene, "acme", "a", 2).await;
    add(&scene, "b", "b", 3).await;
    let begun = Instant::now();
    let report = scene.run().await;
    assert!(begun.elapsed() < Duration::from_secs(2), "it is not waited for: {:?}", begun.elapsed());
    assert!(matches!(report.entities[0].ended, Ended::Fenced(_)), "{report:?}");
    assert_eq!(arrived(&scene), ["a=1", "b=3"]);
    // A command for a range waits. Its other entities are finished in the meantime.
    let range = ["backfill", "--from", "2024-01-01", "--to", "2024-01-02"];
    output_of(&scene, 0, &range).await;
    assert_eq!(arrived(&scene), ["a=1", "b=3", "b=3", "a=2"]);
    assert!(fenced_for(&scene).await.is_none());
}

/// A lane yields its lease so that others have their turn, and takes it again.
#[sqlx::test(migrations = false)]
async fn lane_remembers_unanswered_keys_after_yielding_its_lease(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1");
    scene.set("ELVEN_SYNC_API__SIGNATURE_WINDOW", "1m");
    scene.entity("b", "UTC").await;
    for number in 0..40 {
        add(&scene, "acme", &format!("a{number}"), number).await;
    }
    add(&scene, "b", "b", 1).await;
    scene.sandbox.set_rules(fault_rules(&["late=1h@once:1", "slow=30ms"]));
    let report = scene.run().await;
    assert_eq!((report.status, report.entities[0].rows_pending), (RunStatus::Succeeded, Some(0)));
    assert_eq!(report.entities[0].ended, Ended::Done);
    let epoch = "select lease_epoch::text from elven_sync.sync_state where entity_id = 'acme'";
    assert!(scene.text(epoch).await.parse::<i64>().unwrap() > 1, "it made room");
    assert!(fenced_for(&scene).await.is_some());
}

/// Backfills send under the same leases.
#[sqlx::test(migrations = false)]
async fn unanswered_backfill_batch_leaves_a_fence(pool: PgPool) {
    let scene = scene(pool).await;
    add(&scene, "acme", "a", 1).await;
    scene.run().await;
    scene.sandbox.set_rules(fault_rules(&["late=1s@once:1"]));
    output_of(&scene, 0, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02"]).await;
    scene.sql("update ledger.balance_snapshots set balance = 2").await;
    assert!(matches!(scene.run().await.entities[0].ended, Ended::Fenced(_)));
    eventually("the first request arrives", async || arrived(&scene).len() == 3).await;
    assert_all_delivered_after_fence(&scene).await;
    assert_eq!(arrived(&scene), ["a=1", "a=1", "a=1", "a=2"]);
}

/// So does `errors retry`.
#[sqlx::test(migrations = false)]
async fn retry_leaves_and_obeys_a_fence(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.sandbox.set_rules(fault_rules(&["reject:account=a"]));
    add(&scene, "acme", "b", 0).await;
    add(&scene, "acme", "a", 1).await;
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    scene.sandbox.set_rules(fault_rules(&["late=1s@once:1"]));
    output_of(&scene, 3, &["errors", "retry"]).await;
    assert!(fenced_for(&scene).await.is_some());
    let sent = imports(&scene).len();
    let again = output_of(&scene, 3, &["errors", "retry"]).await;
    assert!(
        again.contains("the network may still deliver that request")
            && again.contains("elven-sync errors retry, after "),
        "{again}"
    );
    scene.sql("update ledger.balance_snapshots set balance = 2 where entity_account_id = 'a'").await;
    assert!(matches!(scene.run().await.entities[0].ended, Ended::Fenced(_)));
    eventually("the first request arrives", async || arrived(&scene).len() == 2).await;
    assert_eq!(imports(&scene).len(), sent + 1);
    assert_all_delivered_after_fence(&scene).await;
    assert_eq!(arrived(&scene), ["b=0", "a=1", "a=2"]);
}

/// A lease that ended without an unanswered request sets no fence.
#[sqlx::test(migrations = false)]
async fn lease_end_without_unanswered_request_sets_no_fence(pool: PgPool) {
    let scene = scene(pool).await;
    add(&scene, "acme", "a", 1).await;
    scene.run().await;
    scene.run().await;
    assert_eq!(scene.text("select fence_until::text from elven_sync.sync_state").await, "NULL");
}

/// The clock of the machine is ahead of that of the API, by less than the API tolerates: the API accepts its
/// signatures for that much longer.
#[sqlx::test(migrations = false)]
async fn clock_ahead_of_the_api_extends_the_fence(pool: PgPool) {
    let scene = TestEnv::new(pool).await.with_fences().await;
    let options = Options { clock_ahead: chrono::TimeDelta::seconds(-20), ..Options::default() };
    let mut scene = TestEnv::connect_like(scene.pool, options).await;
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.entity("acme", "UTC").await;
    add(&scene, "acme", "a", 1).await;
    add(&scene, "acme", "b", 2).await;
    scene.sandbox.set_rules(fault_rules(&["late=1h@once:2"]));
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    let left = fenced_for(&scene).await.unwrap();
    assert!(left > Duration::from_secs(20), "{left:?}");
}
