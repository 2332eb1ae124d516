//! Rows that the API refuses are found among accepted ones, and only rows that are proven bad are set aside.

use std::collections::BTreeSet;

use elven_sync::journal::RunStatus;
use elven_sync::sync::Worker;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::sync::watch;

use super::{BatchSummary, OpenError, add_rows, answered, batch, failure, imports, open_error, scene};
use crate::support::{PARTS, TestEnv, fault_rules};

/// Asserts invariants of the journal that hold after any refusal and split.
async fn assert_journal_is_consistent(scene: &TestEnv) {
    let parts = "select count(*)::text from elven_sync.sync_batches b where b.status = 'split'
                    and b.rows_read <> (select sum(rows_read) from elven_sync.sync_batches p where p.parent_id = b.batch_id)";
    assert_eq!(scene.text(parts).await, "0", "the parts of a batch have its rows");
    let runs =
        "select concat_ws(' ', sum(rows_read), sum(rows_uploaded), sum(rows_rejected), sum(rows_superseded))
                  from elven_sync.sync_runs";
    let leaves =
        "select concat_ws(' ', sum(rows_read), sum(row_count), sum(rows_rejected), sum(rows_superseded))
                    from elven_sync.sync_batches where status in ('accepted', 'rejected')";
    assert_eq!(scene.text(runs).await, scene.text(leaves).await, "runs and batches count the same");
    let open = "select concat_ws(' ', (select count(*) from elven_sync.sync_batches where status in ('sending', 'unknown')),
                                      (select count(*) from elven_sync.sync_passes where finished_at is null))";
    assert_eq!(scene.text(open).await, "0 0", "nothing is left open");
}

/// 1,000 records, some of which the API refuses: at the edges, side by side, and anywhere.
#[sqlx::test(migrations = false)]
async fn exactly_the_refused_rows_are_set_aside(pool: PgPool) {
    let scene = scene(pool).await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'acme', 'a' || n, 'BTC', '2024-01-01 12:00:00Z', n + 12345678901234567890.123456789012345670
               from generate_series(0, 999) n",
        )
        .await;
    let mut random = fastrand::Rng::with_seed(20);
    let mut poison: BTreeSet<usize> = [0, 1, 499, 999].into();
    while poison.len() < 21 {
        poison.insert(random.usize(..1000));
    }
    let rules: Vec<String> = poison.iter().map(|n| format!("reject:account=a{n}")).collect();
    scene.sandbox.set_rules(fault_rules(&rules.iter().map(String::as_str).collect::<Vec<_>>()));
    let report = scene.run().await;
    assert_eq!(report.status, RunStatus::Incomplete);
    let counters = &report.counters;
    assert_eq!((counters.rows_read, counters.rows_uploaded, counters.rows_rejected), (1000, 979, 21));

    let set_aside: Vec<String> = sqlx::query_scalar(
        "select concat_ws(' ', l.entity_account_id, e.kind, e.http_status, e.api_code, e.occurrences)
           from elven_sync.sync_errors e join ledger.balance_snapshots l on l.id::text = e.ledger_id
          where e.resolved_at is null and e.message like '%a record cannot be imported%' order by l.id",
    )
    .fetch_all(&scene.pool)
    .await
    .unwrap();
    let expected: Vec<String> = poison.iter().map(|n| format!("a{n} rejected_row 400 40013 1")).collect();
    assert_eq!(set_aside, expected);
    let exact =
        "select bool_and(e.record->>'entityAccountId' = l.entity_account_id and coalesce(e.record->>'currency', e.record->>'symbol') = 'BTC'
                                 and e.record->>'datetime' = '2024-01-01 12:00:00'
                                 and e.record->>'balance' = trim_scale(l.balance)::text)::text || count(*)
                   from elven_sync.sync_errors e join ledger.balance_snapshots l on l.id::text = e.ledger_id";
    assert_eq!(scene.text(exact).await, "true21", "the record is what would have been sent");

    let received: Vec<String> = scene.balances().into_iter().map(|(account, _)| account).collect();
    let once: BTreeSet<String> = received.iter().cloned().collect();
    let good: BTreeSet<String> = (0..1000).filter(|n| !poison.contains(n)).map(|n| format!("a{n}")).collect();
    assert_eq!((received.len(), once), (979, good), "all others arrive exactly once");

    // Each refused record costs at most two requests for each time that 1,000 can be halved.
    let requests = imports(&scene).len();
    assert!(requests <= 1 + 21 * 2 * 10, "{requests} requests");
    assert_eq!(counters.requests, i64::try_from(requests).unwrap());
    let bytes: u64 = imports(&scene).iter().map(|import| import.body_bytes).sum();
    assert_eq!(counters.bytes_sent, i64::try_from(bytes).unwrap());
    let leaves = "select count(*) || ' ' || count(distinct id) from elven_sync.sync_batches b, elven_sync.batch_row_ids(batch_id) id
                   where b.status <> 'split'";
    assert_eq!(scene.text(leaves).await, "1000 1000", "each row is in one part");
    let whole = "select concat_ws(' ', status, rows_read, parent_id is null) from elven_sync.sync_batches order by batch_id limit 1";
    assert_eq!(scene.text(whole).await, "split 1000 t");
    assert_journal_is_consistent(&scene).await;

    assert_eq!(scene.run().await.counters.requests, 0, "a second run sends nothing");
}

