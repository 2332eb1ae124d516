//! The results of checks, as plain data.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::database::Transient;
use crate::journal::JournalError;
use crate::ledger::LedgerError;
use crate::sync::RunError;
use crate::text::{and_more, chain};

/// The category of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Category {
    /// The configuration: its files, its variables, the secrets.
    Configuration,
    /// The database server, and the rights of the role.
    Database,
    /// The ledger table or view.
    Ledger,
    /// The registered entities.
    Entities,
    /// The API.
    Api,
    /// The data of the ledger against the API.
    Data,
    /// The journal.
    Journal,
    /// The machine that runs the check.
    Host,
}

impl Category {
    /// Returns the name, as `--only` and JSON spell it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Database => "database",
            Self::Ledger => "ledger",
            Self::Entities => "entities",
            Self::Api => "api",
            Self::Data => "data",
            Self::Journal => "journal",
            Self::Host => "host",
        }
    }
}

/// The status of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All is well.
    Ok,
    /// The sync works, and a person should look.
    Warning,
    /// It would stop or endanger the sync.
    Failed,
    /// The check was not made, for the reason in the message.
    Skipped,
}

impl Status {
    /// Returns the word for people and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// One check that was made or skipped.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// Its id, which never changes: the category, a dot and a name.
    pub id: &'static str,
    /// Its category.
    pub category: Category,
    /// Its result.
    pub status: Status,
    /// What was found, or why the check was skipped.
    pub message: String,
    /// The remedy, as a command where there is one.
    pub hint: Option<String>,
    /// Where the handbook describes the check.
    pub doc: String,
    /// How long it took.
    #[serde(rename = "elapsed_ms", serialize_with = "in_milliseconds")]
    pub elapsed: Duration,
}

fn in_milliseconds<S: Serializer>(elapsed: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

/// Returns where the handbook describes a check.
pub fn doc_of(id: &str) -> String {
    format!("docs/operating.md#check-{}", id.replace('.', ""))
}

/// What precedes the remedy in the messages of this program.
const HINT: &str = "; hint: ";

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) status: Status,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Finding {
    pub(super) fn ok(message: impl Into<String>) -> Self {
        Self { status: Status::Ok, message: message.into(), hint: None }
    }

    pub(super) fn warning(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: Status::Warning, message: message.into(), hint: Some(hint.into()) }
    }

    pub(super) fn failed(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: Status::Failed, message: message.into(), hint: Some(hint.into()) }
    }

    /// Makes a finding of a message of this program whose remedy follows after `; hint: `.
    ///
    /// A remedy is pasted into a shell, and the message may quote a text from outside that has the same words. So no
    /// remedy is taken from a message that has them twice.
    pub(super) fn of(status: Status, message: &str) -> Self {
        let mut parts = message.split(HINT);
        let (message, hint) = match (parts.next(), parts.next(), parts.next()) {
            (Some(said), Some(hint), None) => (said, Some(command(hint).to_owned())),
            _ => (message, None),
        };
        Self { status, message: message.to_owned(), hint }
    }

    /// Appends what follows from the finding.
    pub(super) fn and(self, what: &str) -> Self {
        Self { message: self.message + what, ..self }
    }
}

/// Returns the command of a remedy that is nothing else, so that it can be pasted: "run `elven-sync migrate`".
fn command(hint: &str) -> &str {
    let quoted =
        hint.strip_prefix("run ").unwrap_or(hint).strip_prefix('`').and_then(|hint| hint.strip_suffix('`'));
    quoted.filter(|command| !command.contains('`')).unwrap_or(hint)
}

/// Why a check has no finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unmade {
    /// There is nothing to check.
    NotApplicable(String),
    /// It needs something that another check found missing.
    Needs(&'static str),
    /// What another check found keeps it from being made, in these words.
    Prevented(String),
    /// A statement waited in vain for a lock.
    Locked,
    /// A statement was ended because it took too long.
    Slow,
    /// The check could not be made, because of an error that would stop a run, too.
    Failed(String),
}

