//! Batches that the API refuses because it has their records already: the answer to an earlier attempt was lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use elven_sync::journal::RunStatus;
use sqlx::PgPool;

use super::{BatchSummary, OpenError, add_rows, batch, imports, open_error, scene};
use crate::backfill::backfill_2024;
use crate::stub::{Stub, StubRequest, StubResponse, list, respond};
use crate::support::{FAULT_POINT, TestEnv, fault_rules, output_of};

/// The code of the sandbox for a record that it has kept before.
const REPEATED: &str = "40014";
const CODES: &str = "ELVEN_SYNC_API__ALREADY_IMPORTED_CODES";

/// An environment on an empty database.
async fn fresh_scene(pool: &PgPool) -> TestEnv {
    let drop = "drop schema if exists elven_sync cascade; drop schema if exists ledger cascade";
    sqlx::raw_sql(drop).execute(pool).await.unwrap();
    scene(pool.clone()).await
}

/// An environment whose API keeps the first import, loses the answer, and then refuses records that it has.
async fn scene_with_lost_import(pool: &PgPool, rows: i32) -> TestEnv {
    let mut scene = fresh_scene(pool).await;
    scene.set(CODES, REPEATED);
    add_rows(&scene, "acme", rows).await;
    scene.sandbox.set_rules(fault_rules(&["answer-lost@once:1", "reject:repeated"]));
    scene
}

/// Asserts that all rows are done, that each was kept once, and that `verify` has no finding.
async fn assert_all_is_there(scene: &TestEnv, rows: usize) {
    assert_eq!(OpenError::all(scene).await, []);
    let accounts: BTreeSet<String> = scene.balances().into_iter().map(|(account, _)| account).collect();
    assert_eq!((scene.balances().len(), accounts.len()), (rows, rows), "each record is kept once");
    let pending = "select concat_ws(' ', status, pending_rows) from elven_sync.sync_health";
    assert_eq!(scene.text(pending).await, "ok 0");
    let counted = "select concat_ws(' ', sum(rows_read), sum(rows_uploaded), sum(rows_rejected))
                     from elven_sync.sync_runs where kind = 'incremental'";
    assert_eq!(scene.text(counted).await, format!("{rows} {rows} 0"));
    output_of(scene, 0, &["verify"]).await;
}

#[sqlx::test(migrations = false)]
async fn batch_that_the_api_has_already_is_accepted_after_two_halves(pool: PgPool) {
    let scene = scene_with_lost_import(&pool, 1000).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    let half = || batch("accepted", 1, 500).ambiguous().http(400);
    let whole = batch("split", 2, 1000).ambiguous().http(400);
    assert_eq!(BatchSummary::all(&scene).await, [whole, half(), half()]);
    assert_eq!(imports(&scene).len(), 4, "the batch twice, and each half once");
    let why = "select count(*)::text from elven_sync.sync_batches
                where status = 'accepted' and error like '%\"a record was imported before\" (code 40014);%counts as accepted%'";
    assert_eq!(scene.text(why).await, "2");
    assert_all_is_there(&scene, 1000).await;
    assert_eq!(scene.run().await.counters.requests, 0);
}

/// The answer to a half is lost in its turn. The other half may have been imported with the batch.
#[sqlx::test(migrations = false)]
async fn batch_is_accepted_although_the_answer_to_a_half_is_lost(pool: PgPool) {
    for (rows, lost) in [(20, &["3"][..]), (20, &["4"]), (20, &["3", "4"]), (20, &["3", "5"]), (1000, &["3"])]
    {
        let scene = scene_with_lost_import(&pool, rows).await;
        let lost: Vec<String> = lost.iter().map(|request| format!("html-502@once:{request}")).collect();
        let rules = ["answer-lost@once:1"]
            .into_iter()
            .chain(lost.iter().map(String::as_str))
            .chain(["reject:repeated"]);
        scene.sandbox.set_rules(fault_rules(&rules.collect::<Vec<_>>()));
        assert_eq!(scene.run().await.status, RunStatus::Succeeded, "{rows} {lost:?}");
        assert!(imports(&scene).len() <= 14, "{rows} {lost:?}: {} imports", imports(&scene).len());
        assert_all_is_there(&scene, usize::try_from(rows).unwrap()).await;
    }
}

