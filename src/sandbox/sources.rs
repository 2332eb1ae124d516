//! The sources of version 4: `GET` and `POST /open/v3/transaction/source`.
//!
//! Their documented properties: `type` is `OPENAPI_BALANCE` or `OPENAPI_TRANSACTION`, and without it the latter; names
//! are unique; creating returns `sourceId`.

use axum::http::Uri;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::paging::Paging;
use super::refusal::{Code, Refusal, quote};

/// The most sources that are kept. A client that never names its source makes one with each import.
const SOURCES_MAX: usize = 10_000;

/// What a source is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceType {
    /// Balances: the only type that an import of balances may name.
    #[serde(rename = "OPENAPI_BALANCE")]
    Balance,
    /// Transactions.
    #[default]
    #[serde(rename = "OPENAPI_TRANSACTION")]
    Transaction,
}

impl SourceType {
    /// Returns its name in the API.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Balance => "OPENAPI_BALANCE",
            Self::Transaction => "OPENAPI_TRANSACTION",
        }
    }
}

/// A source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Its id.
    pub source_id: String,
    /// Its name, which no other source has.
    pub name: String,
    /// What it is for.
    #[serde(rename = "type")]
    pub kind: SourceType,
    /// An import without a `sourceId` has created it.
    pub made_by_import: bool,
}

/// The sources of a sandbox.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) list: Vec<Source>,
    /// The number of sources that imports without a `sourceId` have created.
    pub(super) made_by_imports: u64,
    created: u64,
}

impl Sources {
    /// Returns sources for balances with these ids.
    pub(super) fn of<'i>(ids: impl IntoIterator<Item = &'i String>) -> Self {
        let source = |id: &String| Source {
            source_id: id.clone(),
            name: id.clone(),
            kind: SourceType::Balance,
            made_by_import: false,
        };
        Self { list: ids.into_iter().map(source).collect(), ..Self::default() }
    }

    /// Whether an import of balances may name this source.
    pub(super) fn has_balances(&self, id: &str) -> bool {
        self.list.iter().any(|source| source.source_id == id && source.kind == SourceType::Balance)
    }

    /// Creates the source of an import that names none. Returns its id.
    pub(super) fn create_for_import(&mut self) -> String {
        self.made_by_imports += 1;
        let name = format!("import {}", self.made_by_imports);
        self.create(name, SourceType::Balance, true)
    }

    fn create(&mut self, name: String, kind: SourceType, made_by_import: bool) -> String {
        self.created += 1;
        let source_id = format!("source-{}", self.created);
        if self.list.len() < SOURCES_MAX {
            self.list.push(Source { source_id: source_id.clone(), name, kind, made_by_import });
        }
        source_id
    }

    /// Creates a source as a body asks. Returns the answer.
    pub(super) fn post(&mut self, body: &[u8]) -> Result<String, Refusal> {
        let wrong = |message: String| Refusal::new(Code::SourceInvalid, message);
        let asked: NewSource =
            serde_json::from_slice(body).map_err(|error| wrong(format!("not a source: {error}")))?;
        if asked.name.trim().is_empty() {
            return Err(wrong("the name is blank".to_owned()));
        }
        if self.list.iter().any(|source| source.name == asked.name) {
            return Err(wrong(format!("the name {} is in use", quote(&asked.name))));
        }
        let source_id = self.create(asked.name, asked.kind, false);
        Ok(json!({ "sourceId": source_id }).to_string())
    }

    /// Lists the sources of the type that the query names.
    pub(super) fn get(&self, uri: &Uri) -> Result<String, Refusal> {
        let paging = Paging::read(uri)?;
        let kind = paging.kind.as_deref().unwrap_or(SourceType::default().word());
        let wanted = self.list.iter().filter(|source| source.kind.word() == kind);
        let show =
            |source: &Source| json!({"sourceId": source.source_id, "name": source.name, "type": source.kind});
        Ok(paging.answer(wanted.map(show)))
    }
}

/// The body that asks for a source.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSource {
    name: String,
    #[serde(rename = "type", default)]
    kind: SourceType,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_created_once_and_listed_by_its_type() {
        let mut sources = Sources::default();
        let made = sources.post(br#"{"name":"elven-sync","type":"OPENAPI_BALANCE"}"#).unwrap();
        assert_eq!(made, r#"{"sourceId":"source-1"}"#);
        assert_eq!(sources.post(br#"{"name":"other"}"#).unwrap(), r#"{"sourceId":"source-2"}"#);
        for wrong in [
            r#"{"name":"elven-sync"}"#,
            r#"{"name":" "}"#,
            r#"{"name":"x","type":"OTHER"}"#,
            r#"{"name":"x","memo":1}"#,
            "{}",
        ] {
            assert_eq!(sources.post(wrong.as_bytes()).unwrap_err().code, Code::SourceInvalid, "{wrong}");
        }
        assert!(sources.has_balances("source-1") && !sources.has_balances("source-2"));
        let listed = |query: &str| {
            let uri = format!("/open/v3/transaction/source{query}").parse().unwrap();
            let list: serde_json::Value = serde_json::from_str(&sources.get(&uri).unwrap()).unwrap();
            list["list"]
                .as_array()
                .unwrap()
                .iter()
                .map(|source| source["sourceId"].to_string())
                .collect::<String>()
        };
        assert_eq!(listed("?type=OPENAPI_BALANCE"), "\"source-1\"");
        assert_eq!(listed(""), "\"source-2\"");
    }
}
