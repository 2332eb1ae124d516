//! What of a pass is on its way, and how far the cursor may go.

use std::collections::VecDeque;

use crate::journal::Advance;
use crate::watermark::Cursor;

/// What is on its way or done, in the order of the pass, from the cursor on.
#[derive(Clone, Default)]
pub(super) struct Window {
    /// Where the lane stands.
    pub(super) cursor: Option<Cursor>,
    /// Number of the first one that is not done.
    first: usize,
    /// For each: where it ends, and how many parts of it are not done.
    roots: VecDeque<(Cursor, usize)>,
}

/// One batch may take long while others go on behind it: so many of those, and then it is waited for. What is
/// done beyond the cursor has to be looked at when a later worker goes on here.
const BATCHES_MAX: usize = 256;

impl Window {
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

    pub(super) fn add_part(&mut self, root: usize) {
        self.roots[root - self.first].1 += 1;
    }

    /// What it is when a part is done, and how far the cursor moves by that: over all that is done in a row.
    /// To be kept once the journal has it.
    pub(super) fn with_part_done(&self, root: usize) -> (Self, Option<Advance>) {
        let mut then = self.clone();
        then.roots[root - self.first].1 -= 1;
        let mut last = None;
        while then.roots.front().is_some_and(|(_, parts)| *parts == 0) {
            last = then.roots.pop_front().map(|(last, _)| last);
            then.first += 1;
        }
        let advance = last.map(|last| Advance { before: self.cursor.clone(), last });
        if let Some(Advance { last, .. }) = &advance {
            then.cursor = Some(last.clone());
        }
        (then, advance)
    }
}
