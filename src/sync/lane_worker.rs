//! What the lanes of a worker need. They reach journal and ledger through [`LaneStore`] and [`LaneLedger`] alone, so
//! that a simulation can put models in their place.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::api_session::ApiSession;
use super::concurrency::ConcurrencyLimits;
use super::decisions::sharing;
use super::names::NamesOfRun;
use super::progress::Progress as RowsDone;
use super::proving::CredentialProof;
use crate::align::Zone;
use crate::batch::RecordRules;
use crate::config::{Credential, Settings};
use crate::elven::{Answer, Client, Signed};
use crate::journal::LaneStore;
use crate::ledger::LaneLedger;

/// Becomes true when the process is asked to stop: batches in flight are finished, and no new one is started. Batches
/// that take longer than `shutdown_grace` are abandoned.
pub type Stop = watch::Receiver<bool>;

/// What the lanes of a worker need; cheap to clone.
#[derive(Clone, Debug)]
pub struct LaneWorker {
    pub(crate) settings: Arc<Settings>,
    pub(crate) journal: Arc<dyn LaneStore>,
    pub(crate) ledger: Arc<dyn LaneLedger>,
    /// The mapping in JSON, as the journal records it.
    pub(crate) mapping: Arc<str>,
    pub(super) limits: Arc<ConcurrencyLimits>,
    pub(crate) stop: Stop,
    /// Becomes true when the grace period after `stop` is over.
    pub(crate) cut_off: Stop,
    pub(crate) progress: RowsDone,
}

/// A registered entity that can be worked on.
#[derive(Clone, Debug)]
pub struct Target {
    pub(crate) entity_id: String,
    /// The rules of its records.
    pub(crate) rules: RecordRules,
    pub(super) session: Arc<ApiSession>,
    /// What the run did to prove that the credential and the endpoint are good.
    pub(super) proving: Arc<CredentialProof>,
    /// What the run learned about the names of its records.
    pub(super) names: Arc<NamesOfRun>,
}

impl Target {
    /// Returns an entity with a session of its own.
    pub fn new(entity_id: &str, zone: Zone, credential: Credential, client: Client) -> Self {
        let session = Arc::new(ApiSession::new(credential, client, None, None));
        Self {
            entity_id: entity_id.to_owned(),
            rules: zone.into(),
            session,
            proving: Arc::default(),
            names: Arc::default(),
        }
    }
}

impl Target {
    /// Returns the name with which held rows are sent now. `kind`: the kind of their error; `in_ledger`: their name in
    /// the ledger.
    pub(super) fn sent_as<'n>(&'n self, kind: &str, in_ledger: &'n str) -> &'n str {
        let names = &self.rules.names;
        let map = if kind == "unknown_account" { &names.accounts } else { &names.currencies };
        map.mapped(in_ledger).unwrap_or(in_ledger)
    }
}

impl LaneWorker {
    /// Returns a worker for the lanes of this journal and this ledger.
    pub fn new(
        settings: Arc<Settings>,
        journal: Arc<dyn LaneStore>,
        ledger: Arc<dyn LaneLedger>,
        stop: Stop,
    ) -> Self {
        Self {
            mapping: ledger.mapping_json().clone(),
            journal,
            ledger,
            limits: Arc::new(ConcurrencyLimits::new(&settings.sync)),
            cut_off: after(stop.clone(), settings.sync.shutdown_grace),
            settings,
            stop,
            progress: RowsDone::default(),
        }
    }

    /// Sends a request, and waits for its answer. `None`: the grace period ended first.
    pub(super) async fn answer(&self, session: &ApiSession, signed: Signed) -> Option<Answer> {
        let mut cut_off = self.cut_off.clone();
        tokio::select! {
            biased;
            answer = session.send(signed) => Some(answer),
            Ok(_) = cut_off.wait_for(|cut_off| *cut_off) => None,
        }
    }

    pub(super) fn renewed_every(&self) -> Duration {
        sharing::renewed_every(self.settings.sync.lease)
    }

    /// Waits for a future. `None`: a signal came first.
    pub(super) async fn unless_stopped<T>(&self, waiting: impl Future<Output = T>) -> Option<T> {
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            Ok(_) = stop.wait_for(|stop| *stop) => None,
            done = waiting => Some(done),
        }
    }
}

/// Passes a stop on after the grace period.
fn after(mut stop: Stop, grace: Duration) -> Stop {
    let (sender, later) = watch::channel(false);
    tokio::spawn(async move {
        if stop.wait_for(|stop| *stop).await.is_ok() {
            tokio::time::sleep(grace).await;
            sender.send_replace(true);
        }
    });
    later
}
