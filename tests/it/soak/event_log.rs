//! A log of all events, to find out why a soak failed.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

/// Number of lines that are shown of the log of each worker.
const LOG_LINES: usize = 40;

/// The events, and the logs of the workers.
pub struct EventLog {
    begun: Instant,
    entries: RefCell<Vec<(Duration, String)>>,
    logs: TempDir,
}

impl EventLog {
    pub fn begin() -> Self {
        Self { begun: Instant::now(), entries: RefCell::default(), logs: tempfile::tempdir().unwrap() }
    }

    pub fn note(&self, entry: impl Into<String>) {
        self.entries.borrow_mut().push((self.begun.elapsed(), entry.into()));
    }

    /// Opens the file to which a worker writes its standard error.
    pub fn log(&self, worker: usize) -> File {
        File::options().create(true).append(true).open(self.logs.path().join(worker.to_string())).unwrap()
    }
}

impl Drop for EventLog {
    #[expect(clippy::print_stderr, reason = "a failed test shows its standard error")]
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let mut text = String::new();
        for (at, entry) in self.entries.borrow().iter() {
            writeln!(text, "{:9.3} s  {entry}", at.as_secs_f64()).unwrap();
        }
        for worker in 0.. {
            let Ok(log) = fs::read_to_string(self.logs.path().join(worker.to_string())) else { break };
            let mut lines: Vec<&str> = log.lines().collect();
            lines.dedup();
            let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
            writeln!(text, "the last words of worker {worker}:\n{}", last.join("\n")).unwrap();
        }
        eprintln!("{text}");
    }
}

/// Describes the sessions of the server, and the violations that its watch triggers found.
pub async fn sessions(url: &str) -> String {
    let ask = async {
        let sql = "select concat_ws('  ', pid, application_name, state, wait_event, xact_start::time, query_start::time,
                                    pg_blocking_pids(pid)::text, left(regexp_replace(query, '\\s+', ' ', 'g'), 200))
                     from pg_stat_activity where datname = current_database()
                   union all (select concat_ws(' ', 'complaint:', at::time, process, what) from soak.complaints order by at limit 20)";
        let mut connection = PgConnection::connect(url).await?;
        sqlx::query_scalar::<_, String>(sql).fetch_all(&mut connection).await
    };
    match tokio::time::timeout(Duration::from_secs(5), ask).await {
        Ok(Ok(sessions)) => sessions.join("\n"),
        Ok(Err(problem)) => format!("the server says: {problem}"),
        Err(_) => "the server does not answer".to_owned(),
    }
}
