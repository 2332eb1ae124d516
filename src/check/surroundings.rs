//! What the checks look at. Each part is opened when a check needs it first, and once.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::OnceCell;

use super::finding::Unmade;
use crate::config::{Environment, Flags, Origins, Settings};
use crate::database::{Database, ServerFacts};
use crate::elven::List;
use crate::journal::{self, Entity, Journal, JournalFacts, Lane, client_name};
use crate::ledger::{Ledger, Sampled};
use crate::sync::{ApiProbe, ProbeOutcome, primary, probe_api, read_names};
use crate::text::chain;

/// What the checks look at.
pub(super) struct Surroundings {
    /// The settings, or why they cannot be used.
    pub(super) loaded: Result<Settings, String>,
    /// Where the settings come from.
    pub(super) origins: Origins,
    pub(super) environment: Environment,
    database: OnceCell<Result<Database, String>>,
    server: OnceCell<Result<ServerFacts, String>>,
    schema: OnceCell<Result<(), String>>,
    ledger: OnceCell<Result<Ledger, String>>,
    entities: OnceCell<Result<Vec<Entity>, String>>,
    journal: OnceCell<Result<JournalFacts, String>>,
    probes: OnceCell<Vec<ApiProbe>>,
    sample: OnceCell<Result<Vec<Sampled>, String>>,
    accounts: OnceCell<NameLists>,
    currencies: OnceCell<NameLists>,
}

/// The names that the API lists for each credential, or why it does not.
pub(super) type NameLists = BTreeMap<String, Result<BTreeSet<String>, String>>;

/// Connections for the checks, which are made one after the other.
const CONNECTIONS_MAX: usize = 3;

/// The most entities of which rows are sampled.
pub(super) const SAMPLED_ENTITIES_MAX: usize = 50;

/// The most credentials with which lists are read.
const LISTED_CREDENTIALS_MAX: usize = 10;

impl Surroundings {
    pub(super) fn new(flags: &Flags, environment: Environment) -> Self {
        Self {
            loaded: Settings::load(flags, environment.clone()).map_err(|problem| problem.to_string()),
            origins: Origins::read(flags, &environment),
            environment,
            database: OnceCell::new(),
            server: OnceCell::new(),
            schema: OnceCell::new(),
            ledger: OnceCell::new(),
            entities: OnceCell::new(),
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
            let connected =
                Database::connect(address, CONNECTIONS_MAX, settings.database.reconnect_timeout).await;
            connected.map_err(|problem| {
                format!(
                    "the database cannot be reached: {}; hint: check DATABASE_URL \
                     (postgres://user:password@host/database)",
                    chain(&problem)
                )
            })
        };
        self.database.get_or_init(connect).await.as_ref().map_err(Clone::clone)
    }

    pub(super) async fn database(&self) -> Result<&Database, Unmade> {
        self.settings()?;
        self.connected().await.map_err(|_| Unmade::Needs("database.connection"))
    }

    /// Returns the facts about the server.
    pub(super) async fn server(&self) -> Result<&ServerFacts, Unmade> {
        let database = self.database().await?;
        let read = || async { database.server_facts().await.map_err(|problem| chain(&problem)) };
        self.server.get_or_init(read).await.as_ref().map_err(|problem| Unmade::Failed(problem.clone()))
    }

    /// Returns whether the sync tables have the version of this program, or why not.
    pub(super) async fn schema(&self) -> Result<&Result<(), String>, Unmade> {
        let database = self.database().await?;
        let check = || async { journal::check_schema(database).await.map_err(|problem| chain(&problem)) };
        Ok(self.schema.get_or_init(check).await)
    }

    /// Returns the database, if the sync tables have the version of this program.
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
            Ledger::open(database.clone(), None, settings).await.map_err(|problem| chain(&problem))
        };
        Ok(self.ledger.get_or_init(open).await)
    }

    pub(super) async fn ledger(&self) -> Result<&Ledger, Unmade> {
        self.opened().await?.as_ref().map_err(|_| Unmade::Needs("ledger.table"))
    }

    /// Returns the registered entities.
    pub(super) async fn entities(&self) -> Result<&[Entity], Unmade> {
        let database = self.migrated().await?;
        let list = || async { Entity::list(database).await.map_err(|problem| chain(&problem)) };
        let listed = self.entities.get_or_init(list).await;
        listed.as_deref().map_err(|problem| Unmade::Failed(problem.clone()))
    }

    /// Returns the ids of the entities that runs work on.
    pub(super) async fn active_ids(&self) -> Result<Vec<String>, Unmade> {
        let entities = self.entities().await?;
        Ok(entities.iter().filter(|entity| !entity.paused).map(|entity| entity.entity_id.clone()).collect())
    }

    pub(super) async fn journal(&self) -> Result<&JournalFacts, Unmade> {
        let database = self.migrated().await?;
        let read = || async { JournalFacts::read(database).await.map_err(|problem| chain(&problem)) };
        self.journal.get_or_init(read).await.as_ref().map_err(|problem| Unmade::Failed(problem.clone()))
    }

    /// Opens the journal for a statement that only reads.
    pub(super) async fn open_journal(&self) -> Result<Journal, Unmade> {
        let (settings, database) = (self.settings()?, self.migrated().await?);
        let (lease, window) = (settings.sync.lease, settings.api.signature_window);
        Ok(Journal::open(database.clone(), client_name(), lease, window).await?)
    }

    /// Returns the states of all registered entities.
    pub(super) async fn lanes(&self) -> Result<BTreeMap<String, Lane>, Unmade> {
        let ledger = self.ledger().await?;
        let ids: Vec<String> = self.entities().await?.iter().map(|entity| entity.entity_id.clone()).collect();
        Ok(self.open_journal().await?.lanes(&ids, ledger.mapping_json()).await?)
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
        let (ledger, mut ids) = (self.ledger().await?, self.active_ids().await?);
        if ids.is_empty() {
            return Err(Unmade::NotApplicable("no entity is registered and active".to_owned()));
        }
        ids.truncate(SAMPLED_ENTITIES_MAX);
        let read = || async {
            ledger.sample(&ids).await.map_err(|problem| match Unmade::from(problem) {
                Unmade::Failed(message) => message,
                Unmade::NotApplicable(_) | Unmade::Needs(_) => String::new(),
            })
        };
        let sample = self.sample.get_or_init(read).await;
        let sample = sample.as_deref().map_err(|problem| Unmade::Failed(problem.clone()))?;
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
        let read = || async {
            let mut lists = NameLists::new();
            for name in names.into_iter().take(LISTED_CREDENTIALS_MAX) {
                let entries = read_names(settings, name, list).await;
                let ids = entries.map(|entries| entries.into_iter().map(|entry| entry.id).collect());
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
