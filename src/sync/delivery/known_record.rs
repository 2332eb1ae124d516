//! A record that was accepted before is sent again to prove that a credential is good.

use std::sync::Arc;

use tracing::Instrument;

use super::super::concurrency::ConcurrencyLimits;
use super::super::lane::exit::LaneExit;
use super::super::lane::lane_run::LaneRun;
use super::super::lane_worker::{LaneWorker, Target};
use super::super::log::batch_span;
use super::super::progress::Progress;
use super::super::proving::Resent;
use super::super::{EntityReport, RunError};
use super::attempts::Tried;
use super::{Delivery, DeliveryOptions};
use crate::align::NameMap;
use crate::batch::{Batch, RecordRules, key_hash};
use crate::journal::{Accepted, OpenWork, WorkKind};
use crate::ledger::Row;
use crate::watermark::LedgerId;

/// The most accepted records that are examined to find one that may be sent again.
const RECORDS_LOOKED_AT: usize = 100;

impl Delivery {
    /// Sends the newest accepted record of the entity again that is still the newest of its key. Does so once in a run,
    /// and records it like a retry.
    pub(super) async fn resend_known(&self) -> Result<Resent, LaneExit> {
        let resend = async || match self.known().await? {
            Some(batch) => self.resend(batch).await,
            None => Ok(Resent::Nothing),
        };
        self.target.proving.resent.get_or_try_init(resend).await.cloned()
    }

    /// Sends a batch by a delivery of its own.
    async fn resend(&self, batch: Batch) -> Result<Resent, LaneExit> {
        // With limits of its own: the batches that wait for this one may have all permits of the shared limits.
        let limits = Arc::new(ConcurrencyLimits::new(&self.worker.settings.sync));
        let worker = LaneWorker { limits, progress: Progress::default(), ..self.worker.clone() };
        let lane_run = LaneRun {
            worker: &worker,
            run_id: self.run_id,
            target: &self.target,
            since: self.since,
            permit: None,
            has_rows_set_aside: false,
            start: self.start.clone(),
            lease: self.pass.lease.clone(),
            report: EntityReport::idle(&self.target.entity_id),
        };
        let work = OpenWork::new(self.pass.lease.clone(), WorkKind::Retry);
        let delivery = Self::new(&lane_run, work, None, DeliveryOptions::default());
        let sending = async {
            delivery.worker.journal.recorded(delivery.context()).await?;
            let announced = delivery.announce(batch).await?;
            self.target.proving.count();
            let task = delivery.announced(announced).await?;
            let span = batch_span(task.batch_id);
            Box::pin(delivery.send_until_final(task)).instrument(span).await
        };
        match sending.await {
            Ok(Tried::Accepted) => Ok(Resent::Accepted),
            Ok(Tried::Refused(answered, _) | Tried::Unknown(answered)) => {
                delivery.record_answer(&answered.task, &answered.outcome, answered.result).await?;
                Ok(Resent::Otherwise(answered.outcome.message))
            }
            Err(LaneExit::Fenced(_)) => {
                let why = "not sent, because a request whose answer was lost may still arrive";
                Ok(Resent::Otherwise(why.to_owned()))
            }
            Err(LaneExit::Problem(problem, _)) => Ok(Resent::Otherwise(problem.message)),
            Err(LaneExit::Shutdown) => {
                Ok(Resent::Otherwise("not sent, because the process had to stop".to_owned()))
            }
            Err(exit) => Err(exit),
        }
    }

    /// Finds the newest accepted record of the entity that has no newer row of its key in the ledger. Returns it as a
    /// batch of its own.
    async fn known(&self) -> Result<Option<Batch>, RunError> {
        let Target { entity_id, rules, .. } = &self.target;
        let mut looked_at = 0;
        for accepted in self.worker.journal.accepted_lately(entity_id, rules).await? {
            for id in accepted.ids.iter().rev().filter(|id| !accepted.set_aside.contains(id)) {
                looked_at += 1;
                if looked_at > RECORDS_LOOKED_AT {
                    return Ok(None);
                }
                let found = self.known_record(id, &accepted).await?;
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }

    /// Returns a row as a batch of its own, if this version was in an accepted batch, and if it is the newest row of
    /// its key: no other row of the key supersedes it, or was uploaded after it or is pending.
    async fn known_record(&self, id: &LedgerId, accepted: &Accepted) -> Result<Option<Batch>, RunError> {
        let (ledger, Target { entity_id, rules, .. }) = (&self.worker.ledger, &self.target);
        let rows = ledger.rows_with_id(entity_id, &id.to_string()).await?;
        let [row] = &rows[..] else { return Ok(None) };
        if row.xid > accepted.last_xid || has_other_names(row, rules, accepted) {
            return Ok(None);
        }
        let batch = Batch::build(None, rows.clone(), rules);
        let [key] = batch.keys[..] else { return Ok(None) };
        let rivals = ledger.rivals(entity_id, row, &rules.names).await?;
        let mut aligner = rules.aligner();
        let mut same_key = |rival: &Row| rival.id != row.id && key_hash(rival, &mut aligner) == Some(key);
        let is_newest = rivals
            .iter()
            .filter(|rival| same_key(rival))
            .all(|rival| accepted.has_processed(rival.xid, &rival.id) && !batch.is_superseded_by(rival));
        Ok(is_newest.then_some(batch))
    }
}

/// Whether the maps of the names of a row have changed since a batch was made.
fn has_other_names(row: &Row, rules: &RecordRules, accepted: &Accepted) -> bool {
    let changed = |name: Option<&str>, map: &NameMap| name.and_then(|name| map.changed_in(name));
    let account = changed(row.account(), &rules.names.accounts);
    account.max(changed(row.currency(), &rules.names.currencies)) > accepted.map_version
}
