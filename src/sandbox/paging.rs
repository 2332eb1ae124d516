//! The pages of a list: the query string that asks for one, and the answer.

use axum::{extract::Query, http::Uri};
use serde::Deserialize;
use serde_json::{Value, json};

use super::refusal::{Code, Refusal};

/// The most entries on one page of a list. The limit of the real API is not documented.
const LIMIT_MAX: usize = 1000;

/// The query string of a list; defaults as documented.
#[derive(Deserialize)]
pub(super) struct Paging {
    #[serde(default = "first")]
    page: usize,
    #[serde(default = "ten")]
    limit: usize,
    #[serde(default)]
    pub(super) keyword: String,
    /// Of the list of sources: only this type.
    #[serde(default, rename = "type")]
    pub(super) kind: Option<String>,
}

fn first() -> usize {
    1
}

fn ten() -> usize {
    10
}

impl Paging {
    pub(super) fn read(uri: &Uri) -> Result<Self, Refusal> {
        let Query(paging) = Query::<Self>::try_from_uri(uri)
            .map_err(|error| Refusal::new(Code::Paging, format!("the query cannot be read: {error}")))?;
        if paging.page == 0 || !(1..=LIMIT_MAX).contains(&paging.limit) {
            let message = format!("page counts from 1, and limit is from 1 to {LIMIT_MAX}");
            return Err(Refusal::new(Code::Paging, message));
        }
        Ok(paging)
    }

    /// The documented answer: the total number of entries, and one page of them.
    pub(super) fn answer(&self, entries: impl Iterator<Item = Value>) -> String {
        let entries: Vec<Value> = entries.collect();
        let skipped = (self.page - 1).saturating_mul(self.limit);
        let list: Vec<&Value> = entries.iter().skip(skipped).take(self.limit).collect();
        json!({"total": entries.len(), "list": list}).to_string()
    }
}
