//! Backfills that are killed, stopped, cancelled and resumed.

use std::os::unix::process::ExitStatusExt;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use elven_sync::fault_point::{Side, Step};
use elven_sync::sandbox::{Fault, Gate};
use fastrand::Rng;
use futures_util::{FutureExt, StreamExt, stream};
use nix::sys::signal::Signal;
use sqlx::migrate::MigrateDatabase;
use sqlx::{ConnectOptions, PgPool, Postgres};

use super::{add_minutes, backfill_2024, texts};
use crate::crashes::points::{OF_A_BACKFILL, Point, points};
use crate::support::{
    FAULT_POINT, TestEnv, eventually, fault_rules, output_of, signal, stderr, stdout, variable, wait_for_log,
};

/// Number of cases at once. Most of the time they wait for the lease of a dead worker.
const AT_ONCE: usize = 6;

const RANGE: [&str; 5] = ["backfill", "--from", "2024-01-01", "--to", "2025-01-01"];

/// Two entities with rows before, in and after the range, some of which cannot be sent and some of which the API
/// refuses.
async fn scene_of(pool: PgPool, rows: i32) -> TestEnv {
    prepared(TestEnv::new(pool).await, rows).await
}

/// Executes an action for each case in its own database, several at once.
async fn in_each<T: std::fmt::Display>(pool: &PgPool, of: Vec<T>, rows: i32, act: impl AsyncFn(&TestEnv, T)) {
    let url = pool.connect_options().to_url_lossy();
    let cases = stream::iter(of.into_iter().enumerate()).map(async |(n, one)| {
        let mut url = url.clone();
        // A name in PostgreSQL is short.
        url.set_path(&format!("backfill_{:x}_{n}", fastrand::u64(..)));
        let scene = prepared(TestEnv::at(url.as_str()).await, rows).await;
        let name = one.to_string();
        let acted = AssertUnwindSafe(act(&scene, one)).catch_unwind().await;
        scene.pool.close().await;
        Postgres::force_drop_database(url.as_str()).await.unwrap();
        (name, acted)
    });
    let cases: Vec<(String, Result<(), _>)> = cases.buffer_unordered(AT_ONCE).collect().await;
    let failed: Vec<String> =
        cases.into_iter().filter(|(_, acted)| acted.is_err()).map(|(name, _)| name).collect();
    assert!(failed.is_empty(), "it failed at {}", failed.join(", "));
}

