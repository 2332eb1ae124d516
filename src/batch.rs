//! Batching: from ledger rows to the bytes of a request, deterministically.
//!
//! The same rows always give the same body, so that a batch whose outcome is unknown can be sent
//! again byte for byte.

use std::collections::HashMap;

use bytes::Bytes;
use chrono::NaiveDateTime;
use chrono_tz::Tz;
use sha2::{Digest, Sha256};

use crate::align::{self, Invalid};
use crate::ledger::Row;
use crate::watermark::{Cursor, LedgerId};

/// The most records that the API takes in one request.
pub const RECORDS_MAX: usize = 1000;

/// Ledger rows that belong together in one request, aligned and serialised.
#[derive(Debug)]
pub struct Batch {
    /// Where its interval begins: behind this row. `None`: at the start of the pass.
    pub before: Option<Cursor>,
    /// Where its interval ends: its last row.
    pub last: Cursor,
    /// Ids of all its rows, packed as the migration describes at `batch_row_ids`.
    pub row_ids: Vec<u8>,
    /// Rows in the interval: records, invalid and superseded ones.
    pub rows_read: usize,
    /// Records in the body. When 0 there is nothing to send.
    pub records: usize,
    /// Rows not sent because a newer one of the same account, currency and second is.
    pub superseded: usize,
    /// Rows that cannot be sent as they stand.
    pub invalid: Vec<InvalidRow>,
    /// The request body: a JSON array.
    pub body: Bytes,
    /// SHA-256 of the body, in hex.
    pub body_sha256: String,
}

/// A row that is set aside before sending.
#[derive(Debug)]
pub struct InvalidRow {
    /// The row.
    pub id: LedgerId,
    /// Why it cannot be sent.
    pub reason: String,
    /// The row as far as it can be shown.
    pub record: serde_json::Value,
}

/// How many of `rows` the next batch takes: as many as `records_max` allows without ending inside a
/// tie of `(change_xid, id)`, since the cursor could not tell the rows of a tie apart.
///
/// `None` when the first tie alone is larger, which no cursor can get past: then `id` is no key.
pub fn cut(rows: &[Row], records_max: usize) -> Option<usize> {
    if rows.len() <= records_max {
        return Some(rows.len());
    }
    let same = |a: &Row, b: &Row| a.xid == b.xid && a.id == b.id;
    (1..=records_max).rev().find(|&end| !same(&rows[end - 1], &rows[end]))
}

impl Batch {
    /// Aligns and serialises rows, which must not be empty and in the order of the cursor.
    ///
    /// Of rows that would have the same account, currency and second, the greatest
    /// `(captured_at, id)` is sent. The API does not document what a second import of such a key does.
    ///
    /// # Panics
    /// When there are no rows: a batch of none has no place in a pass.
    pub fn build(before: Option<Cursor>, rows: &[Row], zone: Tz) -> Self {
        let mut invalid = Vec::new();
        let mut aligned: Vec<Aligned<'_>> = Vec::with_capacity(rows.len());
        let mut newest: HashMap<(&str, &str, NaiveDateTime), usize> = HashMap::with_capacity(rows.len());
        let mut superseded = 0;
        for row in rows {
            let record = match Aligned::new(row, zone) {
                Ok(record) => record,
                Err(Invalid(reason)) => {
                    invalid.push(InvalidRow { id: row.id.clone(), reason, record: row.to_json() });
                    continue;
                }
            };
            let place =
                newest.entry((record.account, record.currency, record.local)).or_insert(aligned.len());
            match aligned.get_mut(*place) {
                None => aligned.push(record),
                Some(rival) => {
                    superseded += 1;
                    if rival.age() < record.age() {
                        *rival = record;
                    }
                }
            }
        }
        let mut body = Vec::with_capacity(2 + aligned.len() * 144);
        body.push(b'[');
        for (n, record) in aligned.iter().enumerate() {
            if n > 0 {
                body.push(b',');
            }
            record.write(&mut body);
        }
        body.push(b']');
        #[expect(
            clippy::expect_used,
            reason = "the caller hands over rows; a batch of none has no place in a pass"
        )]
        let last = rows.last().expect("a batch has rows").cursor();
        Self {
            before,
            last,
            row_ids: pack_ids(rows.iter().map(|row| &row.id)),
            rows_read: rows.len(),
            records: aligned.len(),
            superseded,
            invalid,
            body_sha256: hex::encode(Sha256::digest(&body)),
            body: body.into(),
        }
    }
}

/// A row on its way into the body.
struct Aligned<'a> {
    row: &'a Row,
    account: &'a str,
    currency: &'a str,
    local: NaiveDateTime,
    number: Vec<u8>,
}

impl<'a> Aligned<'a> {
    fn new(row: &'a Row, zone: Tz) -> Result<Self, Invalid> {
        let (account, currency) = (row.account(), row.currency());
        align::check_text("entity_account_id", account)?;
        align::check_text("currency", currency)?;
        let captured_at_us = row.captured_at_us.ok_or_else(|| Invalid("captured_at is NULL".to_owned()))?;
        let local = align::wall_clock(captured_at_us, zone)?;
        let numeric = row.balance().ok_or_else(|| Invalid("balance is NULL".to_owned()))?;
        let mut number = Vec::with_capacity(24);
        align::write_number(&mut number, numeric)?;
        Ok(Self { row, account: account.unwrap_or(""), currency: currency.unwrap_or(""), local, number })
    }

