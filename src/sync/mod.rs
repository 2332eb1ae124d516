//! The story: one run over all entities, from the ledger to the journal.
//!
//! The only module that knows both the database and the API. The stages are its siblings and never
//! call each other.

mod backfill;
mod channel;
mod decision;
mod delivery;
mod fit;
mod invalid_start;
mod lane;
mod moves;
mod patience;
mod places;
mod progress;
mod proving;
mod prune;
mod rebind;
mod rehearsal;
mod remedies;
mod report;
mod retry;
mod rivals;
mod row;
mod rows;
mod signing;
mod verify;
mod waiting;
mod words;
mod zone_rules;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use secrecy::SecretString;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use backfill::{BackfillError, BackfillReport};
pub use moves::{MoveError, Rewind};
pub use progress::{EntityProgress, Progress as RowsDone};
pub use prune::{PruneReport, PrunedEntity, prune};
pub use rebind::{Rebind, Rebinding};
pub use rehearsal::Rehearsal;
pub use report::{Ended, EntityReport, RunReport};
pub use retry::Retried;
pub use row::{RowReport, Verdict as RowVerdict, of_row};
pub use verify::{EntityProof, Finding, verify};

use self::channel::Channel;
use self::places::Places;
use self::proving::Proving;
use self::report::Unregistered;
use crate::align::Zone;
use crate::config::{ConfigError, Settings};
use crate::database::{Database, Passing};
use crate::elven::{Answer, Client, Signed};
use crate::fault_point::{Step, around};
use crate::journal::{Entity, Health, Journal, JournalError, Kind, Lane, Problem, RunStatus, refuse_standby};
use crate::ledger::{self, Ledger, LedgerError, Pending, Progress, Unreadable};
use crate::text::quoted_sql;

/// A run could not work at all.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The sync tables cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The HTTP client cannot be built.
    #[error("the HTTP client cannot be set up")]
    Http(#[from] reqwest::Error),
}

impl Passing for RunError {
    fn is_passing(&self) -> bool {
        match self {
            RunError::Ledger(problem) => problem.is_passing(),
            RunError::Journal(problem) => problem.is_passing(),
            RunError::Config(_) | RunError::Http(_) => false,
        }
    }
}

/// Set once the process was asked to stop: batches in flight are finished, no new one begins. Those that
/// take longer than `shutdown_grace` are given up.
pub type Stop = watch::Receiver<bool>;

/// Everything that a worker needs; cheap to clone.
#[derive(Clone, Debug)]
pub struct Worker {
    settings: Arc<Settings>,
    database: Database,
    ledger: Ledger,
    /// How the ledger is read, as the journal records it.
    mapping: Arc<str>,
    journal: Journal,
    client: Client,
    places: Arc<Places>,
    stop: Stop,
    /// Set once the grace after `stop` is over, too.
    cut_off: Stop,
    progress: RowsDone,
}

/// An entity that cannot be worked on, and why.
type Unusable = (String, Problem);

/// A registered entity that can be worked on.
#[derive(Clone, Debug)]
struct Target {
    entity_id: String,
    zone: Zone,
    channel: Arc<Channel>,
    /// What was done in the run to prove that its credential and the endpoint are good.
    proving: Arc<Proving>,
}

impl Worker {
    /// Opens ledger and sync tables on connections to the primary.
    pub async fn open(settings: Settings, database: Database, stop: Stop) -> Result<Self, RunError> {
        let worker = worker_name();
        let journal =
            Journal::open(database.clone(), worker, settings.sync.lease, settings.api.signature_window)
                .await?;
        let standby = match &settings.ledger_url {
            Some(url) => Some(standby(url, &database).await?),
            None => None,
        };
        let ledger = Ledger::open(database.clone(), standby, &settings.ledger).await?;
        let client = Client::new(&settings.api_url, settings.api.timeout)?;
        let places = Arc::new(Places::new(&settings.sync));
        let cut_off = after(stop.clone(), settings.sync.shutdown_grace);
        Ok(Self {
            settings: Arc::new(settings),
            database,
            mapping: ledger.mapping_json().clone(),
            ledger,
            journal,
            client,
            places,
            stop,
            cut_off,
            progress: RowsDone::default(),
        })
    }

