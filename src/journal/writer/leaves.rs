//! Leaves and running digests of the batches that a transaction finishes.

use std::collections::BTreeMap;

use super::super::JournalError;
use super::super::digests::Digest;
use super::super::leaves::{LeafState, Sealed, leaf, seal, seal_parents};
use super::answers::Before;
use super::lanes::LockedLane;
use super::write::{Answer, WriteRequest};
use crate::database::Transaction;

/// The leaves that a transaction writes, by batch.
#[derive(Debug, Default)]
pub(super) struct Leaves(BTreeMap<i64, Digest>);

impl Leaves {
    /// Makes the leaves of the batches that are done with these answers.
    pub(super) fn of(answers: &[(&WriteRequest, &Answer)], before: &BTreeMap<i64, Before>) -> Self {
        let leaf_of = |(request, answer): &(&WriteRequest, &Answer)| {
            let answered = &answer.answered;
            // A batch that is not found is refused when its answer is written.
            let before = before.get(&answered.batch_id).filter(|_| answer.is_final())?;
            let state = LeafState {
                batch_id: answered.batch_id,
                entity_id: &answered.entity_id,
                pass_id: request.pass.work.pass_id(),
                backfill_id: request.pass.work.backfill_id(),
                parent_id: before.parent_id,
                status: answered.status,
                http_status: answered.result.http_status,
                attempts: before.attempts - i32::from(answered.withdrawn),
                ambiguous: before.ambiguous || (answer.is_rewritten && before.is_unknown),
            };
            Some((answered.batch_id, leaf(state, &answer.contents(), &[])))
        };
        Self(answers.iter().filter_map(leaf_of).collect())
    }

    /// Returns the leaves by batch.
    pub(super) fn by_batch(&self) -> &BTreeMap<i64, Digest> {
        &self.0
    }

    /// Writes the leaves of batches of which nothing was left to send, and of those whose last part is done now.
    pub(super) async fn seal(
        &mut self,
        transaction: &mut Transaction,
        emptied: &[i64],
        before: &BTreeMap<i64, Before>,
    ) -> Result<(), JournalError> {
        let emptied = seal(transaction, emptied).await?;
        let answered = self.0.keys().filter_map(|batch_id| before.get(batch_id)?.parent_id);
        let parent_ids = answered.chain(emptied.iter().filter_map(|sealed| sealed.parent_id));
        let parents = seal_parents(transaction, parent_ids.collect::<Vec<_>>().into_iter()).await?;
        let leaf_of = |sealed: Sealed| (sealed.batch_id, sealed.leaf);
        self.0.extend(emptied.into_iter().chain(parents).map(leaf_of));
        Ok(())
    }

    /// Moves the running digests of lanes over the batches that their cursors move over. A batch that an earlier version
    /// has finished has no leaf, and is passed over. A part stands for the batch that was split.
    pub(super) async fn chain(
        mut self,
        transaction: &mut Transaction,
        lanes: &mut BTreeMap<String, LockedLane>,
        before: &BTreeMap<i64, Before>,
    ) -> Result<(), JournalError> {
        let is_part = |batch_id: &i64| before.get(batch_id).is_some_and(|before| before.parent_id.is_some());
        let passed = lanes.values().flat_map(|lane| &lane.passed);
        let others = passed.filter(|batch_id| is_part(batch_id) || !self.0.contains_key(batch_id));
        let others: Vec<i64> = others.copied().collect();
        if !others.is_empty() {
            let wholes = sqlx::query!(
                r#"with recursive whole (of, batch_id, parent_id, leaf) as (
                       select batch_id, batch_id, parent_id, leaf from elven_sync.sync_batches where batch_id = any ($1)
                        union all
                       select w.of, b.batch_id, b.parent_id, b.leaf
                         from whole w join elven_sync.sync_batches b on b.batch_id = w.parent_id)
                   select of as "of!", batch_id as "batch_id!", leaf as "leaf!" from whole
                    where parent_id is null and leaf is not null"#,
                &others
            )
            .fetch_all(transaction)
            .await?;
            let mut whole_of = BTreeMap::new();
            for row in wholes {
                let leaf = Digest::try_from(row.leaf)
                    .map_err(|_| sqlx::Error::Decode("a leaf has 32 bytes".into()))?;
                self.0.insert(row.batch_id, leaf);
                whole_of.insert(row.of, row.batch_id);
            }
            for lane in lanes.values_mut() {
                for batch_id in &mut lane.passed {
                    *batch_id = *whole_of.get(batch_id).unwrap_or(batch_id);
                }
                lane.passed.dedup();
            }
        }
        for lane in lanes.values_mut() {
            lane.chain(&self.0);
        }
        Ok(())
    }
}
