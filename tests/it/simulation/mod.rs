//! A deterministic simulation of lanes: the real delivery, batching and classification, against models of the ledger,
//! the journal and the API. A seed decides about time, interleaving and faults.

mod api;
mod fences;
mod invariants;
mod journal;
mod ledger;
mod process;
mod replay;
mod world;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use elven_sync::align::Zone;
use elven_sync::config::{Credential, Flags, Settings};
use elven_sync::elven::Client;
use elven_sync::ledger::LaneLedger;
use elven_sync::sync::{LaneWorker, Target};

use self::api::Network;
use self::journal::ModelJournal;
use self::ledger::{ModelLedger, entity_name};
use self::process::Process;
use self::world::{Faults, LEASE, Sabotage, WINDOW, World};
use crate::support::variable;

/// The runs after the trouble, by which everything has to be done: a batch may stay unknown in three runs, and is then
/// taken apart.
const RUNS_AFTER_TROUBLE: usize = 16;

const REQUESTS_IN_FLIGHT_MAX: usize = 4;

/// What all simulations share, since it takes long to make.
struct Common {
    /// The settings by the number of requests in flight, less one.
    settings: [Arc<Settings>; REQUESTS_IN_FLIGHT_MAX],
    client: Client,
    credential: Credential,
    zone: Zone,
}

