//! The names of the records of a batch: their accounts and currencies as they are sent. A refused batch is split by
//! them.

use std::collections::HashMap;

use super::Batch;
use super::aligned::{OUTSIDE, sendable};
use crate::align::Clock;
use crate::watermark::LedgerId;

/// Records of a batch that stay together, because they share a key or an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedGroup<'b> {
    /// The first row of the group.
    first: usize,
    /// The account of its records.
    pub account: &'b str,
    /// The currency of its records.
    pub currency: &'b str,
    /// The number of its records.
    pub records: usize,
    /// Its records have several accounts or currencies, because rows of different names share an id.
    pub is_mixed: bool,
}

impl Batch {
    /// Returns account and currency of each record, as they are sent.
    pub fn names(&self) -> impl Iterator<Item = [&str; 2]> {
        self.records.iter().map(|&row| self.sent_names(row))
    }

    /// Returns the groups of records that stay together, in the order of their first rows.
    pub fn named_groups(&self) -> Vec<NamedGroup<'_>> {
        let groups = self.groups();
        let mut named: Vec<NamedGroup<'_>> = Vec::new();
        let mut places: HashMap<usize, usize> = HashMap::new();
        for &row in &self.records {
            let [account, currency] = self.sent_names(row);
            let place = *places.entry(groups[row]).or_insert(named.len());
            match named.get_mut(place) {
                Some(group) => {
                    group.records += 1;
                    group.is_mixed |= (group.account, group.currency) != (account, currency);
                }
                None => named.push(NamedGroup {
                    first: groups[row],
                    account,
                    currency,
                    records: 1,
                    is_mixed: false,
                }),
            }
        }
        named.sort_by_key(|group| group.first);
        named
    }

    /// Returns the number of the part of each row. `parts`: the number of the part of each of these groups. Rows
    /// without a record belong to the first part.
    pub fn parts_of_rows(&self, named: &[NamedGroup<'_>], parts: &[usize]) -> Vec<usize> {
        let first = parts.iter().copied().min().unwrap_or_default();
        let of_group: HashMap<usize, usize> =
            named.iter().map(|group| group.first).zip(parts.iter().copied()).collect();
        self.groups().iter().map(|group| of_group.get(group).copied().unwrap_or(first)).collect()
    }

    /// Returns the row of its only record. `None`: it has several, or none.
    pub fn sole_record(&self) -> Option<LedgerId> {
        let [row] = self.records[..] else { return None };
        Some(self.rows[row].id.clone())
    }

    /// Returns the part of this batch with the rows at these places.
    #[must_use]
    pub fn only(&self, is_in_part: impl Fn(usize) -> bool) -> Self {
        let rows = self.rows.iter().enumerate().filter(|(place, _)| is_in_part(*place));
        self.part(rows.map(|(_, row)| row.clone()).collect())
    }

    /// Returns the places of all rows that can be sent, also of those that are superseded.
    pub fn sendable(&self) -> Vec<usize> {
        let (mut clock, clashes) = (Clock::of(&self.rules.zone), self.clashes());
        let mut is_sendable =
            |place: &usize| sendable(OUTSIDE, &self.rows[*place], &self.rules, &mut clock, &clashes).is_ok();
        (0..self.rows.len()).filter(&mut is_sendable).collect()
    }
}
