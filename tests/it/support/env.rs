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

/// As if each command came after the fence of the one before it: `sync_state.fence_until` is as long as NULL.
const FENCES_ARE_OVER: &str = "
    create or replace function fence_is_over() returns trigger language plpgsql as
        $$ begin new.fence_until := null; return new; end $$;
    drop trigger if exists fence_is_over on elven_sync.sync_state;
    create trigger fence_is_over before insert or update on elven_sync.sync_state
        for each row execute function fence_is_over()";

/// A migrated database with the default ledger, and a sandbox. A command does not wait for what one before it has sent and
/// may still arrive, since nothing does, unless [`TestEnv::with_fences`] says so.
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

    /// Another sandbox, and a connector to it, on a database that is migrated already.
    pub async fn connect_like(pool: PgPool, options: Options) -> Self {
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
            // Short, so that a test that waits for a dead worker does not wait long.
            ("ELVEN_SYNC_SYNC__LEASE", "1s"),
            ("ELVEN_SYNC_API__SIGNATURE_WINDOW", "300ms"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        Self { pool, url, sandbox, variables }
    }

    /// From now on fences last as long as they do: the signature window of [`TestEnv::beside`] and 3 s.
    pub async fn with_fences(self) -> Self {
        self.sql("drop trigger fence_is_over on elven_sync.sync_state").await;
        self
    }

    /// The same in a database that is made first, on whatever server the address names.
    pub async fn at(url: &str) -> Self {
        Postgres::create_database(url).await.unwrap();
        Self::new(PgPool::connect(url).await.unwrap()).await
    }

    /// From now on everybody goes to another address.
    pub async fn move_to(&mut self, url: &str) {
        self.pool.close().await;
        self.pool = PgPool::connect(url).await.unwrap();
        url.clone_into(&mut self.url);
        self.set("DATABASE_URL", url);
    }

    /// Sets a variable of the connector's environment.
    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    /// Removes one.
    pub fn unset(&mut self, name: &str) {
        self.variables.remove(name);
    }

    pub async fn entity(&self, entity_id: &str, timezone: &str) {
        let entity = Entity {
            entity_id: entity_id.to_owned(),
            timezone: timezone.to_owned(),
            credential: "default".to_owned(),
            paused: false,
        };
        assert!(Entity::add(&self.pool.clone().into(), &entity).await.unwrap());
    }

    pub async fn sql(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.pool).await.unwrap();
    }

    /// A single value as text.
    pub async fn text(&self, sql: &'static str) -> String {
        let value: Option<String> = sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap();
        value.unwrap_or_else(|| "NULL".to_owned())
    }

    /// The connector's settings, with some variables changed.
    pub fn settings(&self, changed: &[(&str, &str)]) -> Settings {
        let changed = changed.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let environment: Environment = self.variables.clone().into_iter().chain(changed).collect();
        Settings::load(&Flags::default(), environment).unwrap()
    }

    /// The database, as the connector uses it.
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

    /// The binary, with this scene's environment and nothing else.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_elven-sync"));
        command.args(arguments).env_clear().envs(&self.variables).kill_on_drop(true);
        command.current_dir(env!("CARGO_TARGET_TMPDIR"));
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command
    }

    pub async fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.unwrap()
    }

    /// A run that waits for the answer to its first batch.
    pub async fn held_run(&self) -> (Child, Gate) {
        let gate = Gate::new();
        self.sandbox.inject(Fault::HoldResponse(gate.clone()));
        let child = self.command(&["run"]).spawn().unwrap();
        let reached = tokio::time::timeout(Duration::from_secs(20), gate.reached()).await;
        assert!(reached.is_ok(), "the run sent nothing");
        (child, gate)
    }

    /// Accounts and balances received, in order.
    pub fn balances(&self) -> Vec<(String, String)> {
        self.sandbox.received().into_iter().map(|r| (r.entity_account_id, r.balance)).collect()
    }

    /// What was received, sorted, as text.
    pub fn received(&self) -> Vec<String> {
        let shown =
            |r: Received| format!("{} {} {} {}", r.entity_account_id, r.currency, r.datetime, r.balance);
        let mut received: Vec<String> = self.sandbox.received().into_iter().map(shown).collect();
        received.sort();
        received
    }
}

/// The envelope of the sandbox's answers that `make test` runs the tests under: `ELVEN_TEST_ANSWERS`, or else the bare one.
#[expect(clippy::disallowed_methods, reason = "for the person who runs the test, not for the connector")]
fn answers() -> Answers {
    std::env::var("ELVEN_TEST_ANSWERS")
        .map_or_else(|_| Answers::default(), |name| ValueEnum::from_str(&name, false).unwrap())
}

/// A number that the person who runs the tests has set.
#[expect(clippy::disallowed_methods, reason = "for the person who runs the test, not for the connector")]
pub fn variable(name: &str) -> Option<i64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}
