//! Crashes: a process killed before and after each durable step, or frozen and continued, and what the next run
//! makes of it.

mod evidence;
mod frozen;

use std::collections::HashSet;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, Ordering};

use elven_sync::fault_point::{Side, Step};
use elven_sync::journal::{self, RunStatus};
use elven_sync::sandbox::{Fault, Options};
use elven_sync::sync::Worker;
use futures_util::{FutureExt, StreamExt, stream};
use nix::sys::signal::Signal;
use sqlx::PgPool;
use strum::IntoEnumIterator;
use tokio::sync::watch;

use self::evidence::Stand;
use crate::sandbox_faults::parsed;
use crate::support::{Scene, eventually, stderr};

const FAULT_POINT: &str = "ELVEN_SYNC_FAULT_POINT";
/// Cases under way at once; most of the time they wait for the lease of a dead worker.
const AT_ONCE: usize = 32;

/// Where a process stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Point(Step, Side, u32);

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}@{}", self.0.as_ref(), self.1.as_ref(), self.2)
    }
}

impl Point {
    /// An answer has come by then that the journal will never hear of.
    fn loses_an_answer(self) -> bool {
        matches!(
            (self.0, self.1),
            (Step::Send, Side::After)
                | (Step::Settle | Step::Split | Step::SetAside | Step::Answer, Side::Before)
        )
    }
}

/// Both sides of these occurrences of steps.
fn points(steps: &[(Step, &[u32])]) -> Vec<Point> {
    let mut points = Vec::new();
    for (step, occurrences) in steps {
        for side in Side::iter() {
            points.extend(occurrences.iter().map(|&occurrence| Point(*step, side, occurrence)));
        }
    }
    points
}

/// In a run of new rows.
const OF_A_RUN: [(Step, &[u32]); 15] = [
    (Step::BeginRun, &[1]),
    (Step::TakeLease, &[1, 2]),
    (Step::RenewLease, &[1]),
    (Step::OpenPass, &[1, 2]),
    (Step::Recover, &[1, 2]),
    (Step::Announce, &[1, 5]),
    (Step::Send, &[1, 5]),
    (Step::Answer, &[1, 2]),
    (Step::Settle, &[1, 3]),
    (Step::Split, &[1, 2]),
    (Step::SetAside, &[1, 2]),
    (Step::ClosePass, &[1, 2]),
    (Step::Succeed, &[1, 2]),
    (Step::ReleaseLease, &[1, 2]),
    (Step::FinishRun, &[1]),
];

/// In a run that goes on where another one was killed, and then finds new rows.
const OF_A_RECOVERY: [(Step, &[u32]); 14] = [
    (Step::BeginRun, &[1]),
    (Step::TakeLease, &[1]),
    (Step::RenewLease, &[1]),
    (Step::Recover, &[1, 2]),
    (Step::Announce, &[1, 2]),
    (Step::Send, &[1, 2]),
    (Step::Settle, &[1, 2]),
    (Step::Split, &[1]),
    (Step::SetAside, &[1]),
    (Step::ClosePass, &[1, 2]),
    (Step::OpenPass, &[1]),
    (Step::Succeed, &[1]),
    (Step::ReleaseLease, &[1]),
    (Step::FinishRun, &[1]),
];
const OF_AN_EMPTIED_BATCH: [(Step, &[u32]); 1] = [(Step::Empty, &[1])];
const OF_A_FAILURE: [(Step, &[u32]); 2] = [(Step::Answer, &[1]), (Step::Fail, &[1])];
const OF_SEVERAL_IN_FLIGHT: [(Step, &[u32]); 3] =
    [(Step::Announce, &[1, 3, 6]), (Step::Send, &[1, 3, 6]), (Step::Settle, &[1, 3, 6])];
const OF_A_RETRY: [(Step, &[u32]); 8] = [
    (Step::BeginRun, &[1]),
    (Step::TakeLease, &[1]),
    (Step::Announce, &[1]),
    (Step::Send, &[1]),
    (Step::Settle, &[1]),
    (Step::Resolve, &[1]),
    (Step::ReleaseLease, &[1]),
    (Step::FinishRun, &[1]),
];

#[test]
fn every_step_is_crashed_at() {
    let crashed_at: HashSet<Step> = [
        &OF_A_RUN[..],
        &OF_A_RECOVERY,
        &OF_AN_EMPTIED_BATCH,
        &OF_A_FAILURE,
        &OF_SEVERAL_IN_FLIGHT,
        &OF_A_RETRY,
    ]
    .into_iter()
    .flatten()
    .map(|(step, _)| *step)
    .collect();
    assert_eq!(crashed_at, Step::iter().collect());
}

/// A case: entities of its own in the database of the test, and an API of its own.
struct Case {
    scene: Scene,
    /// Connections of workers in this process, for all cases.
    pool: PgPool,
    entities: Vec<String>,
    runs: Vec<i64>,
    stands: Vec<Stand>,
    /// Accounts whose rows were written again after the last crash.
    updated: Vec<String>,
    /// Answers that came and were not recorded before the process was killed.
    unrecorded: usize,
}

