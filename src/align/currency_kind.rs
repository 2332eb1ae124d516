//! Kinds of names of currencies.

use serde::{Deserialize, Serialize};

/// What a name of a currency is, which decides how a record of version 4 of the API names it. Version 3 does not
/// distinguish kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CurrencyKind {
    /// A symbol, sent as `symbol`.
    #[default]
    Symbol,
    /// Elven's id of an asset, sent as `assetID`.
    AssetId,
}

impl CurrencyKind {
    /// Returns the word for the kind, as the configuration and `currency_map.kind` spell it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Symbol => "symbol",
            Self::AssetId => "asset_id",
        }
    }

    /// Returns the kind with a word.
    pub fn of(word: &str) -> Option<Self> {
        [Self::Symbol, Self::AssetId].into_iter().find(|kind| kind.word() == word)
    }
}
