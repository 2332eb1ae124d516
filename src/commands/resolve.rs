//! `errors resolve`: closes errors by hand, by number or by filter.

use std::collections::BTreeSet;

use anyhow::bail;
use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser};
use strum::VariantNames;

use crate::database::Database;
use crate::journal::{self, ErrorGroup, Kind, RecordedError, Wanted};
use crate::output;
use crate::text::counted_noun;

#[derive(Debug, clap::Args)]
#[command(group(
    clap::ArgGroup::new("which").required(true).multiple(true).args(["error_ids", "entities", "kinds", "causes", "all"])
))]
pub(super) struct Arguments {
    /// Numbers of errors
    #[arg(value_name = "N", conflicts_with_all = ["entities", "kinds", "causes", "all"])]
    error_ids: Vec<i64>,
    /// All open errors of these entities
    #[arg(long = "entity", value_name = "ID", conflicts_with = "all")]
    entities: Vec<String>,
    /// All open errors of these kinds, e.g. `rejected_row`
    #[arg(long = "kind", value_name = "KIND", value_parser = PossibleValuesParser::new(Kind::VARIANTS),
          conflicts_with = "all")]
    kinds: Vec<String>,
    /// All open errors of these causes: an id that `errors list` prints, or a part of the text
    #[arg(long = "cause", value_name = "CAUSE", value_parser = NonEmptyStringValueParser::new(),
          conflicts_with = "all")]
    causes: Vec<String>,
    /// All open errors
    #[arg(long)]
    all: bool,
    /// Reason, recorded with each error
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// Closes errors, all that are asked for or none.
pub(super) async fn run(
    database: &Database,
    Arguments { error_ids, entities, kinds, causes, all, reason }: Arguments,
) -> anyhow::Result<()> {
    if reason.trim().is_empty() {
        bail!("--reason is blank; hint: give the reason why the error needs no upload");
    }
    journal::refuse_standby(database).await?;
    let ids: Vec<i64> = BTreeSet::from_iter(error_ids).into_iter().collect();
    let wanted = Wanted { ids, entities, kinds, causes, resolved: false };
    require_open(database, &wanted.ids).await?;
    let Some(resolved) = RecordedError::resolve(database, &wanted, &reason).await? else {
        bail!(
            "another process resolved one of these errors meanwhile; nothing was changed; hint: elven-sync errors list"
        );
    };
    if resolved.is_empty() {
        if all {
            output::line("no error is open");
            return Ok(());
        }
        let open = ErrorGroup::list(database, false).await?;
        bail!("{}; nothing was changed", output::no_match(&open, false));
    }
    for error_id in &wanted.ids {
        output::line(format_args!("error {error_id} is resolved"));
    }
    if wanted.ids.is_empty() {
        let count = resolved.values().sum();
        let kinds: Vec<String> = resolved.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        output::line(format_args!(
            "{} resolved: {}",
            counted_noun(count, "error is", "errors are"),
            kinds.join(", ")
        ));
    }
    Ok(())
}

/// Requires that each of these numbers is that of an open error.
async fn require_open(database: &Database, error_ids: &[i64]) -> anyhow::Result<()> {
    if error_ids.is_empty() {
        return Ok(());
    }
    let found = RecordedError::with_numbers(database, error_ids).await?;
    for error_id in error_ids {
        match found.iter().find(|error| error.error_id == *error_id) {
            None => bail!("there is no error {error_id}; nothing was changed; hint: elven-sync errors list"),
            Some(RecordedError { resolution: Some(resolution), .. }) => {
                bail!("error {error_id} is already resolved: {resolution}; nothing was changed")
            }
            Some(_) => {}
        }
    }
    Ok(())
}
