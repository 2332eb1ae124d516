//! `errors list`: the errors by cause, or one by one.

use super::error_filter::Filter;
use crate::database::Database;
use crate::journal::{self, Entity, ErrorCause, ErrorGroup, RecordedError, Wanted};
use crate::output::{self, ErrorFormat};

/// How many errors are read and printed at once.
const ROWS_AT_ONCE: usize = 1_000;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    filter: Filter,
    /// Also list resolved errors
    #[arg(long)]
    all: bool,
    /// List each error on a line of its own, newest first
    #[arg(long)]
    rows: bool,
    /// List at most this many causes, or errors with --rows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
struct Format {
    /// Print CSV, with a header
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(
    database: &Database,
    Arguments { filter, all, rows, limit, format }: Arguments,
) -> anyhow::Result<()> {
    let format = match (format.csv, format.json) {
        (true, _) => ErrorFormat::Csv,
        (_, true) => ErrorFormat::Json,
        _ => ErrorFormat::Text,
    };
    let wanted = filter.wanted(all);
    let is_empty = if rows {
        list_rows(database, &wanted, limit, format).await?
    } else {
        let causes = ErrorCause::list(database, &wanted, limit.map(i64::from)).await?;
        if !causes.is_empty() || format != ErrorFormat::Text {
            output::error_causes(&causes, format);
        }
        causes.is_empty()
    };
    if is_empty {
        nothing_matches(database, &wanted, format).await?;
    }
    Ok(())
}

/// Lists each error, some at a time: there may be millions. Returns whether there is none.
async fn list_rows(
    database: &Database,
    wanted: &Wanted,
    limit: Option<u32>,
    format: ErrorFormat,
) -> anyhow::Result<bool> {
    let numbers = RecordedError::numbers(database, wanted).await?;
    let listed = numbers.len().min(limit.map_or(usize::MAX, |limit| limit as usize));
    let mut list = output::ErrorRows::begin(format);
    for numbers in numbers[..listed].chunks(ROWS_AT_ONCE) {
        list.print(&RecordedError::with_numbers(database, numbers).await?);
    }
    list.end(numbers.len() - listed);
    Ok(numbers.is_empty())
}

/// Says that no error matches a filter, and which errors and entities there are. CSV and JSON have only the empty list,
/// so the entities are named in the log.
async fn nothing_matches(database: &Database, wanted: &Wanted, format: ErrorFormat) -> anyhow::Result<()> {
    let is_text = format == ErrorFormat::Text;
    if is_text {
        output::no_errors(&ErrorGroup::list(database, wanted.resolved).await?, wanted.resolved);
        // A run that fails as a whole is no error of an entity.
        if let Some(failure) = journal::failure_of_last_run(database).await? {
            output::line(failure);
        }
    }
    let entities = Entity::list(database).await?;
    let known: Vec<&str> = entities.iter().map(|entity| entity.entity_id.as_str()).collect();
    for entity_id in wanted.entities.iter().filter(|entity_id| !known.contains(&entity_id.as_str())) {
        let message = journal::unknown_entity(entity_id, &known);
        if is_text {
            output::line(message);
        } else {
            tracing::warn!("{message}");
        }
    }
    Ok(())
}
