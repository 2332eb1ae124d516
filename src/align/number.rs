//! Converts amounts from PostgreSQL's binary `numeric` to a JSON number with exactly the same digits.

use super::Invalid;

/// A `numeric` that JSON can represent, in the bytes that PostgreSQL sent.
///
/// The binary form (PostgreSQL source, `numeric_send`): four 16-bit words (count of groups, weight of the first group,
/// sign, display scale), then groups of four decimal digits, each 0 to 9999.
#[derive(Clone, Copy, Debug)]
pub struct Number<'a> {
    negative: bool,
    /// The positions of the first and the last group: 0 is the units group, -1 the first group after the decimal
    /// point.
    first: i32,
    last: i32,
    groups: &'a [[u8; 2]],
}

impl<'a> Number<'a> {
    /// Reads the binary form.
    ///
    /// # Errors
    /// NaN and the infinities, which JSON cannot represent, and bytes that are not a `numeric`.
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

    /// Returns the stored groups of four digits as numbers with the sign of the amount, each with its position.
    pub(super) fn places(&self) -> impl Iterator<Item = (i32, i64)> {
        let sign = if self.negative { -1 } else { 1 };
        let values = self.groups.iter().map(move |group| sign * i64::from(u16::from_be_bytes(*group)));
        (self.last..=self.first).rev().zip(values)
    }

    /// Returns the four digits at a position. Groups that are not stored are zero: before, between and after the
    /// stored ones.
    fn digits(&self, place: i32) -> [u8; 4] {
        let index = usize::try_from(self.first - place).ok();
        let group =
            index.and_then(|index| self.groups.get(index)).map_or(0, |group| u16::from_be_bytes(*group));
        [group / 1000, group / 100, group / 10, group].map(|digits| b"0123456789"[usize::from(digits % 10)])
    }
}

/// Returns whether a JSON number, as [`Number::write`] writes it, changes when it is read as a double (IEEE 754
/// binary64), as many JSON parsers do.
pub fn exceeds_a_double(number: &[u8]) -> bool {
    // Doubles represent numbers of up to 15 significant digits without change, unless they are subnormal or infinite,
    // which no number of this length is.
    const DIGITS_SAFE: usize = 15;
    const LENGTH_SAFE: usize = 300;
    // A printed double has the fewest digits that tell it from its neighbours: never more than these.
    const DIGITS_MAX: usize = 17;
    match significant_digits(number) {
        ..=DIGITS_SAFE if number.len() <= LENGTH_SAFE => false,
        ..=DIGITS_MAX => is_changed_by_a_double(number),
        _ => true,
    }
}

/// Returns whether parsing the number as a double and printing it changes it.
fn is_changed_by_a_double(number: &[u8]) -> bool {
    let text = std::str::from_utf8(number).unwrap_or_default();
    text.parse::<f64>().is_ok_and(|double| double.to_string() != text)
}

/// Returns the number of digits from the first to the last one that is not zero.
fn significant_digits(number: &[u8]) -> usize {
    let counts = |byte: &u8| matches!(byte, b'1'..=b'9');
    let (Some(first), Some(last)) = (number.iter().position(counts), number.iter().rposition(counts)) else {
        return 0;
    };
    let significant = &number[first..=last];
    significant.len() - usize::from(significant.contains(&b'.'))
}
