//! Batching: from ledger rows to the bytes of a request, deterministically.
//!
//! The same rows always give the same body, so that a batch whose outcome is unknown can be sent
//! again byte for byte.

mod row_ids;

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use chrono::NaiveDateTime;
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use sha2::{Digest, Sha256};

pub use self::row_ids::unpack_ids;

use self::row_ids::pack_ids;
use crate::align::{self, Clock, Invalid, Number, Text, Zone};
use crate::ledger::Row;
use crate::watermark::{Cursor, LedgerId, Order};

/// The place of a row that is not in the batch.
const OUTSIDE: usize = usize::MAX;

/// Room for a record in the body; where that is not enough the body is moved once or twice.
const RECORD_BYTES: usize = 160;

/// The [`Batch::keys`] of batches that are under way.
pub type KeysUnderWay = HashSet<u64, FixedState>;

/// Ledger rows that belong together in one request, aligned and serialised.
#[derive(Debug)]
pub struct Batch {
    /// Where its interval begins: behind this row. `None`: at the start of the pass.
    pub before: Option<Cursor>,
    /// Where its interval ends: its last row, or that of the batch that it is a part of.
    pub last: Cursor,
    /// Its rows, in the order of the cursor.
    pub rows: Vec<Row>,
    /// Newer rows of its keys that are not in it: what they supersede is not sent, in its parts neither.
    pub rivals: Arc<[Row]>,
    /// Ids of all its rows, packed as the migration describes at `batch_row_ids`.
    pub row_ids: Vec<u8>,
    /// Which of the rows are the records of the body, in that order. None: there is nothing to send.
    pub records: Vec<usize>,
    /// What each record is a balance of, as a hash of account, currency and local time.
    pub keys: Vec<u64>,
    /// Rows not sent because a newer one of the same account, currency and second is, or was.
    pub superseded: usize,
    /// Rows that cannot be sent as they stand.
    pub invalid: Vec<InvalidRow>,
    /// Records whose amount a reader would round that takes JSON numbers for doubles.
    pub beyond_double: usize,
    /// The request body: a JSON array.
    pub body: Bytes,
    /// SHA-256 of the body, in hex.
    pub body_sha256: String,
    /// The zone of its wall-clock times.
    pub zone: Zone,
}

/// A row that is set aside before sending.
#[derive(Debug)]
pub struct InvalidRow {
    /// The row.
    pub id: LedgerId,
    /// Why it cannot be sent.
    pub reason: String,
    /// The row as far as it can be shown, as JSON.
    pub record: String,
}

/// How many of `rows` the next batch takes: as many as `records_max` allows without ending inside a
/// tie of the order, since the cursor could not tell the rows of a tie apart.
///
/// `None` when the first tie alone is larger, which no cursor can get past: then `id` is no key.
pub fn cut(order: Order, rows: &[Row], records_max: usize) -> Option<usize> {
    if rows.len() <= records_max {
        return Some(rows.len());
    }
    (1..=records_max).rev().find(|&end| !tie(order, &rows[end - 1], &rows[end]))
}

/// The hash under which the key of a row is among the [`Batch::keys`]. `None`: it cannot be sent.
pub fn key_hash(row: &Row, clock: &mut Clock) -> Option<u64> {
    Aligned::new(OUTSIDE, row, clock).ok().map(|row| row.key_hash())
}

impl Batch {
    /// Aligns and serialises rows, which must not be empty and in the order of the cursor.
    ///
    /// Of rows that would have the same account, currency and second, the greatest
    /// `(captured_at, id)` is sent. The API does not document what a second import of such a key does.
    ///
    /// # Panics
    /// When there are no rows: a batch of none has no place in a pass.
    pub fn build(before: Option<Cursor>, rows: Vec<Row>, zone: &Zone) -> Self {
        Self::build_beside(before, rows, Arc::default(), zone)
    }

