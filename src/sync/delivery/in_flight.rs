//! The window of a pass: the batches in flight, and how far the cursor may move.

use std::collections::VecDeque;

use crate::journal::{CursorAdvance, PendingWrite};
use crate::watermark::Cursor;

/// The batches after the cursor, in flight or processed, in the order of the pass. These are the roots; parts count for
/// them.
#[derive(Default)]
pub(super) struct InFlight {
    /// The cursor of the lane.
    pub(super) cursor: Option<Cursor>,
    /// The number of the first root.
    first: usize,
    /// For each root: where it ends, and the number of its unprocessed parts.
    roots: VecDeque<(Cursor, usize)>,
    /// All rows are read, so no root is added.
    is_all_read: bool,
    /// The submitted write that closes the pass.
    pub(super) closing: Option<PendingWrite>,
}

/// The most roots in the window. One batch may take long while later ones are sent; when the window is full, reading
/// waits for it. A later worker has to examine all batches beyond the cursor.
const BATCHES_MAX: usize = 256;

impl InFlight {
    /// The window of a lane with this cursor.
    pub(super) fn at(cursor: Option<Cursor>) -> Self {
        Self { cursor, ..Self::default() }
    }

    pub(super) fn push(&mut self, last: Cursor, parts: usize) -> usize {
        self.roots.push_back((last, parts));
        self.first + self.roots.len() - 1
    }

    pub(super) fn is_full(&self) -> bool {
        self.roots.len() >= BATCHES_MAX
    }

    /// Notes that all rows are read.
    pub(super) fn end(&mut self) {
        self.is_all_read = true;
    }

    /// Whether all rows are read and processed.
    pub(super) fn is_through(&self) -> bool {
        self.is_all_read && self.roots.is_empty()
    }

    pub(super) fn add_part(&mut self, root: usize) {
        self.roots[root - self.first].1 += 1;
    }

    /// Returns how far the cursor moves when one part of this root is processed: over all processed roots at the front.
    pub(super) fn advance_after(&self, root: usize) -> Option<CursorAdvance> {
        let is_done = |(index, (_, parts)): &(usize, &(Cursor, usize))| {
            parts - usize::from(self.first + index == root) == 0
        };
        let (_, (last, _)) = self.roots.iter().enumerate().take_while(is_done).last()?;
        Some(CursorAdvance { before: self.cursor.clone(), last: last.clone() })
    }

    /// Notes that a part is processed. Call it after the write was submitted to the journal.
    pub(super) fn part_done(&mut self, root: usize) {
        self.roots[root - self.first].1 -= 1;
        while self.roots.front().is_some_and(|(_, parts)| *parts == 0) {
            self.cursor = self.roots.pop_front().map(|(last, _)| last);
            self.first += 1;
        }
    }
}
