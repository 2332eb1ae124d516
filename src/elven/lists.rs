//! The lists of the API: the names that it knows, and the sources. The request for one page, and its answer.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::envelope::{BYTE_ORDER_MARK, each_field};

/// The number of entries that are asked for in one request. The limit of the API is not documented.
const PAGE_ENTRIES: u32 = 100;
/// The most characters of an id or a name in a list.
const CHARS_MAX: usize = 500;

/// A list of names that the API knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum List {
    /// The accounts of the entity that the key belongs to.
    Accounts,
    /// The currencies of Elven.
    Currencies,
}

impl List {
    /// Both lists.
    pub const ALL: [Self; 2] = [Self::Accounts, Self::Currencies];

    /// Returns the path of the call that reads the list.
    pub fn path(self) -> &'static str {
        match self {
            Self::Accounts => "/open/v3/entityAccount",
            Self::Currencies => "/open/v3/currency",
        }
    }

    /// Returns the word for one entry.
    pub fn one(self) -> &'static str {
        match self {
            Self::Accounts => "account",
            Self::Currencies => "currency",
        }
    }

    /// Returns the word for several entries.
    pub fn many(self) -> &'static str {
        match self {
            Self::Accounts => "accounts",
            Self::Currencies => "currencies",
        }
    }
}

/// The type of the sources for balances.
pub const SOURCE_TYPE: &str = "OPENAPI_BALANCE";
/// The path of the call that reads the sources.
pub const SOURCES_PATH: &str = "/open/v3/transaction/source";

/// A call that reads a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// The names that the API knows.
    Names(List),
    /// The sources for balances of the entity that the key belongs to.
    Sources,
}

impl From<List> for Listing {
    fn from(list: List) -> Self {
        Self::Names(list)
    }
}

impl Listing {
    /// Returns the word for several entries.
    pub fn many(self) -> &'static str {
        match self {
            Self::Names(list) => list.many(),
            Self::Sources => "sources",
        }
    }

    /// Returns path and query of a page, counted from 1. A list of sources without a type has those of transactions.
    pub(super) fn page_path(self, page: u32) -> String {
        match self {
            Self::Names(list) => format!("{}?page={page}&limit={PAGE_ENTRIES}", list.path()),
            Self::Sources => format!("{SOURCES_PATH}?type={SOURCE_TYPE}&page={page}&limit={PAGE_ENTRIES}"),
        }
    }
}

/// An entry of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// The account id, the currency or the id of the source, as a record has to spell it.
    pub id: String,
    /// Its name at Elven, for people.
    pub name: Option<String>,
    /// The type of a source, if the API says it.
    pub kind: Option<String>,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListPage {
    /// The number of entries of the whole list.
    pub total: u64,
    /// The entries of this page.
    pub entries: Vec<ListEntry>,
}

#[derive(Deserialize)]
struct Account {
    #[serde(rename = "entityAccountId")]
    id: String,
    #[serde(default)]
    name: serde_json::Value,
}

#[derive(Deserialize)]
struct Currency {
    #[serde(rename = "currency")]
    id: String,
    #[serde(default)]
    name: serde_json::Value,
}

#[derive(Deserialize)]
struct Source {
    #[serde(rename = "sourceId")]
    id: String,
    #[serde(default)]
    name: serde_json::Value,
    #[serde(default, rename = "type")]
    kind: serde_json::Value,
}

/// `total` and `list` at one level of an answer.
#[derive(Default)]
struct Found {
    total: Option<u64>,
    list: Option<String>,
}

impl Found {
    fn take(&mut self, field: &str, value: &RawValue) {
        match field {
            // The pages of the API disagree about the types of their fields, so a number in quotation marks is read.
            "total" => self.total = value.get().trim_matches('"').parse().ok(),
            "list" => self.list = Some(value.get().to_owned()),
            _ => {}
        }
    }
}

impl ListPage {
    /// Reads a page, at the top level of the answer or under `data`.
    ///
    /// # Errors
    /// Says how the answer differs from the documentation.
    pub(super) fn read(body: &[u8], list: Listing) -> Result<Self, &'static str> {
        let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
        // An id must be exact, so no byte is replaced.
        let text = std::str::from_utf8(body).map_err(|_| "the list is not UTF-8")?;
        let (mut top, mut data) = (Found::default(), Found::default());
        let object = each_field(text.trim(), |field, value| {
            if field == "data" {
                // `data` may have any type; only an object has fields.
                let _ = each_field(value.get(), |field, value| data.take(field, value));
            } else {
                top.take(field, value);
            }
        });
        object.ok_or("the answer is not a JSON object")?;
        let found = if top.list.is_some() { top } else { data };
        let entries = found.list.ok_or("the answer has no list")?;
        let entries: Vec<ListEntry> = match list {
            Listing::Names(List::Accounts) => {
                parsed::<Account>(&entries)?.into_iter().map(|a| entry(a.id, &a.name)).collect()
            }
            Listing::Names(List::Currencies) => {
                parsed::<Currency>(&entries)?.into_iter().map(|c| entry(c.id, &c.name)).collect()
            }
            Listing::Sources => parsed::<Source>(&entries)?.into_iter().map(Source::into_entry).collect(),
        };
        if entries.iter().any(|entry| entry.id.is_empty() || entry.id.chars().count() > CHARS_MAX) {
            return Err("an entry has an id that is empty or longer than 500 characters");
        }
        // The answer that lists sources is not documented. Without a total, it has the whole list.
        let whole = u64::try_from(entries.len()).ok().filter(|_| list == Listing::Sources);
        let total = found.total.or(whole).ok_or("the answer has no total")?;
        Ok(Self { total, entries })
    }
}

