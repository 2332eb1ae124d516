//! The exits of a lane: why it stops before its work is done.

use std::time::Duration;

use reqwest::header::InvalidHeaderValue;

use super::super::RunError;
use super::super::messages;
use super::super::watermark_check::WatermarkMismatch;
use crate::journal::{JournalError, Kind, Problem};
use crate::ledger::LedgerError;

/// Why a lane stops before its pass is closed.
#[derive(Debug)]
pub(in crate::sync) enum LaneExit {
    /// A signal asked the process to stop.
    Shutdown,
    /// The grace period after a signal ended before an answer came.
    ShutdownDeadline,
    /// Other lanes wait, and this lane has used its share.
    Yielded,
    /// For this time a request whose answer was lost may still arrive, and the next batch must not be sent before.
    Fenced(Duration),
    /// A problem to record, and the pause that the API asked for.
    Problem(Box<Problem>, Option<Duration>),
    /// Another worker has taken the lease.
    LeaseLost,
    /// The database is unavailable, so nothing can be recorded.
    Infrastructure(RunError),
}

impl LaneExit {
    pub(in crate::sync) fn problem(problem: Problem) -> Self {
        LaneExit::Problem(Box::new(problem), None)
    }
}

impl From<JournalError> for LaneExit {
    fn from(problem: JournalError) -> Self {
        match problem {
            JournalError::LeaseLost => LaneExit::LeaseLost,
            other => LaneExit::Infrastructure(other.into()),
        }
    }
}

/// The key or the signature has characters that a header must not have.
impl From<InvalidHeaderValue> for LaneExit {
    fn from(problem: InvalidHeaderValue) -> Self {
        LaneExit::problem(Problem::of_lane(Kind::Config, problem.to_string()))
    }
}

impl From<WatermarkMismatch> for LaneExit {
    fn from(mismatch: WatermarkMismatch) -> Self {
        LaneExit::problem(mismatch.into())
    }
}

impl From<RunError> for LaneExit {
    fn from(problem: RunError) -> Self {
        match problem {
            RunError::Ledger(problem) => problem.into(),
            RunError::Journal(problem) => problem.into(),
            RunError::Config(_) => LaneExit::Infrastructure(problem),
        }
    }
}

impl From<LedgerError> for LaneExit {
    fn from(problem: LedgerError) -> Self {
        match problem {
            _ if problem.is_about_rows() => {
                LaneExit::problem(Problem::of_lane(Kind::Ledger, problem.in_words_of_entity()))
            }
            LedgerError::Database(_) | LedgerError::Unreadable(_) => LaneExit::Infrastructure(problem.into()),
            LedgerError::Shape(_) | LedgerError::Decode(_) => {
                LaneExit::problem(Problem::of_lane(Kind::Config, problem.to_string()))
            }
            LedgerError::Standby(_) => {
                LaneExit::problem(Problem::of_lane(Kind::Unavailable, problem.to_string()))
            }
        }
    }
}

/// The exit for a pause that is longer than the longest back-off.
pub(in crate::sync) fn later(pause: Duration) -> LaneExit {
    LaneExit::Problem(Box::new(Problem::of_lane(Kind::Throttled, messages::come_later(pause))), Some(pause))
}

/// Keeps the first exit, unless it only follows from another one. Of several pauses that the API asked for it keeps the
/// longest.
pub(in crate::sync) fn note(exit: LaneExit, first_exit: &mut Option<LaneExit>) {
    match (first_exit, exit) {
        (Some(LaneExit::Problem(_, first)), LaneExit::Problem(_, pause)) => *first = (*first).max(pause),
        // If a write fails for another reason, the journal refuses the later writes as if the lease were lost.
        (first @ Some(LaneExit::LeaseLost), exit @ LaneExit::Infrastructure(_))
        | (first @ (None | Some(LaneExit::Shutdown | LaneExit::Yielded)), exit)
        | (
            first @ Some(LaneExit::Fenced(_)),
            exit @ (LaneExit::Problem(..) | LaneExit::LeaseLost | LaneExit::Infrastructure(_)),
        )
        | (first, exit @ LaneExit::ShutdownDeadline) => {
            *first = Some(exit);
        }
        _ => {}
    }
}

