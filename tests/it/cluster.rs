//! PostgreSQL clusters of a test's own, for what nobody may do to the server that all tests share: crash
//! it, fail over, upgrade it. They are made with that server's own programs.

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

/// Given on the command line, so that they hold for a standby and an upgraded cluster too. The dead take
/// nothing to the disk with them here, but the WAL writer sleeps: what no commit flushed is lost in a crash.
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

/// Ends a server, by the file with its process, and removes its folder when its input ends, which is when the
/// test was killed.
const WATCHDOG: &str =
    r#"trap '' INT; read -r _; (kill -s "$1" "$(head -n 1 "$0")"); sleep 2; rm -rf "$PWD""#;

/// PostgreSQL's programs, and whom to run them as, since they refuse root.
#[derive(Clone)]
pub struct Programs {
    folder: PathBuf,
    user: Option<(u32, u32)>,
}

impl Programs {
    /// Those of a running server; `folder` is one that belongs to whoever runs this test.
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

    /// One of them, or by its whole path another program that refuses root.
    pub fn command(&self, program: &str, dir: &Path) -> Command {
        let mut command = Command::new(self.folder.join(program));
        // Away from the variables that programs of PostgreSQL obey, and from a folder they may not enter.
        command.env_clear().env("LC_ALL", "C").current_dir(dir).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        command
    }

    /// Makes a folder that of whoever they run as, and starts the watchdog over the server that lives in it.
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

/// A cluster, and its server while that runs. Nothing is left of either when it is dropped.
pub struct Cluster {
    programs: Programs,
    dir: TempDir,
    port: u16,
    server: Option<Child>,
    watchdog: Child,
}

impl Cluster {
    /// A new one, of the version of this server.
    pub async fn new(like: &PgPool) -> Self {
        let dir = folder();
        let programs = Programs::of(like, dir.path()).await;
        Self::made_in(dir, programs).await.started().await
    }

    /// A hot standby of it, asynchronous.
    pub async fn standby(&self) -> Self {
        let standby = Self::unmade(folder(), self.programs.clone());
        let primary = self.url("postgres");
        standby
            .run(
                "pg_basebackup",
                &["-R", "-X", "stream", "-c", "fast", "--no-sync", "-D", "data", "-d", &primary],
            )
            .await;
        standby.started().await
    }

    /// What `pg_upgrade` makes of it: another cluster with the same databases. Both are of one version.
    pub async fn upgraded(mut self) -> Self {
        self.end(Signal::SIGINT);
        let upgraded = Self::made_in(folder(), self.programs.clone()).await;
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

    /// Dumps a database of it and restores that in another cluster.
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

    /// Copies the journal of a database over that in another cluster, as a logical cut-over does.
    pub async fn copy_journal_into(&self, other: &Self, database: &str) {
        let journal = self.dir.path().join("journal.sql");
        let journal = journal.to_str().unwrap();
        let dump =
            ["--data-only", "--disable-triggers", "-n", "elven_sync", "-T", "elven_sync._sqlx_migrations"];
        self.run("pg_dump", &[&dump[..], &["-f", journal, "-d", &self.url(database)]].concat()).await;
        let empty = "do $$ declare t regclass; begin
                         for t in select oid from pg_class where relnamespace = 'elven_sync'::regnamespace and relkind = 'r'
                                                             and relname <> '_sqlx_migrations'
                         loop execute format('truncate %s cascade', t); end loop; end $$";
        let restore = ["-v", "ON_ERROR_STOP=1", "-q", "-c", empty, "-f", journal];
        self.run("psql", &[&restore[..], &["-d", &other.url(database)]].concat()).await;
    }

    /// Where a database of it is; the same for as long as the cluster lives.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Runs one statement.
    pub async fn sql(&self, sql: &str) {
        let mut connection = PgConnection::connect(&self.url("postgres")).await.unwrap();
        connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
        connection.close().await.unwrap();
    }

    /// A single value as text.
    pub async fn text(&self, sql: &str) -> String {
        let mut connection = PgConnection::connect(&self.url("postgres")).await.unwrap();
        let value = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        value
    }

    /// Gives out that many transaction ids.
    pub async fn burn_transaction_ids(&self, count: u32) {
        let burn = "perform pg_current_xact_id(); commit";
        self.sql(&format!("do $$ begin for n in 1..{count} loop {burn}; end loop; end $$")).await;
    }

    /// Overwrites the beginning of the first block of a file of it, as a failing disk does. Its server must not run.
    pub fn damage(&self, path: &str) {
        let file = File::options().write(true).open(self.dir.path().join("data").join(path)).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; 100], 0).unwrap();
    }

