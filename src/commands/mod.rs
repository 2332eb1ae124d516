//! The commands that people type.

mod attach;
mod backfill;
mod connect;
mod demo;
mod entity;
mod errors;
mod exit_code;
mod prune;
mod rebind;
mod run;
mod sandbox;
mod verify;

use clap::{Parser, Subcommand};

pub use self::exit_code::{FAILED, INCOMPLETE, SUCCEEDED, WRONG_USAGE};

use self::connect::connect;
use crate::config::{Environment, Flags, Settings};
use crate::journal;
use crate::output;

/// Keeps the treasury balances of Elven equal to a PostgreSQL ledger.
///
/// Exit codes: 0 all done; 1 could not work; 2 wrong usage; 3 done, but a person should look; 130 or 143
/// stopped by a signal.
#[derive(Debug, Parser)]
#[command(name = "elven-sync", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    flags: Flags,
    /// Log more to stderr: -v what is done, -vv each batch
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create or upgrade the sync schema
    Migrate {
        /// Also create the default ledger, a table of balance snapshots
        #[arg(long)]
        with_ledger: bool,
    },
    /// Prepare the configured ledger table: column, trigger, index
    Attach(attach::Options),
    /// Say who is synced, and how
    #[command(subcommand)]
    Entity(entity::Command),
    /// Upload what is new, for all entities, then exit
    Run(run::Options),
    /// Upload a range of `captured_at` again, whatever was uploaded before
    Backfill(backfill::Options),
    /// Say how each entity is, or what became of a row
    Status(run::StatusOptions),
    /// See to what was set aside, and to what stopped
    #[command(subcommand)]
    Errors(errors::Command),
    /// Prove from the journal that nothing was skipped; changes nothing
    Verify(verify::Options),
    /// Fold what has ended long ago into totals, so that the journal does not grow for ever
    Prune(prune::Options),
    /// A strict local Elven API to try things on
    Sandbox(sandbox::Options),
    /// The whole story on a scratch database and the sandbox, in a few seconds
    Demo(demo::Options),
}

/// Runs one command; returns the exit code.
pub async fn run(cli: Cli, environment: Environment) -> anyhow::Result<u8> {
    #[cfg(feature = "fault-points")]
    crate::fault_point::arm(environment.get("ELVEN_SYNC_FAULT_POINT"))?;
    // Only the sandbox needs none: a wrong setting of the connector is no reason not to start it.
    let settings = || Settings::load(&cli.flags, environment);
    match cli.command {
        Command::Migrate { with_ledger } => migrate(&settings()?, with_ledger).await,
        Command::Attach(options) => attach::run(options, &settings()?).await,
        Command::Entity(command) => entity::run(command, &settings()?).await,
        Command::Run(options) => run::run(options, settings()?).await,
        Command::Backfill(options) => Box::pin(backfill::run(options, settings()?)).await,
        Command::Status(options) => run::status(&settings()?, options).await,
        Command::Errors(command) => errors::run(command, &settings()?).await,
        Command::Verify(options) => verify::run(options, &settings()?).await,
        Command::Prune(options) => prune::run(options, &settings()?).await,
        Command::Sandbox(options) => sandbox::run(options).await,
        Command::Demo(options) => Box::pin(demo::run(options, settings()?)).await,
    }
}

async fn migrate(settings: &Settings, with_ledger: bool) -> anyhow::Result<u8> {
    let database = connect(settings).await?;
    journal::migrate(&database).await?;
    output::line("the sync tables are up to date (schema elven_sync)");
    if with_ledger {
        journal::migrate_ledger(&database).await?;
        output::line("the default ledger is up to date (table ledger.balance_snapshots)");
    }
    Ok(SUCCEEDED)
}
