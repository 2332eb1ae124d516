//! The environment of one test: a database, a sandbox, and the settings of a connector between them.

use std::collections::BTreeMap;
use std::process::Output;
use std::time::Duration;

use clap::ValueEnum;
use elven_sync::config::{Environment, Flags, Settings};
use elven_sync::database::Database;
use elven_sync::journal::{self, Entity};
use elven_sync::sandbox::{Answers, Credential, Fault, Gate, Options, Received, Sandbox};
use elven_sync::sync::{RunError, RunReport, Worker};
use sqlx::migrate::MigrateDatabase;
use sqlx::{ConnectOptions, PgPool, Postgres};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::{KEY, SECRET};

/// Removes every fence at once, as if each command came after the fence of the previous one.
const FENCES_ARE_OVER: &str = "
    create or replace function fence_is_over() returns trigger language plpgsql as
        $$ begin new.fence_until := null; return new; end $$;
    drop trigger if exists fence_is_over on elven_sync.sync_state;
    create trigger fence_is_over before insert or update on elven_sync.sync_state
        for each row execute function fence_is_over()";

/// The source that entities have when the tests run with version 4 of the import.
pub const SOURCE: &str = "test-source";

/// Gives each entity that is registered without a source the one of the sandbox.
const ENTITIES_HAVE_A_SOURCE: &str = "
    do $do$ begin
        if not exists (select from pg_trigger where tgname = 'pin_source') then
            create or replace function pin_source() returns trigger language plpgsql as
                $$ begin new.source_id := coalesce(new.source_id, 'test-source'); return new; end $$;
            create trigger pin_source before insert on elven_sync.entities for each row execute function pin_source();
        end if;
    end $do$";

/// A migrated database with the default ledger, a sandbox, and the settings of a connector between them.
///
/// Without [`TestEnv::with_fences`] there are no fences: no request of the sandbox arrives late.
pub struct TestEnv {
    pub pool: PgPool,
    pub url: String,
    pub sandbox: Sandbox,
    variables: BTreeMap<String, String>,
}

impl TestEnv {
    pub async fn new(pool: PgPool) -> Self {
        let database = Database::from(pool.clone());
        journal::migrate(&database).await.unwrap();
        journal::migrate_ledger(&database).await.unwrap();
        sqlx::raw_sql(FENCES_ARE_OVER).execute(&pool).await.unwrap();
        Self::connect_like(pool, Options::default()).await
    }

    /// Creates an environment with another sandbox on a database that is already migrated.
    pub async fn connect_like(pool: PgPool, mut options: Options) -> Self {
        options.sources.insert(SOURCE.to_owned());
        let credentials =
            vec![Credential::new("default", KEY, SECRET), Credential::new("second", "key-2", "secret-2")];
        let answers = if options.answers == Answers::default() { answers() } else { options.answers };
        let sandbox = Sandbox::start(Options { credentials, answers, ..options }).await.unwrap();
        let url = pool.connect_options().to_url_lossy().to_string();
        let variables = [
            ("DATABASE_URL", url.as_str()),
            ("ELVEN_API_URL", &sandbox.url()),
            ("ELVEN_API_KEY", KEY),
            ("ELVEN_API_SECRET", SECRET),
            // Short, because tests wait for the leases of dead workers.
            ("ELVEN_SYNC_SYNC__LEASE", "1s"),
            ("ELVEN_SYNC_API__SIGNATURE_WINDOW", "300ms"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        let mut scene = Self { pool, url, sandbox, variables };
        if is_version_4() {
            scene.sql(ENTITIES_HAVE_A_SOURCE).await;
            scene.set("ELVEN_SYNC_API__VERSION", "4");
        }
        scene
    }

    /// Enables fences. They last for the signature window of [`TestEnv::connect_like`] and 3 s.
    pub async fn with_fences(self) -> Self {
        self.sql("drop trigger fence_is_over on elven_sync.sync_state").await;
        self
    }

    /// Creates the database of a URL, and an environment in it.
    pub async fn at(url: &str) -> Self {
        Postgres::create_database(url).await.unwrap();
        Self::new(PgPool::connect(url).await.unwrap()).await
    }

    /// Connects the test and the connector to another address.
    pub async fn move_to(&mut self, url: &str) {
        self.pool.close().await;
        self.pool = PgPool::connect(url).await.unwrap();
        url.clone_into(&mut self.url);
        self.set("DATABASE_URL", url);
    }

    /// Returns a variable of the connector's environment.
    pub fn variable(&self, name: &str) -> String {
        self.variables.get(name).cloned().unwrap_or_default()
    }

    /// Sets a variable of the connector's environment.
    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    /// Removes a variable of the connector's environment.
    pub fn unset(&mut self, name: &str) {
        self.variables.remove(name);
    }

    pub async fn entity(&self, entity_id: &str, timezone: &str) {
        let entity = Entity {
            entity_id: entity_id.to_owned(),
            timezone: timezone.to_owned(),
            credential: "default".to_owned(),
            paused: false,
            source_id: None,
            freshness_s: Entity::FRESHNESS_S,
        };
        assert!(Entity::add(&self.pool.clone().into(), &entity).await.unwrap());
    }

    pub async fn sql(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.pool).await.unwrap();
    }

    /// Removes all digests, as if a version before them had written the journal.
    pub async fn forget_digests(&self) {
        self.sql(
            "update elven_sync.sync_batches set leaf = null, rejected_kinds = null;
             update elven_sync.sync_state set head = null, links = 0, printed = 0, folded = 0, running = null;
             update elven_sync.sync_backfill_lanes set running = null, closed = finished_at is not null;
             update elven_sync.sync_actions set link = null;
             delete from elven_sync.sync_links; delete from elven_sync.sync_prints",
        )
        .await;
    }

    /// Returns a single value as text, or `NULL`.
    pub async fn text(&self, sql: &'static str) -> String {
        let value: Option<String> = sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap();
        value.unwrap_or_else(|| "NULL".to_owned())
    }

    /// Returns the settings of the connector, with some variables changed.
    pub fn settings(&self, changed: &[(&str, &str)]) -> Settings {
        let changed = changed.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let environment: Environment = self.variables.clone().into_iter().chain(changed).collect();
        Settings::load(&Flags::default(), environment).unwrap()
    }

    /// Connects to the database as the connector does.
    pub async fn database(&self, connections_max: usize) -> Database {
        let settings = self.settings(&[]);
        let url = settings.database_url().unwrap();
        Database::connect(url, connections_max, settings.database.reconnect_timeout).await.unwrap()
    }

    /// Runs the connector in this process.
    pub async fn try_run(&self) -> Result<RunReport, RunError> {
        let settings = self.settings(&[]);
        let database = self.database(8).await;
        let (_sender, stop) = watch::channel(false);
        let worker = Worker::open(settings, database.clone(), stop).await?;
        let report = worker.run(&[]).await;
        database.close().await;
        report
    }

    pub async fn run(&self) -> RunReport {
        self.try_run().await.unwrap()
    }

    /// Builds a command of the binary, with only the variables of this environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.program(env!("CARGO_BIN_EXE_elven-sync"), arguments)
    }

