//! Crashes: a process is killed before and after each durable step, or frozen and thawed, and the next run recovers.

mod evidence;
mod frozen;
pub mod points;

use std::os::unix::process::ExitStatusExt;
use std::panic::AssertUnwindSafe;
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use elven_sync::database::Database;
use elven_sync::fault_point::{Side, Step};
use elven_sync::journal::RunStatus;
use elven_sync::sandbox::{Fault, Options};
use elven_sync::sync::{Ended, Worker};
use futures_util::{FutureExt, StreamExt, stream};
use nix::sys::signal::Signal;
use sqlx::PgPool;
use tokio::sync::watch;

use self::evidence::Stand;
use self::points::{
    OF_A_FAILURE, OF_A_RECOVERY, OF_A_RETRY, OF_A_RUN, OF_AN_EMPTIED_BATCH, OF_CHANGED_ROWS,
    OF_SEVERAL_IN_FLIGHT, Point, points,
};
use crate::support::{FAULT_POINT, TestEnv, eventually, fault_rules, stderr};

/// Number of cases at once. Most of the time they wait for the lease of a dead worker.
const AT_ONCE: usize = 18;

/// Maximum age of a signature for the API. The connector uses a shorter one where no process is left that may send
/// late.
const SIGNATURE_WINDOW: Duration = Duration::from_secs(3);

/// A case: its own entities in the database of the test, and its own API.
struct Case {
    scene: TestEnv,
    /// Connections of the workers in this process, for all cases.
    database: Database,
    entities: Vec<String>,
    runs: Vec<i64>,
    stands: Vec<Stand>,
    /// Accounts whose rows were written again after the last crash.
    updated: Vec<String>,
    one_at_a_time: bool,
    /// Minimum and maximum number of answers that arrived and were not recorded before the process was killed.
    unrecorded: (usize, usize),
}

/// Crashes at each of the points, recovers after each crash, and checks the result.
async fn crash_at_each(pool: PgPool, points: Vec<Point>, crash: impl AsyncFn(&mut Case, Point)) {
    let crash_and_go_on = async |case: &mut Case, point| {
        crash(case, point).await;
        case.go_on().await;
    };
    at_each(pool, points, crash_and_go_on, Case::assert_recovered).await;
}

/// Executes an action at each of the points, many at once, and then a check. Names all points whose check fails at
/// the end.
async fn at_each(
    pool: PgPool,
    points: Vec<Point>,
    act: impl AsyncFn(&mut Case, Point),
    look: impl AsyncFn(&Case),
) {
    let scene = TestEnv::new(pool).await;
    let database = scene.database(16).await;
    let cases = stream::iter(points).map(async |point| {
        let mut case = Case::new(&scene, database.clone()).await;
        let acted = AssertUnwindSafe(act(&mut case, point)).catch_unwind().await;
        (point, acted.is_ok(), case)
    });
    let cases: Vec<(Point, bool, Case)> = cases.buffer_unordered(AT_ONCE).collect().await;
    let name = |points: Vec<Point>| points.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let failed = name(cases.iter().filter(|(_, acted, _)| !acted).map(|(point, ..)| *point).collect());
    assert!(failed.is_empty(), "it failed at {failed}");
    // A later run marks dead runs as interrupted, once their heartbeats are old enough.
    let alive = "select count(*)::text from elven_sync.sync_runs
                  where status = 'running' and alive_until > clock_timestamp()";
    eventually("the dead runs' time is over", async || scene.text(alive).await == "0").await;
    let idle = scene.run().await;
    assert_eq!((idle.status, idle.counters.rows_read), (RunStatus::Succeeded, 0), "nothing was left");
    let mut wrong = Vec::new();
    for (point, _, case) in cases {
        if AssertUnwindSafe(look(&case)).catch_unwind().await.is_err() {
            wrong.push(point);
        }
    }
    assert!(wrong.is_empty(), "it was not overcome at {}", name(wrong));
}

impl Case {
    /// One batch at a time, with a minimal back-off.
    async fn new(beside: &TestEnv, database: Database) -> Self {
        let options = Options { signature_window: SIGNATURE_WINDOW, ..Options::default() };
        let mut scene = TestEnv::connect_like(beside.pool.clone(), options).await;
        scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
        scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
        scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1");
        scene.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
        scene.sandbox.set_rules(fault_rules(&["reject:currency=ETH"]));
        let (entities, runs, stands, updated) = Default::default();
        Self { scene, database, entities, runs, stands, updated, one_at_a_time: true, unrecorded: (0, 0) }
    }

    /// Adds an entity with three batches of two rows: the API refuses a row of the second batch, and a row of the
    /// third batch cannot be sent.
    async fn add_entity(&mut self) {
        static ENTITIES: AtomicU32 = AtomicU32::new(0);
        let entity_id = format!("entity-{}", ENTITIES.fetch_add(1, Ordering::Relaxed));
        self.scene.entity(&entity_id, "UTC").await;
        sqlx::query(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select $1, concat_ws(' ', $1, n, case n when 3 then 'rejected_row' when 5 then 'invalid_row' end),
                    case n when 3 then 'ETH' else 'BTC' end, '2024-01-01Z', case n when 5 then 'NaN' else n::numeric end
               from generate_series(1, 6) n",
        )
        .bind(&entity_id)
        .execute(&self.scene.pool)
        .await
        .unwrap();
        self.entities.push(entity_id);
    }

