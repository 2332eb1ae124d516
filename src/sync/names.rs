//! What a run learned about the names of the records of an entity: those that the API accepted, those that it does not
//! know, and what it lists.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::BuildHasher;
use std::sync::{Mutex, PoisonError};

use foldhash::fast::FixedState;

use super::decisions::naming::{Name, Standing, shows_unknown};
use super::messages::OutcomeMessage;
use crate::batch::Batch;
use crate::elven::List;
use crate::journal::{HeldRows, Kind, MapKind, UnknownName};
use crate::text::KnownNames;
use crate::watermark::LedgerId;

/// The lists of a credential, as far as they count.
#[derive(Debug, Default)]
pub(super) struct ApiLists(pub(super) [Option<HashSet<String>>; 2]);

impl ApiLists {
    /// Returns a list. `None`: the API gave none that counts.
    pub(super) fn of(&self, list: List) -> Option<&HashSet<String>> {
        self.0[usize::from(list == List::Currencies)].as_ref()
    }

    /// Returns the listed names that are near a name.
    pub(super) fn near(&self, name: &Name) -> Vec<String> {
        let others = |listed: &&str| **listed != *name.id;
        let listed = self.of(name.list).into_iter().flatten().map(String::as_str).filter(others);
        KnownNames::new(listed).near(&name.id).into_iter().map(str::to_owned).collect()
    }
}

/// What a run learned about the names of the records of an entity; shared by all its batches.
#[derive(Debug, Default)]
pub(super) struct NamesOfRun(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Hashes of the accepted names, because there may be as many accounts as rows.
    accepted: HashSet<u64, FixedState>,
    /// Hashes of the names of refused batches.
    refused: HashSet<u64, FixedState>,
    unknown: BTreeMap<Name, Unknown>,
    /// Names of held rows that are sent again: the API refused them before, so that a list is not enough.
    doubted: BTreeSet<Name>,
    /// The refused records of names in doubt that were sent alone.
    singles: BTreeMap<Name, Vec<LedgerId>>,
    /// The maps to another spelling that hints of held rows propose.
    proposed: BTreeSet<ProposedMap>,
}

/// A map to another spelling of a name that the API knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ProposedMap {
    pub(super) kind: MapKind,
    /// The name in the ledger.
    pub(super) ledger: String,
    /// The name at Elven.
    pub(super) elven: String,
}

/// A name that the API does not know.
#[derive(Debug)]
struct Unknown {
    /// What is unknown, with near names.
    what: String,
    /// Known names that are near.
    near: Vec<String>,
    is_listed: bool,
    /// What the API said.
    said: String,
    api_code: Option<String>,
    http_status: Option<i32>,
    /// Rows of the name that were set aside before it was known to be the reason.
    earlier: Vec<LedgerId>,
}

/// How much of a batch has names that were refused in this run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Nothing.
    Nothing,
    /// All its records.
    All,
    /// Some of its records: the number of the part of each row, 0 for the others and 1 for those.
    Parts(Vec<usize>),
}

fn hash(list: List, id: &str) -> u64 {
    FixedState::with_seed(0).hash_one((list, id))
}

impl State {
    /// Returns the name of a record that was refused in this run: its account, or else its currency.
    fn unknown_of(&self, account: &str, currency: &str) -> Option<(&Name, &Unknown)> {
        let names = [(List::Accounts, account), (List::Currencies, currency)];
        let find = |(list, id)| self.unknown.iter().find(|(name, _)| name.list == list && name.id == id);
        names.into_iter().find_map(find)
    }
}

impl NamesOfRun {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a batch was accepted: the API knows its names, whatever its lists say.
    pub(super) fn note_accepted(&self, batch: &Batch) {
        let mut state = self.state();
        let mut last = ("", "");
        for [account, currency] in batch.names() {
            for (list, id, before) in
                [(List::Accounts, account, last.0), (List::Currencies, currency, last.1)]
            {
                if id != before && state.accepted.insert(hash(list, id)) {
                    let name = Name { list, id: id.to_owned() };
                    state.unknown.remove(&name);
                    state.singles.remove(&name);
                }
            }
            last = (account, currency);
        }
    }

