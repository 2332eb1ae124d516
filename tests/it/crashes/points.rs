//! The points at which processes are stopped, and what has to happen for each to be reached.

use std::collections::HashSet;
use std::fmt;
use std::process::Command;

use elven_sync::fault_point::{Side, Step};
use strum::IntoEnumIterator;

/// The point at which a process stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Point(pub Step, pub Side, pub u32);

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}@{}", self.0.as_ref(), self.1.as_ref(), self.2)
    }
}

impl Point {
    /// Returns the minimum and the maximum number of answers that arrived by then and will never be recorded.
    pub fn answers_lost(self) -> (usize, usize) {
        match (self.0, self.1) {
            (Step::Send, Side::After)
            | (Step::Settle | Step::Resolve | Step::SetAside | Step::Answer, Side::Before) => (1, 1),
            // A refusal is recorded before the lists of the API are requested. Closing includes the answer to the last
            // batch, if that is not recorded yet.
            (Step::Split | Step::ClosePass | Step::Succeed | Step::ReleaseLease, Side::Before) => (0, 1),
            _ => (0, 0),
        }
    }
}

/// Returns both sides of these occurrences of steps.
pub fn points(steps: &[(Step, &[u32])]) -> Vec<Point> {
    let mut points = Vec::new();
    for (step, occurrences) in steps {
        for side in Side::iter() {
            points.extend(occurrences.iter().map(|&occurrence| Point(*step, side, occurrence)));
        }
    }
    points
}

/// Points in a run of new rows.
pub const OF_A_RUN: [(Step, &[u32]); 14] = [
    (Step::BeginRun, &[1]),
    (Step::TakeLease, &[1, 2]),
    (Step::RenewLease, &[1]),
    (Step::OpenPass, &[1, 2]),
    (Step::Announce, &[1, 5]),
    (Step::Send, &[1, 5]),
    (Step::Answer, &[1, 2]),
    (Step::Settle, &[1, 3]),
    (Step::Split, &[1, 2]),
    (Step::SetAside, &[1, 2]),
    (Step::ClosePass, &[1, 2]),
    (Step::Succeed, &[1, 2]),
    (Step::ReleaseLease, &[1, 2]),
    (Step::FinishRun, &[1]),
];

/// Points in a run that resumes after a kill and then finds new rows.
pub const OF_A_RECOVERY: [(Step, &[u32]); 14] = [
    (Step::BeginRun, &[1]),
    (Step::TakeLease, &[1]),
    (Step::RenewLease, &[1]),
    (Step::Recover, &[1]),
    (Step::Announce, &[1, 2]),
    (Step::Send, &[1]),
    (Step::Settle, &[1]),
    (Step::Split, &[1]),
    (Step::SetAside, &[1]),
    (Step::ClosePass, &[1, 2]),
    (Step::OpenPass, &[1]),
    (Step::Succeed, &[1]),
    (Step::ReleaseLease, &[1]),
    (Step::FinishRun, &[1]),
];
pub const OF_CHANGED_ROWS: [(Step, &[u32]); 5] = [
    (Step::Announce, &[1]),
    (Step::Send, &[1]),
    (Step::Settle, &[1]),
    (Step::Split, &[1]),
    (Step::SetAside, &[1]),
];
pub const OF_AN_EMPTIED_BATCH: [(Step, &[u32]); 1] = [(Step::Empty, &[1])];
pub const OF_A_FAILURE: [(Step, &[u32]); 2] = [(Step::Answer, &[1]), (Step::Fail, &[1])];
pub const OF_SEVERAL_IN_FLIGHT: [(Step, &[u32]); 3] =
    [(Step::Announce, &[1, 5]), (Step::Send, &[1, 5]), (Step::Settle, &[1, 5])];
pub const OF_A_RETRY: [(Step, &[u32]); 8] = [
    (Step::BeginRun, &[1]),
    (Step::TakeLease, &[1]),
    (Step::Announce, &[1]),
    (Step::Send, &[1]),
    (Step::Settle, &[1]),
    (Step::Resolve, &[1]),
    (Step::ReleaseLease, &[1]),
    (Step::FinishRun, &[1]),
];
/// Points in `tests/it/prune.rs`.
pub const OF_A_PRUNE: [(Step, &[u32]); 1] =
    [(Step::Prune, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16])];
/// Points in `tests/it/notify/delivery.rs`.
pub const OF_A_NOTIFICATION: [(Step, &[u32]); 1] = [(Step::PostMessage, &[1])];

pub const OF_A_BACKFILL: [(Step, &[u32]); 15] = [
    (Step::AskBackfill, &[1]),
    (Step::BeginRun, &[1]),
    (Step::TakeLease, &[1, 2]),
    (Step::RenewLease, &[1]),
    (Step::Recover, &[1]),
    (Step::Announce, &[1, 4]),
    (Step::Send, &[1, 4]),
    (Step::Answer, &[1]),
    (Step::Settle, &[1, 3]),
    (Step::Split, &[1]),
    (Step::SetAside, &[1]),
    (Step::Empty, &[1]),
    (Step::FinishLane, &[1, 2]),
    (Step::ReleaseLease, &[1]),
    (Step::FinishRun, &[1]),
];

#[test]
fn every_durable_step_has_a_crash_test() {
    let crashed_at: HashSet<Step> = [
        &OF_A_RUN[..],
        &OF_A_RECOVERY,
        &OF_CHANGED_ROWS,
        &OF_AN_EMPTIED_BATCH,
        &OF_A_FAILURE,
        &OF_SEVERAL_IN_FLIGHT,
        &OF_A_RETRY,
        &OF_A_BACKFILL,
        &OF_A_PRUNE,
        &OF_A_NOTIFICATION,
    ]
    .into_iter()
    .flatten()
    .map(|(step, _)| *step)
    .collect();
    assert_eq!(crashed_at, Step::iter().collect());
}

/// The program of `cargo build` and `cargo install` differs only in this: it stops nowhere.
#[test]
fn shipped_binary_has_no_fault_points() {
    let features = |edges| {
        let tree = ["tree", "--locked", "--offline", "--depth", "0", "--format", "{f}", "--edges", edges];
        let output = Command::new(env!("CARGO")).args(tree).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(features("normal,dev").contains("fault-points"));
    assert_eq!(features("normal,build").trim(), "");
}
