//! A worker: everything that runs, backfills and retries need, and its heartbeat.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument;

use super::RunError;
use super::api_session::ApiSession;
use super::connect::standby_address;
use super::lane_worker::{LaneWorker, Stop, Target};
use super::proving::CredentialProof;
use super::record_rules::{record_rules, setting_zone};
use crate::batch::RecordRules;
use crate::config::{ConfigError, Settings};
use crate::database::{Address, Database, Transient};
use crate::elven::Client;
use crate::fault_point::{Step, around};
use crate::journal::{Entity, Journal, JournalError, Kind, Lane, MapHistory, Problem, client_name};
use crate::ledger::{Guard, Ledger, LedgerError, Progress};

/// Everything that a worker needs; cheap to clone.
#[derive(Clone, Debug)]
pub struct Worker {
    /// What its lanes need.
    lanes: LaneWorker,
    pub(crate) database: Database,
    pub(crate) ledger: Ledger,
    pub(crate) journal: Journal,
    /// Becomes true when the process is asked to stop.
    pub(super) interrupted: Stop,
}

impl Deref for Worker {
    type Target = LaneWorker;

    fn deref(&self) -> &LaneWorker {
        &self.lanes
    }
}

/// An entity that cannot be worked on, and why.
pub(super) type Unusable = (String, Problem);

impl Worker {
    /// Opens the ledger and the sync tables over connections to the primary.
    pub async fn open(settings: Settings, database: Database, stop: Stop) -> Result<Self, RunError> {
        let journal = Self::journal(&settings, &database).await?;
        Self::open_with(journal, settings, database, stop).await
    }

    /// Does the same for a run. Why a worker cannot be opened is recorded as a run that failed.
    pub async fn open_for_run(settings: Settings, database: Database, stop: Stop) -> Result<Self, RunError> {
        let journal = Self::journal(&settings, &database).await?;
        let tzdata = settings.zones.version();
        let opened = Self::open_with(journal.clone(), settings, database, stop).await;
        if let Err(problem) = &opened {
            record_failed_run(&journal, &tzdata, problem).await;
        }
        opened
    }

    async fn journal(settings: &Settings, database: &Database) -> Result<Journal, JournalError> {
        let (lease, window) = (settings.sync.lease, settings.api.signature_window);
        Journal::open(database.clone(), client_name(), lease, window).await
    }

    async fn open_with(
        journal: Journal,
        settings: Settings,
        database: Database,
        stop: Stop,
    ) -> Result<Self, RunError> {
        let standby = match standby_address(&settings) {
            Some(address) => Some(standby(address, &database).await?),
            None => None,
        };
        let ledger = Ledger::open(database.clone(), standby, &settings).await?;
        let interrupted = stop.clone();
        let lanes =
            LaneWorker::new(Arc::new(settings), Arc::new(journal.clone()), Arc::new(ledger.clone()), stop);
        Ok(Self { lanes, database, ledger, journal, interrupted })
    }

    /// Lets the lanes end also when `end` becomes true: like a stop, but batches in flight may take their time.
    /// Whoever asks the process to stop has to set both.
    #[must_use]
    pub fn ended_by(mut self, end: Stop) -> Self {
        self.lanes.stop = end;
        self
    }

    pub(super) async fn select(&self, only: &[String]) -> Result<Vec<Entity>, RunError> {
        let all = Entity::list(&self.database).await?;
        if let Some(missing) = only.iter().find(|id| all.iter().all(|entity| entity.entity_id != **id)) {
            let known: Vec<&str> = all.iter().map(|entity| entity.entity_id.as_str()).collect();
            return Err(ConfigError(crate::journal::unknown_entity(missing, &known)).into());
        }
        let wanted =
            |entity: &Entity| !entity.paused && (only.is_empty() || only.contains(&entity.entity_id));
        Ok(all.into_iter().filter(wanted).collect())
    }

    /// Separates the entities that cannot be worked on, each with its problem.
    ///
    /// # Errors
    /// No entity has a usable credential: the installation is not set up yet, so no run is begun. Or the client cannot
    /// be built, e.g. without certificates of authorities; commands that send nothing do not need it.
    pub(super) fn targets(&self, selected: &[Entity]) -> Result<(Vec<Target>, Vec<Unusable>), ConfigError> {
        self.targets_beside(selected, std::iter::empty())
    }

