//! `attach`: prepares the configured ledger table, or prints how.

use std::borrow::Cow;
use std::time::Duration;

use anyhow::bail;

use super::connect::connect;
use super::exit_code::SUCCEEDED;
use crate::config::Settings;
use crate::database::Database;
use crate::ledger::LedgerError;
use crate::ledger::attach::{self, Plan, Wanted};
use crate::output;
use crate::text::escaped;

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that people type")]
pub(super) struct Options {
    /// Print the SQL that would be run, and run nothing
    #[arg(long)]
    dry_run: bool,
    /// Take column, trigger and index away again
    #[arg(long)]
    undo: bool,
    /// Go on although something would break
    #[arg(long)]
    yes: bool,
    /// Also make the index that helps backfills
    #[arg(long, conflicts_with = "undo")]
    backfill_index: bool,
    /// How long to wait for the table to be free; others wait behind
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = lock_timeout)]
    lock_timeout: Duration,
}

fn lock_timeout(text: &str) -> Result<Duration, String> {
    let wanted = super::connect::duration(text)?;
    let range = Duration::from_millis(1)..=Duration::from_hours(1);
    // To PostgreSQL 0 would mean: for ever.
    if range.contains(&wanted) { Ok(wanted) } else { Err("it has to be 1ms to 1h".to_owned()) }
}

pub(super) async fn run(options: Options, settings: &Settings) -> anyhow::Result<u8> {
    let database = connect(settings).await?;
    let wanted = Wanted { lock_timeout: options.lock_timeout, backfill_index: options.backfill_index };
    let table = &settings.ledger.table;
    let plan = if options.undo {
        attach::plan_undo(&database, &settings.ledger, &wanted).await?
    } else {
        attach::plan(&database, &settings.ledger, &wanted).await?
    };
    if options.dry_run {
        print(&plan);
        return Ok(SUCCEEDED);
    }
    for note in &plan.notes {
        output::line(format_args!("note: {note}"));
    }
    if !plan.breaks.is_empty() && !options.yes {
        for breaks in &plan.breaks {
            output::line(format_args!("would break: {breaks}"));
        }
        bail!("{table} was left as it is; hint: see to the above, then say attach --yes");
    }
    let mut connection = database.session().await?;
    for step in &plan.steps {
        output::line(format_args!("{}", step.why));
        tracing::info!(sql = step.sql, "attach");
        if let Err(problem) = attach::take(&mut connection, step).await {
            return Err(explain(problem, &database, settings, &options).await);
        }
    }
    let done = if options.undo { "has no stamp" } else { "is prepared" };
    let before = if plan.steps.is_empty() { "; there was nothing to do" } else { "" };
    output::line(format_args!("{table} {done}{before}"));
    Ok(SUCCEEDED)
}

/// As a script: for a person who may do what the connector's role may not.
fn print(plan: &Plan) {
    for (what, texts) in [("would break", &plan.breaks), ("note", &plan.notes)] {
        for text in texts {
            output::line(format_args!("-- {what}: {text}"));
        }
    }
    for step in &plan.steps {
        output::lines(format_args!("\n-- {}\n{}", escaped(&step.why), step.sql));
    }
    if plan.steps.is_empty() {
        output::line("-- there is nothing to do");
    }
}

/// Adds the remedy that goes with PostgreSQL's refusal.
async fn explain(
    problem: LedgerError,
    database: &Database,
    settings: &Settings,
    options: &Options,
) -> anyhow::Error {
    let code = match &problem {
        LedgerError::Database(sqlx::Error::Database(refused)) => refused.code().map(Cow::into_owned),
        _ => None,
    };
    let table = &settings.ledger.table;
    match code.as_deref() {
        // lock_not_available
        Some("55P03") => {
            let holders = attach::holders(database, &settings.ledger).await.unwrap_or_default();
            let who = if holders.is_empty() {
                "whoever held it has let go by now".to_owned()
            } else {
                format!("it is held by {}", holders.join("; "))
            };
            anyhow::anyhow!(
                "{table} was not free for {:?}, which is as long as everybody else who wants it should wait; {who}; \
                 hint: try again, when less is going on, or with a longer --lock-timeout; what was done before stays \
                 and is not done again",
                options.lock_timeout
            )
        }
        // insufficient_privilege
        Some("42501") => anyhow::Error::new(problem).context(
            "this role may not prepare the table; hint: `attach --dry-run` prints the SQL for one that may",
        ),
        // dependent_objects_still_exist
        Some("2BP01") => anyhow::Error::new(problem)
            .context("something else is defined over the column; hint: drop that first, `\\d+` shows it"),
        _ => problem.into(),
    }
}
