//! The maps of the ledger's names to the names at Elven: `account_map`, `currency_map`, and their history.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgExecutor;
use sqlx::postgres::PgDatabaseError;

use super::JournalError;
use crate::align::{CurrencyKind, NameMap, Names};
use crate::database::{Database, Transaction};
use crate::text::{quoted, quoted_option};

/// The entity of a map of currencies that holds for all entities.
pub const ALL_ENTITIES: &str = "*";

/// Stands for the name at Elven in a command that a hint proposes, until a person has chosen one.
pub const NAME_TO_CHOOSE: &str = "ELVEN_NAME";

/// The fact that the maps of an entity were compared with the ledger.
const COMPARED: &str = "maps_compared";

/// The SQLSTATE with which the triggers of the tables refuse a map.
const INTEGRITY_VIOLATION: &str = "23000";

/// What a map is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MapKind {
    /// `account_map`.
    Account,
    /// `currency_map`.
    Currency,
}

impl MapKind {
    /// Returns the word for one name.
    pub fn word(self) -> &'static str {
        match self {
            MapKind::Account => "account",
            MapKind::Currency => "currency",
        }
    }

    /// Returns the command that maps a name. `elven`: the name at Elven. `None`: a person has to find it.
    pub fn command(self, entity_id: &str, ledger: &str, elven: Option<&str>) -> String {
        let entity = match self {
            MapKind::Account => format!(" {}", quoted_option("--entity", entity_id)),
            MapKind::Currency => String::new(),
        };
        let is_like_an_option = [ledger, elven.unwrap_or_default()].iter().any(|name| name.starts_with('-'));
        let end_of_options = if is_like_an_option { "-- " } else { "" };
        let (of, elven) = (self.word(), elven.map_or_else(|| NAME_TO_CHOOSE.to_owned(), quoted));
        format!("elven-sync map {of}{entity} {end_of_options}{} {elven}", quoted(ledger))
    }
}

/// A map of a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapEntry {
    /// What it is about.
    pub map: MapKind,
    /// The entity, or [`ALL_ENTITIES`].
    pub entity_id: String,
    /// The name as the ledger spells it.
    pub ledger_name: String,
    /// The name at Elven.
    pub elven_name: String,
    /// Other names of the ledger may have the same name at Elven.
    pub shared: bool,
    /// What the name at Elven of a currency is, for version 4 of the API. `None`: `[ledger] currency_kind` says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<CurrencyKind>,
    /// The version that added it; 0 for a map that is not recorded yet.
    pub map_version: i64,
    /// When it was added.
    pub added_at: Option<DateTime<Utc>>,
}

/// What adding a map changed.
#[derive(Debug)]
pub enum Mapped {
    /// The name had no map. The version of the new one.
    Added(i64),
    /// It had another map, which was removed. The version of the new one.
    Replaced(MapEntry, i64),
    /// It had this map already.
    Unchanged,
}

/// The maps of entities, from the addition of each to its removal.
#[derive(Debug, Default)]
pub struct MapHistory {
    of_entity: BTreeMap<String, Vec<HistoryRow>>,
    /// The currencies of entities without maps of their own, by version.
    of_all: HashMap<i64, Arc<NameMap>>,
}

#[derive(Debug)]
struct HistoryRow {
    map_version: i64,
    map: String,
    entity_id: String,
    ledger_name: String,
    elven_name: String,
    shared: bool,
    currency_kind: Option<String>,
    removed_in: Option<i64>,
}

impl HistoryRow {
    fn is_in_force(&self, version: i64) -> bool {
        self.map_version <= version && self.removed_in.is_none_or(|removed| removed > version)
    }

    fn is(&self, kind: MapKind) -> bool {
        self.map == kind.word()
    }

    /// Returns the newest version that changed it.
    fn changed_in(&self) -> i64 {
        self.removed_in.unwrap_or(0).max(self.map_version)
    }
}

