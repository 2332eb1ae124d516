//! What is done about an answer 401 or 403 before the lane stops: the signature may be old, the clock skewed, or the key
//! replaced in its file. None of it counts as an attempt, and what did not help is not done again in the run.

use chrono::TimeDelta;

use super::channel::Channel;
use super::decision::Decision;
use super::signing::SignedBy;
use crate::config::{Credential, Settings};
use crate::elven::{Verdict, is_older_than};

/// Steps against a refused signature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// Signed again, since the signature was old.
    pub signed_again: bool,
    /// Signed by the clock of the API.
    pub clock_corrected: bool,
    /// Signed by a key that was read again.
    pub keys_read: bool,
}

impl Taken {
    /// Both.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            signed_again: self.signed_again || other.signed_again,
            clock_corrected: self.clock_corrected || other.clock_corrected,
            keys_read: self.keys_read || other.keys_read,
        }
    }
}

/// What may be done about one refused signature.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Possible {
    /// It was made by a clock or a key that has been replaced since, or it is old.
    pub sign_again: bool,
    /// The clock may be corrected.
    pub correct_clock: bool,
    /// The files hold another key.
    pub read_keys: bool,
}

/// What was done for one batch.
#[derive(Debug, Default)]
pub(super) struct Remedies {
    taken: Taken,
    /// A clock that is being tried: how far it is ahead of this machine's.
    pub trial: Option<TimeDelta>,
    /// The key that the files hold now.
    found: Option<Credential>,
    /// The signature was made by a clock or a key that another request has found to be wrong.
    is_outdated: bool,
}

/// A signature that is older than this may have been refused for its age.
const OLD: std::time::Duration = std::time::Duration::from_secs(1);

impl Remedies {
    /// What may be done about an answer.
    pub(super) fn possible(
        &mut self,
        channel: &Channel,
        settings: &Settings,
        by: &SignedBy,
        verdict: &Verdict,
    ) -> Possible {
        if !matches!(verdict, Verdict::Unauthorized(..)) {
            return Possible::default();
        }
        let kept_clock = self.trial.is_none() && by.ahead != channel.ahead();
        self.is_outdated = by.keys != channel.keys() || kept_clock;
        if !self.is_outdated {
            // What was done for this batch so far did not help it.
            channel.note_failed(self.taken);
        }
        let failed = channel.failed();
        let may = |failed: bool, taken: bool| !failed && !taken;
        if may(failed.keys_read, self.taken.keys_read) {
            self.found = channel.new_keys(settings);
        }
        let is_old = is_older_than(by.at, OLD);
        Possible {
            sign_again: self.is_outdated || (is_old && may(failed.signed_again, self.taken.signed_again)),
            correct_clock: may(failed.clock_corrected, self.taken.clock_corrected),
            read_keys: self.found.is_some(),
        }
    }

    /// Takes the step that was decided on, after a request that was signed so.
    pub(super) fn take(&mut self, step: &Decision, by: &SignedBy, channel: &Channel) {
        match step {
            // By the clock and the key that another request has found to be right: no step of this one.
            Decision::SignAgain => self.taken.signed_again |= !self.is_outdated,
            Decision::CorrectClock(ahead) => {
                self.taken.clock_corrected = true;
                self.trial = Some(by.ahead + *ahead);
            }
            Decision::ReadKeys => {
                self.taken.keys_read = true;
                if let Some(found) = self.found.take() {
                    channel.use_keys(found);
                }
            }
            Decision::Settle | Decision::Isolate | Decision::Again { .. } | Decision::Stop { .. } => {}
        }
    }
}
