//! `verify`: proves from the journal that no row was skipped, or reports findings.

use super::connect::connect;
use super::exit_code::{INCOMPLETE, SUCCEEDED};
use crate::audit::{self, EntityProof};
use crate::config::Settings;
use crate::output;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Only these entities
    #[arg(long = "entity", value_name = "ID", num_args = 1..)]
    entities: Vec<String>,
    /// Rebuild the bodies of all batches from the ledger and compare their hashes, not only of a sample
    #[arg(long)]
    deep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(options: Options, settings: &Settings) -> anyhow::Result<u8> {
    let database = connect(settings).await?;
    let entities = audit::verify(settings, &database, &options.entities, options.deep).await?;
    output::verification::report(&entities, options.deep, options.json);
    Ok(if entities.iter().all(EntityProof::holds) { SUCCEEDED } else { INCOMPLETE })
}
