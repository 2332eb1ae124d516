//! Why a lane stops before its work is done.

use std::time::Duration;

use super::super::RunError;
use super::super::messages;
use super::super::watermark_check::Misfit;
use crate::journal::{JournalError, Kind, Problem};
use crate::ledger::LedgerError;

/// Why a lane stopped before its pass was through.
#[derive(Debug)]
pub(in crate::sync) enum Halt {
    /// A signal asked for it.
    Stopped,
    /// A signal asked for it, and an answer was not waited for any more.
    CutOff,
    /// Others wait for their turn.
    Yielded,
    /// An attempt whose answer was lost may arrive for so long, and what is next may not be sent before.
    Fenced(Duration),
    /// A problem to record, and how long the API asked not to be called.
    Problem(Box<Problem>, Option<Duration>),
    /// The lease is another worker's now.
    LeaseLost,
    /// The database went away: there is nowhere to record anything.
    Broken(RunError),
}

impl Halt {
    pub(in crate::sync) fn problem(problem: Problem) -> Self {
        Halt::Problem(Box::new(problem), None)
    }
}

impl From<JournalError> for Halt {
    fn from(problem: JournalError) -> Self {
        match problem {
            JournalError::LeaseLost => Halt::LeaseLost,
            other => Halt::Broken(other.into()),
        }
    }
}

impl From<Misfit> for Halt {
    fn from(misfit: Misfit) -> Self {
        Halt::problem(misfit.into())
    }
}

impl From<RunError> for Halt {
    fn from(problem: RunError) -> Self {
        match problem {
            RunError::Ledger(problem) => problem.into(),
            RunError::Journal(problem) => problem.into(),
            RunError::Config(_) | RunError::Http(_) => Halt::Broken(problem),
        }
    }
}

impl From<LedgerError> for Halt {
    fn from(problem: LedgerError) -> Self {
        match problem {
            _ if problem.is_about_rows() => {
                Halt::problem(Problem::of_lane(Kind::Ledger, problem.in_words_of_entity()))
            }
            LedgerError::Database(_) | LedgerError::Unreadable(_) => Halt::Broken(problem.into()),
            LedgerError::Shape(_) | LedgerError::Decode(_) => {
                Halt::problem(Problem::of_lane(Kind::Config, problem.to_string()))
            }
            LedgerError::Standby(_) => {
                Halt::problem(Problem::of_lane(Kind::Unavailable, problem.to_string()))
            }
        }
    }
}

/// The API asked not to be called for longer than it is waited for.
pub(in crate::sync) fn later(pause: Duration) -> Halt {
    Halt::Problem(Box::new(Problem::of_lane(Kind::Throttled, messages::come_later(pause))), Some(pause))
}

/// Keeps the first reason to stop, unless that is only that something else has stopped it.
/// However many have it, the longest pause that the API asked for is kept.
pub(in crate::sync) fn note(halt: Halt, first_halt: &mut Option<Halt>) {
    match (first_halt, halt) {
        (Some(Halt::Problem(_, first)), Halt::Problem(_, pause)) => *first = (*first).max(pause),
        // What could not be written for another reason than the lease has others behind it refused as if for the lease.
        (first @ Some(Halt::LeaseLost), halt @ Halt::Broken(_))
        | (first @ (None | Some(Halt::Stopped | Halt::Yielded)), halt)
        | (first @ Some(Halt::Fenced(_)), halt @ (Halt::Problem(..) | Halt::LeaseLost | Halt::Broken(_)))
        | (first, halt @ Halt::CutOff) => {
            *first = Some(halt);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::JournalError;

    /// What is kept of reasons that come one after the other.
    fn noted(halts: impl IntoIterator<Item = Halt>) -> Option<Halt> {
        let mut first = None;
        halts.into_iter().for_each(|halt| note(halt, &mut first));
        first
    }

    fn problem(message: &str, pause: Option<u64>) -> Halt {
        let problem = Problem::of_lane(Kind::Throttled, message);
        Halt::Problem(Box::new(problem), pause.map(Duration::from_secs))
    }

    fn broken() -> Halt {
        Halt::Broken(JournalError::RunLost.into())
    }

    #[test]
    fn the_first_reason_to_stop_is_kept_and_the_longest_pause() {
        let halt = noted([problem("first", Some(5)), problem("second", Some(60)), problem("third", None)]);
        let Some(Halt::Problem(problem, pause)) = halt else { panic!("{halt:?}") };
        assert_eq!((problem.message.as_str(), pause), ("first", Some(Duration::from_mins(1))));
    }

    #[test]
    fn that_something_else_has_stopped_it_is_no_reason_of_its_own() {
        for other in [Halt::Stopped, Halt::Yielded] {
            assert!(matches!(noted([other, problem("why", None)]), Some(Halt::Problem(..))));
        }
        assert!(matches!(noted([problem("why", None), Halt::Stopped]), Some(Halt::Problem(..))));
        assert!(matches!(noted([problem("why", None), Halt::LeaseLost]), Some(Halt::Problem(..))));
    }

    #[test]
    fn what_could_not_be_written_is_the_reason_and_not_the_lease_that_others_miss_then() {
        assert!(matches!(noted([Halt::LeaseLost, broken()]), Some(Halt::Broken(_))));
        assert!(matches!(noted([broken(), Halt::LeaseLost]), Some(Halt::Broken(_))));
    }

    /// Else the lease would be given back, and what may still arrive could meet another worker's.
    #[test]
    fn an_answer_that_was_not_waited_for_is_what_counts() {
        for other in [Halt::Stopped, problem("why", None), Halt::LeaseLost, broken()] {
            assert!(matches!(noted([other, Halt::CutOff]), Some(Halt::CutOff)));
        }
        assert!(matches!(noted([Halt::CutOff, problem("why", None)]), Some(Halt::CutOff)));
    }
}
