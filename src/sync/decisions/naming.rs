//! How a refused batch is split by the names of its records, and when a refusal shows that the API does not know a
//! name.
//!
//! An unknown account or currency is the likeliest reason of a refusal, and it concerns many records. So the batch is
//! split by the names that may be unknown: those that the API does not list, or, without a list, those that were not
//! accepted in this run.

use std::collections::{BTreeMap, BTreeSet};

use crate::batch::NamedGroup;
use crate::elven::List;

/// A batch with more unlisted names than this is halved by name.
const PARTS_MAX: usize = 8;

/// Without lists, a name counts as refused when this many of its records were refused, each sent alone, and none was
/// accepted. One record may be refused for another reason.
const SINGLES_MIN: usize = 3;

/// The number of the part with the records whose names are not in doubt.
const CLEAN: usize = 0;

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sync) enum Standing {
    /// Accepted in this run.
    Accepted,
    /// In the list of the API.
    Listed,
    /// Not in the list of the API.
    Unlisted,
    /// The API gave no list that counts.
    Unheard,
}

/// An account or a currency.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::sync) struct Name {
    /// The list that may have it.
    pub list: List,
    /// The account or the currency, as it is sent.
    pub id: String,
}

impl Name {
    /// Returns the name of rows that are held with an error of this kind. `None`: it holds none.
    pub(in crate::sync) fn of_kind(kind: &str, id: &str) -> Option<Self> {
        let list = match kind {
            "unknown_account" => List::Accounts,
            "unknown_currency" => List::Currencies,
            _ => return None,
        };
        Some(Self { list, id: id.to_owned() })
    }
}

/// What the names of a refused batch say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sync) enum ByName {
    /// All records have this name, which the API does not list: the refusal shows that the name is unknown, if the
    /// credential is good.
    Unlisted(Name),
    /// All records have this name, and no other name of theirs is in doubt. There is no list.
    Unheard(Name),
    /// The batch is split into these parts: the number of the part of each group.
    Parts {
        /// The number of the part of each group.
        parts: Vec<usize>,
        /// The names are in doubt because a list lacks them.
        by_list: bool,
    },
    /// No name is in doubt, or too many are: the batch is halved by position.
    Position,
}

