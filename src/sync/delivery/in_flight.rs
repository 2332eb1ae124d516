//! What of a pass is on its way, and how far the cursor may go.

use std::collections::VecDeque;

use crate::journal::{CursorAdvance, PendingWrite};
use crate::watermark::Cursor;

/// What is on its way or done, in the order of the pass, from the cursor on.
#[derive(Default)]
pub(super) struct InFlight {
    /// Where the lane stands.
    pub(super) cursor: Option<Cursor>,
    /// Number of the first one that is not done.
    first: usize,
    /// For each: where it ends, and how many parts of it are not done.
    roots: VecDeque<(Cursor, usize)>,
    /// Nothing more comes.
    is_all_read: bool,
    /// That the pass is through, once that was handed in.
    pub(super) closing: Option<PendingWrite>,
}

/// One batch may take long while others go on behind it: so many of those, and then it is waited for. What is
/// done beyond the cursor has to be looked at when a later worker goes on here.
const BATCHES_MAX: usize = 256;

impl InFlight {
    /// Of a lane that stands here.
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

    /// Notes that nothing more comes.
    pub(super) fn end(&mut self) {
        self.is_all_read = true;
    }

    /// All is read, and all of it done.
    pub(super) fn is_through(&self) -> bool {
        self.is_all_read && self.roots.is_empty()
    }

    pub(super) fn add_part(&mut self, root: usize) {
        self.roots[root - self.first].1 += 1;
    }

    /// How far the cursor will move when this part is done: over all that is done in a row.
    pub(super) fn advance_after(&self, root: usize) -> Option<CursorAdvance> {
        let is_done = |(place, (_, parts)): &(usize, &(Cursor, usize))| {
            parts - usize::from(self.first + place == root) == 0
        };
        let (_, (last, _)) = self.roots.iter().enumerate().take_while(is_done).last()?;
        Some(CursorAdvance { before: self.cursor.clone(), last: last.clone() })
    }

    /// Takes a part for done, once the journal has it.
    pub(super) fn part_done(&mut self, root: usize) {
        self.roots[root - self.first].1 -= 1;
        while self.roots.front().is_some_and(|(_, parts)| *parts == 0) {
            self.cursor = self.roots.pop_front().map(|(last, _)| last);
            self.first += 1;
        }
    }
}