    /// Builds a command of another program, with only the variables of this environment.
    pub fn program(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(&self.variables).kill_on_drop(true);
        command.current_dir(env!("CARGO_TARGET_TMPDIR"));
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command
    }

    pub async fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.unwrap()
    }

    /// Starts a run, and returns it when it waits for the answer to its first batch, with the gate of that answer.
    pub async fn held_run(&self) -> (Child, Gate) {
        let gate = Gate::new();
        self.sandbox.inject(Fault::HoldResponse(gate.clone()));
        let child = self.command(&["run"]).spawn().unwrap();
        let reached = tokio::time::timeout(Duration::from_secs(20), gate.reached()).await;
        assert!(reached.is_ok(), "the run sent nothing");
        (child, gate)
    }

    /// Returns the accounts and balances that the sandbox accepted, in order.
    pub fn balances(&self) -> Vec<(String, String)> {
        self.sandbox.received().into_iter().map(|r| (r.entity_account_id, r.balance)).collect()
    }

    /// Returns the accepted records as text, sorted.
    pub fn received(&self) -> Vec<String> {
        let shown =
            |r: Received| format!("{} {} {} {}", r.entity_account_id, r.currency, r.datetime, r.balance);
        let mut received: Vec<String> = self.sandbox.received().into_iter().map(shown).collect();
        received.sort();
        received
    }
}

/// Returns the envelope of the answers that `ELVEN_TEST_ANSWERS` names, or the bare one.
#[expect(clippy::disallowed_methods, reason = "for the person who runs the test, not for the connector")]
fn answers() -> Answers {
    std::env::var("ELVEN_TEST_ANSWERS")
        .map_or_else(|_| Answers::default(), |name| ValueEnum::from_str(&name, false).unwrap())
}

/// Whether the tests run with version 4 of the import: `ELVEN_TEST_API_VERSION=4`.
pub fn is_version_4() -> bool {
    variable("ELVEN_TEST_API_VERSION") == Some(4)
}

/// Returns the JSON of a record of version 3 as the version under test has it.
pub fn as_sent(record: &str) -> String {
    if is_version_4() {
        return record.replace(r#""currency":"#, &format!(r#""sourceId":"{SOURCE}","symbol":"#));
    }
    record.to_owned()
}

/// Returns a number from the environment of the test run.
#[expect(clippy::disallowed_methods, reason = "for the person who runs the test, not for the connector")]
pub fn variable(name: &str) -> Option<i64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}
