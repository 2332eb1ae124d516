//! Recovery: what an earlier worker, or slice, has left of a pass or a backfill.

use std::collections::{BTreeMap, VecDeque};

use super::super::lane::Halt;
use super::super::rows::{Rows, Source};
use super::super::words;
use super::{Delivery, Node};
use crate::batch::Batch;
use crate::config::OnAmbiguous;
use crate::fault_point::{Step, around};
use crate::journal::{Kind, Problem, Recorded};
use crate::ledger::Row;
use crate::watermark::Cursor;

impl Delivery {
    /// Replays what the journal has of the pass or backfill beyond the cursor: what is done is passed over, the rest is sent
    /// over its recorded interval. Returns where to go on reading.
    pub(in crate::sync) async fn recover(&self, source: &Source<'_>) -> Result<Option<Cursor>, Halt> {
        let recorded = around(Step::Recover, self.worker.journal.recorded(&self.pass)).await?;
        let mut parts: BTreeMap<i64, Vec<&Recorded>> = BTreeMap::new();
        for part in &recorded {
            if let Some(parent_id) = part.parent_id {
                parts.entry(parent_id).or_default().push(part);
            }
        }
        let roots: Vec<&Recorded> = recorded.iter().filter(|batch| batch.parent_id.is_none()).collect();
        self.refuse_gap(&roots).await?;
        // All at once, so that the cursor passes over those that are done as soon as those before them are.
        let mut open = Vec::new();
        for root in &roots {
            let mut leaves = vec![*root];
            while let Some(split) = leaves.iter().position(|leaf| leaf.is_split) {
                let split = leaves.swap_remove(split);
                leaves.extend(parts.get(&split.batch_id).into_iter().flatten());
            }
            leaves.retain(|leaf| !leaf.is_done);
            leaves.sort_by_key(|leaf| leaf.batch_id);
            let number = self.window.lock().await.push(root.last.clone(), leaves.len());
            open.push((number, *root, leaves));
        }
        let mut after = self.window.lock().await.cursor.clone();
        for (number, root, leaves) in open {
            if !leaves.is_empty() {
                let interval = source.read(after.clone(), Some(root.last.clone())).await?;
                // A standby may let us wait for long.
                let rows = self.or_halt(Rows::of(interval, None).all()).await??;
                for leaf in leaves {
                    let rows =
                        rows.iter().filter(|row| leaf.ids.contains(&row.id.to_string())).cloned().collect();
                    self.redo(number, root, leaf, rows, after.clone()).await?;
                }
            }
            after = Some(root.last.clone());
        }
        Ok(after)
    }

    /// Makes sure that each recorded batch begins where the one before it ends: what lies between would be taken for done.
    /// No crash leaves such a gap; somebody has deleted a batch, or a restore has.
    async fn refuse_gap(&self, roots: &[&Recorded]) -> Result<(), Halt> {
        let mut after = self.window.lock().await.cursor.clone();
        for root in roots {
            if root.before != after {
                let message = words::gap(self.pass.course, root.batch_id, &self.pass.lease.entity_id);
                return Err(Halt::problem(Problem::of_lane(Kind::Watermark, message)));
            }
            after = Some(root.last.clone());
        }
        Ok(())
    }

    /// Sends a recorded batch, or a part of one, over again.
    async fn redo(
        &self,
        root: usize,
        whole: &Recorded,
        leaf: &Recorded,
        rows: Vec<Row>,
        before: Option<Cursor>,
    ) -> Result<(), Halt> {
        if rows.is_empty() {
            let mut window = self.window.lock().await;
            let advance = window.advance_after(root);
            let emptied = self.worker.journal.emptied(self.doing(), leaf.batch_id, advance);
            around(Step::Empty, emptied).await?;
            window.part_done(root);
            return Ok(());
        }
        if leaf.may_have_arrived && self.worker.settings.sync.on_ambiguous == OnAmbiguous::Hold {
            return Err(Halt::problem(words::held(leaf.batch_id, &self.pass.lease.entity_id)));
        }
        let mut batch = Batch { last: whole.last.clone(), ..Batch::build(before, rows, &self.zone) };
        if let Some(rivals) = &self.rivals {
            batch = rivals.apart(batch, &VecDeque::new()).await?;
        }
        let has_other_rules = leaf.zone_rules.as_ref().is_some_and(|rules| !self.zone.follows(rules));
        if leaf.may_have_arrived && has_other_rules {
            tracing::warn!(
                entity_id = self.pass.lease.entity_id,
                batch_id = leaf.batch_id,
                same_bytes = batch.body_sha256 == leaf.body_sha256,
                "the outcome of a batch is unknown; it is sent again by zone rules {}, while it was made by {}: records \
                 whose wall-clock time differs may be at Elven with both",
                self.zone.rules(),
                leaf.zone_rules.as_deref().unwrap_or_default()
            );
        } else if leaf.may_have_arrived {
            tracing::warn!(
                entity_id = self.pass.lease.entity_id,
                batch_id = leaf.batch_id,
                same_bytes = batch.body_sha256 == leaf.body_sha256,
                "the outcome of a batch is unknown; it is sent again"
            );
        }
        let node = Node {
            batch_id: leaf.batch_id,
            batch,
            root,
            room: None,
            signed: None,
            lost: leaf.may_have_arrived,
            repeated: leaf.attempts > 0,
            unknown_runs: leaf.unknown_runs,
        };
        self.deliver(node).await
    }
}
