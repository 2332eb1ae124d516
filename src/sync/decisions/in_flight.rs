//! The window of a pass: the batches in flight, and how far the cursor may move.

use std::collections::VecDeque;

use crate::journal::CursorAdvance;
use crate::watermark::Cursor;

/// The batches after the cursor, in flight or processed, in the order of the pass. These are the roots; parts count for
/// them.
#[derive(Default)]
pub(in crate::sync) struct InFlight {
    /// The cursor of the lane.
    pub(in crate::sync) cursor: Option<Cursor>,
    /// The number of the first root.
    first: usize,
    /// For each root: where it ends, and the number of its unprocessed parts.
    roots: VecDeque<(Cursor, usize)>,
    /// All rows are read, so no root is added.
    is_all_read: bool,
}

/// The most roots in the window. One batch may take long while later ones are sent; when the window is full, reading
/// waits for it. A later worker has to examine all batches beyond the cursor.
const BATCHES_MAX: usize = 256;

impl InFlight {
    /// The window of a lane with this cursor.
    pub(in crate::sync) fn at(cursor: Option<Cursor>) -> Self {
        Self { cursor, ..Self::default() }
    }

    pub(in crate::sync) fn push(&mut self, last: Cursor, parts: usize) -> usize {
        self.roots.push_back((last, parts));
        self.first + self.roots.len() - 1
    }

    pub(in crate::sync) fn is_full(&self) -> bool {
        self.roots.len() >= BATCHES_MAX
    }

    /// Notes that all rows are read.
    pub(in crate::sync) fn end(&mut self) {
        self.is_all_read = true;
    }

    /// Whether all rows are read and processed.
    pub(in crate::sync) fn is_through(&self) -> bool {
        self.is_all_read && self.roots.is_empty()
    }

    pub(in crate::sync) fn add_part(&mut self, root: usize) {
        self.roots[root - self.first].1 += 1;
    }

    /// Returns how far the cursor moves when one part of this root is processed: over all processed roots at the front.
    pub(in crate::sync) fn advance_after(&self, root: usize) -> Option<CursorAdvance> {
        let is_done = |(index, (_, parts)): &(usize, &(Cursor, usize))| {
            parts - usize::from(self.first + index == root) == 0
        };
        let (_, (last, _)) = self.roots.iter().enumerate().take_while(is_done).last()?;
        Some(CursorAdvance { before: self.cursor.clone(), last: last.clone() })
    }

    /// Notes that a part is processed. Call it after the write was submitted to the journal.
    pub(in crate::sync) fn part_done(&mut self, root: usize) {
        self.roots[root - self.first].1 -= 1;
        while self.roots.front().is_some_and(|(_, parts)| *parts == 0) {
            self.cursor = self.roots.pop_front().map(|(last, _)| last);
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watermark::At;

    fn at(xid: u64) -> Cursor {
        Cursor { at: At::Xid(xid), id: "1".to_owned() }
    }

    #[test]
    fn the_cursor_moves_only_over_batches_that_are_done_without_a_gap() {
        let mut window = InFlight::at(None);
        let roots: Vec<usize> = (1..=3).map(|xid| window.push(at(xid), 1)).collect();
        assert!(window.advance_after(roots[1]).is_none(), "the first one is not done");
        window.part_done(roots[1]);
        let advance = window.advance_after(roots[0]).unwrap();
        assert_eq!((advance.before, advance.last), (None, at(2)));
        window.part_done(roots[0]);
        assert_eq!(window.advance_after(roots[2]).unwrap().before, Some(at(2)));
    }

    #[test]
    fn a_split_batch_is_done_with_its_last_part() {
        let mut window = InFlight::at(Some(at(1)));
        let root = window.push(at(2), 1);
        window.add_part(root);
        assert!(window.advance_after(root).is_none());
        window.part_done(root);
        assert_eq!(window.advance_after(root).unwrap().last, at(2));
        window.end();
        assert!(!window.is_through());
        window.part_done(root);
        assert!(window.is_through());
    }
}
