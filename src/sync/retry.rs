//! Rows that were set aside, tried again on request.

use std::collections::BTreeMap;
use std::time::Instant;

use chrono::TimeDelta;

use super::channel::Channel;
use super::decision::{Attempt, Decision, decide};
use super::delivery::settlement;
use super::words::{self, Words};
use super::{RunError, Target, Worker, heartbeat};
use crate::batch::Batch;
use crate::elven::{Answer, Verdict};
use crate::journal::{Entity, Kind, Lease, Problem, RecordedError, RunStatus, Settlement, Take};

/// What became of an error that was tried again.
#[derive(Debug)]
pub struct Retried {
    /// Its number.
    pub error_id: i64,
    /// What resolved it, or why it is still open.
    pub outcome: Result<String, String>,
}

impl Worker {
    /// Reads the rows of these errors anew, sends them, and resolves the errors or counts them once more. One
    /// request for each row. Rows that have a newer rival of the same account, currency and second are not sent:
    /// the later upload would win.
    pub async fn retry(&self, errors: Vec<RecordedError>) -> Result<Vec<Retried>, RunError> {
        let entities = Entity::list(&self.pool).await?;
        let mut by_entity: BTreeMap<String, Vec<RecordedError>> = BTreeMap::new();
        for error in errors {
            by_entity.entry(error.entity_id.clone()).or_default().push(error);
        }
        let concerned: Vec<Entity> =
            entities.into_iter().filter(|entity| by_entity.contains_key(&entity.entity_id)).collect();
        let (targets, unusable) = self.targets(&concerned)?;
        self.journal.mark_interrupted().await?;
        let run_id = self.journal.begin_run("retry").await?;
        let heartbeat = tokio::spawn(heartbeat(self.clone(), run_id));
        let mut retried = Vec::new();
        let mut failed = None;
        for target in &targets {
            let errors = by_entity.remove(&target.entity_id).unwrap_or_default();
            if let Err(problem) = self.retry_entity(run_id, target, errors, &mut retried).await {
                failed = Some(problem);
                break;
            }
        }
        heartbeat.abort();
        // What is left belongs to entities that are not registered, or cannot be worked on.
        for error in by_entity.into_values().flatten() {
            let why = unusable.iter().find(|(entity_id, _)| *entity_id == error.entity_id);
            let why = why.map_or("its entity is not registered", |(_, problem)| problem.message.as_str());
            retried.push(Retried { error_id: error.error_id, outcome: Err(why.to_owned()) });
        }
        let open = retried.iter().any(|retried| retried.outcome.is_err());
        let status = match (&failed, open) {
            (Some(_), _) => RunStatus::Failed,
            (None, true) => RunStatus::Incomplete,
            (None, false) => RunStatus::Succeeded,
        };
        let message = failed.as_ref().map(|problem| crate::output::chain(problem));
        self.journal.finish_run(run_id, status, message.as_deref()).await?;
        failed.map_or(Ok(retried), Err)
    }

    async fn retry_entity(
        &self,
        run_id: i64,
        target: &Target,
        errors: Vec<RecordedError>,
        retried: &mut Vec<Retried>,
    ) -> Result<(), RunError> {
        let Take::Taken(lease, _) = self.journal.take(&target.entity_id).await? else {
            retried.extend(errors.iter().map(|error| Retried {
                error_id: error.error_id,
                outcome: Err("a worker is on its entity; try again when that has ended".to_owned()),
            }));
            return Ok(());
        };
        for error in &errors {
            let outcome = self.retry_row(run_id, target, &lease, error).await?;
            let recorded = match &outcome {
                Ok(resolution) => Ok(resolution.as_str()),
                Err(problem) => Err(problem),
            };
            self.journal.retried(&lease, run_id, error.error_id, recorded).await?;
            if outcome.as_ref().is_err_and(|problem| problem.kind.as_ref() != error.kind) {
                let replaced = Ok("another problem of the row took its place");
                self.journal.retried(&lease, run_id, error.error_id, replaced).await?;
            }
            let outcome = outcome.map_err(|problem| problem.message);
            retried.push(Retried { error_id: error.error_id, outcome });
        }
        Ok(self.journal.release(&lease).await?)
    }

