//! Looks for keys that several rows of the ledger have.

use std::collections::BTreeSet;

use sqlx::AssertSqlSafe;

use super::table::quote_array;
use super::{Ledger, LedgerError, Table, quote_literal};

/// Names of accounts, or of currencies, as the ledger spells them.
#[derive(Clone, Copy, Debug)]
pub enum LedgerNames<'a> {
    /// Accounts.
    Accounts(&'a BTreeSet<String>),
    /// Currencies.
    Currencies(&'a BTreeSet<String>),
}

impl Ledger {
    /// Returns whether two rows of an entity that have one of these names share account, currency and UTC second. Reads
    /// the rows of the entity once.
    pub async fn has_repeated_key(
        &self,
        entity_id: &str,
        names: LedgerNames<'_>,
    ) -> Result<bool, LedgerError> {
        let sql = self.table.repeated_key_sql(entity_id, names);
        let query =
            || sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(self.primary.single_round_trip());
        let found: Result<bool, sqlx::Error> = self.primary.retry(query).await;
        found.map_err(|problem| LedgerError::from(problem).about(entity_id))
    }
}

impl Table {
    /// Names are compared as bytes, because a column may have a collation that treats different names as equal.
    fn repeated_key_sql(&self, entity_id: &str, names: LedgerNames<'_>) -> String {
        let Self { name, entity, captured_at, account, currency, .. } = self;
        let (column, names) = match names {
            LedgerNames::Accounts(names) => (account, names),
            LedgerNames::Currencies(names) => (currency, names),
        };
        let names = quote_array(names.iter().map(|name| Some(name.as_str())));
        format!(
            "select exists (
                select from {name} t where {entity} = {} and {column}::text collate \"C\" = any ({names})
                 group by {account}::text collate \"C\", {currency}::text collate \"C\",
                          pg_catalog.date_trunc('second', {captured_at})
                having count(*) > 1)",
            quote_literal(entity_id)
        )
    }
}
