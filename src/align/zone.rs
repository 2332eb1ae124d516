//! A time zone: the offset from UTC that is in force at an instant.
//!
//! The offsets of a zone are listed once, when the zone is loaded. So a lookup is a binary search, two sets of rules
//! can be compared, and the rules of earlier uploads can be stored.

use std::ops::Range;
use std::sync::Arc;

use chrono::DateTime;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

/// Two days before the year 0001, in Unix seconds: with any offset, no earlier instant is sent.
const BEGIN_S: i64 = -62_135_596_800 - 2 * DAY_S;

/// 2500-01-01 UTC, in Unix seconds. From 2100 on a zone follows a yearly rule, and the calendar, including weekdays,
/// repeats exactly every 400 years. So the changes of 400 years determine those of all later years.
const END_S: i64 = 16_725_225_600;

/// 400 years of the Gregorian calendar, in seconds.
const CYCLE_S: i64 = 146_097 * DAY_S;

const DAY_S: i64 = 86_400;

/// Clocks are between 12 hours behind UTC and 14 hours ahead, so they are never put back by more than this, in
/// seconds.
const PUT_BACK_MAX_S: i64 = 26 * 3600;

/// More changes than any rule makes up to the year 2500 (two or four a year); a file with more is damaged.
const CHANGES_MAX: usize = 20_000;

/// The stored length of a fingerprint, in bytes: enough to tell the rules of one zone apart.
const FINGERPRINT_BYTES: usize = 6;

/// The layout of a zone file (RFC 9636): the length of its header, and the positions of counts in it.
const MAGIC: &[u8] = b"TZif";
const HEADER_BYTES: usize = 44;
const VERSION_AT: usize = 4;
const LEAP_SECONDS_AT: usize = 28;
const TIMES_AT: usize = 32;

/// A time zone with its rules; cheap to clone.
#[derive(Clone)]
pub struct Zone(Arc<Inner>);

struct Inner {
    name: String,
    rules: String,
    offsets: Offsets,
}

impl std::fmt::Debug for Zone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Zone").field(&self.0.name).field(&self.0.rules).finish()
    }
}

impl Zone {
    /// Returns a zone whose rules have this version and origin, e.g. `2026f bundled`.
    pub fn new(name: &str, source: &str, offsets: Offsets) -> Self {
        let rules = format!("{source} {}", offsets.fingerprint());
        Self::recorded(name, &rules, offsets)
    }

    /// Returns a zone with recorded rules; `rules` is the earlier result of [`Zone::rules`].
    pub fn recorded(name: &str, rules: &str, offsets: Offsets) -> Self {
        Self(Arc::new(Inner { name: name.to_owned(), rules: rules.to_owned(), offsets }))
    }

    /// Returns UTC, which needs no rules.
    pub fn utc() -> Self {
        Self::new("UTC", "-", Offsets { first_s: 0, changes: Vec::new() })
    }

    /// Returns the IANA name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns version, origin and fingerprint of the rules, e.g. `2026f bundled 1f0c5a77e2d1`. The fingerprint is a
    /// hash of the offsets: two zones with the same fingerprint show the same wall-clock times.
    pub fn rules(&self) -> &str {
        &self.0.rules
    }

    /// Returns the offsets from UTC.
    pub fn offsets(&self) -> &Offsets {
        &self.0.offsets
    }

    /// Returns whether `rules`, a result of [`Zone::rules`], give the same wall-clock times as this zone.
    pub fn follows(&self, rules: &str) -> bool {
        let fingerprint = |rules: &str| rules.rsplit(' ').next().map(str::to_owned);
        fingerprint(rules) == fingerprint(self.rules())
    }

    /// Returns the first instant, in Unix seconds, at which the clock shows a local time, which is given in seconds as
    /// if it were UTC. `None`: the clock skips that time.
    pub fn earliest(&self, local_s: i64) -> Option<i64> {
        self.instants(local_s).next()
    }

    /// Returns all instants, in order and in Unix seconds, at which the clock shows a local time, which is given in
    /// seconds as if it were UTC: several where clocks are put back, none where they skip the time.
    pub fn instants(&self, local_s: i64) -> impl Iterator<Item = i64> {
        let mut at = local_s - PUT_BACK_MAX_S;
        let periods = std::iter::from_fn(move || {
            let (period, offset_s) = self.0.offsets.at(at);
            let is_near = at <= local_s + PUT_BACK_MAX_S;
            at = period.end;
            is_near.then_some((period, offset_s))
        });
        periods.filter_map(move |(period, offset_s)| {
            let instant = local_s - offset_s;
            period.contains(&instant).then_some(instant)
        })
    }
}

