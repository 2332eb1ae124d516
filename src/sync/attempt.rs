//! One attempt for a batch, of a pass, a backfill or a retry alike: send, classify, decide.

use tokio::time::Instant;

use super::api_session::ApiSession;
use super::decisions::policy::{Attempt, Decision, decide};
use super::lane::exit::LaneExit;
use super::lane_worker::LaneWorker;
use super::log;
use super::remedies::SignatureRemedies;
use super::signing::{Sent, SignedBy};
use crate::batch::Batch;
use crate::elven::{Answer, ResponseClass, Signed, is_older_than};
use crate::journal::{AttemptResult, Lease};

/// The attempts of one run for one batch.
#[derive(Debug)]
pub(super) struct Attempts {
    /// The number of the next attempt, counted from 1.
    pub number: u32,
    /// The most attempts.
    pub max: u32,
    /// The batch was sent before.
    pub repeated: bool,
    /// The remedies that were taken against refused signatures.
    pub remedies: SignatureRemedies,
}

impl Attempts {
    pub(super) fn new(max: u32, repeated: bool) -> Self {
        Self { number: 1, max, repeated, remedies: SignatureRemedies::default() }
    }
}

/// An attempt that was answered, or whose answer was lost.
pub(super) struct Attempted {
    pub answer: Answer,
    pub class: ResponseClass,
    /// The result, as it is recorded.
    pub result: AttemptResult,
    /// What follows.
    pub decision: Decision,
    /// How the request was signed.
    pub by: SignedBy,
}

/// What became of a request.
pub(super) enum Requested {
    /// The request was answered, or its answer was lost.
    Attempted(Box<Attempted>),
    /// The grace period ended before the answer came. The request was begun at this time.
    CutOff(Instant),
}

impl LaneWorker {
    /// Sends a batch once. A lost answer fences the keys of the batch at once.
    pub(super) async fn attempt(
        &self,
        session: &ApiSession,
        lease: &Lease,
        batch: &Batch,
        attempts: &mut Attempts,
        signed: Signed,
    ) -> Result<Requested, LaneExit> {
        let sent = self.send_fresh(session, lease, batch, attempts.remedies.trial, signed).await?;
        let Sent { answer, begun, by } = sent;
        log::request(answer.as_ref(), begun, attempts.number, batch.body.len());
        self.progress.step();
        let Some(answer) = answer else {
            lease.fence.note_lost(batch, begun, session.ahead_of_api());
            return Ok(Requested::CutOff(begun));
        };
        let class = session.classify_and_record(&answer, &mut attempts.remedies.trial);
        if matches!(class, ResponseClass::Unknown(_)) {
            lease.fence.note_lost(batch, begun, session.ahead_of_api());
        }
        let result = attempt_result(&answer, begun, attempts.repeated);
        attempts.repeated = true;
        let attempt = Attempt {
            number: attempts.number,
            attempts_max: attempts.max,
            possible: attempts.remedies.possible(session, &self.settings, &by, &class).await,
            aged: is_older_than(by.at, self.settings.api.signature_window),
        };
        let decision = decide(&class, attempt, &self.settings.retry, fastrand::u32(..));
        Ok(Requested::Attempted(Box::new(Attempted { answer, class, result, decision, by })))
    }
}

/// Returns the result of an attempt, as it is recorded.
pub(super) fn attempt_result(answer: &Answer, begun: Instant, repeated: bool) -> AttemptResult {
    AttemptResult {
        http_status: match answer {
            Answer::Response { status, .. } => Some(i32::from(*status)),
            Answer::NotSent(_) | Answer::OpenedLate | Answer::Lost(_) => None,
        },
        duration_ms: i64::try_from(begun.elapsed().as_millis()).ok(),
        sent: !matches!(answer, Answer::NotSent(_) | Answer::OpenedLate),
        repeated,
    }
}