/// Returns why a lane stops, if it does: because of the first batch that stopped it, or else because of what `ended`
/// the reading. `is_stopping`: a signal asked the process to stop.
pub(in crate::sync) fn combined(
    first_exit: Option<LaneExit>,
    ended: Result<(), LaneExit>,
    is_stopping: bool,
) -> Result<(), LaneExit> {
    match (first_exit, ended) {
        // Batches were withdrawn because a run waits for the lease. All rows may have been read before that.
        (Some(LaneExit::Shutdown), Ok(()) | Err(LaneExit::Yielded)) if !is_stopping => Err(LaneExit::Yielded),
        (Some(exit), _) => Err(exit),
        (None, ended) => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::JournalError;

    /// Returns the exit that is kept of several exits in this order.
    fn noted(exits: impl IntoIterator<Item = LaneExit>) -> Option<LaneExit> {
        let mut first = None;
        exits.into_iter().for_each(|exit| note(exit, &mut first));
        first
    }

    fn problem(message: &str, pause: Option<u64>) -> LaneExit {
        let problem = Problem::of_lane(Kind::Throttled, message);
        LaneExit::Problem(Box::new(problem), pause.map(Duration::from_secs))
    }

    fn broken() -> LaneExit {
        LaneExit::Infrastructure(JournalError::RunLost.into())
    }

    #[test]
    fn the_first_problem_and_the_longest_pause_are_kept() {
        let exit = noted([problem("first", Some(5)), problem("second", Some(60)), problem("third", None)]);
        let Some(LaneExit::Problem(problem, pause)) = exit else { panic!("{exit:?}") };
        assert_eq!((problem.message.as_str(), pause), ("first", Some(Duration::from_mins(1))));
    }

    #[test]
    fn an_exit_that_only_follows_is_replaced_by_the_first_problem() {
        for other in [LaneExit::Shutdown, LaneExit::Yielded] {
            assert!(matches!(noted([other, problem("why", None)]), Some(LaneExit::Problem(..))));
        }
        assert!(matches!(noted([problem("why", None), LaneExit::Shutdown]), Some(LaneExit::Problem(..))));
        assert!(matches!(noted([problem("why", None), LaneExit::LeaseLost]), Some(LaneExit::Problem(..))));
    }

    #[test]
    fn a_failed_write_counts_more_than_the_lost_lease_of_later_writes() {
        assert!(matches!(noted([LaneExit::LeaseLost, broken()]), Some(LaneExit::Infrastructure(_))));
        assert!(matches!(noted([broken(), LaneExit::LeaseLost]), Some(LaneExit::Infrastructure(_))));
    }

    /// Otherwise the lease would be released, and a request that still arrives could overtake a request of another
    /// worker.
    #[test]
    fn an_answer_that_was_not_awaited_counts_more_than_other_exits() {
        for other in [LaneExit::Shutdown, problem("why", None), LaneExit::LeaseLost, broken()] {
            assert!(matches!(noted([other, LaneExit::ShutdownDeadline]), Some(LaneExit::ShutdownDeadline)));
        }
        assert!(matches!(
            noted([LaneExit::ShutdownDeadline, problem("why", None)]),
            Some(LaneExit::ShutdownDeadline)
        ));
    }

    #[test]
    fn batches_that_were_withdrawn_for_another_worker_are_no_shutdown() {
        let withdrawn = || Some(LaneExit::Shutdown);
        for (ended, is_stopping, expected) in [
            (Ok(()), false, "Yielded"),
            (Err(LaneExit::Yielded), false, "Yielded"),
            (Ok(()), true, "Shutdown"),
        ] {
            let exit = combined(withdrawn(), ended, is_stopping).unwrap_err();
            assert_eq!(format!("{exit:?}"), expected);
        }
        assert!(combined(None, Ok(()), false).is_ok());
        assert!(matches!(combined(Some(broken()), Ok(()), false), Err(LaneExit::Infrastructure(_))));
    }
}
