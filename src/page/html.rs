//! The pages as HTML.

use std::borrow::Borrow;

use askama::Template;
use chrono::{DateTime, Utc};

use super::chart::Bars;
use super::verdict::{UNAVAILABLE, Verdict};
use super::{STYLE, words};
use crate::journal::status_page::{Day, EntityPage, EntityShown, Quarter, RunShown, StatusPage};
use crate::text::thousands;

/// The status page.
#[derive(Template)]
#[template(path = "page/status.html")]
struct StatusHtml<'p> {
    page: &'p StatusPage,
    verdict: Verdict,
    refresh_s: Option<u32>,
}

/// The page of an entity.
#[derive(Template)]
#[template(path = "page/entity.html")]
struct EntityHtml<'p> {
    page: &'p EntityPage,
    refresh_s: Option<u32>,
}

/// A page with one sentence.
#[derive(Template)]
#[template(path = "page/sentence.html")]
struct SentenceHtml {
    title: &'static str,
    sentence: String,
    refresh_s: Option<u32>,
}

/// Returns the status page. `refresh_s`: the browser asks for it again after this time.
///
/// # Errors
/// None in practice: a text can always be written.
pub fn status(page: &StatusPage, refresh_s: Option<u32>) -> askama::Result<String> {
    StatusHtml { page, verdict: Verdict::of(page), refresh_s }.render()
}

/// Returns the page of an entity.
///
/// # Errors
/// None in practice.
pub fn entity(page: &EntityPage, refresh_s: Option<u32>) -> askama::Result<String> {
    EntityHtml { page, refresh_s }.render()
}

/// Returns the page while the sync tables cannot be read. `last_read`: when they were read last.
///
/// # Errors
/// None in practice.
pub fn unavailable(last_read: Option<DateTime<Utc>>, refresh_s: Option<u32>) -> askama::Result<String> {
    let last_read = match last_read {
        Some(at) => format!("They were last read at {}.", words::time(&at)),
        None => "They were not read yet since the process started.".to_owned(),
    };
    let sentence = format!("{UNAVAILABLE} {last_read}");
    SentenceHtml { title: "State not known", sentence, refresh_s }.render()
}

/// Returns the page of an entity that is not registered.
///
/// # Errors
/// None in practice.
pub fn unknown_entity(entity_id: &str) -> askama::Result<String> {
    let sentence =
        format!("No entity {} is registered; elven-sync entity list shows all.", words::name(entity_id));
    SentenceHtml { title: "Unknown entity", sentence, refresh_s: None }.render()
}

impl StatusHtml<'_> {
    /// The duration of a run so far, in seconds.
    fn seconds(run: &RunShown, page: &StatusPage) -> String {
        thousands((run.finished_at.unwrap_or(page.as_of) - run.started_at).num_seconds().max(0))
    }

    fn sparkline(entity: &EntityShown) -> Bars {
        Bars::new(entity.uploaded_by_hour.0.iter().copied())
    }
}

/// The bars of a day: a title, its unit in words, and the bars.
struct Strip {
    title: &'static str,
    class: &'static str,
    bars: Bars,
}

/// The strips of the chart of a day. An entity has no runs of its own.
fn strips(day: &Day, has_runs: impl Borrow<bool>) -> Vec<Strip> {
    let strip = |title, class, value: fn(&Quarter) -> i64| Strip {
        title,
        class,
        bars: Bars::new(day.quarters.iter().map(value)),
    };
    let mut strips = vec![
        strip("Rows uploaded", "good", |quarter| quarter.rows_uploaded),
        strip("Rows set aside", "warn", |quarter| quarter.rows_set_aside),
        strip("Batches not accepted", "bad", |quarter| quarter.batches_not_accepted),
    ];
    if *has_runs.borrow() {
        strips.push(strip("Runs that did not succeed", "bad", |quarter| quarter.runs_not_succeeded));
    }
    strips
}