fn parsed<T: for<'de> Deserialize<'de>>(entries: &str) -> Result<Vec<T>, &'static str> {
    serde_json::from_str(entries).map_err(|_| "an entry of the list differs from the documentation")
}

fn entry(id: String, name: &serde_json::Value) -> ListEntry {
    ListEntry { id, name: short(name), kind: None }
}

impl Source {
    fn into_entry(self) -> ListEntry {
        ListEntry { kind: short(&self.kind), ..entry(self.id, &self.name) }
    }
}

/// Returns a text that is not empty, cut to [`CHARS_MAX`].
fn short(text: &serde_json::Value) -> Option<String> {
    let text = text.as_str().filter(|text| !text.is_empty())?;
    Some(text.chars().take(CHARS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, name: Option<&str>) -> ListEntry {
        ListEntry { id: id.to_owned(), name: name.map(str::to_owned), kind: None }
    }

    #[test]
    fn a_page_is_read_in_every_envelope() {
        let list = r#"{"total":3,"list":[{"entityAccountId":"a ","name":"Main","memo":null},{"entityAccountId":"b"}]}"#;
        let expected = Ok(ListPage { total: 3, entries: vec![entry("a ", Some("Main")), entry("b", None)] });
        for body in [
            list.to_owned(),
            format!("\u{feff}\n{list}\n"),
            format!(r#"{{"status":"success","data":{list}}}"#),
            format!(r#"{{"success":"success","data":{list}}}"#),
            list.replace("3,", "\"3\","),
        ] {
            assert_eq!(ListPage::read(body.as_bytes(), List::Accounts.into()), expected, "{body}");
        }
        let list = r#"{"list":[{"name":"Bitcoin","currency":"BTC","type":"CRYPTO"}],"total":1}"#;
        let expected = Ok(ListPage { total: 1, entries: vec![entry("BTC", Some("Bitcoin"))] });
        assert_eq!(ListPage::read(list.as_bytes(), List::Currencies.into()), expected);
    }

    #[test]
    fn sources_are_read_with_and_without_a_total() {
        let list = r#"[{"sourceId":"s-1","name":"Ledger","type":"OPENAPI_BALANCE"},{"sourceId":"s-2"}]"#;
        let ledger = ListEntry { kind: Some(SOURCE_TYPE.to_owned()), ..entry("s-1", Some("Ledger")) };
        let expected = Ok(ListPage { total: 2, entries: vec![ledger, entry("s-2", None)] });
        for body in [
            format!(r#"{{"total":2,"list":{list}}}"#),
            format!(r#"{{"list":{list}}}"#),
            format!(r#"{{"status":"success","data":{{"list":{list}}}}}"#),
        ] {
            assert_eq!(ListPage::read(body.as_bytes(), Listing::Sources), expected, "{body}");
        }
        let none = ListPage { total: 0, entries: Vec::new() };
        assert_eq!(ListPage::read(br#"{"list":[]}"#, Listing::Sources), Ok(none));
        assert!(ListPage::read(br#"{"list":[{"name":"Ledger"}]}"#, Listing::Sources).is_err());
    }

    #[test]
    fn a_page_that_differs_from_the_documentation_is_refused() {
        let long = format!(r#"{{"total":1,"list":[{{"currency":"{}"}}]}}"#, "x".repeat(CHARS_MAX + 1));
        for body in [
            "",
            "[]",
            "<html>",
            r#"{"total":0}"#,
            r#"{"list":[]}"#,
            r#"{"total":-1,"list":[]}"#,
            r#"{"total":1,"data":{"list":[]}}"#,
            r#"{"total":1,"list":[{"name":"Bitcoin"}]}"#,
            r#"{"total":1,"list":[{"currency":7}]}"#,
            r#"{"total":1,"list":[{"currency":""}]}"#,
            r#"{"total":1,"list":["BTC"]}"#,
            &long,
        ] {
            assert!(ListPage::read(body.as_bytes(), List::Currencies.into()).is_err(), "{body}");
        }
        let latin1 = b"{\"total\":1,\"list\":[{\"currency\":\"\xe9\"}]}";
        assert_eq!(ListPage::read(latin1, List::Currencies.into()), Err("the list is not UTF-8"));
    }
}
