//! `errors list | show | retry | resolve`.

use std::sync::atomic::Ordering;

use anyhow::bail;
use clap::Subcommand;

use super::connect::connect;
use super::error_filter::Filter;
use super::exit_code::{INCOMPLETE, SUCCEEDED};
use super::signals::stop_on_signal;
use super::{error_list, resolve};
use crate::config::Settings;
use crate::database::Database;
use crate::journal::{self, ErrorGroup, Kind, RecordedError, SetAside, Wanted};
use crate::output;
use crate::sync::{RecordedWait, Retried, Worker, naming_lock_holders};
use crate::text::quoted_option;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List open errors by cause, or one by one
    List(error_list::Arguments),
    /// Show one error in full
    Show {
        /// Number of the error
        #[arg(value_name = "N")]
        error_id: i64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Read rows that were set aside from the ledger again and send them
    Retry {
        /// Numbers of errors; by default all rows that are set aside
        #[arg(value_name = "N", conflicts_with_all = ["entities", "kinds", "causes"])]
        error_ids: Vec<i64>,
        #[command(flatten)]
        filter: Filter,
    },
    /// Close errors by hand; their rows are sent again only after they are updated in the ledger
    Resolve(resolve::Arguments),
}

impl Command {
    /// Whether people run the command for what it prints.
    pub(super) fn prints_its_product(&self) -> bool {
        matches!(self, Self::List(_) | Self::Show { .. })
    }
}

pub(super) async fn run(command: Command, settings: &Settings) -> anyhow::Result<u8> {
    let database = connect(settings).await?;
    journal::check_schema(&database).await?;
    match command {
        Command::List(arguments) => error_list::run(&database, arguments).await?,
        Command::Show { error_id, json } => output::error_in_full(&one(&database, error_id).await?, json),
        Command::Retry { error_ids, filter } => {
            return retry(settings, &database, &error_ids, filter.wanted(false)).await;
        }
        Command::Resolve(arguments) => resolve::run(&database, arguments).await?,
    }
    Ok(SUCCEEDED)
}

async fn one(database: &Database, error_id: i64) -> anyhow::Result<RecordedError> {
    match RecordedError::with_numbers(database, &[error_id]).await?.pop() {
        Some(error) => Ok(error),
        None => bail!("there is no error {error_id}; hint: elven-sync errors list"),
    }
}

/// Requires that an error can be retried: it is open, and about a row.
async fn require_row(database: &Database, error_id: i64) -> anyhow::Result<()> {
    let error = one(database, error_id).await?;
    if let Some(resolution) = &error.resolution {
        bail!("error {error_id} is already resolved: {resolution}; nothing was sent");
    }
    if error.ledger_id.is_none() && error.rows.is_none() {
        let remedy = if error.kind == Kind::UnregisteredEntity.as_ref() {
            journal::registering(&error.entity_id)
        } else {
            format!("elven-sync run {}", quoted_option("--entity", &error.entity_id))
        };
        bail!(
            "error {error_id} is about the entity `{}`, not about a row; nothing was sent; hint: {remedy}",
            error.entity_id
        );
    }
    Ok(())
}

async fn retry(
    settings: &Settings,
    database: &Database,
    error_ids: &[i64],
    filter: Wanted,
) -> anyhow::Result<u8> {
    for error_id in error_ids {
        require_row(database, *error_id).await?;
    }
    let wanted = Wanted { ids: error_ids.to_vec(), ..filter };
    let set_aside = SetAside::list(database, &wanted).await?;
    if set_aside.is_empty() {
        if wanted.has_filter() {
            let open = ErrorGroup::list(database, false).await?;
            bail!("{}; nothing was sent", output::no_row_matches(&open));
        }
        output::line("no row is set aside");
        return Ok(SUCCEEDED);
    }
    let settings = Settings { ledger_url: None, ..settings.clone() };
    let (stop, stopped_by) = stop_on_signal(settings.sync.shutdown_grace)?;
    let worker = Worker::open(settings, database.clone(), stop.clone()).await?;
    let mut print = |retried: Retried| {
        let (state, why) = match &retried.outcome {
            Ok(resolution) => ("resolved", resolution),
            Err(why) => ("still open", why),
        };
        output::line(format_args!("error {}: {state}: {why}", retried.error_id));
    };
    let work = worker.retry(set_aside, &mut print);
    let all_resolved = naming_lock_holders(database, &RecordedWait::default(), work).await?;
    if *stop.borrow() {
        return Ok(128 + stopped_by.load(Ordering::Relaxed));
    }
    Ok(if all_resolved { SUCCEEDED } else { INCOMPLETE })
}
