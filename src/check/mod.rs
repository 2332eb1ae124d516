//! `check`: preflight checks of configuration, database, ledger, entities, API, data, journal and host. Nothing is
//! written: every statement runs in a transaction that only reads, and every request only reads.

mod api;
mod configuration;
mod connection;
mod data;
mod database;
mod entities;
mod finding;
mod host;
mod journal;
mod ledger;
mod ledger_files;
mod pooler;
mod registry;
mod standby;
mod surroundings;
mod waiting;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, timeout};

pub use finding::{Category, Checked, Status, doc_of};
pub use registry::ids;

use crate::config::{Environment, Flags};
use finding::{Finding, Outcome, Unmade};
use registry::{CHECKS, Check};
use surroundings::Surroundings;

/// The longest time for one check.
const CHECK_MAX: Duration = Duration::from_secs(30);

/// The longest time for all checks. Those that are left then are skipped.
const ALL_MAX: Duration = Duration::from_mins(2);

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

/// Makes the checks of these categories, or of all if none is named. `known` gets each result as soon as it is known.
pub async fn check(
    flags: &Flags,
    environment: Environment,
    only: &[Category],
    mut known: impl FnMut(&Checked),
) -> Report {
    let surroundings = Surroundings::new(flags, environment);
    let mut checks: Vec<Checked> = Vec::new();
    let mut found = Found::default();
    let deadline = Instant::now() + ALL_MAX;
    let is_wanted = |check: &&Check| only.is_empty() || only.contains(&check.category);
    for check in CHECKS.iter().filter(is_wanted) {
        let begun = Instant::now();
        let outcome = match found.stopped {
            Some((category, by)) if category == check.category => Err(Unmade::Needs(by)),
            _ if deadline <= begun => {
                let all_s = ALL_MAX.as_secs();
                Err(Unmade::Prevented(format!("the checks before it took {all_s} s")))
            }
            _ => make(check, &surroundings, deadline - begun).await,
        };
        for failed in prerequisites(&outcome, &is_wanted, &checks, &surroundings, deadline).await {
            known(&failed);
            checks.push(failed);
        }
        let finding = found.take(check, outcome, &surroundings);
        let checked = reported(check, finding, begun);
        known(&checked);
        checks.push(checked);
    }
    surroundings.close().await;
    Report { checks, is_blocked: !found.is_some_made }
}

fn reported(check: &Check, finding: Finding, begun: Instant) -> Checked {
    let Finding { status, message, hint } = finding;
    let (id, category) = (check.id, check.category);
    Checked { id, category, status, message, hint, doc: doc_of(id), elapsed: begun.elapsed() }
}

/// Makes the checks of other categories that keep a check from being made, so that the reason is reported with it.
/// Returns those that are not reported yet, the first cause first.
async fn prerequisites(
    outcome: &Outcome,
    is_wanted: &impl Fn(&&Check) -> bool,
    reported_already: &[Checked],
    surroundings: &Surroundings,
    deadline: Instant,
) -> Vec<Checked> {
    let mut failed: Vec<Checked> = Vec::new();
    let mut needed = needs(outcome);
    while let Some(check) = needed.and_then(|id| CHECKS.iter().find(|check| check.id == id)) {
        let is_known = reported_already.iter().chain(&failed).any(|known| known.id == check.id);
        if is_known || is_wanted(&check) {
            break;
        }
        let begun = Instant::now();
        let outcome = make(check, surroundings, deadline.saturating_duration_since(begun)).await;
        needed = needs(&outcome);
        let finding = Found::default().take(check, outcome, surroundings);
        failed.push(reported(check, finding, begun));
    }
    failed.reverse();
    failed
}

fn needs(outcome: &Outcome) -> Option<&'static str> {
    if let Err(Unmade::Needs(id)) = outcome { Some(id) } else { None }
}

async fn make(check: &Check, surroundings: &Surroundings, left: Duration) -> Outcome {
    let limit = CHECK_MAX.min(left);
    let made = timeout(limit, (check.make)(surroundings));
    tokio::select! {
        biased;
        made = made => made.unwrap_or_else(|_| {
            Err(Unmade::Failed(format!("the check did not end within {} s", limit.as_secs())))
        }),
        never = surroundings.look_at_waits() => match never {},
    }
}

/// What the checks so far have found, as far as later ones depend on it.
#[derive(Default)]
struct Found {
    /// Some check was made, or found that there is nothing to check.
    is_some_made: bool,
    /// The category whose later checks are skipped, and the check that stopped it.
    stopped: Option<(Category, &'static str)>,
    /// The errors that kept checks from being made, and the first check of each. The same error is reported once.
    errors: BTreeMap<String, &'static str>,
}

impl Found {
    /// Takes the outcome of a check, and returns what is reported of it.
    fn take(&mut self, check: &Check, outcome: Outcome, surroundings: &Surroundings) -> Finding {
        let outcome = self.without_repetition(check.id, outcome);
        self.is_some_made |= !matches!(outcome, Err(Unmade::Needs(_) | Unmade::Prevented(_)));
        let skipped = |message: String| Finding { status: Status::Skipped, message, hint: None };
        let finding = match outcome {
            Ok(finding) => finding,
            Err(Unmade::Failed(message)) => Finding::of(Status::Failed, &message),
            Err(Unmade::NotApplicable(message) | Unmade::Prevented(message)) => skipped(message),
            Err(Unmade::Needs(id)) => skipped(format!("needs {id}, which failed")),
            Err(Unmade::Locked) => surroundings.locked(check.id),
            Err(Unmade::Slow) => surroundings.slow(),
        };
        if check.is_fatal && finding.status == Status::Failed {
            self.stopped = Some((check.category, check.id));
        }
        finding
    }

    fn without_repetition(&mut self, id: &'static str, outcome: Outcome) -> Outcome {
        match outcome {
            Err(Unmade::Failed(message)) => {
                let first = *self.errors.entry(message.clone()).or_insert(id);
                Err(if first == id { Unmade::Failed(message) } else { Unmade::Needs(first) })
            }
            other => other,
        }
    }
}
