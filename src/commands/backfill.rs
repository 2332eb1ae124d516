//! `backfill`, `backfill list` and `backfill cancel`.

use std::sync::atomic::Ordering;

use anyhow::bail;
use clap::Subcommand;

use super::connect::connect;
use super::exit_code::{FAILED, INCOMPLETE, SUCCEEDED, WRONG_USAGE};
use super::rebind::check_reason;
use super::signals::stop_on_signal;
use crate::config::Settings;
use crate::journal::{self, Asked, Backfill, Cancelled, RunStatus};
use crate::output;
use crate::sync::{BackfillError, RecordedWait, Worker, naming_lock_holders};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// First day or instant: 2024-03-01 (in each entity's time zone) or 2024-03-01T12:00:00Z
    #[arg(long, value_name = "TIME", requires = "to", required_unless_present = "resume")]
    from: Option<String>,
    /// End of the range, not included: a day or an instant, written as for --from
    #[arg(long, value_name = "TIME", requires = "from")]
    to: Option<String>,
    /// Only these entities
    #[arg(long = "entity", value_name = "ID", num_args = 1..)]
    entities: Vec<String>,
    /// Only these accounts, spelled as in the ledger
    #[arg(long = "account", value_name = "ACCOUNT", num_args = 1..)]
    accounts: Vec<String>,
    /// Only these currencies, spelled as in the ledger
    #[arg(long = "currency", value_name = "CURRENCY", num_args = 1..)]
    currencies: Vec<String>,
    /// Continue the backfill with this number where it stopped
    #[arg(long, value_name = "N", conflicts_with_all = ["from", "to", "entities", "accounts", "currencies"])]
    resume: Option<i64>,
    /// Print what would be sent and how long it would take; send and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List backfills, newest first
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Cancel a backfill; requests in flight are finished
    Cancel {
        /// Number of the backfill
        #[arg(value_name = "N")]
        backfill_id: i64,
        /// Reason, recorded in `sync_actions`
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

impl Options {
    /// Whether people run the command for what it prints.
    pub(super) fn prints_its_product(&self) -> bool {
        self.dry_run || matches!(self.command, Some(Command::List { .. }))
    }
}

pub(super) async fn run(options: Options, settings: Settings) -> anyhow::Result<u8> {
    match options.command {
        Some(Command::List { json }) => {
            let database = connect(&settings).await?;
            journal::check_schema(&database).await?;
            output::backfills(&Backfill::list(&database).await?, json);
            Ok(SUCCEEDED)
        }
        Some(Command::Cancel { backfill_id, reason }) => {
            check_reason(reason.as_deref())?;
            cancel(&settings, backfill_id, reason.as_deref()).await
        }
        None => match Box::pin(upload(options, settings)).await {
            Err(Failure::Backfill(usage @ BackfillError::Usage(_))) => {
                output::error(&usage.into());
                Ok(WRONG_USAGE)
            }
            Err(Failure::Backfill(problem)) => Err(problem.into()),
            Err(Failure::Other(problem)) => Err(problem),
            Ok(code) => Ok(code),
        },
    }
}

/// Why a backfill ended without a report.
enum Failure {
    Backfill(BackfillError),
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(problem: E) -> Self {
        Self::Other(problem.into())
    }
}

async fn upload(options: Options, settings: Settings) -> Result<u8, Failure> {
    let asked = Asked {
        from: options.from.unwrap_or_default(),
        to: options.to.unwrap_or_default(),
        entities: sorted(options.entities),
        accounts: sorted(options.accounts),
        currencies: sorted(options.currencies),
    };
    let (stop, stopped_by) = stop_on_signal(settings.sync.shutdown_grace)?;
    let database = connect(&settings).await?;
    // A standby may hold older row versions than runs have sent.
    let worker = Worker::open(Settings { ledger_url: None, ..settings }, database.clone(), stop).await?;
    if options.dry_run {
        let rehearsed = match options.resume {
            Some(backfill_id) => worker.rehearse_rest(backfill_id).await,
            None => worker.rehearse_backfill(&asked).await,
        };
        let rehearsal = rehearsed.map_err(Failure::Backfill)?;
        output::rehearsal(&rehearsal, options.json);
        return Ok(if rehearsal.needs_a_person() { INCOMPLETE } else { SUCCEEDED });
    }
    let watched = output::watch(worker.progress());
    let work = async {
        match options.resume {
            Some(backfill_id) => worker.resume_backfill(backfill_id).await,
            None => worker.backfill(&asked).await,
        }
    };
    let report = naming_lock_holders(&database, &RecordedWait::default(), work).await;
    watched.end().await;
    let report = report.map_err(Failure::Backfill)?;
    output::backfill_report(&report, options.json);
    Ok(match report.run.status {
        RunStatus::Succeeded => SUCCEEDED,
        RunStatus::Failed => FAILED,
        RunStatus::Incomplete => INCOMPLETE,
        // By convention: 128 plus the number of the signal.
        RunStatus::Interrupted => 128 + stopped_by.load(Ordering::Relaxed),
    })
}

/// Sorts values and drops repeated ones, so that the same request in another order finds the same backfill.
fn sorted(mut values: Vec<String>) -> Vec<String> {
    values.sort_unstable();
    values.dedup();
    values
}

async fn cancel(settings: &Settings, backfill_id: i64, reason: Option<&str>) -> anyhow::Result<u8> {
    let database = connect(settings).await?;
    journal::check_schema(&database).await?;
    journal::refuse_standby(&database).await?;
    match Backfill::cancel(&database, backfill_id, reason).await? {
        Cancelled::Done => output::line(format_args!("backfill {backfill_id} is cancelled")),
        Cancelled::Stopping(run_id) => output::line(format_args!(
            "backfill {backfill_id} is cancelled; run {run_id} stops after its requests in flight"
        )),
        Cancelled::Ended(status) => {
            bail!("backfill {backfill_id} is already {status}; nothing was changed")
        }
        Cancelled::Missing => bail!("there is no backfill {backfill_id}; hint: elven-sync backfill list"),
    }
    Ok(SUCCEEDED)
}
