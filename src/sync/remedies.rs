//! Remedies for an answer 401 or 403 before the lane stops: the signature may be old, the clock skewed, or the key
//! replaced in its file. A remedy does not count as an attempt, and a remedy that did not help is not taken again in
//! the run. A key and a secret that were refused are not tried again, but others may be: the two files are replaced one
//! after the other.

use chrono::TimeDelta;

use super::api_session::ApiSession;
use super::decisions::policy::{Decision, Possible, Taken};
use super::signing::SignedBy;
use crate::config::{Credential, Settings};
use crate::elven::{ResponseClass, is_older_than};

/// The remedies taken for one batch.
#[derive(Debug, Default)]
pub(super) struct SignatureRemedies {
    taken: Taken,
    /// The offset of a clock under trial, relative to the clock of this machine.
    pub trial: Option<TimeDelta>,
    /// A new key that was found in the files.
    found: Option<Credential>,
    /// The signature was made with a clock or a key that another request found to be wrong.
    is_outdated: bool,
}

/// A signature that is older than this may have been refused because of its age.
const OLD: std::time::Duration = std::time::Duration::from_secs(1);

impl SignatureRemedies {
    /// Returns the remedies that are still possible for an answer.
    pub(super) async fn possible(
        &mut self,
        session: &ApiSession,
        settings: &Settings,
        by: &SignedBy,
        verdict: &ResponseClass,
    ) -> Possible {
        if !matches!(verdict, ResponseClass::Unauthorized(..)) {
            return Possible::default();
        }
        let kept_clock = self.trial.is_none() && by.ahead != session.ahead();
        self.is_outdated = by.keys != session.keys() || kept_clock;
        if !self.is_outdated {
            // The remedies taken for this batch so far did not help.
            session.note_failed(self.taken);
        }
        let failed = session.failed();
        let may = |failed: bool, taken: bool| !failed && !taken;
        self.found = if self.is_outdated { None } else { session.new_keys(settings, by.keys).await };
        let is_old = is_older_than(by.at, OLD);
        Possible {
            sign_again: self.is_outdated || (is_old && may(failed.signed_again, self.taken.signed_again)),
            correct_clock: may(failed.clock_corrected, self.taken.clock_corrected),
            read_keys: self.found.is_some(),
        }
    }

    /// Takes the remedy that was decided on. `by`: how the refused request was signed.
    pub(super) fn take(&mut self, step: &Decision, by: &SignedBy, session: &ApiSession) {
        match step {
            // With the clock and the key that another request found to be right, it is no remedy of this batch.
            Decision::SignAgain => self.taken.signed_again |= !self.is_outdated,
            Decision::CorrectClock(ahead) => {
                self.taken.clock_corrected = true;
                self.trial = Some(by.ahead + *ahead);
            }
            Decision::ReadKeys => {
                if let Some(found) = self.found.take() {
                    session.use_keys(found);
                }
            }
            Decision::Settle | Decision::Isolate | Decision::Again { .. } | Decision::Stop { .. } => {}
        }
    }
}