    /// Brings the entities up to date: all that are not paused, or those named.
    pub async fn run(&self, only: &[String]) -> Result<RunReport, RunError> {
        let selected = self.select(only).await?;
        let (targets, unusable) = self.targets(&selected)?;
        warn_of(&self.ledger.without_trigger().await?);
        refuse_standby(&self.database).await?;
        let run_id =
            around(Step::BeginRun, self.journal.begin_run("incremental", &self.settings.zones.version()))
                .await?;
        let mut notes = Vec::new();
        let work = async {
            // Before anything is sent: what is counted was uploaded by the earlier rules.
            let seen = self.see_rules(run_id, &targets).await;
            let compared = self.notes_of_rules(&targets, seen);
            let worked = self.work(run_id, only.is_empty(), &selected, targets.clone(), unusable);
            let (compared, worked) = join(compared, worked).await;
            notes = compared;
            worked
        };
        let worked = self.alive(run_id, work).await;
        let (status, error, entities, unregistered) = match worked {
            Ok((entities, unregistered)) => {
                let status = unregistered.status(&entities, *self.stop.borrow());
                let error = entities.iter().find_map(EntityReport::failure);
                (status, error.or_else(|| unregistered.unknown.clone()), entities, unregistered)
            }
            Err(problem) => {
                let message = crate::text::chain(&problem);
                // The run's row is truthful if it can be written; if not, the next run marks it.
                if let Err(second) = self.journal.finish_run(run_id, RunStatus::Failed, Some(&message)).await
                {
                    tracing::warn!(run_id, error = %second, "the run's end could not be recorded");
                }
                return Err(problem);
            }
        };
        let finished = self.journal.finish_run(run_id, status, error.as_deref());
        let counters = around(Step::FinishRun, finished).await?;
        let Unregistered { entity_ids: unregistered, unknown: unregistered_unknown } = unregistered;
        let run_id = Some(run_id);
        Ok(RunReport { run_id, status, counters, entities, unregistered, unregistered_unknown, notes })
    }

    /// Reads and aligns what a run would send, and changes nothing.
    pub async fn dry_run(&self, only: &[String]) -> Result<RunReport, RunError> {
        let selected = self.select(only).await?;
        let ids: Vec<String> = selected.iter().map(|entity| entity.entity_id.clone()).collect();
        let lanes = self.journal.lanes(&ids, &self.mapping).await?;
        let look = self.ledger.look(&progress(&lanes)).await?;
        let mut entities = Vec::new();
        let mut counters = crate::journal::Counters::default();
        for entity in &selected {
            let lane = lanes.get(&entity.entity_id).cloned().unwrap_or_default();
            let checked = self.zone_to_rehearse(entity, &lane, &look);
            let report = match checked {
                Ok(zone) => self.rehearse(&entity.entity_id, &zone, &lane, &look, &mut counters).await?,
                Err(problem) => EntityReport::failed(&entity.entity_id, problem),
            };
            entities.push(report);
        }
        let unregistered =
            if only.is_empty() { self.unregistered(&lanes).await? } else { Unregistered::default() };
        let status = unregistered.status(&entities, false);
        let Unregistered { entity_ids: unregistered, unknown: unregistered_unknown } = unregistered;
        let (run_id, notes) = (None, Vec::new());
        Ok(RunReport { run_id, status, counters, entities, unregistered, unregistered_unknown, notes })
    }

