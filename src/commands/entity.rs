//! `entity add | list | pause | resume`.

use anyhow::bail;
use clap::Subcommand;
use sqlx::PgPool;

use super::{SUCCEEDED, connect};
use crate::align;
use crate::config::Settings;
use crate::journal::{self, Entity};
use crate::output;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Register an entity; its whole history in the ledger is uploaded by the next run
    Add {
        /// The entity, spelled as in the ledger
        id: String,
        /// IANA time zone that it keeps its books in, e.g. Europe/Zurich
        #[arg(long, value_name = "ZONE")]
        timezone: String,
        /// Name of its credential in the configuration
        #[arg(long, value_name = "NAME", default_value = "default")]
        credential: String,
    },
    /// List the registered entities
    List {
        /// For machines
        #[arg(long)]
        json: bool,
    },
    /// Leave an entity alone until it is resumed; its rows wait
    Pause {
        /// The entity
        id: String,
    },
    /// Go on with a paused entity where it stopped
    Resume {
        /// The entity
        id: String,
    },
}

pub(super) async fn run(command: Command, settings: &Settings) -> anyhow::Result<u8> {
    match command {
        Command::Add { id, timezone, credential } => add(settings, id, timezone, credential).await,
        Command::List { json } => list(settings, json).await,
        Command::Pause { id } => set_paused(settings, &id, true).await,
        Command::Resume { id } => set_paused(settings, &id, false).await,
    }
}

async fn add(settings: &Settings, id: String, timezone: String, credential: String) -> anyhow::Result<u8> {
    align::zone(&timezone)?;
    align::check_text("the entity's id", Some(&id))?;
    align::check_text("the credential's name", Some(&credential))?;
    let pool = connect_migrated(settings).await?;
    let entity = Entity { entity_id: id, timezone, credential, paused: false };
    if !Entity::add(&pool, &entity).await? {
        let known = Entity::list(&pool).await?.into_iter().find(|known| known.entity_id == entity.entity_id);
        let Some(known) = known else {
            bail!("entity `{}` was removed just now; try again", entity.entity_id)
        };
        if (&known.timezone, &known.credential) != (&entity.timezone, &entity.credential) {
            bail!(
                "entity `{}` is registered already, with time zone {} and credential `{}`; nothing was changed; hint: \
                 update elven_sync.entities to change it; what was uploaded before stays as it was",
                known.entity_id,
                known.timezone,
                known.credential
            );
        }
        output::line(format_args!("entity `{}` is registered already", known.entity_id));
        return Ok(SUCCEEDED);
    }
    output::line(format_args!(
        "entity `{}` is registered: time zone {}, credential `{}`; the next run uploads its history",
        entity.entity_id, entity.timezone, entity.credential
    ));
    if let Err(problem) = settings.credential(&entity.credential) {
        output::line(format_args!("note: {problem}"));
    }
    Ok(SUCCEEDED)
}

async fn list(settings: &Settings, as_json: bool) -> anyhow::Result<u8> {
    let pool = connect_migrated(settings).await?;
    let entities = Entity::list(&pool).await?;
    if as_json {
        output::line(serde_json::json!({ "entities": entities }));
    } else if entities.is_empty() {
        output::line("no entity is registered; hint: elven-sync entity add ID --timezone ZONE");
    } else {
        let header = ["entity", "time zone", "credential", "paused"];
        output::line(output::table(
            &header,
            &[],
            entities.into_iter().map(|entity| {
                let paused = if entity.paused { "paused" } else { "" };
                vec![entity.entity_id, entity.timezone, entity.credential, paused.to_owned()]
            }),
        ));
    }
    Ok(SUCCEEDED)
}

async fn set_paused(settings: &Settings, id: &str, paused: bool) -> anyhow::Result<u8> {
    let pool = connect_migrated(settings).await?;
    if !Entity::set_paused(&pool, id, paused).await? {
        let entities = Entity::list(&pool).await?;
        let known: Vec<&str> = entities.iter().map(|entity| entity.entity_id.as_str()).collect();
        bail!(output::unknown_entity(id, &known));
    }
    output::line(format_args!(
        "entity `{id}` is {}",
        if paused { "paused; its rows wait" } else { "resumed" }
    ));
    Ok(SUCCEEDED)
}

/// Connects, and makes sure that the sync tables are there: nothing else opens them here.
async fn connect_migrated(settings: &Settings) -> anyhow::Result<PgPool> {
    let pool = connect(settings).await?;
    journal::check_schema(&pool).await?;
    Ok(pool)
}
