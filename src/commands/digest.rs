//! `digest`: prints one line that commits to the whole journal.

use super::connect::connect;
use super::exit_code::SUCCEEDED;
use crate::config::Settings;
use crate::journal::{self, Print};
use crate::output;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Print JSON, with the chain of each entity
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(options: Options, settings: &Settings) -> anyhow::Result<u8> {
    let database = connect(settings).await?;
    journal::check_schema(&database).await?;
    journal::refuse_standby(&database).await?;
    let (print, chains) = Print::make(&database).await?;
    output::digest(&print, &chains, options.json);
    Ok(SUCCEEDED)
}