    /// The zone of an entity that a run would read, or why it would not.
    fn zone_to_rehearse(&self, entity: &Entity, lane: &Lane, look: &ledger::Look) -> Result<Zone, String> {
        let zone = self.settings.zones.get(&entity.timezone).map_err(|problem| problem.to_string())?;
        if let Some(unreadable) = look.unreadable.get(&entity.entity_id) {
            return Err(unreadable.message.clone());
        }
        self.fits(&entity.entity_id, lane, look).map_err(|misfit| misfit.to_string())?;
        Ok(zone)
    }

    async fn select(&self, only: &[String]) -> Result<Vec<Entity>, RunError> {
        let all = Entity::list(&self.database).await?;
        if let Some(missing) = only.iter().find(|id| all.iter().all(|entity| entity.entity_id != **id)) {
            let known: Vec<&str> = all.iter().map(|entity| entity.entity_id.as_str()).collect();
            return Err(ConfigError(crate::journal::unknown_entity(missing, &known)).into());
        }
        let wanted =
            |entity: &Entity| !entity.paused && (only.is_empty() || only.contains(&entity.entity_id));
        Ok(all.into_iter().filter(wanted).collect())
    }

    /// Sorts out the entities that cannot be worked on, each with its problem. When no entity at all
    /// has a usable credential, nothing is begun: then the installation is not set up yet.
    fn targets(&self, selected: &[Entity]) -> Result<(Vec<Target>, Vec<Unusable>), ConfigError> {
        let mut channels: BTreeMap<&str, Result<Arc<Channel>, String>> = BTreeMap::new();
        let mut targets = Vec::new();
        let mut unusable = Vec::new();
        for Entity { entity_id, timezone, credential, .. } in selected {
            let open = || self.channel(credential).map(Arc::new).map_err(|problem| problem.to_string());
            let channel = channels.entry(credential).or_insert_with(open).clone();
            match (self.settings.zones.get(timezone), channel) {
                (Err(problem), _) => {
                    let message = format!(
                        "{problem}; hint: update elven_sync.entities set timezone = '...' where entity_id = {}",
                        quoted_sql(entity_id)
                    );
                    unusable.push((entity_id.clone(), Problem::of_lane(Kind::Timezone, message)));
                }
                (_, Err(message)) => {
                    unusable.push((entity_id.clone(), Problem::of_lane(Kind::Config, message)));
                }
                (Ok(zone), Ok(channel)) => {
                    let proving = Arc::new(Proving::default());
                    targets.push(Target { entity_id: entity_id.clone(), zone, channel, proving });
                }
            }
        }
        let missing: Option<Vec<String>> = channels.into_values().map(Result::err).collect();
        if let Some(problem) = missing.and_then(|mut missing| missing.pop()) {
            return Err(ConfigError(problem));
        }
        Ok((targets, unusable))
    }

    fn channel(&self, credential: &str) -> Result<Channel, ConfigError> {
        let credential = self.settings.credential(credential)?;
        let (rate, bytes) = (self.settings.api.requests_per_second, self.settings.sync.batch_bytes);
        Ok(Channel::new(credential, self.client.clone(), rate, bytes))
    }

    /// Tells each channel which bodies the API has found too large of late.
    async fn recall_sizes(&self, targets: &[Target]) -> Result<(), JournalError> {
        if targets.is_empty() {
            return Ok(());
        }
        let entity_ids: Vec<String> = targets.iter().map(|target| target.entity_id.clone()).collect();
        let refused = self.journal.too_large(&entity_ids).await?;
        for target in targets {
            if let Some(&bytes) = refused.get(&target.entity_id) {
                target.channel.too_large(bytes);
            }
        }
        Ok(())
    }

