//! Amounts: from PostgreSQL's binary `numeric` to a JSON number with exactly its digits.

use super::Invalid;

/// A `numeric` that JSON has a number for, in the bytes that came from PostgreSQL.
///
/// The binary form (PostgreSQL source, `numeric_send`): four 16-bit words (count of groups, weight of the
/// first group, sign, display scale), then groups of four decimal digits, each 0 to 9999.
#[derive(Clone, Copy, Debug)]
pub struct Number<'a> {
    negative: bool,
    /// Places of the first and the last group: 0 is that of the units, -1 the first one behind the point.
    first: i32,
    last: i32,
    groups: &'a [[u8; 2]],
}

impl<'a> Number<'a> {
    /// Reads the binary form.
    ///
    /// # Errors
    /// NaN and the infinities, which JSON has no number for; bytes that are no `numeric`.
    pub fn read(numeric: &'a [u8]) -> Result<Self, Invalid> {
        const NEGATIVE: u16 = 0x4000;
        let malformed = || Invalid("balance is not a numeric in PostgreSQL's binary form".to_owned());
        let (words, rest) = numeric.as_chunks::<2>();
        let (&[count, weight, sign, _display_scale], groups) =
            words.split_first_chunk::<4>().ok_or_else(malformed)?;
        let sign = u16::from_be_bytes(sign);
        match sign {
            0 | NEGATIVE => {}
            0xC000 => return Err(Invalid("balance is NaN".to_owned())),
            0xD000 | 0xF000 => return Err(Invalid("balance is infinite".to_owned())),
            _ => return Err(malformed()),
        }
        let is_group = |group: &[u8; 2]| u16::from_be_bytes(*group) <= 9999;
        let count = u16::from_be_bytes(count);
        if groups.len() != usize::from(count) || !rest.is_empty() || !groups.iter().all(is_group) {
            return Err(malformed());
        }
        let first = i32::from(i16::from_be_bytes(weight));
        Ok(Self { negative: sign == NEGATIVE, first, last: first - i32::from(count) + 1, groups })
    }

    /// Appends the JSON number; trailing zeros of the fraction are trimmed.
    pub fn write(self, out: &mut Vec<u8>) {
        if self.negative {
            out.push(b'-');
        }
        let whole_from = self.first.max(0);
        let first = self.digits(whole_from);
        let leading_zeros = first.iter().take(3).take_while(|digit| **digit == b'0').count();
        out.extend_from_slice(&first[leading_zeros..]);
        for place in (0..whole_from).rev() {
            out.extend_from_slice(&self.digits(place));
        }
        if self.last < 0 {
            out.push(b'.');
            for place in (self.last..0).rev() {
                out.extend_from_slice(&self.digits(place));
            }
            while out.pop_if(|last| *last == b'0').is_some() {}
            out.pop_if(|last| *last == b'.');
        }
    }

    /// The four digits at a place. Groups that are not stored are zero, in front, between and behind.
    fn digits(&self, place: i32) -> [u8; 4] {
        let index = usize::try_from(self.first - place).ok();
        let group =
            index.and_then(|index| self.groups.get(index)).map_or(0, |group| u16::from_be_bytes(*group));
        [group / 1000, group / 100, group / 10, group].map(|digits| b"0123456789"[usize::from(digits % 10)])
    }
}

/// Says whether a JSON number, as [`Number::write`] writes it, changes on the way through a double (IEEE 754
/// binary64), which is what many readers of JSON take numbers for.
pub fn exceeds_a_double(number: &[u8]) -> bool {
    // Of numbers that are neither subnormal nor infinite, as all of this length are, doubles tell those of up
    // to 15 significant digits apart.
    const DIGITS_SAFE: usize = 15;
    const LENGTH_SAFE: usize = 300;
    // Printed again a double has the fewest digits that tell it from its neighbours: never more than these.
    const DIGITS_MAX: usize = 17;
    match significant_digits(number) {
        ..=DIGITS_SAFE if number.len() <= LENGTH_SAFE => false,
        ..=DIGITS_MAX => is_changed_by_a_double(number),
        _ => true,
    }
}

/// By what it means: as a double, and printed again.
fn is_changed_by_a_double(number: &[u8]) -> bool {
    let text = std::str::from_utf8(number).unwrap_or_default();
    text.parse::<f64>().is_ok_and(|double| double.to_string() != text)
}

/// The digits from the first to the last that is not zero.
fn significant_digits(number: &[u8]) -> usize {
    let counts = |byte: &u8| matches!(byte, b'1'..=b'9');
    let (Some(first), Some(last)) = (number.iter().position(counts), number.iter().rposition(counts)) else {
        return 0;
    };
    let significant = &number[first..=last];
    significant.len() - usize::from(significant.contains(&b'.'))
}
