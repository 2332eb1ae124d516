//! Several requests of one entity in flight at once, and the order that they still keep.

use std::time::Duration;

use chrono::TimeDelta;
use elven_sync::journal::RunStatus;
use elven_sync::sandbox::{Fault, Gate, Request};
use sqlx::PgPool;

use super::{add_other_with_its_own_key, add_rows, imports, scene};
use crate::support::{TestEnv, assert_stays, eventually, fault_rules};

const ACCEPTED: &str = "select count(*)::text from elven_sync.sync_batches where status = 'accepted'";
const CURSOR: &str = "select cursor_id from elven_sync.sync_state";

async fn scene_of_single_rows(pool: PgPool) -> TestEnv {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "4");
    scene
}

/// How long it is shown that no further request arrives.
const QUIET: Duration = Duration::from_millis(150);

/// Asserts that no further import arrives.
async fn assert_imports_stay(scene: &TestEnv, count: usize, why: &str) {
    assert_stays(why, QUIET, async || imports(scene).len() == count).await;
}

#[sqlx::test(migrations = false)]
async fn cursor_moves_over_contiguous_finished_batches(pool: PgPool) {
    let scene = scene_of_single_rows(pool).await;
    add_rows(&scene, "acme", 9).await;
    let gates: Vec<Gate> = (0..4).map(|_| Gate::new()).collect();
    for gate in &gates {
        scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    }
    let mut child = scene.command(&["run"]).spawn().unwrap();
    for gate in &gates {
        gate.reached().await;
    }
    assert_imports_stay(&scene, 4, "four requests are in flight, and no fifth").await;
    let first = scene.balances()[0].0.clone();
    // All gates but that of the request that arrived first, whichever batch that is.
    gates[1..].iter().for_each(Gate::open);
    eventually("all others are accepted", async || scene.text(ACCEPTED).await == "8").await;
    let before = format!("{}", first[1..].parse::<u32>().unwrap() - 1);
    let expected = if before == "0" { "NULL" } else { &before };
    assert_eq!(scene.text(CURSOR).await, expected, "the cursor stays before {first}");
    child.kill().await.unwrap();
    gates[0].open();

    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    let arrived: Vec<String> = scene.balances().into_iter().map(|(account, _)| account).collect();
    assert_eq!(arrived.len(), 10, "what was finished is not sent again: {arrived:?}");
    assert_eq!(arrived[9], first);
    let all = "select concat_ws(' ', count(*), sum(attempts), count(*) filter (where ambiguous)) from elven_sync.sync_batches";
    assert_eq!(scene.text(all).await, "9 10 1");
}

/// The later upload of an account, currency and second wins, so such batches wait for each other.
#[sqlx::test(migrations = false)]
async fn batches_sharing_a_key_are_never_in_flight_together(pool: PgPool) {
    let scene = scene_of_single_rows(pool).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'x', 'BTC', '2024-01-01 00:00:00.5Z', 1), ('acme', 'y', 'BTC', '2024-01-01Z', 2),
                      ('acme', 'x', 'BTC', '2024-01-01 00:00:00.4Z', 3), ('acme', 'x', 'BTC', '2024-01-01 00:00:01Z', 4)").await;
    // One of the first two attempts is lost, so that its batch is sent again. Another one is held.
    let gate = Gate::new();
    scene.sandbox.inject(Fault::CutAfterWrite);
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let holding = async {
        gate.reached().await;
        // The second value of x is sent after the first one was accepted.
        let is_ordered = async || {
            let values: Vec<String> = scene.balances().into_iter().map(|(_, balance)| balance).collect();
            let first = values.iter().rposition(|value| value == "1").unwrap();
            let status = "select status from elven_sync.sync_batches order by batch_id limit 1";
            let is_held = scene.text(status).await != "accepted";
            let third = values.iter().position(|value| value == "3");
            third.is_none_or(|third| !is_held && first < third)
        };
        assert_stays("the values of x are sent in order", QUIET, is_ordered).await;
        gate.open();
    };
    let (report, ()) = tokio::join!(scene.run(), holding);
    let mut uploaded = report.counters.rows_uploaded;
    // Rows that the lost attempt fences are left to the next run.
    if report.entities[0].rows_pending != Some(0) {
        uploaded += scene.run().await.counters.rows_uploaded;
    }
    assert_eq!(uploaded, 4);
    let of_x: Vec<String> = scene
        .balances()
        .into_iter()
        .filter(|(account, balance)| account == "x" && balance != "4")
        .map(|(_, balance)| balance)
        .collect();
    assert!(of_x.is_sorted() && of_x.ends_with(&["3".to_owned()]), "in the order of the pass: {of_x:?}");
}

