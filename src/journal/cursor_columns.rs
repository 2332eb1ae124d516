//! A cursor as the columns of the journal have it.

use chrono::{DateTime, Utc};

use crate::ledger::instant;
use crate::watermark::Cursor;

/// `change_xid` of a place, as its column has it. NULL in a backfill.
pub(super) fn xid(cursor: &Cursor) -> Option<String> {
    cursor.xid().map(|xid| xid.to_string())
}

/// `captured_at` of a place, as its column has it. NULL in a pass.
pub(super) fn at(cursor: &Cursor) -> Option<DateTime<Utc>> {
    cursor.captured_at_us().map(instant)
}
