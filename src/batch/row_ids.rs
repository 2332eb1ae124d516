//! Packed lists of ids: one or two bytes per id where ids are close to each other.

use crate::watermark::LedgerId;

/// Packs ids as `batch_row_ids` in the migration describes: differences of numbers, or texts.
pub fn pack_ids<'a>(ids: impl Iterator<Item = &'a LedgerId> + Clone) -> Vec<u8> {
    let numbers: Option<Vec<i64>> = ids
        .clone()
        .map(|id| match id {
            LedgerId::Number(number) => Some(*number),
            LedgerId::Text(_) => None,
        })
        .collect();
    if let Some(numbers) = numbers {
        let mut packed = vec![1];
        let mut previous: i64 = 0;
        for number in numbers {
            let difference = i128::from(number) - i128::from(previous);
            // Zigzag: small differences of either sign become small unsigned numbers.
            push_groups(&mut packed, ((difference << 1) ^ (difference >> 127)).cast_unsigned());
            previous = number;
        }
        packed
    } else {
        let mut packed = vec![2];
        for text in ids.map(ToString::to_string) {
            push_groups(&mut packed, text.len() as u128);
            packed.extend_from_slice(text.as_bytes());
        }
        packed
    }
}

/// Unpacks the result of [`pack_ids`]. `None` when the bytes are not such a list.
pub fn unpack_ids(packed: &[u8]) -> Option<Vec<LedgerId>> {
    let (&form, mut rest) = packed.split_first()?;
    let mut ids = Vec::new();
    let mut previous: i128 = 0;
    while !rest.is_empty() {
        let number = take_groups(&mut rest)?;
        match form {
            1 => {
                let difference = (number >> 1).cast_signed() ^ -(number & 1).cast_signed();
                previous = previous.checked_add(difference)?;
                ids.push(LedgerId::Number(i64::try_from(previous).ok()?));
            }
            2 => {
                let (text, behind) = rest.split_at_checked(usize::try_from(number).ok()?)?;
                ids.push(LedgerId::Text(std::str::from_utf8(text).ok()?.to_owned()));
                rest = behind;
            }
            _ => return None,
        }
    }
    Some(ids)
}

/// Removes a number in groups of 7 bits from the front.
fn take_groups(packed: &mut &[u8]) -> Option<u128> {
    let mut number: u128 = 0;
    for shift in (0..u128::BITS).step_by(7) {
        let (&byte, rest) = packed.split_first()?;
        *packed = rest;
        number |= u128::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Appends a number in groups of 7 bits, the lowest first. All groups except the last have the eighth bit set.
fn push_groups(packed: &mut Vec<u8>, mut number: u128) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            packed.push(low & 0x7f);
            return;
        }
        packed.push(low | 0x80);
    }
}
