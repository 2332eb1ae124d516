//! `run` and `status`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::connect::connect;
use super::exit_code::{FAILED, INCOMPLETE, SUCCEEDED};
use crate::config::Settings;
use crate::journal::{Entity, Health, RunStatus};
use crate::output;
use crate::sync::{Stop, Worker};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Only these entities
    #[arg(long = "entity", value_name = "ID", num_args = 1..)]
    entities: Vec<String>,
    /// Print what would be sent; send and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(options: Options, settings: Settings) -> anyhow::Result<u8> {
    let (stop, stopped_by) = stop_on_signal(settings.sync.shutdown_grace)?;
    let database = connect(&settings).await?;
    let worker = Worker::open(settings, database.clone(), stop).await?;
    let report = if options.dry_run {
        worker.dry_run(&options.entities).await?
    } else {
        let watched = output::watch(worker.progress());
        let report = worker.run(&options.entities).await;
        watched.end().await;
        report?
    };
    // Without a report of an entity, any registered entity is paused.
    let registered = if report.entities.is_empty() { Entity::list(&database).await? } else { Vec::new() };
    output::run_report(&report, registered.first().map(|entity| entity.entity_id.as_str()), options.json);
    Ok(match report.status {
        RunStatus::Succeeded => SUCCEEDED,
        RunStatus::Failed => FAILED,
        RunStatus::Incomplete => INCOMPLETE,
        // By convention: 128 plus the number of the signal.
        RunStatus::Interrupted => 128 + stopped_by.load(Ordering::Relaxed),
    })
}

/// The time that a run may take after the grace to record its end. With the default grace of 25 s it ends before a
/// scheduler sends SIGKILL, often after 30 s.
const RECORD_END_MAX: Duration = Duration::from_secs(3);

/// Turns the first SIGINT or SIGTERM into a request to stop. A second signal ends the process at once; so does the end
/// of the grace and [`RECORD_END_MAX`], if the process still runs then.
pub(super) fn stop_on_signal(grace: Duration) -> std::io::Result<(Stop, Arc<AtomicU8>)> {
    const SIGINT: u8 = 2;
    const SIGTERM: u8 = 15;
    let (sender, stop) = watch::channel(false);
    let stopped_by = Arc::new(AtomicU8::new(SIGTERM));
    let noted = stopped_by.clone();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => SIGINT,
                _ = terminate.recv() => SIGTERM,
            }
        };
        let first = next().await;
        noted.store(first, Ordering::Relaxed);
        tracing::warn!("stopping after the requests in flight; a second signal stops at once");
        let _ = sender.send(true);
        let second = tokio::time::timeout(grace + RECORD_END_MAX, next()).await;
        let last = second.unwrap_or_else(|_| {
            tracing::error!("the requests in flight were not finished in time; the next run recovers them");
            first
        });
        std::process::exit(i32::from(128 + last));
    });
    Ok((stop, stopped_by))
}

#[derive(Debug, clap::Args)]
pub(super) struct StatusOptions {
    /// Trace this ledger row: which batch sent it, or why it was not sent
    #[arg(long, value_name = "LEDGER_ID")]
    row: Option<String>,
    /// Only the row of this entity
    #[arg(long, value_name = "ID", requires = "row")]
    entity: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn status(settings: &Settings, options: StatusOptions) -> anyhow::Result<u8> {
    let database = connect(settings).await?;
    if let Some(row) = &options.row {
        let reports = crate::audit::of_row(settings, &database, row, options.entity.as_deref()).await?;
        output::row_trace::report(row, &reports, options.json);
        let well = !reports.is_empty() && !reports.iter().any(|report| report.verdict.needs_a_person());
        return Ok(if well { SUCCEEDED } else { INCOMPLETE });
    }
    let report = crate::admin::health(settings, &database).await?;
    output::health(&report, options.json);
    Ok(if report.entities.iter().any(Health::needs_a_person) { INCOMPLETE } else { SUCCEEDED })
}
