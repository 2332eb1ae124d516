//! PostgreSQL clusters of a single test, for faults that the shared server must not have: a crash, a failover, an
//! upgrade. The programs of the shared server make them.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::eventually;

/// Settings on the command line, so that they also hold for a standby and an upgraded cluster. A killed process
/// leaves its writes to the disk, but the WAL writer sleeps, so that a crash loses what no commit flushed.
const SETTINGS: [&str; 11] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "timezone=UTC",
    "fsync=off",
    "wal_writer_delay=10s",
    "wal_level=replica",
    "hot_standby=on",
    "max_wal_senders=4",
    "max_prepared_transactions=10",
    "max_connections=50",
    "shared_buffers=16MB",
];

/// Ends a server by its pid file and removes its folder when its input ends, which happens when the test was killed.
const WATCHDOG: &str =
    r#"trap '' INT; read -r _; (kill -s "$1" "$(head -n 1 "$0")"); sleep 2; rm -rf "$PWD""#;

/// The programs of PostgreSQL, and the user to run them as, since they refuse root.
#[derive(Clone)]
pub struct Programs {
    folder: PathBuf,
    user: Option<(u32, u32)>,
}

impl Programs {
    /// The programs of a running server. `folder` belongs to the user of this test.
    pub async fn of(server: &PgPool, mine: &Path) -> Self {
        let ask = async |sql| -> PathBuf {
            sqlx::query_scalar::<_, String>(sql).fetch_one(server).await.unwrap().into()
        };
        let folder = ask("select setting from pg_config where name = 'BINDIR'").await;
        let data = fs::metadata(ask("select current_setting('data_directory')").await);
        let am_root = fs::metadata(mine).unwrap().uid() == 0;
        assert!(
            folder.join("initdb").exists() && (data.is_ok() || !am_root),
            "this test starts servers of its own and needs PostgreSQL's programs on this machine, but the test \
             server has them in {}, which is not here",
            folder.display()
        );
        let user = data.ok().filter(|_| am_root).map(|data| (data.uid(), data.gid()));
        Self { folder, user }
    }

    /// Builds the command of one of the programs, or by its path of another program that refuses root.
    pub fn command(&self, program: &str, dir: &Path) -> Command {
        let mut command = Command::new(self.folder.join(program));
        // Without the environment variables of PostgreSQL programs, and outside a folder that they cannot enter.
        command.env_clear().env("LC_ALL", "C").current_dir(dir).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        command
    }

    /// Makes the user of the server the owner of a folder, and starts a watchdog over the server in it.
    pub fn guard(&self, dir: &Path, pid_file: &str, signal: Signal) -> Child {
        if let Some((user, group)) = self.user {
            chown(dir, Some(user), Some(group)).unwrap();
        }
        let mut watchdog = self.command("/bin/sh", dir);
        watchdog
            .args(["-c", WATCHDOG, pid_file, signal.as_str().trim_start_matches("SIG")])
            .stdin(Stdio::piped());
        watchdog.into_std().spawn().unwrap()
    }

    async fn run(&self, dir: &Path, program: &str, arguments: &[&str]) {
        let output = self.command(program, dir).args(arguments).output().await.unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&said));
    }
}

/// A cluster, and its server while that runs. Dropping it removes both.
pub struct Cluster {
    programs: Programs,
    dir: TempDir,
    port: u16,
    server: Option<Child>,
    watchdog: Child,
}

impl Cluster {
    /// Creates a cluster of the version of this server.
    pub async fn new(like: &PgPool) -> Self {
        let dir = folder();
        let programs = Programs::of(like, dir.path()).await;
        Self::initialize_in(dir, programs).await.started().await
    }

    /// Creates an asynchronous hot standby.
    pub async fn standby(&self) -> Self {
        let standby = Self::uninitialized(folder(), self.programs.clone());
        let primary = self.url("postgres");
        standby
            .run(
                "pg_basebackup",
                &["-R", "-X", "stream", "-c", "fast", "--no-sync", "-D", "data", "-d", &primary],
            )
            .await;
        standby.started().await
    }

