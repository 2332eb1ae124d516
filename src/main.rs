//! The program: parses the command line, runs one command, and turns its result into an exit code.

use std::process::ExitCode;

use clap::Parser;
use elven_sync::commands::{self, Cli};
use elven_sync::config::{Environment, LogFormat};
use elven_sync::output::{self, LogOptions};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => std::process::exit(output::usage(&answer)),
    };
    let environment = Environment::capture();
    let format = LogFormat::of(&environment);
    output::start_log(LogOptions {
        verbose: cli.verbose,
        is_quiet: cli.quiet,
        levels: environment.get("ELVEN_SYNC_LOG"),
        format: format.as_ref().copied().unwrap_or_default(),
        without_colour: environment.get("NO_COLOR").is_some(),
    });
    if let Err(problem) = format {
        output::error(&problem.into());
        return ExitCode::from(commands::FAILED);
    }
    // Boxed, since the future is large.
    match Box::pin(commands::run(cli, environment)).await {
        Ok(code) => ExitCode::from(code),
        Err(problem) => {
            output::error(&problem);
            ExitCode::from(commands::FAILED)
        }
    }
}
