//! A batch outside of any pass, such as that of a retry: one request at a time until its answer is final.

use tokio::time::Instant;

use super::RunError;
use super::api_session::{ApiSession, RequestTurn};
use super::attempt::{Attempted, Attempts, Requested, attempt_result};
use super::decisions::policy::Decision;
use super::lane_worker::LaneWorker;
use super::messages;
use super::signing::Unsigned;
use crate::batch::Batch;
use crate::config::OnAmbiguous;
use crate::elven::{Answer, ResponseClass};
use crate::journal::{AttemptResult, Lease};

/// The last answer to a batch outside of any pass.
pub(super) struct LastAnswer {
    pub class: ResponseClass,
    pub result: AttemptResult,
    /// The number of attempts.
    pub attempts: u32,
    /// An attempt before the last one has an unknown outcome.
    pub ambiguous: bool,
}

impl LaneWorker {
    /// Sends a batch, with retries. `turn`: the turn of its first request.
    pub(super) async fn ask(
        &self,
        session: &ApiSession,
        lease: &Lease,
        batch: &Batch,
        mut turn: RequestTurn<'_>,
    ) -> Result<LastAnswer, RunError> {
        let retry = &self.settings.retry;
        let mut attempts = Attempts::new(retry.attempts, false);
        let mut ambiguous = false;
        let (class, result) = loop {
            let attempting = async {
                let signed = self.fresh(session, lease, &batch.body, attempts.remedies.trial, None).await?;
                turn.end();
                self.attempt(session, lease, batch, &mut attempts, signed).await
            };
            let (answer, begun) = match attempting.await {
                Ok(Requested::Attempted(attempted)) => {
                    let Attempted { class, result, decision, by, .. } = *attempted;
                    let lost = match decision {
                        step @ (Decision::SignAgain | Decision::CorrectClock(_) | Decision::ReadKeys) => {
                            attempts.remedies.take(&step, &by, session);
                            None
                        }
                        Decision::Again { after, all, lost } if !self.gives_up(lost) => {
                            if all {
                                session.pause(after);
                            } else if self.unless_stopped(tokio::time::sleep(after)).await.is_none() {
                                break (class, result);
                            }
                            Some(lost)
                        }
                        _ => break (class, result),
                    };
                    let Some(Ok(next)) = self.unless_stopped(session.turn(retry.max)).await else {
                        break (class, result);
                    };
                    turn = next;
                    // The request after a remedy does not count as an attempt.
                    attempts.number += u32::from(lost.is_some());
                    ambiguous |= lost.unwrap_or_default();
                    continue;
                }
                Ok(Requested::CutOff(begun)) => (Answer::Lost(messages::cut_off().message), begun),
                Err(Unsigned::Key(problem)) => (Answer::NotSent(problem.to_string()), Instant::now()),
                Err(Unsigned::Lease(problem)) => return Err(problem.into()),
            };
            let result = attempt_result(&answer, begun, attempts.repeated);
            break (session.classify_and_record(&answer, &mut attempts.remedies.trial), result);
        };
        Ok(LastAnswer { class, result, attempts: attempts.number, ambiguous })
    }

    /// Whether no further attempt is made: after a signal, or if a batch with an unknown outcome is held.
    fn gives_up(&self, lost: bool) -> bool {
        *self.stop.borrow() || (lost && self.settings.sync.on_ambiguous == OnAmbiguous::Hold)
    }
}