    /// Upgrades with `pg_upgrade`: another cluster with the same databases. Both have one version.
    pub async fn upgraded(mut self) -> Self {
        self.end(Signal::SIGINT);
        let upgraded = Self::initialize_in(folder(), self.programs.clone()).await;
        let (programs, old) = (self.programs.folder.to_str().unwrap(), self.dir.path().join("data"));
        upgraded
            .run(
                "pg_upgrade",
                &[
                    "-U",
                    "postgres",
                    "-b",
                    programs,
                    "-B",
                    programs,
                    "-d",
                    old.to_str().unwrap(),
                    "-D",
                    "data",
                ],
            )
            .await;
        upgraded.started().await
    }

    /// Dumps a database and restores it in another cluster.
    pub async fn dump_into(&self, other: &Self, database: &str) {
        self.run("pg_dump", &["-Fc", "-f", "dump", "-d", &self.url(database)]).await;
        let dump = self.dir.path().join("dump");
        other
            .run(
                "pg_restore",
                &["--create", "--exit-on-error", "-d", &other.url("postgres"), dump.to_str().unwrap()],
            )
            .await;
    }

    /// Copies the journal of a database over the journal in another cluster, as a logical cut-over does.
    pub async fn copy_journal_into(&self, other: &Self, database: &str) {
        let journal = self.dir.path().join("journal.sql");
        let journal = journal.to_str().unwrap();
        let dump =
            ["--data-only", "--disable-triggers", "-n", "elven_sync", "-T", "elven_sync._sqlx_migrations"];
        self.run("pg_dump", &[&dump[..], &["-f", journal, "-d", &self.url(database)]].concat()).await;
        // All at once: to truncate entities records an action, which is truncated, too.
        let empty = "do $$ begin
                         execute (select format('truncate %s cascade', string_agg(oid::regclass::text, ', '))
                                    from pg_class where relnamespace = 'elven_sync'::regnamespace and relkind = 'r'
                                                        and relname <> '_sqlx_migrations'); end $$";
        let restore = ["-v", "ON_ERROR_STOP=1", "-q", "-c", empty, "-f", journal];
        self.run("psql", &[&restore[..], &["-d", &other.url(database)]].concat()).await;
    }

    /// Returns the URL of a database. It stays the same while the cluster exists.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Runs one statement.
    pub async fn sql(&self, sql: &str) {
        // A test may give the server a certificate that is not accepted.
        let url = format!("{}?sslmode=disable", self.url("postgres"));
        let mut connection = PgConnection::connect(&url).await.unwrap();
        connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
        connection.close().await.unwrap();
    }

    /// Returns a single value as text.
    pub async fn text(&self, sql: &str) -> String {
        let mut connection = PgConnection::connect(&self.url("postgres")).await.unwrap();
        let value = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        value
    }

    /// Writes a file of the data directory as the server's user, readable by that user alone.
    pub async fn write(&self, name: &str, text: &str) {
        let lines = format!("select unnest(string_to_array($text${text}$text$, E'\\n'))");
        self.sql(&format!("copy ({lines}) to program 'umask 077; rm -f {name}; cat > {name}'")).await;
    }

    /// Uses up a number of transaction ids.
    pub async fn burn_transaction_ids(&self, count: u32) {
        let burn = "perform pg_current_xact_id(); commit";
        self.sql(&format!("do $$ begin for n in 1..{count} loop {burn}; end loop; end $$")).await;
    }