    async fn work(
        &self,
        run_id: i64,
        whole_ledger: bool,
        selected: &[Entity],
        targets: Vec<Target>,
        unusable: Vec<Unusable>,
    ) -> Result<(Vec<EntityReport>, Unregistered), RunError> {
        let ids: Vec<String> = selected.iter().map(|entity| entity.entity_id.clone()).collect();
        let lanes = self.journal.lanes(&ids, &self.mapping).await?;
        let look = self.ledger.look(&progress(&lanes)).await?;
        // Before any lane begins: all who use a credential wait for what one of them was asked to wait.
        for target in &targets {
            if let Some(pause) = lanes.get(&target.entity_id).and_then(|lane| lane.not_before) {
                target.channel.pause(pause);
            }
        }
        let mut reports = Vec::new();
        let unreadable = look.unreadable.values().cloned();
        let unreadable = unreadable
            .map(|Unreadable { entity_id, message }| (entity_id, Problem::of_lane(Kind::Ledger, message)));
        // One that cannot be worked on anyway says the first reason.
        let unreadable = unreadable.filter(|(id, _)| unusable.iter().all(|(unusable, _)| unusable != id));
        for (entity_id, problem) in unreadable.chain(unusable.iter().cloned()) {
            reports.push(self.fail_lane(run_id, &entity_id, problem).await?);
        }
        let targets = targets.into_iter().filter(|target| !look.unreadable.contains_key(&target.entity_id));
        let has_work = |entity_id: &str| {
            let open = lanes.get(entity_id).is_some_and(|lane| lane.open.is_some());
            open || look.news(entity_id).has_news
        };
        let (busy, idle): (Vec<Target>, Vec<Target>) = targets.partition(|t| {
            // A watermark that does not fit is a failure even when nothing seems to wait behind it.
            let lane = lanes.get(&t.entity_id).cloned().unwrap_or_default();
            has_work(&t.entity_id) || self.fits(&t.entity_id, &lane, &look).is_err()
        });
        let idle: Vec<String> = idle.into_iter().map(|target| target.entity_id).collect();
        if !idle.is_empty() {
            // Now, since it is true now: the others may take hours.
            self.journal.found_idle(&idle, &self.mapping).await?;
        }
        self.recall_sizes(&busy).await?;
        // How many are worked on at once is up to the places; the others only wait.
        let worked = busy.iter().map(async |target| {
            let seen = lanes.get(&target.entity_id).cloned().unwrap_or_default();
            let worked = self.lane(run_id, target, &seen, &look).await;
            self.progress.end(&target.entity_id);
            worked
        });
        let busy_ids: Vec<String> = busy.iter().map(|target| target.entity_id.clone()).collect();
        let worked = self.counted_meanwhile(&busy_ids, join_all(worked)).await;
        for report in worked {
            reports.push(report?);
        }
        reports.extend(idle.iter().map(|entity_id| EntityReport::idle(entity_id)));
        self.count_pending(&mut reports, &idle).await?;
        let unregistered =
            if whole_ledger { self.unregistered(&lanes).await? } else { Unregistered::default() };
        if !unregistered.entity_ids.is_empty() {
            self.journal.note_unregistered(run_id, &unregistered.entity_ids).await?;
        }
        reports.sort_by(|a, b| a.entity_id.cmp(&b.entity_id));
        Ok((reports, unregistered))
    }

    /// Sends a request. `None`: after a stop there was no time left to wait for the answer.
    async fn answer(&self, channel: &Channel, signed: Signed) -> Option<Answer> {
        let mut cut_off = self.cut_off.clone();
        tokio::select! {
            biased;
            answer = channel.send(signed) => Some(answer),
            Ok(_) = cut_off.wait_for(|cut_off| *cut_off) => None,
        }
    }

    fn renewed_every(&self) -> Duration {
        (self.settings.sync.lease / 3).max(Duration::from_millis(50))
    }

    /// Gives signs of life for as long as the work of a run lasts, and ends the work when nobody can hear them any more.
    async fn alive<T>(
        &self,
        run_id: i64,
        work: impl Future<Output = Result<T, RunError>>,
    ) -> Result<T, RunError> {
        let mut heart = JoinSet::new();
        heart.spawn(heartbeat(self.clone(), run_id));
        // Beside it, so that no sign of life waits for that.
        let (database, every) = (self.database.clone(), self.renewed_every());
        heart.spawn(async move { match database.keep_forgetting(every).await {} });
        tokio::select! {
            worked = work => worked,
            Some(Ok(problem)) = heart.join_next() => Err(problem.into()),
        }
    }
}

