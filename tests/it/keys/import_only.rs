//! A key that may only import: the call that reads is refused, and refused rows are still found and set aside.

use std::collections::BTreeSet;

use elven_sync::journal::RunStatus;
use sqlx::PgPool;

use super::{add, among, assert_all_is_well, good, scene, set_aside};
use crate::backfill::backfill_2024;
use crate::stub::{Stub, StubRequest, StubResponse, respond};
use crate::support::{FAULT_POINT, TestEnv, output_of, stderr};

/// Refuses imports that contain the word `bad`, and every call that reads.
fn import_only(asked: &StubRequest) -> StubResponse {
    match asked.is_import() {
        true if asked.body.contains("bad") => respond(400),
        true => respond(200),
        false => respond(403),
    }
}

fn refuse_all(asked: &StubRequest) -> StubResponse {
    respond(if asked.is_import() { 400 } else { 403 })
}

/// Returns the open error of the lane.
async fn lane_error(scene: &TestEnv) -> String {
    scene
        .text(
            "select coalesce(string_agg(concat_ws(' ', kind, http_status, api_code), ','), '') from elven_sync.sync_errors
              where ledger_id is null and resolved_at is null",
        )
        .await
}

#[sqlx::test(migrations = false)]
async fn lone_refused_row_does_not_stop_import_only_entity(pool: PgPool) {
    let mut scene = scene(pool).await;
    let stub = Stub::of(&mut scene, import_only).await;
    add(&scene, &["ok".to_owned()]).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    add(&scene, &["bad".to_owned()]).await;
    let before = stub.imports().len();
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    assert_eq!(set_aside(&scene).await, "bad");
    let sent: Vec<_> = stub.imports().split_off(before).iter().flat_map(StubRequest::records).collect();
    let accounts: Vec<&str> = sent.iter().map(|(account, _)| account.as_str()).collect();
    assert_eq!(accounts, ["bad", "ok"], "a record that was accepted before proves the key");
    let loose =
        "select concat_ws(' ', b.status, b.attempts, b.row_count, r.kind) from elven_sync.sync_batches b
                   join elven_sync.sync_runs r using (run_id) where b.pass_id is null";
    assert_eq!(scene.text(loose).await, "accepted 1 1 incremental", "it is recorded like a retry");
    for n in 1..=3 {
        add(&scene, &[format!("later{n}")]).await;
        assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    }
    assert_eq!(lane_error(&scene).await, "");
    assert_all_is_well(&scene).await;
}

/// In the very first batch: at its start, at its end, several.
#[sqlx::test(migrations = false)]
async fn refused_rows_in_the_first_batch_are_found_by_bisection(pool: PgPool) {
    let mut scene = scene(pool).await;
    let stub = Stub::of(&mut scene, import_only).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "100");
    for (case, places) in [&[0][..], &[99], &[0, 1], &[98, 99], &[0, 50, 99], &[130]].into_iter().enumerate()
    {
        let names: Vec<String> = places.iter().map(|place| format!("bad{case}-{place}")).collect();
        let bad: Vec<(usize, &str)> = places.iter().copied().zip(names.iter().map(String::as_str)).collect();
        let accounts = among(150, &bad);
        add(&scene, &accounts).await;
        let before = (stub.imports().len(), stub.accepted().len());
        assert_eq!(scene.run().await.status, RunStatus::Incomplete, "{places:?}");
        let accepted: Vec<String> = stub.accepted().split_off(before.1).into_iter().map(|(a, _)| a).collect();
        let expected: BTreeSet<&String> = accounts.iter().filter(|a| !a.starts_with("bad")).collect();
        assert_eq!(accepted.iter().collect::<BTreeSet<_>>(), expected, "{places:?}");
        assert_eq!(accepted.len(), expected.len(), "each once");
        assert!(set_aside(&scene).await.ends_with(&names.join(",")), "{places:?}");
        let requests = stub.imports().len() - before.0;
        assert!(requests <= 2 + 2 * 7 * places.len(), "{places:?}: {requests} requests");
        assert_all_is_well(&scene).await;
        // Simulates that it is the first batch again.
        scene.sql("delete from ledger.balance_snapshots").await;
    }
}

