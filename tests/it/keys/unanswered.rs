//! A record that the API cannot answer is found in the batches of some runs and set aside. An API that answers
//! nothing causes a bounded number of splits, and nothing is set aside.

use std::collections::BTreeSet;

use elven_sync::journal::RunStatus;
use sqlx::PgPool;

use super::{add, among, assert_all_is_well, good, scene, set_aside};
use crate::backfill::backfill_2024;
use crate::stub::{Stub, StubRequest, StubResponse, list, respond};
use crate::support::{FAULT_POINT, TestEnv, eventually, output_of};

/// Maximum number of requests of a run for a batch of unknown outcome.
const REQUESTS_MAX: usize = 24;

/// Fails for imports that contain the word `poison`.
fn fails_over_poison(asked: &StubRequest) -> StubResponse {
    match asked.is_import() {
        true if asked.body.contains("poison") => respond(500),
        true => respond(200),
        false => list(),
    }
}

/// Each of its attempts fences the entity for the other rows that would prove the API good.
#[sqlx::test(migrations = false)]
async fn unknown_record_is_set_aside_although_runs_are_frequent(pool: PgPool) {
    let mut scene = scene(pool).await.with_fences().await;
    scene.set("ELVEN_SYNC_API__SIGNATURE_WINDOW", "1s");
    let _stub = Stub::of(&mut scene, fails_over_poison).await;
    add(&scene, &good(1)).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    add(&scene, &among(2, &[(0, "poison")])).await;
    eventually("the record is set aside", async || {
        set_aside(&scene).await == "poison" || {
            scene.run().await;
            false
        }
    })
    .await;
    assert_all_is_well(&scene).await;
}

fn fails_over_all(asked: &StubRequest) -> StubResponse {
    if asked.is_import() { respond(500) } else { list() }
}

/// Runs until nothing fails, and asserts the maximum number of requests for a batch. Returns the number of runs.
async fn until_isolated(scene: &TestEnv, stub: &Stub, runs_max: usize) -> usize {
    for run in 1..=runs_max {
        let before = stub.imports().len();
        let status = scene.run().await.status;
        let poisoned = stub.imports().split_off(before).iter().filter(|asked| asked.status >= 400).count();
        assert!(poisoned <= REQUESTS_MAX, "{poisoned} requests of run {run} failed");
        if run > 3 {
            let requests = stub.imports().len() - before;
            // In addition, a record that was accepted before.
            assert!(requests <= REQUESTS_MAX + 1, "{requests} requests in run {run}");
        }
        if status != RunStatus::Failed {
            assert_eq!(status, RunStatus::Incomplete);
            return run;
        }
    }
    panic!("not isolated after {runs_max} runs: {}", set_aside(scene).await);
}

#[sqlx::test(migrations = false)]
async fn unanswerable_record_is_isolated_over_several_runs(pool: PgPool) {
    let mut scene = scene(pool).await;
    let stub = Stub::of(&mut scene, fails_over_poison).await;
    let accounts = among(2_500, &[(499, "poison")]);
    add(&scene, &accounts).await;
    let runs = until_isolated(&scene, &stub, 8).await;
    assert_eq!(runs, 6, "three for the batch, and three for the record");
    assert_eq!(set_aside(&scene).await, "poison");
    let error = "select concat_ws(' ', kind, http_status, occurrences) from elven_sync.sync_errors where ledger_id is not null";
    assert_eq!(scene.text(error).await, "rejected_row 500 1");
    let accepted: BTreeSet<String> = stub.accepted().into_iter().map(|(account, _)| account).collect();
    assert_eq!(accepted.len(), 2_499);
    // Apart from the request that proves the API good.
    assert!(stub.accepted().len() <= 2_500, "each row once");
    let parts = "select bool_and(ambiguous)::text from elven_sync.sync_batches where parent_id is not null";
    assert_eq!(scene.text(parts).await, "true", "all of it may have arrived before");
    assert_all_is_well(&scene).await;
    add(&scene, &["later".to_owned()]).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
}