#[sqlx::test(migrations = false)]
async fn success_false_counts_as_refused(pool: PgPool) {
    let mut scene = scene(pool).await;
    add_rows(&scene, "acme", 8).await;
    scene.sandbox.set_rules(fault_rules(&["reject:success-false@first:3"]));
    assert_eq!(scene.run().await.status, RunStatus::Succeeded, "in halves and quarters all is well");
    assert_eq!(scene.balances().len(), 8);
    assert_journal_is_consistent(&scene).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    add_rows(&scene, "acme", 3).await;
    scene.sandbox.set_rules(fault_rules(&["reject:success-false@once:1"]));
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    assert_eq!(OpenError::all(&scene).await, [open_error("rejected_row").http(200)]);
    assert_eq!(scene.balances().len(), 10);
    assert_journal_is_consistent(&scene).await;
}

/// Of three rows of one account, currency and second the newest is sent. It is refused, and so is the next one.
#[sqlx::test(migrations = false)]
async fn rows_superseded_by_a_refused_row_are_sent(pool: PgPool) {
    let scene = scene(pool).await;
    add_rows(&scene, "acme", 20).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'x', 'BTC', '2024-01-01 00:00:00.1Z', 7), ('acme', 'x', 'BTC', '2024-01-01 00:00:00.3Z', -3),
                      ('acme', 'x', 'BTC', '2024-01-01 00:00:00.2Z', -2), ('acme', 'x', 'BTC', '2024-01-01 00:00:00.0Z', 6)").await;
    scene.sandbox.set_rules(fault_rules(&["reject:negative"]));
    let report = scene.run().await;
    let counters = &report.counters;
    assert_eq!((counters.rows_uploaded, counters.rows_rejected, counters.rows_superseded), (21, 2, 1));
    let of_x: Vec<String> = scene.received().into_iter().filter(|record| record.starts_with('x')).collect();
    assert_eq!(of_x, ["x BTC 2024-01-01 00:00:00 7"]);
    let set_aside =
        "select string_agg(concat_ws(' ', kind, http_status, record->>'balance'), ',' order by error_id)
                       from elven_sync.sync_errors";
    assert_eq!(scene.text(set_aside).await, "rejected_row 400 -3,rejected_row 400 -2");
    assert_journal_is_consistent(&scene).await;
    assert_eq!(scene.run().await.counters.requests, 0);
}

/// Three rows share each id.
async fn scene_with_parts(pool: PgPool) -> TestEnv {
    let mut scene = scene(pool).await;
    scene.sql(PARTS).await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.parts");
    scene
}

