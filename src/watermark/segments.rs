//! The ranges of transactions that a pass has to read.

use super::cursor::Cursor;
use super::snapshot::{Snapshot, Xid};

/// A range of transaction ids: from `from` up to, and not including, `until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The first id.
    pub from: Xid,
    /// The id after the last one.
    pub until: Xid,
}

/// Returns the transactions that a pass has to read: those in `target` and not in `settled`, in ascending order.
///
/// They are the transactions that were running when `settled` was taken and have ended since, and the range from
/// the `xmax` of `settled` to the `xmax` of `target`: a few probes and one range scan of an index on
/// `(entity_id, change_xid, id)`. The condition "not visible in `settled`" describes the same rows, but only as a
/// filter: it reads every row that was processed since the oldest transaction that is still open.
///
/// The last range can include transactions that are not in `target`; the reader has to filter them out.
pub fn segments(settled: Option<&Snapshot>, target: &Snapshot) -> Vec<Segment> {
    let Some(settled) = settled else {
        return vec![Segment { from: 0, until: target.xmax() }];
    };
    let ended = settled.running().iter().filter(|xid| target.contains(**xid));
    let mut segments: Vec<Segment> = Vec::new();
    for &xid in ended {
        match segments.last_mut() {
            Some(last) if last.until == xid => last.until = xid + 1,
            _ => segments.push(Segment { from: xid, until: xid + 1 }),
        }
    }
    if settled.xmax() < target.xmax() {
        segments.push(Segment { from: settled.xmax(), until: target.xmax() });
    }
    segments
}

/// How many running transactions segments are split at: the oldest, since a long load is among them.
pub const RUNNING_MAX: usize = 16;

/// Splits segments at transactions that were running when `target` was taken. A scan of an index passes over each row
/// that such a transaction has written, and an open bulk load may have written millions.
pub fn around_running(segments: Vec<Segment>, target: &Snapshot) -> Vec<Segment> {
    let mut rest = segments;
    for &running in target.running().iter().take(RUNNING_MAX) {
        rest = rest
            .into_iter()
            .flat_map(|Segment { from, until }| {
                if (from..until).contains(&running) {
                    [Segment { from, until: running }, Segment { from: running + 1, until }]
                } else {
                    [Segment { from, until }, Segment { from: until, until }]
                }
            })
            .filter(|segment| segment.from < segment.until)
            .collect();
    }
    rest
}

/// Returns the [`segments`] that can contain rows after the cursor `after` and up to the cursor `until`.
pub fn segments_between(
    settled: Option<&Snapshot>,
    target: &Snapshot,
    after: Option<&Cursor>,
    until: Option<&Cursor>,
) -> Vec<Segment> {
    let xid = |cursor: Option<&Cursor>| cursor.and_then(Cursor::xid);
    let (after, until) = (xid(after), xid(until));
    let mut segments = segments(settled, target);
    segments.retain(|segment| {
        after.is_none_or(|after| after < segment.until) && until.is_none_or(|until| segment.from <= until)
    });
    segments
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().unwrap()
    }

    #[test]
    fn a_first_pass_takes_everything() {
        assert_eq!(segments(None, &snapshot("10:20:10")), [Segment { from: 0, until: 20 }]);
    }

    #[test]
    fn a_later_pass_probes_what_was_running_and_reads_on() {
        let (settled, target) = (snapshot("5:10:5,7,8"), snapshot("7:20:7,15"));
        assert_eq!(
            segments(Some(&settled), &target),
            [Segment { from: 5, until: 6 }, Segment { from: 8, until: 9 }, Segment { from: 10, until: 20 },]
        );
        assert_eq!(segments(Some(&target), &target), []);
    }

    #[test]
    fn segments_leave_out_transactions_that_were_running() {
        let (settled, target) = (snapshot("5:10:5"), snapshot("10:20:10,14,15,19"));
        let split = around_running(segments(Some(&settled), &target), &target);
        assert_eq!(
            split,
            [Segment { from: 5, until: 6 }, Segment { from: 11, until: 14 }, Segment { from: 16, until: 19 }]
        );
    }

    fn snapshots() -> impl Strategy<Value = Snapshot> {
        (1u64..40, prop::collection::btree_set(0u64..40, 0..8)).prop_map(|(xmax, running)| {
            let running: Vec<String> =
                running.into_iter().filter(|xid| *xid < xmax).map(|xid| xid.to_string()).collect();
            let xmin = running.first().cloned().unwrap_or_else(|| xmax.to_string());
            snapshot(&format!("{xmin}:{xmax}:{}", running.join(",")))
        })
    }

    proptest! {
        /// Splitting leaves out nothing that the target contains.
        #[test]
        fn segments_around_running_transactions_are_the_same_set(
            settled in prop::option::of(snapshots()),
            target in snapshots(),
        ) {
            let contains_settled = |xid| settled.as_ref().is_some_and(|s| s.contains(xid));
            prop_assume!((0..64).all(|xid| !contains_settled(xid) || target.contains(xid)));
            let set = |segments: &[Segment]| -> Vec<Xid> {
                segments.iter().flat_map(|s| s.from..s.until).filter(|xid| target.contains(*xid)).collect()
            };
            let whole = segments(settled.as_ref(), &target);
            let split = around_running(whole.clone(), &target);
            prop_assert_eq!(set(&split), set(&whole));
        }

        /// For any two snapshots: the segments, without the transactions that the target does not contain, are the
        /// set "in target and not in settled", each transaction once and in order.
        #[test]
        fn segments_are_target_less_settled(settled in prop::option::of(snapshots()), target in snapshots()) {
            // An ended transaction stays ended: a later snapshot contains all that an earlier one contains.
            let contains_settled = |xid| settled.as_ref().is_some_and(|s| s.contains(xid));
            prop_assume!((0..64).all(|xid| !contains_settled(xid) || target.contains(xid)));
            let read: Vec<Xid> = segments(settled.as_ref(), &target)
                .iter()
                .flat_map(|s| s.from..s.until)
                .filter(|xid| target.contains(*xid))
                .collect();
            let expected: Vec<Xid> =
                (0..64).filter(|xid| target.contains(*xid) && !contains_settled(*xid)).collect();
            prop_assert_eq!(read, expected);
        }
    }
}
