//! The memory of the sandbox: accepted records, requests, and sums of both. Each list is bounded; the sums include all.

use std::collections::{BTreeMap, HashSet, VecDeque};

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer, ser::Error as _};
use serde_json::value::RawValue;

use super::validate::{Record, RecordSource};

/// The most requests that are kept, the newest ones.
pub(super) const REQUESTS_KEPT_MAX: usize = 10_000;
/// The most accounts that are listed; records of further accounts are kept and counted too.
const ACCOUNTS_KEPT_MAX: usize = 100_000;

/// One record that the sandbox accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Received {
    /// The account.
    #[serde(rename = "entityAccountId")]
    pub entity_account_id: String,
    /// The currency, letter case as received. Of a record of version 4: its `assetID`, or else its `symbol`.
    pub currency: String,
    /// The field that named it: `currency`, `symbol` or `assetID`.
    #[serde(rename = "currencyField", skip_serializing_if = "is_usual")]
    pub currency_field: &'static str,
    /// The source of a record of version 4.
    #[serde(rename = "sourceId", skip_serializing_if = "Option::is_none")]
    pub source_id: Option<String>,
    /// The wall-clock time as received, `YYYY-MM-DD HH:mm:ss`.
    pub datetime: String,
    /// The text of the number exactly as received.
    #[serde(serialize_with = "as_number")]
    pub balance: String,
    /// The request that contained it ([`Request::seq`]).
    pub request: u64,
    /// Label of the credential that signed the request.
    pub credential: String,
}

/// One request to the API part of the sandbox, accepted or not.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Request {
    /// The number of the request, counted from 1 in the order in which requests were checked.
    pub seq: u64,
    /// The time at which it was checked.
    pub at: DateTime<Utc>,
    /// HTTP method.
    pub method: String,
    /// Path with its query string, as received; cut after 300 characters.
    pub path: String,
    /// Label of the credential of the key; `None` for a missing or an unknown key. With `status` 401 the sender may not
    /// hold the credential.
    pub credential: Option<String>,
    /// HTTP status of the answer, also while the answer is held; `None` if the connection was cut.
    pub status: Option<u16>,
    /// Bytes of the body as received. Of a body that is too large, the bytes that were read.
    pub body_bytes: u64,
    /// SHA-256 of the body in hex; empty for a body that was not kept (too large, incomplete) and if the sandbox is
    /// lax.
    pub body_sha256: String,
    /// The number of accepted records: all records of the request, or none.
    pub records: u64,
    /// The answer refused it: by itself, or by a fault.
    pub refused: bool,
    /// Why it was refused; `None` for a fault.
    pub message: Option<String>,
    /// The faults that struck it: names as in [`super::Rule::grammar`] and [`super::Fault::name`], separated by commas.
    pub fault: Option<String>,
}

/// Whether the field is the one that the entry of a record has anyway.
fn is_usual(currency_field: &&str) -> bool {
    *currency_field == "currency"
}

/// Serializes a balance as a JSON number with exactly its digits, which no number type of Rust guarantees.
fn as_number<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    let number: &RawValue = serde_json::from_str(text).map_err(S::Error::custom)?;
    number.serialize(serializer)
}

/// Sums over requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    pub(super) requests: u64,
    pub(super) refused: u64,
    /// Cut, or answered with 5xx.
    pub(super) failed: u64,
    pub(super) records: u64,
    pub(super) body_bytes: u64,
}

impl Sums {
    fn add(&mut self, request: &Request) {
        self.requests += 1;
        self.refused += u64::from(request.refused);
        self.failed += u64::from(request.status.is_none_or(|status| status >= 500));
        self.records += request.records;
        self.body_bytes += request.body_bytes;
    }
}

/// The memory of a sandbox.
#[derive(Default)]
pub(super) struct Store {
    pub(super) total: Sums,
    /// By label; requests without a known key count only in `total`.
    pub(super) credentials: BTreeMap<String, Sums>,
    /// Number of records by account, for at most [`ACCOUNTS_KEPT_MAX`] accounts.
    pub(super) accounts: BTreeMap<String, u64>,
    /// The newest accepted records, oldest first.
    pub(super) received: VecDeque<Received>,
    /// The newest requests, oldest first.
    pub(super) requests: VecDeque<Request>,
}

