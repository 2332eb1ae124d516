//! The failures of cycles in the log. A cycle that fails is tried again soon, so the same failure is not logged each time.

use std::time::Duration;

use tokio::time::Instant;

/// The same failure is logged again after this time.
const LOGGED_EVERY: Duration = Duration::from_mins(1);

/// What was logged last, and when.
#[derive(Debug, Default)]
pub(super) struct Failures(Option<(String, Instant)>);

impl Failures {
    /// Logs how a cycle failed, unless that was logged a moment ago. `None`: it did not fail.
    pub(super) fn note(&mut self, failure: Option<String>) {
        let Some(failure) = failure else {
            self.0 = None;
            return;
        };
        if self.is_due(&failure, Instant::now()) {
            tracing::error!("{failure}");
        }
    }

    fn is_due(&mut self, failure: &str, now: Instant) -> bool {
        let is_known = |(known, at): &(String, Instant)| known == failure && now - *at < LOGGED_EVERY;
        if self.0.as_ref().is_some_and(is_known) {
            return false;
        }
        self.0 = Some((failure.to_owned(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_is_logged_once_a_minute() {
        let (mut failures, begun, second) = (Failures::default(), Instant::now(), Duration::from_secs(1));
        for (after, failure, expected) in [
            (0, "a", true),
            (1, "a", false),
            (59, "a", false),
            (60, "a", true),
            (61, "b", true),
            (62, "b", false),
            (63, "a", true),
        ] {
            assert_eq!(
                failures.is_due(failure, begun + after * second),
                expected,
                "{failure} after {after} s"
            );
        }
        failures.note(None);
        assert!(failures.is_due("a", begun + 64 * second), "a cycle that works is the end of a failure");
    }
}