/// The reason why a file cannot be used as the rules of a zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadZoneFile {
    /// It is not a zone file.
    #[error("it is not a time zone file")]
    Other,
    /// It counts leap seconds, unlike the API and PostgreSQL.
    #[error("it counts leap seconds, which the API and PostgreSQL do not")]
    LeapSeconds,
    /// It is damaged or of an unusable version.
    #[error("{0}")]
    Damaged(String),
}

/// A change of a zone's offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The first instant with the new offset, in Unix seconds.
    pub at_s: i64,
    /// The seconds by which the clock is ahead of UTC from then on.
    pub offset_s: i64,
}

/// The offsets of a zone from UTC, in the years 0001 to 9999.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// The offset before the first change, in seconds.
    first_s: i64,
    /// The changes up to the year 2500, in order; each changes the offset.
    changes: Vec<Change>,
}

impl Offsets {
    /// Reads a zone file in the format `TZif`, version 2 or later: version 1 does not cover the time after 2037.
    ///
    /// # Errors
    /// The file is not a zone file, is cut off, or counts leap seconds.
    pub fn read(name: &str, tzif: &[u8]) -> Result<Self, BadZoneFile> {
        let damaged = |problem: jiff::Error| BadZoneFile::Damaged(problem.to_string());
        refuse_unusable(tzif)?;
        let zone = jiff::tz::TimeZone::tzif(name, tzif).map_err(damaged)?;
        // jiff lists changes before its first instant at that instant; they are skipped.
        let first = Timestamp::from_second(Timestamp::MIN.as_second() + 1).map_err(damaged)?;
        let first_s = i64::from(zone.to_offset(first).seconds());
        let changes = zone.following(first).map(|change| Change {
            at_s: change.timestamp().as_second(),
            offset_s: i64::from(change.offset().seconds()),
        });
        Self::listed(first_s, changes).map_err(BadZoneFile::Damaged)
    }

    /// Returns the offsets after ordered changes. Changes that have no effect, or are too early or too late to matter,
    /// are dropped.
    ///
    /// # Errors
    /// The changes are out of order, or too many.
    pub fn listed(first_s: i64, changes: impl IntoIterator<Item = Change>) -> Result<Self, String> {
        let mut offsets = Self { first_s, changes: Vec::new() };
        let mut last = i64::MIN;
        for (number, change) in changes.into_iter().take_while(|change| change.at_s < END_S).enumerate() {
            // Before the year 0001 a rule may have changed the clock twice a year.
            if change.at_s <= last || number > CHANGES_MAX * 5 || offsets.changes.len() > CHANGES_MAX {
                return Err("its changes are not in order, or too many".to_owned());
            }
            last = change.at_s;
            if change.at_s < BEGIN_S {
                offsets.first_s = change.offset_s;
            } else if change.offset_s != offsets.last_s() {
                offsets.changes.push(change);
            }
        }
        Ok(offsets)
    }

    /// Returns the offsets that the program used before it recorded its rules: the offsets of `chrono-tz`, which has
    /// no changes after 2099.
    pub fn of_chrono_tz(name: &str) -> Option<Self> {
        use chrono::{Offset, TimeZone};
        let zone: chrono_tz::Tz = name.parse().ok()?;
        let offset_s = |unix_s: i64| {
            let utc = DateTime::from_timestamp(unix_s, 0)?.naive_utc();
            Some(i64::from(zone.offset_from_utc_datetime(&utc).fix().local_minus_utc()))
        };
        // No zone changed its clock before 1800, and none twice within two days.
        let (begin, end) = (-5_364_662_400, 4_133_980_800);
        let first_s = offset_s(begin)?;
        let (mut offset, mut changes) = (first_s, Vec::new());
        for day in (begin..end).step_by(2 * 86_400) {
            let next = offset_s(day)?;
            if next == offset {
                continue;
            }
            let (mut before, mut behind) = (day - 2 * DAY_S, day);
            while behind - before > 1 {
                let middle = i64::midpoint(before, behind);
                *(if offset_s(middle)? == offset { &mut before } else { &mut behind }) = middle;
            }
            changes.push(Change { at_s: behind, offset_s: next });
            offset = next;
        }
        Self::listed(first_s, changes).ok()
    }

