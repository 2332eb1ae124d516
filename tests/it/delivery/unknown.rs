//! Batches with an unknown outcome: sent again, held for a person, or taken over from a dead worker.

use std::collections::BTreeSet;

use elven_sync::journal::RunStatus;
use sqlx::PgPool;

use super::{BatchSummary, OpenError, add_rows, batch, imports, open_error, scene};
use crate::support::fault_rules;

#[sqlx::test(migrations = false)]
async fn unknown_batch_is_sent_once_per_run_after_three_runs(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "2");
    add_rows(&scene, "acme", 2).await;
    scene.sandbox.set_rules(fault_rules(&["cut-before"]));
    for (run, requests) in [(1, 2), (2, 2), (3, 2), (4, 1), (5, 1)] {
        let before = imports(&scene).len();
        assert_eq!(scene.run().await.status, RunStatus::Failed);
        assert_eq!(imports(&scene).len() - before, requests, "run {run}");
    }
    let imports = imports(&scene);
    assert!(imports.iter().all(|import| import.body_sha256 == imports[0].body_sha256), "the same bytes");
    scene.sandbox.set_rules(Vec::new());
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(BatchSummary::all(&scene).await, [batch("accepted", 9, 2).ambiguous().http(200)]);
}

/// Of three batches a firewall refuses the one with a certain record. A firewall that refuses all is no such case.
#[sqlx::test(migrations = false)]
async fn record_that_a_firewall_refuses_is_set_aside_after_three_runs(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    add_rows(&scene, "acme", 12).await;
    scene.sandbox.set_rules(fault_rules(&["firewall"]));
    for _ in 0..4 {
        assert_eq!(scene.run().await.status, RunStatus::Failed);
        assert_eq!(OpenError::all(&scene).await, [open_error("config").http(403)]);
    }
    scene.sandbox.set_rules(fault_rules(&["firewall:account=a6"]));
    for run in 1..=3 {
        assert_eq!(scene.run().await.status, RunStatus::Failed);
        let why = "select concat_ws(' ', kind, http_status, message like '%a page came%firewall%')
                     from elven_sync.sync_errors where resolved_at is null order by last_seen_at desc limit 1";
        assert_eq!(scene.text(why).await, "unavailable 403 t", "run {run}");
    }
    let mut runs = 3;
    while scene.run().await.status == RunStatus::Failed {
        runs += 1;
        assert!(runs < 8, "it comes to its end");
    }
    assert_eq!(OpenError::all(&scene).await, [open_error("rejected_row").http(403)]);
    let row = "select record->>'entityAccountId' from elven_sync.sync_errors where resolved_at is null";
    assert_eq!(scene.text(row).await, "a6");
    let accounts: BTreeSet<String> = scene.balances().into_iter().map(|(account, _)| account).collect();
    assert_eq!(accounts.len(), 11, "all others arrived");
}

#[sqlx::test(migrations = false)]
async fn ambiguous_batch_can_be_held_for_review(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__ON_AMBIGUOUS", "hold");
    add_rows(&scene, "acme", 2).await;
    scene.sandbox.set_rules(fault_rules(&["answer-lost@once:1"]));
    for _ in 0..2 {
        assert_eq!(scene.run().await.status, RunStatus::Failed);
        assert_eq!(
            (BatchSummary::all(&scene).await, imports(&scene).len()),
            (vec![batch("unknown", 1, 2)], 1)
        );
    }
    let hint = "select message from elven_sync.sync_errors where resolved_at is null";
    assert!(scene.text(hint).await.contains("ON_AMBIGUOUS=resend"));
    scene.set("ELVEN_SYNC_SYNC__ON_AMBIGUOUS", "resend");
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(BatchSummary::all(&scene).await, [batch("accepted", 2, 2).ambiguous().http(200)]);
}

/// A batch in flight of a dead worker is held too. A batch without records is not.
#[sqlx::test(migrations = false)]
async fn batch_of_a_dead_worker_is_held(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__ON_AMBIGUOUS", "hold");
    add_rows(&scene, "acme", 2).await;
    let (mut child, gate) = scene.held_run().await;
    child.kill().await.unwrap();
    gate.open();
    assert_eq!(scene.run().await.status, RunStatus::Failed);
    assert_eq!((BatchSummary::all(&scene).await, imports(&scene).len()), (vec![batch("unknown", 1, 2)], 1));
    scene.set("ELVEN_SYNC_SYNC__ON_AMBIGUOUS", "resend");
    scene.run().await;

    scene.set("ELVEN_SYNC_SYNC__ON_AMBIGUOUS", "hold");
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'x', 'BTC', '2024-01-01Z', 'NaN')").await;
    // Simulates a death between the recording of the batch and its end.
    scene.run().await;
    scene
        .sql(
            "update elven_sync.sync_batches set status = 'sending', finished_at = null where row_count = 0;
               update elven_sync.sync_state s set pass_id = p.pass_id, target = p.target, settled = p.settled
                 from (select * from elven_sync.sync_passes order by pass_id desc limit 1) p;
               update elven_sync.sync_passes
                  set finished_at = null, last_xid = null, last_id = null, written_by = pg_current_xact_id()
                where pass_id = (select max(pass_id) from elven_sync.sync_passes)",
        )
        .await;
    scene.forget_digests().await;
    assert_ne!(scene.run().await.status, RunStatus::Failed, "{:?}", OpenError::all(&scene).await);
}