#[sqlx::test(migrations = false)]
async fn single_record_that_the_api_has_already_is_accepted(pool: PgPool) {
    let scene = scene_with_lost_import(&pool, 1).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(BatchSummary::all(&scene).await, [batch("accepted", 2, 1).ambiguous().http(400)]);
    assert_all_is_there(&scene, 1).await;
}

/// The answer is lost in the last attempt of a run, and the refusal comes in the next run.
#[sqlx::test(migrations = false)]
async fn batch_lost_in_an_earlier_run_is_accepted_when_the_api_has_it(pool: PgPool) {
    for rows in [1, 40] {
        let mut scene = scene_with_lost_import(&pool, rows).await;
        scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
        assert_eq!(scene.run().await.status, RunStatus::Failed);
        assert_eq!(BatchSummary::all(&scene).await, [batch("unknown", 1, rows)]);
        assert_eq!(scene.run().await.status, RunStatus::Succeeded);
        let requests = if rows == 1 { 2 } else { 4 };
        assert_eq!(imports(&scene).len(), requests);
        assert!(BatchSummary::all(&scene).await.iter().all(|batch| batch.ambiguous));
        assert_all_is_there(&scene, usize::try_from(rows).unwrap()).await;
    }
}

/// The process dies at each step between the refusal of the batch and the answers to its halves.
#[sqlx::test(migrations = false)]
async fn crash_between_the_halves_is_recovered(pool: PgPool) {
    for point in [
        "split:before@1",
        "split:after@1",
        "announce:after@3",
        "send:after@3",
        "answer:after@2",
        "send:after@4",
        "settle:before@1",
        "settle:after@1",
        "settle:before@2",
        "settle:after@2",
    ] {
        let mut scene = scene_with_lost_import(&pool, 40).await;
        scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
        scene.set(FAULT_POINT, &format!("{point}=kill"));
        assert_eq!(scene.output(&["run"]).await.status.code(), None, "{point} was reached");
        scene.unset(FAULT_POINT);
        assert_eq!(scene.run().await.status, RunStatus::Succeeded, "{point}");
        assert_eq!(OpenError::all(&scene).await, [], "{point}");
        assert_eq!(scene.balances().len(), 40, "{point}");
        let ambiguous =
            "select bool_and(ambiguous)::text from elven_sync.sync_batches where status = 'accepted'";
        assert_eq!(scene.text(ambiguous).await, "true", "{point}");
        output_of(&scene, 0, &["verify"]).await;
    }
}

#[sqlx::test(migrations = false)]
async fn refusal_without_a_lost_attempt_stays_a_refusal(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set(CODES, REPEATED);
    add_rows(&scene, "acme", 2).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    // An update of a record that the API does not replace, and another row of the same key.
    scene.sandbox.set_rules(fault_rules(&["reject:repeated"]));
    scene.sql("update ledger.balance_snapshots set balance = 99").await;
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    let refused = || open_error("rejected_row").http(400).code(REPEATED);
    assert_eq!(OpenError::all(&scene).await, [refused(), refused()]);
}

/// Answers as an API that refuses batches with a record that it has, as a whole, with the code of the stub.
fn keeps_first(
    kept: Arc<Mutex<BTreeMap<String, String>>>,
) -> impl Fn(&StubRequest) -> StubResponse + Send + Sync {
    move |asked| {
        if !asked.is_import() {
            return list();
        }
        let mut kept = kept.lock().unwrap();
        let records = asked.records();
        if records.iter().any(|(account, _)| kept.contains_key(account)) {
            return respond(400);
        }
        kept.extend(records);
        respond(200)
    }
}

/// The batch was not imported: the API refuses it because of an older record of the key of one row. The other rows
/// must not count as imported.
#[sqlx::test(migrations = false)]
async fn only_the_repeated_record_of_a_lost_batch_is_set_aside(pool: PgPool) {
    for lost in [1_usize, 3, 4] {
        let mut scene = fresh_scene(&pool).await;
        scene.set(CODES, "19734");
        add_rows(&scene, "acme", 16).await;
        let kept = Arc::new(Mutex::new(BTreeMap::from([("a3".to_owned(), "old".to_owned())])));
        let (answer, count) = (keeps_first(kept.clone()), Mutex::new(0));
        // The first attempt is lost and does not arrive. Then a half is lost, too, which may arrive.
        let stub = Stub::of(&mut scene, move |asked| {
            let mut count = count.lock().unwrap();
            *count += usize::from(asked.is_import());
            match *count {
                1 => respond(504),
                n if n == lost => {
                    answer(asked);
                    respond(504)
                }
                _ => answer(asked),
            }
        })
        .await;
        assert_eq!(scene.run().await.status, RunStatus::Incomplete, "request {lost} is lost");
        assert_eq!(OpenError::all(&scene).await, [open_error("rejected_row").http(400).code("19734")]);
        let row = "select record->>'entityAccountId' from elven_sync.sync_errors";
        assert_eq!(scene.text(row).await, "a3");
        let kept = kept.lock().unwrap().clone();
        assert_eq!((kept.len(), kept["a3"].as_str()), (16, "old"), "the other records arrived");
        assert!(stub.imports().len() < 20, "{}", stub.imports().len());
    }
}

