//! What the runs and the HTTP server share.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::timeout;

use super::health::Health;
use super::observer::Observer;
use super::pages::Reading;
use super::process::Process;
use super::rules::Rules;
use crate::config::Settings;
use crate::journal::metrics::Readings;
use crate::journal::status_page::{EntityPage, StatusPage};
use crate::sync::RecordedWait;

/// The longest time that a probe waits for a check of the database. A probe of Kubernetes waits 1 s by default.
const PROBE_WAIT_MAX: Duration = Duration::from_millis(500);

/// What the runs and the HTTP server share.
#[derive(Debug)]
pub(super) struct Shared {
    pub health: Health,
    pub observer: Observer,
    pub process: Process,
    pub rules: Rules,
    /// What was recorded about the session for which a run waits.
    pub recorded_wait: RecordedWait,
    /// The configuration in use.
    settings: RwLock<Arc<Settings>>,
}

impl Shared {
    pub(super) fn new(settings: Arc<Settings>, rules: Rules) -> Self {
        Self {
            health: Health::new(&settings),
            observer: Observer::default(),
            process: Process::default(),
            rules,
            recorded_wait: RecordedWait::default(),
            settings: RwLock::new(settings),
        }
    }

    /// Checks the database for readiness. A check that takes longer than [`PROBE_WAIT_MAX`] goes on by itself, and what
    /// was known before counts.
    pub(super) async fn check(self: &Arc<Self>) {
        let shared = self.clone();
        let check = async move { shared.observer.check(&shared.settings(), &shared.health).await };
        let _ = timeout(PROBE_WAIT_MAX, tokio::spawn(check)).await;
    }

    /// Returns what the sync tables say. `None`: they could not be read in time.
    pub(super) async fn readings(&self) -> Option<Arc<Readings>> {
        self.observer.readings(&self.settings(), &self.health).await
    }

    /// Returns what the status page shows.
    pub(super) async fn status_page(&self) -> Reading<StatusPage> {
        self.observer.status_page(&self.settings(), &self.health).await
    }

    /// Returns what the page of an entity shows.
    pub(super) async fn entity_page(&self, entity_id: &str) -> Reading<EntityPage> {
        self.observer.entity_page(&self.settings(), &self.health, entity_id).await
    }

    /// The configuration in use.
    pub(super) fn settings(&self) -> Arc<Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a configuration in use.
    pub(super) fn use_settings(&self, settings: Arc<Settings>) {
        self.health.set_stuck_after(&settings);
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }
}
