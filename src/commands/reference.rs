//! `reference pull | accounts | currencies | sources`: what the API knows.

use clap::Subcommand;

use super::connect::{connect_migrated, registered};
use super::exit_code::{FAILED, INCOMPLETE, SUCCEEDED};
use crate::admin;
use crate::config::Settings;
use crate::elven::List;
use crate::journal::Entity;
use crate::output;
use crate::sync;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Read the lists of accounts and currencies from the API and store them
    Pull,
    /// Compare the accounts of the ledger with those that Elven knows
    ///
    /// Reads the whole ledger table once, because no index begins with the account.
    Accounts(NameOptions),
    /// Compare the currencies of the ledger with those that Elven knows
    ///
    /// Reads the whole ledger table once, because no index begins with the currency.
    Currencies(NameOptions),
    /// List the balance sources at Elven, for `[api] version = 4`
    ///
    /// Asks the API with the credential of each entity. `entity set ID --source-id ID` pins one to an entity.
    Sources(SourceOptions),
}

#[derive(Debug, clap::Args)]
pub(super) struct NameOptions {
    /// Only names that Elven does not know
    #[arg(long)]
    unknown: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct SourceOptions {
    /// Only with the credentials of these entities; can be repeated
    #[arg(long = "entity", value_name = "ID")]
    entities: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Command {
    /// Whether people run the command for what it prints.
    pub(super) fn prints_its_product(&self) -> bool {
        !matches!(self, Self::Pull)
    }
}

pub(super) async fn run(command: Command, settings: &Settings) -> anyhow::Result<u8> {
    let (list, options) = match command {
        Command::Pull => return pull(settings).await,
        Command::Accounts(options) => (List::Accounts, options),
        Command::Currencies(options) => (List::Currencies, options),
        Command::Sources(options) => return sources(settings, &options).await,
    };
    let database = connect_migrated(settings).await?;
    let report = admin::names(settings, &database, list).await?;
    output::reference::names(&report, list, options.unknown, options.json);
    Ok(if report.without_list.is_empty() { SUCCEEDED } else { INCOMPLETE })
}

async fn sources(settings: &Settings, options: &SourceOptions) -> anyhow::Result<u8> {
    let database = connect_migrated(settings).await?;
    let mut entities = Entity::list(&database).await?;
    for id in &options.entities {
        registered(&database, id).await?;
    }
    if !options.entities.is_empty() {
        entities.retain(|entity| options.entities.contains(&entity.entity_id));
    }
    let listed = sync::list_sources(settings, &database, &entities).await?;
    output::reference::sources(&listed, options.json);
    Ok(exit_code(&listed, |listed| listed.outcome.is_ok()))
}

/// Returns the exit code of a command that asked for several lists, by whether each of them came.
fn exit_code<T>(lists: &[T], came: impl Fn(&T) -> bool) -> u8 {
    match (lists.iter().all(&came), lists.iter().any(&came)) {
        (true, _) => SUCCEEDED,
        (false, true) => INCOMPLETE,
        (false, false) => FAILED,
    }
}

async fn pull(settings: &Settings) -> anyhow::Result<u8> {
    let database = connect_migrated(settings).await?;
    let pulled = sync::pull_reference(settings, &database).await?;
    output::reference::pulled(&pulled);
    Ok(exit_code(&pulled, |pulled| pulled.outcome.is_ok()))
}
