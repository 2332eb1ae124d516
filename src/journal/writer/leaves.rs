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
    /// has finished has no leaf, and is passed over.
    pub(super) async fn chain(
        mut self,
        transaction: &mut Transaction,
        lanes: &mut BTreeMap<String, LockedLane>,
    ) -> Result<(), JournalError> {
        let passed = lanes.values().flat_map(|lane| &lane.passed);
        let earlier: Vec<i64> = passed.filter(|batch_id| !self.0.contains_key(batch_id)).copied().collect();
        if !earlier.is_empty() {
            let leaves = sqlx::query!(
                r#"select batch_id, leaf as "leaf!" from elven_sync.sync_batches
                    where batch_id = any ($1) and leaf is not null"#,
                &earlier
            )
            .fetch_all(transaction)
            .await?;
            let digest = |leaf: Vec<u8>| {
                Digest::try_from(leaf).map_err(|_| sqlx::Error::Decode("a leaf has 32 bytes".into()))
            };
            for row in leaves {
                self.0.insert(row.batch_id, digest(row.leaf)?);
            }
        }
        for lane in lanes.values_mut() {
            lane.chain(&self.0);
        }
        Ok(())
    }
}
