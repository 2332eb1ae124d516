//! The lists of currencies and accounts, paged as documented.

use axum::http::Uri;
use serde_json::json;

use super::shared::Shared;
use super::{currencies, paging::Paging, refusal::Refusal};

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
