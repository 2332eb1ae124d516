//! The sandbox: a strict local stand-in for the Elven API, to try things on and to test against.
//!
//! It refuses what the real API is documented to refuse: a request without a signature, with an unknown key or with an
//! old signature; a batch of more than 1000 records; a record with other fields, types or formats than the documented
//! ones, or for an unknown account or currency. It keeps accepted records in memory and shows them, with each number as
//! received, on a page at `/sandbox`.
//!
//! Where the documentation is silent, the sandbox chooses one possible behaviour, on which a client must not rely:
//!
//! - a batch with a wrong record is refused as a whole;
//! - a second import of the same account, currency and datetime is accepted, and both are kept;
//! - the codes in failure bodies are its own (HTTP status and two digits), and the messages name the wrong record;
//! - bodies are limited to [`Options::body_bytes_max`], pages of the lists to 1000 entries;
//! - a record of version 4 whose `sourceId` does not exist, or is no source for balances, is refused; an import with
//!   records without a `sourceId` creates one source for all of them, as documented for each import;
//! - there is no rate limit, and keys and sources do not belong to entities.
//!
//! A request passes these modules: `connection` accepts it, `auth` checks its signature, `validate` reads an import
//! (`lists` and `sources` answer the other calls), `refusal` has the messages of refusals, and `store` keeps the accepted records.
//! `fault` is a failure that a test requests once; `rules` are standing faults, which `fault_injector` applies. `api`
//! calls the modules in this order; `page` shows the content of the store.

mod connection;

mod answers;

mod api;

mod auth;

mod validate;

mod lists;

mod paging;

mod sources;

mod currencies;

mod refusal;

mod store;

mod fault;

mod rules;

mod fault_injector;

mod page;

mod shared;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    routing::{any, get},
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

pub use self::{
    answers::Answers,
    auth::Credential,
    fault::{Fault, Gate},
    rules::{Rule, RuleError},
    shared::Options,
    sources::{Source, SourceType},
    store::{Received, Request},
};
use self::{
    connection::{Listener, Switch},
    fault_injector::FaultInjector,
    shared::{Shared, lock},
    sources::Sources,
};

/// A running sandbox. Dropping it stops it: it no longer listens, held answers are cut, and requests that are being
/// read are still answered.
pub struct Sandbox {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<io::Result<()>>,
}

impl Sandbox {
    /// Starts a sandbox on the current Tokio runtime. Fails if it cannot listen on the address.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            standing: Mutex::new(FaultInjector::new(options.rules.clone(), options.seed)),
            sources: Mutex::new(Sources::of(&options.sources)),
            options,
            memory: Mutex::default(),
            faults: Mutex::default(),
            stopping: watch::Sender::new(false),
        });
        let router = Router::new()
            .route("/", get(page::redirect))
            .route("/sandbox", get(page::html))
            .route("/sandbox/received", get(page::received))
            .route("/sandbox/requests", get(page::requests))
            .route("/sandbox/sources", get(page::sources))
            .route("/open/{*rest}", any(api::answer))
            .fallback(api::unknown_path)
            .method_not_allowed_fallback(api::wrong_method)
            .with_state(Arc::clone(&shared));
        let service = router.into_make_service_with_connect_info::<Switch>();
        let server = tokio::spawn(axum::serve(Listener(listener), service).into_future());
        Ok(Self { address, shared, server })
    }

    /// The address on which it listens, with the actual port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL for a client on this machine: `http://`, address and port, no path.
    pub fn url(&self) -> String {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            ip => ip,
        };
        format!("http://{}", SocketAddr::new(ip, self.address.port()))
    }

    /// The newest [`Options::keep_records_max`] accepted records, in the order in which they were received.
    pub fn received(&self) -> Vec<Received> {
        self.shared.memory().received.iter().cloned().collect()
    }

    /// The newest 10,000 requests to the API, in the order in which they were checked.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.memory().requests.iter().cloned().collect()
    }

    /// The number of records accepted since the start.
    pub fn records_accepted(&self) -> u64 {
        self.shared.memory().total.records
    }

    /// The sources, in the order in which they were created.
    pub fn sources(&self) -> Vec<Source> {
        lock(&self.shared.sources).list.clone()
    }

    /// The number of sources that imports without a `sourceId` have created.
    pub fn sources_made_by_imports(&self) -> u64 {
        lock(&self.shared.sources).made_by_imports
    }

    /// Queues a fault; see [`Fault`] for the import that it strikes.
    pub fn inject(&self, fault: Fault) {
        lock(&self.shared.faults).push_back(fault);
    }

    /// Replaces the rules. Their counters and random numbers start from the beginning.
    pub fn set_rules(&self, rules: Vec<Rule>) {
        *lock(&self.shared.standing) = FaultInjector::new(rules, self.shared.options.seed);
    }

    /// Stops the sandbox, and returns when its port is free again.
    pub async fn stop(mut self) {
        self.halt();
        // The task ends with the error "cancelled", as intended.
        (&mut self.server).await.ok();
    }

    fn halt(&self) {
        self.shared.stopping.send_replace(true);
        // The tasks of the connections notice the end of the server, and close when they are idle.
        self.server.abort();
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.halt();
    }
}
