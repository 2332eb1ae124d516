//! Reads ranges of `captured_at` for backfills: in the order `(captured_at, id)`, and only from the primary, because a
//! standby may still have an older version of a row than the version that was sent.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;

use super::copy::PlanHint;
use super::unreadable::{Asked, Parts};
use super::{Ledger, LedgerError, Progress, Range, Row, Table};
use crate::watermark::{Cursor, Order, Snapshot};

/// Processed rows of some periods.
#[derive(Clone, Debug)]
pub struct Uploaded {
    /// The number of rows.
    pub rows: i64,
    /// The earliest `captured_at` among them.
    pub first: DateTime<Utc>,
    /// The latest `captured_at` among them.
    pub last: DateTime<Utc>,
}

/// Values of a filter that no row has.
#[derive(Clone, Debug, Default)]
pub struct AbsentValues {
    /// The accounts.
    pub accounts: Vec<String>,
    /// The currencies.
    pub currencies: Vec<String>,
    /// Accounts that some rows have; only if one of `accounts` is absent.
    pub present_accounts: Vec<String>,
    /// Currencies that some rows have; only if one of `currencies` is absent.
    pub present_currencies: Vec<String>,
}

/// The rows of a range, page by page. No transaction stays open between pages.
#[derive(Debug)]
pub struct RangePages {
    ledger: Ledger,
    range: Arc<Range>,
    after: Option<Cursor>,
    until: Option<Cursor>,
    page_rows: usize,
    is_through: bool,
}

impl RangePages {
    /// Reads the next page in the order `(captured_at, id)`. `None`: the range has no more rows.
    pub async fn next_page(&mut self) -> Result<Option<Vec<Row>>, LedgerError> {
        if self.is_through {
            return Ok(None);
        }
        let Self { ledger, range, after, until, page_rows, .. } = self;
        let (behind, up_to, rows_max) = (after.as_ref(), until.as_ref(), *page_rows);
        let sql = |table: &Table| table.range_sql(range, behind, up_to, rows_max);
        let rows = match ledger.copy(&ledger.primary, sql, rows_max, PlanHint::Any).await {
            Ok(rows) => rows,
            Err(problem) => {
                let asked = Asked::Range(range, behind, up_to, rows_max);
                return Err(ledger.unreadable(&range.entity_id, asked, problem).await);
            }
        };
        self.is_through = rows.len() < self.page_rows;
        self.after = rows.last().map(|row| row.cursor(Order::CapturedAt)).or_else(|| self.after.take());
        Ok(if rows.is_empty() { None } else { Some(rows) })
    }
}

impl Ledger {
    /// Begins to read a range, from its start or after the cursor `after`, to its end or up to and including the
    /// cursor `until`.
    pub fn range(
        &self,
        range: Arc<Range>,
        after: Option<Cursor>,
        until: Option<Cursor>,
        page_rows: usize,
    ) -> RangePages {
        RangePages { ledger: self.clone(), range, after, until, page_rows, is_through: false }
    }

    /// Counts the rows of each range, in the given order. `None` for a range whose rows the database cannot read.
    pub async fn count_ranges(&self, ranges: &[Range]) -> Result<Vec<Option<i64>>, LedgerError> {
        let mut counts = Vec::with_capacity(ranges.len());
        for ranges in ranges.chunks(super::pending::ENTITIES_PER_COUNT_MAX) {
            match self.count_in(&self.table, ranges).await {
                Err(problem) if problem.is_about_rows() => {
                    let mut told: BTreeMap<&str, i64> = BTreeMap::new();
                    let mut parts = Parts::of(ranges);
                    while let Some(part) = parts.next() {
                        let counted = self.count_in(&self.table.careful(), part).await;
                        let counted = parts.took(part, counted)?.into_iter().flatten();
                        told.extend(part.iter().map(|range| range.entity_id.as_str()).zip(counted));
                    }
                    counts.extend(ranges.iter().map(|range| told.get(range.entity_id.as_str()).copied()));
                }
                counted => counts.extend(counted?.into_iter().map(Some)),
            }
        }
        Ok(counts)
    }

    /// Returns the accounts and currencies that these ranges are limited to and that none of their rows has. Nothing is
    /// returned if the database cannot read the rows.
    pub async fn values_without_rows(&self, ranges: &[Range]) -> Result<AbsentValues, LedgerError> {
        let Some(first) = ranges.first() else { return Ok(AbsentValues::default()) };
        let mut absent = AbsentValues {
            accounts: first.accounts.clone(),
            currencies: first.currencies.clone(),
            ..AbsentValues::default()
        };
        for ranges in ranges.chunks(super::pending::ENTITIES_PER_COUNT_MAX) {
            let [accounts, currencies] =
                self.table.absent_values_sql(ranges, &absent.accounts, &absent.currencies);
            for (values, sql) in [(&mut absent.accounts, accounts), (&mut absent.currencies, currencies)] {
                if values.is_empty() {
                    continue;
                }
                match self.values(&sql).await {
                    Err(problem) if problem.is_about_rows() => return Ok(AbsentValues::default()),
                    found => *values = found?,
                }
            }
        }
        let sampled = &ranges[..ranges.len().min(super::pending::ENTITIES_PER_COUNT_MAX)];
        let [accounts, currencies] = self.table.present_values_sql(sampled);
        for (missing, present, sql) in [
            (&absent.accounts, &mut absent.present_accounts, accounts),
            (&absent.currencies, &mut absent.present_currencies, currencies),
        ] {
            if !missing.is_empty() {
                match self.values(&sql).await {
                    Err(problem) if problem.is_about_rows() => {}
                    found => *present = found?,
                }
            }
        }
        Ok(absent)
    }

    async fn values(&self, sql: &str) -> Result<Vec<String>, LedgerError> {
        let find =
            || sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(self.primary.single_round_trip());
        self.primary.retry(find).await.map_err(LedgerError::from)
    }

    async fn count_in(&self, table: &Table, ranges: &[Range]) -> Result<Vec<i64>, LedgerError> {
        let sql = table.range_counts_sql(ranges);
        let count =
            || sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_all(self.primary.single_round_trip());
        Ok(self.primary.retry(count).await?)
    }

    /// Counts the processed rows of an entity that were captured in one of `periods` (ascending, in Unix seconds),
    /// without the rows of the snapshot `skipped`. `None`: there are none.
    pub async fn uploaded_in(
        &self,
        lane: &Progress,
        skipped: Option<&Snapshot>,
        periods: &[std::ops::Range<i64>],
    ) -> Result<Option<Uploaded>, LedgerError> {
        let Some(sql) = self.table.uploaded_sql(lane, skipped, periods) else { return Ok(None) };
        let count = || sqlx::query_as(AssertSqlSafe(sql.clone())).fetch_one(self.primary.single_round_trip());
        let (rows, first, last): (i64, Option<i64>, Option<i64>) = self.primary.retry(count).await?;
        let at = |us: Option<i64>| us.and_then(DateTime::from_timestamp_micros);
        Ok(at(first).zip(at(last)).map(|(first, last)| Uploaded { rows, first, last }))
    }

    /// Returns the statement that creates the index for ranges if it is missing, because without it a range reads the
    /// whole table. `None` also for a view, whose tables are not known here.
    pub async fn without_range_index(&self) -> Result<Option<String>, LedgerError> {
        let Some((sql, remedy)) = self.table.range_index_sql() else { return Ok(None) };
        let query = || {
            sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_optional(self.primary.single_round_trip())
        };
        let has_index: Option<bool> = self.primary.retry(query).await?;
        Ok(if has_index == Some(false) { Some(remedy) } else { None })
    }
}