async fn prepared(mut scene: TestEnv, rows: i32) -> TestEnv {
    for (name, value) in [
        ("ELVEN_SYNC_SYNC__BATCH_ROWS", "5"),
        ("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "2"),
        ("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1"),
        ("ELVEN_SYNC_SYNC__LEASE", "600ms"),
        ("ELVEN_SYNC_API__SIGNATURE_WINDOW", "300ms"),
        ("ELVEN_SYNC_RETRY__INITIAL", "1ms"),
    ] {
        scene.set(name, value);
    }
    for entity_id in ["acme", "beta"] {
        scene.entity(entity_id, "UTC").await;
        add_minutes(&scene, entity_id, rows).await;
    }
    scene.sql("update ledger.balance_snapshots set balance = 'NaN' where id = 8;
               update ledger.balance_snapshots set currency = 'ETH' where id = 12;
               insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'early', 'BTC', '2023-12-31 23:59:59.999999Z', 1), ('acme', 'late', 'BTC', '2025-01-01Z', 1)").await;
    scene.sandbox.set_rules(fault_rules(&["reject:currency=ETH"]));
    scene
}

/// Asserts that each row of the range is in exactly one finished batch and no other row is in one, and that the API
/// has each acceptable row: more than once only if it was in flight at a crash.
async fn assert_covered(scene: &TestEnv) {
    let wrong = "
        with done as (
            select id::bigint, count(*) as batches
              from elven_sync.sync_batches b, elven_sync.batch_row_ids(b.batch_id) id
             where backfill_id is not null and (status = 'accepted' or (status = 'rejected' and row_count = 0))
             group by id)
        select concat_ws(' ', s.entity_id, s.id, coalesce(d.batches, 0))
          from ledger.balance_snapshots s left join done d using (id)
         where coalesce(d.batches, 0)
            <> (s.captured_at >= '2024-01-01Z' and s.captured_at < '2025-01-01Z')::int
         order by s.id";
    assert_eq!(texts(scene, wrong).await, Vec::<String>::new());
    let open = "select concat_ws(' ', batch_id, status) from elven_sync.sync_batches
                 where status in ('sending', 'unknown') or (status = 'rejected' and row_count > 0)";
    assert_eq!(texts(scene, open).await, Vec::<String>::new());
    let counted = "select (b.rows_total = b.rows_read and b.rows_read = b.rows_uploaded + b.rows_rejected + b.rows_superseded
                           and (b.rows_total, b.rows_read, b.rows_uploaded, b.rows_rejected)
                             = (select sum(rows_total), sum(rows_read), sum(rows_uploaded), sum(rows_rejected)
                                  from elven_sync.sync_backfill_lanes l where l.backfill_id = b.backfill_id)
                           and b.rows_uploaded = (select sum(rows_uploaded) from elven_sync.sync_runs where kind = 'backfill'))::text
                     from elven_sync.sync_backfills b";
    assert_eq!(texts(scene, counted).await, ["true"]);
    let mut arrived: std::collections::BTreeMap<String, usize> = std::collections::BTreeMap::new();
    for (account, _) in scene.balances() {
        *arrived.entry(account).or_default() += 1;
    }
    let sent = "select entity_account_id from ledger.balance_snapshots
                 where captured_at >= '2024-01-01Z' and captured_at < '2025-01-01Z' and balance <> 'NaN' and currency <> 'ETH'";
    let mut sent = texts(scene, sent).await;
    sent.sort();
    assert_eq!(arrived.keys().cloned().collect::<Vec<_>>(), sent);
    let twice = "select distinct s.entity_account_id
                   from elven_sync.sync_batches b, elven_sync.batch_row_ids(b.batch_id) r (row_id)
                   join ledger.balance_snapshots s on s.id = row_id::bigint where b.ambiguous";
    let twice = texts(scene, twice).await;
    for (account, times) in arrived {
        assert!(times == 1 || twice.contains(&account), "{account} came {times} times");
    }
}

/// `ELVEN_SEEDS=50` takes that many seeds.
#[sqlx::test(migrations = false)]
async fn backfill_killed_at_random_moments_covers_range_exactly(pool: PgPool) {
    let seeds = (0..variable("ELVEN_SEEDS").unwrap_or(6)).collect();
    in_each(&pool, seeds, 60, kill_at_random_moments).await;
}

async fn kill_at_random_moments(scene: &TestEnv, seed: i64) {
    scene.sandbox.set_rules(fault_rules(&["reject:currency=ETH", "slow=15ms", "answer-lost@5%"]));
    let mut rng = Rng::with_seed(seed.cast_unsigned());
    let mut killed = 0;
    // The kill may come after everything was recorded.
    let is_done = "select coalesce(max(status), '') from elven_sync.sync_backfills";
    while scene.text(is_done).await != "incomplete" {
        let arguments: &[&str] =
            if killed > 0 && rng.bool() { &["backfill", "--resume", "1"] } else { &RANGE };
        let child = scene.command(arguments).spawn().unwrap();
        let id = child.id().unwrap();
        let waiting = child.wait_with_output();
        tokio::pin!(waiting);
        // It first waits for the lease of the previous process.
        let patience = Duration::from_millis(rng.u64(50..if killed == 0 { 500 } else { 1800 }));
        if let Ok(output) = tokio::time::timeout(patience, &mut waiting).await {
            let output = output.unwrap();
            if output.status.code() == Some(3) {
                break;
            }
            // The process was killed before it had recorded the request.
            let is_missing =
                arguments.contains(&"--resume") && stderr(&output).contains("there is no backfill");
            assert!(is_missing, "{:?} {}", output.status, stderr(&output));
            continue;
        }
        let pid = nix::unistd::Pid::from_raw(i32::try_from(id).unwrap());
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
        waiting.await.unwrap();
        killed += 1;
        assert!(killed < 60, "it makes no progress");
    }
    assert!(killed > 0);
    assert_covered(scene).await;
    let status =
        "select concat_ws(' ', count(*), min(status), min(rows_rejected)) from elven_sync.sync_backfills";
    assert_eq!(scene.text(status).await, "1 incomplete 2", "seed {seed}");
    // Dead runs are marked as interrupted, once their time is over.
    let alive = "select count(*)::text from elven_sync.sync_runs where status = 'running' and alive_until > clock_timestamp()";
    eventually("no run is alive", async || scene.text(alive).await == "0").await;
    scene.output(&["run"]).await;
    let runs = "select count(*)::text from elven_sync.sync_runs where status = 'running'";
    assert_eq!(scene.text(runs).await, "0");
}

