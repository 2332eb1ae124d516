//! Reads the rows of an entity page by page.

use std::collections::VecDeque;
use std::fmt;

use futures_util::FutureExt;

use super::error::Read;
use super::statements::Page;
use super::{Ledger, LedgerError, RangePages, Row};
use crate::watermark::{Cursor, Order, Segment, Snapshot};

/// Which rows of a pass are read: the rows of `entity_id` in `target` and not in `settled`, after the cursor `after`,
/// up to and including the cursor `until`.
#[derive(Clone, Debug)]
pub struct PassRead<'a> {
    /// The entity.
    pub entity_id: &'a str,
    /// The recorded pass. A standby that has replayed its row has replayed everything that the target contains.
    /// `None`: read from the primary.
    pub pass_id: Option<i64>,
    /// The watermark before the pass.
    pub settled: Option<&'a Snapshot>,
    /// The watermark after the pass.
    pub target: &'a Snapshot,
    /// The cursor after which to begin. `None`: from the start of the pass.
    pub after: Option<Cursor>,
    /// The cursor at which to end. `None`: to the end of the pass.
    pub until: Option<Cursor>,
    /// Rows per page; rows that tie with the last one are added.
    pub page_rows: usize,
}

/// The rows of one entity, page by page.
pub trait Pages: fmt::Debug + Send {
    /// Returns the order of the rows.
    fn order(&self) -> Order;

    /// Reads the next page. `None`: there are no more rows.
    fn next_page(&mut self) -> Read<'_, Option<Vec<Row>>>;
}

impl Pages for Pass {
    fn order(&self) -> Order {
        Order::ChangeXid
    }

    fn next_page(&mut self) -> Read<'_, Option<Vec<Row>>> {
        Pass::next_page(self).boxed()
    }
}

impl Pages for RangePages {
    fn order(&self) -> Order {
        Order::CapturedAt
    }

    fn next_page(&mut self) -> Read<'_, Option<Vec<Row>>> {
        RangePages::next_page(self).boxed()
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
    /// Reads the next page in the order `(change_xid, id)`. `None`: the pass has no more rows.
    ///
    /// A page holds about `page_rows` rows; rows that tie with the last one make it longer, never shorter.
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
