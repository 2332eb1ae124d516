//! Names: the ledger's names of accounts and currencies that have other names at Elven.

use std::collections::HashMap;
use std::sync::Arc;

use super::{CurrencyKind, Invalid};

/// The names of an entity's accounts and currencies at Elven. A name without a map is sent as it is.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// The version of the maps, as `sync_batches.map_version` records it. `None`: there never was one for the entity.
    pub version: Option<i64>,
    /// The maps of accounts.
    pub accounts: Arc<NameMap>,
    /// The maps of currencies.
    pub currencies: Arc<NameMap>,
}

/// The maps of accounts, or those of currencies. Matching is exact, letter case included, and maps do not chain.
#[derive(Clone, Debug, Default)]
pub struct NameMap {
    /// By the name in the ledger.
    maps: HashMap<Box<str>, Mapped>,
    /// The names in the ledger by the name at Elven.
    sources: HashMap<Box<str>, Vec<Box<str>>>,
    has_shared: bool,
    /// The newest version that added or removed a map of a name.
    changed: HashMap<Box<str>, i64>,
}

/// A name at Elven.
#[derive(Clone, Debug)]
struct Mapped {
    elven: Box<str>,
    /// Other names of the ledger may have the same name at Elven.
    shared: bool,
    /// What the name of a currency is, if the map says it.
    kind: Option<CurrencyKind>,
}

impl Names {
    /// Whether all names are sent as they are.
    pub fn is_empty(&self) -> bool {
        self.accounts.maps.is_empty() && self.currencies.maps.is_empty()
    }

    /// Whether two names of the ledger may have one name at Elven.
    pub fn has_shared(&self) -> bool {
        self.accounts.has_shared || self.currencies.has_shared
    }
}

impl NameMap {
    /// Adds a map. The caller takes care that only shared maps lead to one name at Elven.
    pub fn add(&mut self, ledger: &str, elven: &str, shared: bool) {
        self.maps.insert(ledger.into(), Mapped { elven: elven.into(), shared, kind: None });
        self.sources.entry(elven.into()).or_default().push(ledger.into());
        self.has_shared |= shared;
    }

    /// Sets what the name at Elven of a currency is. The name has a map.
    pub fn set_kind(&mut self, ledger: &str, kind: CurrencyKind) {
        if let Some(mapped) = self.maps.get_mut(ledger) {
            mapped.kind = Some(kind);
        }
    }

    /// Returns what the name at Elven of a currency is, if a map says it.
    pub fn kind(&self, ledger: &str) -> Option<CurrencyKind> {
        self.maps.get(ledger).and_then(|mapped| mapped.kind)
    }

    /// Notes that a version added or removed a map of a name.
    pub fn note_change(&mut self, ledger: &str, version: i64) {
        let newest = self.changed.entry(ledger.into()).or_default();
        *newest = version.max(*newest);
    }

    /// Returns the newest version that added or removed a map of a name. `None`: the name never had a map.
    pub fn changed_in(&self, ledger: &str) -> Option<i64> {
        self.changed.get(ledger).copied()
    }

    /// Returns the name at Elven of a name in the ledger.
    ///
    /// # Errors
    /// The name has no map, and is the name at Elven of another name that is not shared: the balances of two accounts
    /// or currencies would be mixed.
    pub fn elven<'n>(&'n self, column: &str, ledger: &'n str) -> Result<&'n str, Invalid> {
        if self.maps.is_empty() {
            return Ok(ledger);
        }
        match (self.maps.get(ledger), self.sources.get(ledger)) {
            (Some(mapped), _) => Ok(&mapped.elven),
            (None, Some(sources)) if !self.are_shared(sources) => Err(taken(column, ledger, sources)),
            (None, _) => Ok(ledger),
        }
    }

    /// Returns the name to which a name in the ledger is mapped. `None`: it has no map.
    pub fn mapped(&self, ledger: &str) -> Option<&str> {
        self.maps.get(ledger).map(|mapped| &*mapped.elven)
    }