static COMMON: LazyLock<Common> = LazyLock::new(|| {
    let environment = [
        ("ELVEN_API_KEY", "simulated"),
        ("ELVEN_API_SECRET", "simulated"),
        ("ELVEN_API_URL", "http://127.0.0.1:1"),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut settings = Settings::load(&Flags::default(), environment.into_iter().collect()).unwrap();
    (settings.sync.lease, settings.api.signature_window) = (LEASE, WINDOW);
    settings.sync.shutdown_grace = Duration::from_secs(1);
    settings.sync.batch_rows = 4;
    settings.sync.entities_at_once = 2;
    settings.retry.attempts = 3;
    settings.retry.initial = Duration::from_millis(50);
    settings.retry.max = Duration::from_secs(2);
    let settings = std::array::from_fn(|index| {
        let mut settings = settings.clone();
        settings.sync.requests_in_flight = index + 1;
        Arc::new(settings)
    });
    let client = Client::new(&settings[0].api_url, Duration::from_secs(2)).unwrap();
    let credential = settings[0].credential("default").unwrap();
    let zone = settings[0].zones.get("UTC").unwrap();
    Common { settings, client, credential, zone }
});

/// One simulation.
#[derive(Clone, Copy, Debug)]
struct Simulation {
    seed: u64,
    faults: Faults,
    sabotage: Option<Sabotage>,
    is_traced: bool,
}

/// What came of a simulation.
#[derive(Debug)]
struct Outcome {
    failure: Option<String>,
    events: Vec<String>,
    ended_at: Duration,
}

impl Simulation {
    fn run(self) -> Outcome {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        fastrand::seed(self.seed);
        runtime.block_on(self.play())
    }

    async fn play(self) -> Outcome {
        elven_sync::wall_clock::simulate(DateTime::<Utc>::UNIX_EPOCH + Duration::from_hours(500_000));
        let begun = Instant::now();
        let world = Arc::new(World::new(self.seed, self.faults, self.sabotage, self.is_traced));
        let entities = usize::try_from(1 + world.below(2)).unwrap();
        let requests_in_flight = usize::try_from(1 + world.below(REQUESTS_IN_FLIGHT_MAX as u64)).unwrap();
        let mut players = tokio::task::JoinSet::new();
        for _ in 0..=world.below(2) {
            players.spawn(ledger::write_rows(world.clone(), entities));
        }
        if world.below(1000) < self.faults.has_failovers {
            world.state().may_fail_over = true;
            players.spawn(fail_over(world.clone()));
        }
        for number in 0..=world.below(2) {
            players.spawn(work(world.clone(), number, entities, requests_in_flight));
        }
        while players.join_next().await.is_some() {}
        for n in 0..RUNS_AFTER_TROUBLE {
            let process = Process::start(&world, format!("last-{n}"));
            run(&process, entities, requests_in_flight).await;
            if world.state().violation.is_some() || invariants::of_end(&world.state(), entities).is_ok() {
                break;
            }
            tokio::time::sleep(2 * WINDOW + LEASE).await;
        }
        let state = world.state();
        let failure = state.violation.clone().or_else(|| invariants::of_end(&state, entities).err());
        Outcome { failure, events: world.events(), ended_at: begun.elapsed() }
    }
}

/// The server fails over now and then.
async fn fail_over(world: Arc<World>) {
    while world.has_trouble() {
        world.pause(500, 8_000).await;
        if world.happens(world.faults.failover) {
            world.state().fail_over(&world);
        }
    }
}

/// A machine on which a scheduler starts a process again and again.
async fn work(world: Arc<World>, number: u64, entities: usize, requests_in_flight: usize) {
    let mut count = 0;
    while world.has_trouble() && world.state().violation.is_none() {
        count += 1;
        let process = Process::start(&world, format!("w{number}-{count}"));
        let mut crashed = process.crashed.subscribe();
        tokio::select! {
            biased;
            _ = crashed.wait_for(|crashed| *crashed) => {}
            () = run(&process, entities, requests_in_flight) => {}
        }
        // Nothing of a process that has ended acts any more.
        process.crashed.send_replace(true);
        world.pause(0, 2_000).await;
    }
}

/// One run over all entities.
async fn run(process: &Arc<Process>, entities: usize, requests_in_flight: usize) {
    let world = &process.world;
    let common = &*COMMON;
    let settings = common.settings[requests_in_flight - 1].clone();
    let journal = Arc::new(ModelJournal::start(process));
    let ledger = Arc::new(ModelLedger::new(process.clone()));
    let worker = LaneWorker::new(settings, journal, ledger.clone(), process.stop.subscribe());
    let run_id = {
        let mut state = world.state();
        state.tables.runs += 1;
        state.tables.runs
    };
    let client = common.client.clone().over(Network::of(process));
    let lanes = (0..entities).map(async |entity| {
        let entity_id = entity_name(entity);
        let target = Target::new(&entity_id, common.zone.clone(), common.credential.clone(), client.clone());
        let seen = world.state().lane(&entity_id);
        let Ok(probe) = ledger.probe_entity(&seen.progress(&entity_id)).await else { return };
        if seen.open.is_some() || probe.new_rows(&entity_id).has_new_rows {
            let ended = worker.lane(run_id, &target, &seen, &probe).await;
            world.log(|| {
                format!("{}: {entity_id} ends: {:?}", process.name, ended.map(|report| report.ended))
            });
        }
    });
    let renewing = async {
        loop {
            process.step(0, 1).await;
            tokio::time::sleep(LEASE / 3).await;
            world.state().renew(&process.name);
        }
    };
    tokio::select! {
        biased;
        _ = futures_util::future::join_all(lanes) => {}
        () = renewing => {}
    }
}

/// Runs simulations on all processors. Returns the first seed that failed, with why.
fn simulate(
    seeds: std::ops::Range<u64>,
    faults: Faults,
    sabotage: Option<Sabotage>,
) -> Option<(u64, String)> {
    let next = std::sync::atomic::AtomicU64::new(seeds.start);
    let failed = std::sync::Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= seeds.end || failed.lock().unwrap().is_some() {
                        return;
                    }
                    let simulation = Simulation { seed, faults, sabotage, is_traced: false };
                    if let Some(failure) = simulation.run().failure {
                        failed.lock().unwrap().get_or_insert((seed, failure));
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap()
}

/// The seeds: `ELVEN_SIMULATION_SEEDS` says how many, and `ELVEN_SIMULATION_SEED` names a single one.
fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| variable(name).map(|number| u64::try_from(number).unwrap());
    match number("ELVEN_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("ELVEN_SIMULATION_SEEDS").unwrap_or(10_000),
    }
}

/// The faults: `ELVEN_SIMULATION_MANY=1` makes what is rare more frequent.
fn faults() -> Faults {
    if variable("ELVEN_SIMULATION_MANY") == Some(1) { Faults::MANY } else { Faults::ALL }
}

/// Runs a seed that failed again, and shows what happened up to the failure.
fn fail(seed: u64, why: &str, faults: Faults) -> ! {
    let again = Simulation { seed, faults, sabotage: None, is_traced: true }.run();
    let lines = usize::try_from(variable("ELVEN_SIMULATION_LINES").unwrap_or(60)).unwrap();
    let from = again.events.len().saturating_sub(lines);
    panic!("seed {seed}: {why}\n{}\nagain: {:?}", again.events[from..].join("\n"), again.failure);
}

#[test]
fn lanes_keep_every_invariant_under_faults() {
    let faults = faults();
    if let Some((seed, why)) = simulate(seeds(), faults, None) {
        fail(seed, &why, faults);
    }
}

#[test]
fn a_seed_gives_the_same_history_twice() {
    for seed in 0..50 {
        let once = Simulation { seed, faults: Faults::ALL, sabotage: None, is_traced: true };
        let (first, second) = (once.run(), once.run());
        assert_eq!((first.events, first.ended_at), (second.events, second.ended_at), "seed {seed}");
    }
}

/// Each of these breaks a fence or a rule on purpose. A simulation that does not see it proves nothing.
#[test]
fn each_sabotage_is_found() {
    let found = |sabotage: Sabotage| simulate(0..1_000, Faults::MANY, Some(sabotage));
    let missed: Vec<Sabotage> = Sabotage::ALL
        .into_iter()
        .filter(|sabotage| {
            found(*sabotage).inspect(|(seed, why)| eprintln!("{sabotage:?}: {seed}: {why}")).is_none()
        })
        .collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