    /// Notes the names of a refused batch: rows of the ledger are sent with them.
    pub(super) fn note_refused(&self, batch: &Batch) {
        let mut state = self.state();
        for [account, currency] in batch.names() {
            state.refused.extend([hash(List::Accounts, account), hash(List::Currencies, currency)]);
        }
    }

    /// Returns what is known of a name.
    pub(super) fn standing(&self, lists: &ApiLists, list: List, id: &str) -> Standing {
        match lists.of(list) {
            _ if self.state().accepted.contains(&hash(list, id)) => Standing::Accepted,
            Some(listed) if listed.contains(id) && self.is_doubted(list, id) => Standing::Unheard,
            Some(listed) if listed.contains(id) => Standing::Listed,
            Some(_) => Standing::Unlisted,
            None => Standing::Unheard,
        }
    }

    fn is_doubted(&self, list: List, id: &str) -> bool {
        self.state().doubted.contains(&Name { list, id: id.to_owned() })
    }

    /// Notes the names of held rows that are sent again.
    pub(super) fn note_doubted(&self, names: impl IntoIterator<Item = Name>) {
        self.state().doubted.extend(names);
    }

    /// Returns how much of a batch has names that were refused in this run.
    pub(super) fn cut(&self, batch: &Batch) -> Cut {
        let state = self.state();
        if state.unknown.is_empty() {
            return Cut::Nothing;
        }
        let groups = batch.named_groups();
        let is_unknown: Vec<usize> = groups
            .iter()
            .map(|group| !group.is_mixed && state.unknown_of(group.account, group.currency).is_some())
            .map(usize::from)
            .collect();
        match (is_unknown.contains(&0), is_unknown.contains(&1)) {
            (_, false) => Cut::Nothing,
            (false, true) => Cut::All,
            (true, true) => Cut::Parts(batch.parts_of_rows(&groups, &is_unknown)),
        }
    }

    /// Notes that a record of a name in doubt was refused alone.
    pub(super) fn note_single(&self, name: Name, row: LedgerId) {
        self.state().singles.entry(name).or_default().push(row);
    }

    /// Whether the refusal of one more record of a name, sent alone, shows that the name is unknown.
    pub(super) fn shows_unknown(&self, name: &Name) -> bool {
        shows_unknown(1 + self.state().singles.get(name).map_or(0, Vec::len))
    }

    /// Whether a name was refused in this run.
    pub(super) fn is_unknown(&self, name: &Name) -> bool {
        self.state().unknown.contains_key(name)
    }

    /// Notes that the API does not know a name. `outcome`: the refusal that shows it.
    pub(super) fn note_unknown(
        &self,
        name: Name,
        lists: &ApiLists,
        outcome: &OutcomeMessage,
        http_status: Option<i32>,
    ) {
        let near = lists.near(&name);
        let is_listed = lists.of(name.list).is_some_and(|listed| listed.contains(&name.id));
        let shown: Vec<String> = near.iter().map(|near| format!("`{near}`")).collect();
        let shown = if near.is_empty() { String::new() } else { format!(" (near: {})", shown.join(", ")) };
        let what = format!("the API does not know the {} `{}`{shown}", name.list.one(), name.id);
        let (said, api_code) = outcome.said();
        let mut state = self.state();
        let earlier = state.singles.remove(&name).unwrap_or_default();
        if state.unknown.contains_key(&name) {
            return;
        }
        tracing::warn!("{what}; its rows are held until it is known");
        let unknown = Unknown { what, near, is_listed, said, api_code, http_status, earlier };
        state.unknown.insert(name, unknown);
    }

