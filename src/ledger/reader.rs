//! Reads rows of the ledger: pages of a pass, and single rows.

use futures_util::FutureExt;
use sqlx::AssertSqlSafe;
use tokio::time::Instant;

use super::copy::PlanHint;
use super::error::is_behind;
use super::standby::replayed;
use super::statements::Page;
use super::unreadable::{Asked, Parts};
use super::{Ledger, LedgerError, Pass, PassRead, Read, Row, Table};
use crate::align::Names;
use crate::watermark::{self, Cursor, Segment};

/// The largest distance from the year 2000 at which a row can be sent, in microseconds: about 9,500 years.
const SENT_US_MAX: u64 = 300_000_000_000_000_000;

/// Rows that were read by one statement, or by several where the rows of some items cannot be read.
#[derive(Debug)]
pub struct FoundRows<'a, T> {
    /// The rows.
    pub rows: Vec<Row>,
    /// The items for which no rows can be read, with the reason.
    pub unreadable: Vec<(&'a T, String)>,
}

impl Ledger {
    /// Returns the current rows with an id: several if the id is not unique, none if the row was deleted.
    pub async fn rows_with_id(&self, entity_id: &str, id: &str) -> Result<Vec<Row>, LedgerError> {
        let rows = self.rows_with(entity_id, &[id.to_owned()]).await;
        rows.map_err(|problem| problem.about(entity_id))
    }

    /// Returns the current rows with these ids, and the ids whose rows cannot be read.
    pub async fn rows_with_ids<'a>(
        &self,
        entity_id: &str,
        ids: &'a [String],
    ) -> Result<FoundRows<'a, String>, LedgerError> {
        in_parts(ids, |ids| self.rows_with(entity_id, ids).boxed()).await
    }

    async fn rows_with(&self, entity_id: &str, ids: &[String]) -> Result<Vec<Row>, LedgerError> {
        let sql = |table: &Table| table.row_sql(entity_id, ids);
        self.copy(&self.primary, sql, ids.len(), PlanHint::Any).await
    }

    /// Returns the rows that may have the same account, currency and wall-clock time as this row at Elven. Assumes that clocks
    /// are put back by at most a day.
    pub async fn rivals(&self, entity_id: &str, row: &Row, names: &Names) -> Result<Vec<Row>, LedgerError> {
        let rows = self.around(entity_id, std::slice::from_ref(row), names).await;
        rows.map_err(|problem| problem.about(entity_id))
    }

    /// Returns the rows that may have the same account, currency and wall-clock time as one of these rows, and the rows
    /// for which they cannot be read.
    pub async fn rivals_of<'a>(
        &self,
        entity_id: &str,
        rows: &'a [Row],
        names: &Names,
    ) -> Result<FoundRows<'a, Row>, LedgerError> {
        in_parts(rows, |rows| self.around(entity_id, rows, names).boxed()).await
    }

    /// Returns the rows with the account and the currency at Elven and the UTC second of one of these rows, and the rows
    /// for which they cannot be read. These are all rivals of rows whose second the clock does not show twice.
    pub async fn same_second<'a>(
        &self,
        entity_id: &str,
        rows: &'a [Row],
        names: &Names,
    ) -> Result<FoundRows<'a, Row>, LedgerError> {
        in_parts(rows, |rows| self.of_seconds(entity_id, rows, names).boxed()).await
    }

    async fn of_seconds(
        &self,
        entity_id: &str,
        rows: &[Row],
        names: &Names,
    ) -> Result<Vec<Row>, LedgerError> {
        let keys = keys(rows, names);
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let sql = |table: &Table| table.same_second_sql(entity_id, &keys);
        self.copy(&self.primary, sql, rows.len(), PlanHint::Any).await
    }

    async fn around(&self, entity_id: &str, rows: &[Row], names: &Names) -> Result<Vec<Row>, LedgerError> {
        let keys = keys(rows, names);
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let sql = |table: &Table| table.around_sql(entity_id, &keys);
        self.copy(&self.primary, sql, rows.len(), PlanHint::Any).await
    }

    /// Prepares to read a pass, or the rest of a pass, in pages.
    pub async fn pass(&self, reading: PassRead<'_>) -> Result<Pass, LedgerError> {
        let PassRead { entity_id, pass_id, settled, target, after, until, page_rows } = reading;
        let segments = watermark::segments_between(settled, target, after.as_ref(), until.as_ref());
        let mut segments = watermark::around_running(segments, target);
        if segments.len() > 1 {
            let occupied = self.without_empty_segments(entity_id, segments).await;
            segments = occupied.map_err(|problem| problem.about(entity_id))?;
        }
        Ok(Pass {
            ledger: self.clone(),
            entity_id: entity_id.to_owned(),
            proof_of: pass_id.filter(|_| self.standby.is_some()),
            target: target.clone(),
            segments: segments.into(),
            cursor: after,
            until,
            page_rows,
        })
    }

    /// Removes the segments in which the entity has no rows. One statement probes all of them. Most segments have no
    /// rows, because most transactions that stay open for long never write to the ledger.
    async fn without_empty_segments(
        &self,
        entity_id: &str,
        segments: Vec<Segment>,
    ) -> Result<Vec<Segment>, LedgerError> {
        let sql = self.table.probe_sql(entity_id, &segments);
        let probe =
            || sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_all(self.primary.single_round_trip());
        let ordinals: Vec<i64> = self.primary.retry(probe).await?;
        Ok(ordinals
            .into_iter()
            .filter_map(|ordinal| {
                usize::try_from(ordinal - 1).ok().and_then(|index| segments.get(index)).copied()
            })
            .collect())
    }

    /// Reads a page, from the standby if there is one and the pass is recorded, otherwise from the primary.
    ///
    /// # Errors
    /// The query failed, or the database cannot read a row of the page. In the second case the error names the first
    /// such row, if it can be found.
    pub(super) async fn page(&self, page: &Page<'_>) -> Result<Vec<Row>, LedgerError> {
        match self.read_page(page).await {
            Ok(rows) => Ok(rows),
            Err(problem) => Err(self.unreadable(page.entity_id, Asked::Pass(page), problem).await),
        }
    }

    async fn read_page(&self, page: &Page<'_>) -> Result<Vec<Row>, LedgerError> {
        if let Some(after) = page.after.and_then(Cursor::xid).filter(|xid| *xid >= page.segment.from)
            && self.table.id_may_be_null
        {
            self.check_ids(page.entity_id, after).await?;
        }
        let sql = |table: &Table| table.page_sql(page);
        let (Some(standby), Some(pass_id)) = (&self.standby, page.proof_of) else {
            return self.copy(&self.primary, sql, page.rows_max, PlanHint::InOrder).await;
        };
        let started_at = Instant::now();
        loop {
            let behind = match self.copy(standby, sql, page.rows_max, PlanHint::InOrder).await {
                Err(problem) if is_behind(&problem) => problem,
                read => return read,
            };
            replayed(standby, pass_id, page.target, started_at, &behind).await?;
        }
    }
}

