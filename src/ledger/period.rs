//! Reads the rows of a period for an audit: in the transaction that reads the journal.

use std::fmt::Write as _;

use sqlx::AssertSqlSafe;

use super::copy::copy_out;
use super::instant::instant_literal;
use super::reader::keys;
use super::{Ledger, LedgerError, Range, Row, Table, instant, quote_array, quote_literal};
use crate::align::Names;
use crate::database::{Transaction, within};
use crate::watermark::{Cursor, Snapshot, Xid};

/// The rows of a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Population {
    /// The number of rows.
    pub rows: i64,
    /// The first and the last transaction that wrote one of them. `None`: there is no row.
    pub xids: Option<(Xid, Xid)>,
}

/// The rows of a period that no batch lists.
#[derive(Clone, Copy, Debug)]
pub enum Unlisted<'a> {
    /// Rows outside the watermark, and outside the recorded part of the open pass.
    Pending {
        /// The watermark.
        settled: Option<&'a Snapshot>,
        /// The target of the open pass, and the end of its recorded part. `None`: nothing of it is recorded.
        open: Option<(&'a Snapshot, Option<&'a Cursor>)>,
    },
    /// Rows between two watermarks.
    Between {
        /// The earlier watermark.
        settled: Option<&'a Snapshot>,
        /// The later watermark.
        target: &'a Snapshot,
    },
}

impl Ledger {
    /// Counts the rows of a period.
    pub async fn population(
        &self,
        transaction: &mut Transaction,
        range: &Range,
    ) -> Result<Population, LedgerError> {
        let Table { name, xid, .. } = &self.table;
        let filter = self.table.range_filter(range);
        let xid = format!("{xid}::text::numeric");
        let sql = format!("select count(*), min({xid})::text, max({xid})::text from {name} t where {filter}");
        let (rows, first, last): (i64, Option<String>, Option<String>) =
            sqlx::query_as(AssertSqlSafe(sql)).fetch_one(transaction).await?;
        let parsed = |xid: Option<String>| xid.and_then(|xid| xid.parse().ok());
        Ok(Population { rows, xids: parsed(first).zip(parsed(last)) })
    }

    /// Reads a page of the rows of a period that no batch lists, in the order `(captured_at, id)`.
    pub async fn unlisted(
        &self,
        transaction: &mut Transaction,
        range: &Range,
        which: Unlisted<'_>,
        after: Option<&Cursor>,
        rows_max: usize,
    ) -> Result<Vec<Row>, LedgerError> {
        let sql = self.table.unlisted_sql(range, which, after, rows_max);
        self.copied(transaction, &sql).await
    }

    /// Returns those of these ids that rows of a period have.
    pub async fn ids_in_period(
        &self,
        transaction: &mut Transaction,
        range: &Range,
        ids: &[String],
    ) -> Result<Vec<String>, LedgerError> {
        let Table { name, id, id_type, .. } = &self.table;
        // The journal may have ids of an earlier mapping.
        let ids: Vec<Option<&str>> = ids
            .iter()
            .filter(|id| !self.table.id_is_number() || id.parse::<i64>().is_ok())
            .map(|id| Some(id.as_str()))
            .collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "select {id}::text from {name} t where {} and {id} = any ({}::{id_type}[])",
            self.table.range_filter(range),
            quote_array(ids.into_iter())
        );
        Ok(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(transaction).await?)
    }

    /// Returns the current rows with these ids.
    pub async fn rows_with_ids_in(
        &self,
        transaction: &mut Transaction,
        entity_id: &str,
        ids: &[String],
    ) -> Result<Vec<Row>, LedgerError> {
        let sql = self.table.row_sql(entity_id, ids);
        self.copied(transaction, &sql).await
    }

    /// Returns the rows that may have the same account, currency and wall-clock time as one of these rows.
    pub async fn rivals_in(
        &self,
        transaction: &mut Transaction,
        entity_id: &str,
        rows: &[Row],
        names: &Names,
    ) -> Result<Vec<Row>, LedgerError> {
        let keys = keys(rows, names);
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let sql = self.table.around_sql(entity_id, &keys);
        self.copied(transaction, &sql).await
    }

    async fn copied(&self, transaction: &mut Transaction, sql: &str) -> Result<Vec<Row>, LedgerError> {
        let (mut rows, limit) = (Vec::new(), transaction.limit());
        let copied = copy_out(transaction.connection()?, sql, self.table.id_is_number(), &mut rows);
        within(limit, copied).await.map_err(|problem| self.name_missing_id(problem))?;
        Ok(rows)
    }
}

impl Table {
    fn unlisted_sql(
        &self,
        range: &Range,
        which: Unlisted<'_>,
        after: Option<&Cursor>,
        rows_max: usize,
    ) -> String {
        let Self { name, xid, id, id_type, captured_at, columns, .. } = self;
        let visible = |snapshot: &Snapshot| {
            format!("pg_catalog.pg_visible_in_snapshot({xid}, '{snapshot}'::pg_snapshot)")
        };
        let mut filter = self.range_filter(range);
        // Writing to a String cannot fail.
        match which {
            Unlisted::Pending { settled, open } => {
                if let Some(settled) = settled {
                    let _ = write!(filter, " and not {}", visible(settled));
                }
                if let Some((target, Some(end))) = open {
                    let _ = write!(
                        filter,
                        " and (not {} or ({xid}, {id}) > ('{}'::xid8, {}::{id_type}))",
                        visible(target),
                        end.xid().unwrap_or_default(),
                        quote_literal(&end.id)
                    );
                }
            }
            Unlisted::Between { settled, target } => {
                let _ = write!(filter, " and {}", visible(target));
                if let Some(settled) = settled {
                    let _ = write!(filter, " and not {}", visible(settled));
                }
            }
        }
        let id_in_order = self.id_in_order(id);
        if let Some(after) = after {
            let at = instant_literal(instant(after.captured_at_us().unwrap_or(i64::MAX)));
            let after = self.id_in_order(&format!("{}::{id_type}", quote_literal(&after.id)));
            let _ = write!(
                filter,
                " and {captured_at} >= {at} and ({captured_at}, {id_in_order}) > ({at}, {after})"
            );
        }
        format!(
            "copy (select {columns} from {name} t where {filter} order by {captured_at}, {id_in_order}
                    fetch first {rows_max} rows with ties) to stdout (format binary)"
        )
    }
}