/// What the API says to a half when it is sent first.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ToHalf {
    Imported,
    Refused,
    Accepted,
    Lost,
}

impl ToHalf {
    fn response(self) -> StubResponse {
        match self {
            Self::Imported => respond(400),
            Self::Refused => refused_otherwise(),
            Self::Accepted => respond(200),
            Self::Lost => respond(504),
        }
    }
}

fn refused_otherwise() -> StubResponse {
    let body = r#"{"status":"failed","data":{"code":1,"message":"the account is unknown"}}"#;
    StubResponse { body: body.to_owned(), ..respond(400) }
}

/// Each pair of answers to the halves, with a key that may list and with one that may only import.
#[sqlx::test(migrations = false)]
async fn every_pair_of_answers_to_the_halves_leads_to_an_end(pool: PgPool) {
    let all = [ToHalf::Imported, ToHalf::Refused, ToHalf::Accepted, ToHalf::Lost];
    let pairs = all.iter().flat_map(|first| all.iter().map(move |second| [*first, *second]));
    for (pair, may_list) in pairs.flat_map(|pair| [(pair, true), (pair, false)]) {
        let mut scene = fresh_scene(&pool).await;
        scene.set(CODES, "19734");
        add_rows(&scene, "acme", 12).await;
        scene.sql("update ledger.balance_snapshots set entity_account_id = 'poison' where id = 10").await;
        let seen = Mutex::new([0; 3]);
        let stub = Stub::of(&mut scene, move |asked| {
            if !asked.is_import() {
                return if may_list { list() } else { respond(403) };
            }
            let which = match (asked.has("a1"), asked.has("a12"), asked.records().len()) {
                (true, true, _) => 0,
                (true, false, 6) => 1,
                (false, true, 6) => 2,
                _ => 3,
            };
            let times = &mut seen.lock().unwrap();
            let time = times.get_mut(which).map(|times| std::mem::replace(times, *times + 1));
            match (which, time) {
                (0, Some(0)) => respond(504),
                (0, Some(1)) => respond(400),
                (1 | 2, Some(0)) => pair[which - 1].response(),
                _ if asked.has("poison") => refused_otherwise(),
                _ => respond(200),
            }
        })
        .await;
        let case = format!("{pair:?}, lists: {may_list}");
        let run = tokio::time::timeout(Duration::from_mins(1), scene.run()).await;
        let is_refused = pair != [ToHalf::Imported; 2] && pair[1] != ToHalf::Accepted;
        let status = if is_refused { RunStatus::Incomplete } else { RunStatus::Succeeded };
        assert_eq!(run.expect(&case).status, status, "{case}");
        let errors =
            if is_refused { vec![open_error("rejected_row").http(400).code("1")] } else { Vec::new() };
        assert_eq!(OpenError::all(&scene).await, errors, "{case}");
        let done = "select concat_ws(' ', sum(rows_read), sum(rows_uploaded)) from elven_sync.sync_runs";
        let uploaded = if is_refused { 11 } else { 12 };
        assert_eq!(scene.text(done).await, format!("12 {uploaded}"), "{case}");
        let probes = stub.requests().len() - stub.imports().len();
        if pair == [ToHalf::Imported; 2] {
            assert_eq!((stub.imports().len(), probes), (4, 0), "{case}");
        }
        assert!(stub.imports().len() <= 20, "{case}: {} imports", stub.imports().len());
        output_of(&scene, 0, &["verify"]).await;
    }
}

