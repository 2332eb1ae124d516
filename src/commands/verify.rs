//! `verify`: proves from the journal that no row was skipped, or reports findings.

use std::path::PathBuf;

use anyhow::Context as _;

use super::connect::connect;
use super::exit_code::{INCOMPLETE, SUCCEEDED};
use crate::audit::{self, EntityProof, Verification, print_lines};
use crate::config::Settings;
use crate::database::Database;
use crate::journal::{JournalError, PrintLine, Verified, close_guard_gap, note_verified};
use crate::output;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Only these entities
    #[arg(long = "entity", value_name = "ID", num_args = 1..)]
    entities: Vec<String>,
    /// Rebuild the bodies of all batches from the ledger and compare their hashes, not only of a sample
    #[arg(long)]
    deep: bool,
    /// Prints that were kept outside the database, which the journal has to extend: output of `elven-sync digest`, or any
    /// log or text with a line of it
    #[arg(long, value_name = "FILE", num_args = 1..)]
    against: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Reads the prints of files.
fn kept_prints(files: &[PathBuf]) -> anyhow::Result<Vec<PrintLine>> {
    let mut prints = Vec::new();
    for file in files {
        let bytes = std::fs::read(file).with_context(|| format!("{} could not be read", file.display()))?;
        let found = print_lines(&String::from_utf8_lossy(&bytes));
        anyhow::ensure!(
            !found.is_empty(),
            "{} has no print, which is a number and a root of 64 hexadecimal digits; hint: `elven-sync digest` prints one",
            file.display()
        );
        prints.extend(found);
    }
    Ok(prints)
}

/// Records the result for the alerts `VerifyFailed`, `VerifyOld` and `GuardBroken`, if this role may write it.
async fn note(database: &Database, options: &Options, verification: &Verification) {
    let of_entity = |proof: &EntityProof| Verified {
        entity_id: proof.entity_id.clone(),
        findings: proof.groups.iter().map(|group| group.count).sum(),
    };
    let verified: Vec<Verified> = verification.entities.iter().map(of_entity).collect();
    let note = async {
        note_verified(database, &verified, options.entities.is_empty(), options.deep).await?;
        if let Some(gap) = verification.gap_without_rows {
            close_guard_gap(database, gap).await?;
        }
        Ok::<_, JournalError>(())
    };
    if let Err(problem) = note.await {
        let error = crate::text::chain(&problem);
        tracing::warn!(
            error,
            "the result could not be recorded, so the alerts about verify do not know it; hint: run verify with the \
             role of the runs"
        );
    }
}

pub(super) async fn run(options: Options, settings: &Settings) -> anyhow::Result<u8> {
    let database = connect(settings).await?;
    let against = kept_prints(&options.against)?;
    let verification = audit::verify(settings, &database, &options.entities, options.deep, &against).await?;
    note(&database, &options, &verification).await;
    let holds = verification.holds();
    output::verification::report(&verification, options.deep, options.json);
    Ok(if holds { SUCCEEDED } else { INCOMPLETE })
}
