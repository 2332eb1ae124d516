//! What there is, for a person who asked for something else.

/// Up to this many names are listed in full.
const LISTED_MAX: usize = 5;

/// The most similar names that are given of many.
const SIMILAR_MAX: usize = 3;

/// The most edits between a name and a similar one.
const EDITS_MAX: usize = 3;

/// Returns the known name that is most similar to the wanted one, if one is similar enough.
pub fn most_similar<'k>(wanted: &str, known: &[&'k str]) -> Option<&'k str> {
    nearest(wanted, known).first().filter(|(distance, _)| *distance <= EDITS_MAX).map(|(_, name)| *name)
}

/// Lists the known names; of many names only the ones most similar to the wanted one. `None`: there is none.
pub fn known_names(wanted: &str, known: &[&str]) -> Option<String> {
    if known.is_empty() {
        return None;
    }
    let shown: Vec<&str> = if known.len() <= LISTED_MAX {
        known.to_vec()
    } else {
        nearest(wanted, known).into_iter().take(SIMILAR_MAX).map(|(_, name)| name).collect()
    };
    let names: Vec<String> = shown.iter().map(|name| format!("`{name}`")).collect();
    Some(match known.len() - shown.len() {
        0 => names.join(", "),
        more => {
            format!("{} and {} others", names.join(", "), super::thousands(i64::try_from(more).unwrap_or(0)))
        }
    })
}

fn nearest<'k>(wanted: &str, known: &[&'k str]) -> Vec<(usize, &'k str)> {
    let wanted = wanted.to_lowercase();
    let distance = |name: &str| strsim::damerau_levenshtein(&name.to_lowercase(), &wanted);
    let mut near: Vec<(usize, &str)> = known.iter().map(|name| (distance(name), *name)).collect();
    near.sort_unstable();
    near
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_names_are_listed_and_of_many_the_similar_ones() {
        assert_eq!(known_names("x", &[]), None);
        assert_eq!(known_names("x", &["a", "b"]).unwrap(), "`a`, `b`");
        let many = ["delta", "acme", "beta", "gamma", "epsilon", "zeta"];
        assert_eq!(known_names("acne", &many).unwrap(), "`acme`, `beta`, `gamma` and 3 others");
        assert_eq!(most_similar("ACNE", &many), Some("acme"));
        assert_eq!(most_similar("omega-centauri", &many), None);
    }
}
