//! The program: parses the command line, runs one command, and turns its result into an exit code.

use std::process::ExitCode;

use clap::Parser;
use elven_sync::commands::{self, Cli};
use elven_sync::config::Environment;
use elven_sync::output;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => std::process::exit(output::usage(&answer)),
    };
    let environment = Environment::capture();
    output::start_log(cli.verbose, environment.get("ELVEN_SYNC_LOG"));
    // Boxed, since the future is large.
    match Box::pin(commands::run(cli, environment)).await {
        Ok(code) => ExitCode::from(code),
        Err(problem) => {
            output::error(&problem);
            ExitCode::from(commands::FAILED)
        }
    }
}
