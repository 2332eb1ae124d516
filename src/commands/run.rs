//! `run` and `status`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::connect::connect;
use super::exit_code::{FAILED, INCOMPLETE, SUCCEEDED};
use crate::audit::{RecordKey, of_row, rows_of_key};
use crate::config::Settings;
use crate::database::Database;
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

impl Options {
    /// Whether people run the command for what it prints.
    pub(super) fn prints_its_product(&self) -> bool {
        self.dry_run
    }
}

pub(super) async fn run(options: Options, settings: Settings) -> anyhow::Result<u8> {
    let (stop, stopped_by) = stop_on_signal(settings.sync.shutdown_grace)?;
    let database = connect(&settings).await?;
    let caution = settings.ledger.zone_caution();
    let worker = Worker::open(settings, database.clone(), stop).await?;
    let report = if options.dry_run {
        let mut report = worker.dry_run(&options.entities).await?;
        report.notes.extend(caution);
        report
    } else {
        let watched = output::watch(worker.progress());
        let report = worker.run(&options.entities).await;
        watched.end().await;
        report?
    };
    // Without a report of an entity, each entity that was asked for is paused.
    let mut paused = if report.entities.is_empty() { Entity::list(&database).await? } else { Vec::new() };
    let is_asked = |id: &String| options.entities.is_empty() || options.entities.contains(id);
    paused.retain(|entity| entity.paused && is_asked(&entity.entity_id));
    let paused: Vec<&str> = paused.iter().map(|entity| entity.entity_id.as_str()).collect();
    output::run_report(&report, &paused, options.json);
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

/// Turns the first SIGHUP, SIGINT or SIGTERM into a request to stop. A second signal ends the process at once; so does
/// the end of the grace and [`RECORD_END_MAX`], if the process still runs then.
pub(super) fn stop_on_signal(grace: Duration) -> std::io::Result<(Stop, Arc<AtomicU8>)> {
    const SIGHUP: u8 = 1;
    const SIGINT: u8 = 2;
    const SIGTERM: u8 = 15;
    let (sender, stop) = watch::channel(false);
    let stopped_by = Arc::new(AtomicU8::new(SIGTERM));
    let noted = stopped_by.clone();
    // Under nohup, the end of the session must not stop the work.
    let mut hangup = if ignores(SIGHUP) { None } else { Some(signal(SignalKind::hangup())?) };
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        let mut next = async || {
            let hung_up = async {
                match &mut hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = hung_up => SIGHUP,
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

/// Returns whether the process was started with this signal ignored. Only Linux says that without unsafe code.
fn ignores(signal: u8) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("traced").args(["row", "account"])))]
pub(super) struct StatusOptions {
    /// Trace this ledger row: which batch sent it, or why it was not sent
    #[arg(long, value_name = "LEDGER_ID")]
    row: Option<String>,
    /// Trace the rows of this account, with --currency and --at; spelled as in the ledger or at Elven
    #[arg(long, value_name = "ACCOUNT", requires_all = ["currency", "at"])]
    account: Option<String>,
    /// The currency, spelled as in the ledger or at Elven
    #[arg(long, value_name = "CURRENCY", requires = "account")]
    currency: Option<String>,
    /// The second: the entity's local time, e.g. '2024-11-03 01:00:03', or 2024-11-03T06:00:03Z
    #[arg(long, value_name = "TIME", requires = "account")]
    at: Option<String>,
    /// Only rows of this entity
    #[arg(long, value_name = "ID", requires = "traced")]
    entity: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn status(settings: &Settings, options: StatusOptions) -> anyhow::Result<u8> {
    let database = connect(settings).await?;
    if let Some(row) = &options.row {
        let reports = of_row(settings, &database, row, options.entity.as_deref()).await?;
        if reports.is_empty() && options.entity.is_some() && !options.json {
            let elsewhere = of_row(settings, &database, row, None).await?;
            output::row_trace::of_other_entities(row, &elsewhere);
        } else {
            output::row_trace::report(row, &reports, options.json);
        }
        let well = !reports.is_empty() && !reports.iter().any(|report| report.verdict.needs_a_person());
        return Ok(if well { SUCCEEDED } else { INCOMPLETE });
    }
    if let (Some(account), Some(currency), Some(at)) = (options.account, options.currency, options.at) {
        let key = RecordKey { account, currency, at };
        return trace_key(settings, &database, &key, options.entity.as_deref(), options.json).await;
    }
    let report = crate::admin::health(settings, &database).await?;
    output::health(&report, options.json);
    Ok(if report.entities.iter().any(Health::needs_a_person) { INCOMPLETE } else { SUCCEEDED })
}

/// Traces each row with a key.
async fn trace_key(
    settings: &Settings,
    database: &Database,
    key: &RecordKey,
    entity: Option<&str>,
    as_json: bool,
) -> anyhow::Result<u8> {
    let found = rows_of_key(settings, database, key, entity).await?;
    let mut traced = Vec::new();
    for rows in &found {
        for row in &rows.row_ids {
            let reports = of_row(settings, database, row, Some(&rows.entity_id)).await?;
            traced.push((row.as_str(), reports));
        }
    }
    output::row_trace::report_key(key, &found, &traced, as_json);
    let mut reports = traced.iter().flat_map(|(_, reports)| reports);
    let well = !traced.is_empty() && !reports.any(|report| report.verdict.needs_a_person());
    Ok(if well { SUCCEEDED } else { INCOMPLETE })
}
