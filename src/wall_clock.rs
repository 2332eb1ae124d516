//! The clock of this machine, by which requests are signed.
//!
//! A simulation has its own: with the feature `fault-points`, the clock of a thread follows the paused time of its
//! runtime.

use chrono::{DateTime, Utc};

/// Returns the time by this machine's clock.
pub fn now() -> DateTime<Utc> {
    #[cfg(feature = "fault-points")]
    if let Some(now) = simulated::now() {
        return now;
    }
    Utc::now()
}

#[cfg(feature = "fault-points")]
pub use simulated::simulate;

#[cfg(feature = "fault-points")]
mod simulated {
    use std::cell::Cell;

    use chrono::{DateTime, Utc};
    use tokio::time::Instant;

    thread_local! {
        static BEGUN: Cell<Option<(DateTime<Utc>, Instant)>> = const { Cell::new(None) };
    }

    /// From now on, the clock of this thread shows `begins_at` and the time that passes in its runtime.
    pub fn simulate(begins_at: DateTime<Utc>) {
        BEGUN.set(Some((begins_at, Instant::now())));
    }

    pub(super) fn now() -> Option<DateTime<Utc>> {
        BEGUN.get().map(|(begins_at, begun)| begins_at + begun.elapsed())
    }
}