    /// Overwrites the beginning of the first block of a file, as a failing disk does. The server must not run.
    pub fn damage(&self, path: &str) {
        let file = File::options().write(true).open(self.dir.path().join("data").join(path)).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; 100], 0).unwrap();
    }

    /// Kills the server, as a crash does.
    pub fn crash(&mut self) {
        self.end(Signal::SIGQUIT);
    }

    /// Shuts the server down, without waiting for its clients.
    pub async fn stop(&mut self) {
        let Some(server) = &mut self.server else { return };
        kill(Pid::from_raw(i32::try_from(server.id()).unwrap()), Signal::SIGINT).unwrap();
        for _ in 0..1000 {
            if server.try_wait().unwrap().is_some() {
                self.server = None;
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the server does not end: {}", self.log());
    }

    /// Starts the server again at the same address.
    pub async fn start(&mut self) {
        assert!(self.try_start().await, "{}", self.log());
    }

    /// Crashes the other server, and starts this one at its address.
    pub async fn replace(&mut self, mut other: Self) {
        other.crash();
        self.end(Signal::SIGINT);
        self.port = other.port;
        self.start().await;
    }

    /// Waits until this standby has replayed everything that the primary has flushed.
    pub async fn caught_up_with(&self, primary: &Self) {
        let flushed = primary.text("select pg_current_wal_flush_lsn()::text").await;
        let replayed = format!("select (pg_last_wal_replay_lsn() >= '{flushed}')::text");
        eventually("the standby catches up", async || self.text(&replayed).await == "true").await;
    }

    /// Ends the replication to this standby: it no longer receives changes of its primary.
    pub async fn stop_receiving(&self) {
        self.sql("alter system set primary_conninfo = ''").await;
        self.sql("select pg_reload_conf()").await;
        let receivers = "select count(*)::text from pg_stat_wal_receiver";
        eventually("the receiver ends", async || self.text(receivers).await == "0").await;
    }

    /// Pauses the replay: the standby still receives changes and does not show them.
    pub async fn pause_replay(&self) {
        self.sql("select pg_wal_replay_pause()").await;
    }

    pub async fn resume_replay(&self) {
        self.sql("select pg_wal_replay_resume()").await;
    }

    /// Promotes this standby to a primary.
    pub async fn promote(&self) {
        assert_eq!(self.text("select pg_promote()::text").await, "true", "{}", self.log());
    }

    fn uninitialized(dir: TempDir, programs: Programs) -> Self {
        let watchdog = programs.guard(dir.path(), "data/postmaster.pid", Signal::SIGQUIT);
        Self { programs, dir, port: 0, server: None, watchdog }
    }

    async fn initialize_in(dir: TempDir, programs: Programs) -> Self {
        let cluster = Self::uninitialized(dir, programs);
        cluster
            .run(
                "initdb",
                &["-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            )
            .await;
        cluster
    }

    async fn started(mut self) -> Self {
        for _ in 0..10 {
            // Only the server itself can take a port without a race, so ports are tried one after another.
            self.port = some_port();
            if self.try_start().await {
                return self;
            }
            if !self.log().contains("could not bind") {
                break;
            }
        }
        panic!("the server did not start: {}", self.log());
    }

    /// Starts the server. Returns whether it accepts connections; otherwise it has ended.
    async fn try_start(&mut self) -> bool {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = self.programs.command("postgres", self.dir.path());
        command.args(["-D", "data", "-p", &self.port.to_string()]);
        command.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let server = self.server.insert(command.into_std().spawn().unwrap());
        let status = self.dir.path().join("data/postmaster.pid");
        for _ in 0..3000 {
            // The first line is the process id, the eighth line its state.
            let status = fs::read_to_string(&status).unwrap_or_default();
            let status: Vec<&str> = status.lines().map(str::trim).collect();
            if status.first() == Some(&&*server.id().to_string()) && status.get(7) == Some(&"ready") {
                return true;
            }
            if server.try_wait().unwrap().is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.end(Signal::SIGQUIT);
        false
    }

    /// Ends the server and its processes: by `SIGINT` in good order, by `SIGQUIT` at once.
    fn end(&mut self, signal: Signal) {
        if let Some(mut server) = self.server.take() {
            kill(Pid::from_raw(i32::try_from(server.id()).unwrap()), signal).ok();
            server.wait().ok();
        }
    }

    async fn run(&self, program: &str, arguments: &[&str]) {
        self.programs.run(self.dir.path(), program, arguments).await;
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Cluster {
    #[expect(clippy::print_stderr, reason = "a failed test shows its standard error")]
    fn drop(&mut self) {
        self.end(Signal::SIGQUIT);
        self.watchdog.kill().ok();
        self.watchdog.wait().ok();
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("the log of the server on port {}, newest first:\n{}", self.port, last.join("\n"));
        }
    }
}

/// Returns a port below those that systems give to clients, so that it is still free after a crash.
pub fn some_port() -> u16 {
    20_000 + u16::try_from(RandomState::new().hash_one(0) % 12_000).unwrap()
}

/// Creates a folder that the user of the server can reach.
pub fn folder() -> TempDir {
    tempfile::Builder::new().prefix("elven-cluster.").tempdir().unwrap()
}