#[sqlx::test(migrations = false)]
async fn backfill_killed_at_any_step_covers_range_exactly(pool: PgPool) {
    in_each(&pool, points(&OF_A_BACKFILL), 13, kill_at).await;
}

async fn kill_at(scene: &TestEnv, point: Point) {
    for _ in 0..2 {
        let (body, headers) = (String::new(), Vec::new());
        scene.sandbox.inject(Fault::Answer { status: 503, body, headers });
    }
    if point.0 == Step::RenewLease {
        scene.sandbox.set_rules(fault_rules(&["reject:currency=ETH", "slow=250ms"]));
    }
    if matches!(point.0, Step::Recover | Step::Empty) {
        let mut first = scene.command(&RANGE);
        first.env(FAULT_POINT, "send:after@4=kill");
        assert_eq!(first.output().await.unwrap().status.signal(), Some(9));
    }
    if point.0 == Step::Empty {
        // Waits until the requests in flight are over.
        let gone = "delete from ledger.balance_snapshots where id in (
                        select id::bigint from elven_sync.sync_batches b, elven_sync.batch_row_ids(b.batch_id) id
                         where b.status = 'sending')";
        scene.sql(gone).await;
    }
    let mut command = scene.command(&RANGE);
    command.env(FAULT_POINT, format!("{point}=kill"));
    let output = command.output().await.unwrap();
    assert_eq!(output.status.signal(), Some(9), "{point}: {}", stderr(&output));
    let output = scene.output(&RANGE).await;
    if point.0 == Step::Empty {
        assert!(matches!(output.status.code(), Some(0 | 3)), "{point}: {}", stderr(&output));
        let left = "select count(*)::text from elven_sync.sync_backfill_lanes where finished_at is null";
        assert_eq!(scene.text(left).await, "0");
        let empty = "select (count(*) > 0)::text from elven_sync.sync_batches where status = 'accepted' and rows_read = 0";
        assert_eq!(scene.text(empty).await, "true");
        return;
    }
    assert_eq!(output.status.code(), Some(3), "{point}: {}", stderr(&output));
    let backfills = scene.text("select count(*)::text from elven_sync.sync_backfills").await;
    if (point.0, point.1) == (Step::FinishRun, Side::After) {
        // The first request left no record: the second request is a new backfill.
        assert_eq!(backfills, "2", "{point}");
    } else {
        assert_eq!(backfills, "1", "{point}");
        assert_covered(scene).await;
    }
}

#[sqlx::test(migrations = false)]
async fn signal_stops_backfill_after_batches_in_flight_and_it_resumes(pool: PgPool) {
    let mut scene = scene_of(pool, 20).await;
    // The lease is too long to wait for, so it has to be released.
    scene.set("ELVEN_SYNC_SYNC__LEASE", "1h");
    // An answer that the gate holds is an acceptance.
    scene.sql("update ledger.balance_snapshots set currency = 'BTC'").await;
    for (name, code, resumed_by) in
        [(Signal::SIGINT, 130, &RANGE[..]), (Signal::SIGTERM, 143, &["backfill", "--resume", "1"])]
    {
        let gate = Gate::new();
        scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
        let mut child =
            scene.command(if name == Signal::SIGINT { &RANGE } else { resumed_by }).spawn().unwrap();
        gate.reached().await;
        signal(&child, name);
        wait_for_log(&mut child, "stopping after").await;
        gate.open();
        assert_eq!(child.wait().await.unwrap().code(), Some(code));
        let state = "select concat_ws(' ', b.status, r.status, (select bool_and(lease_owner is null) from elven_sync.sync_state))
                       from elven_sync.sync_backfills b join elven_sync.sync_runs r using (run_id)";
        assert_eq!(scene.text(state).await, "interrupted interrupted t");
    }
    let report = output_of(&scene, 3, &RANGE).await;
    assert!(report.contains("backfill 1 from 2024-01-01 to 2025-01-01, resumed"), "{report}");
    assert_covered(&scene).await;
    assert_eq!(scene.text("select count(*)::text from elven_sync.sync_batches where ambiguous").await, "0");
    // Another range or a further filter is another backfill.
    let other = output_of(
        &scene,
        0,
        &["backfill", "--from", "2024-01-01", "--to", "2024-01-02", "--currency", "USD"],
    )
    .await;
    assert!(other.contains("backfill 2 "), "{other}");
}

