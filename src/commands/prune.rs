//! `prune`: deletes old journal records and keeps their totals, so that the journal stays small.

use std::time::Duration;

use super::connect::{connect, duration};
use super::exit_code::{INCOMPLETE, SUCCEEDED};
use crate::config::Settings;
use crate::{admin, journal, output};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Delete records that ended longer ago than this, e.g. 90d; open errors stay
    #[arg(long, value_name = "TIME", value_parser = duration)]
    older_than: Duration,
    /// Print what would be deleted, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Options {
    /// Whether people run the command for what it prints.
    pub(super) fn prints_its_product(&self) -> bool {
        self.dry_run
    }
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
