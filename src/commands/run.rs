//! `run` and `status`.

use std::sync::atomic::{AtomicU8, Ordering};

use super::connect::{connect, connect_migrated};
use super::exit_code::{FAILED, INCOMPLETE, SUCCEEDED};
use super::signals::stop_on_signal;
use crate::audit::{RecordKey, of_row, rows_of_key};
use crate::config::Settings;
use crate::database::Database;
use crate::journal::metrics::Readings;
use crate::journal::{Entity, Health, RunStatus};
use crate::notify;
use crate::output;
use crate::serve;
use crate::sync::{RecordedWait, RunError, RunReport, Stop, Worker, naming_lock_holders};

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
    if options.dry_run {
        let caution = settings.ledger.zone_caution();
        let mut report =
            Worker::open(settings, database.clone(), stop).await?.dry_run(&options.entities).await?;
        report.notes.extend(caution);
        show(&report, &options, &database).await?;
        return Ok(exit_code(report.status, &stopped_by));
    }
    let (notify, stopped) = (settings.notify.clone(), stop.clone());
    let report = make_run(&options, settings, &database, stop).await;
    if let Ok(report) = &report {
        show(report, &options, &database).await?;
    }
    // Last, because a webhook may take its time. Alerts are told also after a run that failed.
    notify::after_run(&notify, &database, &stopped, &report, options.entities.is_empty()).await;
    Ok(exit_code(report?.status, &stopped_by))
}

async fn make_run(
    options: &Options,
    settings: Settings,
    database: &Database,
    stop: Stop,
) -> Result<RunReport, RunError> {
    // Boxed, because it is large.
    let run = Box::pin(async {
        let worker = Worker::open_for_run(settings, database.clone(), stop).await?;
        let watched = output::watch(worker.progress());
        let report = worker.run(&options.entities).await;
        watched.end().await;
        report
    });
    naming_lock_holders(database, &RecordedWait::default(), run).await
}

/// Prints the report.
async fn show(report: &RunReport, options: &Options, database: &Database) -> anyhow::Result<()> {
    // Without a report of an entity, each entity that was asked for is paused.
    let mut paused = if report.entities.is_empty() { Entity::list(database).await? } else { Vec::new() };
    let is_asked = |id: &String| options.entities.is_empty() || options.entities.contains(id);
    paused.retain(|entity| entity.paused && is_asked(&entity.entity_id));
    let paused: Vec<&str> = paused.iter().map(|entity| entity.entity_id.as_str()).collect();
    output::run_report(report, &paused, options.json);
    Ok(())
}

fn exit_code(status: RunStatus, stopped_by: &AtomicU8) -> u8 {
    match status {
        RunStatus::Succeeded => SUCCEEDED,
        RunStatus::Failed => FAILED,
        RunStatus::Incomplete => INCOMPLETE,
        // By convention: 128 plus the number of the signal.
        RunStatus::Interrupted => 128 + stopped_by.load(Ordering::Relaxed),
    }
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
    /// Print the metrics of /metrics that come from the sync tables, for the textfile collector of Prometheus
    #[arg(long, conflicts_with_all = ["traced", "json"])]
    prometheus: bool,
}

pub(super) async fn status(settings: &Settings, options: StatusOptions) -> anyhow::Result<u8> {
    if options.prometheus {
        let readings = Readings::read(&connect_migrated(settings).await?).await?;
        output::lines(serve::of_tables(readings)?.trim_end());
        return Ok(SUCCEEDED);
    }
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