#[sqlx::test(migrations = false)]
async fn cancelled_backfill_stops_after_batches_in_flight_and_stays_cancelled(pool: PgPool) {
    let mut scene = scene_of(pool, 200).await;
    scene.set("ELVEN_SYNC_SYNC__LEASE", "30s");
    scene.sandbox.set_rules(fault_rules(&["slow=50ms", "reject:currency=ETH"]));
    let child = scene.command(&RANGE).spawn().unwrap();
    let read = "select coalesce(max(rows_read), 0)::text from elven_sync.sync_backfills";
    eventually("it is under way", async || scene.text(read).await != "0").await;
    let said_so = output_of(&scene, 0, &["backfill", "cancel", "1"]).await;
    assert!(said_so.contains("stops after its requests in flight"), "{said_so}");
    let output =
        tokio::time::timeout(Duration::from_secs(5), child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stdout(&output).contains("cancelled"), "{}", stdout(&output));
    let state = "select concat_ws(' ', status, rows_read < rows_total, finished_at is not null,
                                  (select count(*) from elven_sync.sync_batches where status in ('sending', 'unknown')),
                                  (select count(*) from elven_sync.sync_state where lease_owner is not null))
                   from elven_sync.sync_backfills";
    assert_eq!(scene.text(state).await, "cancelled t t 0 0");
    let refused = output_of(&scene, 1, &["backfill", "--resume", "1"]).await;
    assert!(refused.contains("backfill 1 is cancelled and cannot be resumed"), "{refused}");
    let refused = output_of(&scene, 1, &["backfill", "cancel", "1"]).await;
    assert!(refused.contains("is already cancelled"), "{refused}");
    // The same range is requested again.
    scene.sandbox.set_rules(Vec::new());
    assert!(backfill_2024(&scene, 3, &[]).await.contains("backfill 2 "));
}

#[sqlx::test(migrations = false)]
async fn running_backfill_is_refused_dead_one_is_awaited(pool: PgPool) {
    let scene = scene_of(pool, 20).await;
    // An answer that the gate holds is an acceptance.
    scene.sql("update ledger.balance_snapshots set currency = 'BTC'").await;
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let mut child = scene.command(&RANGE).spawn().unwrap();
    gate.reached().await;
    for arguments in [&RANGE[..], &["backfill", "--resume", "1"]] {
        let refused = output_of(&scene, 1, arguments).await;
        assert!(refused.contains("run 1 of ") && refused.contains(" works on backfill 1"), "{refused}");
    }
    assert_eq!(scene.text("select count(*)::text from elven_sync.sync_runs").await, "1");
    child.kill().await.unwrap();
    gate.open();
    output_of(&scene, 3, &["backfill", "--resume", "1"]).await;
    assert_covered(&scene).await;
}

#[sqlx::test(migrations = false)]
async fn identical_concurrent_backfill_requests_create_one_backfill(pool: PgPool) {
    let scene = scene_of(pool, 40).await;
    scene.sandbox.set_rules(fault_rules(&["slow=30ms", "reject:currency=ETH"]));
    let (one, other) = tokio::join!(scene.output(&RANGE), scene.output(&RANGE));
    let mut codes = [one.status.code(), other.status.code()];
    codes.sort();
    assert_eq!(codes, [Some(1), Some(3)], "{}{}", stderr(&one), stderr(&other));
    assert_covered(&scene).await;
}
