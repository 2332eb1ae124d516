//! `backfill`, `backfill list` and `backfill cancel`.

use std::sync::atomic::Ordering;

use anyhow::bail;
use clap::Subcommand;

use super::connect::connect;
use super::exit_code::{FAILED, INCOMPLETE, SUCCEEDED, WRONG_USAGE};
use super::run::stop_on_signal;
use crate::config::Settings;
use crate::journal::{self, Asked, Backfill, Cancelled, RunStatus};
use crate::output;
use crate::sync::{BackfillError, Worker};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// First day or instant: 2024-03-01 is that day in each entity's time zone, 2024-03-01T12:00:00Z an instant
    #[arg(long, value_name = "D", requires = "to", required_unless_present = "resume")]
    from: Option<String>,
    /// The day or instant behind the last one, itself not included
    #[arg(long, value_name = "D", requires = "from")]
    to: Option<String>,
    /// Only these entities
    #[arg(long = "entity", value_name = "ID", num_args = 1..)]
    entities: Vec<String>,
    /// Only these accounts, as the ledger has them
    #[arg(long = "account", value_name = "A", num_args = 1..)]
    accounts: Vec<String>,
    /// Only these currencies
    #[arg(long = "currency", value_name = "C", num_args = 1..)]
    currencies: Vec<String>,
    /// Go on with a backfill that stopped
    #[arg(long, value_name = "N", conflicts_with_all = ["from", "to", "entities", "accounts", "currencies"])]
    resume: Option<i64>,
    /// Say what would be sent and how long it would take, but send and change nothing
    #[arg(long)]
    dry_run: bool,
    /// For machines
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List backfills, the newest first
    List {
        /// For machines
        #[arg(long)]
        json: bool,
    },
    /// Cancel a backfill; what is in flight is finished
    Cancel {
        /// Its number
        #[arg(value_name = "N")]
        backfill_id: i64,
    },
}

pub(super) async fn run(options: Options, settings: Settings) -> anyhow::Result<u8> {
    match options.command {
        Some(Command::List { json }) => {
            let database = connect(&settings).await?;
            journal::check_schema(&database).await?;
            output::backfills(&Backfill::list(&database).await?, json);
            Ok(SUCCEEDED)
        }
        Some(Command::Cancel { backfill_id }) => cancel(&settings, backfill_id).await,
        None => match upload(options, settings).await {
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

/// Why there is no report.
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
    // A standby may show older versions than runs have sent.
    let worker = Worker::open(Settings { ledger_url: None, ..settings }, database, stop).await?;
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
    let report = match options.resume {
        Some(backfill_id) => worker.resume_backfill(backfill_id).await,
        None => worker.backfill(&asked).await,
    };
    watched.end().await;
    let report = report.map_err(Failure::Backfill)?;
    output::backfill_report(&report, options.json);
    Ok(match report.run.status {
        RunStatus::Succeeded => SUCCEEDED,
        RunStatus::Failed => FAILED,
        RunStatus::Incomplete => INCOMPLETE,
        // By convention 128 and the number of the signal.
        RunStatus::Interrupted => 128 + stopped_by.load(Ordering::Relaxed),
    })
}

/// The same, in whatever order it was asked for.
fn sorted(mut of: Vec<String>) -> Vec<String> {
    of.sort_unstable();
    of.dedup();
    of
}

async fn cancel(settings: &Settings, backfill_id: i64) -> anyhow::Result<u8> {
    let database = connect(settings).await?;
    journal::check_schema(&database).await?;
    journal::refuse_standby(&database).await?;
    match Backfill::cancel(&database, backfill_id).await? {
        Cancelled::Done => output::line(format_args!("backfill {backfill_id} is cancelled")),
        Cancelled::Stopping(run_id) => output::line(format_args!(
            "backfill {backfill_id} is cancelled; run {run_id} stops after what is in flight"
        )),
        Cancelled::Ended(status) => {
            bail!("backfill {backfill_id} is {status} already; nothing was changed")
        }
        Cancelled::Missing => bail!("there is no backfill {backfill_id}; hint: elven-sync backfill list"),
    }
    Ok(SUCCEEDED)
}