    /// Does the same beside lanes that are at work. They share their sessions, so that rate, pauses and clock of a
    /// credential apply to all its lanes.
    pub(super) fn targets_beside<'s>(
        &self,
        selected: &'s [Entity],
        at_work: impl Iterator<Item = &'s Arc<ApiSession>>,
    ) -> Result<(Vec<Target>, Vec<Unusable>), ConfigError> {
        let client = client(&self.settings)?;
        let mut sessions: BTreeMap<&str, Result<Arc<ApiSession>, String>> =
            at_work.map(|session| (session.credential.name.as_str(), Ok(session.clone()))).collect();
        let mut targets = Vec::new();
        let mut unusable = Vec::new();
        for entity in selected {
            let Entity { entity_id, timezone, credential, .. } = entity;
            let open =
                || self.session(credential, &client).map(Arc::new).map_err(|problem| problem.to_string());
            let session = sessions.entry(credential).or_insert_with(open).clone();
            match (self.settings.zones.get(timezone), session) {
                (Err(problem), _) => {
                    let message = format!("{problem}; hint: {}", setting_zone(entity_id));
                    unusable.push((entity_id.clone(), Problem::of_lane(Kind::Timezone, message)));
                }
                (_, Err(message)) => {
                    unusable.push((entity_id.clone(), Problem::of_lane(Kind::Config, message)));
                }
                (Ok(zone), Ok(session)) => match record_rules(&self.settings, entity, zone) {
                    Err(message) => {
                        unusable.push((entity_id.clone(), Problem::of_lane(Kind::Config, message)));
                    }
                    Ok(rules) => {
                        let (proving, names) = (Arc::new(CredentialProof::default()), Arc::default());
                        targets.push(Target { entity_id: entity_id.clone(), rules, session, proving, names });
                    }
                },
            }
        }
        let missing: Option<Vec<String>> = sessions.into_values().map(Result::err).collect();
        if let Some(problem) = missing.and_then(|mut missing| missing.pop()) {
            return Err(ConfigError(problem));
        }
        Ok((targets, unusable))
    }

    /// Returns these targets with the names by the maps in force. A run reads the maps once, before its first lane.
    pub(super) async fn with_names(&self, targets: &[&Target]) -> Result<Vec<Target>, JournalError> {
        if targets.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<String> = targets.iter().map(|target| target.entity_id.clone()).collect();
        let mut maps = MapHistory::read(&self.database, &ids).await?;
        let named = |target: &&Target| {
            let names = Arc::new(maps.names(&target.entity_id));
            Target { rules: RecordRules { names, ..target.rules.clone() }, ..(*target).clone() }
        };
        Ok(targets.iter().map(named).collect())
    }

    fn session(&self, credential: &str, client: &Client) -> Result<ApiSession, ConfigError> {
        let credential = self.settings.credential(credential)?;
        let (rate, bytes) = (self.settings.api.requests_per_second, self.settings.sync.batch_bytes);
        Ok(ApiSession::new(credential, client.clone(), rate, bytes))
    }

    /// Writes heartbeats while the work of a run lasts. Ends the work with an error if a heartbeat cannot be written.
    pub(super) async fn alive<T>(
        &self,
        run_id: i64,
        work: impl Future<Output = Result<T, RunError>>,
    ) -> Result<T, RunError> {
        let mut heart = JoinSet::new();
        heart.spawn(heartbeat(self.clone(), run_id).in_current_span());
        // In a task of its own, so that no heartbeat waits for the clean-up of commits.
        let (database, every) = (self.database.clone(), self.renewed_every());
        let forgetting = async move { match database.keep_forgetting(every).await {} };
        heart.spawn(forgetting.in_current_span());
        tokio::select! {
            worked = work => worked,
            Some(Ok(problem)) = heart.join_next() => Err(problem.into()),
        }
    }
}

/// Records a run that failed before it began, so that the tables show it. A database that is away, or that is not the
/// right one, cannot keep it.
pub(super) async fn record_failed_run(journal: &Journal, tzdata: &str, problem: &RunError) {
    let cannot_be_kept =
        matches!(problem, RunError::Journal(JournalError::Schema(_) | JournalError::Standby));
    if cannot_be_kept || problem.is_transient() {
        return;
    }
    let error = crate::text::chain(problem);
    if let Err(second) = journal.record_failed_run(tzdata, &error).await {
        let error = crate::text::chain(&second);
        tracing::warn!(error, "the run that failed could not be recorded in elven_sync.sync_runs");
    }
}

/// Builds the HTTP client.
pub(super) fn client(settings: &Settings) -> Result<Client, ConfigError> {
    Client::new(&settings.api_url, settings.api.timeout).map_err(|problem| {
        ConfigError(format!("the HTTP client cannot be set up: {}", crate::text::chain(&problem)))
    })
}

/// Connects to the standby from which pages are read.
async fn standby(address: Address, primary: &Database) -> Result<Database, LedgerError> {
    primary.connect_like(address).await.map_err(|problem| {
        LedgerError::Standby(format!(
            "the standby cannot be reached: {}; hint: check ELVEN_SYNC_LEDGER_URL, or unset it to read from the \
             primary",
            crate::text::chain(&problem)
        ))
    })
}

/// Warns of a guard that is not intact: a row that is written without a new `change_xid` may lie behind the watermark,
/// and then no pass reads it.
pub(crate) fn warn_of(guard: &Guard) {
    if let Some(problem) = guard.problem() {
        tracing::warn!("{problem}; hint: {}", guard.hint());
    }
}

pub(crate) fn progress(lanes: &BTreeMap<String, Lane>) -> Vec<Progress> {
    lanes.iter().map(|(entity_id, lane)| lane.progress(entity_id)).collect()
}

/// Writes heartbeats. Returns why, when they failed for longer than the database may be unavailable.
async fn heartbeat(worker: Worker, run_id: i64) -> JournalError {
    let every = worker.renewed_every();
    // No heartbeat at once: the run and its leases have just begun.
    let mut tick = tokio::time::interval_at(Instant::now() + every, every);
    loop {
        tick.tick().await;
        if let Err(problem) = around(Step::RenewLease, worker.journal.renew(run_id)).await {
            return problem;
        }
    }
}
