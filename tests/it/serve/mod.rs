//! `serve`: a real process, asked over real HTTP.

mod cost;
mod frozen;
mod http;
mod lanes;
mod locks;
mod metrics;
mod outages;
mod reload;
mod schedule;
mod shutdown;
mod systemd;

use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::time::timeout;

use crate::support::{TestEnv, eventually, signal};

/// The most that a test waits for an answer or for the end of a process.
const WAIT_MAX: Duration = Duration::from_secs(40);

/// A running `serve`.
pub struct Service {
    child: Child,
    pub address: String,
    log: Arc<Mutex<String>>,
}

/// An answer of the service.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The headers in lower case, one per line.
    pub headers: String,
    pub body: String,
}

impl Service {
    /// Starts `serve` on a free port of loopback.
    pub async fn start(scene: &TestEnv, arguments: &[&str]) -> Self {
        Self::start_on(scene, "127.0.0.1:0", arguments).await
    }

    pub async fn start_on(scene: &TestEnv, listen: &str, arguments: &[&str]) -> Self {
        Self::start_in(scene, Path::new(env!("CARGO_TARGET_TMPDIR")), listen, arguments).await
    }

    /// Starts `serve` in a folder, and waits until it listens.
    pub async fn start_in(scene: &TestEnv, folder: &Path, listen: &str, arguments: &[&str]) -> Self {
        let arguments = [&["serve", "--listen", listen], arguments].concat();
        let plain = scene.command(&arguments);
        let variables = plain.as_std().get_envs().filter_map(|(name, value)| Some((name, value?)));
        // The tests may have been started with SIGHUP ignored, e.g. by nohup; the service then would ignore it, too.
        let mut command = tokio::process::Command::new("/usr/bin/env");
        command.arg("--default-signal=HUP").arg(plain.as_std().get_program()).args(&arguments);
        command.env_clear().envs(variables).kill_on_drop(true);
        command.current_dir(folder);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let written = log.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                *written.lock().unwrap() += &(line + "\n");
            }
        });
        let mut service = Self { child, address: String::new(), log };
        service.logs("serving").await;
        let log = service.log();
        let address = log.split("http://").nth(1).unwrap().split(' ').next().unwrap();
        service.address = address.replace("0.0.0.0", "127.0.0.1");
        service
    }

    /// Returns what was logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log has these words.
    pub async fn logs(&self, words: &str) {
        let has = async || self.log().contains(words);
        let waited = timeout(WAIT_MAX, eventually(words, has)).await;
        waited.unwrap_or_else(|_| panic!("never logged: {words}\n{}", self.log()));
    }

    pub fn signal(&self, name: Signal) {
        signal(&self.child, name);
    }

    /// Waits for the end. Returns the exit code and what was written to stdout.
    pub async fn ended(mut self) -> (Option<i32>, String) {
        let status =
            timeout(WAIT_MAX, self.child.wait()).await.unwrap_or_else(|_| panic!("it does not end")).unwrap();
        let mut printed = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut printed).await.unwrap();
        (status.code(), printed)
    }

    /// Stops the service, which must succeed.
    pub async fn stop(self) {
        self.signal(Signal::SIGTERM);
        let log = self.log.clone();
        let (code, _) = self.ended().await;
        assert_eq!(code, Some(0), "{}", log.lock().unwrap());
    }

    /// Whether the process still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub async fn get(&self, path: &str) -> Answer {
        get(&self.address, path, &[]).await
    }

    /// Waits until a path answers with this status.
    pub async fn answers(&self, path: &str, status: u16) {
        let what = format!("{path} answers {status}; the log is {}", self.log());
        eventually(&what, async || self.get(path).await.status == status).await;
    }

    /// Returns the value of a series of the metrics.
    pub async fn value(&self, series: &str) -> Option<String> {
        value(&self.get("/metrics").await.body, series)
    }
}

/// Returns the value of a series in metrics.
pub fn value(metrics: &str, series: &str) -> Option<String> {
    let value = |line: &str| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned);
    metrics.lines().find_map(value)
}

/// Requests a path, with some headers more.
pub async fn get(address: &str, path: &str, headers: &[&str]) -> Answer {
    let (request, host) = (format!("GET {path} HTTP/1.1"), format!("Host: {address}"));
    let lines = [&[request.as_str(), host.as_str()], headers, &["", ""]].concat();
    ask(address, &lines.join("\r\n")).await
}

/// Sends a request as it stands, and reads the answer to the end of the connection.
pub async fn ask(address: &str, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(WAIT_MAX, stream.read_to_end(&mut answer)).await;
    read.unwrap_or_else(|_| panic!("no answer to {request}")).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let headers = head.lines().skip(1).map(|line| line.to_lowercase() + "\n").collect();
    Answer { status, headers, body: body.to_owned() }
}

/// Adds a ledger row for entity `acme`.
pub async fn add_row(scene: &TestEnv, account: &str) {
    sqlx::query(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         values ('acme', $1, 'BTC', '2024-01-01Z', 1)",
    )
    .bind(account)
    .execute(&scene.pool)
    .await
    .unwrap();
}

/// Returns the accounts that the API accepted, in order.
pub fn accounts(scene: &TestEnv) -> Vec<String> {
    scene.balances().into_iter().map(|(account, _)| account).collect()
}

/// Waits until the API has accepted a row of this account.
pub async fn arrives(scene: &TestEnv, service: &Service, account: &str) {
    let what = format!("{account} arrives; the log is {}", service.log());
    eventually(&what, async || accounts(scene).iter().any(|known| known == account)).await;
}
