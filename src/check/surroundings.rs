//! What the checks look at. Each part is opened when a check needs it first, and once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::OnceCell;

use super::connection::{LIMITS, refuses_transactions, stay_together};
use super::finding::{Unmade, foreign, size};
use crate::config::{Environment, Flags, Origins, Settings};
use crate::database::{Database, ServerFacts, Waits};
use crate::elven::List;
use crate::journal::{self, Entity, Journal, JournalError, JournalFacts, Lane, MissingGrants, client_name};
use crate::ledger::attach::{self, Step, Wanted};
use crate::ledger::{Ledger, LedgerError, LedgerFacts, Sampled};
use crate::sync::{ApiProbe, ConnectError, ProbeOutcome, primary, probe_api, read_names};
use crate::text::chain;

/// What the checks look at.
pub(super) struct Surroundings {
    /// The settings, or why they cannot be used.
    pub(super) loaded: Result<Settings, String>,
    /// Where the settings come from.
    pub(super) origins: Origins,
    pub(super) environment: Environment,
    /// For whom a statement has waited last. The result of a check may be known since an earlier one.
    pub(super) waits: Mutex<Option<Waits>>,
    /// The check that has found the sync tables locked.
    pub(super) locked_by: OnceLock<&'static str>,
    database: OnceCell<Result<Database, String>>,
    processes: Read<Vec<(i32, i32)>>,
    server: Read<ServerFacts>,
    grants: Read<Option<MissingGrants>>,
    schema: Read<Result<(), String>>,
    ledger: Read<Result<Ledger, String>>,
    facts: Read<LedgerFacts>,
    readable: Read<()>,
    index: Read<Index>,
    entities: Read<Vec<Entity>>,
    lanes: Read<BTreeMap<String, Lane>>,
    journal: Read<JournalFacts>,
    probes: OnceCell<Vec<ApiProbe>>,
    sample: Read<Vec<Sampled>>,
    accounts: OnceCell<NameLists>,
    currencies: OnceCell<NameLists>,
}

/// What was read once, or why that failed.
type Read<T> = OnceCell<Result<T, Unmade>>;

/// The index that runs use.
#[derive(Debug)]
pub(super) struct Index {
    /// What is missing of it. Empty: nothing.
    pub(super) missing: Vec<String>,
    /// The size of the ledger, if something is missing: what a statement reads that would use the index.
    pub(super) bytes: i64,
}

/// The names that the API lists for each credential, or why it does not.
pub(super) type NameLists = BTreeMap<String, Result<BTreeSet<String>, String>>;

/// Connections for the checks, which are made one after the other, and for a look at locks.
const CONNECTIONS_MAX: usize = 3;

/// For how long a lost database is waited for.
const RECONNECT_MAX: Duration = Duration::from_secs(3);

/// A ledger of at most this size is read without the index, in bytes.
const READ_WHOLE_MAX: i64 = 64 << 20;

/// The most entities of which rows are sampled.
pub(super) const SAMPLED_ENTITIES_MAX: usize = 50;

/// The most credentials with which lists are read.
const LISTED_CREDENTIALS_MAX: usize = 10;

impl Surroundings {
    pub(super) fn new(flags: &Flags, environment: Environment) -> Self {
        // The name tells the sessions of this check from others, to find those that wait.
        let flags = Flags { activity: format!("check {:08x}", fastrand::u32(..)), ..flags.clone() };
        Self {
            loaded: Settings::load(&flags, environment.clone()).map_err(|problem| problem.to_string()),
            origins: Origins::read(&flags, &environment),
            environment,
            waits: Mutex::default(),
            locked_by: OnceLock::new(),
            database: OnceCell::new(),
            processes: OnceCell::new(),
            server: OnceCell::new(),
            grants: OnceCell::new(),
            schema: OnceCell::new(),
            ledger: OnceCell::new(),
            facts: OnceCell::new(),
            readable: OnceCell::new(),
            index: OnceCell::new(),
            entities: OnceCell::new(),
            lanes: OnceCell::new(),
            journal: OnceCell::new(),
            probes: OnceCell::new(),
            sample: OnceCell::new(),
            accounts: OnceCell::new(),
            currencies: OnceCell::new(),
        }
    }

    pub(super) fn settings(&self) -> Result<&Settings, Unmade> {
        self.loaded.as_ref().map_err(|_| Unmade::Needs("configuration.load"))
    }