/// Decides how a refused batch is split by name. `standing`: what is known of a name.
pub(in crate::sync) fn by_name(
    groups: &[NamedGroup<'_>],
    standing: &impl Fn(List, &str) -> Standing,
) -> ByName {
    let suspects: Vec<Option<(List, &str)>> = groups
        .iter()
        .map(|group| {
            let names = names_of(group).into_iter();
            names.filter(|_| !group.is_mixed).find(|(list, id)| standing(*list, id) == Standing::Unlisted)
        })
        .collect();
    match split_by(groups, &suspects, PARTS_MAX) {
        Split::One(list, id) => ByName::Unlisted(Name { list, id: id.to_owned() }),
        Split::Parts(parts) => ByName::Parts { parts, by_list: true },
        Split::None => without_lists(groups, standing),
    }
}

/// Decides about a batch none of whose names is missing in a list. The names of the kind that differs least are halved
/// first, since the fault is in one of them, whatever the other name of a record is.
fn without_lists(groups: &[NamedGroup<'_>], standing: &impl Fn(List, &str) -> Standing) -> ByName {
    let mut in_doubt: Vec<(List, &str)> = Vec::new();
    let mut best: Option<(usize, Vec<usize>)> = None;
    for list in [List::Currencies, List::Accounts] {
        let suspects: Vec<Option<(List, &str)>> = groups
            .iter()
            .map(|group| {
                let (of, id) = names_of(group)[usize::from(list == List::Currencies)];
                (!group.is_mixed && standing(of, id) == Standing::Unheard).then_some((of, id))
            })
            .collect();
        match split_by(groups, &suspects, 1) {
            Split::None => {}
            Split::One(list, id) => in_doubt.push((list, id)),
            Split::Parts(parts) => {
                let kinds = suspects.iter().collect::<BTreeSet<_>>().len();
                if best.as_ref().is_none_or(|(fewest, _)| kinds < *fewest) {
                    best = Some((kinds, parts));
                }
            }
        }
    }
    match (best, &in_doubt[..]) {
        (Some((_, parts)), _) => ByName::Parts { parts, by_list: false },
        (None, [(list, id)]) => ByName::Unheard(Name { list: *list, id: (*id).to_owned() }),
        (None, _) => ByName::Position,
    }
}

/// Account and currency of a group.
fn names_of<'b>(group: &NamedGroup<'b>) -> [(List, &'b str); 2] {
    [(List::Accounts, group.account), (List::Currencies, group.currency)]
}

/// How groups are split by the name that is in doubt of each.
enum Split<'b> {
    /// No name is in doubt.
    None,
    /// All groups have the same name in doubt.
    One(List, &'b str),
    /// The number of the part of each group.
    Parts(Vec<usize>),
}

/// Splits groups: one part for those without a suspect, and one for each suspect; if there are more than `parts_max`
/// suspects, two with about half of the records each.
fn split_by<'b>(
    groups: &[NamedGroup<'b>],
    suspects: &[Option<(List, &'b str)>],
    parts_max: usize,
) -> Split<'b> {
    let mut records: BTreeMap<(List, &str), usize> = BTreeMap::new();
    for (group, suspect) in groups.iter().zip(suspects) {
        if let Some(suspect) = suspect {
            *records.entry(*suspect).or_default() += group.records;
        }
    }
    let has_clean = suspects.contains(&None);
    match (records.first_key_value(), records.len()) {
        (None, _) => return Split::None,
        (Some(((list, _), _)), 1) if !has_clean => {
            let id = suspects.iter().flatten().next().map_or("", |(_, id)| id);
            return Split::One(*list, id);
        }
        _ => {}
    }
    let parts: BTreeMap<(List, &str), usize> = if records.len() <= parts_max {
        records.keys().copied().zip(CLEAN + 1..).collect()
    } else {
        let all: usize = records.values().sum();
        let mut taken = 0;
        let half = |(name, count): (&(List, &'b str), &usize)| {
            // The first name is always in the first half, and the last one never is.
            let is_first = taken == 0 || 2 * (taken + count) <= all;
            taken = if is_first { taken + count } else { all };
            (*name, if is_first { CLEAN + 1 } else { CLEAN + 2 })
        };
        records.iter().map(half).collect()
    };
    Split::Parts(suspects.iter().map(|suspect| suspect.map_or(CLEAN, |name| parts[&name])).collect())
}

/// Whether the records of a name that were refused, each sent alone, show that the name is unknown.
pub(in crate::sync) fn shows_unknown(singles: usize) -> bool {
    singles >= SINGLES_MIN
}

/// Whether the API knows none of the names of a batch, so that the key may be that of another entity: it lists none of
/// the accounts, or, without a list of accounts, none of the currencies.
pub(in crate::sync) fn is_strange(
    groups: &[NamedGroup<'_>],
    standing: &impl Fn(List, &str) -> Standing,
) -> bool {
    let all = |list: usize, of: Standing| {
        groups.iter().map(|group| names_of(group)[list]).all(|(list, id)| standing(list, id) == of)
    };
    all(0, Standing::Unlisted) || (all(0, Standing::Unheard) && all(1, Standing::Unlisted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::align::Zone;
    use crate::batch::Batch;
    use crate::ledger::Row;
    use crate::watermark::LedgerId;

    const ONE: &[u8] = &[0, 1, 0, 0, 0, 0, 0, 0, 0, 1];

    /// A batch with a record for each pair of names.
    fn batch(names: &[&str]) -> Batch {
        let row = |(place, names): (usize, &&str)| {
            let (account, currency) = names.split_once(' ').unwrap();
            let place = i64::try_from(place).unwrap();
            let at = Some(place * 1_000_000);
            Row::new(1, LedgerId::Number(place), Some(account), Some(currency), at, Some(ONE))
        };
        Batch::build(None, names.iter().enumerate().map(row).collect(), &Zone::utc().into())
    }

    /// The standing of a name in these tests is its first letter.
    fn standing(_: List, id: &str) -> Standing {
        match &id[..1] {
            "k" => Standing::Accepted,
            "l" => Standing::Listed,
            "x" => Standing::Unlisted,
            _ => Standing::Unheard,
        }
    }

    fn name(list: List, id: &str) -> Name {
        Name { list, id: id.to_owned() }
    }

    fn parts(parts: &[usize], by_list: bool) -> ByName {
        ByName::Parts { parts: parts.to_vec(), by_list }
    }

    #[test]
    fn a_refused_batch_is_split_by_the_names_that_may_be_unknown() {
        use List::{Accounts, Currencies};
        for (names, expected) in [
            // With lists: one part for the listed names, and one for each unlisted name.
            (&["l1 l1", "l2 x1", "l1 x1"][..], parts(&[0, 1, 1], true)),
            (&["x1 l1", "l2 x1", "k1 l1"], parts(&[1, 2, 0], true)),
            (&["x2 l1", "x1 l1"], parts(&[2, 1], true)),
            (&["x1 x1", "x1 l1"], ByName::Unlisted(name(Accounts, "x1"))),
            (&["x1 x1"], ByName::Unlisted(name(Accounts, "x1"))),
            (&["l1 x1", "u1 x1"], ByName::Unlisted(name(Currencies, "x1"))),
            // A name that was accepted in this run, or that is listed, is not in doubt.
            (&["k1 l1", "l1 k1"], ByName::Position),
            // Without lists: names that were accepted in this run are known; the others are halved by name.
            (&["u1 k1", "u2 k1", "u3 k1", "u4 k1"], parts(&[1, 1, 2, 2], false)),
            (&["u1 k1", "k2 k1"], parts(&[1, 0], false)),
            (&["u1 k1", "u2 k1", "k2 k1"], parts(&[1, 2, 0], false)),
            (&["u1 k1", "u1 k2"], ByName::Unheard(name(Accounts, "u1"))),
            (&["k1 u1", "k2 u1"], ByName::Unheard(name(Currencies, "u1"))),
            // Two currencies are fewer than three accounts.
            (&["u1 u1", "u2 u1", "u3 u2"], parts(&[1, 1, 2], false)),
            (&["u1 u1", "u1 u2", "u1 u3"], parts(&[1, 2, 2], false)),
            // Which of the two names is unknown?
            (&["u1 u1", "u1 u1"], ByName::Position),
            (&["u1 u1", "k1 u1"], parts(&[1, 0], false)),
            // One list is missing: the unlisted names come first.
            (&["u1 x1", "u2 l1"], parts(&[1, 0], true)),
            (&["u1 l1", "u2 l1"], parts(&[1, 2], false)),
        ] {
            let batch = batch(names);
            assert_eq!(by_name(&batch.named_groups(), &standing), expected, "{names:?}");
        }
    }

    #[test]
    fn beyond_eight_unlisted_names_the_batch_is_halved_by_name() {
        let names: Vec<String> = (1..=8).map(|number| format!("x{number} l1")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).chain(["l1 l1"]).collect();
        let split = |names: &[&str]| by_name(&batch(names).named_groups(), &standing);
        assert_eq!(split(&names), parts(&[1, 2, 3, 4, 5, 6, 7, 8, 0], true));
        let more: Vec<&str> = names.iter().copied().chain(["x9 l1", "x9 l2", "x9 l3"]).collect();
        assert_eq!(split(&more), parts(&[1, 1, 1, 1, 1, 2, 2, 2, 0, 2, 2, 2], true));
    }

    /// Rows of a ledger may share an id; they stay together, and a list of ids does not tell them apart.
    #[test]
    fn records_of_different_names_that_share_an_id_are_no_evidence_against_a_name() {
        let row =
            |account, at| Row::new(1, LedgerId::Number(1), Some(account), Some("l1"), Some(at), Some(ONE));
        let batch = Batch::build(None, vec![row("x1", 0), row("l1", 5_000_000)], &Zone::utc().into());
        assert_eq!(by_name(&batch.named_groups(), &standing), ByName::Position);
    }

    #[test]
    fn a_batch_is_strange_when_none_of_its_accounts_is_listed() {
        for (names, expected) in [
            (&["x1 l1", "x2 l2"][..], true),
            (&["x1 x1"], true),
            (&["x1 l1", "l1 x1"], false),
            (&["l1 x1", "l2 x1"], false),
            (&["u1 x1", "u2 x2"], true),
            (&["u1 x1", "u2 l1"], false),
            (&["u1 u1"], false),
            (&["u1 x1", "k1 x1"], false),
        ] {
            let batch = batch(names);
            assert_eq!(is_strange(&batch.named_groups(), &standing), expected, "{names:?}");
        }
    }

    #[test]
    fn without_lists_three_refused_records_of_a_name_show_that_it_is_unknown() {
        assert!(!shows_unknown(2) && shows_unknown(3));
    }
}
