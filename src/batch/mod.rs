//! Batching: turns ledger rows into the bytes of a request, deterministically.
//!
//! The same rows always give the same body, so that a batch with an unknown outcome can be sent again byte for byte.

mod aligned;
mod form;
mod names;
mod row_ids;
mod rules;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use sha2::{Digest, Sha256};

pub use self::form::{RecordForm, Source};
pub use self::names::NamedGroup;
pub use self::row_ids::{pack_ids, unpack_ids};
pub use self::rules::{Aligner, RecordRules};

use self::aligned::{Aligned, Clashes, Key, OUTSIDE, body, clashes, sendable};
use crate::align::{Clock, Invalid};
use crate::ledger::Row;
use crate::watermark::{Cursor, LedgerId, Order};

/// The [`Batch::keys`] of the batches in flight.
pub type KeysUnderWay = HashSet<u64, FixedState>;

/// The ledger rows of one request, aligned and serialised.
#[derive(Debug)]
pub struct Batch {
    /// The row after which its interval begins. `None`: at the start of the pass.
    pub before: Option<Cursor>,
    /// The row at which its interval ends: its last row, or the last row of its parent batch.
    pub last: Cursor,
    /// Its rows, in the order of the cursor.
    pub rows: Vec<Row>,
    /// Newer rows with its keys that are outside the batch. They supersede rows of the batch, and of its parts.
    pub rivals: Arc<[Row]>,
    /// The ids of all its rows, packed as `batch_row_ids` in the migration describes.
    pub row_ids: Vec<u8>,
    /// The indexes of the rows that are the records of the body, in that order. Empty: there is nothing to send.
    pub records: Vec<usize>,
    /// The key of each record: a hash of account, currency and local time.
    pub keys: Vec<u64>,
    /// The number of rows that are not sent because a newer row with the same account, currency and second is sent
    /// instead.
    pub superseded: usize,
    /// Rows that are refused before sending.
    pub invalid: Vec<InvalidRow>,
    /// The number of records whose amount would be rounded by a reader that parses JSON numbers as doubles.
    pub beyond_double: usize,
    /// The request body: a JSON array.
    pub body: Bytes,
    /// SHA-256 of the body, in hex.
    pub body_sha256: String,
    /// The rules of its records.
    pub rules: RecordRules,
}

/// A row that is refused before sending, and set aside.
#[derive(Debug)]
pub struct InvalidRow {
    /// The row.
    pub id: LedgerId,
    /// Why it cannot be sent.
    pub reason: String,
    /// The row as JSON, as far as it can be represented.
    pub record: String,
}

/// Returns how many of `rows` the next batch takes: as many as `records_max` allows without ending inside a tie of the
/// order, because a cursor cannot tell the rows of a tie apart.
///
/// `None` when the first tie alone is larger, so that no cursor can pass it: then `id` is not unique.
pub fn cut(order: Order, rows: &[Row], records_max: usize) -> Option<usize> {
    if rows.len() <= records_max {
        return Some(rows.len());
    }
    (1..=records_max).rev().find(|&end| !tie(order, &rows[end - 1], &rows[end]))
}

/// Returns the hash of the key of a row, as in [`Batch::keys`]. `None`: the row cannot be sent.
pub fn key_hash(row: &Row, aligner: &mut Aligner) -> Option<u64> {
    let Aligner { rules, clock } = aligner;
    Aligned::new(OUTSIDE, row, rules, clock).ok().map(|row| row.key_hash())
}

impl Batch {
    /// Aligns and serialises rows, which must not be empty and must be in the order of the cursor.
    ///
    /// Of several rows with the same account, currency and second, the row with the greatest `(captured_at, id)` is
    /// sent. The API does not document what a second import of such a key does.
    ///
    /// # Panics
    /// When there are no rows: an empty batch has no position in a pass.
    pub fn build(before: Option<Cursor>, rows: Vec<Row>, rules: &RecordRules) -> Self {
        Self::build_beside(before, rows, Arc::default(), rules)
    }

