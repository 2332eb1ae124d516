//! The chaos: disruptions of workers, server and API, one after the other.

use std::fmt;
use std::iter::repeat_n;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::Signal;
use sqlx::{Connection, Executor, PgConnection};

use super::api::Api;
use super::event_log::EventLog;
use super::workers::{Process, Workers};
use super::{LEASE, Plan, SIGNATURE_WINDOW};
use crate::cluster::Cluster;

/// Maximum time to wait until a worker reaches a gate.
const GATE_MAX: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
enum Disruption {
    Kill,
    KillAnnouncing,
    KillSettling,
    Terminate,
    FreezeShortly,
    FreezeBeyondLease,
    FreezeAnnouncing,
    FreezeSettling,
    CutSessions,
    Crash,
    Restart,
    ApiFaults,
}

/// How often each disruption is dealt in one round. Each round has a new random order, so that a short soak has some
/// of all.
const DECK: [(Disruption, usize); 12] = [
    (Disruption::Kill, 1),
    (Disruption::KillAnnouncing, 2),
    (Disruption::KillSettling, 1),
    (Disruption::Terminate, 2),
    (Disruption::FreezeShortly, 2),
    (Disruption::FreezeBeyondLease, 2),
    (Disruption::FreezeAnnouncing, 2),
    (Disruption::FreezeSettling, 1),
    (Disruption::CutSessions, 2),
    (Disruption::Crash, 1),
    (Disruption::Restart, 1),
    (Disruption::ApiFaults, 7),
];

/// The faults of the API, as `docs/sandbox.md` describes them.
const FAULTS: [&str; 18] = [
    "throttle@20%",
    "throttle=1s@2%",
    "unavailable@20%",
    "outage=300ms@every:20",
    "answer-lost@20%",
    "answer-lost@50%",
    "cut-before@15%",
    "slow=100ms@30%",
    "slow=600ms@10%",
    "slow=3s@1%",
    "error-500@15%",
    "error-500-kept@20%",
    "html-200@5%",
    "html-502@10%",
    "body-limit=1500B",
    "revoked@5%",
    "changed@3%",
    "redirect@3%",
];

/// How often each disruption happened.
#[derive(Default)]
pub struct Counts {
    kills: usize,
    stops: usize,
    freezes: usize,
    at_gates: usize,
    cuts: usize,
    crashes: usize,
    restarts: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, stops, freezes, at_gates, cuts, crashes, restarts } = self;
        write!(
            f,
            "{kills} killed, {stops} stopped, {freezes} frozen, {at_gates} of these about to send or to settle, {cuts} sessions cut, \
             {crashes} crashes and {restarts} restarts of the server"
        )
    }
}

pub struct Chaos<'a> {
    plan: &'a Plan,
    url: &'a str,
    cluster: &'a mut Cluster,
    workers: &'a Workers<'a>,
    api: &'a Api,
    event_log: &'a EventLog,
    random: Rng,
    deck: Vec<Disruption>,
    /// The frozen processes, and when each is thawed.
    frozen: Vec<(Instant, Process)>,
    pub counts: Counts,
}

impl<'a> Chaos<'a> {
    pub fn new(
        plan: &'a Plan,
        url: &'a str,
        cluster: &'a mut Cluster,
        workers: &'a Workers<'a>,
        api: &'a Api,
        event_log: &'a EventLog,
        random: Rng,
    ) -> Self {
        let (deck, frozen, counts) = (Vec::new(), Vec::new(), Counts::default());
        Self { plan, url, cluster, workers, api, event_log, random, deck, frozen, counts }
    }