/// Connects to the standby that pages are to be read from.
async fn standby(url: &SecretString, primary: &Database) -> Result<Database, LedgerError> {
    primary.beside(url).await.map_err(|problem| {
        LedgerError::Standby(format!(
            "the standby cannot be reached: {}; hint: check ELVEN_SYNC_LEDGER_URL, or leave it out to read from the \
             primary",
            crate::text::chain(&problem)
        ))
    })
}

/// What `sync_health` says, with what waits counted now, and who holds it up.
pub async fn health(
    settings: &Settings,
    database: &Database,
) -> Result<(Vec<Health>, Option<ledger::Writer>), RunError> {
    let journal =
        Journal::open(database.clone(), worker_name(), settings.sync.lease, settings.api.signature_window)
            .await?;
    let ledger = Ledger::open(database.clone(), None, &settings.ledger).await?;
    let mut entities = Health::list(database).await?;
    let ids: Vec<String> = entities.iter().map(|entity| entity.entity_id.clone()).collect();
    let lanes = journal.lanes(&ids, ledger.mapping_json()).await?;
    let mut refused = fit::refused(&ledger, &lanes);
    let (pending, mut unreadable) = ledger.pending(&progress(&fit::readable(&ledger, lanes))).await?;
    let mut pending: BTreeMap<String, Pending> =
        pending.into_iter().map(|p| (p.entity_id.clone(), p)).collect();
    for entity in &mut entities {
        if let Some(now) = pending.remove(&entity.entity_id) {
            entity.pending_rows = Some(now.rows);
            entity.oldest_pending_at = now.oldest_at;
            if matches!(entity.status.as_str(), "ok" | "behind") {
                (if now.rows > 0 { "behind" } else { "ok" }).clone_into(&mut entity.status);
            }
        }
        // How many wait cannot be told: what a run has counted some time ago is not said in its place.
        let unreadable = unreadable.remove(&entity.entity_id).map(|now| now.message);
        if let Some(why) = unreadable.or_else(|| refused.remove(&entity.entity_id)) {
            (entity.pending_rows, entity.oldest_pending_at) = (None, None);
            if matches!(entity.status.as_str(), "ok" | "behind") {
                "failing".clone_into(&mut entity.status);
            }
            entity.last_error.get_or_insert(why);
        }
    }
    warn_of(&ledger.without_trigger().await?);
    Ok((entities, ledger.oldest_writer().await?))
}

/// What is written without a stamp may lie behind the watermark, and nobody would know.
fn warn_of(without_trigger: &[String]) {
    for table in without_trigger {
        tracing::warn!(
            table,
            "no trigger that is enabled ALWAYS stamps what is written here, so rows may be passed over; hint: \
             `elven-sync attach`, which also says how to stamp what was written meanwhile"
        );
    }
}

fn progress(lanes: &BTreeMap<String, Lane>) -> Vec<Progress> {
    lanes.iter().map(|(entity_id, lane)| lane.progress(entity_id)).collect()
}

/// Gives signs of life, until that fails for longer than a database may be away.
async fn heartbeat(worker: Worker, run_id: i64) -> JournalError {
    let every = worker.renewed_every();
    // Run and leases begin with their whole time.
    let mut tick = tokio::time::interval_at(Instant::now() + every, every);
    loop {
        tick.tick().await;
        if let Err(problem) = around(Step::RenewLease, worker.journal.renew(run_id)).await {
            return problem;
        }
    }
}

/// Says that a stop was asked for, so much later.
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

/// Host, process and time of start: no two workers share a name.
fn worker_name() -> String {
    let host = gethostname::gethostname();
    format!("{}/{}/{:x}", host.to_string_lossy(), std::process::id(), chrono::Utc::now().timestamp_micros())
}
