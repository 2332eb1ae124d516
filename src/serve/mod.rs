//! The connector as a service: one run per interval, and the state of the process over HTTP.
//!
//! The runs share the main runtime. The HTTP server has a thread, a runtime and database connections of its own
//! ([`http`]), so that it answers while the main runtime is frozen, and a scrape takes no connection from a lane.

mod answer;
mod configuration;
mod connected;
mod connection;
mod cycle;
mod failures;
mod health;
mod http;
mod metrics;
mod observer;
mod outcome;
mod page;
mod pages;
mod process;
mod requests;
mod rules;
mod schedule;
mod shared;
mod systemd;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use self::configuration::Configuration;
pub use self::metrics::of_tables;
use self::rules::Rules;
pub use self::schedule::Signals;
use self::shared::Shared;
use crate::config::{ConfigError, Flags, Settings};

/// How often the main runtime shows that it runs.
const TICK_EVERY: Duration = Duration::from_secs(1);

/// What a service is started with.
#[derive(Debug)]
pub struct Options {
    /// The time from the start of a run to the start of the next.
    pub every: Duration,
    /// Host names that requests may name, besides those of loopback and the address.
    pub hosts: Vec<String>,
    /// The page is served on any address, and not on loopback alone.
    pub page: bool,
    /// The flags with which the configuration is read again.
    pub flags: Flags,
    /// The configuration at the start.
    pub settings: Settings,
}

/// Opens the address of the HTTP server.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Refuses a configuration with which no run can begin, whatever the database does.
pub fn check(settings: &Settings) -> Result<(), ConfigError> {
    configuration::check(settings)
}

/// Runs the service until it is asked to stop, and until the run under way has ended.
///
/// # Errors
/// The HTTP server cannot be started. Nothing that happens later ends the service.
pub async fn serve(options: Options, listener: TcpListener, signals: Signals) -> std::io::Result<()> {
    let Options { every, hosts, page, flags, settings } = options;
    let address = listener.local_addr()?;
    let settings = Arc::new(settings);
    let rules = Rules { listen: address.ip(), hosts, page };
    let endpoints = if rules.has_page() {
        "the status page, /healthz, /readyz and /metrics"
    } else {
        "/healthz, /readyz and /metrics"
    };
    let shared = Arc::new(Shared::new(settings.clone(), rules));
    http::start(listener, shared.clone())?;
    let ticks = tokio::spawn(tick(shared.clone()));
    tracing::info!(
        target: "elven_sync::serve",
        "serving: a run every {every:?}, and http://{address} with {endpoints}"
    );
    systemd::ready();
    let configuration = Configuration::new(flags, settings);
    schedule::run(&shared, configuration, every, signals).await;
    ticks.abort();
    Ok(())
}

/// Shows that the main runtime runs.
async fn tick(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(TICK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        shared.health.tick();
    }
}