impl Unmade {
    /// Returns what an error of the database means, if it is one of those that have a meaning of their own.
    fn of_limits(problem: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let mut next = Some(problem);
        while let Some(problem) = next {
            if let Some(sqlx::Error::Database(refused)) = problem.downcast_ref() {
                return match refused.code().as_deref() {
                    // lock_not_available
                    Some("55P03") => Some(Self::Locked),
                    // query_canceled
                    Some("57014") => Some(Self::Slow),
                    _ => None,
                };
            }
            next = problem.source();
        }
        None
    }
}

pub(super) type Outcome = Result<Finding, Unmade>;

impl From<sqlx::Error> for Unmade {
    fn from(problem: sqlx::Error) -> Self {
        Self::of_limits(&problem).unwrap_or_else(|| {
            Self::Failed(if problem.is_transient() {
                format!("the database failed: {}", foreign(&chain(&problem)))
            } else {
                foreign(&chain(&problem))
            })
        })
    }
}

/// Returns the message of a server without words that look like a remedy.
pub(super) fn foreign(message: &str) -> String {
    message.replace(HINT, ", hint: ")
}

impl From<LedgerError> for Unmade {
    fn from(problem: LedgerError) -> Self {
        Self::of_limits(&problem).unwrap_or_else(|| {
            Self::Failed(if problem.is_about_rows() { problem.in_words() } else { chain(&problem) })
        })
    }
}

impl From<JournalError> for Unmade {
    fn from(problem: JournalError) -> Self {
        Self::of_limits(&problem).unwrap_or_else(|| Self::Failed(chain(&problem)))
    }
}

impl From<RunError> for Unmade {
    fn from(problem: RunError) -> Self {
        Self::of_limits(&problem).unwrap_or_else(|| Self::Failed(chain(&problem)))
    }
}

/// Names the first few of many things, and how many more there are.
pub(super) fn named<T: fmt::Display>(things: impl IntoIterator<Item = T>) -> String {
    const NAMED_MAX: usize = 3;
    let mut things = things.into_iter();
    let first: Vec<String> = things.by_ref().take(NAMED_MAX).map(|thing| thing.to_string()).collect();
    and_more(&first, first.len() + things.count())
}

/// Formats an age or a duration for people, with one unit.
pub(super) fn age(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Formats a number of bytes for people, with one unit.
pub(super) fn size(bytes: i64) -> String {
    match bytes {
        ..2048 => format!("{bytes} bytes"),
        2048..2_097_152 => format!("{} KiB", bytes >> 10),
        2_097_152..2_147_483_648 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_named_and_the_others_counted() {
        assert_eq!(named(["a", "b", "c"]), "a, b, c");
        assert_eq!(named(["a", "b", "c", "d", "e"]), "a, b, c and 2 more");
        assert_eq!(
            [size(7), size(8192), size(5 << 20), size(12 << 30)],
            ["7 bytes", "8 KiB", "5 MiB", "12 GiB"]
        );
        assert_eq!([age(90), age(150), age(7300), age(200_000)], ["90 s", "2 min", "2 h", "2 days"]);
    }

    #[test]
    fn the_remedy_is_apart_from_the_message() {
        let finding = Finding::of(Status::Failed, "it is gone; hint: look");
        assert_eq!((&*finding.message, finding.hint.as_deref()), ("it is gone", Some("look")));
        assert_eq!(command("run `elven-sync migrate`"), "elven-sync migrate");
        assert_eq!(command("`a` creates it; or `b`"), "`a` creates it; or `b`");
        let quoting = "entity `a; hint: rm x` is gone; hint: look";
        let finding = Finding::of(Status::Failed, quoting);
        assert_eq!((&*finding.message, finding.hint), (quoting, None));
    }
}
