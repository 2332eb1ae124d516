//! The remedy for a name of the ledger that the API does not know.

use super::name_maps::MapKind;
use crate::text::is_same_word;

/// A name that the API does not know.
#[derive(Clone, Copy)]
pub struct UnknownName<'a> {
    /// The name as the ledger spells it.
    pub ledger: &'a str,
    /// The name that is sent.
    pub sent: &'a str,
    /// The names that the API knows and that are near it.
    pub near: &'a [String],
    /// Whether the ledger is known to have rows that are sent with a name.
    pub is_of_ledger: &'a dyn Fn(&str) -> bool,
}

impl UnknownName<'_> {
    /// Returns the name that the API knows and that is another spelling of the name that is sent.
    pub fn spelling(&self) -> Option<&str> {
        self.near.iter().find(|near| is_same_word(self.sent, near)).map(String::as_str)
    }
}

/// The remedy for a name that the API does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The command that maps it.
    Map(String),
    /// The ledger has the right name for other rows, so a map would be refused: what to do instead.
    Correct(String),
}

impl Remedy {
    /// Returns the words for people.
    pub fn into_words(self) -> String {
        match self {
            Self::Map(words) | Self::Correct(words) => words,
        }
    }

    /// Returns the command, if it is one.
    pub fn command(self) -> Option<String> {
        match self {
            Self::Map(command) => Some(command),
            Self::Correct(_) => None,
        }
    }
}

impl MapKind {
    /// Returns the words for a name that another spelling of it in the ledger replaces.
    pub fn correction(self, ledger: &str, elven: &str) -> String {
        format!("correct {} `{ledger}` to `{elven}` in the ledger", self.word())
    }

    /// Returns the remedy for a name that the API does not know. Only another spelling of the name that is sent is
    /// proposed: another near name may be another account or currency.
    pub fn remedy(self, entity_id: &str, unknown: &UnknownName<'_>) -> Remedy {
        let UnknownName { ledger, is_of_ledger, .. } = unknown;
        match unknown.spelling() {
            // Balances of two names would replace each other at Elven.
            Some(elven) if is_of_ledger(elven) => Remedy::Correct(self.correction(ledger, elven)),
            elven => Remedy::Map(self.command(entity_id, ledger, elven)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_spelling_that_the_ledger_does_not_have_is_proposed() {
        let remedy = |sent, near: &[&str], used: &[&str]| {
            let near: Vec<String> = near.iter().map(|near| (*near).to_owned()).collect();
            let is_of_ledger = |name: &str| used.contains(&name);
            let unknown = UnknownName { ledger: "Led", sent, near: &near, is_of_ledger: &is_of_ledger };
            MapKind::Currency.remedy("acme", &unknown)
        };
        let map = |elven: &str| Remedy::Map(format!("elven-sync map currency 'Led' {elven}"));
        assert_eq!(remedy("XYZQ", &["XTZ"], &[]), map("ELVEN_NAME"));
        assert_eq!(remedy("xtz", &["XTX", "XTZ"], &["XTX"]), map("'XTZ'"));
        assert_eq!(
            remedy("xtz", &["XTZ"], &["XTZ"]),
            Remedy::Correct("correct currency `Led` to `XTZ` in the ledger".to_owned())
        );
        assert_eq!(remedy("led", &[], &[]), map("ELVEN_NAME"));
    }
}
