//! Lists of which the first things are named.

/// Names things, and how many more there are. `all`: their number, with those that are not named.
pub fn and_more(named: &[String], all: usize) -> String {
    let first = named.join(", ");
    match all.saturating_sub(named.len()) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_things_that_are_not_named_are_counted() {
        let named = ["a".to_owned(), "b".to_owned()];
        assert_eq!(and_more(&named, 2), "a, b");
        assert_eq!(and_more(&named, 5), "a, b and 3 more");
    }
}
