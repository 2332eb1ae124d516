//! `check`: preflight checks, which change nothing.

use super::exit_code::{FAILED, INCOMPLETE, SUCCEEDED};
use crate::check::{Category, check};
use crate::config::{Environment, Flags};
use crate::output;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Only the checks of this category; can be repeated
    #[arg(long, value_name = "CATEGORY", value_enum)]
    only: Vec<Category>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(options: Options, flags: &Flags, environment: Environment) -> u8 {
    let report = check(flags, environment, &options.only).await;
    output::check::report(&report, options.json);
    if report.is_blocked {
        FAILED
    } else if report.is_ok() {
        SUCCEEDED
    } else {
        INCOMPLETE
    }
}
