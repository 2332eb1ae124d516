//! `reference pull | accounts | currencies`: the names that the API knows.

use clap::Subcommand;

use super::connect::connect_migrated;
use super::exit_code::{FAILED, INCOMPLETE, SUCCEEDED};
use crate::admin;
use crate::config::Settings;
use crate::elven::List;
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
    };
    let database = connect_migrated(settings).await?;
    let report = admin::names(settings, &database, list).await?;
    output::reference::names(&report, list, options.unknown, options.json);
    Ok(if report.without_list.is_empty() { SUCCEEDED } else { INCOMPLETE })
}

async fn pull(settings: &Settings) -> anyhow::Result<u8> {
    let database = connect_migrated(settings).await?;
    let pulled = sync::pull_reference(settings, &database).await?;
    output::reference::pulled(&pulled);
    let is_stored = |pulled: &sync::PulledList| pulled.outcome.is_ok();
    Ok(match (pulled.iter().all(is_stored), pulled.iter().any(is_stored)) {
        (true, _) => SUCCEEDED,
        (false, true) => INCOMPLETE,
        (false, false) => FAILED,
    })
}
