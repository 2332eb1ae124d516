//! Snapshots: sets of ended transactions.

use std::{fmt, str::FromStr};

/// A 64-bit transaction id (`xid8`). Ids are assigned in ascending order and never reused.
pub type Xid = u64;

/// A `pg_snapshot`: the transactions that had ended at one moment.
///
/// Contains every id below `xmax` except the ids in `running`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    xmin: Xid,
    xmax: Xid,
    running: Vec<Xid>,
}

impl Snapshot {
    /// Returns the lowest id that may have been running: all transactions with lower ids had ended.
    pub fn xmin(&self) -> Xid {
        self.xmin
    }

    /// Returns the first id that had not been assigned yet.
    pub fn xmax(&self) -> Xid {
        self.xmax
    }

    /// Returns the ids below [`xmax`](Self::xmax) that were still running, in ascending order.
    pub fn running(&self) -> &[Xid] {
        &self.running
    }

    /// Returns whether the other snapshot contains every transaction of this one.
    pub fn is_within(&self, other: &Snapshot) -> bool {
        // The search ends at the first id that `self` contains, so it visits at most `self.running.len()` ids more.
        let mut not_in_other = other.running.iter().copied().chain(other.xmax..self.xmax);
        not_in_other.all(|xid| !self.contains(xid))
    }

    /// Returns whether the transaction had ended when the snapshot was taken.
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

/// The error for a text that is not a `pg_snapshot` as PostgreSQL writes it.
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

    fn snapshots() -> impl Strategy<Value = Snapshot> {
        (1u64..40, prop::collection::btree_set(0u64..40, 0..8)).prop_map(|(xmax, running)| {
            let running: Vec<Xid> = running.into_iter().filter(|xid| *xid < xmax).collect();
            Snapshot { xmin: running.first().copied().unwrap_or(xmax), xmax, running }
        })
    }

    #[test]
    fn a_running_id_may_be_listed_or_lie_at_xmax() {
        let (listed, beyond) = (snapshot("16:17:16"), snapshot("16:16:"));
        assert!(listed.is_within(&beyond) && beyond.is_within(&listed));
    }

    proptest! {
        #[test]
        fn is_within_is_set_inclusion(one in snapshots(), other in snapshots()) {
            let included = (0..64).all(|xid| !one.contains(xid) || other.contains(xid));
            prop_assert_eq!(one.is_within(&other), included);
        }
    }
}
