//! Crashes, faults and several workers at the same time, drawn from a seed; then the faults stop, and all promises
//! are checked. `ELVEN_SEED=17` repeats the decisions of a seed; the machine decides when they meet the workers. The
//! long soak (`make soak`) takes `ELVEN_SOAK_SECONDS` and `ELVEN_SOAK_ROWS`.

mod api;
mod chaos;
mod checks;
mod event_log;
mod journal;
mod workers;
mod writers;

use std::cell::Cell;
use std::pin::pin;
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use sqlx::PgPool;

use self::api::Api;
use self::chaos::{Chaos, Counts};
use self::event_log::EventLog;
use self::workers::Workers;
use crate::cluster::Cluster;
use crate::support::{TestEnv, variable};
use crate::verify::assert_verified;

const WORKERS: usize = 4;
const WRITERS: usize = 4;
const ENTITIES: usize = 20;
/// The value that [`TestEnv`] sets.
const LEASE: Duration = Duration::from_secs(1);
const SIGNATURE_WINDOW: Duration = Duration::from_millis(300);
/// Maximum time for the rest of the work after the faults. A longer one is a hang, and a failure.
const END_MAX: Duration = Duration::from_mins(2);

/// Zones with different hours on 2024-10-27, some of which are repeated.
const ZONES: [&str; 6] =
    ["UTC", "Europe/Zurich", "America/New_York", "Asia/Kolkata", "Europe/London", "Pacific/Auckland"];

/// The parameters of one soak.
struct Plan {
    seed: u64,
    chaos: Duration,
    /// Number of rows that are inserted. Some of them are deleted.
    rows: usize,
}

impl Plan {
    fn new(chaos_s: i64, rows: i64) -> Self {
        let seed = variable("ELVEN_SEED").map_or_else(|| u64::from(fastrand::u16(..)), i64::unsigned_abs);
        Self {
            seed,
            chaos: Duration::from_secs(chaos_s.unsigned_abs()),
            rows: rows.unsigned_abs().try_into().unwrap(),
        }
    }
}

#[sqlx::test(migrations = false)]
async fn soak(pool: PgPool) {
    let plan = Plan::new(8, 4_000);
    println!("to repeat what is done: ELVEN_SEED={}", plan.seed);
    println!("{}", Box::pin(run_soak(&pool, plan)).await);
}

#[sqlx::test(migrations = false)]
#[ignore = "takes minutes: make soak"]
async fn soak_for_long(pool: PgPool) {
    let seconds = variable("ELVEN_SOAK_SECONDS").unwrap_or(180);
    let rows = variable("ELVEN_SOAK_ROWS").unwrap_or(60_000);
    let plan = Plan::new(seconds, rows);
    println!("to repeat what is done: ELVEN_SEED={}", plan.seed);
    println!("{}", Box::pin(run_soak(&pool, plan)).await);
}

/// Executes the faults and the remaining work, and checks the result. Returns a summary.
async fn run_soak(like: &PgPool, plan: Plan) -> String {
    let mut cluster = Cluster::new(like).await;
    let event_log = EventLog::begin();
    let api = Api::start(plan.seed).await;
    let mut scene = TestEnv::at(&cluster.url("ledger")).await;
    sqlx::raw_sql(include_str!("soak/watch.sql")).execute(&scene.pool).await.unwrap();
    for number in 0..ENTITIES {
        scene.entity(&entity_id(number), ZONES[number % ZONES.len()]).await;
    }
    scene.pool.close().await;
    scene.set("ELVEN_API_URL", &api.sandbox.url());
    scene.set("ELVEN_SYNC_API__TIMEOUT", "2s");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "30");
    // All workers together must not need more connections than the server has.
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "2");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "3");
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "20ms");
    scene.set("ELVEN_SYNC_RETRY__MAX", "300ms");

    let workers = Workers::new(&scene, &event_log, WORKERS);
    let counts = in_time(&scene.url, &workers, plan.chaos + END_MAX, async {
        disrupt(&plan, &scene, &mut cluster, &workers, &api, &event_log).await
    })
    .await;
    event_log.note("the faults stop");
    let runs = in_time(&scene.url, &workers, END_MAX, workers.run_until_all_is_done(&api)).await;
    event_log.note(format!("all is done after {runs} runs"));
    checks::all(&scene.url, &api).await;
    assert_verified(&scene).await;
    summary(&plan, &scene.url, &counts, &workers, &api).await
}

/// Executes workers and writers, and all disruptions of them.
async fn disrupt(
    plan: &Plan,
    scene: &TestEnv,
    cluster: &mut Cluster,
    workers: &Workers<'_>,
    api: &Api,
    event_log: &EventLog,
) -> Counts {
    let mut random = Rng::with_seed(plan.seed);
    let over = Cell::new(false);
    let writers: Vec<_> =
        (0..WRITERS).map(|_| writers::write(plan, &scene.url, random.fork(), event_log, &over)).collect();
    let chaos = async {
        let mut chaos = Chaos::new(plan, &scene.url, cluster, workers, api, event_log, random);
        chaos.run().await;
        over.set(true);
        workers.stop();
        chaos.counts
    };
    let (counts, ..) = tokio::join!(chaos, workers.work(), join_all(writers));
    writers::end_prepared(&scene.url).await;
    counts
}

/// Waits for some work. If it takes too long, describes what every process is doing.
async fn in_time<T>(url: &str, workers: &Workers<'_>, limit: Duration, work: impl Future<Output = T>) -> T {
    // Kept until the description is printed: dropping it kills the workers.
    let mut work = pin!(work);
    if let Ok(done) = tokio::time::timeout(limit, work.as_mut()).await {
        return done;
    }
    panic!("not done in {limit:?}\n{}\n{}", workers.describe(), event_log::sessions(url).await)
}

fn entity_id(number: usize) -> String {
    format!("e{number:02}")
}

/// Returns the account of an entity that the API may refuse.
fn account_refused(entity_id: &str) -> String {
    format!("{entity_id}-refused")
}

/// Whether the API refuses that account: it does for every other entity.
fn is_refused(account: &str) -> bool {
    (0..ENTITIES).step_by(2).any(|number| account == account_refused(&entity_id(number)))
}

async fn summary(plan: &Plan, url: &str, counts: &Counts, workers: &Workers<'_>, api: &Api) -> String {
    let journal = "select format('%s rows in %s versions, %s taken over, %s requests announced, %s batches, %s repeated, \
                                  %s ambiguous, %s split, %s rows set aside',
                          (select count(*) from ledger.balance_snapshots), (select count(*) from soak.versions),
                          (select count(*) from soak.takes where took_over), (select count(*) from soak.sends), count(*),
                          count(*) filter (where attempts > 1), count(*) filter (where ambiguous),
                          count(*) filter (where status = 'split'),
                          (select count(*) from elven_sync.sync_errors where ledger_id is not null and resolved_at is null))
                     from elven_sync.sync_batches";
    let journal = checks::text(url, journal).await;
    let fenced = checks::text(url, &api.count_expired_requests()).await;
    let runs = workers.runs();
    format!(
        "seed {}: {runs} runs, {counts}, {journal}; {fenced} requests of a worker that had lost its lease were refused",
        plan.seed
    )
}