/// The journal cannot tell apart rows that share id and transaction: they are set aside together.
#[sqlx::test(migrations = false)]
async fn refused_tie_is_set_aside_as_a_whole(pool: PgPool) {
    let scene = scene_with_parts(pool).await;
    scene.sql("insert into ledger.parts (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', n::text, 'BTC', '2024-01-01Z', case when n in (15, 16) then 'NaN'::numeric else n end
                 from generate_series(0, 17) n").await;
    scene.sandbox.set_rules(fault_rules(&["reject:account=4"]));
    let report = scene.run().await;
    let counters = &report.counters;
    assert_eq!((counters.rows_read, counters.rows_uploaded, counters.rows_rejected), (18, 13, 5));
    let accounts: BTreeSet<i64> =
        scene.balances().iter().map(|(account, _)| account.parse().unwrap()).collect();
    assert_eq!(accounts, (0..18).filter(|n| ![3, 4, 5, 15, 16].contains(n)).collect());
    assert_eq!(scene.balances().len(), 13);
    let set_aside = "select string_agg(concat_ws(' ', kind, ledger_id, occurrences), ',' order by ledger_id)
                       from elven_sync.sync_errors";
    assert_eq!(scene.text(set_aside).await, "rejected_row 1 3,invalid_row 5 2");
    assert_journal_is_consistent(&scene).await;
    assert_eq!(scene.run().await.counters.requests, 0);
}

/// A later worker finds the rows of a part by their ids, so no other part may have the same ids.
#[sqlx::test(migrations = false)]
async fn parts_are_recovered_when_ids_repeat(pool: PgPool) {
    let mut scene = scene_with_parts(pool).await;
    // One batch: each id three times, from three transactions.
    for remainder in 0..3 {
        sqlx::query(
            "insert into ledger.parts (entity_id, entity_account_id, currency, captured_at, balance)
             select 'acme', n::text, 'BTC', '2024-01-01Z', n from generate_series(0, 11) n where n % 3 = $1",
        )
        .bind(remainder)
        .execute(&scene.pool)
        .await
        .unwrap();
    }
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    // The batch is refused, the probe is answered, and the API throttles the parts.
    scene.sandbox.set_rules(fault_rules(&[
        "reject:success-false@once:1",
        "throttle@once:2",
        "throttle@once:2",
    ]));
    assert_eq!(scene.run().await.status, RunStatus::Failed);
    let split = "select string_agg(status, ',' order by batch_id) from elven_sync.sync_batches where status = 'split'";
    assert_eq!(scene.text(split).await, "split");
    scene.run().await;
    let mut accounts: Vec<i64> =
        scene.balances().iter().map(|(account, _)| account.parse().unwrap()).collect();
    accounts.sort_unstable();
    assert_eq!(accounts, (0..12).collect::<Vec<i64>>(), "each row once");
    assert_journal_is_consistent(&scene).await;
}

/// Half of a batch was accepted, the other half was not, and the worker is dead: the next one resumes with the parts.
#[sqlx::test(migrations = false)]
async fn interrupted_bisection_is_resumed(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    add_rows(&scene, "acme", 64).await;
    let mut runs = 0;
    loop {
        runs += 1;
        // Every fifth request ends the run.
        scene.sandbox.set_rules(fault_rules(&[
            "throttle@every:5",
            "reject:account=a7",
            "reject:account=a50",
        ]));
        if scene.run().await.status != RunStatus::Failed {
            break;
        }
        assert!(runs < 50, "it comes to its end");
    }
    assert!(runs > 3, "{runs} runs: it was cut short");
    let accounts: BTreeSet<String> = scene.balances().into_iter().map(|(account, _)| account).collect();
    assert_eq!((scene.balances().len(), accounts.len()), (62, 62), "each row once");
    let set_aside = "select string_agg(record->>'entityAccountId', ',' order by ledger_id::int) from elven_sync.sync_errors
                      where kind = 'rejected_row'";
    assert_eq!(scene.text(set_aside).await, "a7,a50");
    assert_journal_is_consistent(&scene).await;
}

/// The first attempt has an unknown outcome, and the second one is refused.
#[sqlx::test(migrations = false)]
async fn refused_row_with_earlier_unknown_outcome_is_set_aside(pool: PgPool) {
    let scene = scene(pool).await;
    add_rows(&scene, "acme", 1).await;
    scene.sandbox.set_rules(fault_rules(&["error-500@once:1", "reject:account=a1"]));
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    assert_eq!(BatchSummary::all(&scene).await, [batch("rejected", 2, 0).ambiguous().http(400)]);
    assert_eq!(OpenError::all(&scene).await, [open_error("rejected_row").http(400).code("40013")]);
    assert_journal_is_consistent(&scene).await;
}

#[sqlx::test(migrations = false)]
async fn api_refusing_every_import_sets_no_row_aside(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "10");
    add_rows(&scene, "acme", 100).await;
    scene.sandbox.set_rules(fault_rules(&["refuses-all"]));
    for _ in 0..20 {
        let before = scene.sandbox.requests().len();
        assert_eq!(scene.run().await.status, RunStatus::Failed);
        // The halves are sent to find out whether a key that cannot read can import; and one probe is sent.
        let requests = scene.sandbox.requests().len() - before;
        assert!((1..=21).contains(&requests), "{requests}");
    }
    assert_eq!(OpenError::all(&scene).await, [open_error("rejected_batch").http(400).code("40013")]);
    scene.sandbox.set_rules(Vec::new());
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(scene.balances().len(), 100);
    assert_journal_is_consistent(&scene).await;
}