    /// What becomes of a row that was set aside: what resolves it, or the problem that it has now.
    async fn retry_row(
        &self,
        run_id: i64,
        target: &Target,
        lease: &Lease,
        error: &RecordedError,
    ) -> Result<Result<String, Problem>, RunError> {
        let (entity_id, zone) = (&target.entity_id, target.zone);
        let ledger_id = error.ledger_id.as_deref().unwrap_or_default();
        let rows = self.ledger.rows_with_id(entity_id, ledger_id).await?;
        if rows.is_empty() {
            return Ok(Ok("the row is not in the ledger any more".to_owned()));
        }
        let batch = Batch::build(None, rows, zone);
        if let Some(invalid) = batch.invalid.first() {
            return Ok(Err(crate::journal::invalid(None, invalid)));
        }
        for row in &batch.rows {
            let rivals = self.ledger.rivals(entity_id, row).await?;
            if let Some(newer) = rivals.iter().find(|rival| batch.is_superseded_by(rival, zone)) {
                return Ok(Ok(format!(
                    "superseded by row {} of the same account, currency and second",
                    newer.id
                )));
            }
        }
        let batch_id = self.journal.announce_alone(lease, run_id, &batch).await?;
        let (verdict, settlement, sent) = self.ask(&target.channel, &batch).await;
        let words = words::of(&verdict, settlement.http_status, &batch, &target.channel.credential.name);
        let accepted = verdict == Verdict::Accepted;
        let (status, message) =
            if accepted { ("accepted", None) } else { (words.status, Some(words.message.as_str())) };
        let answered = (status, message);
        self.journal.answered_alone(lease, run_id, (batch_id, &batch), answered, settlement, sent).await?;
        if accepted {
            return Ok(Ok("uploaded by `errors retry`".to_owned()));
        }
        let of_row = words.of_row(batch_id, settlement.http_status, &batch, 0, zone);
        Ok(Err(still_open(&words, of_row, &error.kind)))
    }

    /// Sends a batch, as often as it takes and is allowed. Returns also how often that was, and whether an
    /// earlier attempt than the last may have arrived.
    async fn ask(&self, channel: &Channel, batch: &Batch) -> (Verdict, Settlement, (u32, bool)) {
        let retry = &self.settings.retry;
        let mut corrected = None;
        let mut number = 1;
        let mut ambiguous = false;
        loop {
            let pause = channel.turn(retry.max).await.err();
            let signed = channel.sign_import(corrected, batch.body.clone());
            let begun = Instant::now();
            let mut signed_ahead = TimeDelta::zero();
            let answer = match (pause, signed) {
                (Some(pause), _) => Answer::NotSent(words::come_later(pause)),
                (None, Err(problem)) => Answer::NotSent(problem.to_string()),
                (None, Ok(signed)) => {
                    signed_ahead = signed.ahead();
                    channel.send(signed).await
                }
            };
            let settlement = settlement(&answer, begun, number > 1);
            let verdict = channel.judge(&answer);
            if matches!(verdict, Verdict::Accepted | Verdict::Refused(_))
                && let Some(ahead) = corrected.take()
            {
                channel.keep_clock(ahead);
            }
            let attempt =
                Attempt { number, attempts_max: retry.attempts, clock_corrected: corrected.is_some() };
            match decide(&verdict, attempt, retry, fastrand::u32(..)) {
                Decision::CorrectClock(ahead) => corrected = Some(signed_ahead + ahead),
                Decision::Again { after, lost, .. } => {
                    number += 1;
                    ambiguous |= lost;
                    tokio::time::sleep(after).await;
                }
                Decision::Settle | Decision::Isolate | Decision::Stop { .. } => {
                    return (verdict, settlement, (number, ambiguous));
                }
            }
        }
    }
}

/// The problem that a row still has: the API refuses it, or it could not be asked, which is no news of the row.
fn still_open(words: &Words, of_row: Problem, kind: &str) -> Problem {
    if words.kind == Kind::RejectedBatch {
        return of_row;
    }
    let kind = if kind == Kind::InvalidRow.as_ref() { Kind::InvalidRow } else { Kind::RejectedRow };
    Problem { kind, message: words.message.clone(), ..of_row }
}
