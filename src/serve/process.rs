//! The metrics of the process.

use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::outcome::CycleOutcome;

type Labels = [(&'static str, String); 1];

/// The metrics of the process. They begin with each process, and differ between replicas.
#[derive(Debug)]
pub(super) struct Process {
    registry: Registry,
    cycles: Family<Labels, Counter>,
    cycle_ended: Gauge,
    cycle_duration: Gauge<f64, std::sync::atomic::AtomicU64>,
    configuration_valid: Gauge,
    responses: Family<Labels, Counter>,
}

impl Default for Process {
    fn default() -> Self {
        let process = Self {
            registry: Registry::default(),
            cycles: Family::default(),
            cycle_ended: Gauge::default(),
            cycle_duration: Gauge::default(),
            configuration_valid: Gauge::default(),
            responses: Family::default(),
        };
        process.configuration_valid.set(1);
        for outcome in CycleOutcome::NAMES {
            // Each outcome exists from the start, so that the first one of a kind is an increase.
            drop(process.cycles.get_or_create(&[("outcome", outcome.to_owned())]));
        }
        process.registered()
    }
}

impl Process {
    fn registered(mut self) -> Self {
        let started: Gauge = Gauge::default();
        started.set(now());
        let registry = &mut self.registry;
        registry.register("elven_sync_process_start_timestamp_seconds", "When the process started", started);
        registry.register(
            "elven_sync_process_cycles",
            "Runs of the process, by how they ended",
            self.cycles.clone(),
        );
        registry.register(
            "elven_sync_process_cycle_end_timestamp_seconds",
            "When the last run of the process ended; 0 before that",
            self.cycle_ended.clone(),
        );
        registry.register(
            "elven_sync_process_cycle_duration_seconds",
            "The duration of the last run of the process",
            self.cycle_duration.clone(),
        );
        registry.register(
            "elven_sync_process_configuration_valid",
            "1: the configuration was read without a mistake; 0: it has a mistake, and the one before is in use",
            self.configuration_valid.clone(),
        );
        registry.register(
            "elven_sync_process_http_responses",
            "Answers of the HTTP server, by HTTP status",
            self.responses.clone(),
        );
        self
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Counts a cycle that has ended.
    pub(super) fn count_cycle(&self, outcome: CycleOutcome, duration: Duration) {
        self.cycles.get_or_create(&[("outcome", outcome.name().to_owned())]).inc();
        self.cycle_ended.set(now());
        self.cycle_duration.set(duration.as_secs_f64());
    }

    /// Notes whether the configuration that was read last has a mistake.
    pub(super) fn note_configuration(&self, is_valid: bool) {
        self.configuration_valid.set(i64::from(is_valid));
    }

    /// Counts an answer of the HTTP server.
    pub(super) fn count_response(&self, status: u16) {
        self.responses.get_or_create(&[("status", status.to_string())]).inc();
    }
}

/// The time in seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(0)
}
