//! The names of accounts and currencies that the rows of the ledger have.

use sqlx::AssertSqlSafe;

use super::quoting::quote_array;
use super::{Ledger, LedgerError, Table};

/// A name that rows of an entity have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameInUse {
    /// The entity.
    pub entity_id: String,
    /// The name, as the ledger spells it. A name that has no equivalent in UTF-8 is approximate.
    pub name: String,
    /// The number of rows with it.
    pub rows: i64,
}

impl Ledger {
    /// Returns the names of the accounts that the rows of these entities have, ordered by entity and name. Reads the
    /// whole table, because no index begins with the account.
    pub async fn accounts_in_use(&self, entity_ids: &[String]) -> Result<Vec<NameInUse>, LedgerError> {
        self.names_in_use(self.table.names_sql(&self.table.account, entity_ids)).await
    }

    /// Returns the names of the currencies in the same way.
    pub async fn currencies_in_use(&self, entity_ids: &[String]) -> Result<Vec<NameInUse>, LedgerError> {
        self.names_in_use(self.table.names_sql(&self.table.currency, entity_ids)).await
    }

    async fn names_in_use(&self, sql: String) -> Result<Vec<NameInUse>, LedgerError> {
        let query = || sqlx::query_as(AssertSqlSafe(sql.clone())).fetch_all(self.primary.single_round_trip());
        let rows: Vec<(String, String, i64)> = self.primary.retry(query).await?;
        let name = |hex: &str| hex::decode(hex).map_err(|_| LedgerError::Decode("not a name in hex"));
        rows.into_iter()
            .map(|(entity_id, hex, rows)| {
                Ok(NameInUse { entity_id, name: String::from_utf8_lossy(&name(&hex)?).into_owned(), rows })
            })
            .collect()
    }
}

impl Table {
    /// Returns the query for the values of a column, each with its number of rows. They are compared as bytes, because
    /// the column may have a collation that treats different names as equal. NULL is left out: it is no name.
    fn names_sql(&self, column: &str, entity_ids: &[String]) -> String {
        let Self { name, entity, .. } = self;
        let entity_ids = quote_array(entity_ids.iter().map(|id| Some(id.as_str())));
        format!(
            "select n.entity_id, encode(elven_sync.utf8_or_bytes(n.name), 'hex'), n.rows
               from (select {entity}::text collate \"C\" as entity_id, {column}::text collate \"C\" as name,
                            count(*) as rows
                       from {name} t
                      where {entity} = any ({entity_ids}) and {column} is not null
                      group by 1, 2) n
              order by 1, n.name"
        )
    }
}
