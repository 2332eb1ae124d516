//! Whether a list of the API was read to its end, and counts.

use std::collections::BTreeMap;

use crate::elven::{ListEntry, ListPage};

/// The most pages that are read of a list.
pub(in crate::sync) const PAGES_MAX: u32 = 300;

/// A list that is read page by page. It counts only if it is not empty, and if its distinct entries reach a total that
/// did not change meanwhile.
#[derive(Debug, Default)]
pub(in crate::sync) struct ListReading {
    /// The entry of each id.
    entries: BTreeMap<String, ListEntry>,
    total: Option<u64>,
    pages: u32,
    /// An empty list counts, too.
    may_be_empty: bool,
}

/// What follows after a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sync) enum NextPage {
    /// Read the page with this number, counted from 1.
    Read(u32),
    /// The list is whole.
    Whole,
}

impl ListReading {
    /// Returns the reading of a list that may be empty.
    pub(in crate::sync) fn of_any_length() -> Self {
        Self { may_be_empty: true, ..Self::default() }
    }

    /// Takes the next page.
    ///
    /// # Errors
    /// The list does not count; says why.
    pub(in crate::sync) fn take(&mut self, page: ListPage) -> Result<NextPage, String> {
        let ListPage { total, entries } = page;
        let first = *self.total.get_or_insert(total);
        if total != first {
            return Err(format!("the total of the list changed from {first} to {total} while it was read"));
        }
        let before = self.entries.len();
        self.entries.extend(entries.into_iter().map(|entry| (entry.id.clone(), entry)));
        self.pages += 1;
        if self.entries.is_empty() && !(self.may_be_empty && total == 0) {
            return Err("the list is empty".to_owned());
        }
        match u64::try_from(self.entries.len()).unwrap_or(u64::MAX) {
            read if read > total => {
                Err(format!("the list has more than the {total} distinct entries that its total says"))
            }
            read if read == total => Ok(NextPage::Whole),
            read if self.entries.len() == before => {
                Err(format!("the list ends after {read} of {total} distinct entries"))
            }
            read if self.pages >= PAGES_MAX => {
                Err(format!("the list has more than {PAGES_MAX} pages: {read} of {total} entries were read"))
            }
            _ => Ok(NextPage::Read(self.pages + 1)),
        }
    }

    /// How far the list was read, in words.
    pub(in crate::sync) fn progress(&self) -> String {
        match self.total {
            Some(total) => format!("{} of {total} entries were read", self.entries.len()),
            None => "no page was read".to_owned(),
        }
    }

    /// Returns the entries.
    pub(in crate::sync) fn into_entries(self) -> Vec<ListEntry> {
        self.entries.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(total: u64, ids: impl IntoIterator<Item = u32>) -> ListPage {
        let entry = |id: u32| ListEntry { id: format!("a{id}"), name: None, kind: None };
        ListPage { total, entries: ids.into_iter().map(entry).collect() }
    }

    #[test]
    fn a_list_is_whole_when_its_distinct_entries_reach_the_total() {
        let mut reading = ListReading::default();
        assert_eq!(reading.take(page(5, 0..2)), Ok(NextPage::Read(2)));
        // A short page is not the last one, and an entry that comes twice counts once.
        assert_eq!(reading.take(page(5, 1..3)), Ok(NextPage::Read(3)));
        assert_eq!(reading.progress(), "3 of 5 entries were read");
        assert_eq!(reading.take(page(5, 3..5)), Ok(NextPage::Whole));
        assert_eq!(reading.into_entries(), page(5, 0..5).entries);
    }

    #[test]
    fn a_list_that_is_empty_changes_or_does_not_reach_its_total_does_not_count() {
        for (pages, expected) in [
            (vec![page(0, [])], "is empty"),
            (vec![page(4, [])], "is empty"),
            (vec![page(4, 0..2), page(4, [])], "ends after 2 of 4 distinct entries"),
            (vec![page(4, 0..2), page(4, 0..2)], "ends after 2 of 4 distinct entries"),
            (vec![page(4, 0..2), page(5, 2..4)], "changed from 4 to 5"),
            (vec![page(1, 0..2)], "more than the 1 distinct"),
            (vec![page(0, 0..2)], "more than the 0 distinct"),
        ] {
            let mut reading = ListReading::default();
            let last = pages.into_iter().map(|page| reading.take(page)).last().unwrap();
            let why = last.expect_err(expected);
            assert!(why.contains(expected), "{why}");
        }
    }

    #[test]
    fn a_list_of_any_length_may_be_empty() {
        assert_eq!(ListReading::of_any_length().take(page(0, [])), Ok(NextPage::Whole));
        assert!(ListReading::of_any_length().take(page(4, [])).is_err());
    }

    #[test]
    fn at_most_300_pages_are_read() {
        let mut reading = ListReading::default();
        for number in 0..PAGES_MAX - 1 {
            assert_eq!(reading.take(page(1000, [number])), Ok(NextPage::Read(number + 2)));
        }
        let why = reading.take(page(1000, [PAGES_MAX])).unwrap_err();
        assert_eq!(why, "the list has more than 300 pages: 300 of 1000 entries were read");
    }
}
