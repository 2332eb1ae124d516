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
    let report = if options.json {
        let report = check(flags, environment, &options.only, |_| {}).await;
        output::check::json(&report);
        report
    } else {
        let mut lines = output::check::Lines::default();
        let report = check(flags, environment, &options.only, |checked| lines.print(checked)).await;
        lines.end(&report);
        report
    };
    if report.is_blocked {
        FAILED
    } else if report.is_ok() {
        SUCCEEDED
    } else {
        INCOMPLETE
    }
}