/// The lists answer, so key and endpoint seem good, but the contract has changed. 1,000 runs of a scheduler, by one
/// worker, since opening one takes longer than such a run.
#[sqlx::test(migrations = false)]
async fn api_refusing_1000_runs_fills_no_table(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__MAX_REJECTIONS", "5");
    add_rows(&scene, "acme", 64).await;
    scene.sandbox.set_rules(fault_rules(&["reject:currency=BTC"]));
    let settings = scene.settings(&[]);
    let worker = Worker::open(settings, scene.database(8).await, watch::channel(false).1).await.unwrap();
    let set_aside = "select count(*)::text from elven_sync.sync_errors where kind = 'rejected_row'";
    let mut before = 0;
    for run in 1..=1000 {
        assert_eq!(worker.run(&[]).await.unwrap().status, RunStatus::Failed, "run {run}");
        // The first run soon sends single records. After that nothing more can be found out.
        if run == 1 || run % 100 == 0 {
            let requests = imports(&scene).len();
            let bound = if run == 1 { 45 } else { 400 };
            assert!(requests - before <= bound, "{} requests until run {run}", requests - before);
            before = requests;
            assert_eq!(scene.text(set_aside).await, "5", "run {run}");
        }
    }
    let lane = "select kind || ' ' || http_status from elven_sync.sync_errors where ledger_id is null and resolved_at is null";
    assert_eq!(scene.text(lane).await, "rejected_batch 400");
    scene.sandbox.set_rules(Vec::new());
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(scene.balances().len(), 59, "what was set aside waits for a person, the rest is there");
}

/// One row too many is refused while other batches are in flight: those count, and the cursor stays before that row.
#[sqlx::test(migrations = false)]
async fn cursor_stays_before_the_row_beyond_the_limit(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__MAX_REJECTIONS", "1");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    add_rows(&scene, "acme", 24).await;
    let poison = ["reject:account=a1", "reject:account=a4", "reject:account=a5", "reject:account=a12"];
    scene.sandbox.set_rules(fault_rules(&[&["slow=20ms@every:3"][..], &poison].concat()));
    for _ in 0..3 {
        assert_eq!(scene.run().await.status, RunStatus::Failed);
    }
    scene.sql("update elven_sync.sync_errors set resolved_at = now(), resolution = 'by hand' where kind = 'rejected_row'").await;
    scene.set("ELVEN_SYNC_SYNC__MAX_REJECTIONS", "10");
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    assert_eq!(scene.balances().len(), 20, "each good row once");
    let set_aside = "select string_agg(record->>'entityAccountId', ',' order by ledger_id::int) from elven_sync.sync_errors
                      where kind = 'rejected_row'";
    assert_eq!(scene.text(set_aside).await, "a1,a4,a5,a12");
    assert_journal_is_consistent(&scene).await;
}

/// Two rows are refused at the same time, and only one of them may be set aside. Batches that are accepted later are
/// still recorded, and the cursor stays before the other row.
#[sqlx::test(migrations = false)]
async fn batches_accepted_after_the_row_limit_are_recorded(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__MAX_REJECTIONS", "1");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    add_rows(&scene, "acme", 3).await;
    // Two refusals arrive together, and so do the answers that prove the API good. The third answer is late.
    let refused = ["reject:account=a1", "reject:account=a2"];
    scene.sandbox.set_rules(fault_rules(&[&["slow=100ms", "slow=600ms@once:3"][..], &refused].concat()));
    let report = scene.run().await;
    assert_eq!((report.status, report.counters.rows_uploaded), (RunStatus::Failed, 1));
    let third =
        "select concat_ws(' ', status, attempts) from elven_sync.sync_batches order by batch_id desc limit 1";
    assert_eq!(scene.text(third).await, "accepted 1");
    scene.sandbox.set_rules(Vec::new());
    scene.run().await;
    let mut accounts: Vec<String> = scene.balances().into_iter().map(|(account, _)| account).collect();
    accounts.sort();
    assert!(accounts == ["a1", "a3"] || accounts == ["a2", "a3"], "{accounts:?}");
}

/// A newer version of a row that was set aside is uploaded, and resolves its error.
#[sqlx::test(migrations = false)]
async fn a_corrected_row_is_uploaded(pool: PgPool) {
    let scene = scene(pool).await;
    add_rows(&scene, "acme", 8).await;
    scene.sandbox.inject(failure(422, "no"));
    scene.sandbox.set_rules(fault_rules(&["reject:account=a3"]));
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    assert!(answered(&scene, 422) == 1 && scene.balances().len() == 7);
    scene
        .sql("update ledger.balance_snapshots set entity_account_id = 'a30' where entity_account_id = 'a3'")
        .await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!((OpenError::all(&scene).await, scene.balances().len()), (Vec::new(), 8));
    let by_id = AssertSqlSafe("select resolution from elven_sync.sync_errors where ledger_id is not null");
    let resolution: String = sqlx::query_scalar(by_id).fetch_one(&scene.pool).await.unwrap();
    assert_eq!(resolution, "a newer version of the row was uploaded");
}