    /// Returns the maps that hints of held rows propose, once.
    pub(super) fn take_proposed(&self) -> BTreeSet<ProposedMap> {
        std::mem::take(&mut self.state().proposed)
    }

    /// Returns the rows of a batch that are held because their names were refused in this run, by name. `again`: they
    /// were held before, and are not sent again by themselves for a while.
    pub(super) fn held_rows(&self, entity_id: &str, batch: &Batch, again: bool) -> Vec<HeldRows> {
        let mut state = self.state();
        // The rows of each name, and its names in the ledger.
        let mut rows: BTreeMap<Name, (Vec<LedgerId>, BTreeSet<String>)> = BTreeMap::new();
        for place in batch.sendable() {
            let [account, currency] = batch.sent_names(place);
            if let Some((name, _)) = state.unknown_of(account, currency) {
                let in_ledger = batch.ledger_names(place)[usize::from(name.list == List::Currencies)];
                let of_name = rows.entry(name.clone()).or_default();
                of_name.0.push(batch.rows[place].id.clone());
                if !of_name.1.contains(in_ledger) {
                    of_name.1.insert(in_ledger.to_owned());
                }
            }
        }
        let record = batch.records.first().map(|row| batch.record(*row));
        let State { accepted, refused, unknown: unknown_names, proposed, .. } = &mut *state;
        let held = rows.into_iter().map(|(name, (mut ids, in_ledger))| {
            let unknown = unknown_names.get_mut(&name);
            let (kind, map) = match name.list {
                List::Accounts => (Kind::UnknownAccount, MapKind::Account),
                List::Currencies => (Kind::UnknownCurrency, MapKind::Currency),
            };
            let earlier = unknown.map(|unknown| {
                ids.append(&mut unknown.earlier);
                &*unknown
            });
            let (what, said) = earlier.map_or(("", ""), |unknown| (&unknown.what, &unknown.said));
            let is_of_ledger = |id: &str| {
                let hash = hash(name.list, id);
                accepted.contains(&hash) || refused.contains(&hash)
            };
            let remedy = UnknownName {
                ledger: in_ledger.first().unwrap_or(&name.id),
                sent: &name.id,
                near: earlier.map_or(&[], |unknown| &unknown.near),
                is_of_ledger: &is_of_ledger,
            };
            if let Some(elven) = remedy.spelling()
                && !is_of_ledger(elven)
            {
                let (ledger, elven) = (remedy.ledger.to_owned(), elven.to_owned());
                proposed.insert(ProposedMap { kind: map, ledger, elven });
            }
            let hint = map.remedy(entity_id, &remedy).into_words();
            let are = if ids.len() == 1 { "is" } else { "are" };
            let rows = crate::text::counted_noun(i64::try_from(ids.len()).unwrap_or(i64::MAX), "row", "rows");
            HeldRows {
                kind,
                cause: format!(
                    "{what}, so its rows are held; they are sent automatically once it is mapped or the API lists it"
                ),
                message: format!(
                    "{what}, so {rows} of this batch {are} held, and sent automatically once it is mapped or the API lists it; the \
                     first refusal: {said}; hint: {hint}"
                ),
                api_code: earlier.and_then(|unknown| unknown.api_code.clone()),
                http_status: earlier.and_then(|unknown| unknown.http_status),
                name: name.id,
                ids,
                record: record.clone(),
                again,
                is_listed: earlier.is_some_and(|unknown| unknown.is_listed),
                ledger_names: in_ledger.into_iter().collect(),
                hint,
            }
        });
        held.collect()
    }
}

/// Whether the API knows a name by now, so that held rows of the name are sent again.
pub(super) fn is_known_by_now(names: &NamesOfRun, lists: &ApiLists, name: &Name) -> bool {
    let is_listed = lists.of(name.list).is_some_and(|listed| listed.contains(&name.id));
    !names.is_unknown(name) && (is_listed || names.state().accepted.contains(&hash(name.list, &name.id)))
}
