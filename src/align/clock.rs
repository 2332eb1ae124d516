//! Converts instants from the microseconds of PostgreSQL to the wall clock of a zone.

use std::ops::Range;

use chrono::{DateTime, Datelike, NaiveDateTime, Timelike};

use super::{Invalid, Zone};

/// Microseconds between the Unix epoch and 2000-01-01 00:00 UTC, from which PostgreSQL counts.
pub const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// Clocks are between 12 hours behind UTC and 14 hours ahead, so they are never put back by more than this, in
/// seconds.
const PUT_BACK_MAX_S: i64 = 26 * 3600;

/// The wall clock of a zone. It caches the last period between two changes of the clock: the lookup is most of the
/// work, and the rows of a batch are often from one period.
#[derive(Debug)]
pub struct Clock {
    zone: Zone,
    /// The cached period of one offset, in Unix seconds. Empty at first.
    period: Range<i64>,
    offset_s: i64,
}

impl Clock {
    /// Returns the clock of a zone.
    pub fn of(zone: &Zone) -> Self {
        Self { zone: zone.clone(), period: 0..0, offset_s: 0 }
    }

    /// Returns the wall-clock time at an instant, truncated to the second, with the rules in force at that instant.
    ///
    /// `captured_at_us` counts microseconds from 2000-01-01 UTC, as PostgreSQL does. Before 1970 the time is also
    /// truncated downwards: a balance never gets a later time than its own.
    ///
    /// # Errors
    /// Infinite timestamps, and years outside 0001 to 9999, which the API's format cannot represent.
    pub fn at(&mut self, captured_at_us: i64) -> Result<NaiveDateTime, Invalid> {
        if captured_at_us == i64::MAX || captured_at_us == i64::MIN {
            return Err(Invalid("captured_at is infinite".to_owned()));
        }
        captured_at_us
            .checked_add(POSTGRES_EPOCH_US)
            .map(|unix_us| unix_us.div_euclid(1_000_000))
            .and_then(|unix_s| DateTime::from_timestamp(unix_s + self.offset_s(unix_s), 0))
            .map(|local| local.naive_utc())
            .filter(|local| (1..=9999).contains(&local.year()))
            .ok_or_else(|| Invalid("captured_at is outside the years 0001 to 9999".to_owned()))
    }

    /// Returns the instant after which the wall clock does not show again any second that it showed between two
    /// instants: the end of the last second, or later when clocks are put back around it. All values are in
    /// microseconds from 2000-01-01 UTC.
    pub fn repeats_until(&self, first_us: i64, last_us: i64) -> i64 {
        let second = |us: i64| us.saturating_add(POSTGRES_EPOCH_US).div_euclid(1_000_000);
        let (first, end) = (second(first_us), second(last_us) + 1);
        let mut until = end;
        let (mut before, mut offset_s) = self.zone.offsets().at(first.max(end - PUT_BACK_MAX_S));
        while before.end < end.saturating_add(PUT_BACK_MAX_S) {
            let (behind, later_s) = self.zone.offsets().at(before.end);
            let put_back_s = offset_s - later_s;
            // Extended to the end of the whole repeated hour, not only to where the last second comes again, so that
            // the result is the same for all instants near it.
            if put_back_s > 0 && end + put_back_s > before.end {
                until = until.max(before.end + put_back_s);
            }
            (before, offset_s) = (behind, later_s);
        }
        until.saturating_mul(1_000_000).saturating_sub(POSTGRES_EPOCH_US)
    }

    /// Returns the seconds by which the clock is ahead of UTC.
    fn offset_s(&mut self, unix_s: i64) -> i64 {
        if !self.period.contains(&unix_s) {
            (self.period, self.offset_s) = self.zone.offsets().at(unix_s);
        }
        self.offset_s
    }
}

/// Appends `YYYY-MM-DD HH:mm:ss`. The year must be within 0000 to 9999.
pub fn write_datetime(out: &mut Vec<u8>, local: NaiveDateTime) {
    let year = local.year().unsigned_abs();
    let [century, year] = [year / 100, year % 100].map(two_digits);
    let [month, day] = [local.month(), local.day()].map(two_digits);
    let [hour, minute, second] = [local.hour(), local.minute(), local.second()].map(two_digits);
    let text = [
        century[0], century[1], year[0], year[1], b'-', month[0], month[1], b'-', day[0], day[1], b' ',
        hour[0], hour[1], b':', minute[0], minute[1], b':', second[0], second[1],
    ];
    out.extend_from_slice(&text);
}

fn two_digits(number: u32) -> [u8; 2] {
    [number / 10, number].map(|digits| b"0123456789"[(digits % 10) as usize])
}
