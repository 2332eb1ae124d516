//! `migrate`: creates or upgrades the sync tables, and the default ledger on request.

use std::time::Duration;

use anyhow::bail;

use super::connect::{connect, lock_timeout};
use super::exit_code::SUCCEEDED;
use crate::config::Settings;
use crate::database::Database;
use crate::journal::{self, Part};
use crate::output;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Also create the default ledger table, `ledger.balance_snapshots`
    #[arg(long)]
    with_ledger: bool,
    /// Create tables although a publication would carry them to subscribers
    #[arg(long)]
    yes: bool,
    /// Wait at most this long for the lock on a table, 1ms to 1h; other sessions wait behind it
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = lock_timeout)]
    lock_timeout: Duration,
}

pub(super) async fn run(options: Options, settings: &Settings) -> anyhow::Result<u8> {
    let database = connect(settings).await?;
    let parts = if options.with_ledger { &[Part::Sync, Part::Ledger][..] } else { &[Part::Sync] };
    for part in parts {
        if !options.yes {
            refuse_published(&database, *part).await?;
        }
    }
    for part in parts {
        journal::apply(&database, *part, options.lock_timeout).await?;
        output::line(match part {
            Part::Sync => "the sync tables are up to date (schema elven_sync)",
            Part::Ledger => "the default ledger is up to date (table ledger.balance_snapshots)",
        });
    }
    Ok(SUCCEEDED)
}

/// Refuses to create tables that a publication would carry to its subscribers.
async fn refuse_published(database: &Database, part: Part) -> anyhow::Result<()> {
    let publications = journal::publications(database, part).await?;
    for publication in &publications {
        output::line(format_args!(
            "would break: publication `{publication}` carries every table of schema {}: its subscribers stop at the \
             first change of a table that they lack",
            part.schema()
        ));
    }
    if publications.is_empty() {
        return Ok(());
    }
    bail!(
        "nothing was changed; hint: list the tables of the publication instead of all, or create the new tables at its \
         subscribers, too; then `elven-sync migrate --yes`"
    )
}
