//! Instants as the ledger, the wire format and Rust have them, and ranges of them.

use chrono::{DateTime, Datelike, Timelike, Utc};

use crate::align::POSTGRES_EPOCH_US;

/// 0001-01-01 UTC, in Unix seconds.
const FIRST_SECOND: i64 = -62_135_596_800;

/// The instant so many microseconds from 2000-01-01 UTC. Beyond what can be said it is the last one that can.
pub fn instant(us: i64) -> DateTime<Utc> {
    let since_1970 = us.checked_add(POSTGRES_EPOCH_US);
    since_1970.and_then(DateTime::from_timestamp_micros).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// The instant so many seconds from 1970. Before the year 0001 it is the beginning of that: no earlier instant is sent.
pub(super) fn instant_of_second(unix_s: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(unix_s.max(FIRST_SECOND), 0).unwrap_or_default()
}

/// Microseconds from 2000-01-01 UTC to an instant.
pub fn instant_us(at: DateTime<Utc>) -> i64 {
    at.timestamp_micros() - POSTGRES_EPOCH_US
}

/// An instant as a literal, exact to the microsecond.
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

/// The rows of an entity from one instant up to, not including, another one.
#[derive(Clone, Debug)]
pub struct Range {
    /// The entity.
    pub entity_id: String,
    /// The first instant.
    pub from: DateTime<Utc>,
    /// The instant behind the last one.
    pub to: DateTime<Utc>,
    /// Only of these accounts; none named means all.
    pub accounts: Vec<String>,
    /// Only in these currencies; none named means all.
    pub currencies: Vec<String>,
}