/// At the start, at the end, side by side, in both halves, and in several batches.
#[sqlx::test(migrations = false)]
async fn unanswerable_records_are_isolated_at_any_position(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "32");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    let stub = Stub::of(&mut scene, fails_over_poison).await;
    for (case, places) in [&[0][..], &[31], &[3, 4], &[2, 3], &[1, 30], &[5, 40]].into_iter().enumerate() {
        let names: Vec<String> = places.iter().map(|place| format!("poison{case}-{place}")).collect();
        let poison: Vec<(usize, &str)> =
            places.iter().copied().zip(names.iter().map(String::as_str)).collect();
        let accounts = among(64, &poison);
        add(&scene, &accounts).await;
        let before = stub.accepted().len();
        let runs = until_isolated(&scene, &stub, 40).await;
        assert!(set_aside(&scene).await.ends_with(&names.join(",")), "{places:?} after {runs} runs");
        let accepted: BTreeSet<String> =
            stub.accepted().split_off(before).into_iter().map(|(a, _)| a).collect();
        let expected = accounts.into_iter().filter(|a| !a.starts_with("poison"));
        assert!(accepted.is_superset(&expected.collect()), "{places:?}");
        assert_all_is_well(&scene).await;
        scene.sql("delete from ledger.balance_snapshots").await;
    }
}

/// The lists answer and imports do not, before and after an acceptance.
#[sqlx::test(migrations = false)]
async fn an_outage_of_imports_sets_nothing_aside(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    let stub = Stub::of(&mut scene, fails_over_all).await;
    for accepted in [0, 8] {
        add(&scene, &(1..=8).map(|n| format!("r{accepted}-{n}")).collect::<Vec<_>>()).await;
        for run in 1..=16 {
            let before = stub.imports().len();
            assert_eq!(scene.run().await.status, RunStatus::Failed);
            let requests = stub.imports().len() - before;
            assert!(requests <= REQUESTS_MAX, "{requests} requests in run {run}");
        }
        assert_eq!((set_aside(&scene).await.as_str(), stub.accepted().len()), ("", accepted));
        stub.answer(fails_over_poison);
        assert_eq!(super::runs_until_done(&scene, 2).await.1, RunStatus::Succeeded);
        assert_all_is_well(&scene).await;
        stub.answer(fails_over_all);
        scene.sql("delete from ledger.balance_snapshots").await;
        let accepted = stub.accepted().iter().map(|(account, _)| account.clone()).collect::<BTreeSet<_>>();
        assert!(accepted.len().is_multiple_of(8), "{accepted:?}");
    }
}

/// While the whole API fails, no batch is split.
#[sqlx::test(migrations = false)]
async fn outage_of_the_api_splits_no_batch(pool: PgPool) {
    let mut scene = scene(pool).await;
    let stub = Stub::of(&mut scene, |_| respond(500)).await;
    add(&scene, &good(10)).await;
    for (run, requests) in [(1, 2), (2, 2), (3, 2), (4, 1), (5, 1), (6, 1)] {
        let before = stub.imports().len();
        assert_eq!(scene.run().await.status, RunStatus::Failed);
        assert_eq!(stub.imports().len() - before, requests, "run {run}");
    }
    assert_eq!(scene.text("select string_agg(status, ',') from elven_sync.sync_batches").await, "unknown");
}

/// In its own pass, in the first three runs that meet it.
#[sqlx::test(migrations = false)]
async fn lone_unanswerable_record_is_set_aside_after_three_runs(pool: PgPool) {
    for (accepted_before, get) in [(true, 200), (true, 403), (false, 200)] {
        // The same database, emptied.
        let mut scene = if accepted_before && get == 200 {
            scene(pool.clone()).await
        } else {
            sqlx::raw_sql("drop schema elven_sync cascade; drop schema ledger cascade")
                .execute(&pool)
                .await
                .unwrap();
            scene(pool.clone()).await
        };
        let stub = Stub::of(&mut scene, move |asked| {
            if !asked.is_import() && get == 403 { respond(403) } else { fails_over_poison(asked) }
        })
        .await;
        if accepted_before {
            add(&scene, &["ok".to_owned()]).await;
            scene.run().await;
        }
        add(&scene, &["poison".to_owned()]).await;
        for _ in 0..2 {
            assert_eq!(scene.run().await.status, RunStatus::Failed);
        }
        assert_eq!(set_aside(&scene).await, "");
        assert_ne!(scene.run().await.status, RunStatus::Succeeded);
        assert_eq!(set_aside(&scene).await, "poison", "{accepted_before} {get}");
        add(&scene, &["later".to_owned()]).await;
        assert_eq!(scene.run().await.status, RunStatus::Succeeded);
        assert!(stub.accepted().iter().any(|(account, _)| account == "later"));
        assert_all_is_well(&scene).await;
    }
}

