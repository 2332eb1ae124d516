//! Instants in the units of the ledger, of the wire format and of Rust, and ranges of instants.

use chrono::{DateTime, Datelike, Timelike, Utc};

use crate::align::POSTGRES_EPOCH_US;

/// 0001-01-01 UTC, in Unix seconds.
const FIRST_SECOND: i64 = -62_135_596_800;

/// Returns the instant that lies `us` microseconds after 2000-01-01 UTC, or the latest instant that Rust can represent
/// if that is out of range.
pub fn instant(us: i64) -> DateTime<Utc> {
    let since_1970 = us.checked_add(POSTGRES_EPOCH_US);
    since_1970.and_then(DateTime::from_timestamp_micros).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// Returns the instant that lies `unix_s` seconds after 1970, but none before the year 0001: no earlier instant is
/// sent.
pub(super) fn instant_of_second(unix_s: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(unix_s.max(FIRST_SECOND), 0).unwrap_or_default()
}

/// Returns the microseconds from 2000-01-01 UTC to an instant.
pub fn instant_us(at: DateTime<Utc>) -> i64 {
    at.timestamp_micros() - POSTGRES_EPOCH_US
}

/// Returns an instant as an SQL literal, exact to the microsecond.
pub(super) fn instant_literal(at: DateTime<Utc>) -> String {
    let (year, era) = if at.year() > 0 { (at.year(), "") } else { (1 - at.year(), " BC") };
    format!(
        "'{year:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:06}+00{era}'::timestamptz",
        at.month(),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.nanosecond() / 1000
    )
}

/// The rows of an entity from one instant up to, and not including, another one.
#[derive(Clone, Debug)]
pub struct Range {
    /// The entity.
    pub entity_id: String,
    /// The first instant.
    pub from: DateTime<Utc>,
    /// The end of the range, not included.
    pub to: DateTime<Utc>,
    /// Only these accounts; empty: all.
    pub accounts: Vec<String>,
    /// Only these currencies; empty: all.
    pub currencies: Vec<String>,
}