/// Reads rows for many items by one statement. Where that fails because of rows, reads them for halves of the items.
async fn in_parts<'a, 'r, T>(
    items: &'a [T],
    read: impl Fn(&'a [T]) -> Read<'r, Vec<Row>>,
) -> Result<FoundRows<'a, T>, LedgerError> {
    let (mut rows, mut parts) = (Vec::new(), Parts::of(items));
    while let Some(part) = parts.next() {
        rows.extend(parts.took(part, read(part).await)?.into_iter().flatten());
    }
    Ok(FoundRows { rows, unreadable: parts.failed() })
}

/// Returns account, currency and instant of the rows that can have a rival. A row that is too far from the year 2000 to
/// be sent has none.
pub(super) fn keys<'r>(rows: &'r [Row], names: &'r Names) -> Vec<(&'r str, &'r str, i64)> {
    // A row that is too far from the year 2000 to be sent has no rival.
    let is_sent = |at: &i64| at.unsigned_abs() <= SENT_US_MAX;
    let mut keys = Vec::with_capacity(rows.len());
    for row in rows {
        let key = || Some((row.account()?, row.currency()?, row.captured_at_us.filter(is_sent)?));
        let Some((account, currency, at)) = key() else { continue };
        if !names.has_shared() {
            keys.push((account, currency, at));
            continue;
        }
        // Other names of the ledger may be the same name at Elven.
        let currencies = names.currencies.same_at_elven(currency);
        for account in names.accounts.same_at_elven(account) {
            keys.extend(currencies.iter().map(|currency| (account, *currency, at)));
        }
    }
    keys
}
