//! Names that differ from a known one by what people mistake: letter case, blanks around them, one or two characters.

/// The most near names that are returned.
const NEAR_MAX: usize = 3;
/// The most edits between a name and a near one.
const EDITS_MAX: usize = 2;
/// A shorter name, in characters, is not compared by edits: most short names are near each other.
const CHARS_MIN: usize = 4;

/// Known names, prepared for a comparison with many others.
#[derive(Debug)]
pub struct KnownNames<'k>(Vec<Known<'k>>);

#[derive(Debug)]
struct Known<'k> {
    name: &'k str,
    folded: String,
    letters: u128,
}

impl<'k> KnownNames<'k> {
    /// Prepares known names.
    pub fn new(names: impl IntoIterator<Item = &'k str>) -> Self {
        let known = names.into_iter().map(|name| {
            let folded = folded(name);
            Known { name, letters: letters(&folded), folded }
        });
        Self(known.collect())
    }

    /// Returns the nearest known names: those that are equal except for letter case and blanks around them, then those
    /// one or two edits away.
    pub fn near(&self, name: &str) -> Vec<&'k str> {
        let folded = folded(name);
        let letters = letters(&folded);
        let edits_max = if folded.chars().count() >= CHARS_MIN { EDITS_MAX } else { 0 };
        let mut near: Vec<(usize, &'k str)> = Vec::new();
        for known in &self.0 {
            // An edit adds, removes or replaces at most one letter, so most names need no comparison.
            let differing = usize::try_from((known.letters ^ letters).count_ones()).unwrap_or(usize::MAX);
            if differing > 2 * edits_max {
                continue;
            }
            let edits =
                if known.folded == folded { 0 } else { strsim::damerau_levenshtein(&known.folded, &folded) };
            if edits <= edits_max {
                near.push((edits, known.name));
            }
        }
        near.sort_unstable();
        near.into_iter().map(|(_, name)| name).take(NEAR_MAX).collect()
    }
}

/// Returns whether two names are the same word in another spelling: they differ in letter case, blanks and punctuation
/// only. Numbers stay apart: `1-12` is not `11-2`.
pub fn is_same_word(one: &str, other: &str) -> bool {
    let word = |name: &str| {
        let mut word = String::new();
        let mut is_apart = false;
        for c in name.chars() {
            if !c.is_alphanumeric() {
                is_apart = true;
                continue;
            }
            if is_apart && c.is_numeric() && word.ends_with(char::is_numeric) {
                word.push(' ');
            }
            is_apart = false;
            word.extend(c.to_lowercase());
        }
        word
    };
    let one = word(one);
    !one.is_empty() && one == word(other)
}

fn folded(name: &str) -> String {
    name.trim().to_lowercase()
}

/// Returns which characters a name has, as bits. Different characters may share a bit.
fn letters(name: &str) -> u128 {
    name.chars().fold(0, |letters, c| letters | 1 << (u32::from(c) % 128))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_differ_by_case_blanks_or_two_edits() {
        let known = KnownNames::new(["BTC", "USDT", "USDC", "bank-chf", "Bank-CHF ", "wallet"]);
        for (name, expected) in [
            ("btc", &["BTC"][..]),
            (" BTC\t", &["BTC"]),
            ("BTX", &[]),
            ("XBTC", &["BTC"]),
            ("usdt", &["USDT", "USDC"]),
            ("UDST", &["USDT", "USDC"]),
            ("BANK-CHF", &["Bank-CHF ", "bank-chf"]),
            ("wallte", &["wallet"]),
            ("walletab", &["wallet"]),
            ("walletabc", &[]),
            ("", &[]),
        ] {
            assert_eq!(known.near(name), expected, "{name:?}");
        }
    }

    #[test]
    fn only_another_spelling_is_the_same_word() {
        for (one, other, is_same) in [
            ("btc", "BTC", true),
            (" A1", "a1", true),
            ("Bank CHF", "bank-chf", true),
            ("bank_chf", "bankchf", true),
            ("XYZQ", "XTZ", false),
            ("bank-chx", "bank-chf", false),
            ("acct-1-12", "acct-11-2", false),
            ("a-1-2", "a-1.2", true),
            ("--", "..", false),
        ] {
            assert_eq!(is_same_word(one, other), is_same, "{one} {other}");
        }
    }

    /// The comparison of letters leaves out no name that the distance would find.
    #[test]
    fn no_near_name_is_left_out_because_of_its_letters() {
        let name = "abcdé-1234";
        let chars: Vec<char> = name.chars().collect();
        for place in 0..chars.len() {
            for other in ['Ж', 'z', '漢'] {
                let (mut replaced, mut added, mut removed) = (chars.clone(), chars.clone(), chars.clone());
                replaced[place] = other;
                added.insert(place, other);
                removed.remove(place);
                for known in [&mut replaced, &mut added, &mut removed] {
                    known.push('q');
                    let known: String = known.iter().collect();
                    assert_eq!(KnownNames::new([&known[..]]).near(name), [&known], "{known}");
                }
            }
        }
    }
}