/// A person who holds ambiguous batches reviews them first.
#[sqlx::test(migrations = false)]
async fn held_batch_is_not_bisected(pool: PgPool) {
    let mut scene = scene(pool).await;
    let stub = Stub::of(&mut scene, fails_over_poison).await;
    add(&scene, &among(4, &[(1, "poison")])).await;
    for _ in 0..3 {
        assert_eq!(scene.run().await.status, RunStatus::Failed);
    }
    scene.set("ELVEN_SYNC_SYNC__ON_AMBIGUOUS", "hold");
    let before = stub.imports().len();
    for _ in 0..3 {
        assert_eq!(scene.run().await.status, RunStatus::Failed);
    }
    assert_eq!(stub.imports().len(), before, "nothing is sent again");
    scene.unset("ELVEN_SYNC_SYNC__ON_AMBIGUOUS");
    until_isolated(&scene, &stub, 4).await;
    assert_all_is_well(&scene).await;
}

#[sqlx::test(migrations = false)]
async fn backfill_isolates_an_unanswerable_record(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    let stub = Stub::of(&mut scene, |asked| if asked.is_import() { respond(200) } else { list() }).await;
    add(&scene, &among(40, &[(7, "poison")])).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    stub.answer(fails_over_poison);
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "20");
    for _ in 0..5 {
        backfill_2024(&scene, 1, &[]).await;
    }
    backfill_2024(&scene, 3, &[]).await;
    assert_eq!(set_aside(&scene).await, "poison");
    assert_all_is_well(&scene).await;
}

/// A firewall answers for one batch with a page, while others are accepted.
#[sqlx::test(migrations = false)]
async fn firewall_page_for_one_batch_is_an_unknown_outcome(pool: PgPool) {
    let mut scene = scene(pool).await;
    let page =
        |status| StubResponse { body: "<html>Attention Required!</html>".to_owned(), ..respond(status) };
    for (n, status) in [403, 406].into_iter().enumerate() {
        let stub = Stub::of(&mut scene, move |asked| match asked.is_import() {
            true if asked.body.contains("poison") => page(status),
            true => respond(200),
            false => list(),
        })
        .await;
        add(&scene, &[format!("ok{n}")]).await;
        scene.run().await;
        let poison = format!("poison{n}");
        add(&scene, &among(8, &[(3, &poison)])).await;
        until_isolated(&scene, &stub, 7).await;
        assert!(set_aside(&scene).await.ends_with(&poison));
        assert_all_is_well(&scene).await;
        // The page is the answer to every import: then the rows are not the cause.
        stub.answer(move |_| page(status));
        add(&scene, &[format!("more{n}")]).await;
        for _ in 0..4 {
            assert_eq!(scene.run().await.status, RunStatus::Failed);
        }
        let health = "select status from elven_sync.sync_batches order by batch_id desc limit 1";
        assert_ne!(scene.text(health).await, "unknown");
        stub.answer(|asked| if asked.is_import() { respond(200) } else { list() });
        assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    }
}

/// The process dies at each step of a bisection.
#[sqlx::test(migrations = false)]
async fn crash_during_bisection_is_recovered(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    let stub = Stub::of(&mut scene, fails_over_poison).await;
    add(&scene, &["ok".to_owned()]).await;
    scene.run().await;
    for (n, point) in [
        "split:before@1",
        "split:after@1",
        "split:after@2",
        "answer:after@2",
        "send:after@3",
        "set_aside:before@1",
        "set_aside:after@1",
    ]
    .into_iter()
    .enumerate()
    {
        let poison = format!("poison{n}");
        add(&scene, &among(8, &[(n % 8, &poison)])).await;
        let mut killed = false;
        for _ in 0..20 {
            if !killed {
                scene.set(FAULT_POINT, &format!("{point}=kill"));
            }
            let run = scene.output(&["run"]).await;
            killed |= run.status.code().is_none();
            scene.unset(FAULT_POINT);
            if set_aside(&scene).await.ends_with(&poison) && run.status.code().is_some() {
                break;
            }
        }
        assert!(killed, "{point} was reached");
        assert!(set_aside(&scene).await.ends_with(&poison), "{point}");
        super::runs_until_done(&scene, 2).await;
    }
    assert!(stub.accepted().iter().all(|(account, _)| !account.starts_with("poison")));
    let open = "select count(*)::text from elven_sync.sync_passes where finished_at is null";
    assert_eq!(scene.text(open).await, "0");
    output_of(&scene, 0, &["verify"]).await;
}
