//! The connector behind a connection pooler: a real `PgBouncer` with transaction pooling and default settings. A
//! client has no session of its own: each of its transactions gets any free server connection, and `PgBouncer` before
//! 1.21 does not support prepared statements.

mod commands;
mod outages;
mod sessions;
mod settings;
mod workers;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::Signal;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool, Row};
use tempfile::TempDir;
use url::Url;

use crate::cluster::{Programs, folder, some_port};
use crate::support::TestEnv;

/// Server connections of a pooler for each database and user: fewer than a worker wants, so that clients share them.
const SERVER_CONNECTIONS: usize = 3;

/// A user to whom policies of row-level security apply.
const READER: &str = "elven_sync_pooled";

/// A `PgBouncer` in front of a server. Dropping it removes everything.
struct Pooler {
    programs: Programs,
    dir: TempDir,
    server: Url,
    port: u16,
    process: Option<Child>,
    watchdog: Child,
}

impl Pooler {
    /// Starts a pooler in front of the server of these connections, with further settings, one per line.
    async fn new(pool: &PgPool, settings: &str) -> Self {
        let dir = folder();
        let programs = Programs::of(pool, dir.path()).await;
        let watchdog = programs.guard(dir.path(), "pid", Signal::SIGKILL);
        let server = pool.connect_options().to_url_lossy();
        let mut pooler = Self { programs, dir, server, port: 0, process: None, watchdog };
        for _ in 0..10 {
            pooler.port = some_port();
            pooler.configure(settings);
            if pooler.try_start().await {
                return pooler;
            }
        }
        panic!("pgbouncer did not start: {}", pooler.log());
    }

    /// Round robin: a transaction gets the connection that was idle longest, not the one that the same client has
    /// just returned.
    fn configure(&self, settings: &str) {
        let (host, port) = (self.server.host_str().unwrap(), self.server.port().unwrap_or(5432));
        let (user, password) = (self.server.username(), self.server.password().unwrap_or_default());
        let file = |name: &str, text: String| fs::write(self.dir.path().join(name), text).unwrap();
        file("users", format!("\"{user}\" \"{password}\"\n\"{READER}\" \"\"\n"));
        file(
            "settings",
            format!(
                "[databases]\n* = host={host} port={port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
                 listen_port = {}\nunix_socket_dir =\nauth_type = trust\nauth_file = users\nadmin_users = {user}\n\
                 pidfile = pid\npool_mode = transaction\ndefault_pool_size = {SERVER_CONNECTIONS}\n\
                 server_round_robin = 1\n{settings}\n",
                self.port
            ),
        );
    }