/// Every second row, so that nearly every part has one.
#[sqlx::test(migrations = false)]
async fn half_refused_batch_is_bisected_over_several_runs(pool: PgPool) {
    let mut scene = scene(pool).await;
    let stub = Stub::of(&mut scene, import_only).await;
    let accounts: Vec<String> =
        (0..64).map(|n| if n % 2 == 0 { format!("bad{n}") } else { format!("a{n}") }).collect();
    add(&scene, &accounts).await;
    let (runs, status) = super::runs_until_done(&scene, 5).await;
    assert_eq!(status, RunStatus::Incomplete, "after {runs} runs");
    assert_eq!((stub.accepted().len(), set_aside(&scene).await.split(',').count()), (32, 32));
    assert_all_is_well(&scene).await;
}

/// A revoked key or a changed contract, with and without an earlier acceptance.
#[sqlx::test(migrations = false)]
async fn import_refusing_everything_costs_20_requests_and_sets_nothing_aside(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "100");
    let stub = Stub::of(&mut scene, refuse_all).await;
    add(&scene, &good(1_000)).await;
    for has_accepted in [false, true] {
        for run in 1..=4 {
            let before = stub.imports().len();
            assert_eq!(scene.run().await.status, RunStatus::Failed);
            let requests = stub.imports().len() - before;
            assert!((1..=20).contains(&requests), "{requests} requests in run {run}");
            assert_eq!(
                (set_aside(&scene).await.as_str(), stub.accepted().len()),
                ("", usize::from(has_accepted) * 1_000)
            );
            assert_eq!(lane_error(&scene).await, "rejected_batch 400 19734");
        }
        stub.answer(import_only);
        assert_eq!(scene.run().await.status, RunStatus::Succeeded);
        assert_all_is_well(&scene).await;
        stub.answer(refuse_all);
        if !has_accepted {
            add(&scene, &(1..=500).map(|n| format!("b{n}")).collect::<Vec<_>>()).await;
        }
    }
    assert_eq!(stub.accepted().len(), 1_500);
}

/// Nothing proves the credential good.
#[sqlx::test(migrations = false)]
async fn refused_row_is_not_set_aside_before_any_acceptance(pool: PgPool) {
    let mut scene = scene(pool).await;
    let stub = Stub::of(&mut scene, import_only).await;
    add(&scene, &["bad".to_owned()]).await;
    for _ in 0..3 {
        assert_eq!(scene.run().await.status, RunStatus::Failed);
    }
    assert_eq!((stub.imports().len(), set_aside(&scene).await.as_str()), (3, ""));
    assert_eq!(lane_error(&scene).await, "rejected_batch 400 19734");
    scene.sql("update ledger.balance_snapshots set entity_account_id = 'good'").await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_all_is_well(&scene).await;
}

/// The probe sends a record exactly as it was accepted, and it is the newest of its account, currency and second.
#[sqlx::test(migrations = false)]
async fn credential_probe_changes_no_value_at_elven(pool: PgPool) {
    let mut scene = scene(pool).await;
    let stub = Stub::of(&mut scene, import_only).await;
    // Of `two`, the second row is sent, and the first row is superseded.
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'one', 'BTC', '2024-01-01Z', 1), ('acme', 'two', 'BTC', '2024-01-01 00:00:00.5Z', 2),
                    ('acme', 'two', 'BTC', '2024-01-01Z', 3), ('acme', 'three', 'BTC', '2024-01-01Z', 4)",
        )
        .await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    // A newer version of `three` is pending, in the same pass as the bad row, and so is an older rival of `two`.
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'bad', 'BTC', '2024-01-01Z', 5)",
        )
        .await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.sql("update ledger.balance_snapshots set balance = 40 where entity_account_id = 'three'").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'two', 'BTC', '2024-01-01 00:00:00.2Z', 6)",
        )
        .await;
    let before = stub.imports().len();
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    let sent: Vec<_> = stub.imports().split_off(before).iter().flat_map(StubRequest::records).collect();
    let sent: Vec<String> = sent.iter().map(|(account, balance)| format!("{account} {balance}")).collect();
    assert_eq!(sent, ["bad 5", "one 1", "three 40", "two 6"]);
    assert_eq!(set_aside(&scene).await, "bad");
}

