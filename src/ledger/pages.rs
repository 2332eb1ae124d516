//! What is read of an entity, page by page.

use std::collections::VecDeque;

use super::statements::Page;
use super::{Ledger, LedgerError, RangePages, Row};
use crate::watermark::{Cursor, Order, Segment, Snapshot};

/// What of a pass is to be read: the rows of `entity_id` in `target` and not in `settled`, behind `after`,
/// and up to and including `until` if that is given.
#[derive(Clone, Debug)]
pub struct PassRead<'a> {
    /// The entity.
    pub entity_id: &'a str,
    /// The recorded pass; a standby that has its row has all that the target contains. `None` reads
    /// from the primary.
    pub pass_id: Option<i64>,
    /// The watermark that the pass begins with.
    pub settled: Option<&'a Snapshot>,
    /// The watermark that it ends with.
    pub target: &'a Snapshot,
    /// The place to begin behind.
    pub after: Option<Cursor>,
    /// The place to end at.
    pub until: Option<Cursor>,
    /// Rows to a page, or a few more where ties are.
    pub page_rows: usize,
}

/// What is read of an entity, in one of the orders.
#[derive(Debug)]
pub enum Pages {
    /// A pass.
    Pass(Pass),
    /// A range, for a backfill.
    Range(RangePages),
}

impl Pages {
    /// The order of their rows.
    pub fn order(&self) -> Order {
        match self {
            Pages::Pass(_) => Order::ChangeXid,
            Pages::Range(_) => Order::CapturedAt,
        }
    }

    /// The next rows. `None` when there are no more.
    pub async fn next_page(&mut self) -> Result<Option<Vec<Row>>, LedgerError> {
        match self {
            Pages::Pass(pass) => pass.next_page().await,
            Pages::Range(range) => range.next_page().await,
        }
    }
}

/// The rows of one pass of one entity, page by page. No transaction stays open between pages.
#[derive(Debug)]
pub struct Pass {
    pub(super) ledger: Ledger,
    pub(super) entity_id: String,
    pub(super) proof_of: Option<i64>,
    pub(super) target: Snapshot,
    pub(super) segments: VecDeque<Segment>,
    pub(super) cursor: Option<Cursor>,
    pub(super) until: Option<Cursor>,
    pub(super) page_rows: usize,
}

impl Pass {
    /// The next rows in the order `(change_xid, id)`. `None` when the pass is through.
    ///
    /// A page holds about `page_rows` rows; a tie at its end makes it longer, never shorter.
    pub async fn next_page(&mut self) -> Result<Option<Vec<Row>>, LedgerError> {
        while let Some(&segment) = self.segments.front() {
            let page = Page {
                entity_id: &self.entity_id,
                target: &self.target,
                segment,
                after: self.cursor.as_ref(),
                until: self.until.as_ref(),
                rows_max: self.page_rows,
                proof_of: self.proof_of,
            };
            let rows = self.ledger.page(&page).await?;
            if rows.len() < self.page_rows {
                self.segments.pop_front();
            }
            if let Some(last) = rows.last() {
                self.cursor = Some(last.cursor(Order::ChangeXid));
                return Ok(Some(rows));
            }
        }
        Ok(None)
    }
}
