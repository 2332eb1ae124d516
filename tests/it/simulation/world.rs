//! The world of a simulation: one state, which ledger, journal and API share, and the dice that decide what happens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use elven_sync::watermark::Snapshot;

use super::api::Api;
use super::journal::Tables;

/// How often what goes wrong, in parts of 1,000 of the requests, writes or runs that it may happen to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// For how many seconds they happen.
    pub seconds: u64,
    pub answer_lost: u64,
    pub delivered_late: u64,
    pub not_sent: u64,
    pub throttled: u64,
    pub failed: u64,
    pub key_revoked: u64,
    pub write_fails: u64,
    pub commit_unknown: u64,
    pub crash: u64,
    pub freeze: u64,
    pub shutdown: u64,
    /// Whether the server fails over in a simulation at all.
    pub has_failovers: u64,
    pub failover: u64,
}

impl Faults {
    pub const ALL: Self = Self {
        seconds: 7,
        answer_lost: 60,
        delivered_late: 60,
        not_sent: 30,
        throttled: 30,
        failed: 40,
        key_revoked: 15,
        write_fails: 8,
        commit_unknown: 8,
        crash: 250,
        freeze: 100,
        shutdown: 100,
        has_failovers: 250,
        failover: 300,
    };

    /// More of what is rare, for longer.
    pub const MANY: Self = Self {
        seconds: 30,
        delivered_late: 250,
        crash: 500,
        write_fails: 20,
        commit_unknown: 20,
        freeze: 300,
        has_failovers: 600,
        failover: 900,
        ..Self::ALL
    };
}

/// What is broken on purpose, to see that the simulation finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// The journal takes writes under a lease that another worker has taken.
    LeaseNotChecked,
    /// A lease is taken over as soon as it has expired, without the wait for its signatures.
    TakeoverTooEarly,
    /// The fence that a released lease leaves behind is not recorded.
    FenceForgotten,
    /// The API accepts signatures of any age.
    SignaturesNeverExpire,
    /// Recovery does not find the batch with an unknown outcome.
    UnknownBatchForgotten,
    /// A page of the ledger ends early.
    RowSkipped,
    /// The target of a pass contains a transaction that has not ended.
    TargetTooNew,
    /// The call that lists succeeds although the key is revoked.
    ProbeAlwaysGood,
    /// A batch that was being sent when its worker stopped counts as not sent.
    SendingForgotten,
    /// The cursor passes batches whose answers a failover has lost.
    LostAnswersIgnored,
}

impl Sabotage {
    pub const ALL: [Self; 10] = [
        Self::LeaseNotChecked,
        Self::TakeoverTooEarly,
        Self::FenceForgotten,
        Self::SignaturesNeverExpire,
        Self::UnknownBatchForgotten,
        Self::RowSkipped,
        Self::TargetTooNew,
        Self::ProbeAlwaysGood,
        Self::SendingForgotten,
        Self::LostAnswersIgnored,
    ];
}

/// One version of a ledger row.
#[derive(Clone, Debug)]
pub struct Version {
    pub xid: u64,
    pub id: i64,
    pub entity: usize,
    pub account: String,
    pub captured_at_us: i64,
    /// It is unique among all versions, so that the API's records tell which version they are.
    pub balance: i64,
    pub is_committed: bool,
}

impl Version {
    /// What the API identifies a record by. All rows have one currency.
    pub fn key(&self) -> (String, i64) {
        (self.account.clone(), self.captured_at_us.div_euclid(1_000_000))
    }

    /// The API refuses the row.
    pub fn is_bad(&self) -> bool {
        self.account.starts_with("bad")
    }
}

