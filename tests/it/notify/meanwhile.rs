//! A run of `serve` that lasts longer than the interval: alerts are told and the heartbeat is called while it lasts.

use std::time::Duration;

use elven_sync::sandbox::{Fault, Gate};
use sqlx::{Connection, Executor, PgConnection, PgPool};

use super::{Receiver, Request, scene_with_webhook, set_guard};
use crate::alerts::{add_row, named};
use crate::serve::Service;
use crate::support::{TestEnv, assert_stays, eventually, eventually_stays};

const BEGAN: &str = "began GuardBroken critical 1";
const RUNS: &str = "select concat_ws(' ', count(*), min(status)) from elven_sync.sync_runs";

/// A service with a heartbeat, and a run that lasts: the answer to the batch of `big` is held.
async fn held_run(pool: PgPool) -> (TestEnv, Receiver, Service, Gate) {
    let (mut scene, receiver) = scene_with_webhook(pool).await;
    scene.set("ELVEN_SYNC_NOTIFY__HEARTBEAT_URL", &format!("{}/beat", receiver.url));
    scene.set("ELVEN_SYNC_API__TIMEOUT", "10m");
    scene.entity("big", "UTC").await;
    add_row(&scene, "big").await;
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let service = Service::start(&scene, &["--every", "1s"]).await;
    gate.reached().await;
    (scene, receiver, service, gate)
}

fn summaries(receiver: &Receiver) -> Vec<String> {
    receiver.messages().iter().map(Request::summary).collect()
}

#[sqlx::test(migrations = false)]
async fn long_run_of_a_service_tells_alerts_and_their_end_while_it_lasts(pool: PgPool) {
    let (scene, receiver, service, gate) = held_run(pool).await;
    set_guard(&scene, false).await;
    eventually("the begin is told", async || summaries(&receiver) == [BEGAN]).await;
    set_guard(&scene, true).await;
    eventually("the end is told", async || summaries(&receiver).len() == 2).await;
    assert_eq!(scene.text(RUNS).await, "1 running");
    // A receiver that does not answer delays no lane.
    receiver.hold(true);
    set_guard(&scene, false).await;
    add_row(&scene, "acme").await;
    eventually("acme is uploaded", async || scene.balances().len() == 1).await;
    assert_eq!(scene.text(RUNS).await, "1 running");
    receiver.hold(false);
    gate.open();
    service.logs("run 1 succeeded").await;
    service.stop().await;
    let ids: Vec<String> =
        receiver.messages().iter().map(|message| message.header("webhook-id").to_owned()).collect();
    assert_eq!(ids.len(), 2, "each is told once: {:?}", summaries(&receiver));
}

/// The heartbeat says that the schedule works, and that the work goes on.
#[sqlx::test(migrations = false)]
async fn long_run_of_a_service_beats_only_while_its_lanes_make_steps(pool: PgPool) {
    let (scene, receiver, service, gate) = held_run(pool).await;
    add_row(&scene, "acme").await;
    eventually("a heartbeat in the run", async || receiver.heartbeats() >= 1).await;
    assert_eq!(scene.text(RUNS).await, "1 running");
    let beats = || receiver.heartbeats();
    let mut before = beats();
    eventually_stays("no lane makes a step, so no heartbeat", Duration::from_secs(4), async || {
        let is_still = beats() == before;
        before = beats();
        is_still
    })
    .await;
    let polled = scene.text("select max(polled_at)::text from elven_sync.sync_runs").await;
    let polls = async || scene.text("select max(polled_at)::text from elven_sync.sync_runs").await != polled;
    eventually("it polls all the same", polls).await;
    add_row(&scene, "acme").await;
    eventually("a heartbeat after a step", async || beats() > before).await;
    assert_eq!(scene.text(RUNS).await, "1 running");
    gate.open();
    service.stop().await;
}

/// No poll ends while the ledger is locked. The alert about that is told, and the heartbeat is missing.
#[sqlx::test(migrations = false)]
async fn run_that_waits_for_a_lock_tells_that_and_does_not_beat(pool: PgPool) {
    let (mut scene, receiver) = scene_with_webhook(pool).await;
    scene.set("ELVEN_SYNC_NOTIFY__HEARTBEAT_URL", &format!("{}/beat", receiver.url));
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "6s");
    let mut session = PgConnection::connect(&scene.url).await.unwrap();
    session.execute("begin; lock table ledger.balance_snapshots in access exclusive mode").await.unwrap();
    let service = Service::start(&scene, &["--every", "1s"]).await;
    eventually("the alert", async || named(&scene).await == ["LockWait warning"]).await;
    eventually("it is told", async || summaries(&receiver) == ["began LockWait warning 1"]).await;
    let is_silent = async || receiver.heartbeats() == 0 && summaries(&receiver).len() == 1;
    assert_stays("no heartbeat, and it is told once", Duration::from_secs(4), is_silent).await;
    session.execute("rollback").await.unwrap();
    eventually("the end is told", async || summaries(&receiver).len() == 2).await;
    assert_eq!(summaries(&receiver)[1], "ended LockWait warning 1");
    service.stop().await;
}
