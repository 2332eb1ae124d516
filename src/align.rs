//! Alignment: from the ledger's instants and numerics to the API's wall-clock times and JSON numbers.
//!
//! Pure functions; nothing here rounds, and no amount passes through a float.

mod number;

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone, Timelike, Utc};
use chrono_tz::Tz;

pub use number::{Number, exceeds_a_double};

/// Microseconds between the Unix epoch and 2000-01-01 00:00 UTC, from which PostgreSQL counts.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;
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
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").map_err(|_| {
        Invalid(format!("`{text}` is neither a date like 2024-01-31 nor a time like 2024-01-31T12:00:00Z"))
    })?;
    // Where clocks go forward at midnight the day begins later, and a whole day was left out once.
    let midnight = date.and_time(NaiveTime::MIN);
    (0..=MINUTES_LEFT_OUT_MAX)
        .find_map(|minute| zone.from_local_datetime(&(midnight + TimeDelta::minutes(minute))).earliest())
        .map(|first| first.to_utc())
        .ok_or_else(|| Invalid(format!("`{text}` is out of range")))
}

/// The wall-clock time in `zone` at an instant, truncated to the second, with the rules in force at
/// that instant.
///
/// `captured_at_us` counts microseconds from 2000-01-01 UTC, as PostgreSQL does. Truncation goes
/// downwards before 1970 too: a balance is never given a time that had not come yet.
///
/// # Errors
/// Infinite timestamps, and years outside 0001 to 9999, which the API's format cannot say.
pub fn wall_clock(captured_at_us: i64, zone: Tz) -> Result<NaiveDateTime, Invalid> {
    if captured_at_us == i64::MAX || captured_at_us == i64::MIN {
        return Err(Invalid("captured_at is infinite".to_owned()));
    }
    captured_at_us
        .checked_add(POSTGRES_EPOCH_US)
        .and_then(|unix_us| DateTime::from_timestamp(unix_us.div_euclid(1_000_000), 0))
        .map(|instant| instant.with_timezone(&zone).naive_local())
        .filter(|local| (1..=9999).contains(&local.year()))
        .ok_or_else(|| Invalid("captured_at is outside the years 0001 to 9999".to_owned()))
}

/// Appends `YYYY-MM-DD HH:mm:ss`. The year has to lie within 0000 to 9999.
pub fn write_datetime(out: &mut Vec<u8>, local: NaiveDateTime) {
    let year = local.year().unsigned_abs();
    write_two_digits(out, year / 100);
    write_two_digits(out, year % 100);
    for (separator, part) in [
        (b'-', local.month()),
        (b'-', local.day()),
        (b' ', local.hour()),
        (b':', local.minute()),
        (b':', local.second()),
    ] {
        out.push(separator);
        write_two_digits(out, part);
    }
}

fn write_two_digits(out: &mut Vec<u8>, number: u32) {
    out.extend([digit(number / 10), digit(number)]);
}

fn digit(number: u32) -> u8 {
    b"0123456789"[(number % 10) as usize]
}

/// Refuses texts that the API could not mean: empty or blank, or with a control character (C0, DEL, C1).
pub fn check_text(name: &str, text: Option<&str>) -> Result<(), Invalid> {
    match text {
        None => Err(Invalid(format!("{name} is NULL"))),
        Some(text) if text.trim().is_empty() => Err(Invalid(format!("{name} is blank"))),
        Some(text) if text.chars().any(char::is_control) => {
            Err(Invalid(format!("{name} has a control character")))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
#[path = "align_tests.rs"]
mod tests;