    /// Connects, or returns why that failed.
    pub(super) async fn connected(&self) -> Result<&Database, String> {
        let connect = || async {
            let settings = self.settings().map_err(|_| String::new())?;
            let address = primary(settings).map_err(|problem| problem.to_string())?;
            let reconnect_timeout = settings.database.reconnect_timeout.min(RECONNECT_MAX);
            match Database::connect(address, CONNECTIONS_MAX, reconnect_timeout).await {
                Ok(database) => Ok(database.limited(LIMITS)),
                Err(problem) => Err(told(&ConnectError::from(problem))),
            }
        };
        self.database.get_or_init(connect).await.as_ref().map_err(Clone::clone)
    }

    /// Returns the connection, if there is one.
    pub(super) fn connected_already(&self) -> Option<&Database> {
        self.database.get()?.as_ref().ok()
    }

    /// Returns the server processes of the statements of a few transactions.
    pub(super) async fn processes(&self) -> Result<&Result<Vec<(i32, i32)>, Unmade>, Unmade> {
        self.settings()?;
        let database = self.connected().await.map_err(|_| Unmade::Needs("database.connection"))?;
        let read = || async { Ok(database.processes_of_transactions().await?) };
        Ok(self.processes.get_or_init(read).await)
    }

    pub(super) async fn database(&self) -> Result<&Database, Unmade> {
        let is_split = match self.processes().await? {
            Ok(processes) => !stay_together(processes),
            Err(Unmade::Failed(refused)) => refuses_transactions(refused),
            Err(_) => false,
        };
        if is_split {
            return Err(Unmade::Needs("database.pooler"));
        }
        self.connected().await.map_err(|_| Unmade::Needs("database.connection"))
    }

    /// Returns the facts about the server.
    pub(super) async fn server(&self) -> Result<&ServerFacts, Unmade> {
        let database = self.database().await?;
        let read = || async { Ok(database.server_facts().await?) };
        self.server.get_or_init(read).await.as_ref().map_err(Clone::clone)
    }

    /// Returns what the role lacks on the sync tables. `None`: there are none.
    pub(super) async fn grants(&self) -> Result<Option<&MissingGrants>, Unmade> {
        let database = self.database().await?;
        let read = || async { Ok(journal::missing_grants(database).await?) };
        self.grants.get_or_init(read).await.as_ref().map(Option::as_ref).map_err(Clone::clone)
    }

    /// Returns whether the sync tables have the version of this program, or why not.
    pub(super) async fn schema(&self) -> Result<&Result<(), String>, Unmade> {
        let database = self.database().await?;
        if self.grants().await?.is_some_and(|missing| missing.may_not_read) {
            return Err(Unmade::Needs("database.privileges"));
        }
        if let Some(by) = self.locked_by.get() {
            return Err(Unmade::Needs(by));
        }
        let check = || async {
            match journal::check_schema(database).await {
                Err(problem @ JournalError::Database(_)) => Err(problem.into()),
                checked => Ok(checked.map_err(|problem| chain(&problem))),
            }
        };
        self.schema.get_or_init(check).await.as_ref().map_err(Clone::clone)
    }

    /// Returns the database, if the sync tables have the version of this program and can be read.
    pub(super) async fn migrated(&self) -> Result<&Database, Unmade> {
        if self.schema().await?.is_err() {
            return Err(Unmade::Needs("database.schema"));
        }
        self.database().await
    }

    /// Opens the ledger, or returns why that failed.
    pub(super) async fn opened(&self) -> Result<&Result<Ledger, String>, Unmade> {
        let (settings, database) = (self.settings()?, self.database().await?);
        let open = || async {
            match Ledger::open(database.clone(), None, settings).await {
                Err(problem @ LedgerError::Database(_)) => Err(problem.into()),
                opened => Ok(opened.map_err(|problem| chain(&problem))),
            }
        };
        self.ledger.get_or_init(open).await.as_ref().map_err(Clone::clone)
    }

    /// Returns the ledger, for what the catalogue says of it.
    pub(super) async fn ledger(&self) -> Result<&Ledger, Unmade> {
        self.opened().await?.as_ref().map_err(|_| Unmade::Needs("ledger.table"))
    }

    /// Returns the ledger, for statements that need the rights on it although they read no row.
    pub(super) async fn permitted(&self) -> Result<&Ledger, Unmade> {
        if self.ledger_facts().await?.missing_grants.is_some() {
            return Err(Unmade::Needs("ledger.privileges"));
        }
        self.ledger().await
    }