    async fn add_rows_to_each(&self, count: i32) {
        sqlx::query(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select e, concat_ws(' ', e, 'later', gen_random_uuid()), 'BTC', '2024-01-01Z', 9
               from unnest($1::text[]) e, generate_series(1, $2)",
        )
        .bind(&self.entities)
        .bind(count)
        .execute(&self.scene.pool)
        .await
        .unwrap();
    }

    /// Updates these rows.
    async fn update(&mut self, numbers: &str) {
        let updated = format!(
            "update ledger.balance_snapshots set balance = balance + 100
              where entity_id = any ($1) and split_part(entity_account_id, ' ', 2)::int in {numbers}
          returning entity_account_id"
        );
        let updated = sqlx::query_scalar(sqlx::AssertSqlSafe(updated)).bind(&self.entities);
        self.updated = updated.fetch_all(&self.scene.pool).await.unwrap();
        assert!(!self.updated.is_empty());
    }

    /// Starts the connector, with a point at which it stops if one is named, and waits for its end.
    async fn start(&mut self, arguments: &[&str], point: Option<Point>) -> Output {
        let mut command = self.scene.command(arguments);
        command.env(FAULT_POINT, point.map(|point| format!("{point}=kill")).unwrap_or_default());
        let child = command.spawn().unwrap();
        let worker = format!("/{}/", child.id().unwrap());
        let output = child.wait_with_output().await.unwrap();
        let run = sqlx::query_scalar("select run_id from elven_sync.sync_runs where strpos(worker, $1) > 0");
        let run: Option<i64> = run.bind(worker).fetch_optional(&self.scene.pool).await.unwrap();
        self.runs.extend(run);
        output
    }

    /// Starts the connector, and asserts that it dies at the point.
    async fn kill(&mut self, arguments: &[&str], point: Point) -> &Stand {
        let output = self.start(arguments, Some(point)).await;
        let killed = output.status.signal() == Some(Signal::SIGKILL as i32);
        assert!(killed, "{point} was not reached: {:?}\n{}", output.status, stderr(&output));
        let stand = self.stand().await;
        let (least, most) = point.answers_lost();
        let in_flight = stand.in_flight().count();
        self.unrecorded.0 += least;
        self.unrecorded.1 += if self.one_at_a_time { most } else { in_flight.max(most) };
        self.stands.push(stand);
        self.stands.last().unwrap()
    }

    async fn kill_run(&mut self, point: Point) -> &Stand {
        if point.0 == Step::RenewLease {
            // The first heartbeat happens a third of a lease after the start, so the run has to last that long.
            self.scene.sandbox.set_rules(fault_rules(&["reject:currency=ETH", "slow=250ms"]));
            // The process is killed while it waits for an answer.
            self.one_at_a_time = false;
        }
        let entities = self.entities.clone();
        let arguments: Vec<&str> =
            ["run", "--entity"].into_iter().chain(entities.iter().map(String::as_str)).collect();
        self.kill(&arguments, point).await
    }

    /// Recovers after the last crash, with new rows as well.
    async fn go_on(&mut self) {
        self.add_rows_to_each(1).await;
        let (_sender, stop) = watch::channel(false);
        // Only the lease of the dead process has to be short.
        let settings = self.scene.settings(&[("ELVEN_SYNC_SYNC__LEASE", "30s")]);
        let worker = Worker::open(settings, self.database.clone(), stop).await.unwrap();
        let report = loop {
            let report = worker.run(&self.entities).await.unwrap();
            self.runs.extend(report.run_id);
            // The server may still renew a lease for the dead process, and a slow machine may sign in vain.
            let is_slow = |ended: &Ended| match ended {
                Ended::Held => true,
                Ended::Failed(why) => why.contains("from the server's clock"),
                Ended::Done | Ended::Stopped | Ended::Fenced(_) => false,
            };
            if !report.entities.iter().any(|entity| is_slow(&entity.ended)) {
                break report;
            }
        };
        assert!(matches!(report.status, RunStatus::Succeeded | RunStatus::Incomplete), "{report:?}");
    }
}

#[sqlx::test(migrations = false)]
async fn run_killed_at_any_step_is_resumed(pool: PgPool) {
    crash_at_each(pool, points(&OF_A_RUN), async |case, point| {
        // The other steps happen once for each entity, one entity after another.
        let of_a_batch = matches!(point.0, Step::Announce | Step::Send | Step::Answer | Step::Settle);
        let entities = if of_a_batch { 1 } else { point.2 };
        for _ in 0..entities {
            case.add_entity().await;
        }
        // The next entity may have begun while one comes to its end.
        case.one_at_a_time = entities == 1;
        // The first batch is throttled twice.
        for _ in 0..2 {
            let (body, headers) = (String::new(), Vec::new());
            case.scene.sandbox.inject(Fault::Answer { status: 503, body, headers });
        }
        let stand = case.kill_run(point).await;
        // While one entity waits for its last answers, the next one has begun with its own batch.
        assert!(stand.in_flight().count() <= entities.min(2) as usize);
        if let (Step::Announce | Step::Send | Step::Settle, side) = (point.0, point.1) {
            let announced = (point.0, side) != (Step::Announce, Side::Before);
            let settled = (point.0, side) == (Step::Settle, Side::After);
            assert_eq!(stand.in_flight().count(), usize::from(announced && !settled));
        }
    })
    .await;
}

