//! Looks for keys that several rows of the ledger have.

use std::collections::BTreeSet;

use sqlx::AssertSqlSafe;

use super::quoting::quote_array;
use super::{Ledger, LedgerError, Table, quote_literal};
use crate::align::{NameMap, Names};

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

impl Ledger {
    /// Returns whether two rows of an entity have different names in the ledger, and the same account, currency and UTC
    /// second at Elven, because of shared maps. Reads the rows of the entity once.
    pub async fn has_shared_key(&self, entity_id: &str, names: &Names) -> Result<bool, LedgerError> {
        let sql = self.table.shared_key_sql(entity_id, names);
        let query =
            || sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(self.primary.single_round_trip());
        let found: Result<bool, sqlx::Error> = self.primary.retry(query).await;
        found.map_err(|problem| LedgerError::from(problem).about(entity_id))
    }
}

impl Table {
    fn shared_key_sql(&self, entity_id: &str, names: &Names) -> String {
        let Self { name, entity, captured_at, account, currency, .. } = self;
        let maps = |map: &NameMap| {
            let shared = map.shared();
            let array = |of: fn(&(&str, &str)) -> String| {
                let names: Vec<String> = shared.iter().map(of).collect();
                quote_array(names.iter().map(|name| Some(name.as_str())))
            };
            (array(|(ledger, _)| (*ledger).to_owned()), array(|(_, elven)| (*elven).to_owned()))
        };
        let ((accounts, accounts_at_elven), (currencies, currencies_at_elven)) =
            (maps(&names.accounts), maps(&names.currencies));
        format!(
            "select exists (
                select from (select {account}::text collate \"C\" as account, {currency}::text collate \"C\" as currency,
                                    pg_catalog.date_trunc('second', {captured_at}) as second
                               from {name} t where {entity} = {}) r
                  left join unnest({accounts}, {accounts_at_elven}) a (ledger, elven) on a.ledger = r.account
                  left join unnest({currencies}, {currencies_at_elven}) c (ledger, elven) on c.ledger = r.currency
                 group by coalesce(a.elven, r.account), coalesce(c.elven, r.currency), r.second
                having count(distinct (r.account, r.currency)) > 1)",
            quote_literal(entity_id)
        )
    }

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
