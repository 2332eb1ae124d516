//! One cycle of the service: one run, as `elven-sync run` makes it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tracing::Span;

use super::configuration::ConfigurationFact;
use super::connected::{Connected, Target, connect_to};
use super::health::Checked;
use super::outcome::CycleOutcome;
use super::requests::AskedOf;
use super::shared::Shared;
use super::systemd;
use crate::config::Settings;
use crate::database::{Database, Transient};
use crate::journal::{JournalError, RunStatus, is_configuration_broken, note_configuration};
use crate::notify::{self, Meanwhile};
use crate::output;
use crate::sync::{
    ConnectError, EntityReport, RunError, RunReport, Stop, Worker, log_failure, naming_lock_holders, run_span,
};
use crate::text::chain;

/// The most failures of a run that are logged.
const FAILURES_MAX: usize = 20;

/// The end of a cycle.
#[derive(Debug)]
pub(super) struct CycleEnd {
    pub outcome: CycleOutcome,
    /// The connection for the next cycle.
    pub connected: Option<Connected>,
    /// Why the run could not work, if it could not.
    pub failure: Option<String>,
    /// The database knows whether the configuration has a mistake.
    pub fact_recorded: bool,
}

impl CycleEnd {
    pub(super) fn of(outcome: CycleOutcome) -> Self {
        Self { outcome, connected: None, failure: None, fact_recorded: false }
    }

    fn failed(outcome: CycleOutcome, failure: String) -> Self {
        Self { failure: Some(failure), ..Self::of(outcome) }
    }
}

/// Makes one run.
pub(super) async fn cycle(
    settings: Arc<Settings>,
    every: Duration,
    connected: Option<Connected>,
    asked_of: AskedOf,
    shared: Arc<Shared>,
    fact: ConfigurationFact,
) -> CycleEnd {
    let connected = match unless_stopped(&asked_of.end, connect(&settings, connected)).await {
        None => return CycleEnd::of(CycleOutcome::Ran(RunStatus::Interrupted)),
        Some(Ok(connected)) => connected,
        Some(Err(problem)) => {
            shared.health.note_database(Checked::Away);
            let failure = format!("the run could not begin: {}", chain(&problem));
            return CycleEnd::failed(CycleOutcome::DatabaseAway, failure);
        }
    };
    let stopping = asked_of.stop.clone();
    shared.health.note_statements(connected.database.statements().clone());
    let meanwhile = Meanwhile {
        settings: &settings.notify,
        database: &connected.database,
        every,
        stop: stopping.clone(),
    };
    // Boxed, because it is large.
    let run = Box::pin(run(&settings, &meanwhile, asked_of, &shared));
    let report = naming_lock_holders(&connected.database, &shared.recorded_wait, run).await;
    let fact_recorded = match &report {
        Ok(report) => {
            shared.health.note_database(Checked::Well);
            log(report);
            recorded(&connected.database, &fact).await
        }
        Err(problem) => {
            note_failure(&shared, problem);
            systemd::status("the last run failed");
            false
        }
    };
    notify::after_run(&settings.notify, &connected.database, &stopping, &report, true).await;
    match report {
        Ok(report) => {
            let (outcome, connected) = (CycleOutcome::Ran(report.status), Some(connected));
            CycleEnd { outcome, connected, failure: None, fact_recorded }
        }
        Err(problem) => {
            let outcome =
                if problem.is_transient() { CycleOutcome::DatabaseAway } else { CycleOutcome::Failed };
            // Connections that failed are not used again.
            CycleEnd::failed(outcome, format!("the run failed: {}", chain(&problem)))
        }
    }
}

/// Records whether the configuration has a mistake, if the database does not know that. Returns whether it knows.
async fn recorded(database: &Database, fact: &ConfigurationFact) -> bool {
    let record = async {
        let is_known = fact.is_recorded
            || fact.is_first && fact.mistake.is_none() && !is_configuration_broken(database).await?;
        if is_known { Ok(()) } else { note_configuration(database, fact.mistake.as_deref()).await }
    };
    let recorded: Result<(), JournalError> = record.await;
    if let Err(problem) = &recorded {
        tracing::warn!("the state of the configuration could not be recorded: {}", chain(problem));
    }
    recorded.is_ok()
}

async fn connect(settings: &Settings, connected: Option<Connected>) -> Result<Connected, ConnectError> {
    connect_to(Target::of_worker(settings)?, connected).await
}

async fn run(
    settings: &Settings,
    meanwhile: &Meanwhile<'_>,
    asked_of: AskedOf,
    shared: &Shared,
) -> Result<RunReport, RunError> {
    let AskedOf { stop, end, poll } = asked_of;
    let worker =
        Worker::open_for_run(settings.clone(), meanwhile.database.clone(), stop).await?.ended_by(end);
    shared.health.begin_run(worker.progress().clone());
    let watched = output::watch(worker.progress());
    // Boxed, so that the compiler need not look through all of a run to see that it can be a task.
    let run = worker.run_and_poll(&[], &poll).boxed();
    let report = meanwhile.tell_during(worker.progress(), run).await;
    watched.end().await;
    report
}

/// Notes what a failed run says about the database.
fn note_failure(shared: &Shared, problem: &RunError) {
    match problem {
        RunError::Journal(JournalError::Schema(why)) => {
            shared.health.note_database(Checked::WrongSchema(why.clone()));
        }
        problem if problem.is_transient() => shared.health.note_database(Checked::Away),
        _ => {}
    }
}

/// Logs what a run did, if it did something.
fn log(report: &RunReport) {
    let summary = output::run_summary(report);
    systemd::status(&summary);
    let run = report.run_id.map_or_else(Span::none, run_span);
    let _run = run.enter();
    for note in &report.notes {
        tracing::info!(target: "elven_sync::serve", "note: {note}");
    }
    let failures: Vec<&EntityReport> =
        report.entities.iter().filter(|entity| entity.failure().is_some()).collect();
    for entity in failures.iter().take(FAILURES_MAX) {
        log_failure(entity);
    }
    if let Some(more) = failures.len().checked_sub(FAILURES_MAX).filter(|more| *more > 0) {
        tracing::warn!("{more} more entities failed; hint: elven-sync status");
    }
    if report.status != RunStatus::Succeeded || report.did_something() {
        let print = report.print.as_ref();
        let (print_id, root) = (print.map(|print| print.print_id), print.map(|print| print.root.as_str()));
        tracing::info!(target: "elven_sync::serve", print_id, root, "{summary}");
    }
}

/// Waits for a future. `None`: the service was asked to stop first.
async fn unless_stopped<T>(stop: &Stop, waiting: impl Future<Output = T>) -> Option<T> {
    let mut stop = stop.clone();
    tokio::select! {
        biased;
        Ok(_) = stop.wait_for(|stop| *stop) => None,
        done = waiting => Some(done),
    }
}
