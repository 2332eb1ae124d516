//! `prune`: keeps the journal from growing for ever.

use std::time::Duration;

use super::connect::{connect, duration};
use super::exit_code::{INCOMPLETE, SUCCEEDED};
use crate::config::Settings;
use crate::{admin, journal, output};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// What has ended so long ago goes, e.g. 90d; what is not resolved stays
    #[arg(long, value_name = "TIME", value_parser = duration)]
    older_than: Duration,
    /// Say what would go, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// For machines
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(options: Options, settings: &Settings) -> anyhow::Result<u8> {
    let database = connect(settings).await?;
    journal::check_schema(&database).await?;
    journal::refuse_standby(&database).await?;
    let report = admin::prune(&database, options.older_than, options.dry_run).await?;
    output::verification::pruned(&report, options.dry_run, options.json);
    Ok(if report.entities.iter().any(|entity| entity.busy || entity.foreign) {
        INCOMPLETE
    } else {
        SUCCEEDED
    })
}
