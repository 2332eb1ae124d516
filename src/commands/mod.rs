//! The commands of the command line.

mod attach;
mod audit;
mod backfill;
mod check;
mod connect;
mod demo;
mod digest;
mod entity;
mod entity_set;
mod error_filter;
mod error_list;
mod errors;
mod exit_code;
mod generate;
mod map;
mod migrate;
mod prune;
mod rebind;
mod reference;
mod resolve;
mod run;
mod sandbox;
mod serve;
mod signals;
mod verify;

use clap::{CommandFactory, Parser, Subcommand};

pub use self::exit_code::{FAILED, INCOMPLETE, SUCCEEDED, WRONG_USAGE};

use crate::config::{Environment, Flags, Settings};
use crate::output;

/// Keep the treasury balances of Elven equal to a PostgreSQL ledger.
///
/// Exit codes: 0 all work is done; 1 the command could not work; 2 wrong usage; 3 the work is done, but a
/// person should look; 129, 130 or 143 stopped by a signal.
#[derive(Debug, Parser)]
#[command(name = "elven-sync", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    flags: Flags,
    /// Log more to stderr: -v the milestones, -vv each batch
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Log nothing but errors, and show no progress; results stay on stdout
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create or upgrade the sync tables
    Migrate(migrate::Options),
    /// Prepare the configured ledger table: column, trigger, index
    Attach(attach::Options),
    /// Register, list, pause, resume, rewind and rebind entities
    #[command(subcommand)]
    Entity(entity::Command),
    /// Run preflight checks of configuration, database, ledger, entities, API and data; changes nothing
    ///
    /// Exit codes: 0 nothing would stop the sync, though there may be warnings; 3 a check failed: something would stop
    /// or endanger the sync; 1 nothing could be checked, or the output could not be written.
    Check(check::Options),
    /// Upload new rows of all entities, then exit
    Run(run::Options),
    /// Do the same continuously, one run per interval, and show health and metrics over HTTP
    Serve(serve::Options),
    /// Upload a range of `captured_at` again
    Backfill(backfill::Options),
    /// Show the state of each entity, or trace one ledger row
    Status(run::StatusOptions),
    /// List, show, retry and resolve errors
    #[command(subcommand)]
    Errors(errors::Command),
    /// Read what Elven knows, and compare the ledger's accounts and currencies with it
    #[command(subcommand)]
    Reference(reference::Command),
    /// Map the ledger's names of accounts and currencies to their names at Elven
    #[command(subcommand)]
    Map(map::Command),
    /// Prove from the journal that no row was skipped
    Verify(verify::Options),
    /// Print one line that commits to the whole journal, to keep outside the database
    Digest(digest::Options),
    /// Print the evidence of a period for an auditor: is it complete, with control totals and exceptions
    ///
    /// Exit codes: 0 no row is pending, set aside or unaccounted, and no outcome is unknown; 3 otherwise, or `verify` has a
    /// finding; 2 wrong usage; 1 the period could not be audited.
    Audit(audit::Options),
    /// Delete old journal records and keep their totals
    Prune(prune::Options),
    /// Start a strict local Elven API to try things on
    Sandbox(sandbox::Options),
    /// Show the connector at work on a scratch database and the sandbox
    Demo(demo::Options),
    /// Generate manual pages, or completions for a shell
    #[command(subcommand)]
    Generate(generate::Command),
}

