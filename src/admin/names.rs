//! The names of accounts and currencies that the ledger uses, beside those that the API knows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::align::NameMap;
use crate::config::Settings;
use crate::database::Database;
use crate::elven::List;
use crate::journal::{self, Entity, KnownName, MapHistory, StoredList};
use crate::ledger::{Ledger, LedgerError, NameInUse};
use crate::sync::RunError;
use crate::text::KnownNames;

/// What `reference accounts` and `reference currencies` show.
#[derive(Debug, Default)]
pub struct NameReport {
    /// The stored lists of the credentials that registered entities have.
    pub lists: Vec<StoredList>,
    /// The credentials without a stored list.
    pub without_list: Vec<String>,
    /// The names that the ledger uses.
    pub used: Vec<UsedName>,
    /// The names that the API knows and the ledger does not use.
    pub unused: Vec<KnownName>,
}

/// A name that rows of an entity have.
#[derive(Debug, PartialEq, Eq)]
pub struct UsedName {
    /// The entity.
    pub entity_id: String,
    /// The name, as the ledger spells it.
    pub name: String,
    /// The number of rows with it.
    pub rows: i64,
    /// The name at Elven to which it is mapped. `None`: it is sent as it is.
    pub mapped_to: Option<String>,
    /// Whether the API knows the name that is sent.
    pub status: NameStatus,
}

/// Whether the API knows a name.
#[derive(Debug, PartialEq, Eq)]
pub enum NameStatus {
    /// It does; with the name for people.
    Known(Option<String>),
    /// It does not; with the known names that are near.
    Unknown(Vec<String>),
    /// No list is stored for the credential of the entity.
    NoList,
}

/// The stored list of one credential.
struct CredentialNames<'a> {
    names: BTreeMap<&'a str, Option<&'a str>>,
    near: KnownNames<'a>,
}

/// Compares the names in the ledger with those that the API knows. Reads the whole ledger table.
pub async fn names(settings: &Settings, database: &Database, list: List) -> Result<NameReport, RunError> {
    journal::check_schema(database).await?;
    let ledger = Ledger::open(database.clone(), None, settings).await?;
    let entities = Entity::list(database).await?;
    let ids: Vec<String> = entities.iter().map(|entity| entity.entity_id.clone()).collect();
    let known = KnownName::all(database, list).await?;
    let lists = StoredList::all(database).await?;
    let used = match (&ids[..], list) {
        ([], _) => Ok(Vec::new()),
        (ids, List::Accounts) => ledger.accounts_in_use(ids).await,
        (ids, List::Currencies) => ledger.currencies_in_use(ids).await,
    };
    let used = used.map_err(in_words)?;
    let mut maps = MapHistory::read(database, &ids).await?;
    let maps: BTreeMap<&str, Arc<NameMap>> = ids
        .iter()
        .map(|entity_id| {
            let names = maps.names(entity_id);
            (&**entity_id, if list == List::Accounts { names.accounts } else { names.currencies })
        })
        .collect();
    let mut report = compare(&entities, used, &known, &maps);
    let credentials = Entity::credentials(&entities);
    let of = |credential: &String| {
        lists.iter().find(|stored| stored.credential == *credential && stored.list == list).cloned()
    };
    report.lists = credentials.iter().filter_map(of).collect();
    report.without_list = credentials.into_iter().filter(|credential| of(credential).is_none()).collect();
    Ok(report)
}

/// Puts the reason into words if PostgreSQL could not read the rows.
pub(super) fn in_words(problem: LedgerError) -> LedgerError {
    if problem.is_about_rows() { LedgerError::Shape(problem.in_words()) } else { problem }
}

fn compare(
    entities: &[Entity],
    used: Vec<NameInUse>,
    known: &[KnownName],
    maps: &BTreeMap<&str, Arc<NameMap>>,
) -> NameReport {
    let mapped = |used: &NameInUse| maps.get(&*used.entity_id)?.mapped(&used.name).map(str::to_owned);
    let mut lists: BTreeMap<&str, Vec<&KnownName>> = BTreeMap::new();
    for name in known {
        lists.entry(&name.credential).or_default().push(name);
    }
    let lists: BTreeMap<&str, CredentialNames<'_>> = lists
        .into_iter()
        .map(|(credential, names)| {
            let near = KnownNames::new(names.iter().map(|known| known.id.as_str()));
            let names = names.into_iter().map(|known| (known.id.as_str(), known.name.as_deref())).collect();
            (credential, CredentialNames { names, near })
        })
        .collect();
    let credentials: BTreeMap<&str, &str> =
        entities.iter().map(|entity| (entity.entity_id.as_str(), entity.credential.as_str())).collect();
    let list_of = |entity_id: &str| credentials.get(entity_id).and_then(|credential| lists.get(credential));
    let registered: BTreeSet<&str> = credentials.values().copied().collect();
    let is_used: BTreeSet<(&str, String)> = used
        .iter()
        .filter_map(|used| {
            let sent = mapped(used).unwrap_or_else(|| used.name.clone());
            Some((*credentials.get(used.entity_id.as_str())?, sent))
        })
        .collect();
    let is_unused = |known: &&KnownName| {
        let credential = known.credential.as_str();
        registered.contains(credential) && !is_used.contains(&(credential, known.id.clone()))
    };
    let unused = known.iter().filter(is_unused).cloned().collect();
    let used = used
        .into_iter()
        .map(|used| {
            let mapped_to = mapped(&used);
            let NameInUse { entity_id, name, rows } = used;
            let sent = mapped_to.as_deref().unwrap_or(&name);
            let status = match list_of(&entity_id) {
                None => NameStatus::NoList,
                Some(list) => match list.names.get(sent) {
                    Some(known_as) => NameStatus::Known(known_as.map(str::to_owned)),
                    None => {
                        NameStatus::Unknown(list.near.near(sent).into_iter().map(str::to_owned).collect())
                    }
                },
            };
            UsedName { entity_id, name, rows, mapped_to, status }
        })
        .collect();
    NameReport { used, unused, ..NameReport::default() }
}
