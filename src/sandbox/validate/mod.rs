//! The check of an import body, as documented for *Import Account Balances*; pure.
//!
//! The sandbox is stricter than the documentation only where no client can need the difference: it refuses an empty
//! batch, unknown or repeated fields and blank strings. A balance is never converted: it is a text with the form of a
//! JSON number, kept as received.

use std::{borrow::Cow, collections::BTreeSet, fmt};

use chrono::NaiveDate;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::refusal::{Code, Refusal, quote};

/// Records that one request may carry (documented).
pub(super) const RECORDS_MAX: usize = 1000;

/// The version of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V3,
    V4,
}

/// The accounts, currencies and sources that a record may have.
pub(super) struct Known<'r> {
    /// Known accounts; `None`: every account is known.
    pub(super) accounts: Option<&'r BTreeSet<String>>,
    /// Known currencies, letter case included.
    pub(super) currencies: &'r BTreeSet<String>,
    /// Whether balances may be stored under a source.
    pub(super) is_source: &'r dyn Fn(&str) -> bool,
}

/// A valid record. Its texts are borrowed from the body unless they have escapes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'b> {
    pub(super) entity_account_id: Cow<'b, str>,
    pub(super) source: RecordSource<'b>,
    /// Of a record of version 4: its `assetID`, or else its `symbol`.
    pub(super) currency: Cow<'b, str>,
    /// The field that named it.
    pub(super) currency_field: &'static str,
    pub(super) datetime: Cow<'b, str>,
    /// The text of the number exactly as received.
    pub(super) balance: &'b str,
}

/// The source of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RecordSource<'b> {
    /// Version 3 has no sources.
    None,
    /// The record names none, so the API creates one.
    Missing,
    /// The record names this one.
    Named(Cow<'b, str>),
}

impl RecordSource<'_> {
    /// Returns the id that the record names.
    pub(super) fn id(&self) -> Option<&str> {
        if let Self::Named(id) = self { Some(id) } else { None }
    }
}

/// Reads an import body, or returns the refusal for its first mistake.
///
/// One wrong record refuses the batch. The documentation does not say whether the real API keeps the other records.
pub(super) fn validate<'b>(
    body: &'b [u8],
    version: Version,
    known: &Known<'_>,
) -> Result<Vec<Record<'b>>, Refusal> {
    let batch = Batch::read(body)?;
    let check = |(index, raw): (usize, &&'b RawValue)| {
        record(raw, version, known).map_err(|refusal| refusal.at(index))
    };
    batch.records.iter().enumerate().map(check).collect()
}

/// Counts the records of a body with the right outer form, without checking them.
pub(super) fn count(body: &[u8]) -> Result<usize, Refusal> {
    Batch::read(body).map(|batch| batch.count)
}

/// The outer form of a body: a JSON array of 1 to [`RECORDS_MAX`] values.
struct Batch<'b> {
    /// The first [`RECORDS_MAX`] values. Further values are only counted.
    records: Vec<&'b RawValue>,
    count: usize,
}

impl<'b> Batch<'b> {
    fn read(body: &'b [u8]) -> Result<Self, Refusal> {
        let batch: Self = serde_json::from_slice(body).map_err(|error| {
            Refusal::new(Code::NotAnArray, format!("not a JSON array of records: {error}"))
        })?;
        match batch.count {
            0 => Err(Refusal::new(Code::BatchEmpty, "the array holds no record")),
            1..=RECORDS_MAX => Ok(batch),
            count => {
                let message = format!("{count} records in one request, at most {RECORDS_MAX} are accepted");
                Err(Refusal::new(Code::BatchTooLong, message))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Batch<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values;
        impl<'de> Visitor<'de> for Values {
            type Value = Batch<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Self::Value, A::Error> {
                let mut records = Vec::new();
                while records.len() < RECORDS_MAX {
                    let Some(value) = values.next_element()? else { break };
                    records.push(value);
                }
                let mut count = records.len();
                while values.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Batch { records, count })
            }
        }
        deserializer.deserialize_seq(Values)
    }
}

/// The fields of a record as raw JSON, so that the refusal of a wrong type names the field.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Fields<'b> {
    #[serde(borrow)]
    entity_account_id: &'b RawValue,
    #[serde(borrow)]
    currency: &'b RawValue,
    #[serde(borrow)]
    datetime: &'b RawValue,
    #[serde(borrow)]
    balance: &'b RawValue,
}

/// The same of a record of version 4.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FieldsV4<'b> {
    #[serde(borrow)]
    entity_account_id: &'b RawValue,
    #[serde(borrow)]
    source_id: Option<&'b RawValue>,
    #[serde(borrow, rename = "assetID")]
    asset_id: Option<&'b RawValue>,
    #[serde(borrow)]
    symbol: Option<&'b RawValue>,
    #[serde(borrow)]
    datetime: &'b RawValue,
    #[serde(borrow)]
    balance: &'b RawValue,
}

