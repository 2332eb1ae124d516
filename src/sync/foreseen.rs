//! What a dry run foresees: rows that would be set aside, names that the API does not know, and entities that could not
//! send anything.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use crate::batch::Batch;
use crate::journal::{Entity, KnownName, MapKind, UnknownName};
use crate::text::KnownNames;

/// The most reasons that are kept apart for an entity. Rows for further reasons are counted together.
const REASONS_MAX: usize = 20;

/// What a dry run foresees.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Foreseen {
    /// Why rows would be set aside, the most frequent reason first.
    pub set_aside: Vec<ForeseenReason>,
    /// Names of records that the stored lists of the API lack, the most frequent first.
    pub unknown_names: Vec<ForeseenName>,
    /// The credentials without a stored list, whose names could not be compared.
    pub without_list: Vec<String>,
    /// The entities without a usable credential, each with the reason.
    pub without_credential: BTreeMap<String, String>,
}

/// Why rows of an entity would be set aside.
#[derive(Clone, Debug, Serialize)]
pub struct ForeseenReason {
    /// The entity.
    pub entity_id: String,
    /// The reason. `None`: several further reasons.
    pub reason: Option<String>,
    /// The number of rows.
    pub rows: i64,
    /// The id of one of them.
    pub example_ledger_id: String,
}

/// A name that the API does not know.
#[derive(Clone, Debug, Serialize)]
pub struct ForeseenName {
    /// The entity.
    pub entity_id: String,
    /// What it names.
    pub kind: MapKind,
    /// The name as the ledger spells it.
    pub ledger_name: String,
    /// The name that would be sent.
    pub name: String,
    /// The number of records with it.
    pub records: i64,
    /// Known names that are near.
    pub near: Vec<String>,
    /// The remedy, for people.
    #[serde(skip)]
    pub remedy: String,
}

impl Foreseen {
    /// Whether rows would be set aside. A missing credential does not count: a dry run is made before there is a key.
    pub fn needs_a_person(&self) -> bool {
        !self.set_aside.is_empty() || !self.unknown_names.is_empty()
    }
}

/// The stored lists of one kind, by credential.
type Lists = HashMap<String, HashSet<String>>;

/// Collects what a dry run foresees.
#[derive(Debug, Default)]
pub(super) struct Foresight {
    lists: [Lists; 2],
    credentials: HashMap<String, String>,
    reasons: BTreeMap<(String, Option<String>), (i64, String)>,
    /// By entity, kind, and name in the ledger: the name that would be sent, and the number of records.
    names: BTreeMap<(String, MapKind, String), (String, i64)>,
    /// The names of the ledger that the API lists, by entity, for each kind.
    used: [HashMap<String, HashSet<String>>; 2],
    found: Foreseen,
}

const KINDS: [MapKind; 2] = [MapKind::Account, MapKind::Currency];

impl Foresight {
    /// Prepares for these entities. `known`: the stored lists of accounts and of currencies. `unusable`: why the
    /// credential of an entity cannot be used.
    pub(super) fn of(
        entities: &[Entity],
        known: [Vec<KnownName>; 2],
        unusable: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let mut foresight = Self::default();
        for (lists, known) in foresight.lists.iter_mut().zip(known) {
            for KnownName { credential, id, .. } in known {
                lists.entry(credential).or_default().insert(id);
            }
        }
        let lacks = |credential: &String| foresight.lists.iter().any(|lists| !lists.contains_key(credential));
        foresight.found.without_list = Entity::credentials(entities).into_iter().filter(lacks).collect();
        for Entity { entity_id, credential, .. } in entities {
            foresight.credentials.insert(entity_id.clone(), credential.clone());
            let unusable = unusable(credential).map(|why| (entity_id.clone(), why));
            foresight.found.without_credential.extend(unusable);
        }
        foresight
    }

    /// Looks at a batch that would be sent.
    pub(super) fn look(&mut self, entity_id: &str, batch: &Batch) {
        for row in &batch.invalid {
            let kinds =
                self.reasons.range((entity_id.to_owned(), None)..).take_while(|((of, _), _)| of == entity_id);
            let is_full = kinds.count() >= REASONS_MAX;
            let mut key = (entity_id.to_owned(), Some(row.reason.clone()));
            if is_full && !self.reasons.contains_key(&key) {
                key.1 = None;
            }
            self.reasons.entry(key).or_insert_with(|| (0, row.id.to_string())).0 += 1;
        }
        let Some(credential) = self.credentials.get(entity_id) else { return };
        for (of, (kind, lists)) in KINDS.into_iter().zip(&self.lists).enumerate() {
            let Some(known) = lists.get(credential) else { continue };
            let used = self.used[of].entry(entity_id.to_owned()).or_default();
            for &place in &batch.records {
                let (ledger, sent) = (batch.ledger_names(place)[of], batch.sent_names(place)[of]);
                if !known.contains(sent) {
                    let key = (entity_id.to_owned(), kind, ledger.to_owned());
                    self.names.entry(key).or_insert_with(|| (sent.to_owned(), 0)).1 += 1;
                } else if ledger == sent && !used.contains(sent) {
                    used.insert(sent.to_owned());
                }
            }
        }
    }

    /// Returns what was found.
    pub(super) fn end(self) -> Foreseen {
        let Self { lists, credentials, reasons, names, used, mut found } = self;
        let reason = |((entity_id, reason), (rows, example_ledger_id))| ForeseenReason {
            entity_id,
            reason,
            rows,
            example_ledger_id,
        };
        found.set_aside = reasons.into_iter().map(reason).collect();
        found.set_aside.sort_by_key(|reason| (reason.reason.is_none(), std::cmp::Reverse(reason.rows)));
        for ((kind, lists), used) in KINDS.into_iter().zip(&lists).zip(&used) {
            let near: HashMap<&String, KnownNames<'_>> = lists
                .iter()
                .map(|(credential, names)| (credential, KnownNames::new(names.iter().map(String::as_str))))
                .collect();
            for ((entity_id, of, ledger_name), (name, records)) in &names {
                if *of != kind {
                    continue;
                }
                let known = credentials.get(entity_id).and_then(|credential| near.get(credential));
                let near = known.map_or_else(Vec::new, |known| known.near(name));
                let near: Vec<String> = near.into_iter().map(str::to_owned).collect();
                // A currency is mapped for all entities.
                let is_concerned = |of: &String| kind == MapKind::Currency || of == entity_id;
                let is_of_ledger =
                    |name: &str| used.iter().any(|(of, used)| is_concerned(of) && used.contains(name));
                let unknown =
                    UnknownName { ledger: ledger_name, sent: name, near: &near, is_of_ledger: &is_of_ledger };
                let remedy = kind.remedy(entity_id, &unknown).into_words();
                found.unknown_names.push(ForeseenName {
                    entity_id: entity_id.clone(),
                    kind,
                    ledger_name: ledger_name.clone(),
                    name: name.clone(),
                    records: *records,
                    near,
                    remedy,
                });
            }
        }
        found.unknown_names.sort_by_key(|name| std::cmp::Reverse(name.records));
        found
    }
}