/// The batch has stayed unknown in three runs before the API says that it has it.
#[sqlx::test(migrations = false)]
async fn batch_unknown_in_three_runs_is_accepted_when_the_api_has_it(pool: PgPool) {
    let mut scene = scene_with_lost_import(&pool, 40).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.sandbox.set_rules(fault_rules(&["answer-lost@once:1", "error-500@first:2", "reject:repeated"]));
    for _ in 0..3 {
        assert_eq!(scene.run().await.status, RunStatus::Failed);
    }
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    let half = || batch("accepted", 1, 20).ambiguous().http(400);
    assert_eq!(
        BatchSummary::all(&scene).await,
        [batch("split", 4, 40).ambiguous().http(400), half(), half()]
    );
    assert_all_is_there(&scene, 40).await;
}

#[sqlx::test(migrations = false)]
async fn backfilled_batch_that_the_api_has_already_is_accepted(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set(CODES, "19734");
    add_rows(&scene, "acme", 40).await;
    let stub = Stub::of(&mut scene, |asked| if asked.is_import() { respond(200) } else { list() }).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    let (answer, is_lost) = (keeps_first(Arc::default()), Mutex::new(false));
    stub.answer(move |asked| {
        let said = answer(asked);
        let first = !std::mem::replace(&mut *is_lost.lock().unwrap(), true);
        if first { respond(504) } else { said }
    });
    backfill_2024(&scene, 0, &[]).await;
    let parts =
        "select string_agg(concat_ws(' ', status, row_count, ambiguous, http_status), ',' order by batch_id)
                   from elven_sync.sync_batches where backfill_id is not null";
    assert_eq!(scene.text(parts).await, "split 40 t 400,accepted 20 t 400,accepted 20 t 400");
    assert_eq!(stub.imports().len(), 5);
}

/// `errors retry` sends a row, and its answer is lost: within the retry, and at its end.
#[sqlx::test(migrations = false)]
async fn retried_row_that_the_api_has_already_is_resolved(pool: PgPool) {
    for attempts in ["2", "1"] {
        let mut scene = fresh_scene(&pool).await;
        scene.set(CODES, REPEATED);
        scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", attempts);
        add_rows(&scene, "acme", 4).await;
        scene.sandbox.set_rules(fault_rules(&["reject:account=a3"]));
        assert_eq!(scene.run().await.status, RunStatus::Incomplete);
        scene.sandbox.set_rules(fault_rules(&["answer-lost@once:1", "reject:repeated"]));
        if attempts == "1" {
            output_of(&scene, 3, &["errors", "retry"]).await;
        }
        output_of(&scene, 0, &["errors", "retry"]).await;
        assert_eq!(OpenError::all(&scene).await, []);
        let retried =
            "select concat_ws(' ', status, ambiguous, http_status, row_count) from elven_sync.sync_batches
                        where pass_id is null order by batch_id desc limit 1";
        assert_eq!(scene.text(retried).await, "accepted t 400 1");
        assert_eq!(scene.balances().len(), 4, "each record is kept once");
        output_of(&scene, 0, &["verify"]).await;
    }
}

/// No code is configured, so rows are set aside that are there. The message names the setting, and two commands lead
/// out.
#[sqlx::test(migrations = false)]
async fn rows_that_the_api_has_are_closed_by_one_command(pool: PgPool) {
    let mut scene = scene_with_lost_import(&pool, 300).await;
    scene.unset(CODES);
    let run = scene.output(&["run"]).await;
    assert_eq!(run.status.code(), Some(1));
    let said = crate::support::stderr(&run);
    assert!(said.contains("set [api] already_imported_codes = [\"40014\"]"), "{said}");
    scene.set("ELVEN_SYNC_SYNC__MAX_REJECTIONS", "10000");
    output_of(&scene, 3, &["run", "--entity", "acme"]).await;
    scene.unset("ELVEN_SYNC_SYNC__MAX_REJECTIONS");
    let resolve =
        ["errors", "resolve", "--entity", "acme", "--kind", "rejected_row", "--reason", "Elven has them"];
    let resolved = output_of(&scene, 0, &resolve).await;
    assert!(resolved.contains("300 errors are resolved: 300 rejected_row"), "{resolved}");
    assert_eq!(OpenError::all(&scene).await, []);
    add_rows(&scene, "acme", 1).await;
    scene.sandbox.set_rules(Vec::new());
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    output_of(&scene, 0, &["verify"]).await;
}
