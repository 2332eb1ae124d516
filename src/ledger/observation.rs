//! What a run observes of the ledger beside its rows, for the facts of the journal: one statement.

use serde::Deserialize;
use sqlx::AssertSqlSafe;

use super::beneath::BENEATH;
use super::open_transactions::WRITERS;
use super::{Ledger, LedgerError, Writer, quote_literal};
use crate::database::TIMELINE;

/// The tables that a ledger consists of, with their partitions: what `beneath` finds.
pub(super) const TABLES: &str =
    "select pg_catalog.format('%I.%I', n.nspname, c.relname) as table, c.oid::bigint as oid,
            pg_catalog.pg_relation_filenode(c.oid)::bigint as file
       from beneath b join pg_catalog.pg_class c on c.oid = b.oid
       join pg_catalog.pg_namespace n on n.oid = c.relnamespace
      where c.relkind in ('r', 'p', 'm', 'f') order by 1, 2";

/// What a run observes of the ledger.
#[derive(Debug, Deserialize)]
pub struct Observation {
    /// The tables that the ledger consists of, with their partitions, by name: each with its oid and its file. A table
    /// that was rewritten, as `alter table ... alter column ... type` does, has another file than before.
    pub tables: serde_json::Value,
    /// The timeline of the server, which each promotion of a copy changes. `None`: the server is a standby.
    pub timeline: Option<i64>,
    /// The oldest open transaction that has written to the ledger.
    pub oldest_writer: Option<Writer>,
}

impl Ledger {
    /// Observes tables and open transactions of the ledger.
    pub async fn observe(&self) -> Result<Observation, LedgerError> {
        let sql = format!(
            "with recursive {BENEATH},
             tables as ({TABLES}),
             writer as ({WRITERS} limit 1)
             select pg_catalog.json_build_object(
                 'tables', (select coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
                                       'table', t.table, 'oid', t.oid, 'file', t.file) order by t.table, t.oid), '[]')
                              from tables t),
                 'timeline', ({TIMELINE}),
                 'oldest_writer', (select pg_catalog.to_json(w) from writer w))::text"
        );
        let sql = sql.replace("$1", &quote_literal(self.table.name()));
        let query =
            || sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(self.primary.single_round_trip());
        let json: String = self.primary.retry(query).await?;
        serde_json::from_str(&json).map_err(|_| LedgerError::Decode("not an observation of the ledger"))
    }
}
