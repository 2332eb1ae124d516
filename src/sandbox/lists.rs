//! The two read-only lists, paged as documented.

use axum::{extract::Query, http::Uri};
use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::Shared;
use super::{
    currencies,
    refusal::{Code, Refusal},
};

/// The most entries on one page of a list. The limit of the real API is not documented.
const LIMIT_MAX: usize = 1000;

/// The query string of a list; defaults as documented.
#[derive(Deserialize)]
struct Paging {
    #[serde(default = "first")]
    page: usize,
    #[serde(default = "ten")]
    limit: usize,
    #[serde(default)]
    keyword: String,
}

fn first() -> usize {
    1
}

fn ten() -> usize {
    10
}

impl Paging {
    fn read(uri: &Uri) -> Result<Self, Refusal> {
        let Query(paging) = Query::<Self>::try_from_uri(uri)
            .map_err(|error| Refusal::new(Code::Paging, format!("the query cannot be read: {error}")))?;
        if paging.page == 0 || !(1..=LIMIT_MAX).contains(&paging.limit) {
            let message = format!("page counts from 1, and limit is from 1 to {LIMIT_MAX}");
            return Err(Refusal::new(Code::Paging, message));
        }
        Ok(paging)
    }

    /// The documented answer: the total number of entries, and one page of them.
    fn answer(&self, entries: impl Iterator<Item = Value>) -> String {
        let entries: Vec<Value> = entries.collect();
        let skipped = (self.page - 1).saturating_mul(self.limit);
        let list: Vec<&Value> = entries.iter().skip(skipped).take(self.limit).collect();
        json!({"total": entries.len(), "list": list}).to_string()
    }
}

/// `GET /open/v3/currency`. The documentation does not say what `keyword` is compared with; here a currency is listed
/// if its symbol or name contains it, regardless of letter case.
pub(super) fn currency_list(shared: &Shared, uri: &Uri) -> Result<String, Refusal> {
    let paging = Paging::read(uri)?;
    let keyword = paging.keyword.to_lowercase();
    let entries = shared.options.currencies.iter().map(|symbol| (symbol, currencies::describe(symbol)));
    let wanted = entries.filter(|(symbol, (name, _))| {
        symbol.to_lowercase().contains(&keyword) || name.to_lowercase().contains(&keyword)
    });
    Ok(paging.answer(
        wanted.map(|(symbol, (name, kind))| json!({"name": name, "currency": symbol, "type": kind.word()})),
    ))
}

/// `GET /open/v3/entityAccount`: the accounts of the options. If every account is known, the list is empty: a list of
/// some of them would say that the API does not know the others.
///
/// The real API lists the accounts of the key's entity; the sandbox has no entities.
pub(super) fn account_list(shared: &Shared, uri: &Uri) -> Result<String, Refusal> {
    let paging = Paging::read(uri)?;
    let show = |account: &String| {
        json!({
            "entityAccountId": account,
            "name": account,
            "platformId": "sandbox",
            "identity": "",
            "memo": "",
        })
    };
    Ok(match &shared.options.accounts {
        Some(accounts) => paging.answer(accounts.iter().map(show)),
        None => paging.answer(std::iter::empty()),
    })
}