impl Store {
    /// Adds a request and its records in one step, and numbers the request. `created`: the source that was created for
    /// records without one.
    pub(super) fn note(
        &mut self,
        mut request: Request,
        records: &[Record<'_>],
        created: Option<&str>,
        records_kept_max: usize,
    ) {
        request.seq = self.total.requests + 1;
        self.total.add(&request);
        if let Some(label) = &request.credential {
            self.credentials.entry(label.clone()).or_default().add(&request);
        }
        let credential = request.credential.as_deref().unwrap_or_default();
        for record in records {
            self.count_account(&record.entity_account_id);
            self.received.push_back(Received {
                entity_account_id: record.entity_account_id.to_string(),
                currency: record.currency.to_string(),
                currency_field: record.currency_field,
                source_id: record
                    .source
                    .id()
                    .or(created.filter(|_| record.source != RecordSource::None))
                    .map(str::to_owned),
                datetime: record.datetime.to_string(),
                balance: record.balance.to_owned(),
                request: request.seq,
                credential: credential.to_owned(),
            });
        }
        drop_oldest(&mut self.received, records_kept_max);
        self.requests.push_back(request);
        drop_oldest(&mut self.requests, REQUESTS_KEPT_MAX);
    }

    fn count_account(&mut self, account: &str) {
        if let Some(records) = self.accounts.get_mut(account) {
            *records += 1;
        } else if self.accounts.len() < ACCOUNTS_KEPT_MAX {
            self.accounts.insert(account.to_owned(), 1);
        }
    }

    /// Whether a kept record has the account, currency and datetime of one of these records.
    pub(super) fn has_any(&self, records: &[Record<'_>]) -> bool {
        let keys: HashSet<(&str, &str, &str)> = records
            .iter()
            .map(|record| (&*record.entity_account_id, &*record.currency, &*record.datetime))
            .collect();
        self.received
            .iter()
            .any(|kept| keys.contains(&(&*kept.entity_account_id, &*kept.currency, &*kept.datetime)))
    }

    /// Counts the kept records that repeat the account, currency and datetime of an earlier record.
    pub(super) fn repeated(&self) -> usize {
        let mut seen = HashSet::with_capacity(self.received.len());
        let keys = self.received.iter().map(|Received { entity_account_id, currency, datetime, .. }| {
            (entity_account_id, currency, datetime)
        });
        keys.filter(|key| !seen.insert(*key)).count()
    }
}

fn drop_oldest<T>(list: &mut VecDeque<T>, len_max: usize) {
    list.drain(..list.len().saturating_sub(len_max));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(account: &'static str, balance: &'static str) -> Record<'static> {
        let (currency, datetime) = ("BTC".into(), "2023-01-01 01:01:01".into());
        Record {
            entity_account_id: account.into(),
            source: RecordSource::None,
            currency,
            currency_field: "currency",
            datetime,
            balance,
        }
    }

    fn request(records: u64) -> Request {
        Request { credential: Some("acme".to_owned()), body_bytes: 10, records, ..Request::default() }
    }

    #[test]
    fn the_oldest_records_are_dropped_and_still_counted() {
        let mut memory = Store::default();
        memory.note(request(2), &[record("a", "1"), record("b", "2")], None, 3);
        memory.note(request(2), &[record("a", "3"), record("a", "4")], None, 3);

        let balances: Vec<_> =
            memory.received.iter().map(|record| (record.request, &*record.balance)).collect();
        assert_eq!(balances, [(1, "2"), (2, "3"), (2, "4")]);
        assert_eq!(memory.total.records, 4);
        assert_eq!(memory.credentials["acme"].body_bytes, 20);
        assert_eq!(memory.accounts["a"], 3);
        assert_eq!(memory.repeated(), 1, "the first record of a is no longer known");
    }

    #[test]
    fn requests_are_bounded() {
        let mut memory = Store::default();
        for _ in 0..REQUESTS_KEPT_MAX + 5 {
            memory.note(request(0), &[], None, 3);
        }
        assert_eq!(memory.requests.len(), REQUESTS_KEPT_MAX);
        assert_eq!(memory.requests.front().map(|request| request.seq), Some(6));
        assert_eq!(memory.total.requests, REQUESTS_KEPT_MAX as u64 + 5);
    }

    #[test]
    fn a_balance_is_shown_as_the_same_number() {
        let mut memory = Store::default();
        memory.note(request(1), &[record("a", "12345678901234567890123456789.000000000000000010")], None, 3);
        let json = serde_json::to_string(&memory.received).unwrap();
        assert!(json.contains(r#""balance":12345678901234567890123456789.000000000000000010,"#), "{json}");
    }
}
