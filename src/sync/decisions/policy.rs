//! The decision that follows from an answer: a pure function.

use std::time::Duration;

use chrono::TimeDelta;

use crate::config::RetrySettings;
use crate::elven::ResponseClass;

/// The smallest difference that counts as clock skew. A `Date` header has whole seconds and is written before it is
/// read.
pub(in crate::sync) const SKEW_MIN: TimeDelta = TimeDelta::seconds(3);
/// The largest difference that is corrected. Beyond it something other than the clock is wrong.
const SKEW_MAX: TimeDelta = TimeDelta::days(1);

/// Remedies that were taken against a refused signature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::sync) struct Taken {
    /// Signed again, because the signature was old.
    pub signed_again: bool,
    /// Signed with the clock of the API.
    pub clock_corrected: bool,
}

impl Taken {
    /// The union of both.
    pub(in crate::sync) fn and(self, other: Self) -> Self {
        Self {
            signed_again: self.signed_again || other.signed_again,
            clock_corrected: self.clock_corrected || other.clock_corrected,
        }
    }
}

/// The remedies that are possible for a refused signature.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::sync) struct Possible {
    /// The signature is old, or was made with a clock or a key that was replaced since.
    pub sign_again: bool,
    /// The clock may be corrected.
    pub correct_clock: bool,
    /// The files hold a key and a secret that were not used in this run.
    pub read_keys: bool,
}

/// The attempt whose answer is decided on.
#[derive(Clone, Copy, Debug)]
pub(in crate::sync) struct Attempt {
    /// Its number in this run, counted from 1.
    pub number: u32,
    /// The most attempts that a run may make.
    pub attempts_max: u32,
    /// The remedies that are possible for a refused signature.
    pub possible: Possible,
    /// The time between signing and the answer was longer than a signature is valid.
    pub aged: bool,
}

/// What follows from an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sync) enum Decision {
    /// Record that the batch is accepted.
    Settle,
    /// Bisect the batch, and set the refused records aside.
    Isolate,
    /// Wait, then send the batch again.
    Again {
        /// The least time to wait.
        after: Duration,
        /// All lanes of this credential wait, too.
        all: bool,
        /// The outcome of the attempt is unknown.
        lost: bool,
    },
    /// Sign the request again, and send it at once.
    SignAgain,
    /// Sign with the key that the files hold now, and send the request at once.
    ReadKeys,
    /// Sign with a clock that is ahead of the last one by this, and send the request at once.
    CorrectClock(TimeDelta),
    /// Stop the lane.
    Stop {
        /// Send no request before this time has passed.
        not_before: Option<Duration>,
    },
}

/// Decides what follows from an answer. `draw`: a random number, for the jitter of the back-off.
pub(in crate::sync) fn decide(
    verdict: &ResponseClass,
    attempt: Attempt,
    retry: &RetrySettings,
    draw: u32,
) -> Decision {
    let may_repeat = attempt.number < attempt.attempts_max;
    let back_off = || full_jitter(attempt.number, retry, draw);
    let stop = Decision::Stop { not_before: None };
    match verdict {
        ResponseClass::Accepted => Decision::Settle,
        ResponseClass::Refused(_) | ResponseClass::TooLarge => Decision::Isolate,
        ResponseClass::Unauthorized(..) if attempt.possible.sign_again => Decision::SignAgain,
        ResponseClass::Unauthorized(_, Some(ahead))
            if attempt.possible.correct_clock && (SKEW_MIN..=SKEW_MAX).contains(&ahead.abs()) =>
        {
            Decision::CorrectClock(*ahead)
        }
        ResponseClass::Unauthorized(..) if attempt.possible.read_keys => Decision::ReadKeys,
        // The worker or the network paused: the signature was too old when the request arrived.
        ResponseClass::Unauthorized(..) if attempt.aged && may_repeat => {
            Decision::Again { after: back_off(), all: false, lost: false }
        }
        // Longer than the longest back-off: a later run sends the batch.
        ResponseClass::Throttled(Some(asked)) if *asked > retry.max => {
            Decision::Stop { not_before: Some(*asked) }
        }
        ResponseClass::Throttled(asked) if may_repeat => {
            Decision::Again { after: asked.unwrap_or_default().max(back_off()), all: true, lost: false }
        }
        ResponseClass::Throttled(asked) => Decision::Stop { not_before: *asked },
        ResponseClass::NotSent(_) if may_repeat => {
            Decision::Again { after: back_off(), all: false, lost: false }
        }
        ResponseClass::Unknown(_) if may_repeat => {
            Decision::Again { after: back_off(), all: false, lost: true }
        }
        ResponseClass::Unauthorized(..)
        | ResponseClass::UnexpectedApi
        | ResponseClass::Intercepted
        | ResponseClass::NotSent(_)
        | ResponseClass::Unknown(_) => stop,
    }
}

