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
    roots: VecDeque<Root>,
    /// All rows are read, so no root is added.
    is_all_read: bool,
}

/// A batch of the window.
struct Root {
    /// Where it ends.
    last: Cursor,
    /// The number of its unprocessed parts.
    parts: usize,
    /// Its id, once it is recorded, or the ids of the batches that it stands for.
    batch_ids: Vec<i64>,
}

/// The most roots in the window. One batch may take long while later ones are sent; when the window is full, reading
/// waits for it. A later worker has to examine all batches beyond the cursor.
const BATCHES_MAX: usize = 256;

impl InFlight {
    /// The window of a lane with this cursor.
    pub(in crate::sync) fn at(cursor: Option<Cursor>) -> Self {
        Self { cursor, ..Self::default() }
    }

    pub(in crate::sync) fn push(&mut self, last: Cursor, parts: usize, batch_ids: Vec<i64>) -> usize {
        self.roots.push_back(Root { last, parts, batch_ids });
        self.first + self.roots.len() - 1
    }

    /// Notes the id of a root that was recorded.
    pub(in crate::sync) fn recorded(&mut self, root: usize, batch_id: i64) {
        self.roots[root - self.first].batch_ids = vec![batch_id];
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
        self.roots[root - self.first].parts += 1;
    }

    /// Returns how far the cursor moves when one part of this root is processed: over all processed roots at the front.
    pub(in crate::sync) fn advance_after(&self, root: usize) -> Option<CursorAdvance> {
        self.advance(Some(root))
    }

    /// Returns how far the cursor moves over the roots that were processed before they came into the window.
    pub(in crate::sync) fn advance_over_done(&self) -> Option<CursorAdvance> {
        self.advance(None)
    }

    fn advance(&self, root: Option<usize>) -> Option<CursorAdvance> {
        let is_done = |(index, passed): &(usize, &Root)| {
            passed.parts - usize::from(root == Some(self.first + index)) == 0
        };
        let passed = || self.roots.iter().enumerate().take_while(is_done).map(|(_, passed)| passed);
        Some(CursorAdvance {
            before: self.cursor.clone(),
            last: passed().last()?.last.clone(),
            batch_ids: passed().flat_map(|passed| passed.batch_ids.clone()).collect(),
        })
    }

    /// Notes that a part is processed. Call it after the write was submitted to the journal.
    pub(in crate::sync) fn part_done(&mut self, root: usize) {
        self.roots[root - self.first].parts -= 1;
        self.pass_done();
    }

    /// Moves the cursor over the processed roots at the front.
    pub(in crate::sync) fn pass_done(&mut self) {
        while self.roots.front().is_some_and(|front| front.parts == 0) {
            self.cursor = self.roots.pop_front().map(|front| front.last);
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
        let roots: Vec<usize> = (1..=3).map(|xid| window.push(at(xid), 1, Vec::new())).collect();
        for (root, batch_id) in roots.iter().zip([7, 8, 9]) {
            window.recorded(*root, batch_id);
        }
        assert!(window.advance_after(roots[1]).is_none(), "the first one is not done");
        window.part_done(roots[1]);
        let advance = window.advance_after(roots[0]).unwrap();
        assert_eq!((advance.before, advance.last, advance.batch_ids), (None, at(2), vec![7, 8]));
        window.part_done(roots[0]);
        let advance = window.advance_after(roots[2]).unwrap();
        assert_eq!((advance.before, advance.batch_ids), (Some(at(2)), vec![9]));
    }

    #[test]
    fn recovered_batches_that_are_done_are_passed_without_an_answer() {
        let mut window = InFlight::at(None);
        let roots = [(1, 0), (2, 0), (3, 1), (4, 0)];
        for (xid, parts) in roots {
            window.push(at(xid), parts, vec![i64::try_from(xid).unwrap()]);
        }
        let advance = window.advance_over_done().unwrap();
        assert_eq!((advance.last, advance.batch_ids), (at(2), vec![1, 2]));
        window.pass_done();
        assert!(window.advance_over_done().is_none(), "the third one is not done");
        assert_eq!(window.advance_after(2).unwrap().batch_ids, [3, 4]);
    }

    #[test]
    fn a_split_batch_is_done_with_its_last_part() {
        let mut window = InFlight::at(Some(at(1)));
        let root = window.push(at(2), 1, vec![7]);
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
