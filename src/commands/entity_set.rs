//! `entity set`: changes the registration of an entity.

use super::connect::{connect_migrated, freshness, registered};
use super::exit_code::SUCCEEDED;
use crate::align;
use crate::config::Settings;
use crate::database::Database;
use crate::journal::{self, Entity};
use crate::output;
use crate::sync;
use crate::text::duration_text;

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("changed").required(true).multiple(true)))]
pub(super) struct Options {
    /// Entity
    id: String,
    /// IANA time zone of the entity's books
    #[arg(long, value_name = "ZONE", group = "changed")]
    timezone: Option<String>,
    /// Name of the entity's credential in the configuration
    #[arg(long, value_name = "NAME", group = "changed")]
    credential: Option<String>,
    /// Balance source at Elven, for `[api] version = 4`; an empty ID removes it
    #[arg(long, value_name = "ID", group = "changed")]
    source_id: Option<String>,
    /// How old the last poll and the first poll that found pending rows may be, e.g. 2h; longer than the schedule
    #[arg(long, value_name = "DURATION", value_parser = freshness, group = "changed")]
    freshness: Option<i64>,
}

pub(super) async fn run(settings: &Settings, options: Options) -> anyhow::Result<u8> {
    let Options { id, timezone, credential, source_id, freshness } = options;
    if let Some(zone) = &timezone {
        settings.zones.get(zone)?;
    }
    if let Some(name) = &credential {
        align::Text::read("the name of the credential", Some(name))?;
    }
    if let Some(source) = source_id.as_deref().filter(|source| !source.is_empty()) {
        align::Text::read("the id of the source", Some(source))?;
    }
    let database = connect_migrated(settings).await?;
    journal::refuse_standby(&database).await?;
    let before = registered(&database, &id).await?;
    let now = Entity {
        timezone: timezone.unwrap_or_else(|| before.timezone.clone()),
        credential: credential.unwrap_or_else(|| before.credential.clone()),
        source_id: match source_id {
            Some(source) => Some(source).filter(|source| !source.is_empty()),
            None => before.source_id.clone(),
        },
        freshness_s: freshness.unwrap_or(before.freshness_s),
        ..before.clone()
    };
    let changes = changes(&before, &now);
    if changes.is_empty() {
        output::line(format_args!("entity `{id}` is registered like this already; nothing was changed"));
        return Ok(SUCCEEDED);
    }
    if !Entity::set(&database, &now).await? {
        registered(&database, &id).await?;
    }
    let is_about_records = (&before.timezone, &before.credential, &before.source_id)
        != (&now.timezone, &now.credential, &now.source_id);
    let caution = "; records that were uploaded before stay at Elven as they are";
    output::line(format_args!(
        "entity `{id}` has {} now{}",
        changes.join(", "),
        if is_about_records { caution } else { "" }
    ));
    if !is_about_records {
        return Ok(SUCCEEDED);
    }
    if before.timezone != now.timezone
        && let Some(caution) = align::zone_caution(&now.timezone)
    {
        output::line(format_args!("note: {caution}"));
    }
    if let Err(problem) = settings.credential(&now.credential) {
        output::line(format_args!("note: {problem}"));
    }
    match sync::record_form(settings, &now) {
        Err(problem) => output::line(format_args!("note: {problem}")),
        Ok(form) if form.source().is_none() && now.source_id.is_some() => {
            output::line("note: a source counts only with [api] version = 4; version 3 is configured");
        }
        Ok(_) if before.source_id != now.source_id => note_unlisted(settings, &database, &now).await,
        Ok(_) => {}
    }
    Ok(SUCCEEDED)
}

/// Returns what changes, in words.
fn changes(before: &Entity, now: &Entity) -> Vec<String> {
    let mut changes = Vec::new();
    if before.timezone != now.timezone {
        changes.push(format!("time zone {}", now.timezone));
    }
    if before.credential != now.credential {
        changes.push(format!("credential `{}`", now.credential));
    }
    if before.source_id != now.source_id {
        changes.push(match &now.source_id {
            Some(source) => format!("source `{source}`"),
            None => "no source".to_owned(),
        });
    }
    if before.freshness_s != now.freshness_s {
        changes.push(format!("freshness {}", duration_text(now.freshness_s)));
    }
    changes
}

/// Says that Elven does not list the source. A key that may not read the list says nothing about it.
async fn note_unlisted(settings: &Settings, database: &Database, entity: &Entity) {
    let listed = sync::list_sources(settings, database, std::slice::from_ref(entity)).await;
    for sources in listed.into_iter().flatten() {
        let is_source = |entry: &crate::elven::ListEntry| Some(&entry.id) == entity.source_id.as_ref();
        if sources.outcome.is_ok_and(|sources| !sources.iter().any(is_source)) {
            output::line(format_args!(
                "note: Elven does not list this source for credential `{}`, and would refuse each record; hint: \
                 elven-sync reference sources",
                sources.credential
            ));
        }
    }
}
