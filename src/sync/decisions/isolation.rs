//! What is sent next of a batch whose outcome stayed unknown in three runs.
//!
//! Each part is tried once in a run. Where one of two siblings is known, the other is split at once, since then the API
//! is not what makes it unknown. Where both stay unknown, the lane stops.

/// A batch that stayed unknown in this many runs is sent once by each later run, and split.
pub(in crate::sync) const UNKNOWN_RUNS_MAX: i32 = 3;
/// The most requests that a run sends for such a batch and its parts.
pub(in crate::sync) const REQUESTS_MAX: u32 = 24;

/// A part that stayed unknown in this run.
#[derive(Clone, Copy, Debug)]
pub(in crate::sync) struct UnknownPart {
    /// In how many earlier runs it stayed unknown.
    pub unknown_runs: i32,
    /// Its sibling was accepted or refused.
    pub is_sibling_known: bool,
    /// It cannot be split.
    pub is_single: bool,
}

/// What is done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sync) enum NextPart {
    /// Send the next part that was not sent in this run.
    Try,
    /// Split the unknown part with this index, if the API answers at all.
    Split(usize),
    /// Nothing more in this run.
    End,
}

/// Decides what is done next. `requests`: how many were sent in this run for the batch. `has_untried`: a part was not
/// sent in this run.
pub(in crate::sync) fn next_part(requests: u32, has_untried: bool, unknown: &[UnknownPart]) -> NextPart {
    if has_untried && requests < REQUESTS_MAX {
        return NextPart::Try;
    }
    let is_due = |part: &UnknownPart| {
        !part.is_single && (part.is_sibling_known || part.unknown_runs >= UNKNOWN_RUNS_MAX)
    };
    match unknown.iter().position(is_due) {
        Some(index) if requests + 2 <= REQUESTS_MAX => NextPart::Split(index),
        _ => NextPart::End,
    }
}

/// Whether a single record that stays unknown may be set aside: in the third run, or a later one.
pub(in crate::sync) fn is_unknown_for_good(unknown_runs: i32, is_single: bool) -> bool {
    is_single && unknown_runs + 1 >= UNKNOWN_RUNS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_part_is_split_only_if_its_sibling_is_known_or_it_was_unknown_thrice() {
        let part = |unknown_runs, is_sibling_known, is_single| UnknownPart {
            unknown_runs,
            is_sibling_known,
            is_single,
        };
        for (requests, has_untried, unknown, expected) in [
            (0, true, vec![], NextPart::Try),
            (1, true, vec![part(0, true, false)], NextPart::Try),
            (2, false, vec![part(0, false, false)], NextPart::End),
            (2, false, vec![part(0, true, false)], NextPart::Split(0)),
            (2, false, vec![part(0, true, true)], NextPart::End),
            (1, false, vec![part(2, false, false)], NextPart::End),
            (1, false, vec![part(3, false, false)], NextPart::Split(0)),
            (2, false, vec![part(0, false, false), part(0, true, false)], NextPart::Split(1)),
            (22, false, vec![part(0, true, false)], NextPart::Split(0)),
            (23, false, vec![part(0, true, false)], NextPart::End),
            (24, true, vec![], NextPart::End),
        ] {
            assert_eq!(
                next_part(requests, has_untried, &unknown),
                expected,
                "{requests} {has_untried} {unknown:?}"
            );
        }
    }

    #[test]
    fn a_single_record_is_unknown_for_good_in_its_third_run() {
        for (unknown_runs, is_single, expected) in
            [(0, true, false), (1, true, false), (2, true, true), (5, false, false)]
        {
            assert_eq!(is_unknown_for_good(unknown_runs, is_single), expected, "{unknown_runs} {is_single}");
        }
    }
}
