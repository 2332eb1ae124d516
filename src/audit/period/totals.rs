//! Control totals: how many rows, and the exact sums of their amounts.

use std::collections::BTreeMap;

use super::outcome::{Evidence, Outcome};
use crate::align::{Number, Sum};
use crate::ledger::{Row, instant};

/// The total of some rows.
///
/// The sum of snapshots is a control total, to be compared with another sum of the same rows. It is not a balance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// The number of rows.
    pub rows: i64,
    /// The sum of their amounts.
    pub sum: Sum,
    /// Those without an amount that can be summed: NULL, NaN and the infinities. They are not in the sum.
    pub not_summed: i64,
    /// The first and the last `captured_at`, in microseconds from 2000-01-01 UTC.
    span: Option<(i64, i64)>,
}

impl Total {
    /// Adds a row.
    pub(super) fn add(&mut self, row: &Row) {
        self.rows += 1;
        match row.balance().map(Number::read) {
            Some(Ok(amount)) => self.sum.add(amount),
            _ => self.not_summed += 1,
        }
        if let Some(at) = row.captured_at_us {
            self.stretch((at, at));
        }
    }

    /// Adds the rows of another total.
    pub fn add_total(&mut self, other: &Self) {
        self.rows += other.rows;
        self.sum.add_sum(&other.sum);
        self.not_summed += other.not_summed;
        if let Some(span) = other.span {
            self.stretch(span);
        }
    }

    fn stretch(&mut self, (first, last): (i64, i64)) {
        let (was_first, was_last) = self.span.unwrap_or((first, last));
        self.span = Some((was_first.min(first), was_last.max(last)));
    }

    /// The first and the last `captured_at`. `None`: there is no row.
    pub fn span(&self) -> Option<(chrono::DateTime<chrono::Utc>, chrono::DateTime<chrono::Utc>)> {
        self.span.map(|(first, last)| (instant(first), instant(last)))
    }
}

/// An account and a currency. `None`: NULL.
pub type Names = (Option<String>, Option<String>);

/// The totals of the rows of an entity.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// By account and currency as the ledger spells them, and outcome.
    pub by_outcome: BTreeMap<Names, [Total; Outcome::ALL.len()]>,
    /// The uploaded rows by account and currency as the ledger spells them, and by what is known of what was sent.
    pub by_evidence: BTreeMap<Names, [Total; Evidence::ALL.len()]>,
    /// The records in bodies that were made again with the recorded hash: by account and currency as they were sent.
    pub proven: BTreeMap<(String, String), Total>,
}

impl Totals {
    pub(super) fn add(&mut self, row: &Row, outcome: Outcome, evidence: Option<Evidence>) {
        let [account, currency] = row.names();
        let names = (account, currency);
        if let Some(evidence) = evidence.filter(|_| outcome == Outcome::Uploaded) {
            self.by_evidence.entry(names.clone()).or_default()[evidence.place()].add(row);
        }
        self.by_outcome.entry(names).or_default()[outcome.place()].add(row);
    }

    pub(super) fn add_record(&mut self, [account, currency]: [&str; 2], row: &Row) {
        self.proven.entry((account.to_owned(), currency.to_owned())).or_default().add(row);
    }

    /// The total of an outcome over all accounts.
    pub fn of_outcome(&self, outcome: Outcome) -> Total {
        summed(self.by_outcome.values().map(|totals| &totals[outcome.place()]))
    }

    /// The total of a kind of evidence over all accounts.
    pub fn of_evidence(&self, evidence: Evidence) -> Total {
        summed(self.by_evidence.values().map(|totals| &totals[evidence.place()]))
    }
}

/// Returns the total of several totals.
pub fn summed<'a>(totals: impl Iterator<Item = &'a Total>) -> Total {
    totals.fold(Total::default(), |mut all, total| {
        all.add_total(total);
        all
    })
}
