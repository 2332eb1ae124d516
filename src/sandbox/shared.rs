//! What the sandbox and its requests share.

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
use super::store::{Request, Store};
use super::validate::Record;

/// How a sandbox behaves. The defaults know every account and no API key.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 takes a free one. Default `127.0.0.1:0`.
    pub listen: SocketAddr,
    /// The API keys that are known. Default: none, so every request is refused.
    pub credentials: Vec<Credential>,
    /// The accounts that are known; `None`, the default: every account is.
    pub accounts: Option<BTreeSet<String>>,
    /// The currencies that are known, letter case included. Default: the circulating ISO 4217 codes and
    /// well-known crypto symbols.
    pub currencies: BTreeSet<String>,
    /// How far a request's timestamp may be from the sandbox's clock, either way. Default 30 s, as on the
    /// current page of the API; an older one says 5 s.
    pub signature_window: Duration,
    /// How far the sandbox's clock, and the `Date` of its answers, is ahead of the machine's; negative
    /// for behind. Default 0.
    pub clock_ahead: TimeDelta,
    /// Bytes of a request's body; a larger one is answered 413. Default 10 MB, as no limit of the import
    /// is documented; another call of the same service states 100 kB.
    pub body_bytes_max: usize,
    /// Records that are kept, the newest ones; counters go on beyond. Default 200,000, at some 300 bytes
    /// each.
    pub keep_records_max: usize,
    /// The envelope of answers. Default: bare, as the page of the import says.
    pub answers: Answers,
    /// What goes wrong, and when. Default: nothing.
    pub rules: Vec<Rule>,
    /// What the rules that have a rate draw from. Default 0.
    pub seed: u64,
    /// For benchmarks: signature, size and outer shape are checked, records are counted and not kept.
    pub lax: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            credentials: Vec::new(),
            accounts: None,
            currencies: currencies::BUILT_IN.iter().map(|(symbol, ..)| (*symbol).to_owned()).collect(),
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

/// What the handle and the requests share.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) memory: Mutex<Store>,
    pub(super) faults: Mutex<VecDeque<Fault>>,
    pub(super) standing: Mutex<FaultInjector>,
    pub(super) stopping: watch::Sender<bool>,
}

impl Shared {
    pub(super) fn memory(&self) -> MutexGuard<'_, Store> {
        lock(&self.memory)
    }

    pub(super) fn note(&self, request: Request, records: &[Record<'_>]) {
        self.memory().note(request, records, self.options.keep_records_max);
    }

    /// Adds what goes wrong with a request: the first fault of the queue if that strikes it, or else what
    /// the rules say.
    pub(super) fn strike(&self, struck: &mut InjectedFaults, asked: &Asked<'_>) {
        let strikes = |fault: &mut Fault| asked.import && fault.strikes(asked.accepted.is_some());
        if let Some(fault) = lock(&self.faults).pop_front_if(strikes) {
            struck.names.push(fault.name().to_owned());
            struck.fault = Some(fault);
        } else {
            lock(&self.standing).strike(struck, asked, self.now(struck.clock_ahead));
        }
    }

    /// The API's clock, when a rule sets it ahead so far.
    pub(super) fn now(&self, ahead: TimeDelta) -> DateTime<Utc> {
        Utc::now() + self.options.clock_ahead + ahead
    }
}

/// A panic of one request does not make the rest unreadable: every change is a push or a count.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
