//! A batch outside of any pass, such as that of a retry: one request at a time until its answer is final.

use super::RunError;
use super::api_session::ApiSession;
use super::decisions::policy::{Attempt, Decision, decide};
use super::delivery::attempt_result;
use super::lane_worker::LaneWorker;
use super::log::{self};
use super::messages::{self};
use super::remedies::SignatureRemedies;
use super::signing::{Sent, Unsigned};
use crate::batch::Batch;
use crate::config::OnAmbiguous;
use crate::elven::{Answer, ResponseClass, is_older_than};
use crate::journal::{AttemptResult, Lease};
use tokio::time::Instant;

impl LaneWorker {
    /// Sends a batch, with retries. Returns also the number of attempts, and whether an attempt before the last one has
    /// an unknown outcome.
    pub(super) async fn ask(
        &self,
        session: &ApiSession,
        lease: &Lease,
        batch: &Batch,
    ) -> Result<(ResponseClass, AttemptResult, (u32, bool)), RunError> {
        let (retry, window) = (&self.settings.retry, self.settings.api.signature_window);
        let mut remedies = SignatureRemedies::default();
        let mut number = 1;
        let mut ambiguous = false;
        loop {
            let sending = async {
                let signed = self.fresh(session, lease, &batch.body, remedies.trial, None).await?;
                self.send_fresh(session, lease, &batch.body, remedies.trial, signed).await
            };
            let Sent { answer, begun, by } = match sending.await {
                Ok(sent) => sent,
                Err(Unsigned::Lease(problem)) => return Err(problem.into()),
                Err(Unsigned::Key(problem)) => {
                    let answer = Answer::NotSent(problem.to_string());
                    let result = attempt_result(&answer, Instant::now(), number > 1);
                    let verdict = session.classify_and_record(&answer, &mut remedies.trial);
                    return Ok((verdict, result, (number, ambiguous)));
                }
            };
            log::request(answer.as_ref(), begun, number, batch.body.len());
            let answer = answer.unwrap_or_else(|| Answer::Lost(messages::cut_off().message));
            let result = attempt_result(&answer, begun, number > 1);
            let verdict = session.classify_and_record(&answer, &mut remedies.trial);
            if matches!(verdict, ResponseClass::Unknown(_)) {
                lease.fence.note_lost(batch, begun, session.ahead_of_api());
            }
            let attempt = Attempt {
                number,
                attempts_max: retry.attempts,
                possible: remedies.possible(session, &self.settings, &by, &verdict),
                aged: is_older_than(by.at, window),
            };
            match decide(&verdict, attempt, retry, fastrand::u32(..)) {
                step @ (Decision::SignAgain | Decision::CorrectClock(_) | Decision::ReadKeys) => {
                    remedies.take(&step, &by, session);
                }
                Decision::Again { after, lost, .. } if !self.gives_up(lost) => {
                    let turn = async {
                        tokio::time::sleep(after).await;
                        session.acquire_turn(retry.max).await.is_ok()
                    };
                    if !self.unless_stopped(turn).await.unwrap_or(false) {
                        return Ok((verdict, result, (number, ambiguous)));
                    }
                    number += 1;
                    ambiguous |= lost;
                }
                _ => return Ok((verdict, result, (number, ambiguous))),
            }
        }
    }

    /// Whether no further attempt is made: after a signal, or if a batch with an unknown outcome is held.
    fn gives_up(&self, lost: bool) -> bool {
        *self.stop.borrow() || (lost && self.settings.sync.on_ambiguous == OnAmbiguous::Hold)
    }
}