fn record<'b>(raw: &'b RawValue, version: Version, known: &Known<'_>) -> Result<Record<'b>, Refusal> {
    // serde would also accept an array of four values for the four fields.
    if !raw.get().starts_with('{') {
        return Err(Refusal::new(Code::RecordShape, "not a JSON object"));
    }
    match version {
        Version::V3 => {
            let Fields { entity_account_id, currency, datetime, balance } = fields(raw)?;
            let currency = ("currency", text("currency", currency)?);
            checked(entity_account_id, RecordSource::None, currency, (datetime, balance), known)
        }
        Version::V4 => {
            let FieldsV4 { entity_account_id, source_id, asset_id, symbol, datetime, balance } = fields(raw)?;
            let source = match source_id {
                None => RecordSource::Missing,
                Some(source_id) => RecordSource::Named(text("sourceId", source_id)?),
            };
            let symbol = symbol.map(|symbol| text("symbol", symbol)).transpose()?;
            let asset_id = asset_id.map(|asset_id| text("assetID", asset_id)).transpose()?;
            // Where both are there, `assetID` decides.
            let currency = match (asset_id, symbol) {
                (Some(asset_id), _) => ("assetID", asset_id),
                (None, Some(symbol)) => ("symbol", symbol),
                (None, None) => {
                    return Err(Refusal::new(Code::RecordShape, "neither assetID nor symbol"));
                }
            };
            checked(entity_account_id, source, currency, (datetime, balance), known)
        }
    }
}

fn fields<'b, F: Deserialize<'b>>(raw: &'b RawValue) -> Result<F, Refusal> {
    serde_json::from_str(raw.get())
        .map_err(|error| Refusal::new(Code::RecordShape, format!("not the documented fields: {error}")))
}

/// Checks the values that records of both versions have. `currency`: its field and its value; `rest`: `datetime` and
/// `balance`.
fn checked<'b>(
    account: &'b RawValue,
    source: RecordSource<'b>,
    (currency_field, currency): (&'static str, Cow<'b, str>),
    (datetime, balance): (&'b RawValue, &'b RawValue),
    known: &Known<'_>,
) -> Result<Record<'b>, Refusal> {
    let entity_account_id = text("entityAccountId", account)?;
    let datetime = text("datetime", datetime)?;
    check_account(&entity_account_id, known)?;
    if let Some(id) = source.id().filter(|id| !(known.is_source)(id)) {
        let message = format!("sourceId {} is no source for balances", quote(id));
        return Err(Refusal::new(Code::SourceUnknown, message));
    }
    check_currency(currency_field, &currency, known)?;
    if !is_wall_clock(&datetime) {
        let message = format!("datetime {} is not a real time as YYYY-MM-DD HH:mm:ss", quote(&datetime));
        return Err(Refusal::new(Code::Datetime, message));
    }
    let balance = number(balance)?;
    Ok(Record { entity_account_id, source, currency, currency_field, datetime, balance })
}

fn check_account(account: &str, known: &Known<'_>) -> Result<(), Refusal> {
    if account.trim().is_empty() {
        return Err(Refusal::new(Code::AccountBlank, "entityAccountId is blank"));
    }
    if known.accounts.is_some_and(|accounts| !accounts.contains(account)) {
        let message = format!("entityAccountId {} is not a known account", quote(account));
        return Err(Refusal::new(Code::AccountUnknown, message));
    }
    Ok(())
}

fn check_currency(field: &str, currency: &str, known: &Known<'_>) -> Result<(), Refusal> {
    if currency.trim().is_empty() {
        return Err(Refusal::new(Code::CurrencyBlank, format!("{field} is blank")));
    }
    if !known.currencies.contains(currency) {
        let message = format!("{field} {} is not known (upper and lower case differ)", quote(currency));
        return Err(Refusal::new(Code::CurrencyUnknown, message));
    }
    Ok(())
}

/// Returns the content of a JSON string, copied only if it has escapes.
fn text<'b>(field: &str, raw: &'b RawValue) -> Result<Cow<'b, str>, Refusal> {
    let json = raw.get();
    let Some(content) = json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return Err(Refusal::new(Code::RecordShape, format!("{field} is {}, not a string", quote(json))));
    };
    if !content.contains('\\') {
        return Ok(Cow::Borrowed(content));
    }
    // Fails for half a surrogate pair, which is valid in a JSON string but encodes no character.
    serde_json::from_str(json)
        .map(Cow::Owned)
        .map_err(|error| Refusal::new(Code::RecordShape, format!("{field} is not a string: {error}")))
}

/// Returns the text of a JSON number. The JSON parser has already checked that a value that begins like a number is
/// one.
fn number(raw: &RawValue) -> Result<&str, Refusal> {
    let json = raw.get();
    if json.starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
        return Ok(json);
    }
    Err(Refusal::new(Code::Balance, format!("balance is {}, not a JSON number", quote(json))))
}

/// Returns whether a text is exactly `YYYY-MM-DD HH:mm:ss` and a real time, without leap seconds, in the years 0001 to
/// 9999.
///
/// Whether the time zone of the account skips this hour is not checked, since the sandbox knows no zones.
fn is_wall_clock(text: &str) -> bool {
    let Ok(bytes) = <&[u8; 19]>::try_from(text.as_bytes()) else { return false };
    let form = b"dddd-dd-dd dd:dd:dd";
    let fits = |(byte, form): (&u8, &u8)| if *form == b'd' { byte.is_ascii_digit() } else { byte == form };
    if !bytes.iter().zip(form).all(fits) {
        return false;
    }
    let value = |digits: &[u8]| digits.iter().fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    let (year, month, day) = (value(&bytes[0..4]), value(&bytes[5..7]), value(&bytes[8..10]));
    let date = i32::try_from(year).ok().and_then(|year| NaiveDate::from_ymd_opt(year, month, day));
    year >= 1
        && date.is_some()
        && value(&bytes[11..13]) < 24
        && value(&bytes[14..16]) < 60
        && value(&bytes[17..19]) < 60
}

#[cfg(test)]
mod tests;