/// Crashes at each of the points, many at once, goes on after each crash, and looks at what they have come to.
/// All of them do that, and then those where something is wrong are named.
async fn crash_at_each(pool: PgPool, points: Vec<Point>, crash: impl AsyncFn(&mut Case, Point)) {
    let database = Scene::new(pool).await;
    let pool = journal::connect(database.settings(&[]).database_url().unwrap(), 16).await.unwrap();
    let cases = stream::iter(points).map(async |point| {
        let mut case = Case::new(&database, pool.clone()).await;
        let gone_on = async {
            crash(&mut case, point).await;
            case.go_on().await;
        };
        let gone_on = AssertUnwindSafe(gone_on).catch_unwind().await;
        (point, gone_on.is_ok(), case)
    });
    let cases: Vec<(Point, bool, Case)> = cases.buffer_unordered(AT_ONCE).collect().await;
    // Once dead runs have stopped giving signs of life, a later one says what became of them.
    let alive = "select count(*)::text from elven_sync.sync_runs
                  where status = 'running' and alive_until > clock_timestamp()";
    eventually("the dead runs' time is over", async || database.text(alive).await == "0").await;
    let report = database.run().await;
    assert_eq!((report.status, report.counters.rows_read), (RunStatus::Succeeded, 0), "nothing was left");
    let mut failed = Vec::new();
    for (point, gone_on, case) in cases {
        let overcome = async { case.is_overcome().await };
        if !gone_on || AssertUnwindSafe(overcome).catch_unwind().await.is_err() {
            failed.push(point.to_string());
        }
    }
    assert!(failed.is_empty(), "it failed at {}", failed.join(", "));
}

impl Case {
    /// One batch after the other, with hardly a pause between two attempts.
    async fn new(database: &Scene, pool: PgPool) -> Self {
        let mut scene = Scene::beside(database.pool.clone(), Options::default()).await;
        scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
        scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
        scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1");
        scene.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
        scene.sandbox.set_rules(parsed(&["reject:currency=ETH"]));
        let (entities, runs, stands, updated) = Default::default();
        Self { scene, pool, entities, runs, stands, updated, unrecorded: 0 }
    }

    /// Adds an entity with three batches of two rows: the second one has a row that the API refuses, the third one a
    /// row that cannot be sent.
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

    async fn add_a_row_each(&self) {
        sqlx::query(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select e, concat_ws(' ', e, 'later', gen_random_uuid()), 'BTC', '2024-01-01Z', 9 from unnest($1::text[]) e",
        )
        .bind(&self.entities)
        .execute(&self.scene.pool)
        .await
        .unwrap();
    }

    /// Starts the connector, and expects that it dies at the point.
    async fn kill(&mut self, arguments: &[&str], point: Point) -> &Stand {
        let mut command = self.scene.command(arguments);
        command.env(FAULT_POINT, format!("{point}=kill"));
        let child = command.spawn().unwrap();
        let worker = format!("/{}/", child.id().unwrap());
        let output = child.wait_with_output().await.unwrap();
        let killed = output.status.signal() == Some(Signal::SIGKILL as i32);
        assert!(killed, "{point} was not reached: {:?}\n{}", output.status, stderr(&output));
        let run = sqlx::query_scalar("select run_id from elven_sync.sync_runs where strpos(worker, $1) > 0");
        self.runs.extend(run.bind(worker).fetch_optional(&self.scene.pool).await.unwrap() as Option<i64>);
        self.unrecorded += usize::from(point.loses_an_answer());
        let stand = self.stand().await;
        self.stands.push(stand);
        self.stands.last().unwrap()
    }

    async fn kill_run(&mut self, point: Point) -> &Stand {
        let entities = self.entities.clone();
        let arguments: Vec<&str> =
            ["run", "--entity"].into_iter().chain(entities.iter().map(String::as_str)).collect();
        self.kill(&arguments, point).await
    }

    /// Goes on after the last crash, with new rows too.
    async fn go_on(&mut self) {
        self.add_a_row_each().await;
        let (_sender, stop) = watch::channel(false);
        let worker = Worker::open(self.scene.settings(&[]), self.pool.clone(), stop).await.unwrap();
        let report = worker.run(&self.entities).await.unwrap();
        self.runs.extend(report.run_id);
        assert!(matches!(report.status, RunStatus::Succeeded | RunStatus::Incomplete), "{report:?}");
    }
}

#[sqlx::test(migrations = false)]
async fn a_run_that_is_killed_at_any_step_is_gone_on_with(pool: PgPool) {
    crash_at_each(pool, points(&OF_A_RUN), async |case, point| {
        // The other steps come once for each entity, one after the other.
        let of_a_batch = matches!(point.0, Step::Announce | Step::Send | Step::Answer | Step::Settle);
        for _ in 0..if of_a_batch { 1 } else { point.2 } {
            case.add_entity().await;
        }
        // The first batch is refused twice, for a moment.
        for _ in 0..2 {
            let (body, headers) = (String::new(), Vec::new());
            case.scene.sandbox.inject(Fault::Answer { status: 503, body, headers });
        }
        let stand = case.kill_run(point).await;
        assert!(stand.in_flight().count() <= 1);
        if let (Step::Announce | Step::Send | Step::Settle, side) = (point.0, point.1) {
            let announced = (point.0, side) != (Step::Announce, Side::Before);
            let settled = (point.0, side) == (Step::Settle, Side::After);
            assert_eq!(stand.in_flight().count(), usize::from(announced && !settled));
        }
    })
    .await;
}
