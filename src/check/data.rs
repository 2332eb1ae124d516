//! The newest rows of the ledger against the API: names that the API does not know, and amounts and times that look
//! wrong.

use std::collections::{BTreeMap, BTreeSet};

use super::finding::{Finding, Outcome, Unmade, named};
use super::surroundings::{NameLists, Surroundings};
use crate::align::NameMap;
use crate::elven::List;
use crate::journal::{MapHistory, MapKind, UnknownName};
use crate::ledger::{SAMPLED_ROWS, Sampled};
use crate::text::{KnownNames, counted_noun, thousands};

/// Whole numbers with at least as many digits in every row look like minor units, e.g. wei.
const MINOR_UNITS_DIGITS: i64 = 15;

/// More digits behind the decimal point than any currency has.
const FRACTION_DIGITS_MAX: i64 = 18;

/// A name of the sample that the API does not list.
struct Unlisted<'s> {
    entity_id: &'s str,
    sent: String,
    near: Vec<String>,
    remedy: String,
}

/// The API knows the accounts.
pub(super) async fn accounts(surroundings: &Surroundings) -> Outcome {
    names(surroundings, List::Accounts).await
}

/// The API knows the currencies.
pub(super) async fn currencies(surroundings: &Surroundings) -> Outcome {
    names(surroundings, List::Currencies).await
}

async fn names(surroundings: &Surroundings, list: List) -> Outcome {
    let sample = surroundings.sample().await?;
    if !surroundings.is_reachable().await? {
        return Err(Unmade::Needs("api.reachable"));
    }
    let lists = surroundings.lists(list).await?;
    if let Some(problem) = lists.values().find_map(|listed| listed.as_ref().err())
        && lists.values().all(Result::is_err)
    {
        return Err(Unmade::NotApplicable(format!(
            "the list of {} could not be read: {problem}",
            list.many()
        )));
    }
    let unlisted = unlisted(surroundings, sample, lists, list).await?;
    let Some(first) = unlisted.first() else {
        return Ok(Finding::ok(format!("the API lists the {} of the newest rows", list.many())));
    };
    let shown = |name: &Unlisted<'_>| {
        let near: Vec<String> = name.near.iter().map(|near| format!("`{near}`")).collect();
        let near = if near.is_empty() { String::new() } else { format!(" (near: {})", near.join(", ")) };
        format!("`{}` of `{}`{near}", name.sent, name.entity_id)
    };
    Ok(Finding::warning(
        format!(
            "the API does not list {}: {}; their rows would be set aside",
            counted_noun(count(unlisted.len()), list.one(), list.many()),
            named(unlisted.iter().map(shown))
        ),
        first.remedy.clone(),
    ))
}

async fn unlisted<'s>(
    surroundings: &Surroundings,
    sample: &'s [Sampled],
    lists: &NameLists,
    list: List,
) -> Result<Vec<Unlisted<'s>>, Unmade> {
    let (database, entities) = (surroundings.migrated().await?, surroundings.entities().await?);
    let credentials: BTreeMap<&str, &str> =
        entities.iter().map(|entity| (entity.entity_id.as_str(), entity.credential.as_str())).collect();
    let ids: Vec<String> = entities.iter().map(|entity| entity.entity_id.clone()).collect();
    let mut maps = MapHistory::read(database, &ids).await?;
    let mut names: BTreeSet<(&str, &str)> = BTreeSet::new();
    for row in sample {
        names.insert((&row.entity_id, if list == List::Accounts { &row.account } else { &row.currency }));
    }
    let known: BTreeMap<&str, KnownNames<'_>> = lists
        .iter()
        .filter_map(|(name, ids)| {
            Some((name.as_str(), KnownNames::new(ids.as_ref().ok()?.iter().map(String::as_str))))
        })
        .collect();
    let kind = if list == List::Accounts { MapKind::Account } else { MapKind::Currency };
    let mut unlisted = Vec::new();
    for &(entity_id, ledger) in names.iter().filter(|(_, name)| !name.is_empty()) {
        let Some(credential) = credentials.get(entity_id) else { continue };
        let (Some(Ok(listed)), Some(near)) = (lists.get(*credential), known.get(credential)) else {
            continue;
        };
        let of_entity = maps.names(entity_id);
        let map: &NameMap = if list == List::Accounts { &of_entity.accounts } else { &of_entity.currencies };
        let sent = map.mapped(ledger).unwrap_or(ledger);
        if !listed.contains(sent) {
            let near: Vec<String> = near.near(sent).into_iter().map(str::to_owned).collect();
            // A currency is mapped for all entities.
            let is_of_ledger = |name: &str| {
                let is_concerned = |of: &str| list == List::Currencies || of == entity_id;
                names.iter().any(|(of, used)| is_concerned(of) && *used == name)
            };
            let unknown = UnknownName { ledger, sent, near: &near, is_of_ledger: &is_of_ledger };
            let remedy = kind.remedy(entity_id, &unknown).into_words();
            unlisted.push(Unlisted { entity_id, sent: sent.to_owned(), near, remedy });
        }
    }
    Ok(unlisted)
}

