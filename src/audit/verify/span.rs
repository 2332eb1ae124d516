//! The range of `captured_at` of the rows whose bodies differ, and the backfill that sends them again.

use chrono::TimeDelta;

use crate::ledger::{Row, instant};
use crate::text::quoted_option;

/// A range of `captured_at`, both ends included, in microseconds from 2000-01-01 UTC.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    first_us: i64,
    last_us: i64,
}

impl Span {
    /// The span of these rows. `None`: no row has a `captured_at`.
    pub(super) fn of(rows: &[Row]) -> Option<Self> {
        let known = rows.iter().filter_map(|row| row.captured_at_us);
        Some(Self { first_us: known.clone().min()?, last_us: known.max()? })
    }

    /// The span that includes both.
    pub(super) fn around(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        let (Some(one), Some(other)) = (one, other) else { return one.or(other) };
        let (first_us, last_us) = (one.first_us.min(other.first_us), one.last_us.max(other.last_us));
        Some(Self { first_us, last_us })
    }

    /// The command that backfills this span.
    pub(super) fn backfill(span: Option<Self>, entity_id: &str) -> String {
        let time = |us: i64, more_us: i64| {
            let at = instant(us);
            let at = at.checked_add_signed(TimeDelta::microseconds(more_us)).unwrap_or(at);
            at.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
        };
        let (from, to) = match span {
            Some(span) => (time(span.first_us, 0), time(span.last_us, 1)),
            None => ("FROM".to_owned(), "TO".to_owned()),
        };
        format!("elven-sync backfill {} --from {from} --to {to}", quoted_option("--entity", entity_id))
    }
}
