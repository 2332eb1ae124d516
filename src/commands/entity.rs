//! `entity add | list | pause | resume | rewind | rebind`.

use anyhow::bail;
use clap::Subcommand;

use super::connect::{connect_migrated, registered, worker};
use super::exit_code::SUCCEEDED;
use super::rebind;
use crate::align;
use crate::config::Settings;
use crate::database::Database;
use crate::journal::{self, Entity, FromNow};
use crate::output;
use crate::text::thousands;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Register an entity; the next run uploads its whole history in the ledger
    Add {
        /// The entity, spelled as in the ledger
        id: String,
        /// IANA time zone that it keeps its books in, e.g. Europe/Zurich
        #[arg(long, value_name = "ZONE")]
        timezone: String,
        /// Name of its credential in the configuration
        #[arg(long, value_name = "NAME", default_value = "default")]
        credential: String,
        /// Skip what the ledger has already: upload only what is written or updated from now on
        #[arg(long)]
        from_now: bool,
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
    /// Move an entity's watermark back, so that the next run uploads again what came after it
    Rewind {
        /// The entity
        id: String,
        /// To where it stood at that time (RFC 3339, or a date in the entity's zone), or `start`
        #[arg(long, value_name = "TIME", default_value = START)]
        to: String,
        /// Why; recorded in `sync_actions`
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Accept another system identifier (after `pg_upgrade`), another mapping of the ledger, or a copied journal
    Rebind(rebind::Options),
}

/// `rewind --to` this: everything again.
const START: &str = "start";

pub(super) async fn run(command: Command, settings: &Settings) -> anyhow::Result<u8> {
    match command {
        Command::Add { id, timezone, credential, from_now } => {
            add(settings, Entity { entity_id: id, timezone, credential, paused: false }, from_now).await
        }
        Command::List { json } => list(settings, json).await,
        Command::Pause { id } => set_paused(settings, &id, true).await,
        Command::Resume { id } => set_paused(settings, &id, false).await,
        Command::Rewind { id, to, reason, yes } => {
            rebind::check_reason(reason.as_deref())?;
            rewind(settings, (&id, &to), reason.as_deref(), yes).await
        }
        Command::Rebind(options) => rebind::run(settings, options).await,
    }
}

async fn add(settings: &Settings, entity: Entity, from_now: bool) -> anyhow::Result<u8> {
    settings.zones.get(&entity.timezone)?;
    align::Text::read("the entity's id", Some(&entity.entity_id))?;
    align::Text::read("the credential's name", Some(&entity.credential))?;
    let database = connect_migrated(settings).await?;
    journal::refuse_standby(&database).await?;
    let added = if from_now {
        match worker(settings, &database).await?.register_from_now(&entity).await? {
            FromNow::Begun => true,
            FromNow::Registered => false,
            FromNow::HasWatermark => bail!(
                "entity `{}` was synced before and has a watermark, behind which rows may wait; nothing was changed; \
                 hint: without --from-now it goes on where it was",
                entity.entity_id
            ),
        }
    } else {
        Entity::add(&database, &entity).await?
    };
    if !added {
        return already_registered(&database, &entity, from_now).await;
    }
    output::line(format_args!(
        "entity `{}` is registered: time zone {}, credential `{}`; {}",
        entity.entity_id,
        entity.timezone,
        entity.credential,
        if from_now {
            "what the ledger has already is skipped, runs upload what is written or updated from now on"
        } else {
            "the next run uploads its history"
        }
    ));
    if let Err(problem) = settings.credential(&entity.credential) {
        output::line(format_args!("note: {problem}"));
    }
    Ok(SUCCEEDED)
}

/// Registering twice is no harm, as long as it says the same.
async fn already_registered(database: &Database, entity: &Entity, from_now: bool) -> anyhow::Result<u8> {
    let known = registered(database, &entity.entity_id).await?;
    if (&known.timezone, &known.credential) != (&entity.timezone, &entity.credential) {
        bail!(
            "entity `{}` is registered already, with time zone {} and credential `{}`; nothing was changed; hint: \
             update elven_sync.entities to change it; what was uploaded before stays as it was",
            known.entity_id,
            known.timezone,
            known.credential
        );
    }
    if from_now {
        bail!(
            "entity `{}` is registered already; its watermark stays where it is and nothing was changed; hint: \
             --from-now is for a new entity",
            known.entity_id
        );
    }
    output::line(format_args!("entity `{}` is registered already", known.entity_id));
    Ok(SUCCEEDED)
}

async fn rewind(
    settings: &Settings,
    (id, to): (&str, &str),
    reason: Option<&str>,
    yes: bool,
) -> anyhow::Result<u8> {
    let database = connect_migrated(settings).await?;
    journal::refuse_standby(&database).await?;
    let entity = registered(&database, id).await?;
    let at =
        if to == START { None } else { Some(align::instant(to, &settings.zones.get(&entity.timezone)?)?) };
    let worker = worker(settings, &database).await?;
    let plan = worker.plan_rewind(id, at).await?;
    if !plan.is_move {
        output::line(format_args!("the watermark of `{id}` stands there already; nothing was moved"));
        return Ok(SUCCEEDED);
    }
    output::line(format_args!(
        "`{id}` moves back {} rows, {} of them already accepted; the next run uploads them again, and Elven may keep \
         what it has of them",
        thousands(plan.rows),
        thousands(plan.accepted)
    ));
    if !yes && !output::confirm("Move it back?")? {
        bail!("nothing was moved; hint: answer y, or say --yes");
    }
    worker.rewind(&plan, reason).await?;
    output::line(format_args!("`{id}` was moved back"));
    Ok(SUCCEEDED)
}

async fn list(settings: &Settings, as_json: bool) -> anyhow::Result<u8> {
    let database = connect_migrated(settings).await?;
    let entities = Entity::list(&database).await?;
    if as_json {
        output::json_line(&serde_json::json!({ "entities": entities }));
    } else if entities.is_empty() {
        output::line("no entity is registered; hint: elven-sync entity add ID --timezone ZONE");
    } else {
        let header = ["entity", "time zone", "credential", "paused"];
        output::lines(output::table(
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
    let database = connect_migrated(settings).await?;
    journal::refuse_standby(&database).await?;
    if !Entity::set_paused(&database, id, paused).await? {
        registered(&database, id).await?;
    }
    output::line(format_args!(
        "entity `{id}` is {}",
        if paused { "paused; its rows wait" } else { "resumed" }
    ));
    Ok(SUCCEEDED)
}
