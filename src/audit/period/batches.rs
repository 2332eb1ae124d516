//! The batches and the exceptions of a period.

use std::collections::HashSet;

use super::collector::Collector;
use super::report::{AuditedBatch, KEPT_MAX, MadeWith};
use crate::batch::unpack_ids;
use crate::database::Transaction;
use crate::journal::period as records;
use crate::sync::RunError;

/// The ids of an exception that the report names.
const IDS_NAMED_MAX: usize = 20;

impl Collector<'_> {
    /// Reads the records of the batches that decided rows of the period, and forgets their numbers.
    pub(super) async fn describe(&mut self, transaction: &mut Transaction) -> Result<(), RunError> {
        let touched = std::mem::take(&mut self.state.touched);
        let ids: Vec<i64> = touched.iter().map(|batch| batch.batch_id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        for facts in records::batch_facts(transaction, &ids).await? {
            let batch_id = facts.batch_id;
            let of_batch = touched.iter().filter(|batch| batch.batch_id == batch_id);
            let rows_in_period = of_batch.clone().map(|batch| batch.rows).sum();
            let body = of_batch.clone().find_map(|batch| batch.body);
            let batch = AuditedBatch { facts, rows_in_period, body };
            if of_batch.count() > 0 {
                self.audit.batches += 1;
                *self.audit.made_with.entry(made_with(&batch)).or_default() += 1;
            } else if !self.state.split.insert(batch.facts.batch_id) {
                continue;
            }
            self.add_batch(batch);
        }
        Ok(())
    }

    fn add_batch(&mut self, batch: AuditedBatch) {
        self.evidence.batch(&self.range.entity_id, &batch);
        self.audit.unsettled += usize::from(batch.is_unsettled());
        if batch.facts.ambiguous || batch.is_unsettled() {
            self.audit.ambiguous.push(batch, KEPT_MAX);
        }
    }

    /// Reads the batches of backfills and retries that have rows of the period and whose outcome is or was unknown.
    pub(super) async fn read_open_batches(&mut self, transaction: &mut Transaction) -> Result<(), RunError> {
        let mut behind = 0;
        loop {
            let entity_id = &self.range.entity_id;
            let page = records::loose_batches(transaction, entity_id, behind, true).await?;
            let Some(last) = page.last() else { return Ok(()) };
            behind = last.batch_id;
            for batch in page {
                let ids: Vec<String> =
                    unpack_ids(&batch.row_ids).unwrap_or_default().iter().map(ToString::to_string).collect();
                let rows = self.ledger()?.ids_in_period(transaction, self.range, &ids).await?.len();
                if rows == 0 || self.is_described(batch.batch_id) {
                    continue;
                }
                for facts in records::batch_facts(transaction, &[batch.batch_id]).await? {
                    if facts.batch_id == batch.batch_id {
                        self.add_batch(AuditedBatch { facts, rows_in_period: rows, body: None });
                    }
                }
            }
        }
    }

    fn is_described(&self, batch_id: i64) -> bool {
        self.audit.ambiguous.first.iter().any(|batch| batch.facts.batch_id == batch_id)
    }

    /// Reads the errors about rows of the period, and who settled them.
    pub(super) async fn read_exceptions(&mut self, transaction: &mut Transaction) -> Result<(), RunError> {
        let ledger = self.ledger()?;
        let mut behind = 0;
        loop {
            let page = records::row_exceptions(transaction, &self.range.entity_id, behind).await?;
            let Some(last) = page.last() else { return Ok(()) };
            behind = last.error_id;
            let ids: Vec<String> = page.iter().flat_map(|error| error.ledger_ids.iter().cloned()).collect();
            let mut here: HashSet<String> = HashSet::new();
            for ids in ids.chunks(KEPT_MAX) {
                here.extend(ledger.ids_in_period(transaction, self.range, ids).await?);
            }
            for mut error in page {
                error.ledger_ids.retain(|id| here.contains(id));
                error.rows = error.ledger_ids.len();
                if error.rows == 0 {
                    continue;
                }
                if error.resolved_at.is_none() {
                    let released: HashSet<&String> = error.released.iter().collect();
                    error.open_rows = error.ledger_ids.iter().filter(|id| !released.contains(id)).count();
                }
                self.audit.rows_with_open_error += error.open_rows;
                self.evidence.exception(&error);
                error.released.clear();
                error.ledger_ids.truncate(IDS_NAMED_MAX);
                self.audit.exceptions.push(error, KEPT_MAX);
            }
        }
    }
}

fn made_with(batch: &AuditedBatch) -> MadeWith {
    let facts = batch.facts.clone();
    MadeWith {
        version: facts.version,
        timezone: facts.timezone,
        zone_rules: facts.zone_rules,
        map_version: facts.map_version,
        api_version: facts.api_version,
        source_id: facts.source_id,
    }
}
