//! Shared fixtures of the tests: the environment of one test, its ledger, the API and the processes of the connector.

mod api;
mod env;
mod files;
mod ledger;
mod process;

use std::time::Duration;

use tokio::time::Instant;

pub use self::api::{IMPORT, KEY, SECRET, fault_rules, is_import};
pub use self::env::{SOURCE, TestEnv, as_sent, variable};
pub use self::files::files_in;
pub use self::ledger::{PARTS, scene_with_three_batches};
pub use self::process::{FAULT_POINT, output_of, signal, stderr, stdout, wait_for_log};

/// How often a condition is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Waits until a condition holds; panics after 20 s.
pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Waits until a condition has held without interruption for a duration; panics after 20 s.
///
/// For a state that the connector may leave again, or that a poll may see by chance: `pg_stat_activity` shows a session
/// that waits for a lock as not waiting for a moment whenever a signal wakes it up, which another test can do.
pub async fn eventually_stays<F: AsyncFnMut() -> bool>(what: &str, duration: Duration, mut condition: F) {
    let mut held_since = None;
    let has_held = async || {
        held_since = if condition().await { held_since.or_else(|| Some(Instant::now())) } else { None };
        held_since.is_some_and(|since| since.elapsed() >= duration)
    };
    eventually(what, has_held).await;
}

/// Asserts that a condition holds for a duration. It is checked repeatedly, and at the end.
///
/// This is the one way to show that something does not happen.
pub async fn assert_stays<F: AsyncFnMut() -> bool>(what: &str, duration: Duration, mut condition: F) {
    let begun = Instant::now();
    loop {
        let is_over = begun.elapsed() >= duration;
        assert!(condition().await, "no longer after {:?}: {what}", begun.elapsed());
        if is_over {
            break;
        }
        tokio::time::sleep(POLL_INTERVAL.min(duration.saturating_sub(begun.elapsed()))).await;
    }
}