    /// Starts the pooler. Returns whether it accepts connections; otherwise it has ended.
    async fn try_start(&mut self) -> bool {
        let seen = self.log().len();
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = self.programs.command(program().to_str().unwrap(), self.dir.path());
        command.arg("settings").stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(command.into_std().spawn().unwrap());
        for _ in 0..1000 {
            if self.log()[seen..].contains("process up") {
                return true;
            }
            if self.process.as_mut().unwrap().try_wait().unwrap().is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.kill();
        false
    }

    /// Kills the pooler, as a crash does.
    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().ok();
            process.wait().ok();
        }
    }

    /// Starts the pooler again at the same address.
    async fn start(&mut self) {
        assert!(self.try_start().await, "{}", self.log());
    }

    /// Returns the URL of a database through the pooler.
    fn url(&self, database: &str) -> String {
        let mut url = self.server.clone();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(self.port)).unwrap();
        url.set_path(database);
        url.set_query(None);
        url.to_string()
    }

    /// Opens a connection through the pooler without startup parameters.
    async fn connect(&self, database: &str) -> PgConnection {
        let options = PgConnectOptions::from_str(&self.url(database)).unwrap().extra_float_digits(None);
        options.ssl_mode(sqlx::postgres::PgSslMode::Disable).connect().await.unwrap()
    }

    /// Sends a command to the pooler itself (`PgBouncer` manual, "Admin console").
    async fn command(&self, command: &'static str) {
        self.connect("pgbouncer").await.execute(sqlx::raw_sql(command)).await.unwrap();
    }

    /// Returns the answer of every server connection, in the order of their process ids. All are in use at once, so
    /// that the pooler has its maximum number of them.
    async fn ask_each(&self, database: &str, sql: &str) -> Vec<String> {
        let mut clients = Vec::new();
        for _ in 0..SERVER_CONNECTIONS {
            let mut client = self.connect(database).await;
            client.execute("begin").await.unwrap();
            clients.push(client);
        }
        let mut answers = Vec::new();
        for client in &mut clients {
            let sql = format!("select pg_backend_pid(), ({sql})::text");
            let row = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(&mut *client).await.unwrap();
            answers.push((row.get::<i32, _>(0), row.get::<Option<String>, _>(1).unwrap_or_default()));
        }
        for mut client in clients {
            client.execute("rollback").await.unwrap();
            client.close().await.unwrap();
        }
        answers.sort();
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Pooler {
    #[expect(clippy::print_stderr, reason = "a failed test shows its standard error")]
    fn drop(&mut self) {
        self.kill();
        self.watchdog.kill().ok();
        self.watchdog.wait().ok();
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("the log of pgbouncer on port {}, newest first:\n{}", self.port, last.join("\n"));
        }
    }
}

/// Returns the path of pgbouncer. Some systems keep it where only root looks.
fn program() -> PathBuf {
    let find = "PATH=$PATH:/usr/sbin:/usr/local/sbin && command -v pgbouncer";
    let found = Command::new("/bin/sh").args(["-c", find]).stderr(Stdio::null()).output().unwrap().stdout;
    let found = String::from_utf8(found).unwrap();
    assert!(!found.is_empty(), "this test needs pgbouncer; hint: `make test` installs it");
    found.trim().into()
}

/// An environment whose connector uses its own pooler. The test itself does not.
async fn scene_behind(pool: PgPool, settings: &str) -> (TestEnv, Pooler) {
    let pooler = Pooler::new(&pool, settings).await;
    let mut scene = TestEnv::new(pool).await;
    let database = scene.pool.connect_options().get_database().unwrap().to_owned();
    scene.set("DATABASE_URL", &pooler.url(&database));
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "4");
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "4");
    // Opens all server connections before the connector starts. Otherwise the first ones that it uses would be the
    // only ones.
    pooler.ask_each(&database, "null").await;
    (scene, pooler)
}

/// Returns the name of the database of an environment.
fn database(scene: &TestEnv) -> String {
    scene.pool.connect_options().get_database().unwrap().to_owned()
}

/// Adds entities `e1`, `e2`, ..., with rows in several transactions.
async fn enter(scene: &TestEnv, entities: usize, rows: usize) {
    for n in 1..=entities {
        scene.entity(&format!("e{n}"), "UTC").await;
    }
    sqlx::raw_sql(AssertSqlSafe(format!(
        "do $$ begin for part in 0..4 loop
             insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'e' || e, format('e%s-%s', e, n), 'BTC', '2024-01-01Z', n
               from generate_series(1, {entities}) e, generate_series(1, {rows}) n where n % 5 = part;
             commit;
         end loop; end $$"
    )))
    .execute(&scene.pool)
    .await
    .unwrap();
}

/// Returns the minimum and the maximum number of times that a row arrived, and the number of rows.
fn arrivals(scene: &TestEnv) -> (usize, usize, usize) {
    let mut times = std::collections::BTreeMap::<String, usize>::new();
    for (account, _) in scene.balances() {
        *times.entry(account).or_default() += 1;
    }
    (
        times.values().copied().min().unwrap_or_default(),
        times.values().copied().max().unwrap_or_default(),
        times.len(),
    )
}