/// For any point at which the first worker was killed. New rows are written in the meantime.
#[sqlx::test(migrations = false)]
async fn recovery_killed_at_any_step_is_resumed(pool: PgPool) {
    const FIRST: [Point; 4] = [
        Point(Step::Announce, Side::After, 1),
        Point(Step::Send, Side::Before, 1),
        Point(Step::Send, Side::After, 1),
        Point(Step::Settle, Side::Before, 1),
    ];
    crash_at_each(pool, points(&OF_A_RECOVERY), async |case, point| {
        case.add_entity().await;
        let first = FIRST[(point.0 as usize + point.1 as usize + point.2 as usize) % FIRST.len()];
        assert_eq!(case.kill_run(first).await.in_flight().count(), 1);
        case.add_rows_to_each(1).await;
        assert!(case.kill_run(point).await.in_flight().count() <= 1);
    })
    .await;
}

/// Their new versions belong to a later pass. Unchanged rows that were in flight are sent again.
#[sqlx::test(migrations = false)]
async fn rows_changed_between_crash_and_recovery_arrive_as_changed(pool: PgPool) {
    crash_at_each(pool, points(&OF_CHANGED_ROWS), async |case, point| {
        case.add_entity().await;
        case.kill_run(point).await;
        case.update("(1, 4, 6)").await;
    })
    .await;
}

/// All rows of the batch in flight have changed.
#[sqlx::test(migrations = false)]
async fn batch_without_its_rows_is_closed_despite_crashes(pool: PgPool) {
    crash_at_each(pool, points(&OF_AN_EMPTIED_BATCH), async |case, point| {
        case.add_entity().await;
        case.kill_run(Point(Step::Send, Side::After, 1)).await;
        case.update("(1, 2)").await;
        case.kill_run(point).await;
    })
    .await;
}

/// The answer is lost, and the lane is about to stop because of it.
#[sqlx::test(migrations = false)]
async fn run_killed_while_recording_a_failure_is_resumed(pool: PgPool) {
    crash_at_each(pool, points(&OF_A_FAILURE), async |case, point| {
        case.add_entity().await;
        case.scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
        case.scene.sandbox.inject(Fault::CutAfterWrite);
        assert_eq!(case.kill_run(point).await.in_flight().count(), 1);
    })
    .await;
}

/// Announced batches without a recorded answer are sent again, and nothing else is: up to four batches that were in
/// flight, and three that were being recorded.
#[sqlx::test(migrations = false)]
async fn crash_with_several_batches_in_flight_loses_none(pool: PgPool) {
    let most_in_flight = AtomicU32::new(0);
    crash_at_each(pool, points(&OF_SEVERAL_IN_FLIGHT), async |case, point| {
        case.add_entity().await;
        case.scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
        case.scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "4");
        case.one_at_a_time = false;
        case.add_rows_to_each(12).await;
        case.scene.sandbox.set_rules(fault_rules(&["reject:currency=ETH", "slow=20ms"]));
        let in_flight = case.kill_run(point).await.in_flight().count();
        assert!(in_flight <= 7, "{in_flight}");
        most_in_flight.fetch_max(u32::try_from(in_flight).unwrap(), Ordering::Relaxed);
    })
    .await;
    assert!(most_in_flight.into_inner() > 1);
}

/// The batches of a retry belong to no pass. A request in flight has its own batch.
#[sqlx::test(migrations = false)]
async fn retry_killed_at_any_step_can_be_repeated(pool: PgPool) {
    let crash_and_retry = async |case: &mut Case, point| {
        case.add_entity().await;
        case.go_on().await;
        case.scene.sandbox.set_rules(Vec::new());
        let error_id = "select error_id::text from elven_sync.sync_errors
                         where kind = 'rejected_row' and resolved_at is null and entity_id = any (ENTITIES)";
        let retried = case.value(error_id).await;
        case.kill(&["errors", "retry", &retried], point).await;
        let taken = "select (lease_owner is not null and lease_expires_at + interval '0.4s' > clock_timestamp())::text
                       from elven_sync.sync_state where entity_id = any (ENTITIES)";
        eventually("the lease is past", async || case.value(taken).await == "false").await;
        if case.value(error_id).await == retried {
            let output = case.start(&["errors", "retry", &retried], None).await;
            assert!(output.status.success(), "{}", stderr(&output));
        }
        // With new rows, so that a lease of the dead process is taken over, too.
        case.go_on().await;
    };
    at_each(pool, points(&OF_A_RETRY), crash_and_retry, Case::assert_retried).await;
}
