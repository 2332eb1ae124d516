//! Tables for alignment: instants, zones and numbers.

mod zone;

use super::clock::POSTGRES_EPOCH_US;
use super::*;
use chrono::{Datelike, NaiveDateTime, Offset, TimeZone, Utc};
use chrono_tz::Tz;
use proptest::prelude::*;

/// Returns a zone with the bundled rules.
fn zone(name: &str) -> Result<Zone, UnknownZone> {
    Zones::bundled().get(name)
}

fn micros(instant: &str) -> i64 {
    DateTime::parse_from_rfc3339(instant).unwrap().timestamp_micros() - POSTGRES_EPOCH_US
}

fn wall_clock(us: i64, zone: &Zone) -> Result<NaiveDateTime, Invalid> {
    Clock::of(zone).at(us)
}

fn aligned(instant: &str, zone_name: &str) -> String {
    let mut out = Vec::new();
    write_datetime(&mut out, wall_clock(micros(instant), &zone(zone_name).unwrap()).unwrap());
    String::from_utf8(out).unwrap()
}

#[test]
fn promise_3_no_time_is_wrong() {
    for (instant, zone, expected) in [
        ("2024-03-10T06:59:59Z", "America/New_York", "2024-03-10 01:59:59"),
        ("2024-03-10T07:00:00Z", "America/New_York", "2024-03-10 03:00:00"),
        // The repeated hour: both instants have the same wall-clock time.
        ("2024-11-03T05:30:00Z", "America/New_York", "2024-11-03 01:30:00"),
        ("2024-11-03T06:30:00Z", "America/New_York", "2024-11-03 01:30:00"),
        // Lord Howe Island moves its clocks by half an hour.
        ("2024-04-06T14:59:59Z", "Australia/Lord_Howe", "2024-04-07 01:59:59"),
        ("2024-04-06T15:00:00Z", "Australia/Lord_Howe", "2024-04-07 01:30:00"),
        ("2024-01-15T12:00:00Z", "Asia/Kathmandu", "2024-01-15 17:45:00"),
        ("2024-01-15T12:00:00Z", "Europe/Dublin", "2024-01-15 12:00:00"),
        ("2024-07-15T12:00:00Z", "Europe/Dublin", "2024-07-15 13:00:00"),
        // Morocco goes back an hour for Ramadan.
        ("2024-03-20T12:00:00Z", "Africa/Casablanca", "2024-03-20 12:00:00"),
        ("2024-05-20T12:00:00Z", "Africa/Casablanca", "2024-05-20 13:00:00"),
        // Samoa skipped 30 December 2011.
        ("2011-12-30T09:59:59Z", "Pacific/Apia", "2011-12-29 23:59:59"),
        ("2011-12-30T10:00:00Z", "Pacific/Apia", "2011-12-31 00:00:00"),
        // Local mean time, then Bern's, to the second.
        ("1850-01-01T00:00:00Z", "Europe/Zurich", "1850-01-01 00:34:08"),
        ("1880-01-01T00:00:00Z", "Europe/Zurich", "1880-01-01 00:29:46"),
        ("2024-02-29T23:59:59Z", "UTC", "2024-02-29 23:59:59"),
    ] {
        assert_eq!(aligned(instant, zone), expected, "{instant} in {zone}");
    }
}

#[test]
fn seconds_are_truncated_downwards() {
    assert_eq!(aligned("2024-01-01T00:00:00.999999Z", "UTC"), "2024-01-01 00:00:00");
    assert_eq!(aligned("1969-12-31T23:59:58.000001Z", "UTC"), "1969-12-31 23:59:58");
    assert_eq!(aligned("1969-12-31T23:59:58.999999Z", "UTC"), "1969-12-31 23:59:58");
    assert_eq!(aligned("1999-12-31T23:59:59.999999Z", "UTC"), "1999-12-31 23:59:59");
}

#[test]
fn times_that_cannot_be_sent_are_invalid() {
    for us in [i64::MAX, i64::MIN, i64::MAX - 1, micros("9999-12-31T23:59:59Z") + 1_000_000] {
        assert!(wall_clock(us, &Zone::utc()).is_err(), "{us}");
    }
    // The local year decides.
    assert!(wall_clock(micros("9999-12-31T23:30:00Z"), &zone("Europe/Zurich").unwrap()).is_err());
    assert_eq!(aligned("0001-01-01T00:00:00Z", "UTC"), "0001-01-01 00:00:00");
}

