//! `check`: preflight checks of configuration, database, ledger, entities, API, data, journal and host. Nothing is
//! written: every statement runs in a transaction that only reads, and every request only reads.

mod api;
mod configuration;
mod data;
mod database;
mod entities;
mod finding;
mod host;
mod journal;
mod ledger;
mod ledger_files;
mod registry;
mod surroundings;

use std::time::Duration;

use tokio::time::{Instant, timeout};

pub use finding::{Category, Checked, Status, doc_of};
pub use registry::ids;

use crate::config::{Environment, Flags};
use finding::{Finding, Outcome, Unmade};
use registry::{CHECKS, Check};
use surroundings::Surroundings;

/// The longest time for one check.
const CHECK_MAX: Duration = Duration::from_mins(2);

/// The results of the checks.
#[derive(Debug)]
pub struct Report {
    /// The checks in the order in which they were made.
    pub checks: Vec<Checked>,
    /// Whether no check could be made, because each needs something that is missing.
    pub is_blocked: bool,
}

impl Report {
    /// Whether something could be checked, and nothing was found that would stop or endanger the sync.
    pub fn is_ok(&self) -> bool {
        !self.is_blocked && self.checks.iter().all(|check| check.status != Status::Failed)
    }
}

/// Makes the checks of these categories, or of all if none is named.
pub async fn check(flags: &Flags, environment: Environment, only: &[Category]) -> Report {
    let surroundings = Surroundings::new(flags, environment);
    let mut checks: Vec<Checked> = Vec::new();
    let mut made_or_not_needed = false;
    // The category whose later checks are skipped, and the check that stopped it.
    let mut stopped: Option<(Category, &'static str)> = None;
    for check in CHECKS.iter().filter(|check| only.is_empty() || only.contains(&check.category)) {
        let begun = Instant::now();
        let outcome = match stopped {
            Some((category, by)) if category == check.category => Err(Unmade::Needs(by)),
            _ => make(check, &surroundings).await,
        };
        made_or_not_needed |= !matches!(outcome, Err(Unmade::Needs(_)));
        let finding = finding_of(outcome);
        if check.is_fatal && finding.status == Status::Failed {
            stopped = Some((check.category, check.id));
        }
        let Finding { status, message, hint } = finding;
        checks.push(Checked {
            id: check.id,
            category: check.category,
            status,
            message,
            hint,
            doc: doc_of(check.id),
            elapsed: begun.elapsed(),
        });
    }
    surroundings.close().await;
    Report { checks, is_blocked: !made_or_not_needed }
}

async fn make(check: &Check, surroundings: &Surroundings) -> Outcome {
    timeout(CHECK_MAX, (check.make)(surroundings)).await.unwrap_or_else(|_| {
        Err(Unmade::Failed(format!("the check did not end within {} s", CHECK_MAX.as_secs())))
    })
}

fn finding_of(outcome: Outcome) -> Finding {
    match outcome {
        Ok(finding) => finding,
        Err(Unmade::Failed(message)) => Finding::of(Status::Failed, &message),
        Err(Unmade::NotApplicable(message)) => Finding { status: Status::Skipped, message, hint: None },
        Err(Unmade::Needs(id)) => {
            Finding { status: Status::Skipped, message: format!("needs {id}, which failed"), hint: None }
        }
    }
}
