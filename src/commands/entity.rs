//! `entity add | list | set | pause | resume | rewind | rebind`.

use anyhow::bail;
use clap::Subcommand;

use super::connect::{connect_migrated, freshness, registered, worker};
use super::exit_code::SUCCEEDED;
use super::{entity_set, rebind};
use crate::align;
use crate::config::Settings;
use crate::database::Database;
use crate::journal::{self, Entity, FromNow};
use crate::output;
use crate::sync;
use crate::text::{counted_noun, duration_text, quoted, quoted_argument, thousands};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Register an entity; the next run uploads all its rows
    Add {
        /// Entity, spelled as in the ledger
        id: String,
        /// IANA time zone of the entity's books, e.g. Europe/Zurich
        #[arg(long, value_name = "ZONE")]
        timezone: String,
        /// Name of the entity's credential in the configuration
        #[arg(long, value_name = "NAME", default_value = "default")]
        credential: String,
        /// Balance source at Elven, for `[api] version = 4`
        #[arg(long, value_name = "ID")]
        source_id: Option<String>,
        /// Skip the rows that the ledger has now; upload only rows written or updated later
        #[arg(long)]
        from_now: bool,
        /// How old the last poll and the first poll that found pending rows may be before the entity is stale (default:
        /// 1h); longer than the schedule
        #[arg(long, value_name = "DURATION", value_parser = freshness)]
        freshness: Option<i64>,
        /// Reason for --from-now, recorded in `sync_actions`
        #[arg(long, value_name = "TEXT", requires = "from_now")]
        reason: Option<String>,
    },
    /// List the registered entities
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change the time zone, the credential, the balance source or the freshness of an entity
    Set(entity_set::Options),
    /// Leave an entity out of runs and backfills until it is resumed
    Pause {
        /// Entity
        id: String,
        /// Reason, recorded in `sync_actions`
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Continue a paused entity where it stopped
    Resume {
        /// Entity
        id: String,
        /// Reason, recorded in `sync_actions`
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Move an entity's watermark back, so that the next run uploads the rows after it again
    Rewind {
        /// Entity
        id: String,
        /// The watermark at this time: RFC 3339, a date in the entity's time zone, or `start`
        #[arg(long, value_name = "TIME", default_value = START)]
        to: String,
        /// Reason, recorded in `sync_actions`
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
    /// Accept another cluster (after `pg_upgrade`), another mapping or a copied journal
    Rebind(rebind::Options),
}

impl Command {
    /// Whether people run the command for what it prints.
    pub(super) fn prints_its_product(&self) -> bool {
        matches!(self, Self::List { .. })
    }
}

/// The value of `rewind --to` that sends all rows again.
const START: &str = "start";

pub(super) async fn run(command: Command, settings: &Settings) -> anyhow::Result<u8> {
    match command {
        Command::Add { id, timezone, credential, source_id, from_now, freshness, reason } => {
            rebind::check_reason(reason.as_deref())?;
            let source_id = source_id.filter(|source_id| !source_id.is_empty());
            let freshness_s = freshness.unwrap_or(Entity::FRESHNESS_S);
            let entity =
                Entity { entity_id: id, timezone, credential, paused: false, source_id, freshness_s };
            let other_freshness = freshness.is_some();
            add(settings, entity, Registering { from_now, other_freshness, reason: reason.as_deref() }).await
        }
        Command::List { json } => list(settings, json).await,
        Command::Set(options) => entity_set::run(settings, options).await,
        Command::Pause { id, reason } => set_paused(settings, &id, true, reason.as_deref()).await,
        Command::Resume { id, reason } => set_paused(settings, &id, false, reason.as_deref()).await,
        Command::Rewind { id, to, reason, yes } => {
            rebind::check_reason(reason.as_deref())?;
            rewind(settings, &id, &to, reason.as_deref(), yes).await
        }
        Command::Rebind(options) => rebind::run(settings, options).await,
    }
}

/// The options of a registration.
#[derive(Clone, Copy)]
struct Registering<'a> {
    from_now: bool,
    /// A freshness was given.
    other_freshness: bool,
    reason: Option<&'a str>,
}

async fn add(settings: &Settings, entity: Entity, registering: Registering<'_>) -> anyhow::Result<u8> {
    let Registering { from_now, reason, .. } = registering;
    settings.zones.get(&entity.timezone)?;
    align::Text::read("the id of the entity", Some(&entity.entity_id))?;
    align::Text::read("the name of the credential", Some(&entity.credential))?;
    if let Some(source_id) = &entity.source_id {
        align::Text::read("the id of the source", Some(source_id))?;
    }
    let database = connect_migrated(settings).await?;
    journal::refuse_standby(&database).await?;
    let added = if from_now {
        match worker(settings, &database).await?.register_from_now(&entity, reason).await? {
            FromNow::Begun => true,
            FromNow::Registered => false,
            FromNow::HasWatermark => bail!(
                "entity `{}` was synced before and has a watermark, and rows after it may be pending; nothing was \
                 changed; hint: repeat the command without --from-now, and the next run continues from its watermark",
                entity.entity_id
            ),
        }
    } else {
        Entity::add(&database, &entity).await?
    };
    if !added {
        return already_registered(&database, &entity, registering).await;
    }
    output::line(format_args!(
        "entity `{}` is registered: time zone {}, credential `{}`; {}",
        entity.entity_id,
        entity.timezone,
        entity.credential,
        if from_now {
            "the rows that the ledger has now are skipped; runs upload rows that are written or updated from now on"
        } else {
            "the next run uploads all its rows"
        }
    ));
    if let Some(caution) = align::zone_caution(&entity.timezone) {
        output::line(format_args!("note: {caution}"));
    }
    if let Err(problem) = settings.credential(&entity.credential) {
        output::line(format_args!("note: {problem}"));
    }
    note_shared_credential(&database, &entity).await?;
    if let Err(problem) = sync::record_form(settings, &entity) {
        output::line(format_args!("note: {problem}"));
    }
    Ok(SUCCEEDED)
}

/// Says that other entities have the same credential.
async fn note_shared_credential(database: &Database, added: &Entity) -> anyhow::Result<()> {
    let all = Entity::list(database).await?;
    let is_other =
        |entity: &&Entity| entity.credential == added.credential && entity.entity_id != added.entity_id;
    let others: Vec<&Entity> = all.iter().filter(is_other).collect();
    if let Some(other) = others.first() {
        let more = i64::try_from(others.len() - 1)?;
        let others = if more == 0 { String::new() } else { format!(" and {} more", thousands(more)) };
        output::line(format_args!(
            "note: credential `{}` is also that of entity `{}`{others}, but a key belongs to one entity at Elven; \
             hint: add [credentials.NAME] to the configuration, then {}",
            added.credential,
            other.entity_id,
            sync::setting_credential(&added.entity_id)
        ));
    }
    Ok(())
}

/// Accepts a second registration with the same time zone, credential and source, and refuses any other.
async fn already_registered(
    database: &Database,
    entity: &Entity,
    registering: Registering<'_>,
) -> anyhow::Result<u8> {
    let known = registered(database, &entity.entity_id).await?;
    if entity.source_id.is_some() && known.source_id != entity.source_id {
        bail!(
            "entity `{}` is already registered with {}; nothing was changed; hint: {}",
            known.entity_id,
            known.source_id.as_ref().map_or("no source".to_owned(), |known| format!("source `{known}`")),
            sync::setting_source(&known.entity_id, entity.source_id.as_deref().unwrap_or_default())
        );
    }
    if (&known.timezone, &known.credential) != (&entity.timezone, &entity.credential) {
        bail!(
            "entity `{}` is already registered with time zone {} and credential `{}`; nothing was changed, and records \
             that were uploaded before would stay as they are; hint: elven-sync entity set --timezone={} \
             --credential={} {}",
            known.entity_id,
            known.timezone,
            known.credential,
            quoted(&entity.timezone),
            quoted(&entity.credential),
            quoted_argument(&known.entity_id)
        );
    }
    if registering.other_freshness && known.freshness_s != entity.freshness_s {
        let freshness = duration_text(entity.freshness_s);
        bail!(
            "entity `{}` is already registered with freshness {}; nothing was changed; hint: elven-sync entity set {} \
             --freshness {}",
            known.entity_id,
            duration_text(known.freshness_s),
            quoted_argument(&known.entity_id),
            quoted_argument(&freshness)
        );
    }
    if registering.from_now {
        bail!(
            "entity `{}` is already registered; its watermark was not moved; hint: --from-now is only for a new entity",
            known.entity_id
        );
    }
    output::line(format_args!("entity `{}` is already registered", known.entity_id));
    Ok(SUCCEEDED)
}

async fn rewind(
    settings: &Settings,
    id: &str,
    to: &str,
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
        output::line(format_args!("the watermark of `{id}` is already there; nothing was changed"));
        return Ok(SUCCEEDED);
    }
    let rows = counted_noun(plan.rows, "row", "rows");
    output::line(match plan.accepted {
        Some(accepted) => format!(
            "the watermark of `{id}` moves back over {rows}, {} of them accepted; the next run uploads them again, and \
             Elven may keep both uploads",
            thousands(accepted)
        ),
        None => format!(
            "the watermark of `{id}` moves back to the start; its journal was altered or copied, so it does not show \
             which rows Elven has; the next run uploads all {rows}, and Elven may keep both uploads"
        ),
    });
    if !yes && !output::confirm("Move the watermark back?")? {
        bail!("the watermark of `{id}` was not moved; hint: answer y, or add --yes");
    }
    worker.rewind(&plan, reason).await?;
    output::line(format_args!("the watermark of `{id}` was moved back"));
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
        let header = ["entity", "time zone", "credential", "source", "freshness", "paused"];
        output::lines(output::table(
            &header,
            &[],
            entities.into_iter().map(|entity| {
                let paused = if entity.paused { "paused" } else { "" };
                let source = entity.source_id.unwrap_or_default();
                let freshness = duration_text(entity.freshness_s);
                vec![
                    entity.entity_id,
                    entity.timezone,
                    entity.credential,
                    source,
                    freshness,
                    paused.to_owned(),
                ]
            }),
        ));
    }
    Ok(SUCCEEDED)
}

async fn set_paused(settings: &Settings, id: &str, paused: bool, reason: Option<&str>) -> anyhow::Result<u8> {
    rebind::check_reason(reason)?;
    let database = connect_migrated(settings).await?;
    journal::refuse_standby(&database).await?;
    if !Entity::set_paused(&database, id, paused, reason).await? {
        registered(&database, id).await?;
    }
    output::line(format_args!(
        "entity `{id}` is {}",
        if paused { "paused; its rows stay pending" } else { "resumed" }
    ));
    Ok(SUCCEEDED)
}
