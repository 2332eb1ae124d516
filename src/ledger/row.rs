//! A ledger row, decoded from PostgreSQL's binary `COPY` format (manual, "COPY", "Binary Format").

use bytes::Bytes;
use serde_json::json;

use super::LedgerError;
use crate::watermark::{At, Cursor, LedgerId, Order, Xid};

/// The first bytes of a binary copy. Flags and the length of an extension follow, 4 bytes each.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// The reason why a row without an id cannot be decoded.
pub(super) const ID_IS_NULL: &str = "id is NULL";

/// One row version. The texts and the amount stay in the bytes that PostgreSQL sent.
#[derive(Clone, Debug)]
pub struct Row {
    /// The transaction that wrote it.
    pub xid: Xid,
    /// Its id.
    pub id: LedgerId,
    /// The instant of the balance, in microseconds from 2000-01-01 UTC. `i64::MAX` and `i64::MIN` are the infinities;
    /// `None` is NULL.
    pub captured_at_us: Option<i64>,
    tuple: Bytes,
    account: Option<Field>,
    currency: Option<Field>,
    balance: Option<Field>,
}

/// The position of a field in the tuple. Small, because rows are moved by the thousand.
#[derive(Clone, Copy, Debug)]
struct Field {
    begin: u32,
    end: u32,
}

impl Field {
    fn of(self, tuple: &[u8]) -> &[u8] {
        tuple.get(self.begin as usize..self.end as usize).unwrap_or_default()
    }
}

/// Decodes the messages of a copy, one after the other.
#[derive(Debug)]
pub struct Decoder {
    id_is_number: bool,
    in_header: bool,
}

impl Decoder {
    /// Returns a decoder for a copy from its beginning.
    pub fn new(id_is_number: bool) -> Self {
        Self { id_is_number, in_header: true }
    }

    /// Decodes the row of a message: `change_xid`, `id`, account, currency, `captured_at`, balance. `None` for the
    /// trailer.
    pub fn row(&mut self, message: Bytes) -> Result<Option<Row>, LedgerError> {
        let tuple = if std::mem::take(&mut self.in_header) { after_header(&message)? } else { message };
        Row::decode(tuple, self.id_is_number)
    }
}

/// Decodes the messages of a copy of interval numbers and ids, one after the other.
#[derive(Debug)]
pub(super) struct ListedRow {
    pub id_is_number: bool,
    pub in_header: bool,
}

impl ListedRow {
    /// Decodes the interval number and the id of a message. `None` for the trailer.
    pub(super) fn row(&mut self, message: Bytes) -> Result<Option<(i32, LedgerId)>, LedgerError> {
        let tuple = if std::mem::take(&mut self.in_header) { after_header(&message)? } else { message };
        let mut fields = Fields { tuple: &tuple, at: 0 };
        match fields.take::<2>().map(i16::from_be_bytes)? {
            -1 => return Ok(None),
            LISTED_COLUMNS => {}
            _ => return Err(LedgerError::Decode("unexpected number of columns")),
        }
        let place = fields.next()?.and_then(|place| place.of(&tuple).try_into().ok());
        let place = place.map(i32::from_be_bytes).ok_or(LedgerError::Decode("no place"))?;
        let id = fields.id(&tuple, self.id_is_number)?.ok_or(LedgerError::Decode(ID_IS_NULL))?;
        Ok(Some((place, id)))
    }
}

/// The number of columns of a row, and of a row that is only listed.
pub(super) const COLUMNS: i16 = 6;
pub(super) const LISTED_COLUMNS: i16 = 2;

/// Cuts the header off the first message of a copy.
fn after_header(message: &Bytes) -> Result<Bytes, LedgerError> {
    let extension_at = SIGNATURE.len() + 4;
    let extension: Option<&[u8; 4]> = message
        .get(extension_at..)
        .and_then(|rest| rest.first_chunk())
        .filter(|_| message.starts_with(SIGNATURE));
    let size = extension.map(|length| extension_at + 4 + u32::from_be_bytes(*length) as usize);
    match size {
        Some(size) if size <= message.len() => Ok(message.slice(size..)),
        _ => Err(LedgerError::Decode("no copy header")),
    }
}

impl Row {
    /// Decodes one tuple: `change_xid`, `id`, account, currency, `captured_at`, balance.
    /// `None` for the trailer.
    fn decode(tuple: Bytes, id_is_number: bool) -> Result<Option<Self>, LedgerError> {
        let mut fields = Fields { tuple: &tuple, at: 0 };
        match fields.take::<2>().map(i16::from_be_bytes)? {
            -1 => return Ok(None),
            COLUMNS => {}
            _ => return Err(LedgerError::Decode("unexpected number of columns")),
        }
        let xid =
            fields.eight_bytes()?.map(u64::from_be_bytes).ok_or(LedgerError::Decode("change_xid is NULL"))?;
        let id = fields.id(&tuple, id_is_number)?.ok_or(LedgerError::Decode(ID_IS_NULL))?;
        // They are checked for valid text when the row is aligned: a row with invalid text is set aside.
        let account = fields.next()?;
        let currency = fields.next()?;
        let captured_at_us = fields.eight_bytes()?.map(i64::from_be_bytes);
        let balance = fields.next()?;
        Ok(Some(Self { xid, id, captured_at_us, tuple, account, currency, balance }))
    }

