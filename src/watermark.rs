//! The watermark: which transactions have been dealt with, and where inside a pass we are.
//!
//! A sequence or a timestamp cannot be a safe watermark, because transactions commit out of order: a
//! row with a lower value can appear after a higher one was read. A PostgreSQL snapshot can, since it
//! says of *every* transaction whether it had ended. (PostgreSQL manual, "Transaction ID and Snapshot
//! Information Functions".)

use std::num::ParseIntError;
use std::{fmt, str::FromStr};

/// A 64-bit transaction id (`xid8`): given out in ascending order, never again.
pub type Xid = u64;

/// A `pg_snapshot`: the transactions that had ended at one moment.
///
/// Contains every id below `xmax` but for those in `running`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    xmin: Xid,
    xmax: Xid,
    running: Vec<Xid>,
}

impl Snapshot {
    /// All transactions with lower ids had ended.
    pub fn xmin(&self) -> Xid {
        self.xmin
    }

    /// The first id that had not been given out yet.
    pub fn xmax(&self) -> Xid {
        self.xmax
    }

    /// The ids below [`xmax`](Self::xmax) that were still running, ascending.
    pub fn running(&self) -> &[Xid] {
        &self.running
    }

    /// Says whether all that this snapshot contains is in the other one too.
    pub fn is_within(&self, other: &Snapshot) -> bool {
        // Ends at the first id that is in `self`, so the range costs no more than `running` is long.
        let mut not_in_other = other.running.iter().copied().chain(other.xmax..self.xmax);
        not_in_other.all(|xid| !self.contains(xid))
    }

    /// Says whether the transaction had ended when the snapshot was taken.
    pub fn contains(&self, xid: Xid) -> bool {
        xid < self.xmax && self.running.binary_search(&xid).is_err()
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (n, xid) in self.running.iter().enumerate() {
            write!(f, "{}{xid}", if n > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// The text is not one that PostgreSQL writes for a `pg_snapshot`.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a pg_snapshot")]
pub struct NotASnapshot(String);

impl FromStr for Snapshot {
    type Err = NotASnapshot;

    fn from_str(text: &str) -> Result<Self, NotASnapshot> {
        let parse = || {
            let mut parts = text.splitn(3, ':');
            let xmin = parts.next()?.parse().ok()?;
            let xmax = parts.next()?.parse().ok()?;
            let list = parts.next()?.split(',').filter(|xid| !xid.is_empty());
            let mut running = list.map(|xid| xid.parse().ok()).collect::<Option<Vec<Xid>>>()?;
            running.sort_unstable();
            Some(Snapshot { xmin, xmax, running })
        };
        parse().ok_or_else(|| NotASnapshot(text.to_owned()))
    }
}

/// A ledger row's id, of whichever type the ledger's key has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LedgerId {
    /// A `bigint` or `integer` key.
    Number(i64),
    /// A key of any other type, as PostgreSQL writes it.
    Text(String),
}

impl fmt::Display for LedgerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LedgerId::Number(number) => number.fmt(f),
            LedgerId::Text(text) => f.write_str(text),
        }
    }
}

/// The orders in which rows go out, each completed by the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// That of a pass.
    ChangeXid,
    /// That of a backfill.
    CapturedAt,
}

/// A place inside a pass or a backfill: behind the row with this id there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// What the order goes by.
    pub at: At,
    /// The id of the row, as text.
    pub id: String,
}

/// What an order goes by, of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// In a pass: its `change_xid`.
    Xid(Xid),
    /// In a backfill: its `captured_at`, in microseconds from 2000-01-01 UTC.
    Instant(i64),
}

impl Cursor {
    /// A cursor of a pass as its columns have it: both parts, or neither.
    pub(crate) fn from_columns(
        xid: Option<String>,
        id: Option<String>,
    ) -> Result<Option<Self>, ParseIntError> {
        let Some((xid, id)) = xid.zip(id) else { return Ok(None) };
        Ok(Some(Self { at: At::Xid(xid.parse()?), id }))
    }

    /// The transaction, in a pass.
    pub fn xid(&self) -> Option<Xid> {
        if let At::Xid(xid) = self.at { Some(xid) } else { None }
    }

    /// The instant in microseconds from 2000-01-01 UTC, in a backfill.
    pub fn captured_at_us(&self) -> Option<i64> {
        if let At::Instant(us) = self.at { Some(us) } else { None }
    }
}

/// Transaction ids from `from` up to, not including, `until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First id.
    pub from: Xid,
    /// The id behind the last one.
    pub until: Xid,
}

/// The transactions that a pass has to look at: in `target` and not in `settled`, in ascending order.
///
/// That is exactly each one which was running when `settled` was taken and has ended since, and the
/// range from the `xmax` of `settled` to that of `target`: a few probes and one range of an index on
/// `(entity_id, change_xid, id)`. Asking for rows "not visible in settled" would name the same set,
/// but as a filter, which reads all that was settled since the oldest transaction still open.
///
/// Transactions of the last range that are not in `target` have to be filtered out by the reader.
pub fn segments(settled: Option<&Snapshot>, target: &Snapshot) -> Vec<Segment> {
    let Some(settled) = settled else {
        return vec![Segment { from: 0, until: target.xmax }];
    };
    let ended = settled.running.iter().filter(|xid| target.contains(**xid));
    let mut segments: Vec<Segment> = Vec::new();
    for &xid in ended {
        match segments.last_mut() {
            Some(last) if last.until == xid => last.until = xid + 1,
            _ => segments.push(Segment { from: xid, until: xid + 1 }),
        }
    }
    if settled.xmax < target.xmax {
        segments.push(Segment { from: settled.xmax, until: target.xmax });
    }
    segments
}

/// Those of the [`segments`] in which rows behind `after` and up to `until` can be.
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
    fn a_snapshot_reads_and_writes_as_postgresql_does() {
        for text in ["10:20:10,14,15", "7:7:", "1:18446744073709551615:3"] {
            assert_eq!(snapshot(text).to_string(), text);
        }
        for text in ["", "1", "1:2", "a:2:", "1:2:x", "1:2:1;2"] {
            assert!(text.parse::<Snapshot>().is_err(), "{text}");
        }
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

    fn snapshots() -> impl Strategy<Value = Snapshot> {
        (1u64..40, prop::collection::btree_set(0u64..40, 0..8)).prop_map(|(xmax, running)| {
            let running: Vec<Xid> = running.into_iter().filter(|xid| *xid < xmax).collect();
            Snapshot { xmin: running.first().copied().unwrap_or(xmax), xmax, running }
        })
    }

    #[test]
    fn ids_that_are_running_in_both_ways_of_saying_so_are_in_neither() {
        let (listed, beyond) = (snapshot("16:17:16"), snapshot("16:16:"));
        assert!(listed.is_within(&beyond) && beyond.is_within(&listed));
    }

    proptest! {
        #[test]
        fn is_within_is_set_inclusion(one in snapshots(), other in snapshots()) {
            let included = (0..64).all(|xid| !one.contains(xid) || other.contains(xid));
            prop_assert_eq!(one.is_within(&other), included);
        }

        /// Whatever the snapshots: the segments, less what the target does not contain, are the set
        /// "in target and not in settled", each transaction once and in order.
        #[test]
        fn segments_are_target_less_settled(settled in prop::option::of(snapshots()), target in snapshots()) {
            // What has ended stays ended: a later snapshot contains all that an earlier one does.
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
