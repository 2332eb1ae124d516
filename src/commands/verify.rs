//! `verify`: proves from the journal that no row was skipped, or reports findings.

use super::connect::connect;
use super::exit_code::{INCOMPLETE, SUCCEEDED};
use crate::audit::{self, EntityProof};
use crate::config::Settings;
use crate::database::Database;
use crate::journal::{Verified, note_verified};
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

/// Records the result for the alerts `VerifyFailed` and `VerifyOld`, if this role may write it.
async fn note(database: &Database, options: &Options, entities: &[EntityProof]) {
    let of_entity = |proof: &EntityProof| Verified {
        entity_id: proof.entity_id.clone(),
        findings: proof.groups.iter().map(|group| group.count).sum(),
    };
    let verified: Vec<Verified> = entities.iter().map(of_entity).collect();
    if let Err(problem) = note_verified(database, &verified, options.entities.is_empty(), options.deep).await
    {
        let error = crate::text::chain(&problem);
        tracing::info!(error, "the result could not be recorded, so the alerts about verify do not know it");
    }
}

pub(super) async fn run(options: Options, settings: &Settings) -> anyhow::Result<u8> {
    let database = connect(settings).await?;
    let entities = audit::verify(settings, &database, &options.entities, options.deep).await?;
    note(&database, &options, &entities).await;
    output::verification::report(&entities, options.deep, options.json);
    Ok(if entities.iter().all(EntityProof::holds) { SUCCEEDED } else { INCOMPLETE })
}