/// A random pause between 0 and a bound that doubles with each attempt, so that many clients spread out (exponential
/// back-off with full jitter).
fn full_jitter(attempt: u32, retry: &RetrySettings, draw: u32) -> Duration {
    let doubled = retry.initial.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1)));
    let bound_us = doubled.min(retry.max).as_micros();
    let share = bound_us * u128::from(draw) / u128::from(u32::MAX);
    Duration::from_micros(u64::try_from(share).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elven::Reason;

    const RETRY: RetrySettings =
        RetrySettings { attempts: 3, initial: Duration::from_millis(500), max: Duration::from_secs(4) };

    #[test]
    fn each_response_class_has_its_decision() {
        let refused = || ResponseClass::Refused(Reason::default());
        let unauthorized =
            |seconds| ResponseClass::Unauthorized(Reason::default(), Some(TimeDelta::seconds(seconds)));
        let secs = Duration::from_secs;
        let again = |after, all, lost| Decision::Again { after, all, lost };
        let stop = |not_before| Decision::Stop { not_before };
        for (verdict, number, clock_corrected, expected) in [
            (ResponseClass::Accepted, 1, false, Decision::Settle),
            (refused(), 1, false, Decision::Isolate),
            (refused(), 3, false, Decision::Isolate),
            (ResponseClass::TooLarge, 1, false, Decision::Isolate),
            (unauthorized(90), 1, false, Decision::CorrectClock(TimeDelta::seconds(90))),
            (unauthorized(-90), 3, false, Decision::CorrectClock(TimeDelta::seconds(-90))),
            (unauthorized(90), 2, true, stop(None)),
            (unauthorized(2), 1, false, stop(None)),
            (unauthorized(100_000), 1, false, stop(None)),
            (ResponseClass::Unauthorized(Reason::default(), None), 1, false, stop(None)),
            (ResponseClass::UnexpectedApi, 1, false, stop(None)),
            (ResponseClass::Intercepted, 1, false, stop(None)),
            (ResponseClass::Throttled(None), 1, false, again(Duration::from_millis(500), true, false)),
            (ResponseClass::Throttled(Some(secs(3))), 1, false, again(secs(3), true, false)),
            (ResponseClass::Throttled(Some(secs(3))), 3, false, stop(Some(secs(3)))),
            (ResponseClass::Throttled(Some(secs(60))), 1, false, stop(Some(secs(60)))),
            (ResponseClass::Throttled(None), 3, false, stop(None)),
            (ResponseClass::NotSent(String::new()), 2, false, again(secs(1), false, false)),
            (ResponseClass::NotSent(String::new()), 3, false, stop(None)),
            (ResponseClass::Unknown(String::new()), 2, false, again(secs(1), false, true)),
            (ResponseClass::Unknown(String::new()), 3, false, stop(None)),
        ] {
            let possible = Possible { correct_clock: !clock_corrected, ..Possible::default() };
            let attempt = Attempt { number, attempts_max: 3, possible, aged: false };
            assert_eq!(
                decide(&verdict, attempt, &RETRY, u32::MAX),
                expected,
                "{verdict:?}, attempt {number}"
            );
        }
    }

    #[test]
    fn a_request_whose_signature_aged_in_transit_is_sent_again() {
        let verdict = ResponseClass::Unauthorized(Reason::default(), Some(TimeDelta::zero()));
        for (number, aged, expected) in [
            (1, true, Decision::Again { after: Duration::from_millis(500), all: false, lost: false }),
            (1, false, Decision::Stop { not_before: None }),
            (3, true, Decision::Stop { not_before: None }),
        ] {
            let attempt = Attempt { number, attempts_max: 3, possible: Possible::default(), aged };
            assert_eq!(decide(&verdict, attempt, &RETRY, u32::MAX), expected);
        }
    }

    /// Also after the last attempt, because a remedy does not count as an attempt.
    #[test]
    fn remedies_are_a_new_signature_then_the_right_clock_then_a_new_key() {
        let skewed = ResponseClass::Unauthorized(Reason::default(), Some(TimeDelta::seconds(90)));
        let correct = Decision::CorrectClock(TimeDelta::seconds(90));
        let stop = Decision::Stop { not_before: None };
        for (sign_again, correct_clock, read_keys, expected) in [
            (true, true, true, Decision::SignAgain),
            (false, true, true, correct),
            (false, false, true, Decision::ReadKeys),
            (false, false, false, stop),
        ] {
            let possible = Possible { sign_again, correct_clock, read_keys };
            let attempt = Attempt { number: 3, attempts_max: 3, possible, aged: false };
            assert_eq!(decide(&skewed, attempt, &RETRY, u32::MAX), expected);
        }
    }

    #[test]
    fn the_back_off_doubles_up_to_the_maximum_with_full_jitter() {
        let pauses: Vec<u128> =
            (1..7).map(|attempt| full_jitter(attempt, &RETRY, u32::MAX).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 4000, 4000]);
        assert_eq!(full_jitter(40, &RETRY, u32::MAX / 2).as_millis(), 1999);
        assert_eq!(full_jitter(3, &RETRY, 0), Duration::ZERO);
    }
}
