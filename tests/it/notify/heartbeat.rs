//! The heartbeat: after each run that polled all entities, and no other.

use nix::sys::signal::Signal;
use sqlx::PgPool;

use super::{Receiver, TOKEN, status};
use crate::alerts::add_row;
use crate::support::{TestEnv, fault_rules, output_of, signal};

#[sqlx::test(migrations = false)]
async fn heartbeat_is_called_after_each_run_that_polled_everything(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    let receiver = Receiver::start().await;
    scene.set("ELVEN_SYNC_NOTIFY__HEARTBEAT_URL", &format!("{}/ping/{TOKEN}", receiver.url));
    scene.entity("acme", "UTC").await;
    let beats = || {
        let beats = receiver.heartbeats();
        receiver.told();
        beats
    };
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(receiver.requests()[0].path, format!("/ping/{TOKEN}"));
    assert_eq!(beats(), 1);
    for (command, code) in
        [(&["run", "--entity", "acme"][..], 0), (&["run", "--dry-run"], 0), (&["status"], 0)]
    {
        output_of(&scene, code, command).await;
        assert_eq!(beats(), 0, "{command:?}");
    }
    // The API refuses each upload: alerts say so, and the schedule works.
    add_row(&scene, "acme").await;
    scene.sandbox.set_rules(fault_rules(&["revoked"]));
    output_of(&scene, 1, &["run"]).await;
    assert_eq!(beats(), 1);
    scene.sandbox.set_rules(Vec::new());
    let (mut child, gate) = scene.held_run().await;
    signal(&child, Signal::SIGTERM);
    gate.open();
    assert_eq!(child.wait().await.unwrap().code(), Some(143));
    assert_eq!(beats(), 0, "an interrupted run");
    scene.sql("alter table ledger.balance_snapshots rename to elsewhere").await;
    output_of(&scene, 1, &["run"]).await;
    assert_eq!(beats(), 0, "a run that could not poll");
}

#[sqlx::test(migrations = false)]
async fn heartbeat_that_fails_is_one_warning_and_fails_no_run(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    let receiver = Receiver::start().await;
    scene.set("ELVEN_SYNC_NOTIFY__HEARTBEAT_URL", &format!("{}/ping/{TOKEN}", receiver.url));
    scene.entity("acme", "UTC").await;
    receiver.answer(|_| status(404));
    let printed = output_of(&scene, 0, &["run"]).await;
    assert_eq!(printed.matches("the heartbeat failed: HTTP 404").count(), 1, "{printed}");
    assert!(!printed.contains(TOKEN), "{printed}");
    assert_eq!(receiver.heartbeats(), 1);
    let alerts = "select count(*)::text from elven_sync.alerts";
    assert_eq!(scene.text(alerts).await, "0");
}