impl MapHistory {
    /// Reads the history of the maps of these entities.
    pub async fn read(database: &Database, entity_ids: &[String]) -> Result<Self, JournalError> {
        let read = || history(database.single_round_trip(), entity_ids);
        Ok(Self::of(database.retry(read).await?))
    }

    /// Reads the history of the maps of an entity in a transaction.
    pub async fn read_in(transaction: &mut Transaction, entity_id: &str) -> Result<Self, JournalError> {
        Ok(Self::of(history(transaction, &[entity_id.to_owned()]).await?))
    }

    fn of(rows: Vec<HistoryRow>) -> Self {
        let mut of_entity: BTreeMap<String, Vec<HistoryRow>> = BTreeMap::new();
        for row in rows {
            of_entity.entry(row.entity_id.clone()).or_default().push(row);
        }
        Self { of_entity, of_all: HashMap::new() }
    }

    /// Returns the names of an entity by the maps in force.
    pub fn names(&mut self, entity_id: &str) -> Names {
        let own = self.rows_of(entity_id);
        let version = own.iter().chain(self.rows_of(ALL_ENTITIES)).map(HistoryRow::changed_in).max();
        // Entities without currencies of their own share the maps for all entities.
        let has_currencies = own.iter().any(|row| row.is(MapKind::Currency));
        let Some(at) = version.filter(|_| !has_currencies) else { return self.names_at(entity_id, version) };
        let currencies = match self.of_all.get(&at) {
            Some(made) => made.clone(),
            None => Arc::new(self.currencies(entity_id, at)),
        };
        self.of_all.insert(at, currencies.clone());
        Names { version, accounts: Arc::new(self.accounts(entity_id, at)), currencies }
    }

    /// Returns the names of an entity by the maps that were in force at a version. `None`: before the first map.
    pub fn names_at(&self, entity_id: &str, version: Option<i64>) -> Names {
        let Some(at) = version else { return Names::default() };
        let (accounts, currencies) = (self.accounts(entity_id, at), self.currencies(entity_id, at));
        Names { version, accounts: Arc::new(accounts), currencies: Arc::new(currencies) }
    }

    /// Returns the names of the ledger that are or were mapped to a name for an entity.
    pub fn ledger_names_ever(&self, entity_id: &str, kind: MapKind, elven: &str) -> Vec<String> {
        let rows = self.rows_of(entity_id).iter().chain(self.rows_of(ALL_ENTITIES));
        let mapped = rows.filter(|row| row.is(kind) && row.elven_name == elven);
        mapped.map(|row| row.ledger_name.clone()).collect()
    }

    fn accounts(&self, entity_id: &str, at: i64) -> NameMap {
        map_of(self.rows_of(entity_id).iter().filter(|row| row.is(MapKind::Account)), at)
    }

    fn currencies(&self, entity_id: &str, at: i64) -> NameMap {
        let own: Vec<&HistoryRow> =
            self.rows_of(entity_id).iter().filter(|row| row.is(MapKind::Currency)).collect();
        let in_force = own.iter().filter(|row| row.is_in_force(at));
        let hidden: HashSet<&str> = in_force.map(|row| row.ledger_name.as_str()).collect();
        let of_all = self.rows_of(ALL_ENTITIES).iter();
        let of_all = of_all.filter(|row| !hidden.contains(row.ledger_name.as_str()));
        map_of(of_all.chain(own.iter().copied()), at)
    }

    fn rows_of(&self, entity_id: &str) -> &[HistoryRow] {
        self.of_entity.get(entity_id).map_or(&[], Vec::as_slice)
    }
}

fn map_of<'r>(rows: impl Iterator<Item = &'r HistoryRow>, at: i64) -> NameMap {
    let mut map = NameMap::default();
    for row in rows {
        map.note_change(&row.ledger_name, row.changed_in());
        if row.is_in_force(at) {
            map.add(&row.ledger_name, &row.elven_name, row.shared);
            if let Some(kind) = kind_of(row.currency_kind.as_deref()) {
                map.set_kind(&row.ledger_name, kind);
            }
        }
    }
    map
}