    /// Applies disruptions for the planned duration.
    pub async fn run(&mut self) {
        let begun = Instant::now();
        while begun.elapsed() < self.plan.chaos {
            let next = Instant::now() + Duration::from_millis(self.random.u64(30..400));
            while Instant::now() < next {
                self.thaw(false);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            self.api.collect();
            if self.deck.is_empty() {
                self.deck =
                    DECK.iter().flat_map(|(disruption, count)| repeat_n(*disruption, *count)).collect();
                self.random.shuffle(&mut self.deck);
            }
            let disruption = self.deck.pop().unwrap();
            self.apply(disruption).await;
        }
        self.api.set_faults(&[]);
        self.thaw(true);
    }

    async fn apply(&mut self, disruption: Disruption) {
        // Drawn for every disruption, so that the later ones do not depend on which processes were running.
        let (victim, part) = (self.random.usize(..), self.random.u64(..1000));
        let mut faults: Vec<&str> =
            (0..self.random.u8(..4)).filter_map(|_| self.random.choice(FAULTS)).collect();
        let awake: Vec<Process> = self
            .workers
            .processes()
            .into_iter()
            .filter(|p| self.frozen.iter().all(|(_, f)| f != p))
            .collect();
        let victim = awake.get(victim % awake.len().max(1)).copied();
        let done = match (disruption, victim) {
            (Disruption::ApiFaults, _) => {
                faults.dedup();
                self.api.set_faults(&faults);
                faults.join(" ")
            }
            (Disruption::Crash, _) => {
                self.cluster.crash();
                tokio::time::sleep(Duration::from_millis(part / 3)).await;
                self.cluster.start().await;
                self.counts.crashes += 1;
                String::new()
            }
            (Disruption::Restart, _) => {
                self.cluster.stop().await;
                self.cluster.start().await;
                self.counts.restarts += 1;
                String::new()
            }
            (Disruption::CutSessions, _) => {
                let cut = self.cut_sessions(part).await.unwrap();
                self.counts.cuts += cut;
                format!("{cut} of them")
            }
            (_, None) => "nobody is there".to_owned(),
            (Disruption::Kill, Some(victim)) => {
                self.counts.kills += usize::from(self.workers.signal(victim, Signal::SIGKILL));
                format!("{victim:?}")
            }
            (Disruption::Terminate, Some(victim)) => {
                self.counts.stops += usize::from(self.workers.signal(victim, Signal::SIGTERM));
                format!("{victim:?}")
            }
            (Disruption::FreezeShortly, Some(victim)) => {
                self.freeze(victim, Duration::from_millis(20 + part))
            }
            (Disruption::FreezeBeyondLease, Some(victim)) => self.freeze(victim, beyond_lease(part)),
            (Disruption::KillAnnouncing, Some(victim)) => {
                self.at_gate(victim, "announcing", None).await.unwrap()
            }
            (Disruption::KillSettling, Some(victim)) => self.at_gate(victim, "settling", None).await.unwrap(),
            (Disruption::FreezeAnnouncing, Some(victim)) => {
                self.at_gate(victim, "announcing", Some(beyond_lease(part))).await.unwrap()
            }
            (Disruption::FreezeSettling, Some(victim)) => {
                self.at_gate(victim, "settling", Some(beyond_lease(part))).await.unwrap()
            }
        };
        self.event_log.note(format!("{disruption:?} {done}"));
    }

    fn freeze(&mut self, victim: Process, length: Duration) -> String {
        if self.workers.signal(victim, Signal::SIGSTOP) {
            self.counts.freezes += 1;
            self.frozen.push((Instant::now() + length, victim));
        }
        format!("{victim:?} for {length:?}")
    }

    fn thaw(&mut self, all: bool) {
        let now = Instant::now();
        for (_, process) in self.frozen.extract_if(.., |(until, _)| all || *until <= now) {
            let is_there = self.workers.signal(process, Signal::SIGCONT);
            self.event_log.note(format!("{process:?} goes on: {is_there}"));
        }
    }

    /// Terminates some of the sessions, or all.
    async fn cut_sessions(&self, part: u64) -> sqlx::Result<usize> {
        let mut connection = PgConnection::connect(self.url).await?;
        let cut = sqlx::query(
            "select pg_terminate_backend(pid) from pg_stat_activity
              where datname = current_database() and pid <> pg_backend_pid() and pid % 4 <= $1",
        )
        .bind(i32::try_from(part % 4).unwrap())
        .fetch_all(&mut connection)
        .await?;
        connection.close().await?;
        Ok(cut.len())
    }

    /// Stops a worker where it is about to send or has been answered. Kills it there, or freezes it.
    async fn at_gate(
        &mut self,
        victim: Process,
        place: &str,
        freeze: Option<Duration>,
    ) -> sqlx::Result<String> {
        let worker = victim.worker;
        let mut gate = PgConnection::connect(self.url).await?;
        gate.execute("select pg_advisory_lock(1)").await?;
        sqlx::query("insert into soak.gates values ($1, $2)")
            .bind(worker.to_string())
            .bind(place)
            .execute(&mut gate)
            .await?;
        let waiting = "select exists (select from pg_locks where locktype = 'advisory' and not granted)";
        let begun = Instant::now();
        let mut is_there = false;
        while !is_there && begun.elapsed() < GATE_MAX {
            self.thaw(false);
            tokio::time::sleep(Duration::from_millis(2)).await;
            is_there = sqlx::query_scalar(waiting).fetch_one(&mut gate).await?;
        }
        // The worker may be in another run by now.
        let victim = self.workers.processes().into_iter().find(|process| process.worker == worker);
        let done = match (victim.filter(|_| is_there), freeze) {
            (None, _) => format!("worker {worker} does not come"),
            (Some(victim), None) => {
                self.counts.kills += usize::from(self.workers.signal(victim, Signal::SIGKILL));
                format!("{victim:?}")
            }
            (Some(victim), Some(length)) => {
                self.counts.at_gates += 1;
                self.freeze(victim, length)
            }
        };
        gate.execute("delete from soak.gates").await?;
        // A statement that waits here continues in the server after the death of its worker.
        gate.close().await?;
        Ok(done)
    }
}

/// Long enough for another worker to take over and send.
fn beyond_lease(part: u64) -> Duration {
    LEASE + SIGNATURE_WINDOW + Duration::from_millis(600 + part)
}