    /// The same where newer rows of its keys may be outside of it: they supersede the rows of the batch.
    fn build_beside(before: Option<Cursor>, rows: Vec<Row>, rivals: Arc<[Row]>, zone: &Zone) -> Self {
        let mut clock = Clock::of(zone);
        let mut invalid = Vec::new();
        let mut winners: Vec<Aligned<'_>> = Vec::with_capacity(rows.len());
        let mut keys: Vec<u64> = Vec::with_capacity(rows.len());
        let mut of_key: HashTable<usize> = HashTable::with_capacity(rows.len());
        let mut superseded = 0;
        for (place, row) in rows.iter().enumerate() {
            let record = match Aligned::new(place, row, &mut clock) {
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
        for rival in rivals.iter().filter_map(|rival| Aligned::new(OUTSIDE, rival, &mut clock).ok()) {
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
        let (body, beyond_double) = body(&winners);
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
            zone: zone.clone(),
            rows,
            rivals,
        }
    }

    /// Its records as rows, each with the hash of its key.
    pub fn keyed_rows(&self) -> impl Iterator<Item = (u64, &Row)> {
        self.keys.iter().copied().zip(self.records.iter().map(|&place| &self.rows[place]))
    }

    /// Ids of the rows that cannot be sent as they stand, packed. `None` when there are none.
    pub fn rejected_ids(&self) -> Option<Vec<u8>> {
        (!self.invalid.is_empty()).then(|| pack_ids(self.invalid.iter().map(|row| &row.id)))
    }

    /// Ids of all rows but for those that were superseded, packed: what is set aside when the records are refused.
    pub fn ids_not_superseded(&self) -> Vec<u8> {
        let records = self.records.iter().map(|&place| &self.rows[place].id);
        pack_ids(self.invalid.iter().map(|row| &row.id).chain(records))
    }

    /// A part of this batch, over the same interval.
    #[must_use]
    pub fn part(&self, rows: Vec<Row>) -> Self {
        let part = Self::build_beside(self.before.clone(), rows, self.rivals.clone(), &self.zone);
        Self { last: self.last.clone(), ..part }
    }

    /// This batch without what these rows supersede, which are not in it.
    #[must_use]
    pub fn with_newer_rows(self, rivals: Vec<Row>) -> Self {
        let beside = Self::build_beside(self.before, self.rows, rivals.into(), &self.zone);
        Self { last: self.last, ..beside }
    }

    /// Of these rows, which are not in the batch, those that supersede one of its records.
    pub fn superseded_by<'r>(&self, others: impl Iterator<Item = &'r Row>) -> Vec<&'r Row> {
        let mut clock = Clock::of(&self.zone);
        let mut found: Vec<&Row> = Vec::new();
        let mut ages: HashMap<u64, Vec<Aligned<'_>>> = HashMap::new();
        for other in others {
            if ages.is_empty() {
                // Not before there is something to compare with: most batches have nothing behind them.
                for (&row, &key) in self.records.iter().zip(&self.keys) {
                    ages.entry(key).or_default().extend(Aligned::new(row, &self.rows[row], &mut clock));
                }
            }
            let Ok(other_row) = Aligned::new(OUTSIDE, other, &mut clock) else { continue };
            let same_key = ages.get(&other_row.key_hash()).into_iter().flatten();
            if same_key.clone().any(|own| own.key() == other_row.key() && own.age() < other_row.age()) {
                found.push(other);
            }
        }
        found
    }