fn kind_of(word: Option<&str>) -> Option<CurrencyKind> {
    word.and_then(CurrencyKind::of)
}

async fn history(
    executor: impl PgExecutor<'_>,
    entity_ids: &[String],
) -> Result<Vec<HistoryRow>, sqlx::Error> {
    sqlx::query_as!(
        HistoryRow,
        "select map_version, map, entity_id, ledger_name, elven_name, shared, currency_kind, removed_in
           from elven_sync.map_history where entity_id = any ($1) or entity_id = '*' order by map_version",
        entity_ids
    )
    .fetch_all(executor)
    .await
}

impl MapHistory {
    /// Returns the version of the maps of each of these entities that was compared with the ledger.
    pub async fn compared(
        database: &Database,
        entity_ids: &[String],
    ) -> Result<BTreeMap<String, i64>, JournalError> {
        let read = || {
            sqlx::query!(
                r#"select entity_id as "entity_id!", (value ->> 'map_version')::bigint as "version!"
                     from elven_sync.sync_facts where name = $1 and entity_id = any ($2)"#,
                COMPARED,
                entity_ids
            )
            .fetch_all(database.single_round_trip())
        };
        let rows = database.retry(read).await?;
        Ok(rows.into_iter().map(|row| (row.entity_id, row.version)).collect())
    }

    /// Records that the maps of an entity were compared with the ledger.
    pub async fn note_compared(
        database: &Database,
        entity_id: &str,
        version: i64,
    ) -> Result<(), JournalError> {
        let write = || {
            sqlx::query!(
                "insert into elven_sync.sync_facts (name, entity_id, value)
                 values ($1, $2, jsonb_build_object('map_version', $3::bigint))
                 on conflict (name, coalesce(entity_id, '')) do update
                    set value = excluded.value, since = clock_timestamp(), checked_at = clock_timestamp()",
                COMPARED,
                entity_id,
                version
            )
        };
        database.execute(write).await?;
        Ok(())
    }
}

impl MapEntry {
    /// Returns the maps in force, ordered by kind, entity and name.
    pub async fn all(database: &Database) -> Result<Vec<Self>, JournalError> {
        let read = || {
            sqlx::query!(
                "select map, entity_id, ledger_name, elven_name, shared, currency_kind, map_version, added_at
                   from elven_sync.map_history where removed_in is null
                  order by map, entity_id, ledger_name"
            )
            .fetch_all(database)
        };
        let rows = database.retry(read).await?;
        let kind = |map: &str| if map == "account" { MapKind::Account } else { MapKind::Currency };
        Ok(rows
            .into_iter()
            .map(|row| Self {
                map: kind(&row.map),
                entity_id: row.entity_id,
                ledger_name: row.ledger_name,
                elven_name: row.elven_name,
                shared: row.shared,
                kind: kind_of(row.currency_kind.as_deref()),
                map_version: row.map_version,
                added_at: Some(row.added_at),
            })
            .collect())
    }

    /// Adds the map in place of another one of the same name, in one transaction.
    ///
    /// # Errors
    /// The triggers of the tables refuse maps by which balances would be mixed: [`JournalError::Refused`].
    pub async fn add(&self, database: &Database) -> Result<Mapped, JournalError> {
        let add = || async {
            let mut transaction = database.begin().await?;
            let before = self.in_force(&mut transaction).await?;
            let is_same = |before: &Self| {
                (&before.elven_name, before.shared, before.kind) == (&self.elven_name, self.shared, self.kind)
            };
            if before.as_ref().is_some_and(is_same) {
                return Ok(Mapped::Unchanged);
            }
            if before.is_some() {
                self.delete(&mut transaction).await?;
            }
            let version = self.insert(&mut transaction).await?;
            transaction.commit().await?;
            Ok(match before {
                Some(before) => Mapped::Replaced(before, version),
                None => Mapped::Added(version),
            })
        };
        database.retry(add).await.map_err(refused)
    }

