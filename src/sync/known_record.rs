//! A record that was accepted before is sent again to prove that a credential is good.

use tracing::Instrument;

use super::RunError;
use super::lane_worker::{LaneWorker, Target};
use super::log::batch_span;
use super::lone_batch::LastAnswer;
use super::messages;
use super::proving::Resent;
use crate::align::Clock;
use crate::batch::{Batch, key_hash};
use crate::elven::ResponseClass;
use crate::fault_point::{Step, around};
use crate::journal::{Accepted, Lease, RetryAnswer};
use crate::ledger::Row;
use crate::watermark::LedgerId;

/// The most accepted records that are examined to find one that may be sent again.
const RECORDS_LOOKED_AT: usize = 100;

impl LaneWorker {
    /// Sends the newest accepted record of the entity again that is still the newest of its key. Does so once in a run,
    /// and records it like a retry. Requires the lease.
    pub(super) async fn resend_known(
        &self,
        run_id: i64,
        target: &Target,
        lease: &Lease,
    ) -> Result<Resent, RunError> {
        let resend = async || {
            let Some(batch) = self.known(target).await? else { return Ok(Resent::Nothing) };
            let Target { session, proving, .. } = target;
            if lease.fence.of_new(&batch).is_some() {
                let why = "not sent, because a request whose answer was lost may still arrive";
                return Ok(Resent::Otherwise(why.to_owned()));
            }
            let turn = match self.unless_stopped(session.turn(self.settings.retry.max)).await {
                Some(Ok(turn)) => turn,
                Some(Err(pause)) => return Ok(Resent::Otherwise(messages::come_later(pause))),
                None => return Ok(Resent::Otherwise("not sent, because the process had to stop".to_owned())),
            };
            proving.count();
            let announced = self.journal.announce_alone(lease, run_id, &batch);
            let batch_id = around(Step::Announce, announced).await?;
            let asked = self.ask(session, lease, &batch, turn).instrument(batch_span(batch_id));
            let LastAnswer { class: verdict, result, attempts, ambiguous } = asked.await?;
            let accepted = verdict == ResponseClass::Accepted;
            let words = messages::of(&verdict, result.http_status, &batch, &session.credential.name);
            let last = RetryAnswer {
                status: if accepted { "accepted" } else { words.status },
                error: (!accepted).then_some(words.message.as_str()),
                attempts,
                ambiguous,
                stays_set_aside: false,
            };
            let answered = self.journal.answered_alone(lease, run_id, (batch_id, &batch), last, result);
            around(Step::Settle, answered).await?;
            if accepted {
                session.accepted(batch.body.len());
                return Ok(Resent::Accepted);
            }
            Ok(Resent::Otherwise(words.message))
        };
        target.proving.resent.get_or_try_init(resend).await.cloned()
    }

    /// Finds the newest accepted record of the entity that has no newer row of its key in the ledger. Returns it as a
    /// batch of its own.
    async fn known(&self, target: &Target) -> Result<Option<Batch>, RunError> {
        let mut looked_at = 0;
        for accepted in self.journal.accepted_lately(&target.entity_id, target.zone.name()).await? {
            for id in accepted.ids.iter().rev().filter(|id| !accepted.set_aside.contains(id)) {
                looked_at += 1;
                if looked_at > RECORDS_LOOKED_AT {
                    return Ok(None);
                }
                let found = self.known_record(target, id, &accepted).await?;
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }

    /// Returns a row as a batch of its own, if this version was in an accepted batch, and if it is the newest row of
    /// its key: no other row of the key supersedes it, or was uploaded after it or is pending.
    async fn known_record(
        &self,
        target: &Target,
        id: &LedgerId,
        accepted: &Accepted,
    ) -> Result<Option<Batch>, RunError> {
        let rows = self.ledger.rows_with_id(&target.entity_id, &id.to_string()).await?;
        let [row] = &rows[..] else { return Ok(None) };
        if row.xid > accepted.last_xid {
            return Ok(None);
        }
        let batch = Batch::build(None, rows.clone(), &target.zone);
        let [key] = batch.keys[..] else { return Ok(None) };
        let rivals = self.ledger.rivals(&target.entity_id, row).await?;
        let mut clock = Clock::of(&target.zone);
        let mut same_key = |rival: &Row| rival.id != row.id && key_hash(rival, &mut clock) == Some(key);
        let is_newest = rivals
            .iter()
            .filter(|rival| same_key(rival))
            .all(|rival| accepted.has_processed(rival.xid, &rival.id) && !batch.is_superseded_by(rival));
        Ok(is_newest.then_some(batch))
    }
}
