//! Alignment: converts the ledger's instants and numerics to the API's wall-clock times and JSON numbers.
//!
//! All functions are pure, except [`Zones`], which reads zone files. Nothing here rounds, and no amount is converted
//! to a float.

mod clock;
mod currency_kind;
mod names;
mod number;
mod sum;
mod text;
mod zone;
mod zones;

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, Utc};

pub use clock::{Clock, POSTGRES_EPOCH_US, write_datetime};
pub use currency_kind::CurrencyKind;
pub use names::{NameMap, Names};
pub use number::{Number, exceeds_a_double};
pub use sum::Sum;
pub use text::Text;
pub use zone::{BadZoneFile, Change, Offsets, Zone};
pub use zones::{BadFolder, UnknownZone, Zones, zone_caution};

/// No change of clocks skips more than a day (Samoa, 30 December 2011). In minutes.
const MINUTES_LEFT_OUT_MAX: i64 = 25 * 60;

/// The error for a row that cannot be sent. The reason is for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// Parses an instant as people write it: an RFC 3339 time, or a date, which means the first instant of that day in
/// `zone`.
pub fn instant(text: &str, zone: &Zone) -> Result<DateTime<Utc>, Invalid> {
    if let Ok(instant) = DateTime::parse_from_rfc3339(text) {
        return Ok(instant.to_utc());
    }
    // The date must be written in full, because chrono also accepts shortened dates, so that a typo could become the
    // first day of a month.
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().filter(|date| date.to_string() == text);
    let date = date.ok_or_else(|| {
        let seconds = if text.matches(':').count() == 1 { ":00" } else { "" };
        let in_utc = format!("{}{seconds}Z", text.replacen(' ', "T", 1));
        if DateTime::parse_from_rfc3339(&in_utc).is_ok() {
            let reason =
                format!("`{text}` has no offset from UTC; hint: {in_utc}, or an offset such as +01:00");
            return Invalid(reason);
        }
        Invalid(format!("`{text}` is neither a date like 2024-01-31 nor a time like 2024-01-31T12:00:00Z"))
    })?;
    // Where clocks go forward at midnight the day begins later, and once a whole day was skipped.
    let midnight = date.and_time(NaiveTime::MIN);
    (0..=MINUTES_LEFT_OUT_MAX)
        .find_map(|minute| zone.earliest((midnight + TimeDelta::minutes(minute)).and_utc().timestamp()))
        .and_then(|first| DateTime::from_timestamp(first, 0))
        .ok_or_else(|| Invalid(format!("`{text}` is out of range")))
}

/// Parses the time of a record as people know it: a local time of `zone`, as Elven shows it, or an RFC 3339 time.
/// Returns the instants in Unix seconds: two for a local time that repeats, none for one that clocks skip.
pub fn instants(text: &str, zone: &Zone) -> Result<Vec<i64>, Invalid> {
    if let Ok(instant) = DateTime::parse_from_rfc3339(text) {
        return Ok(vec![instant.timestamp()]);
    }
    let local = NaiveDateTime::parse_from_str(&text.replacen('T', " ", 1), "%Y-%m-%d %H:%M:%S");
    let local = local.map_err(|_| {
        Invalid(format!(
            "`{text}` is neither a local time like 2024-01-31 12:00:00 nor an instant like 2024-01-31T12:00:00Z"
        ))
    })?;
    Ok(zone.instants(local.and_utc().timestamp()).collect())
}

#[cfg(test)]
mod tests;
