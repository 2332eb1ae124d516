//! Rows that were written while the trigger of the ledger was broken, and kept their old stamp. They are behind the
//! watermark, so no run reads them.

use sqlx::AssertSqlSafe;

use super::{Ledger, LedgerError, Table, quote_identifier, quote_literal};

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
        let kind = format!(
            "select relkind::text from pg_catalog.pg_class where oid = {}::pg_catalog.regclass",
            quote_literal(self.table.name())
        );
        let query =
            || sqlx::query_scalar(AssertSqlSafe(kind.clone())).fetch_one(self.primary.single_round_trip());
        let kind: String = self.primary.retry(query).await?;
        if kind == "v" {
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
        let Table { name, .. } = &self.table;
        let stamp = self.table.stamp();
        format!("update {name} set {stamp} = default where {}", self.table.in_gap(gap))
    }
}

impl Table {
    /// The quoted name of the stamp column.
    fn stamp(&self) -> String {
        quote_identifier(self.mapping.columns.get("change_xid").map_or("change_xid", |column| &column.name))
    }

    /// Returns the condition of rows that were written after one of these two moments, and have the stamp of a transaction
    /// that had begun before. A row of a savepoint has the stamp of its own transaction, which `xmin` does not show; it is
    /// among them only if its transaction was open at one of the two moments. To stamp it does no harm.
    fn in_gap(&self, GuardGap { from, seen, until }: GuardGap) -> String {
        let age = |xid: u64| format!("pg_catalog.age('{}'::pg_catalog.xid)", xid & u64::from(u32::MAX));
        let stamp = self.stamp();
        let written_since = |xid: u64| format!("{stamp} < '{xid}' and pg_catalog.age(xmin) <= {}", age(xid));
        let before =
            until.map_or_else(String::new, |until| format!(" and pg_catalog.age(xmin) > {}", age(until)));
        format!("({} or {}){before}", written_since(from), written_since(seen))
    }

    fn unstamped_sql(&self, gap: GuardGap, named: usize) -> String {
        let Self { name, entity, id, .. } = self;
        let condition = self.in_gap(gap);
        format!(
            "select entity_id, count(*), (array_agg(id order by place))[1:{named}]
               from (select {entity}::text collate \"C\" as entity_id, {id}::text as id,
                            row_number() over (order by {id}) as place
                       from {name} t where {condition}) r
              where entity_id is not null
              group by entity_id order by entity_id"
        )
    }
}
