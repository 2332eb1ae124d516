//! The state that the sandbox and its requests share.

use std::collections::{BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::watch;

use super::answers::Answers;
use super::auth::Credential;
use super::currencies;
use super::fault::Fault;
use super::fault_injector::{Asked, FaultInjector, InjectedFaults};
use super::rules::Rule;
use super::sources::Sources;
use super::store::{Request, Store};
use super::validate::{Record, RecordSource};

/// The options of a sandbox. By default it knows every account and no API key.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address and port to listen on; port 0 takes a free port. Default `127.0.0.1:0`.
    pub listen: SocketAddr,
    /// The known API keys. Default: none, so every request is refused.
    pub credentials: Vec<Credential>,
    /// The known accounts. Default `None`: every account is known.
    pub accounts: Option<BTreeSet<String>>,
    /// The known currencies, letter case included. Default: the ISO 4217 codes in circulation and well-known crypto
    /// symbols.
    pub currencies: BTreeSet<String>,
    /// The ids of the sources for balances that exist at the start. Default: none.
    pub sources: BTreeSet<String>,
    /// The largest difference between a request's timestamp and the sandbox's clock, in both directions. Default 30 s,
    /// as on the current page of the API; an older page has 5 s.
    pub signature_window: Duration,
    /// How far the sandbox's clock, and the `Date` of its answers, is ahead of the machine's; negative: behind. Default
    /// 0.
    pub clock_ahead: TimeDelta,
    /// The most bytes of a body; a larger body is answered with 413. Default 10 MB, since no limit of the import is
    /// documented; another call of the same service documents 100 kB.
    pub body_bytes_max: usize,
    /// The most records that are kept, the newest ones; counters include all. Default 200,000, at about 300 bytes each.
    pub keep_records_max: usize,
    /// The envelope of answers. Default: bare, as on the page of the import.
    pub answers: Answers,
    /// The standing faults. Default: none.
    pub rules: Vec<Rule>,
    /// The seed of the rules with a rate. Default 0.
    pub seed: u64,
    /// For benchmarks: signature, size and outer form are checked, and records are counted but not kept.
    pub lax: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            credentials: Vec::new(),
            accounts: None,
            currencies: currencies::BUILT_IN.iter().map(|(symbol, ..)| (*symbol).to_owned()).collect(),
            sources: BTreeSet::new(),
            signature_window: Duration::from_secs(30),
            clock_ahead: TimeDelta::zero(),
            body_bytes_max: 10_000_000,
            keep_records_max: 200_000,
            answers: Answers::default(),
            rules: Vec::new(),
            seed: 0,
            lax: false,
        }
    }
}

/// The state that the handle and the requests share.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) memory: Mutex<Store>,
    pub(super) sources: Mutex<Sources>,
    pub(super) faults: Mutex<VecDeque<Fault>>,
    pub(super) standing: Mutex<FaultInjector>,
    pub(super) stopping: watch::Sender<bool>,
}

impl Shared {
    pub(super) fn memory(&self) -> MutexGuard<'_, Store> {
        lock(&self.memory)
    }

    /// Adds a request and the records of its import. Records of version 4 without a source get a new one.
    pub(super) fn note(&self, request: Request, records: &[Record<'_>]) {
        let has_none = |record: &Record<'_>| record.source == RecordSource::Missing;
        let created = records.iter().any(has_none).then(|| lock(&self.sources).create_for_import());
        self.memory().note(request, records, created.as_deref(), self.options.keep_records_max);
    }

    /// Adds the faults that strike a request: the first fault of the queue if it strikes, otherwise the faults of the
    /// rules.
    pub(super) fn strike(&self, struck: &mut InjectedFaults, asked: &Asked<'_>) {
        let strikes = |fault: &mut Fault| asked.import && fault.strikes(asked.accepted.is_some());
        if let Some(fault) = lock(&self.faults).pop_front_if(strikes) {
            struck.names.push(fault.name().to_owned());
            struck.fault = Some(fault);
        } else {
            lock(&self.standing).strike(struck, asked, self.now(struck.clock_ahead));
        }
    }

    /// Whether one of these records has the account, currency and datetime of a record that is kept. Looks only if a
    /// rule asks for it.
    pub(super) fn repeats(&self, records: &[Record<'_>]) -> bool {
        lock(&self.standing).is_about_repeated() && self.memory().has_any(records)
    }

    /// The clock of the API, put ahead by `ahead`.
    pub(super) fn now(&self, ahead: TimeDelta) -> DateTime<Utc> {
        Utc::now() + self.options.clock_ahead + ahead
    }
}

/// Locks a mutex, also after a panic of another request: every change is a push or a count, so the data stays valid.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
