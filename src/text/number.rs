//! Numbers for people.

/// Formats a number with commas between its thousands.
pub fn thousands(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    format!("{}{}", if number < 0 { "-" } else { "" }, groups.join(","))
}

/// Formats a number with a noun in the singular or the plural, e.g. `1 row` or `1,000 rows`.
pub fn counted_noun(number: i64, one: &str, many: &str) -> String {
    format!("{} {}", thousands(number), if number == 1 { one } else { many })
}

/// Formats seconds as people enter a duration, e.g. `1h 30m`.
pub fn duration_text(seconds: i64) -> String {
    let seconds = u64::try_from(seconds).unwrap_or_default();
    let units = [("d", 86_400, u64::MAX), ("h", 3600, 24), ("m", 60, 60), ("s", 1, 60)];
    let parts = units.map(|(unit, size, of_next)| (seconds / size % of_next, unit));
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect();
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_written_as_a_duration_is_entered() {
        for (seconds, expected) in [
            (1, "1s"),
            (90, "1m 30s"),
            (3600, "1h"),
            (5400, "1h 30m"),
            (90_061, "1d 1h 1m 1s"),
            (31_622_400, "366d"),
        ] {
            assert_eq!(duration_text(seconds), expected);
        }
    }

    #[test]
    fn thousands_are_separated_by_commas() {
        for (number, expected) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (14_203, "14,203"), (-1_234_567, "-1,234,567")]
        {
            assert_eq!(thousands(number), expected);
        }
    }
}