    /// Builds a row from its parts, for tests and simulations.
    #[cfg(any(test, feature = "fault-points"))]
    pub fn new(
        xid: Xid,
        id: LedgerId,
        account: Option<&str>,
        currency: Option<&str>,
        captured_at_us: Option<i64>,
        balance: Option<&[u8]>,
    ) -> Self {
        let mut tuple = Vec::new();
        let mut put = |part: Option<&[u8]>| {
            part.map(|part| {
                let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
                let begin = place(tuple.len());
                tuple.extend_from_slice(part);
                Field { begin, end: place(tuple.len()) }
            })
        };
        let account = put(account.map(str::as_bytes));
        let currency = put(currency.map(str::as_bytes));
        let balance = put(balance);
        Self { xid, id, captured_at_us, account, currency, balance, tuple: tuple.into() }
    }

    /// Returns Elven's key of the account. `None` for NULL and for bytes that are not text.
    pub fn account(&self) -> Option<&str> {
        self.account.and_then(|field| std::str::from_utf8(field.of(&self.tuple)).ok())
    }

    /// Returns the currency. `None` for NULL and for bytes that are not text.
    pub fn currency(&self) -> Option<&str> {
        self.currency.and_then(|field| std::str::from_utf8(field.of(&self.tuple)).ok())
    }

    /// Returns account and currency for a person to read, with the bytes that are not text replaced.
    fn lossy(&self) -> [Option<std::borrow::Cow<'_, str>>; 2] {
        let lossy = |field: Field| String::from_utf8_lossy(field.of(&self.tuple));
        [self.account.map(lossy), self.currency.map(lossy)]
    }

    /// Returns account and currency for a person to read, with the bytes that are not text replaced. `None` for NULL.
    pub fn names(&self) -> [Option<String>; 2] {
        self.lossy().map(|name| name.map(std::borrow::Cow::into_owned))
    }

    /// Returns for account and currency whether it is present and its bytes are not text.
    pub fn has_bytes_for_text(&self) -> [bool; 2] {
        let read = [self.account(), self.currency()];
        [read[0].is_none() && self.account.is_some(), read[1].is_none() && self.currency.is_some()]
    }

    /// Returns the amount, a `numeric` in binary form. `None` for NULL.
    pub fn balance(&self) -> Option<&[u8]> {
        self.balance.map(|field| field.of(&self.tuple))
    }

    /// Returns the cursor directly after this row.
    pub fn cursor(&self, order: Order) -> Cursor {
        let at = match order {
            Order::ChangeXid => At::Xid(self.xid),
            // The range of a backfill contains no row without `captured_at`.
            Order::CapturedAt => At::Instant(self.captured_at_us.unwrap_or(i64::MAX)),
        };
        Cursor { at, id: self.id.to_string() }
    }

    /// Returns the row for a person to read, as far as JSON can represent it.
    pub fn to_json(&self) -> serde_json::Value {
        let mut number = Vec::new();
        let balance = match self.balance().map(crate::align::Number::read) {
            None => serde_json::Value::Null,
            Some(Ok(balance)) => {
                balance.write(&mut number);
                String::from_utf8_lossy(&number).into()
            }
            Some(Err(reason)) => reason.to_string().into(),
        };
        let captured_at = self.captured_at_us.map(|us| match us {
            i64::MAX => "infinity".to_owned(),
            i64::MIN => "-infinity".to_owned(),
            us => crate::align::Clock::of(&crate::align::Zone::utc())
                .at(us)
                .map_or_else(|reason| reason.to_string(), |utc| format!("{utc}Z")),
        });
        let [account, currency] = self.lossy();
        // A NUL character, which jsonb cannot hold, cannot be part of a text in PostgreSQL.
        json!({
            "entityAccountId": account,
            "currency": currency,
            "captured_at": captured_at,
            "balance": balance,
        })
    }
}

/// The fields of a tuple, one after the other: a 4-byte length, -1 for NULL, and the bytes.
struct Fields<'a> {
    tuple: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], LedgerError> {
        let bytes = self.tuple.get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        self.at += N;
        bytes.copied().ok_or(LedgerError::Decode("the row ends early"))
    }

    fn next(&mut self) -> Result<Option<Field>, LedgerError> {
        let Ok(length) = u32::try_from(self.take().map(i32::from_be_bytes)?) else {
            return Ok(None);
        };
        let begin = u32::try_from(self.at).map_err(|_| LedgerError::Decode("the row is too long"))?;
        let end = begin.checked_add(length).ok_or(LedgerError::Decode("the row is too long"))?;
        self.at = end as usize;
        if self.at > self.tuple.len() {
            return Err(LedgerError::Decode("the row ends early"));
        }
        Ok(Some(Field { begin, end }))
    }

    fn eight_bytes(&mut self) -> Result<Option<[u8; 8]>, LedgerError> {
        let bytes = self.next()?.map(|field| field.of(self.tuple).try_into());
        bytes.transpose().map_err(|_| LedgerError::Decode("a number has not 8 bytes"))
    }

    fn id(&mut self, tuple: &[u8], is_number: bool) -> Result<Option<LedgerId>, LedgerError> {
        Ok(if is_number {
            self.eight_bytes()?.map(|bytes| LedgerId::Number(i64::from_be_bytes(bytes)))
        } else {
            self.text()?.map(|id| LedgerId::Text(String::from_utf8_lossy(id.of(tuple)).into_owned()))
        })
    }

    fn text(&mut self) -> Result<Option<Field>, LedgerError> {
        let field = self.next()?;
        match field.map(|field| std::str::from_utf8(field.of(self.tuple))) {
            Some(Err(_)) => Err(LedgerError::Decode("a text is not UTF-8")),
            None | Some(Ok(_)) => Ok(field),
        }
    }
}