/// The order holds however often batches are sent again.
#[sqlx::test(migrations = false)]
async fn values_of_one_key_arrive_in_pass_order(pool: PgPool) {
    let scene = scene_of_single_rows(pool).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', 'k' || n % 3, 'BTC', '2024-01-01Z', n from generate_series(1, 60) n").await;
    scene.sandbox.set_rules(fault_rules(&[
        "error-500-kept@10%",
        "throttle@10%",
        "cut-before@10%",
        "slow=10ms@30%",
    ]));
    loop {
        let report = scene.run().await;
        // Rows that a lost attempt fences are left to the next run.
        if report.status == RunStatus::Succeeded && report.entities[0].rows_pending == Some(0) {
            break;
        }
    }
    for key in ["k0", "k1", "k2"] {
        let mut values: Vec<u32> = scene
            .balances()
            .into_iter()
            .filter(|(account, _)| account == key)
            .map(|(_, balance)| balance.parse().unwrap())
            .collect();
        assert!(values.is_sorted(), "{key}: {values:?}");
        values.dedup();
        assert_eq!(values.len(), 20, "{key}");
    }
}

/// Slow answers do not add up: the limit of requests is in flight at once, and no more.
#[sqlx::test(migrations = false)]
async fn requests_in_flight_reach_and_never_exceed_their_limit(pool: PgPool) {
    let mut scene = scene_of_single_rows(pool).await;
    add_rows(&scene, "acme", 16).await;
    scene.sandbox.set_rules(fault_rules(&["slow=300ms"]));
    for at_once in [4, 1] {
        scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", &at_once.to_string());
        scene.sql("update ledger.balance_snapshots set balance = balance + 1").await;
        let before = imports(&scene).len();
        scene.run().await;
        let imports = imports(&scene).split_off(before);
        assert_eq!(imports.len(), 16);
        // The time until the answer.
        let with = |first: &Request| {
            let under_way = first.at..first.at + TimeDelta::milliseconds(300);
            imports.iter().filter(|other| under_way.contains(&other.at)).count()
        };
        assert_eq!(imports.iter().map(with).max(), Some(at_once));
    }
}

/// The parts of a refused batch count towards the limit.
#[sqlx::test(migrations = false)]
async fn parts_count_towards_requests_in_flight(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "2");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    add_rows(&scene, "acme", 16).await;
    scene.sandbox.set_rules(fault_rules(&["slow=30ms", "reject:currency=BTC"]));
    scene.run().await;
    let times: Vec<_> = imports(&scene).into_iter().map(|import| import.at).collect();
    assert_eq!(times.len(), 4 * 7, "all of the halves down to single records");
    // Of three consecutive requests the third one arrives after the first one was answered.
    let closest = times.windows(3).map(|three| (three[2] - three[0]).num_milliseconds()).min().unwrap();
    assert!(closest >= 25, "{closest} ms");
}

/// When all rows of an entity are read and only answers are awaited, the next entity begins. The limit of requests
/// for all entities still holds.
#[sqlx::test(migrations = false)]
async fn entities_waiting_for_answers_let_other_entities_begin(pool: PgPool) {
    let mut scene = scene_of_single_rows(pool).await;
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "2");
    for entity_id in ["b", "c", "d"] {
        scene.entity(entity_id, "UTC").await;
    }
    for entity_id in ["acme", "b", "c", "d"] {
        add_rows(&scene, entity_id, 1).await;
    }
    let gates: Vec<Gate> = (0..4).map(|_| Gate::new()).collect();
    for gate in &gates {
        scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    }
    let child = scene.command(&["run"]).spawn().unwrap();
    gates[0].reached().await;
    gates[1].reached().await;
    assert_imports_stay(&scene, 2, "two entities wait for their answers, and a third does not begin").await;
    gates.iter().for_each(Gate::open);
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(0));
    assert_eq!(scene.balances().len(), 4);
}

/// The limit of requests for all entities holds, whichever of them are reading.
#[sqlx::test(migrations = false)]
async fn requests_of_all_entities_share_one_limit(pool: PgPool) {
    let mut scene = scene_of_single_rows(pool).await;
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "2");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "2");
    for entity_id in ["b", "c", "d"] {
        scene.entity(entity_id, "UTC").await;
    }
    for entity_id in ["acme", "b", "c", "d"] {
        // The number of batches that are recorded at once: the whole entity is read, and others begin.
        add_rows(&scene, entity_id, 3).await;
    }
    let gates: Vec<Gate> = (0..8).map(|_| Gate::new()).collect();
    for gate in &gates {
        scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    }
    let child = scene.command(&["run"]).spawn().unwrap();
    eventually("four requests are in flight", async || imports(&scene).len() == 4).await;
    assert_imports_stay(&scene, 4, "four requests are in flight, and no fifth").await;
    gates.iter().for_each(Gate::open);
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(0));
    assert_eq!(scene.balances().len(), 12);
}

/// Two entities wait for the end of a requested pause of their credential, with all permits for requests. An entity
/// with another credential does not wait with them.
#[sqlx::test(migrations = false)]
async fn throttled_credential_does_not_delay_another_credential(pool: PgPool) {
    let mut scene = scene_of_single_rows(pool).await;
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "2");
    add_other_with_its_own_key(&mut scene).await;
    scene.entity("beta", "UTC").await;
    for entity_id in ["acme", "beta", "other"] {
        add_rows(&scene, entity_id, 1).await;
    }
    scene.sandbox.set_rules(fault_rules(&["slow=1s", "throttle=4s@first:2"]));
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    let by: Vec<String> = imports(&scene).into_iter().filter_map(|request| request.credential).collect();
    assert_eq!(by, ["default", "default", "second", "default", "default"]);
}