    /// Returns the names at Elven that no row of the ledger may have as its own name.
    pub fn exclusive(&self) -> Vec<&str> {
        let all = self.sources.iter().map(|(elven, sources)| (&**elven, sources));
        let taken =
            all.filter(|(elven, sources)| !self.maps.contains_key(*elven) && !self.are_shared(sources));
        taken.map(|(elven, _)| elven).collect()
    }

    /// Returns the names of the ledger that are mapped to a name.
    pub fn mapped_to(&self, elven: &str) -> Vec<&str> {
        self.sources.get(elven).into_iter().flatten().map(|name| &**name).collect()
    }

    /// Returns the names at Elven that several names of the ledger have, each with a name of the ledger.
    pub fn shared(&self) -> Vec<(&str, &str)> {
        let shared = self.maps.iter().filter(|(_, mapped)| mapped.shared);
        shared.map(|(ledger, mapped)| (&**ledger, &*mapped.elven)).collect()
    }

    /// Returns the names of the ledger that have this name at Elven.
    pub fn ledger_names<'n>(&'n self, elven: &'n str) -> Vec<&'n str> {
        let sources = self.sources.get(elven).map_or(&[][..], Vec::as_slice);
        let mut names: Vec<&str> = sources.iter().map(|name| &**name).collect();
        if !self.maps.contains_key(elven) && self.are_shared(sources) {
            names.push(elven);
        }
        names
    }

    /// Returns the names of the ledger that have the same name at Elven as this name of the ledger, itself included.
    pub fn same_at_elven<'n>(&'n self, ledger: &'n str) -> Vec<&'n str> {
        let mut names = if self.has_shared {
            self.ledger_names(self.mapped(ledger).unwrap_or(ledger))
        } else {
            Vec::new()
        };
        if !names.contains(&ledger) {
            names.push(ledger);
        }
        names
    }

    fn are_shared(&self, sources: &[Box<str>]) -> bool {
        sources.iter().all(|name| self.maps.get(name).is_some_and(|mapped| mapped.shared))
    }
}

#[cold]
fn taken(column: &str, ledger: &str, sources: &[Box<str>]) -> Invalid {
    let source = sources.first().map_or("", |name| name);
    Invalid(format!(
        "{column} `{ledger}` is the name at Elven to which `{source}` is mapped, so it cannot be sent as itself: correct \
         one of the names, or, if both mean the same, map `{source}` to `{ledger}` with --shared"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(maps: &[(&str, &str, bool)]) -> NameMap {
        let mut map = NameMap::default();
        for (ledger, elven, shared) in maps {
            map.add(ledger, elven, *shared);
        }
        map
    }

    #[test]
    fn a_name_without_a_map_is_sent_as_it_is() {
        let names = map(&[("usd", "USD", false)]);
        for (ledger, elven) in [("usd", "USD"), ("eur", "eur"), ("Usd", "Usd"), ("", "")] {
            assert_eq!(names.elven("currency", ledger), Ok(elven));
        }
        assert_eq!(map(&[]).elven("currency", "usd"), Ok("usd"));
    }

    #[test]
    fn the_name_of_another_is_not_sent_as_itself_unless_shared() {
        let names = map(&[("usd", "USD", false), ("old", "new", true), ("a", "b", false), ("b", "c", false)]);
        let refused = names.elven("currency", "USD").unwrap_err().to_string();
        assert!(
            refused.starts_with("currency `USD` is the name at Elven to which `usd` is mapped"),
            "{refused}"
        );
        assert_eq!(names.elven("currency", "new"), Ok("new"));
        // Maps do not chain.
        assert_eq!((names.elven("currency", "a"), names.elven("currency", "b")), (Ok("b"), Ok("c")));
    }

    #[test]
    fn ledger_names_are_all_names_that_become_one() {
        let names =
            map(&[("usd", "USD", false), ("old", "new", true), ("older", "new", true), ("b", "c", false)]);
        for (elven, ledger) in [
            ("USD", &["usd"][..]),
            ("usd", &[]),
            ("new", &["old", "older", "new"]),
            ("eur", &["eur"]),
            ("b", &[]),
            ("c", &["b"]),
        ] {
            assert_eq!(names.ledger_names(elven), ledger, "{elven}");
        }
    }
}
