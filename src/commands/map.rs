//! `map account | currency | list | remove`: the ledger's names and their names at Elven.

use clap::builder::NonEmptyStringValueParser;
use clap::{Subcommand, ValueEnum};

use super::connect::connect_migrated;
use super::exit_code::{FAILED, SUCCEEDED};
use crate::admin;
use crate::align::CurrencyKind;
use crate::config::Settings;
use crate::journal::{self, MapEntry, MapKind};
use crate::output;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Map an account of the ledger to an account at Elven
    ///
    /// Records that Elven accepted before stay as they are; the command names the backfill that sends them again.
    Account {
        #[command(flatten)]
        names: Names,
        /// Entity of the account; may be left out if only one is registered
        #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
        entity: Option<String>,
    },
    /// Map a currency of the ledger to a currency at Elven
    ///
    /// Records that Elven accepted before stay as they are; the command names the backfill that sends them again.
    Currency {
        #[command(flatten)]
        names: Names,
        /// What the name at Elven is, for `[api] version = 4`; by default what `[ledger] currency_kind` says
        #[arg(long, value_enum)]
        kind: Option<NameKind>,
        /// Only for this entity; takes precedence over a map for all entities
        #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
        entity: Option<String>,
    },
    /// List the maps in force
    List {
        /// Only maps that hold for this entity
        #[arg(long, value_name = "ID")]
        entity: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a map: the name is sent as it is from the next run on
    Remove {
        /// What is mapped
        #[arg(value_enum)]
        kind: Kind,
        /// Name, spelled as in the ledger
        ledger_name: String,
        /// Entity of the map
        #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
        entity: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Names {
    /// Name, spelled as in the ledger, letter case included
    ledger_name: String,
    /// Name at Elven: the id of an account or a currency, as `reference` shows it
    elven_name: String,
    /// Other names of the ledger may have the same name at Elven, e.g. an account that was renamed
    #[arg(long)]
    shared: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Kind {
    /// An account
    Account,
    /// A currency
    Currency,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum NameKind {
    /// A symbol
    #[value(name = "symbol")]
    Symbol,
    /// An id of an asset
    #[value(name = "asset_id")]
    AssetId,
}

impl From<NameKind> for CurrencyKind {
    fn from(kind: NameKind) -> Self {
        match kind {
            NameKind::Symbol => Self::Symbol,
            NameKind::AssetId => Self::AssetId,
        }
    }
}

impl Command {
    /// Whether people run the command for what it prints.
    pub(super) fn prints_its_product(&self) -> bool {
        matches!(self, Self::List { .. })
    }
}

pub(super) async fn run(command: Command, settings: &Settings) -> anyhow::Result<u8> {
    let database = connect_migrated(settings).await?;
    let (map, names, name_kind, entity) = match command {
        Command::Account { names, entity } => (MapKind::Account, names, None, entity),
        Command::Currency { names, kind, entity } => (MapKind::Currency, names, kind, entity),
        Command::List { entity, json } => {
            let maps = MapEntry::all(&database).await?;
            output::maps::list(&maps, entity.as_deref(), json);
            return Ok(SUCCEEDED);
        }
        Command::Remove { kind, ledger_name, entity } => {
            let kind = match kind {
                Kind::Account => MapKind::Account,
                Kind::Currency => MapKind::Currency,
            };
            journal::refuse_standby(&database).await?;
            let removed =
                admin::remove_map(&database, entry(kind, ledger_name, String::new(), entity)).await?;
            output::maps::removed(removed.as_ref());
            return Ok(if removed.is_some() { SUCCEEDED } else { FAILED });
        }
    };
    journal::refuse_standby(&database).await?;
    let Names { ledger_name, elven_name, shared } = names;
    let kind = name_kind.map(CurrencyKind::from);
    let map = MapEntry { shared, kind, ..entry(map, ledger_name, elven_name, entity) };
    output::maps::added(&admin::add_map(settings, &database, map).await?);
    Ok(SUCCEEDED)
}

fn entry(map: MapKind, ledger_name: String, elven_name: String, entity: Option<String>) -> MapEntry {
    let entity_id = entity.unwrap_or_default();
    let (shared, kind, map_version, added_at) = (false, None, 0, None);
    MapEntry { map, entity_id, ledger_name, elven_name, shared, kind, map_version, added_at }
}
