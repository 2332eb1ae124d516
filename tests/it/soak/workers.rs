//! Workers: each runs the binary repeatedly until it is told to stop.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::api::Api;
use super::checks;
use super::event_log::EventLog;
use crate::support::{TestEnv, stderr, stdout};

/// The pause between two runs of a worker, as a scheduler has it.
const PAUSE: Duration = Duration::from_millis(30);

pub struct Workers<'a> {
    scene: &'a TestEnv,
    event_log: &'a EventLog,
    all: Vec<Worker>,
    stopping: Cell<bool>,
}

#[derive(Default)]
struct Worker {
    runs: Cell<usize>,
    /// The process of the current run. It is cleared as soon as the process is reaped, so that its id is never
    /// signalled for another process.
    process: RefCell<Option<Pid>>,
}

/// The process of one run of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub worker: usize,
    pid: Pid,
}

impl<'a> Workers<'a> {
    pub fn new(scene: &'a TestEnv, event_log: &'a EventLog, count: usize) -> Self {
        let all = (0..count).map(|_| Worker::default()).collect();
        Self { scene, event_log, all, stopping: Cell::new(false) }
    }

    /// Runs all workers until [`stop`](Self::stop).
    pub async fn work(&self) {
        join_all((0..self.all.len()).map(|worker| self.work_as(worker))).await;
    }

    async fn work_as(&self, number: usize) {
        let worker = &self.all[number];
        while !self.stopping.get() {
            let mut command = self.run_as(&format!("{number}-{}", worker.runs.get()));
            let mut child = command.stdout(Stdio::null()).stderr(self.event_log.log(number)).spawn().unwrap();
            *worker.process.borrow_mut() = child.id().map(|id| Pid::from_raw(id.try_into().unwrap()));
            let status = child.wait().await.unwrap();
            *worker.process.borrow_mut() = None;
            worker.runs.set(worker.runs.get() + 1);
            let killed = [Signal::SIGKILL, Signal::SIGTERM]
                .map(|signal| Some(signal as i32))
                .contains(&status.signal());
            let ended = killed || [0, 1, 3, 143].map(Some).contains(&status.code());
            assert!(ended, "a run of worker {number} ended with {status}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Builds the command of a run. The process names itself to the server, so that `watch.sql` can identify it.
    fn run_as(&self, name: &str) -> tokio::process::Command {
        let mut command = self.scene.command(&["run"]);
        let url = &self.scene.url;
        let more = if url.contains('?') { '&' } else { '?' };
        command.env("DATABASE_URL", format!("{url}{more}options=-c%20soak.process%3D{name}"));
        command
    }

    /// Returns the running processes.
    pub fn processes(&self) -> Vec<Process> {
        let process = |(number, worker): (usize, &Worker)| {
            worker.process.borrow().map(|pid| Process { worker: number, pid })
        };
        self.all.iter().enumerate().filter_map(process).collect()
    }

    /// Signals a process, if it still runs. Returns whether it did.
    pub fn signal(&self, process: Process, signal: Signal) -> bool {
        let is_there = *self.all[process.worker].process.borrow() == Some(process.pid);
        if is_there {
            kill(process.pid, signal).unwrap();
        }
        is_there
    }

    /// Asks all workers to stop, frozen ones too.
    pub fn stop(&self) {
        self.stopping.set(true);
        for process in self.processes() {
            self.signal(process, Signal::SIGTERM);
            self.signal(process, Signal::SIGCONT);
        }
    }

    pub fn runs(&self) -> usize {
        self.all.iter().map(|worker| worker.runs.get()).sum()
    }

    /// Describes the running processes and their states.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for Process { worker, pid } in self.processes() {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or("");
            writeln!(text, "worker {worker}: process {pid} {state}").unwrap();
        }
        text
    }

    /// Runs until a run has nothing left to do and no error. Returns the number of runs.
    pub async fn run_until_all_is_done(&self, api: &Api) -> usize {
        for number in 1.. {
            let output = self.run_as(&format!("peace-{number}")).output().await.unwrap();
            api.collect();
            self.event_log.note(format!("a run in peace: {}, {}", output.status, stderr(&output)));
            assert!([0, 1, 3].map(Some).contains(&output.status.code()), "{}", output.status);
            let under_way = "select count(*)::text from elven_sync.sync_runs where status = 'running'";
            // A run leaves rows that its own attempt fenced to the next run.
            let is_all = stdout(&output).contains(" 0 pending");
            if output.status.success() && is_all && checks::text(&self.scene.url, under_way).await == "0" {
                return number;
            }
            tokio::time::sleep(PAUSE).await;
        }
        unreachable!()
    }
}
