//! `attach`: prepares the configured ledger table, or prints the SQL that does it.

use std::borrow::Cow;
use std::time::Duration;

use anyhow::bail;

use super::connect::{connect, lock_timeout};
use super::exit_code::SUCCEEDED;
use crate::config::Settings;
use crate::database::Database;
use crate::ledger::LedgerError;
use crate::ledger::attach::{self, Plan, Wanted};
use crate::output;
use crate::text::escaped;

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct Options {
    /// Print the SQL as a script, and run nothing
    #[arg(long)]
    dry_run: bool,
    /// Drop column, trigger and index again
    #[arg(long)]
    undo: bool,
    /// Prepare the table although something would break
    #[arg(long)]
    yes: bool,
    /// Also create the index that makes backfills fast
    #[arg(long, conflicts_with = "undo")]
    backfill_index: bool,
    /// Wait at most this long for the lock on the table, 1ms to 1h; other sessions wait behind it
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = lock_timeout)]
    lock_timeout: Duration,
}

impl Options {
    /// Whether people run the command for what it prints.
    pub(super) fn prints_its_product(&self) -> bool {
        self.dry_run
    }
}

pub(super) async fn run(options: Options, settings: &Settings) -> anyhow::Result<u8> {
    let database = connect(settings).await?;
    let wanted = Wanted { lock_timeout: options.lock_timeout, backfill_index: options.backfill_index };
    let table = &settings.ledger.table;
    let mut plan = if options.undo {
        attach::plan_undo(&database, &settings.ledger, &wanted).await?
    } else {
        attach::plan(&database, &settings.ledger, &wanted).await?
    };
    plan.notes.extend(settings.ledger.zone_caution());
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
        bail!("{table} was not changed; hint: elven-sync attach --yes, after the above is taken care of");
    }
    let mut connection = database.session().await?;
    for step in &plan.steps {
        output::line(format_args!("{}", step.why));
        tracing::info!(sql = step.sql, "attach");
        if let Err(problem) = attach::take(&mut connection, step).await {
            return Err(explain(problem, &database, settings, &options).await);
        }
    }
    let state = if options.undo { "has no change_xid" } else { "is prepared" };
    let unchanged = if plan.steps.is_empty() { "; there was nothing to do" } else { "" };
    output::line(format_args!("{table} {state}{unchanged}"));
    Ok(SUCCEEDED)
}

/// Prints the plan as an SQL script, for a role that has the privileges that the connector's role lacks.
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
        output::line("-- nothing to do");
    }
}

/// Adds the remedy to an error of PostgreSQL.
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
                "no session holds a lock on it any more".to_owned()
            } else {
                format!("it is locked by {}", holders.join("; "))
            };
            anyhow::anyhow!(
                "{table} could not be locked within {:?}; {who}; the finished steps stay and are not repeated; hint: \
                 run the same command again at a quieter time, or with a longer --lock-timeout",
                options.lock_timeout
            )
        }
        // insufficient_privilege
        Some("42501") => anyhow::Error::new(problem).context(
            "this role lacks the privileges to prepare the table; hint: `elven-sync attach --dry-run` prints the SQL \
             for a role that has them",
        ),
        // dependent_objects_still_exist
        Some("2BP01") => anyhow::Error::new(problem)
            .context("another object depends on the column; hint: drop that object first, `\\d+` in psql shows it"),
        _ => problem.into(),
    }
}
