//! Rows that were written while the trigger of the ledger was broken, and kept their old stamp. They are behind the
//! watermark, so no run reads them.

use sqlx::AssertSqlSafe;

use super::{Ledger, LedgerError, Table, quote_identifier};

/// The time in which the trigger may not have stamped rows, by transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardGap {
    /// No transaction from this one on had begun when a run last saw the trigger intact.
    pub from: u64,
    /// No transaction from this one on had begun when a run first saw the trigger broken.
    pub seen: u64,
    /// Transactions from this one on began when the trigger was intact again. `None`: it is still broken.
    pub until: Option<u64>,
}

/// The rows of an entity that were written in a gap and have the stamp of another transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unstamped {
    /// The entity.
    pub entity_id: String,
    /// The number of rows.
    pub rows: i64,
    /// The ids of the first ones.
    pub ledger_ids: Vec<String>,
}

impl Ledger {
    /// Returns the rows that a gap has left without a stamp, by entity, with at most `named` ids of each. Reads the whole
    /// table. `None`: the ledger is a view, whose rows do not show by which transaction they were written.
    pub async fn unstamped(
        &self,
        gap: GuardGap,
        named: usize,
    ) -> Result<Option<Vec<Unstamped>>, LedgerError> {
        if self.facts().await?.is_view {
            return Ok(None);
        }
        let sql = self.table.unstamped_sql(gap, named);
        let query = || sqlx::query_as(AssertSqlSafe(sql.clone())).fetch_all(self.primary.single_round_trip());
        let rows: Vec<(String, i64, Vec<String>)> = self.primary.retry(query).await?;
        let unstamped = |(entity_id, rows, ledger_ids)| Unstamped { entity_id, rows, ledger_ids };
        Ok(Some(rows.into_iter().map(unstamped).collect()))
    }

    /// Returns the statement that stamps the rows of a gap. A row that needs it not is uploaded once more.
    pub fn stamping_gap(&self, gap: GuardGap) -> String {
        self.table.stamping(&self.table.in_gap(gap))
    }
}

impl Table {
    /// The name of the stamp column.
    pub(super) fn stamp_name(&self) -> &str {
        self.mapping.columns.get("change_xid").map_or("change_xid", |column| &column.name)
    }

    /// Returns the statement that stamps the rows for which a condition holds. A person executes it.
    pub(super) fn stamping(&self, condition: &str) -> String {
        format!(
            "update {} set {} = default where {condition}",
            self.name,
            quote_identifier(self.stamp_name())
        )
    }

    /// Returns the condition of rows that were written after one of these two moments, and have the stamp of a transaction
    /// that had begun before. A row of a savepoint has the stamp of its own transaction, which `xmin` does not show; it is
    /// among them only if its transaction was open at one of the two moments. To stamp it does no harm.
    fn in_gap(&self, GuardGap { from, seen, until }: GuardGap) -> String {
        let age = |xid: u64| format!("pg_catalog.age('{}'::pg_catalog.xid)", xid & u64::from(u32::MAX));
        let stamp = quote_identifier(self.stamp_name());
        let written_since = |xid: u64| format!("{stamp} < '{xid}' and pg_catalog.age(xmin) <= {}", age(xid));
        let before =
            until.map_or_else(String::new, |until| format!(" and pg_catalog.age(xmin) > {}", age(until)));
        format!("({} or {}){before}", written_since(from), written_since(seen))
    }

    fn unstamped_sql(&self, gap: GuardGap, named: usize) -> String {
        let Self { name, entity, id, .. } = self;
        let condition = self.in_gap(gap);
        format!(
            "select {entity}::text collate \"C\", count(*), (array_agg({id}::text order by {id}))[1:{named}]
               from {name} t where {entity} is not null and {condition} group by 1 order by 1"
        )
    }
}