    /// Returns what the catalogue says of the ledger.
    pub(super) async fn ledger_facts(&self) -> Result<&LedgerFacts, Unmade> {
        let ledger = self.ledger().await?;
        let read = || async { Ok(ledger.facts().await?) };
        self.facts.get_or_init(read).await.as_ref().map_err(Clone::clone)
    }

    /// Returns whether the rows of the ledger can be read, or why not.
    pub(super) async fn readable(&self) -> Result<&Result<(), Unmade>, Unmade> {
        let ledger = self.ledger().await?;
        let read = || async { Ok(ledger.try_reading().await?) };
        Ok(self.readable.get_or_init(read).await)
    }

    /// Returns the check that says why the rows of the ledger cannot be read, if they cannot.
    pub(super) async fn unreadable_by(&self) -> Result<Option<&'static str>, Unmade> {
        if self.readable().await?.is_ok() {
            return Ok(None);
        }
        let facts = self.ledger_facts().await?;
        Ok(Some(if facts.missing_grants.is_some() {
            "ledger.privileges"
        } else if facts.filtered.is_some() {
            "ledger.row_security"
        } else {
            "ledger.readable"
        }))
    }

    /// Returns the ledger, if its rows can be read.
    pub(super) async fn rows(&self) -> Result<&Ledger, Unmade> {
        let ledger = self.ledger().await?;
        match self.unreadable_by().await? {
            Some(id) => Err(Unmade::Needs(id)),
            None => Ok(ledger),
        }
    }

    /// Returns the index that runs use.
    pub(super) async fn index(&self) -> Result<&Index, Unmade> {
        let (settings, database) = (self.settings()?, self.database().await?);
        let ledger = self.ledger().await?;
        if self.ledger_facts().await?.is_view {
            let why = "the ledger is a view; its tables have the indexes";
            return Err(Unmade::NotApplicable(why.to_owned()));
        }
        let read = || async {
            let wanted = Wanted { lock_timeout: LIMITS.lock, backfill_index: false };
            let plan = attach::plan(database, &settings.ledger, &wanted).await?;
            let missing = plan.steps.into_iter().filter(Step::is_of_index).map(|step| step.why);
            let missing: Vec<String> = missing.collect();
            let bytes = if missing.is_empty() { 0 } else { ledger.bytes().await? };
            Ok(Index { missing, bytes })
        };
        self.index.get_or_init(read).await.as_ref().map_err(Clone::clone)
    }

    /// Returns the ledger for statements that would read it whole without the index that runs use.
    pub(super) async fn indexed_rows(&self) -> Result<&Ledger, Unmade> {
        let ledger = self.rows().await?;
        if let Ok(Index { missing, bytes }) = self.index().await
            && !missing.is_empty()
            && *bytes > READ_WHOLE_MAX
        {
            return Err(Unmade::Prevented(format!(
                "needs ledger.index, which failed: without it, this check would read the whole ledger ({})",
                size(*bytes)
            )));
        }
        Ok(ledger)
    }

    /// Returns the registered entities.
    pub(super) async fn entities(&self) -> Result<&[Entity], Unmade> {
        let database = self.migrated().await?;
        let list = || async { Ok(Entity::list(database).await?) };
        self.entities.get_or_init(list).await.as_deref().map_err(Clone::clone)
    }

    /// Returns the ids of the entities that runs work on.
    pub(super) async fn active_ids(&self) -> Result<Vec<String>, Unmade> {
        let entities = self.entities().await?;
        Ok(entities.iter().filter(|entity| !entity.paused).map(|entity| entity.entity_id.clone()).collect())
    }

    pub(super) async fn journal(&self) -> Result<&JournalFacts, Unmade> {
        let database = self.migrated().await?;
        let read = || async { Ok(JournalFacts::read(database).await?) };
        self.journal.get_or_init(read).await.as_ref().map_err(Clone::clone)
    }

    /// Opens the journal for a statement that only reads.
    pub(super) async fn open_journal(&self) -> Result<Journal, Unmade> {
        let (settings, database) = (self.settings()?, self.migrated().await?);
        let (lease, window) = (settings.sync.lease, settings.api.signature_window);
        Ok(Journal::open(database.clone(), client_name(), lease, window).await?)
    }

    /// Returns the states of all registered entities.
    pub(super) async fn lanes(&self) -> Result<&BTreeMap<String, Lane>, Unmade> {
        let ledger = self.ledger().await?;
        let ids: Vec<String> = self.entities().await?.iter().map(|entity| entity.entity_id.clone()).collect();
        let read = || async { Ok(self.open_journal().await?.lanes(&ids, ledger.mapping_json()).await?) };
        self.lanes.get_or_init(read).await.as_ref().map_err(Clone::clone)
    }

    /// Returns the names of the credentials in use: those of registered entities. Without a database, those of the
    /// configuration.
    pub(super) async fn credentials(&self) -> Result<Vec<String>, Unmade> {
        let settings = self.settings()?;
        if let Ok(entities) = self.entities().await
            && !entities.is_empty()
        {
            return Ok(Entity::credentials(entities));
        }
        let mut names: Vec<String> = settings.credentials.keys().cloned().collect();
        let has_default = ["ELVEN_API_KEY", "ELVEN_API_KEY_FILE"].iter().any(|name| {
            self.environment.get(name).is_some() && !settings.credentials.contains_key("default")
        });
        if has_default || names.is_empty() {
            names.push("default".to_owned());
        }
        Ok(names)
    }

    /// Asks the API with each credential, once. Returns the answers to those that can be read.
    pub(super) async fn probes(&self) -> Result<&[ApiProbe], Unmade> {
        let (settings, names) = (self.settings()?, self.credentials().await?);
        Ok(self.probes.get_or_init(|| probe_api(settings, &names)).await)
    }

    /// Returns whether the API answered to some credential.
    pub(super) async fn is_reachable(&self) -> Result<bool, Unmade> {
        let failed = |probe: &ApiProbe| {
            matches!(probe.outcome, ProbeOutcome::Unreachable(_) | ProbeOutcome::OtherApi(_))
        };
        Ok(!self.probes().await?.iter().all(failed))
    }

    /// Returns a sample of the newest rows of the first entities.
    pub(super) async fn sample(&self) -> Result<&[Sampled], Unmade> {
        let (ledger, mut ids) = (self.indexed_rows().await?, self.active_ids().await?);
        if ids.is_empty() {
            return Err(Unmade::NotApplicable("no entity is registered and active".to_owned()));
        }
        ids.truncate(SAMPLED_ENTITIES_MAX);
        let read = || async { Ok(ledger.sample(&ids).await?) };
        let sample = self.sample.get_or_init(read).await.as_deref().map_err(Clone::clone)?;
        if sample.is_empty() {
            return Err(Unmade::NotApplicable("the ledger has no rows of registered entities".to_owned()));
        }
        Ok(sample)
    }

    /// Reads the lists of a kind from the API, one after the other, with the credentials of the first entities.
    pub(super) async fn lists(&self, list: List) -> Result<&NameLists, Unmade> {
        let (settings, entities) = (self.settings()?, self.entities().await?);
        let active = entities.iter().filter(|entity| !entity.paused).take(SAMPLED_ENTITIES_MAX);
        let names: BTreeSet<&String> = active.map(|entity| &entity.credential).collect();
        let probes = self.probes().await?;
        let read = || async {
            let mut lists = NameLists::new();
            for name in names.into_iter().take(LISTED_CREDENTIALS_MAX) {
                let probe = probes.iter().find(|probe| probe.credential == *name);
                let ids = if let Some(why) = probe.and_then(|probe| probe.outcome.keeps_from_listing()) {
                    Err(why.to_owned())
                } else {
                    let entries = read_names(settings, name, list).await;
                    entries.map(|entries| entries.into_iter().map(|entry| entry.id).collect())
                };
                lists.insert(name.clone(), ids);
            }
            lists
        };
        let cell = if list == List::Accounts { &self.accounts } else { &self.currencies };
        Ok(cell.get_or_init(read).await)
    }

    pub(super) async fn close(&self) {
        if let Some(Ok(database)) = self.database.get() {
            database.close().await;
        }
    }
}

/// Returns why there is no connection, with the remedy at the end.
fn told(problem: &ConnectError) -> String {
    let said = problem.to_string();
    match (said.split_once("; hint: "), std::error::Error::source(problem)) {
        (Some((said, hint)), Some(source)) => format!("{said}: {}; hint: {hint}", foreign(&chain(source))),
        _ => said,
    }
}