    /// Counts the rows of these entities that are held because of a name, as it was sent.
    pub async fn held_rows(
        &self,
        database: &Database,
        entity_ids: &[String],
        sent: &str,
    ) -> Result<i64, JournalError> {
        let kind = format!("unknown_{}", self.map.word());
        let count = || {
            sqlx::query_scalar!(
                r#"select coalesce(sum(rows), 0)::bigint as "rows!" from elven_sync.sync_errors
                    where entity_id = any ($1) and kind = $2 and name = $3
                      and resolved_at is null and ledger_ids is not null"#,
                entity_ids,
                kind,
                sent
            )
            .fetch_one(database.single_round_trip())
        };
        Ok(database.retry(count).await?)
    }

    /// Removes the map of this name. Returns it, if there was one.
    pub async fn remove(&self, database: &Database) -> Result<Option<Self>, JournalError> {
        let remove = || async {
            let mut transaction = database.begin().await?;
            let before = self.in_force(&mut transaction).await?;
            self.delete(&mut transaction).await?;
            transaction.commit().await?;
            Ok(before)
        };
        database.retry(remove).await.map_err(refused)
    }

    /// Returns the map that the name has now.
    async fn in_force(&self, transaction: &mut Transaction) -> Result<Option<Self>, sqlx::Error> {
        let found = sqlx::query!(
            "select elven_name, shared, currency_kind, map_version from elven_sync.map_history
              where map = $1 and entity_id = $2 and ledger_name = $3 and removed_in is null",
            self.map.word(),
            self.entity_id,
            self.ledger_name
        )
        .fetch_optional(transaction)
        .await?;
        Ok(found.map(|map| Self {
            elven_name: map.elven_name,
            shared: map.shared,
            kind: kind_of(map.currency_kind.as_deref()),
            map_version: map.map_version,
            added_at: None,
            ..self.clone()
        }))
    }

    /// Removes the map of this name, if there is one.
    async fn delete(&self, transaction: &mut Transaction) -> Result<(), sqlx::Error> {
        let (entity_id, name) = (&self.entity_id, &self.ledger_name);
        match self.map {
            MapKind::Account => {
                sqlx::query!(
                    "delete from elven_sync.account_map where entity_id = $1 and ledger_account = $2",
                    entity_id,
                    name
                )
                .execute(transaction)
                .await?
            }
            MapKind::Currency => {
                sqlx::query!(
                    "delete from elven_sync.currency_map where entity_id = $1 and ledger_currency = $2",
                    entity_id,
                    name
                )
                .execute(transaction)
                .await?
            }
        };
        Ok(())
    }

    async fn insert(&self, transaction: &mut Transaction) -> Result<i64, sqlx::Error> {
        match self.map {
            MapKind::Account => {
                sqlx::query_scalar!(
                    "insert into elven_sync.account_map (entity_id, ledger_account, entity_account_id, shared)
                     values ($1, $2, $3, $4) returning map_version",
                    self.entity_id,
                    self.ledger_name,
                    self.elven_name,
                    self.shared
                )
                .fetch_one(transaction)
                .await
            }
            MapKind::Currency => {
                sqlx::query_scalar!(
                    "insert into elven_sync.currency_map (entity_id, ledger_currency, currency, shared, kind)
                     values ($1, $2, $3, $4, $5) returning map_version",
                    self.entity_id,
                    self.ledger_name,
                    self.elven_name,
                    self.shared,
                    self.kind.map(CurrencyKind::word)
                )
                .fetch_one(transaction)
                .await
            }
        }
    }
}

/// Takes over the words of the triggers that refuse a map.
pub(super) fn refused(problem: sqlx::Error) -> JournalError {
    let words = problem
        .as_database_error()
        .filter(|refused| refused.code().is_some_and(|code| code == INTEGRITY_VIOLATION))
        .and_then(|refused| refused.try_downcast_ref::<PgDatabaseError>())
        .map(|refused| match refused.hint() {
            Some(hint) => format!("{}; hint: {hint}", refused.message()),
            None => refused.message().to_owned(),
        });
    words.map_or_else(|| problem.into(), JournalError::Refused)
}