    /// Two halves of its records, with about as many each. `None` when they stand or fall together.
    ///
    /// Rows of one key stay together, so that the newest of them is sent from whichever half they are in;
    /// so do rows that share an id, since a list of ids does not tell them apart.
    pub fn split_in_half(&self) -> Option<[Self; 2]> {
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
            // The first group with records is always taken, and never all of them are.
            in_first[group] = taken == 0 || 2 * (taken + records[group]) <= self.records.len();
            if !in_first[group] {
                break;
            }
            taken += records[group];
        }
        let half = |first: bool| {
            let rows = self.rows.iter().zip(&groups).filter(|(_, group)| in_first[**group] == first);
            self.part(rows.map(|(row, _)| row.clone()).collect())
        };
        Some([half(true), half(false)])
    }

    /// Its records and what cannot be sent anyway, and the rows that were superseded by those records.
    /// `None` when there are no such rows.
    pub fn split_off_superseded(&self) -> Option<[Self; 2]> {
        let mut clock = Clock::of(&self.zone);
        let mut keyed = |place: usize| Aligned::new(place, &self.rows[place], &mut clock).is_ok();
        let (losers, others): (Vec<usize>, Vec<usize>) =
            (0..self.rows.len()).partition(|&place| keyed(place) && !self.records.contains(&place));
        let rows = |places: Vec<usize>| places.into_iter().map(|place| self.rows[place].clone()).collect();
        // A list of ids would not tell such parts apart.
        let shares_id = losers
            .iter()
            .any(|&loser| others.iter().any(|&other| self.rows[other].id == self.rows[loser].id));
        (!losers.is_empty() && !shares_id).then(|| [self.part(rows(others)), self.part(rows(losers))])
    }

    /// Whether another row is a newer one of a key of this batch: then that is the one to send.
    pub fn is_superseded_by(&self, rival: &Row) -> bool {
        !self.superseded_by(std::iter::once(rival)).is_empty()
    }

    /// A record as it is in the body, as JSON.
    pub fn record(&self, row: usize) -> String {
        let mut json = Vec::new();
        if let Ok(record) = Aligned::new(row, &self.rows[row], &mut Clock::of(&self.zone)) {
            record.write(&mut json);
        }
        String::from_utf8(json).unwrap_or_default()
    }

    /// For each row, the first one of its group: of those that have to stay together.
    fn groups(&self) -> Vec<usize> {
        let mut clock = Clock::of(&self.zone);
        let mut groups: Vec<usize> = (0..self.rows.len()).collect();
        let mut of_key: HashMap<Key<'_>, usize> = HashMap::with_capacity(self.rows.len());
        let mut of_id: HashMap<&LedgerId, usize> = HashMap::with_capacity(self.rows.len());
        for (place, row) in self.rows.iter().enumerate() {
            let same_id = of_id.insert(&row.id, place);
            let record = Aligned::new(place, row, &mut clock).ok();
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

/// What a record is a balance of: account, currency and local time.
type Key<'a> = (&'a str, &'a str, NaiveDateTime);

/// Rows that a cursor does not tell apart.
fn tie(order: Order, a: &Row, b: &Row) -> bool {
    let together = match order {
        Order::ChangeXid => a.xid == b.xid,
        Order::CapturedAt => a.captured_at_us == b.captured_at_us,
    };
    together && a.id == b.id
}

/// A row on its way into the body.
struct Aligned<'a> {
    place: usize,
    row: &'a Row,
    account: Text<'a>,
    currency: Text<'a>,
    local: NaiveDateTime,
    balance: Number<'a>,
}

impl<'a> Aligned<'a> {
    fn new(place: usize, row: &'a Row, clock: &mut Clock) -> Result<Self, Invalid> {
        let account = Text::read(ACCOUNT, row.account()).map_err(|why| not_text(row, 0, why))?;
        let currency = Text::read(CURRENCY, row.currency()).map_err(|why| not_text(row, 1, why))?;
        let captured_at_us = row.captured_at_us.ok_or_else(|| Invalid("captured_at is NULL".to_owned()))?;
        let local = clock.at(captured_at_us)?;
        let numeric = row.balance().ok_or_else(|| Invalid("balance is NULL".to_owned()))?;
        Ok(Self { place, row, account, currency, local, balance: Number::read(numeric)? })
    }

    fn key(&self) -> Key<'a> {
        (self.account.as_str(), self.currency.as_str(), self.local)
    }

    /// The same for equal keys, in whichever batch; two keys that differ may share it, which costs a wait at most.
    fn key_hash(&self) -> u64 {
        FixedState::with_seed(0).hash_one(self.key())
    }

    /// Orders rows of one key: the greater is the newer.
    fn age(&self) -> (Option<i64>, &LedgerId) {
        (self.row.captured_at_us, &self.row.id)
    }

    /// Appends the record; returns where in the body its balance stands.
    fn write(&self, body: &mut Vec<u8>) -> Range<usize> {
        body.extend_from_slice(br#"{"entityAccountId":"#);
        self.account.write(body);
        body.extend_from_slice(br#","currency":"#);
        self.currency.write(body);
        body.extend_from_slice(br#","datetime":""#);
        align::write_datetime(body, self.local);
        body.extend_from_slice(br#"","balance":"#);
        let balance = body.len();
        self.balance.write(body);
        let balance = balance..body.len();
        body.push(b'}');
        balance
    }
}

/// The roles of the texts of a row, in the order of [`Row::has_bytes_for_text`].
const ACCOUNT: &str = "entity_account_id";
const CURRENCY: &str = "currency";

/// Why a text cannot be sent: that its bytes are not text, or else what was found before.
#[cold]
fn not_text(row: &Row, which: usize, why: Invalid) -> Invalid {
    let name = [ACCOUNT, CURRENCY][which];
    if row.has_bytes_for_text()[which] {
        Invalid(format!("{name} is not valid text in the encoding of the database"))
    } else {
        why
    }
}

/// The body over these records, and how many of them have an amount that a double would change.
fn body(records: &[Aligned<'_>]) -> (Vec<u8>, usize) {
    let mut body = Vec::with_capacity(2 + records.len() * RECORD_BYTES);
    let mut beyond_double = 0;
    body.push(b'[');
    for (n, record) in records.iter().enumerate() {
        if n > 0 {
            body.push(b',');
        }
        let balance = record.write(&mut body);
        beyond_double += usize::from(align::exceeds_a_double(&body[balance]));
    }
    body.push(b']');
    (body, beyond_double)
}

#[cfg(test)]
mod tests;