#[test]
fn an_unknown_zone_names_close_ones() {
    assert!(zone("Europe/Zürich").unwrap_err().to_string().contains("Europe/Zurich"));
    assert!(zone("new york").unwrap_err().to_string().contains("America/New_York"));
    assert!(zone("qqqqqqqqqqq").unwrap_err().to_string().contains("look like"));
    assert!(zone("europe/zurich").is_err(), "names are case-sensitive");
}

/// Returns what PostgreSQL sends for a decimal literal without an exponent.
fn numeric(text: &str) -> Vec<u8> {
    let (sign, digits) = text.strip_prefix('-').map_or((0u16, text), |rest| (0x4000, rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let scale = u16::try_from(fraction.len()).unwrap();
    let padded_whole = format!("{}{whole}", "0".repeat((4 - whole.len() % 4) % 4));
    let padded = format!("{padded_whole}{fraction}{}", "0".repeat((4 - fraction.len() % 4) % 4));
    let mut groups: Vec<u16> =
        padded.as_bytes().chunks(4).map(|g| std::str::from_utf8(g).unwrap().parse().unwrap()).collect();
    let mut weight = i16::try_from(padded_whole.len() / 4).unwrap() - 1;
    while groups.first() == Some(&0) {
        groups.remove(0);
        weight -= 1;
    }
    while groups.last() == Some(&0) {
        groups.pop();
    }
    if groups.is_empty() {
        weight = 0;
    }
    let header = [u16::try_from(groups.len()).unwrap(), weight.cast_unsigned(), sign, scale];
    header.into_iter().chain(groups).flat_map(u16::to_be_bytes).collect()
}

fn written(text: &str) -> String {
    let mut out = Vec::new();
    Number::read(&numeric(text)).unwrap().write(&mut out);
    String::from_utf8(out).unwrap()
}

/// Returns the digits of all positions from the first to the last, or to the units, with the decimal point after the
/// units.
fn written_plainly(first: i16, groups: &[u16]) -> String {
    let first = i32::from(first);
    let last = first - i32::try_from(groups.len()).unwrap() + 1;
    let digits = |place: i32| {
        let group = usize::try_from(first - place).ok().and_then(|index| groups.get(index));
        format!("{:04}", group.copied().unwrap_or(0))
    };
    let whole: String = (0..=first.max(0)).rev().map(digits).collect();
    let fraction: String = (last.min(0)..0).rev().map(digits).collect();
    let text = format!("{whole}.{fraction}").trim_matches('0').trim_end_matches('.').to_owned();
    // At least one digit of the first written group is left.
    if text.is_empty() || text.starts_with('.') { format!("0{text}") } else { text }
}

#[test]
fn promise_2_no_amount_is_altered() {
    for (text, expected) in [
        ("0", "0"),
        ("0.000", "0"),
        ("10.5", "10.5"),
        ("10.500", "10.5"),
        ("20.00", "20"),
        ("-20.10", "-20.1"),
        ("100000", "100000"),
        ("10000000000000000", "10000000000000000"),
        ("0.000000000000000001", "0.000000000000000001"),
        ("-0.000000000000000001", "-0.000000000000000001"),
        ("12345678901234567890.123456789012345678", "12345678901234567890.123456789012345678"),
        ("99999999999999999999999999999999999999", "99999999999999999999999999999999999999"),
        ("9007199254740993", "9007199254740993"),
        ("1.00001", "1.00001"),
        ("10000.00010000", "10000.0001"),
    ] {
        assert_eq!(written(text), expected);
    }
}

#[test]
fn numbers_that_json_does_not_have_are_invalid() {
    for sign in [0xC000u16, 0xD000, 0xF000, 0x1234] {
        let bytes: Vec<u8> = [0, 0, sign, 0].into_iter().flat_map(u16::to_be_bytes).collect();
        assert!(Number::read(&bytes).is_err());
    }
    for malformed in
        [&[][..], &[0, 1, 0, 0, 0, 0, 0, 0], &[0, 0, 0, 0, 0, 0, 0, 0, 9], &[0, 1, 0, 0, 0, 0, 0, 0, 39, 16]]
    {
        assert!(Number::read(malformed).is_err(), "{malformed:?}");
    }
}

proptest! {
    #[test]
    fn any_decimal_keeps_its_digits(negative: bool, whole in "0|[1-9][0-9]{0,40}", fraction in "[0-9]{0,40}") {
        let text = format!("{}{whole}.{fraction}", if negative { "-" } else { "" });
        let trimmed = text.trim_end_matches('0').trim_end_matches('.');
        let is_zero = text.chars().all(|c| matches!(c, '0' | '.' | '-'));
        prop_assume!(!is_zero, "PostgreSQL has no negative zero");
        prop_assert_eq!(written(text.trim_end_matches('.')), trimmed);
    }

    #[test]
    fn any_groups_are_written_in_their_places(
        weight in -6i16..6,
        groups in prop::collection::vec(prop_oneof![Just(0u16), 0u16..10_000], 0..8),
        scale: u16,
    ) {
        let header = [u16::try_from(groups.len()).unwrap(), weight.cast_unsigned(), 0, scale];
        let bytes: Vec<u8> = header.into_iter().chain(groups.clone()).flat_map(u16::to_be_bytes).collect();
        let mut out = Vec::new();
        Number::read(&bytes).unwrap().write(&mut out);
        // Zero groups before the first group that is not zero: PostgreSQL does not send such groups.
        let written = String::from_utf8(out).unwrap();
        prop_assert!(written.starts_with(|first: char| first.is_ascii_digit()), "{}", written);
        let trimmed = written.trim_start_matches('0');
        let has_no_whole_part = trimmed.is_empty() || trimmed.starts_with('.');
        let trimmed = if has_no_whole_part { format!("0{trimmed}") } else { trimmed.to_owned() };
        prop_assert_eq!(trimmed, written_plainly(weight, &groups));
    }

    #[test]
    fn a_double_changes_what_it_prints_differently(
        negative: bool,
        // Of numbers with 16 digits, doubles represent those below 2^53.
        whole in "0|9[0-9]{15}|[1-9][0-9]{0,24}|[1-9][0-9]{0,9}0{0,30}",
        fraction in "|9[0-9]{14}[1-9]|0{0,6}[0-9]{0,12}[1-9]|0{300}[1-9]|0{320}[0-9]{0,20}[1-9]",
    ) {
        let sign = if negative { "-" } else { "" };
        let point = if fraction.is_empty() { "" } else { "." };
        let number = format!("{sign}{whole}{point}{fraction}");
        let printed = number.parse::<f64>().unwrap().to_string();
        prop_assert_eq!(exceeds_a_double(number.as_bytes()), printed != number, "{} {}", number, printed);
    }

    #[test]
    fn a_double_as_it_is_printed_survives(
        double in any::<f64>(),
        large in -1e18f64..1e18,
        small in -1e3f64..1e3,
        places in 0usize..20,
    ) {
        for number in [double.to_string(), large.to_string(), format!("{small:.places$}")] {
            let is_whole = !number.contains('.');
            let number = if is_whole { &number } else { number.trim_end_matches('0').trim_end_matches('.') };
            let changes = number.parse::<f64>().unwrap().to_string() != number;
            prop_assert_eq!(exceeds_a_double(number.as_bytes()), changes, "{}", number);
        }
    }

    #[test]
    fn any_instant_is_what_another_library_says(seconds in 0i64..1_735_689_600, zone_index in 0usize..590) {
        let reference = chrono_tz::TZ_VARIANTS[zone_index % chrono_tz::TZ_VARIANTS.len()];
        prop_assume!(is_unchanged(reference, seconds));
        let zone = zone(reference.name()).unwrap();
        prop_assert_eq!(wall_clock(postgres_us(seconds), &zone), Ok(plain(seconds, reference)));
    }

    /// The result does not depend on the cached period.
    #[test]
    fn a_clock_that_was_asked_before_says_the_same(
        since in -4_000_000_000i64..5_000_000_000,
        steps in prop::collection::vec(prop_oneof![-90_000i64..90_000, -10i64..10], 1..50),
        zone_index in 0usize..590,
    ) {
        let reference = chrono_tz::TZ_VARIANTS[zone_index % chrono_tz::TZ_VARIANTS.len()];
        let zone = zone(reference.name()).unwrap();
        let mut clock = Clock::of(&zone);
        for around in changes(since..since + 400 * DAY_S, reference).into_iter().chain([since]) {
            let mut seconds = around;
            for step in &steps {
                seconds += step;
                let us = postgres_us(seconds);
                prop_assert_eq!(clock.at(us), wall_clock(us, &zone), "{} {}", reference, seconds);
            }
        }
    }

    #[test]
    fn any_time_is_written_as_chrono_does(seconds in -62_135_596_800i64..253_402_300_800) {
        let local = DateTime::from_timestamp(seconds, 0).unwrap().naive_utc();
        let mut out = Vec::new();
        write_datetime(&mut out, local);
        prop_assert_eq!(String::from_utf8(out).unwrap(), local.format("%Y-%m-%d %H:%M:%S").to_string());
    }

    #[test]
    fn any_text_is_refused_or_what_json_has(text in "[ -~]{0,20}|\\PC{0,20}|(?s:.{0,4})|[a\"\\\\\u{7f}\u{85} ]{0,4}") {
        let refused = text.trim().is_empty() || text.chars().any(char::is_control);
        let read = Text::read("text", Some(&text));
        prop_assert_eq!(read.is_err(), refused);
        if let Ok(read) = read {
            let mut out = Vec::new();
            read.write(&mut out);
            prop_assert_eq!(out, serde_json::to_vec(&text).unwrap());
        }
    }
}

const DAY_S: i64 = 86_400;

fn postgres_us(unix_s: i64) -> i64 {
    unix_s * 1_000_000 - POSTGRES_EPOCH_US
}

fn plain(unix_s: i64, zone: Tz) -> NaiveDateTime {
    Utc.timestamp_opt(unix_s, 0).unwrap().with_timezone(&zone).naive_local()
}

fn offset_s(unix_s: i64, zone: Tz) -> i32 {
    Utc.timestamp_opt(unix_s, 0).unwrap().with_timezone(&zone).offset().fix().local_minus_utc()
}

/// Zones for which the rules of `chrono-tz`, version 2025b, differ from the bundled rules, with the years between 1970
/// and 2024 in which they differ.
const CORRECTED: [(&str, std::ops::RangeInclusive<i32>); 9] = [
    ("America/Bogota", 1992..=1992),
    ("America/Ensenada", 1970..=1975),
    ("America/Santa_Isabel", 1970..=1975),
    ("America/Tijuana", 1970..=1975),
    ("Mexico/BajaNorte", 1970..=1975),
    ("Asia/Tehran", 1979..=1979),
    ("Iran", 1979..=1979),
    ("Europe/Chisinau", 2022..=2024),
    ("Europe/Tiraspol", 2022..=2024),
];

/// Returns whether the rules for 1970 to 2024 are those of `chrono-tz`.
fn is_unchanged(zone: Tz, unix_s: i64) -> bool {
    let year = DateTime::from_timestamp(unix_s, 0).unwrap().year();
    let corrected = CORRECTED.iter().find(|(name, _)| *name == zone.name());
    (1970..2025).contains(&year) && corrected.is_none_or(|(_, years)| !years.contains(&year))
}

/// Returns the first seconds of new offsets, found in steps of five days.
fn changes(within: std::ops::Range<i64>, zone: Tz) -> Vec<i64> {
    let mut found = Vec::new();
    let mut offset = offset_s(within.start, zone);
    for step in within.step_by(5 * 86_400) {
        if offset_s(step, zone) == offset {
            continue;
        }
        let (mut old, mut new) = (step - 5 * DAY_S, step);
        while new - old > 1 {
            let middle = i64::midpoint(old, new);
            if offset_s(middle, zone) == offset { old = middle } else { new = middle }
        }
        found.push(new);
        offset = offset_s(step, zone);
    }
    found
}

/// [`Offsets::of_chrono_tz`] samples every two days.
#[test]
fn no_clock_was_changed_twice_within_two_days() {
    for zone in chrono_tz::TZ_VARIANTS {
        let changes = changes(-2_000_000_000..2_300_000_000, zone);
        for (one, next) in changes.iter().zip(changes.iter().skip(1)) {
            assert!(next - one > 2 * DAY_S, "{zone}: {one} and {next}");
        }
    }
}

#[test]
fn blank_and_control_characters_are_invalid() {
    for text in [None, Some(""), Some("  "), Some("a\u{0}"), Some("a\nb"), Some("\u{7f}"), Some("\u{85}x")] {
        assert!(Text::read("currency", text).is_err(), "{text:?}");
    }
    assert!(Text::read("currency", Some("Ünïcode BTC")).is_ok());
}

#[test]
fn a_date_begins_when_its_first_instant_is_in_the_zone() {
    for (text, zone_name, expected) in [
        ("2024-01-31", "UTC", "2024-01-31T00:00:00Z"),
        ("2024-01-31", "Europe/Zurich", "2024-01-30T23:00:00Z"),
        ("2024-01-31T12:00:00+01:00", "Asia/Tokyo", "2024-01-31T11:00:00Z"),
        // Midnight occurred twice: the first one.
        ("2024-11-03", "America/Havana", "2024-11-03T04:00:00Z"),
        // Midnight was skipped, and a whole day.
        ("2018-11-04", "America/Sao_Paulo", "2018-11-04T03:00:00Z"),
        ("2011-12-30", "Pacific/Apia", "2011-12-30T10:00:00Z"),
    ] {
        let expected = DateTime::parse_from_rfc3339(expected).unwrap().to_utc();
        assert_eq!(instant(text, &zone(zone_name).unwrap()), Ok(expected), "{text} {zone_name}");
    }
    for text in ["", "yesterday", "2024-13-01", "2024-01-31 12:00", "2024-01-31T12:00:00"] {
        assert!(instant(text, &Zone::utc()).is_err(), "{text}");
    }
}

#[test]
fn amounts_that_a_double_would_change_are_known() {
    for (number, changes) in [
        ("0", false),
        ("0.1", false),
        ("123456789012345", false),
        ("0.000000000000000001", false),
        ("9007199254740992", false),
        ("9007199254740993", true),
        ("-9007199254740993", true),
        ("12345678901234567890", true),
        ("0.1234567890123456789", true),
        ("100000000000000000000000", false),
        ("0.30000000000000004", false),
        ("0.30000000000000001", true),
    ] {
        assert_eq!(exceeds_a_double(number.as_bytes()), changes, "{number}");
    }
}

/// At any instant: a second that was shown is not shown again from `repeats_until` on, and the result is later than
/// the end of the second by at most the time by which the clock is put back.
#[test]
fn what_was_shown_is_not_shown_again_from_that_instant_on() {
    for (zone, change) in [
        ("Europe/Zurich", "2024-10-27T01:00:00Z"),
        ("Australia/Lord_Howe", "2024-04-06T15:00:00Z"),
        ("America/Sao_Paulo", "2018-02-18T02:00:00Z"),
        ("Europe/Zurich", "2024-03-31T01:00:00Z"),
        ("UTC", "2024-10-27T01:00:00Z"),
    ] {
        let clock = Clock::of(&Zones::bundled().get(zone).unwrap());
        let mut shown = Clock::of(&Zones::bundled().get(zone).unwrap());
        let change = micros(change);
        let minutes: Vec<i64> = (-300..300).map(|minute| change + minute * 60_000_000 + 250_000).collect();
        for (place, &last) in minutes.iter().enumerate() {
            for first in [last, minutes[place.saturating_sub(45)], minutes[0]] {
                let until = clock.repeats_until(first, last);
                assert!(
                    until > last && until <= last + 2 * 3_600_000_000 + 1_000_000,
                    "{zone} {last} {until}"
                );
                let seen: Vec<_> = minutes
                    .iter()
                    .filter(|at| (first..=last).contains(*at))
                    .map(|at| shown.at(*at).unwrap())
                    .collect();
                let again = minutes
                    .iter()
                    .filter(|at| **at >= until)
                    .find(|at| seen.contains(&shown.at(**at).unwrap()));
                assert_eq!(again, None, "{zone}: from {first} to {last}, until {until}");
            }
        }
        // Far from any change, the result is the end of the second.
        let far = micros("2024-07-01T12:00:00Z");
        assert_eq!(clock.repeats_until(far - 5_000_000, far + 999_999), far + 1_000_000);
    }
}