    /// Builds a batch whose rows may be superseded by rows outside it (`rivals`).
    fn build_beside(before: Option<Cursor>, rows: Vec<Row>, rivals: Arc<[Row]>, rules: &RecordRules) -> Self {
        let mut clock = Clock::of(&rules.zone);
        let clashes = clashes(rows.iter().chain(rivals.iter()), rules);
        let mut invalid = Vec::new();
        let mut winners: Vec<Aligned<'_>> = Vec::with_capacity(rows.len());
        let mut keys: Vec<u64> = Vec::with_capacity(rows.len());
        let mut of_key: HashTable<usize> = HashTable::with_capacity(rows.len());
        let mut superseded = 0;
        for (place, row) in rows.iter().enumerate() {
            let record = match sendable(place, row, rules, &mut clock, &clashes) {
                Ok(record) => record,
                Err(Invalid(reason)) => {
                    let record = row.to_json().to_string();
                    invalid.push(InvalidRow { id: row.id.clone(), reason, record });
                    continue;
                }
            };
            let hash = record.key_hash();
            let same_key = |winner: &usize| winners[*winner].key() == record.key();
            match of_key.entry(hash, same_key, |winner| keys[*winner]) {
                Entry::Vacant(unseen) => {
                    unseen.insert(winners.len());
                    winners.push(record);
                    keys.push(hash);
                }
                Entry::Occupied(rival) => {
                    superseded += 1;
                    let rival = &mut winners[*rival.get()];
                    if rival.age() < record.age() {
                        *rival = record;
                    }
                }
            }
        }
        for rival in rivals.iter().filter_map(|row| sendable(OUTSIDE, row, rules, &mut clock, &clashes).ok())
        {
            let same_key = |winner: &usize| winners[*winner].key() == rival.key();
            if let Some(&winner) = of_key.find(rival.key_hash(), same_key)
                && winners[winner].age() < rival.age()
            {
                superseded += usize::from(winners[winner].place != OUTSIDE);
                winners[winner] = rival;
            }
        }
        let mut sent = winners.iter().map(|winner| winner.place != OUTSIDE);
        keys.retain(|_| sent.next().unwrap_or_default());
        winners.retain(|winner| winner.place != OUTSIDE);
        let (body, beyond_double) = body(&winners, &rules.form);
        #[expect(
            clippy::expect_used,
            reason = "the caller hands over rows; a batch of none has no place in a pass"
        )]
        let last = rows.last().expect("a batch has rows").cursor(Order::ChangeXid);
        Self {
            before,
            last,
            row_ids: pack_ids(rows.iter().map(|row| &row.id)),
            records: winners.iter().map(|record| record.place).collect(),
            keys,
            superseded,
            invalid,
            beyond_double,
            body_sha256: hex::encode(Sha256::digest(&body)),
            body: body.into(),
            rules: rules.clone(),
            rows,
            rivals,
        }
    }

    /// Returns the rows of its records, each with the hash of its key.
    pub fn keyed_rows(&self) -> impl Iterator<Item = (u64, &Row)> {
        self.keys.iter().copied().zip(self.records.iter().map(|&place| &self.rows[place]))
    }

    /// Returns the names of account and currency of a row, as the ledger spells them.
    pub fn ledger_names(&self, row: usize) -> [&str; 2] {
        let row = &self.rows[row];
        [row.account().unwrap_or_default(), row.currency().unwrap_or_default()]
    }

    /// Returns the names of account and currency of a record, as they are sent.
    pub fn sent_names(&self, row: usize) -> [&str; 2] {
        let [account, currency] = self.ledger_names(row);
        let names = &self.rules.names;
        [
            names.accounts.mapped(account).unwrap_or(account),
            names.currencies.mapped(currency).unwrap_or(currency),
        ]
    }

    /// Returns the packed ids of the invalid rows. `None` when there are none.
    pub fn rejected_ids(&self) -> Option<Vec<u8>> {
        (!self.invalid.is_empty()).then(|| pack_ids(self.invalid.iter().map(|row| &row.id)))
    }

    /// Returns the packed ids of all rows that were not superseded: the rows that are set aside when the records are
    /// refused.
    pub fn ids_not_superseded(&self) -> Vec<u8> {
        let records = self.records.iter().map(|&place| &self.rows[place].id);
        pack_ids(self.invalid.iter().map(|row| &row.id).chain(records))
    }

    /// Returns a part of this batch, with the same interval.
    #[must_use]
    pub fn part(&self, rows: Vec<Row>) -> Self {
        let part = Self::build_beside(self.before.clone(), rows, self.rivals.clone(), &self.rules);
        Self { last: self.last.clone(), ..part }
    }

    /// Returns this batch without the rows that `rivals` supersede; the rivals are outside the batch.
    #[must_use]
    pub fn with_newer_rows(self, rivals: Vec<Row>) -> Self {
        let beside = Self::build_beside(self.before, self.rows, rivals.into(), &self.rules);
        Self { last: self.last, ..beside }
    }

    /// Returns the rows of its records whose names at Elven other names of the ledger may have, too.
    pub fn shared_rows(&self) -> Vec<Row> {
        let names = &self.rules.names;
        if !names.has_shared() {
            return Vec::new();
        }
        let is_shared = |place: &&usize| {
            let [account, currency] = self.ledger_names(**place);
            names.accounts.same_at_elven(account).len() > 1
                || names.currencies.same_at_elven(currency).len() > 1
        };
        self.records.iter().filter(is_shared).map(|&place| self.rows[place].clone()).collect()
    }

    /// Returns this batch without the records that have the key of a row in `others` with other names in the ledger:
    /// they are invalid.
    #[must_use]
    pub fn without_clashes(self, others: &[Row]) -> Self {
        if !self.rules.names.has_shared() {
            return self;
        }
        let mut clock = Clock::of(&self.rules.zone);
        let mut own: HashMap<Key<'_>, [&str; 2]> = HashMap::new();
        for &place in &self.records {
            if let Ok(row) = Aligned::new(place, &self.rows[place], &self.rules, &mut clock) {
                own.insert(row.key(), self.ledger_names(place));
            }
        }
        let clashes: Vec<Row> = others
            .iter()
            .filter(|other| {
                let names = [other.account().unwrap_or_default(), other.currency().unwrap_or_default()];
                let other = Aligned::new(OUTSIDE, other, &self.rules, &mut clock);
                other.is_ok_and(|other| own.get(&other.key()).is_some_and(|own| *own != names))
            })
            .cloned()
            .collect();
        if clashes.is_empty() { self } else { self.with_newer_rows(clashes) }
    }

    /// Returns the rows of `others`, which are outside the batch, that supersede one of its records.
    pub fn superseded_by<'r>(&self, others: impl Iterator<Item = &'r Row>) -> Vec<&'r Row> {
        let mut clock = Clock::of(&self.rules.zone);
        let mut found: Vec<&Row> = Vec::new();
        let mut ages: HashMap<u64, Vec<Aligned<'_>>> = HashMap::new();
        for other in others {
            if ages.is_empty() {
                // Filled only when there is a row to compare: most batches are compared with none.
                for (&row, &key) in self.records.iter().zip(&self.keys) {
                    ages.entry(key).or_default().extend(Aligned::new(
                        row,
                        &self.rows[row],
                        &self.rules,
                        &mut clock,
                    ));
                }
            }
            let Ok(other_row) = Aligned::new(OUTSIDE, other, &self.rules, &mut clock) else { continue };
            let same_key = ages.get(&other_row.key_hash()).into_iter().flatten();
            if same_key.clone().any(|own| own.key() == other_row.key() && own.age() < other_row.age()) {
                found.push(other);
            }
        }
        found
    }

    /// Returns the rows that a record of the batch supersedes, each with the row of that record.
    pub fn superseded_rows(&self) -> Vec<(&Row, &Row)> {
        if self.superseded == 0 {
            return Vec::new();
        }
        let mut clock = Clock::of(&self.rules.zone);
        let clashes = self.clashes();
        let mut aligned = |row| sendable(OUTSIDE, row, &self.rules, &mut clock, &clashes).ok();
        let aligned: Vec<Aligned<'_>> = self.rows.iter().filter_map(&mut aligned).collect();
        let mut newest: HashMap<Key<'_>, &Aligned<'_>> = HashMap::new();
        for row in &aligned {
            let rival = newest.entry(row.key()).or_insert(row);
            if rival.age() < row.age() {
                *rival = row;
            }
        }
        let pairs = aligned.iter().filter_map(|row| Some((row, *newest.get(&row.key())?)));
        pairs
            .filter(|(row, newest)| row.age() < newest.age())
            .map(|(row, newest)| (row.row, newest.row))
            .collect()
    }

    /// Returns two parts with about half of the records each. `None` when the records cannot be separated.
    ///
    /// Rows with one key stay together, so that the newest of them is sent from either part. Rows that share an id
    /// stay together too, because a list of ids does not tell them apart.
    pub fn split_in_half(&self) -> Option<[Self; 2]> {
        let halves = self.halves_of_rows()?;
        Some([0, 1].map(|half| self.only(|row| halves[row] == half)))
    }

    /// Returns for each row whether it is in the first half (0) or in the second (1), as in [`Self::split_in_half`].
    pub fn halves_of_rows(&self) -> Option<Vec<usize>> {
        let groups = self.groups();
        let mut records = vec![0; self.rows.len()];
        for &row in &self.records {
            records[groups[row]] += 1;
        }
        if records.iter().filter(|count| **count > 0).count() < 2 {
            return None;
        }
        let mut in_first = vec![false; self.rows.len()];
        let mut taken = 0;
        for group in 0..records.len() {
            // The first group with records is always taken, and the last one never is.
            in_first[group] = taken == 0 || 2 * (taken + records[group]) <= self.records.len();
            if !in_first[group] {
                break;
            }
            taken += records[group];
        }
        Some(groups.into_iter().map(|group| usize::from(!in_first[group])).collect())
    }

    /// Returns two parts: the records with the invalid rows, and the rows that those records supersede. `None` when
    /// there are no superseded rows.
    pub fn split_off_superseded(&self) -> Option<[Self; 2]> {
        let mut clock = Clock::of(&self.rules.zone);
        let clashes = self.clashes();
        let mut keyed =
            |place: usize| sendable(place, &self.rows[place], &self.rules, &mut clock, &clashes).is_ok();
        let (losers, others): (Vec<usize>, Vec<usize>) =
            (0..self.rows.len()).partition(|&place| keyed(place) && !self.records.contains(&place));
        let rows = |places: Vec<usize>| places.into_iter().map(|place| self.rows[place].clone()).collect();
        // A list of ids could not tell such parts apart.
        let shares_id = losers
            .iter()
            .any(|&loser| others.iter().any(|&other| self.rows[other].id == self.rows[loser].id));
        (!losers.is_empty() && !shares_id).then(|| [self.part(rows(others)), self.part(rows(losers))])
    }

    /// Returns whether `rival` is newer than the record with its key, so that the rival is sent instead.
    pub fn is_superseded_by(&self, rival: &Row) -> bool {
        !self.superseded_by(std::iter::once(rival)).is_empty()
    }

    /// Returns a record as it is in the body, as JSON.
    pub fn record(&self, row: usize) -> String {
        let mut json = Vec::new();
        if let Ok(record) = Aligned::new(row, &self.rows[row], &self.rules, &mut Clock::of(&self.rules.zone))
        {
            record.write(&self.rules.form, &mut json);
        }
        String::from_utf8(json).unwrap_or_default()
    }

    /// Returns the keys that rows with different names in the ledger share. These rows are invalid.
    fn clashes(&self) -> Clashes<'_> {
        clashes(self.rows.iter().chain(self.rivals.iter()), &self.rules)
    }

    /// Returns for each row the first row of its group: the rows that have to stay together.
    fn groups(&self) -> Vec<usize> {
        let mut clock = Clock::of(&self.rules.zone);
        let mut groups: Vec<usize> = (0..self.rows.len()).collect();
        let mut of_key: HashMap<Key<'_>, usize> = HashMap::with_capacity(self.rows.len());
        let mut of_id: HashMap<&LedgerId, usize> = HashMap::with_capacity(self.rows.len());
        for (place, row) in self.rows.iter().enumerate() {
            let same_id = of_id.insert(&row.id, place);
            let record = Aligned::new(place, row, &self.rules, &mut clock).ok();
            let same_key = record.and_then(|record| of_key.insert(record.key(), place));
            for other in [same_id, same_key].into_iter().flatten() {
                let (one, other) = (groups[place], groups[other]);
                let (kept, dropped) = (one.min(other), one.max(other));
                groups.iter_mut().filter(|group| **group == dropped).for_each(|group| *group = kept);
            }
        }
        groups
    }
}

/// Returns whether a cursor cannot tell two rows apart.
fn tie(order: Order, a: &Row, b: &Row) -> bool {
    let together = match order {
        Order::ChangeXid => a.xid == b.xid,
        Order::CapturedAt => a.captured_at_us == b.captured_at_us,
    };
    together && a.id == b.id
}

#[cfg(test)]
mod tests;
