//! The position of a pass or a backfill in the ledger, and the order of its rows.

use std::fmt;
use std::num::ParseIntError;

use super::snapshot::Xid;

/// The id of a ledger row. Its variant follows the type of the ledger's key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LedgerId {
    /// A `bigint` or `integer` key.
    Number(i64),
    /// A key of any other type, as PostgreSQL writes it.
    Text(String),
}

impl fmt::Display for LedgerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LedgerId::Number(number) => number.fmt(f),
            LedgerId::Text(text) => f.write_str(text),
        }
    }
}

/// The order in which rows are read and sent. The id decides between equal rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By `change_xid`: the order of a pass.
    ChangeXid,
    /// By `captured_at`: the order of a backfill.
    CapturedAt,
}

/// A position in a pass or a backfill: directly after one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The sort key of that row.
    pub at: At,
    /// The id of that row, as text.
    pub id: String,
}

/// The sort key of one row, before its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// In a pass: the `change_xid`.
    Xid(Xid),
    /// In a backfill: the `captured_at`, in microseconds from 2000-01-01 UTC.
    Instant(i64),
}

impl Cursor {
    /// Returns the cursor of a pass from its two columns, or `None` when one of them is null.
    pub(crate) fn from_columns(
        xid: Option<String>,
        id: Option<String>,
    ) -> Result<Option<Self>, ParseIntError> {
        let Some((xid, id)) = xid.zip(id) else { return Ok(None) };
        Ok(Some(Self { at: At::Xid(xid.parse()?), id }))
    }

    /// Returns the transaction id; `None` in a backfill.
    pub fn xid(&self) -> Option<Xid> {
        if let At::Xid(xid) = self.at { Some(xid) } else { None }
    }

    /// Returns the instant, in microseconds from 2000-01-01 UTC; `None` in a pass.
    pub fn captured_at_us(&self) -> Option<i64> {
        if let At::Instant(us) = self.at { Some(us) } else { None }
    }
}
