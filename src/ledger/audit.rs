//! Reads the ledger to compare it with the journal: in the transaction that reads the journal, and in the order of the
//! journal.

use futures_util::TryStreamExt;
use sqlx::AssertSqlSafe;

use super::copy::copy_out;
use super::pending::CountRow;
use super::probe::ProbeRow;
use super::row::ListedRow;
use super::statements::Page;
use super::{Ledger, LedgerError, ProbeResult, Progress, Row};
use crate::database::{Transaction, within};
use crate::watermark::{self, Cursor, LedgerId, Snapshot};

/// The maximum number of pages that one statement reads.
const PAGES_PER_STATEMENT_MAX: usize = 200;

/// The rows of a pass between two cursors.
#[derive(Clone, Debug)]
pub struct Interval<'a> {
    /// The watermark before the pass.
    pub settled: Option<&'a Snapshot>,
    /// The watermark after the pass.
    pub target: &'a Snapshot,
    /// The rows after this cursor. `None`: from the start of the pass.
    pub after: Option<Cursor>,
    /// The rows up to and including this cursor. `None`: to the end of the pass.
    pub until: Option<Cursor>,
    /// The maximum number of rows that are read from one segment.
    pub rows_max: usize,
}

impl Interval<'_> {
    /// Returns one page for each segment of the interval.
    fn pages<'a>(&'a self, entity_id: &'a str) -> impl Iterator<Item = Page<'a>> {
        let &Self { settled, target, ref after, ref until, rows_max } = self;
        let (after, until) = (after.as_ref(), until.as_ref());
        let segments = watermark::segments_between(settled, target, after, until).into_iter();
        segments.map(move |segment| Page {
            entity_id,
            target,
            segment,
            after,
            until,
            rows_max,
            proof_of: None,
        })
    }
}

impl Ledger {
    /// Lists the rows of intervals. Calls `row` with the index of the interval and the id of each row.
    pub async fn listed(
        &self,
        transaction: &mut Transaction,
        entity_id: &str,
        intervals: &[Interval<'_>],
        mut row: impl FnMut(usize, LedgerId),
    ) -> Result<(), LedgerError> {
        let selects: Vec<String> = intervals
            .iter()
            .enumerate()
            .flat_map(|(place, interval)| interval.pages(entity_id).map(move |page| (place, page)))
            .map(|(place, page)| self.table.listed_sql(&page, place))
            .collect();
        let limit = transaction.limit();
        for selects in selects.chunks(PAGES_PER_STATEMENT_MAX) {
            let sql = format!("copy ({}) to stdout (format binary)", selects.join(" union all "));
            let id_is_number = self.table.id_is_number();
            let copied = async {
                let mut messages = transaction.connection()?.copy_out_raw(&sql).await?;
                let mut listed = ListedRow { id_is_number, in_header: true };
                while let Some(message) = messages.try_next().await? {
                    if let Some((place, id)) = listed.row(message)? {
                        row(usize::try_from(place).unwrap_or(usize::MAX), id);
                    }
                }
                Ok(())
            };
            within(limit, copied).await.map_err(|problem| self.name_missing_id(problem))?;
        }
        Ok(())
    }

    /// Reads the rows of an interval, in the order of the pass.
    pub async fn rows_of(
        &self,
        transaction: &mut Transaction,
        entity_id: &str,
        interval: &Interval<'_>,
    ) -> Result<Vec<Row>, LedgerError> {
        let mut rows = Vec::new();
        let limit = transaction.limit();
        for page in interval.pages(entity_id) {
            let sql = self.table.page_sql(&page);
            let copied = copy_out(transaction.connection()?, &sql, self.table.id_is_number(), &mut rows);
            within(limit, copied).await.map_err(|problem| self.name_missing_id(problem))?;
        }
        Ok(rows)
    }

    /// Probes one entity in the given transaction, as [`Ledger::probe_entity`] does.
    pub async fn probe_in(
        &self,
        transaction: &mut Transaction,
        lane: &Progress,
    ) -> Result<ProbeResult, LedgerError> {
        let sql = self.table.new_rows_sql(std::slice::from_ref(lane));
        let rows: Vec<ProbeRow> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(transaction).await?;
        ProbeResult::of(rows)
    }

    /// Counts the pending rows of an entity in the given transaction.
    pub async fn pending_in(
        &self,
        transaction: &mut Transaction,
        lane: &Progress,
    ) -> Result<i64, LedgerError> {
        let sql = self.table.pending_sql(&[lane], false, &[]);
        let rows: Vec<CountRow> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(transaction).await?;
        Ok(rows.first().map_or(0, |(_, rows, _)| *rows))
    }

    /// Returns the entities that have rows with this id, each with the newest transaction that wrote one of them.
    pub async fn holders(&self, id: &LedgerId) -> Result<Vec<(String, u64)>, LedgerError> {
        let sql = self.table.holders_sql(&id.to_string());
        let query = || sqlx::query_as(AssertSqlSafe(sql.clone())).fetch_all(self.primary.single_round_trip());
        let found: Vec<(String, String)> = self.primary.retry(query).await?;
        Ok(found.into_iter().filter_map(|(entity_id, xid)| Some((entity_id, xid.parse().ok()?))).collect())
    }

    /// Returns an id in the form in which the ledger has it, from the form in which a person wrote it.
    pub async fn id(&self, written: &str) -> Result<LedgerId, LedgerError> {
        let sql = self.table.id_sql(written);
        let query =
            || sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(self.primary.single_round_trip());
        let id: Result<String, sqlx::Error> = self.primary.retry(query).await;
        let id = id.map_err(|problem| self.no_id(written, problem))?;
        Ok(match id.parse() {
            Ok(number) if self.table.id_is_number() => LedgerId::Number(number),
            _ => LedgerId::Text(id),
        })
    }

    /// Explains that a text cannot be an id of the ledger, if PostgreSQL refused it for that reason.
    fn no_id(&self, id: &str, problem: sqlx::Error) -> LedgerError {
        let code = problem.as_database_error().and_then(sqlx::error::DatabaseError::code);
        // invalid_text_representation, numeric_value_out_of_range
        match code.as_deref() {
            Some("22P02" | "22003") => LedgerError::Shape(format!(
                "`{id}` is no id of the ledger {}: its ids have type {}; hint: give a value of its id column",
                self.table.name(),
                self.table.id_type
            )),
            _ => problem.into(),
        }
    }
}
