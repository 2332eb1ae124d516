//! The rows of the ledger with one name of an account or a currency.

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;

use super::quoting::quote_array;
use super::{Ledger, LedgerError, Table, quote_literal};

/// The rows of an entity with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRows {
    /// The entity.
    pub entity_id: String,
    /// The number of rows.
    pub rows: i64,
    /// The first and the last `captured_at`, of rows in the years 0001 to 9999.
    pub span: Option<(DateTime<Utc>, DateTime<Utc>)>,
}

impl Ledger {
    /// Returns the rows of these entities with an account, for each entity that has any. Reads all rows of the
    /// entities, because no index begins with the account.
    pub async fn rows_of_account(
        &self,
        entity_ids: &[String],
        account: &str,
    ) -> Result<Vec<NamedRows>, LedgerError> {
        self.named_rows(self.table.named_rows_sql(&self.table.account, entity_ids, account)).await
    }

    /// Returns the rows with a currency in the same way.
    pub async fn rows_of_currency(
        &self,
        entity_ids: &[String],
        currency: &str,
    ) -> Result<Vec<NamedRows>, LedgerError> {
        self.named_rows(self.table.named_rows_sql(&self.table.currency, entity_ids, currency)).await
    }

    /// Returns those of these accounts that rows of an entity have. Reads all rows of the entity.
    pub async fn accounts_among(&self, entity_id: &str, names: &[&str]) -> Result<Vec<String>, LedgerError> {
        self.among(entity_id, &self.table.account, names).await
    }

    /// Returns those of these currencies that rows of an entity have, in the same way.
    pub async fn currencies_among(
        &self,
        entity_id: &str,
        names: &[&str],
    ) -> Result<Vec<String>, LedgerError> {
        self.among(entity_id, &self.table.currency, names).await
    }

    async fn among(&self, entity_id: &str, column: &str, names: &[&str]) -> Result<Vec<String>, LedgerError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let Table { name, entity, .. } = &self.table;
        let wanted = quote_array(names.iter().map(|name| Some(*name)));
        let sql = format!(
            "select distinct {column}::text collate \"C\" from {name} t
              where {entity} = {} and {column}::text collate \"C\" = any ({wanted}) order by 1",
            quote_literal(entity_id)
        );
        let query =
            || sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_all(self.primary.single_round_trip());
        let found: Result<Vec<String>, sqlx::Error> = self.primary.retry(query).await;
        found.map_err(|problem| LedgerError::from(problem).about(entity_id))
    }

    async fn named_rows(&self, sql: String) -> Result<Vec<NamedRows>, LedgerError> {
        type Found = (String, i64, Option<DateTime<Utc>>, Option<DateTime<Utc>>);
        let query = || sqlx::query_as(AssertSqlSafe(sql.clone())).fetch_all(self.primary.single_round_trip());
        let found: Vec<Found> = self.primary.retry(query).await?;
        let rows =
            |(entity_id, rows, first, last): Found| NamedRows { entity_id, rows, span: first.zip(last) };
        Ok(found.into_iter().map(rows).collect())
    }
}

impl Table {
    fn named_rows_sql(&self, column: &str, entity_ids: &[String], wanted: &str) -> String {
        let Self { name, entity, captured_at, .. } = self;
        let entity_ids = quote_array(entity_ids.iter().map(|id| Some(id.as_str())));
        let years = format!(
            "{captured_at} >= timestamptz '0001-01-02 00:00:00Z' and {captured_at} < timestamptz '9999-12-31 00:00:00Z'"
        );
        format!(
            "select {entity}::text, count(*), min({captured_at}) filter (where {years}),
                    max({captured_at}) filter (where {years})
               from {name} t
              where {entity} = any ({entity_ids}) and {column}::text collate \"C\" = {}
              group by 1 order by 1",
            quote_literal(wanted)
        )
    }
}
