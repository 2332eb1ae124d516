//! Exact sums of amounts.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use super::Number;

/// The number of values of a group of four decimal digits.
const GROUP: i64 = 10_000;

/// A sum of amounts, exact whatever their number of digits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// The sums of the groups of four decimal digits, by position: 0 is the units group, -1 the first group after the
    /// decimal point. A group may be negative, and may have more than four digits: 10^14 amounts fit.
    groups: BTreeMap<i32, i64>,
}

impl Sum {
    /// Adds an amount.
    pub fn add(&mut self, number: Number<'_>) {
        for (place, value) in number.places() {
            *self.groups.entry(place).or_default() += value;
        }
    }

    /// Adds another sum.
    pub fn add_sum(&mut self, other: &Self) {
        for (place, value) in &other.groups {
            *self.groups.entry(*place).or_default() += value;
        }
    }

    /// Returns the groups with four digits each, from the lowest position on, and what is carried beyond the highest:
    /// 0, or -1 if the sum is negative.
    fn carried(&self, sign: i64) -> (Vec<(i32, i64)>, i64) {
        let mut carried = Vec::new();
        let (Some((&lowest, _)), Some((&highest, _))) =
            (self.groups.first_key_value(), self.groups.last_key_value())
        else {
            return (carried, 0);
        };
        let (mut place, mut carry) = (lowest, 0);
        while place <= highest || !matches!(carry, 0 | -1) {
            let value = sign * self.groups.get(&place).copied().unwrap_or(0) + carry;
            carried.push((place, value.rem_euclid(GROUP)));
            carry = value.div_euclid(GROUP);
            place += 1;
        }
        (carried, carry)
    }
}

impl fmt::Display for Sum {
    /// Writes the sum as a JSON number: without an exponent, and without trailing zeros of the fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut groups, carry) = self.carried(1);
        let is_negative = carry < 0;
        if is_negative {
            (groups, _) = self.carried(-1);
        }
        let mut whole = String::new();
        for (_, group) in groups.iter().rev().filter(|(place, _)| *place >= 0) {
            write!(whole, "{group:04}")?;
        }
        // The zeros between the units and the highest stored group of a fraction, and between whole and units.
        let lowest = groups.first().map_or(0, |(place, _)| *place);
        whole.extend(std::iter::repeat_n("0000", usize::try_from(lowest).unwrap_or(0)));
        let mut fraction = String::new();
        let highest = groups.last().map_or(0, |(place, _)| *place);
        fraction.extend(std::iter::repeat_n("0000", usize::try_from(-1 - highest).unwrap_or(0)));
        for (_, group) in groups.iter().rev().filter(|(place, _)| *place < 0) {
            write!(fraction, "{group:04}")?;
        }
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        let sign = if is_negative { "-" } else { "" };
        let whole = if whole.is_empty() { "0" } else { whole };
        let point = if fraction.is_empty() { "" } else { "." };
        write!(f, "{sign}{whole}{point}{fraction}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The binary form of an amount of groups of four digits, the first at this position.
    fn binary(negative: bool, first: i16, groups: &[u16]) -> Vec<u8> {
        let sign = if negative { 0x4000 } else { 0 };
        let count = u16::try_from(groups.len()).unwrap();
        let words = [count, first.cast_unsigned(), sign, 0];
        words.into_iter().chain(groups.iter().copied()).flat_map(u16::to_be_bytes).collect()
    }

    fn sum(amounts: &[(bool, i16, &[u16])]) -> String {
        let mut sum = Sum::default();
        for (negative, first, groups) in amounts {
            sum.add(Number::read(&binary(*negative, *first, groups)).unwrap());
        }
        sum.to_string()
    }

    #[test]
    fn sums_are_exact() {
        for (amounts, expected) in [
            (&[][..], "0"),
            (&[(false, 0, &[1][..]), (true, 0, &[1])], "0"),
            (&[(false, 0, &[9999]), (false, 0, &[1])], "10000"),
            (&[(true, 0, &[9999]), (true, 0, &[1])], "-10000"),
            (&[(false, 1, &[1]), (true, -1, &[1])], "9999.9999"),
            (&[(true, 1, &[1]), (false, -1, &[1])], "-9999.9999"),
            (&[(false, -1, &[5000]), (false, -1, &[5000])], "1"),
            (&[(false, 3, &[12])], "12000000000000"),
            (&[(false, -3, &[12])], "0.000000000012"),
            (&[(true, -3, &[1200])], "-0.0000000012"),
            (&[(true, 2, &[1]), (true, 2, &[9999])], "-1000000000000"),
            (&[(false, 30, &[1]), (false, -2, &[1])], &format!("1{}.00000001", "0".repeat(120))),
        ] {
            assert_eq!(sum(amounts), expected, "{amounts:?}");
        }
    }

    #[test]
    fn sums_of_sums_are_exact() {
        let (mut one, mut other) = (Sum::default(), Sum::default());
        one.add(Number::read(&binary(false, 0, &[7, 5000])).unwrap());
        other.add(Number::read(&binary(true, 0, &[8])).unwrap());
        one.add_sum(&other);
        assert_eq!(one.to_string(), "-0.5");
    }
}