impl Command {
    /// What the command does, for the names of its sessions in the database.
    fn activity(&self) -> &'static str {
        match self {
            Self::Migrate(_) => "migrate",
            Self::Attach(_) => "attach",
            Self::Entity(_) => "entity",
            Self::Check(_) => "check",
            Self::Run(_) => "run",
            Self::Serve(_) => "serve",
            Self::Backfill(_) => "backfill",
            Self::Status(_) => "status",
            Self::Errors(_) => "errors",
            Self::Reference(_) => "reference",
            Self::Map(_) => "map",
            Self::Verify(_) => "verify",
            Self::Digest(_) => "digest",
            Self::Audit(_) => "audit",
            Self::Prune(_) => "prune",
            Self::Sandbox(_) => "sandbox",
            Self::Demo(_) => "demo",
            Self::Generate(_) => "generate",
        }
    }

    /// Whether people run the command for what it prints. Without its output, such a command has done nothing.
    fn prints_its_product(&self) -> bool {
        match self {
            Command::Check(_)
            | Command::Status(_)
            | Command::Verify(_)
            | Command::Digest(_)
            | Command::Audit(_)
            | Command::Demo(_)
            | Command::Generate(_) => true,
            Command::Migrate(_) | Command::Serve(_) | Command::Sandbox(_) => false,
            Command::Attach(options) => options.prints_its_product(),
            Command::Entity(command) => command.prints_its_product(),
            Command::Run(options) => options.prints_its_product(),
            Command::Backfill(options) => options.prints_its_product(),
            Command::Errors(command) => command.prints_its_product(),
            Command::Reference(command) => command.prints_its_product(),
            Command::Map(command) => command.prints_its_product(),
            Command::Prune(options) => options.prints_its_product(),
        }
    }
}

/// Runs one command; returns the exit code. A command whose product is its output fails when stdout cannot be written;
/// the exit code of any other command says what was done.
pub async fn run(cli: Cli, environment: Environment) -> anyhow::Result<u8> {
    let prints_its_product = cli.command.prints_its_product();
    let code = execute(cli, environment).await?;
    match output::write_error() {
        Some(problem) if prints_its_product => Err(output::not_written(problem)),
        Some(problem) => {
            tracing::warn!(
                "the result could not be written to stdout: {problem}; the exit code says what was done"
            );
            Ok(code)
        }
        None => Ok(code),
    }
}

async fn execute(mut cli: Cli, environment: Environment) -> anyhow::Result<u8> {
    #[cfg(feature = "fault-points")]
    crate::fault_point::arm(environment.get("ELVEN_SYNC_FAULT_POINT"))?;
    cli.command.activity().clone_into(&mut cli.flags.activity);
    // Read by each command but `check`, which reports what is wrong with them, and the sandbox, which has to start in
    // spite of a wrong setting of the connector.
    let settings = |environment| Settings::load(&cli.flags, environment);
    match cli.command {
        Command::Migrate(options) => migrate::run(options, &settings(environment)?).await,
        Command::Attach(options) => attach::run(options, &settings(environment)?).await,
        Command::Entity(command) => entity::run(command, &settings(environment)?).await,
        Command::Check(options) => Ok(Box::pin(check::run(options, &cli.flags, environment)).await),
        Command::Run(options) => Box::pin(run::run(options, settings(environment)?)).await,
        Command::Serve(options) => {
            let settings = settings(environment)?;
            Box::pin(serve::run(options, cli.flags, settings)).await
        }
        Command::Backfill(options) => Box::pin(backfill::run(options, settings(environment)?)).await,
        Command::Status(options) => run::status(&settings(environment)?, options).await,
        Command::Errors(command) => errors::run(command, &settings(environment)?).await,
        Command::Reference(command) => reference::run(command, &settings(environment)?).await,
        Command::Map(command) => map::run(command, &settings(environment)?).await,
        Command::Verify(options) => verify::run(options, &settings(environment)?).await,
        Command::Digest(options) => digest::run(options, &settings(environment)?).await,
        Command::Audit(options) => Box::pin(audit::run(options, &settings(environment)?)).await,
        Command::Prune(options) => prune::run(options, &settings(environment)?).await,
        Command::Sandbox(options) => sandbox::run(options).await,
        Command::Generate(command) => generate::run(&command, Cli::command()),
        Command::Demo(options) => Box::pin(demo::run(options, settings(environment)?)).await,
    }
}
