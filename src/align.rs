//! Alignment: from the ledger's instants and numerics to the API's wall-clock times and JSON numbers.
//!
//! Pure functions; nothing here rounds, and no amount passes through a float.

mod clock;
mod number;
mod text;

use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;

pub use clock::{Clock, POSTGRES_EPOCH_US, write_datetime};
pub use number::{Number, exceeds_a_double};
pub use text::Text;

/// No change of clocks leaves out more than a day (Samoa, 30 December 2011).
const MINUTES_LEFT_OUT_MAX: i64 = 25 * 60;

/// A row cannot be sent as it stands; the reason is for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// No zone of the IANA database has this name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not an IANA time zone{}", hint(.similar))]
pub struct UnknownZone {
    name: String,
    similar: Vec<&'static str>,
}

fn hint(similar: &[&str]) -> String {
    if similar.is_empty() {
        "; names look like Europe/Zurich or UTC".to_owned()
    } else {
        format!("; did you mean {}?", similar.join(", "))
    }
}

/// Finds a zone by its IANA name, exactly as spelled there.
pub fn zone(name: &str) -> Result<Tz, UnknownZone> {
    name.parse().map_err(|_| {
        let wanted = name.to_lowercase();
        let last_part = wanted.rsplit('/').next().unwrap_or(&wanted).replace(' ', "_");
        let mut near: Vec<(usize, &'static str)> = chrono_tz::TZ_VARIANTS
            .iter()
            .map(|zone| {
                let zone = zone.name();
                let lower = zone.to_lowercase();
                let city = lower.rsplit('/').next().unwrap_or(&lower);
                let whole = strsim::damerau_levenshtein(&lower, &wanted);
                (whole.min(1 + strsim::damerau_levenshtein(city, &last_part)), zone)
            })
            .filter(|(distance, _)| *distance <= 3)
            .collect();
        near.sort_unstable();
        UnknownZone {
            name: name.to_owned(),
            similar: near.into_iter().take(3).map(|(_, zone)| zone).collect(),
        }
    })
}

/// Reads a point in time as people write it: an RFC 3339 time, or a date, which is the first instant of
/// that day in `zone`.
pub fn instant(text: &str, zone: Tz) -> Result<DateTime<Utc>, Invalid> {
    if let Ok(instant) = DateTime::parse_from_rfc3339(text) {
        return Ok(instant.to_utc());
    }
    // Written in full: chrono would also read the first of a month that somebody has mistyped.
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().filter(|date| date.to_string() == text);
    let date = date.ok_or_else(|| {
        Invalid(format!("`{text}` is neither a date like 2024-01-31 nor a time like 2024-01-31T12:00:00Z"))
    })?;
    // Where clocks go forward at midnight the day begins later, and a whole day was left out once.
    let midnight = date.and_time(NaiveTime::MIN);
    (0..=MINUTES_LEFT_OUT_MAX)
        .find_map(|minute| zone.from_local_datetime(&(midnight + TimeDelta::minutes(minute))).earliest())
        .map(|first| first.to_utc())
        .ok_or_else(|| Invalid(format!("`{text}` is out of range")))
}

#[cfg(test)]
#[path = "align_tests.rs"]
mod tests;
