//! The state of the installation in a sentence.

use serde::Serialize;

use crate::journal::status_page::StatusPage;
use crate::text::{counted_noun, thousands};

/// The sentence while the sync tables cannot be read.
pub(super) const UNAVAILABLE: &str = "The sync tables cannot be read, so the state of the sync is not known.";

/// The state of the installation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    /// How bad it is.
    pub level: Level,
    /// The state in a sentence.
    pub text: String,
    /// How many entities are up to date, in another one.
    pub entities: String,
}

/// How bad the state of the installation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, strum::AsRefStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub(super) enum Level {
    /// A critical alert is open.
    Critical,
    /// A warning is open, or nothing is synced.
    Warning,
    /// No alert is open.
    Ok,
}

impl Level {
    /// A mark that does not depend on colour.
    pub(super) fn mark(self) -> &'static str {
        match self {
            Self::Critical => "\u{2715}",
            Self::Warning => "!",
            Self::Ok => "\u{2713}",
        }
    }
}

impl Verdict {
    pub(super) fn of(page: &StatusPage) -> Self {
        let (critical, warnings) = (page.alerts_with("critical"), page.alerts_with("warning"));
        let counted = |warnings| counted_noun(warnings, "warning", "warnings");
        let (level, text) = match (critical, warnings) {
            (0, 0) if page.entities.total == 0 => (Level::Warning, "Nothing is synced.".to_owned()),
            (0, 0) => (Level::Ok, "Nothing needs a person.".to_owned()),
            (0, _) => (Level::Warning, format!("A person should look: {}.", counted(warnings))),
            _ => {
                let critical = counted_noun(critical, "critical alert", "critical alerts");
                let warnings =
                    if warnings == 0 { String::new() } else { format!(" and {}", counted(warnings)) };
                (Level::Critical, format!("A person must act: {critical}{warnings}."))
            }
        };
        Self { level, text, entities: entities(page) }
    }
}

/// How many entities are up to date, in a sentence.
fn entities(page: &StatusPage) -> String {
    let (total, ok) = (page.entities.total, page.entities.with_status("ok"));
    if total == 0 {
        return "No entity is registered.".to_owned();
    }
    if ok == total {
        return match total {
            1 => "The only entity is up to date.".to_owned(),
            _ => format!("All {} are up to date.", counted_noun(total, "entity", "entities")),
        };
    }
    let others = page.entities.by_status.iter().filter(|count| count.status != "ok");
    let others: Vec<String> =
        others.map(|count| format!("{} {}", thousands(count.entities), count.status)).collect();
    format!(
        "{} of {} up to date; {}.",
        thousands(ok),
        match total {
            1 => "1 entity is".to_owned(),
            _ => format!("{} are", counted_noun(total, "entity", "entities")),
        },
        others.join(", ")
    )
}