    /// Ends the server without a word, as a crash does.
    pub fn crash(&mut self) {
        self.end(Signal::SIGQUIT);
    }

    /// Ends the server in good order, but does not wait for those who are connected.
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

    /// Starts the server again, where it was.
    pub async fn start(&mut self) {
        assert!(self.try_start().await, "{}", self.log());
    }

    /// Ends the other server as a crash does, and starts this one at its address.
    pub async fn take_the_place_of(&mut self, mut other: Self) {
        other.crash();
        self.end(Signal::SIGINT);
        self.port = other.port;
        self.start().await;
    }

    /// Waits until a standby has replayed all that this one has flushed.
    pub async fn caught_up_with(&self, primary: &Self) {
        let flushed = primary.text("select pg_current_wal_flush_lsn()::text").await;
        let replayed = format!("select (pg_last_wal_replay_lsn() >= '{flushed}')::text");
        eventually("the standby catches up", async || self.text(&replayed).await == "true").await;
    }

    /// Ends the replication to a standby: what its primary does from now on it never hears of.
    pub async fn stop_receiving(&self) {
        self.sql("alter system set primary_conninfo = ''").await;
        self.sql("select pg_reload_conf()").await;
        let receivers = "select count(*)::text from pg_stat_wal_receiver";
        eventually("the receiver ends", async || self.text(receivers).await == "0").await;
    }

    /// A standby goes on receiving, and does not show it.
    pub async fn pause_replay(&self) {
        self.sql("select pg_wal_replay_pause()").await;
    }

    pub async fn resume_replay(&self) {
        self.sql("select pg_wal_replay_resume()").await;
    }

    /// Makes a standby a primary.
    pub async fn promote(&self) {
        assert_eq!(self.text("select pg_promote()::text").await, "true", "{}", self.log());
    }

    fn unmade(dir: TempDir, programs: Programs) -> Self {
        let watchdog = programs.guard(dir.path(), "data/postmaster.pid", Signal::SIGQUIT);
        Self { programs, dir, port: 0, server: None, watchdog }
    }

    async fn made_in(dir: TempDir, programs: Programs) -> Self {
        let cluster = Self::unmade(dir, programs);
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
            // Only the server itself can take one without a race, so it tries one after another.
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

    /// Says whether the server accepts connections now; it has ended if not.
    async fn try_start(&mut self) -> bool {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = self.programs.command("postgres", self.dir.path());
        command.args(["-D", "data", "-p", &self.port.to_string()]);
        command.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let server = self.server.insert(command.into_std().spawn().unwrap());
        let status = self.dir.path().join("data/postmaster.pid");
        for _ in 0..3000 {
            // Its first line is the process, its eighth what that is up to.
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

    /// Ends the server: by `SIGINT` in good order, by `SIGQUIT` at once. Its processes are gone with it.
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

/// One below the ports that systems give to clients, so that it is still free after a crash.
pub fn some_port() -> u16 {
    20_000 + u16::try_from(RandomState::new().hash_one(0) % 12_000).unwrap()
}

/// A folder that whoever runs the server can reach.
pub fn folder() -> TempDir {
    tempfile::Builder::new().prefix("elven-cluster.").tempdir().unwrap()
}