#[derive(Debug, Default)]
pub struct State {
    pub next_xid: u64,
    /// The balance of the newest version.
    pub balance: i64,
    pub running: BTreeSet<u64>,
    pub versions: Vec<Version>,
    /// The committed versions, of each row the newest.
    pub current: BTreeMap<i64, Version>,
    pub tables: Tables,
    /// The server may fail over.
    pub may_fail_over: bool,
    /// The tables before the last transactions, the newest first.
    pub kept: Vec<Tables>,
    pub failovers: usize,
    pub api: Api,
    /// The API may refuse any row, or fail for it, so a row may be set aside that it would accept.
    pub is_api_arbitrary: bool,
    /// The first thing that must not happen and did.
    pub violation: Option<String>,
    pub violated_at: Option<Instant>,
}

impl State {
    /// What the ledger does is not lost in a failover.
    pub fn begin(&mut self) -> u64 {
        self.kept.clear();
        self.next_xid += 1;
        self.running.insert(self.next_xid);
        self.next_xid
    }

    pub fn commit(&mut self, xid: u64) {
        self.kept.clear();
        self.running.remove(&xid);
        for version in self.versions.iter_mut().filter(|version| version.xid == xid) {
            version.is_committed = true;
            self.current.insert(version.id, version.clone());
        }
    }

    pub fn abort(&mut self, xid: u64) {
        self.kept.clear();
        self.running.remove(&xid);
        self.versions.retain(|version| version.xid != xid);
    }

    pub fn snapshot(&self) -> Snapshot {
        let xmax = self.next_xid + 1;
        let xmin = self.running.first().copied().unwrap_or(xmax);
        let running: Vec<String> = self.running.iter().map(u64::to_string).collect();
        format!("{xmin}:{xmax}:{}", running.join(",")).parse().unwrap()
    }

    /// Notes what must not happen. The first one counts.
    pub fn violated(&mut self, what: String) {
        if self.violation.is_none() {
            self.violation = Some(what);
            self.violated_at = Some(Instant::now());
        }
    }
}

#[derive(Debug)]
pub struct World {
    state: Mutex<State>,
    random: Mutex<fastrand::Rng>,
    begun: Instant,
    pub faults_end: Instant,
    pub faults: Faults,
    pub sabotage: Option<Sabotage>,
    /// The window in which the API accepts a signature.
    pub window: Duration,
    /// What happened, if it is recorded.
    trace: Option<Mutex<Vec<String>>>,
}

/// The window in which the API accepts a signature, unless a test says otherwise.
pub const WINDOW: Duration = Duration::from_secs(3);
pub const LEASE: Duration = Duration::from_secs(2);

impl World {
    pub fn new(seed: u64, faults: Faults, sabotage: Option<Sabotage>, is_traced: bool) -> Self {
        Self {
            state: Mutex::new(State { next_xid: 100, ..State::default() }),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            begun: Instant::now(),
            faults_end: Instant::now() + Duration::from_secs(faults.seconds),
            faults,
            sabotage,
            window: WINDOW,
            trace: is_traced.then(Mutex::default),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn is(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }

    /// Whether something goes wrong that does so in `parts` of 1,000 cases.
    pub fn happens(&self, parts: u64) -> bool {
        self.has_trouble() && self.below(1000) < parts
    }

    pub fn has_trouble(&self) -> bool {
        Instant::now() < self.faults_end
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.random.lock().unwrap().u64(0..bound.max(1))
    }

    pub fn ms(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }

    pub async fn pause(&self, from_ms: u64, to_ms: u64) {
        tokio::time::sleep(self.ms(from_ms, to_ms)).await;
    }

    /// Records what happens, up to the first thing that must not happen.
    pub fn log(&self, event: impl FnOnce() -> String) {
        let is_over = || {
            self.state.try_lock().is_ok_and(|state| state.violated_at.is_some_and(|at| at < Instant::now()))
        };
        if let Some(trace) = self.trace.as_ref().filter(|_| !is_over()) {
            let at = self.begun.elapsed();
            trace.lock().unwrap().push(format!("{:>7.3}s {}", at.as_secs_f64(), event()));
        }
    }

    pub fn events(&self) -> Vec<String> {
        self.trace.as_ref().map(|trace| trace.lock().unwrap().clone()).unwrap_or_default()
    }
}
