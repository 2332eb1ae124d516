//! `errors list | show | retry | resolve`.

use std::sync::atomic::Ordering;

use anyhow::bail;
use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use strum::VariantNames;

use super::connect::connect;
use super::exit_code::{INCOMPLETE, SUCCEEDED};
use super::resolve;
use super::run::stop_on_signal;
use crate::config::Settings;
use crate::database::Database;
use crate::journal::{self, Entity, ErrorGroup, Kind, RecordedError, Wanted};
use crate::output;
use crate::sync::Worker;
use crate::text::quoted_option;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List open errors, newest first
    List {
        /// Only errors of these entities
        #[arg(long = "entity", value_name = "ID")]
        entities: Vec<String>,
        /// Only errors of these kinds, e.g. `rejected_row`
        #[arg(long = "kind", value_name = "KIND", value_parser = PossibleValuesParser::new(Kind::VARIANTS))]
        kinds: Vec<String>,
        /// Also list resolved errors
        #[arg(long)]
        all: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
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
        #[arg(value_name = "N")]
        error_ids: Vec<i64>,
    },
    /// Close errors by hand; their rows are sent again only after they are updated in the ledger
    Resolve(resolve::Arguments),
}

impl Command {
    /// Whether people run the command for what it prints.
    pub(super) fn prints_its_product(&self) -> bool {
        matches!(self, Self::List { .. } | Self::Show { .. })
    }
}

pub(super) async fn run(command: Command, settings: &Settings) -> anyhow::Result<u8> {
    let database = connect(settings).await?;
    journal::check_schema(&database).await?;
    match command {
        Command::List { entities, kinds, all, json } => {
            let wanted = Wanted { entities, kinds, resolved: all, ..Wanted::default() };
            let errors = RecordedError::list(&database, &wanted).await?;
            if errors.is_empty() {
                nothing_matches(&database, &wanted, json).await?;
            } else {
                output::errors(&errors, json);
            }
        }
        Command::Show { error_id, json } => output::error_in_full(&one(&database, error_id).await?, json),
        Command::Retry { error_ids } => return retry(settings, &database, error_ids).await,
        Command::Resolve(arguments) => resolve::run(&database, arguments).await?,
    }
    Ok(SUCCEEDED)
}

/// Says that no error matches a filter, and which errors and entities there are. JSON has only the empty list, so the
/// entities are named in the log.
async fn nothing_matches(database: &Database, wanted: &Wanted, json: bool) -> anyhow::Result<()> {
    if json {
        output::errors(&[], true);
    } else {
        output::no_errors(&ErrorGroup::list(database, wanted.resolved).await?, wanted.resolved);
    }
    let entities = Entity::list(database).await?;
    let known: Vec<&str> = entities.iter().map(|entity| entity.entity_id.as_str()).collect();
    for entity_id in wanted.entities.iter().filter(|entity_id| !known.contains(&entity_id.as_str())) {
        let message = journal::unknown_entity(entity_id, &known);
        if json {
            tracing::warn!("{message}");
        } else {
            output::line(message);
        }
    }
    Ok(())
}

async fn one(database: &Database, error_id: i64) -> anyhow::Result<RecordedError> {
    let wanted = Wanted { ids: vec![error_id], resolved: true, ..Wanted::default() };
    match RecordedError::list(database, &wanted).await?.pop() {
        Some(error) => Ok(error),
        None => bail!("there is no error {error_id}; hint: elven-sync errors list"),
    }
}

async fn retry(settings: &Settings, database: &Database, error_ids: Vec<i64>) -> anyhow::Result<u8> {
    let mut errors = Vec::new();
    for error_id in &error_ids {
        let error = one(database, *error_id).await?;
        if let Some(resolution) = &error.resolution {
            bail!("error {error_id} is already resolved: {resolution}; nothing was sent");
        }
        if error.ledger_id.is_none() {
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
        errors.push(error);
    }
    if error_ids.is_empty() {
        errors = RecordedError::list(database, &Wanted::default()).await?;
        errors.retain(|error| error.ledger_id.is_some());
    }
    if errors.is_empty() {
        output::line("no row is set aside");
        return Ok(SUCCEEDED);
    }
    let settings = Settings { ledger_url: None, ..settings.clone() };
    let (stop, stopped_by) = stop_on_signal(settings.sync.shutdown_grace)?;
    let worker = Worker::open(settings, database.clone(), stop.clone()).await?;
    let retried = worker.retry(errors).await?;
    for retried in &retried {
        let (state, why) = match &retried.outcome {
            Ok(resolution) => ("resolved", resolution),
            Err(why) => ("still open", why),
        };
        output::line(format_args!("error {}: {state}: {why}", retried.error_id));
    }
    if *stop.borrow() {
        return Ok(128 + stopped_by.load(Ordering::Relaxed));
    }
    let open = retried.iter().any(|retried| retried.outcome.is_err());
    Ok(if open { INCOMPLETE } else { SUCCEEDED })
}