/// Of two rows of one key in different batches the later upload counts, also when its row has the smaller
/// `captured_at` or the smaller `change_xid`. The probe does not send the earlier one again.
#[sqlx::test(migrations = false)]
async fn credential_probe_changes_no_value_of_a_later_batch(pool: PgPool) {
    let mut scene = scene(pool).await;
    let stub = Stub::of(&mut scene, import_only).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "3");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    let late_row =
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                    values ('acme', 'late', 'BTC', '2024-01-01 00:00:00.2Z', 7)";
    let mut late = scene.pool.begin().await.unwrap();
    sqlx::query(late_row).execute(&mut *late).await.unwrap();
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'one', 'BTC', '2024-01-01Z', 1), ('acme', 'late', 'BTC', '2024-01-01 00:00:00.5Z', 2),
                    ('acme', 'two', 'BTC', '2024-01-01 00:00:00.5Z', 3),
                    ('acme', 'two', 'BTC', '2024-01-01 00:00:00.2Z', 4)",
        )
        .await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    late.commit().await.unwrap();
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    add(&scene, &["bad".to_owned()]).await;
    let before = stub.imports().len();
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    let sent: Vec<_> = stub.imports().split_off(before).iter().flat_map(StubRequest::records).collect();
    let accounts: Vec<&str> = sent.iter().map(|(account, _)| account.as_str()).collect();
    assert_eq!(accounts, ["bad", "one"]);
}

#[sqlx::test(migrations = false)]
async fn backfill_with_import_only_key_sets_refused_rows_aside(pool: PgPool) {
    let mut scene = scene(pool).await;
    let stub = Stub::of(&mut scene, |asked| respond(if asked.is_import() { 200 } else { 403 })).await;
    add(&scene, &among(40, &[(0, "bad0"), (39, "bad39")])).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    stub.answer(import_only);
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "20");
    backfill_2024(&scene, 3, &[]).await;
    assert_eq!((set_aside(&scene).await.as_str(), stub.accepted().len()), ("bad0,bad39", 78));
    // Alone.
    scene.sql("delete from ledger.balance_snapshots where entity_account_id not in ('bad39', 'a5')").await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    backfill_2024(&scene, 3, &[]).await;
    assert_eq!(set_aside(&scene).await, "bad0,bad39");
    assert_all_is_well(&scene).await;
}

/// The process dies before and after each step of the probe.
#[sqlx::test(migrations = false)]
async fn crash_during_a_credential_probe_is_recovered(pool: PgPool) {
    let mut scene = scene(pool).await;
    let stub = Stub::of(&mut scene, import_only).await;
    add(&scene, &["ok".to_owned()]).await;
    scene.run().await;
    for (n, point) in
        ["announce:before@2", "announce:after@2", "send:after@2", "settle:before@1", "settle:after@1"]
            .into_iter()
            .enumerate()
    {
        add(&scene, &[format!("bad{n}")]).await;
        scene.set(FAULT_POINT, &format!("{point}=kill"));
        let killed = scene.output(&["run"]).await;
        assert_eq!(killed.status.code(), None, "{point}: {}", stderr(&killed));
        scene.unset(FAULT_POINT);
        super::runs_until_done(&scene, 3).await;
        assert!(set_aside(&scene).await.ends_with(&format!("bad{n}")), "{point}");
    }
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert!(stub.accepted().iter().all(|(account, _)| account == "ok"), "{:?}", stub.accepted());
    let passes = "select count(*)::text from elven_sync.sync_passes where finished_at is null";
    assert_eq!(scene.text(passes).await, "0");
    output_of(&scene, 0, &["verify"]).await;
}