    /// Orders rows of one key: the greater is the newer.
    fn age(&self) -> (Option<i64>, &LedgerId) {
        (self.row.captured_at_us, &self.row.id)
    }

    fn write(&self, body: &mut Vec<u8>) {
        body.extend_from_slice(br#"{"entityAccountId":"#);
        write_json_string(body, self.account);
        body.extend_from_slice(br#","currency":"#);
        write_json_string(body, self.currency);
        body.extend_from_slice(br#","datetime":""#);
        align::write_datetime(body, self.local);
        body.extend_from_slice(br#"","balance":"#);
        body.extend_from_slice(&self.number);
        body.push(b'}');
    }
}

fn write_json_string(body: &mut Vec<u8>, text: &str) {
    #[expect(clippy::expect_used, reason = "a string always serialises, and writing to a Vec cannot fail")]
    serde_json::to_writer(body, text).expect("a string is JSON");
}

/// Packs ids as the migration describes at `batch_row_ids`: differences of numbers, or texts.
fn pack_ids<'a>(ids: impl Iterator<Item = &'a LedgerId> + Clone) -> Vec<u8> {
    let numbers: Option<Vec<i64>> = ids
        .clone()
        .map(|id| match id {
            LedgerId::Number(number) => Some(*number),
            LedgerId::Text(_) => None,
        })
        .collect();
    if let Some(numbers) = numbers {
        let mut packed = vec![1];
        let mut previous: i64 = 0;
        for number in numbers {
            let difference = i128::from(number) - i128::from(previous);
            // Zigzag: small differences of either sign become small numbers without one.
            push_groups(&mut packed, ((difference << 1) ^ (difference >> 127)).cast_unsigned());
            previous = number;
        }
        packed
    } else {
        let mut packed = vec![2];
        for text in ids.map(ToString::to_string) {
            push_groups(&mut packed, text.len() as u128);
            packed.extend_from_slice(text.as_bytes());
        }
        packed
    }
}

/// Appends a number in groups of 7 bits, the lowest first; all but the last have the eighth bit set.
fn push_groups(packed: &mut Vec<u8>, mut number: u128) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            packed.push(low & 0x7f);
            return;
        }
        packed.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(xid: u64, id: i64, captured_at_us: i64, balance: &[u16]) -> Row {
        let numeric: Vec<u8> = balance.iter().flat_map(|word| word.to_be_bytes()).collect();
        Row::new(xid, LedgerId::Number(id), Some("acct"), Some("BTC"), Some(captured_at_us), Some(&numeric))
    }

    const ONE: &[u16] = &[1, 0, 0, 0, 1];
    const TWO: &[u16] = &[1, 0, 0, 0, 2];
    const NAN: &[u16] = &[0, 0, 0xC000, 0];

    #[test]
    fn a_batch_never_ends_inside_a_tie() {
        let rows = [row(1, 1, 0, ONE), row(1, 2, 0, ONE), row(1, 2, 0, ONE), row(1, 3, 0, ONE)];
        assert_eq!(cut(&rows, 4), Some(4));
        assert_eq!(cut(&rows, 3), Some(3));
        assert_eq!(cut(&rows, 2), Some(1), "ids 2 and 2 stay together");
        assert_eq!(cut(&rows[1..], 1), None, "two rows with one cursor do not fit");
    }

    #[test]
    fn the_greater_captured_at_then_id_is_sent_and_the_other_counted() {
        for (rows, expected) in [
            ([row(1, 1, 0, ONE), row(1, 2, 5, TWO)], 2),
            ([row(1, 1, 5, ONE), row(1, 2, 0, TWO)], 1),
            ([row(1, 1, 0, ONE), row(1, 2, 0, TWO)], 2),
        ] {
            let batch = Batch::build(None, &rows, Tz::UTC);
            assert_eq!((batch.rows_read, batch.records, batch.superseded), (2, 1, 1));
            let body = std::str::from_utf8(&batch.body).unwrap();
            assert_eq!(
                body,
                format!(
                    r#"[{{"entityAccountId":"acct","currency":"BTC","datetime":"2000-01-01 00:00:00","balance":{expected}}}]"#
                )
            );
        }
    }

    #[test]
    fn an_invalid_row_is_set_aside_and_the_rest_goes_on() {
        let batch = Batch::build(None, &[row(1, 1, 0, NAN), row(1, 2, 0, TWO)], Tz::UTC);
        assert_eq!((batch.rows_read, batch.records, batch.superseded, batch.invalid.len()), (2, 1, 0, 1));
        assert_eq!(batch.invalid[0].id, LedgerId::Number(1));
        assert_eq!(batch.invalid[0].reason, "balance is NaN");
        let none = Batch::build(None, &[row(1, 1, 0, NAN)], Tz::UTC);
        assert_eq!((none.records, &none.body[..]), (0, &b"[]"[..]));
    }

    #[test]
    fn close_ids_take_a_byte_each() {
        let ids: Vec<LedgerId> = (1000..1100).map(LedgerId::Number).collect();
        assert_eq!(pack_ids(ids.iter()).len(), 1 + 2 + 99);
    }
}