    /// Returns the offset before the first change, in seconds.
    pub fn first_s(&self) -> i64 {
        self.first_s
    }

    /// Returns the changes up to the year 2500, in order. They repeat every 400 years after 2100.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Returns the offset at an instant, and the period around the instant in which it holds; all in seconds. The next
    /// period may have the same offset.
    pub fn at(&self, unix_s: i64) -> (Range<i64>, i64) {
        if unix_s >= END_S {
            let later = ((unix_s - END_S) / CYCLE_S + 1) * CYCLE_S;
            let (period, offset_s) = self.at(unix_s - later);
            let begin = period.start.max(END_S - CYCLE_S);
            return (begin + later..period.end + later, offset_s);
        }
        let next = self.changes.partition_point(|change| change.at_s <= unix_s);
        let end = self.changes.get(next).map_or(END_S, |change| change.at_s);
        match next.checked_sub(1).and_then(|last| self.changes.get(last)) {
            Some(change) => (change.at_s..end, change.offset_s),
            None => (i64::MIN..end, self.first_s),
        }
    }

    /// Returns the periods up to the year 2500 in which these offsets and others differ, in Unix seconds.
    pub fn differences(&self, others: &Self) -> Vec<Range<i64>> {
        let mut found: Vec<Range<i64>> = Vec::new();
        let mut at = i64::MIN;
        while at < END_S {
            let ((own, offset_s), (theirs, of_others)) = (self.at(at), others.at(at));
            let end = own.end.min(theirs.end);
            if offset_s != of_others {
                match found.last_mut().filter(|last| last.end == at) {
                    Some(last) => last.end = end,
                    None => found.push(at..end),
                }
            }
            at = end;
        }
        found
    }

    /// Returns a hash of all offsets, in hex: equal hashes mean equal wall-clock times.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.first_s.to_be_bytes());
        for change in &self.changes {
            hash.update(change.at_s.to_be_bytes());
            hash.update(change.offset_s.to_be_bytes());
        }
        hex::encode(&hash.finalize()[..FINGERPRINT_BYTES])
    }

    fn last_s(&self) -> i64 {
        self.changes.last().map_or(self.first_s, |change| change.offset_s)
    }
}

/// Refuses files that jiff reads but that must not be used: files with leap seconds, which jiff ignores, and files
/// without the rule that holds after the last listed change.
fn refuse_unusable(tzif: &[u8]) -> Result<(), BadZoneFile> {
    let damaged = |what: &str| BadZoneFile::Damaged(what.to_owned());
    let header =
        |at: usize| tzif.get(at..at.checked_add(HEADER_BYTES)?).filter(|header| header.starts_with(MAGIC));
    let count = |header: &[u8], at: usize| {
        let bytes = header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(usize::MAX, |bytes| u32::from_be_bytes(bytes) as usize)
    };
    if !tzif.starts_with(MAGIC) {
        return Err(BadZoneFile::Other);
    }
    let first = header(0).ok_or_else(|| damaged("it is cut off"))?;
    // The counts of indicators, leap seconds, times, types and letters; a time takes 4 bytes in the first part.
    let [utc, std, leap, times, types, letters] =
        [20, 24, LEAP_SECONDS_AT, TIMES_AT, 36, 40].map(|at| count(first, at));
    if leap > 0 {
        return Err(BadZoneFile::LeapSeconds);
    }
    if first[VERSION_AT] < b'2' {
        return Err(damaged("it has version 1, which does not cover the time after 2037"));
    }
    let length = [(times, 5), (types, 6), (letters, 1), (std, 1), (utc, 1)]
        .into_iter()
        .try_fold(HEADER_BYTES, |length, (count, bytes)| length.checked_add(count.checked_mul(bytes)?));
    let (second, begin) =
        length.and_then(|at| header(at).zip(Some(at))).ok_or_else(|| damaged("it is cut off"))?;
    if count(second, LEAP_SECONDS_AT) > 0 {
        return Err(BadZoneFile::LeapSeconds);
    }
    let times = tzif[begin + HEADER_BYTES..].chunks_exact(8).take(count(second, TIMES_AT));
    let times = times.filter_map(|time| time.try_into().ok()).map(i64::from_be_bytes);
    if !times.clone().zip(times.skip(1)).all(|(one, next)| one < next) {
        return Err(damaged("its changes are not in order"));
    }
    Ok(())
}