fn have(rows: i64) -> &'static str {
    if rows == 1 { "has" } else { "have" }
}

fn count(things: usize) -> i64 {
    i64::try_from(things).unwrap_or(i64::MAX)
}

/// The amounts can be sent, and survive a double.
pub(super) async fn amounts(surroundings: &Surroundings) -> Outcome {
    let sample = surroundings.sample().await?;
    let total = |of: fn(&Sampled) -> i64| sample.iter().map(of).sum::<i64>();
    let (rows, wrong, beyond) =
        (total(|row| row.rows), total(|row| row.not_finite), total(|row| row.beyond_double));
    let of = |is: fn(&Sampled) -> i64| {
        let found = sample.iter().filter(move |row| is(row) > 0);
        named(found.map(|row| format!("`{}` {} of `{}`", row.account, row.currency, row.entity_id)))
    };
    Ok(if wrong > 0 {
        Finding::warning(
            format!(
                "{} of the {} newest rows {} a balance that is NULL, NaN or infinite and would be set aside: {}",
                thousands(wrong),
                thousands(rows),
                have(wrong),
                of(|row| row.not_finite)
            ),
            "correct these rows; elven-sync run --dry-run counts them all",
        )
    } else if beyond > 0 {
        Finding::warning(
            format!(
                "{} of the {} newest rows {} more digits than a double holds: {}; such balances are sent exactly, but a \
                 reader that uses doubles rounds them",
                thousands(beyond),
                thousands(rows),
                have(beyond),
                of(|row| row.beyond_double)
            ),
            "compare one of these balances at Elven; docs/guarantees.md",
        )
    } else {
        Finding::ok(format!(
            "the {} newest rows (up to {SAMPLED_ROWS} of each entity) have amounts that can be sent",
            thousands(rows)
        ))
    })
}

/// The amounts have a plausible number of decimals.
pub(super) async fn decimals(surroundings: &Surroundings) -> Outcome {
    let sample = surroundings.sample().await?;
    // By entity and currency, over all accounts: whole numbers, the fewest digits before and the most behind the point.
    let mut currencies: BTreeMap<(&str, &str), (bool, i64, i64)> = BTreeMap::new();
    for row in sample.iter().filter(|row| row.rows > row.not_finite) {
        let (is_whole, whole, fraction) =
            currencies.entry((&row.entity_id, &row.currency)).or_insert((true, i64::MAX, 0));
        *is_whole &= row.is_whole;
        *whole = row.whole_digits.min(*whole);
        *fraction = row.fraction_digits.max(*fraction);
    }
    let named_of = |is_wrong: fn(&(bool, i64, i64)) -> bool| {
        let wrong: Vec<String> = currencies
            .iter()
            .filter(|(_, facts)| is_wrong(facts))
            .map(|((entity_id, currency), _)| format!("`{currency}` of `{entity_id}`"))
            .collect();
        (!wrong.is_empty()).then(|| named(wrong))
    };
    let minor = named_of(|(is_whole, whole, _)| *is_whole && *whole >= MINOR_UNITS_DIGITS);
    let fine = named_of(|(_, _, fraction)| *fraction > FRACTION_DIGITS_MAX);
    Ok(if let Some(minor) = minor {
        Finding::warning(
            format!(
                "each balance in {minor} is a whole number of {MINOR_UNITS_DIGITS} digits or more: is it in minor units \
                 (wei, satoshi, cents)?"
            ),
            "set [ledger] balance_scale for an integer column, or divide in a view; docs/ledgers.md",
        )
    } else if let Some(fine) = fine {
        Finding::warning(
            format!(
                "balances in {fine} have more than {FRACTION_DIGITS_MAX} digits behind the decimal point"
            ),
            "check that the ledger computes with numeric and not with a float",
        )
    } else {
        Finding::ok("the numbers of decimals look plausible")
    })
}

/// The times are plausible.
pub(super) async fn times(surroundings: &Surroundings) -> Outcome {
    let sample = surroundings.sample().await?;
    let total = |of: fn(&Sampled) -> i64| sample.iter().map(of).sum::<i64>();
    let (future, odd) = (total(|row| row.in_future), total(|row| row.odd_times));
    Ok(if odd > 0 {
        Finding::warning(
            format!(
                "{} of the newest rows {} a captured_at that is NULL, infinite or before 1970",
                thousands(odd),
                have(odd)
            ),
            "correct these rows; elven-sync run --dry-run says which would be set aside",
        )
    } else if future > 0 {
        Finding::warning(
            format!(
                "{} of the newest rows {} a captured_at more than a day in the future, and {} sent",
                thousands(future),
                have(future),
                if future == 1 { "is" } else { "are" }
            ),
            "check the clock and the time zone of the writer, and [ledger] captured_at_zone",
        )
    } else {
        Finding::ok("the times of the newest rows are plausible")
    })
}
