//! Proving that a credential and the endpoint are good where the call that reads gives no list, as for a key that may only
//! import: by the parts of a refused batch, and by a record that was accepted before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::{Mutex, OnceCell, OwnedMutexGuard};

use super::{RunError, Target, Worker};
use crate::align::Clock;
use crate::batch::{Batch, key_hash};
use crate::elven::Verdict;
use crate::fault_point::{Step, around};
use crate::journal::{LastAnswer, Lease};
use crate::ledger::Row;
use crate::watermark::LedgerId;

/// The most requests of an entity and a run while nothing is accepted, once a batch was refused.
const REQUESTS_MAX: u32 = 20;
/// So many accepted records are looked at to find one that may be sent again.
const RECORDS_LOOKED_AT: usize = 100;

/// The right to send a part in order to prove the credential: one at a time for an entity.
pub(super) type Permit = Arc<OwnedMutexGuard<()>>;

/// What was done for an entity in a run to prove that its credential is good.
#[derive(Debug, Default)]
pub(super) struct Proving {
    /// A batch was refused while nothing was proven.
    has_begun: AtomicBool,
    /// Imports that were sent since, and the refused ones before.
    requests: AtomicU32,
    turn: Arc<Mutex<()>>,
    resent: OnceCell<Resent>,
}

/// What came of sending a record again that was accepted before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resent {
    /// It was accepted again.
    Accepted,
    /// It was not; what came back.
    Otherwise(String),
    /// There is no such record.
    Nothing,
}

impl Proving {
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Relaxed)
    }

    /// Notes a refusal. `is_counted`: the request was counted when it was sent.
    pub(super) fn begin(&self, is_counted: bool) {
        self.has_begun.store(true, Ordering::Relaxed);
        if !is_counted {
            self.count();
        }
    }

    /// Counts a request.
    pub(super) fn count(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether one more part may be sent. One request is left for a record that was accepted before.
    pub(super) fn allows_more(&self) -> bool {
        self.requests.load(Ordering::Relaxed) + 1 < REQUESTS_MAX
    }

    /// Waits until nobody else sends parts of the entity to prove the credential.
    pub(super) async fn permit(&self) -> Permit {
        Arc::new(self.turn.clone().lock_owned().await)
    }
}

impl Worker {
    /// Sends the newest record again that was accepted before for the entity and still is the newest of its key; once a run,
    /// recorded like a retry. Needs the lease.
    pub(super) async fn resend_known(
        &self,
        run_id: i64,
        target: &Target,
        lease: &Lease,
    ) -> Result<Resent, RunError> {
        let resend = async || {
            let Some(batch) = self.known(target).await? else { return Ok(Resent::Nothing) };
            let Target { channel, proving, .. } = target;
            if lease.fence.of_new(&batch).is_some() {
                let why = "not sent yet, since a request whose answer was lost may still arrive";
                return Ok(Resent::Otherwise(why.to_owned()));
            }
            match self.unless_stopped(channel.turn(self.settings.retry.max)).await {
                Some(Ok(())) => {}
                Some(Err(pause)) => return Ok(Resent::Otherwise(super::words::come_later(pause))),
                None => return Ok(Resent::Otherwise("not sent, since the process had to stop".to_owned())),
            }
            proving.count();
            let announced = self.journal.announce_alone(lease, run_id, &batch);
            let batch_id = around(Step::Announce, announced).await?;
            let (verdict, settlement, (attempts, ambiguous)) = self.ask(channel, lease, &batch).await?;
            let accepted = verdict == Verdict::Accepted;
            let words = super::words::of(&verdict, settlement.http_status, &batch, &channel.credential.name);
            let last = LastAnswer {
                status: if accepted { "accepted" } else { words.status },
                error: (!accepted).then_some(words.message.as_str()),
                attempts,
                ambiguous,
                stays_set_aside: false,
            };
            let answered =
                self.journal.answered_alone(lease, run_id, (batch_id, &batch), last, settlement, None);
            around(Step::Settle, answered).await?;
            if accepted {
                channel.accepted(batch.body.len());
                return Ok(Resent::Accepted);
            }
            Ok(Resent::Otherwise(words.message))
        };
        target.proving.resent.get_or_try_init(resend).await.cloned()
    }

    /// The newest record that was accepted before for the entity, as a batch of its own, as long as no other row of its key
    /// has come to the ledger since.
    async fn known(&self, target: &Target) -> Result<Option<Batch>, RunError> {
        let mut looked_at = 0;
        for accepted in self.journal.accepted_lately(&target.entity_id, target.zone.name()).await? {
            for id in accepted.ids.iter().rev().filter(|id| !accepted.set_aside.contains(id)) {
                looked_at += 1;
                if looked_at > RECORDS_LOOKED_AT {
                    return Ok(None);
                }
                let found = self.known_record(target, id, accepted.last_xid).await?;
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }

    /// A row whose version was in a batch that ends with this transaction, if it is the newest of its key.
    async fn known_record(
        &self,
        target: &Target,
        id: &LedgerId,
        last_xid: u64,
    ) -> Result<Option<Batch>, RunError> {
        let rows = self.ledger.rows_with_id(&target.entity_id, &id.to_string()).await?;
        let [row] = &rows[..] else { return Ok(None) };
        if row.xid > last_xid {
            return Ok(None);
        }
        let batch = Batch::build(None, rows.clone(), &target.zone);
        let [key] = batch.keys[..] else { return Ok(None) };
        let rivals = self.ledger.rivals(&target.entity_id, row).await?;
        let mut clock = Clock::of(&target.zone);
        let mut same_key = |rival: &Row| rival.id != row.id && key_hash(rival, &mut clock) == Some(key);
        // What came later was uploaded later, or waits.
        let is_newest = rivals
            .iter()
            .filter(|rival| same_key(rival))
            .all(|rival| rival.xid <= last_xid && !batch.is_superseded_by(rival));
        Ok(is_newest.then_some(batch))
    }
}
