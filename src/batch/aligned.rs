//! Rows with their values converted.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::ops::Range;

use chrono::NaiveDateTime;
use foldhash::fast::FixedState;

use super::form::{CurrencyField, RecordForm};
use super::rules::RecordRules;
use crate::align::{self, Clock, Invalid, Number, Text};
use crate::ledger::Row;
use crate::watermark::LedgerId;

/// The index of a row that is not in the batch.
pub(super) const OUTSIDE: usize = usize::MAX;

/// The estimated size of a record in the body, in bytes. If it is too small, the body is reallocated once or twice.
const RECORD_BYTES: usize = 160;

/// The key of a record: account and currency as Elven names them, and local time.
pub(super) type Key<'a> = (&'a str, &'a str, NaiveDateTime);

/// A row that can be sent, with its values converted.
pub(super) struct Aligned<'a> {
    /// The index of the row in its batch, or [`OUTSIDE`].
    pub(super) place: usize,
    pub(super) row: &'a Row,
    account: Text<'a>,
    currency: Text<'a>,
    /// The field of the record that names the currency.
    currency_field: CurrencyField,
    local: NaiveDateTime,
    balance: Number<'a>,
}

impl<'a> Aligned<'a> {
    pub(super) fn new(
        place: usize,
        row: &'a Row,
        rules: &'a RecordRules,
        clock: &mut Clock,
    ) -> Result<Self, Invalid> {
        let names = &rules.names;
        let account = row.account().map(|name| names.accounts.elven(ACCOUNT, name)).transpose()?;
        let account = Text::read(ACCOUNT, account).map_err(|why| not_text(row, 0, why))?;
        let kind = row.currency().and_then(|name| names.currencies.kind(name));
        let currency = row.currency().map(|name| names.currencies.elven(CURRENCY, name)).transpose()?;
        let currency = Text::read(CURRENCY, currency).map_err(|why| not_text(row, 1, why))?;
        let captured_at_us = row.captured_at_us.ok_or_else(|| Invalid("captured_at is NULL".to_owned()))?;
        let local = clock.at(captured_at_us)?;
        let numeric = row.balance().ok_or_else(|| Invalid("balance is NULL".to_owned()))?;
        let (balance, currency_field) = (Number::read(numeric)?, rules.form.currency_field(kind));
        Ok(Self { place, row, account, currency, currency_field, local, balance })
    }

    pub(super) fn key(&self) -> Key<'a> {
        (self.account.as_str(), self.currency.as_str(), self.local)
    }

    /// Returns a hash that is the same for equal keys in all batches. Two different keys may share it, which costs at
    /// most a wait.
    pub(super) fn key_hash(&self) -> u64 {
        FixedState::with_seed(0).hash_one(self.key())
    }

    /// Returns a value that orders rows with one key: the greater is the newer.
    pub(super) fn age(&self) -> (Option<i64>, &LedgerId) {
        (self.row.captured_at_us, &self.row.id)
    }

    /// Appends the record; returns the range of its balance in the body.
    pub(super) fn write(&self, form: &RecordForm, body: &mut Vec<u8>) -> Range<usize> {
        body.extend_from_slice(br#"{"entityAccountId":"#);
        self.account.write(body);
        if let Some(source) = form.source() {
            body.extend_from_slice(br#","sourceId":"#);
            source.write(body);
        }
        body.extend_from_slice(self.currency_field.json());
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

/// The roles of the text columns, in the order of [`Row::has_bytes_for_text`].
const ACCOUNT: &str = "entity_account_id";
const CURRENCY: &str = "currency";

/// Returns why a text cannot be sent: its bytes are not text, or otherwise the given reason.
#[cold]
fn not_text(row: &Row, which: usize, why: Invalid) -> Invalid {
    let name = [ACCOUNT, CURRENCY][which];
    if row.has_bytes_for_text()[which] {
        Invalid(format!("{name} is not valid text in the encoding of the database"))
    } else {
        why
    }
}

/// Returns the body of these records, and how many of them have an amount that a double would change.
pub(super) fn body(records: &[Aligned<'_>], form: &RecordForm) -> (Vec<u8>, usize) {
    let mut body = Vec::with_capacity(2 + records.len() * RECORD_BYTES);
    let mut beyond_double = 0;
    body.push(b'[');
    for (n, record) in records.iter().enumerate() {
        if n > 0 {
            body.push(b',');
        }
        let balance = record.write(form, &mut body);
        beyond_double += usize::from(align::exceeds_a_double(&body[balance]));
    }
    body.push(b']');
    (body, beyond_double)
}

/// Converts the values of a row, unless its key is one of `clashes`.
pub(super) fn sendable<'a>(
    place: usize,
    row: &'a Row,
    rules: &'a RecordRules,
    clock: &mut Clock,
    clashes: &Clashes<'_>,
) -> Result<Aligned<'a>, Invalid> {
    Aligned::new(place, row, rules, clock)?.unless_it_clashes(clashes)
}

/// The keys that rows with different names in the ledger share, each with two such rows.
pub(super) type Clashes<'a> = HashMap<Key<'a>, [&'a Row; 2]>;

/// Finds the keys that rows with different names in the ledger share. That is possible only through shared maps.
pub(super) fn clashes<'a>(rows: impl Iterator<Item = &'a Row>, rules: &'a RecordRules) -> Clashes<'a> {
    let mut found = Clashes::new();
    if !rules.names.has_shared() {
        return found;
    }
    let mut clock = Clock::of(&rules.zone);
    let mut first: HashMap<Key<'a>, &'a Row> = HashMap::new();
    for row in rows {
        let Ok(aligned) = Aligned::new(OUTSIDE, row, rules, &mut clock) else { continue };
        let other = *first.entry(aligned.key()).or_insert(row);
        if names(other) != names(row) {
            found.entry(aligned.key()).or_insert([other, row]);
        }
    }
    found
}

impl Aligned<'_> {
    /// Returns the row, or why it is not sent if its key is one of `clashes`.
    fn unless_it_clashes(self, clashes: &Clashes<'_>) -> Result<Self, Invalid> {
        let of_key = clashes.get(&self.key()).into_iter().flatten();
        let Some(other) = of_key.into_iter().find(|other| names(other) != names(self.row)) else {
            return Ok(self);
        };
        // Without names and times: errors are grouped by their words without the values of their own row.
        Err(Invalid(format!(
            "row {} has other names in the ledger, but the same account, currency and second at Elven, so neither row is \
             sent: correct or delete one of them, or correct their maps",
            other.id
        )))
    }
}

/// The names of a row in the ledger.
fn names(row: &Row) -> (&str, &str) {
    (row.account().unwrap_or_default(), row.currency().unwrap_or_default())
}
