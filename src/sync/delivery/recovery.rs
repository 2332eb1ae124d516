//! Recovery: finishes the batches that an earlier worker or slice left of a pass or a backfill.

use std::collections::{BTreeMap, VecDeque};

use tracing::Instrument;

use super::super::batcher::{Batcher, ReadSource};
use super::super::invalid_start::Start;
use super::super::lane::exit::LaneExit;
use super::super::log::batch_span;
use super::super::messages;
use super::Delivery;
use super::batch_task::{BatchTask, Redelivery};
use super::unanswered;
use super::unknown_outcome::{Leaf, SplitTree};
use crate::batch::{Batch, RecordForm, RecordRules};
use crate::config::OnAmbiguous;
use crate::fault_point::{Step, around};
use crate::journal::{BatchState, Kind, Problem, RecordedBatch};
use crate::ledger::Row;
use crate::watermark::Cursor;

impl Delivery {
    /// Replays the recorded batches beyond the cursor. Skips the processed ones, and sends the others again with the
    /// rows of their recorded intervals. Returns the cursor from which reading continues.
    pub(in crate::sync) async fn recover(&self, source: &ReadSource<'_>) -> Result<Option<Cursor>, LaneExit> {
        let recorded = around(Step::Recover, self.worker.journal.recorded(self.context())).await?;
        let (recorded, passed_over) = unanswered::apart(recorded);
        let mut parts: BTreeMap<i64, Vec<&RecordedBatch>> = BTreeMap::new();
        for part in &recorded {
            if let Some(parent_id) = part.parent_id {
                parts.entry(parent_id).or_default().push(part);
            }
        }
        let lineage = SplitTree::of(&recorded);
        let roots: Vec<&RecordedBatch> = recorded.iter().filter(|batch| batch.parent_id.is_none()).collect();
        self.refuse_gap(&roots).await?;
        self.redo_passed_over(source, &passed_over).await?;
        // All roots enter the window at once, so that the cursor moves over processed ones as soon as it reaches them.
        let mut open = Vec::new();
        for root in &roots {
            let mut leaves = vec![*root];
            while let Some(split) = leaves.iter().position(|leaf| leaf.state == BatchState::Split) {
                let split = leaves.swap_remove(split);
                leaves.extend(parts.get(&split.batch_id).into_iter().flatten());
            }
            leaves.retain(|leaf| !leaf.state.is_done());
            // Batches that stayed unknown come last, because they may stop the lane.
            leaves.sort_by_key(|leaf| (lineage.is_once(leaf), leaf.batch_id));
            let number = self.window.lock().await.push(root.last.clone(), leaves.len(), vec![root.batch_id]);
            open.push((number, *root, leaves));
        }
        let mut after = self.window.lock().await.cursor.clone();
        // Held back while all rows are invalid, as in `Batcher::next_batch`.
        let mut held: Vec<Redelivery<'_>> = Vec::new();
        for (number, root, leaves) in open {
            if !leaves.is_empty() {
                let interval = source.read(after.clone(), Some(root.last.clone())).await?;
                // Reading from a standby may take long.
                let rows =
                    self.unless_halted(Batcher::of(interval, None, self.start.clone()).all()).await??;
                let mut start = Start::Undecided;
                for leaf in leaves {
                    let rows: Vec<Row> =
                        rows.iter().filter(|row| leaf.ids.contains(&row.id.to_string())).cloned().collect();
                    let build = |rows| Batch::build(after.clone(), rows, &self.rules_of(leaf));
                    let batch = if rows.is_empty() { None } else { Some(build(rows)) };
                    held.push(Redelivery { root: number, whole: root, leaf, batch });
                    start = self.start.look(held.iter().filter_map(|redo| redo.batch.as_ref()))?;
                }
                if start == Start::Valid {
                    self.redo_all(&mut held, &lineage).await?;
                }
            }
            after = Some(root.last.clone());
        }
        self.redo_all(&mut held, &lineage).await?;
        self.pass_done().await?;
        Ok(after)
    }

    /// Moves the cursor over recovered batches that were done already, with no answer left that would move it.
    async fn pass_done(&self) -> Result<(), LaneExit> {
        let mut window = self.window.lock().await;
        if let Some(advance) = window.advance_over_done() {
            around(Step::Recover, self.worker.journal.pass_over(self.context(), advance)).await?;
            window.pass_done();
        }
        Ok(())
    }

    /// Sends the held-back batches again, root by root.
    async fn redo_all(
        &self,
        held: &mut Vec<Redelivery<'_>>,
        lineage: &SplitTree<'_>,
    ) -> Result<(), LaneExit> {
        let mut held = held.drain(..).peekable();
        let mut once = Vec::new();
        while let Some(redo) = held.next() {
            let (root, leaf) = (redo.root, redo.leaf);
            if lineage.is_once(leaf) {
                self.refuse_while_fenced()?;
            }
            if let Some(batch) = &redo.batch {
                self.start.let_through(batch);
            }
            let span = batch_span(leaf.batch_id);
            if let Some(task) = self.redo(redo).instrument(span).await? {
                if lineage.is_once(leaf) {
                    let task = BatchTask { once: true, ..task };
                    once.push(Leaf { task, parent_id: leaf.parent_id });
                } else {
                    self.waiting(self.deliver(task)).await?;
                }
            }
            if held.peek().is_none_or(|next| next.root != root) {
                let once = std::mem::take(&mut once);
                self.waiting(self.take_apart(once, lineage.good_parents())).await?;
                self.conclude(root).await?;
            }
        }
        Ok(())
    }

    /// Returns the rules for the records of a recorded batch.
    ///
    /// A batch that the API may have imported keeps its version and its source: with another source, the API would
    /// keep both its records and those that are sent again. Nothing of another batch is at Elven, so the batch takes
    /// the present source; the recorded one may be why the batch was refused.
    pub(super) fn rules_of(&self, leaf: &RecordedBatch) -> RecordRules {
        let kind = self.rules.form.currency_kind();
        let recorded = RecordForm::recorded(leaf.api_version, leaf.source_id.as_deref(), kind);
        match recorded.filter(|_| leaf.may_be_imported()) {
            Some(form) => RecordRules { form, ..self.rules.clone() },
            None => self.rules.clone(),
        }
    }

    /// Refuses recorded batches with a gap between them, because rows in a gap would count as processed. A crash leaves
    /// no gap; it comes from a batch that was deleted by hand or by a restore.
    async fn refuse_gap(&self, roots: &[&RecordedBatch]) -> Result<(), LaneExit> {
        let mut after = self.window.lock().await.cursor.clone();
        for root in roots {
            if root.before != after {
                let message = messages::gap(self.pass.work, root.batch_id, &self.pass.lease.entity_id);
                return Err(LaneExit::problem(Problem::of_lane(Kind::Watermark, message)));
            }
            after = Some(root.last.clone());
        }
        Ok(())
    }

    /// Prepares a recorded batch, or a part of one, to be sent again. `None`: none of its rows is left in the ledger.
    pub(super) async fn redo(&self, redo: Redelivery<'_>) -> Result<Option<BatchTask>, LaneExit> {
        let Redelivery { root, whole, leaf, batch } = redo;
        let Some(batch) = batch else {
            let mut window = self.window.lock().await;
            let advance = window.advance_after(root);
            let emptied = self.worker.journal.emptied(self.context(), leaf.batch_id, advance);
            around(Step::Empty, emptied).await?;
            window.part_done(root);
            return Ok(None);
        };
        if leaf.state.may_have_arrived() && self.worker.settings.sync.on_ambiguous == OnAmbiguous::Hold {
            return Err(LaneExit::problem(messages::held(leaf.batch_id, &self.pass.lease.entity_id)));
        }
        let mut batch = Batch { last: whole.last.clone(), ..batch };
        if let Some(rivals) = &self.rivals {
            batch = rivals.exclude_superseded(batch, &VecDeque::new()).await?;
        }
        self.refuse_fenced_again(leaf, &batch)?;
        if leaf.state.may_have_arrived() {
            self.warn_of_resending(leaf, &batch);
        }
        Ok(Some(BatchTask {
            lost: leaf.may_be_imported(),
            repeated: leaf.attempts > 0,
            unknown_runs: leaf.unknown_runs,
            is_part: leaf.parent_id.is_some(),
            ..BatchTask::new(leaf.batch_id, batch, root)
        }))
    }

    /// Says that a batch with an unknown outcome is sent again, and what else than its rows has changed meanwhile.
    fn warn_of_resending(&self, leaf: &RecordedBatch, batch: &Batch) {
        let same_bytes = batch.body_sha256 == leaf.body_sha256;
        let zone = &self.rules.zone;
        if batch.rules.form != self.rules.form {
            tracing::warn!(
                same_bytes,
                "the outcome of a batch is unknown; it is sent again for {}, for which it was made; other batches are \
                 made for {} now",
                batch.rules.form,
                self.rules.form
            );
        } else if leaf.zone_rules.as_ref().is_some_and(|rules| !zone.follows(rules)) {
            tracing::warn!(
                same_bytes,
                "the outcome of a batch is unknown; it is sent again by zone rules {}, but it was made by {}: Elven \
                 may have both times of a record whose wall-clock time differs",
                zone.rules(),
                leaf.zone_rules.as_deref().unwrap_or_default()
            );
        } else if leaf.map_version != self.rules.names.version && !same_bytes {
            tracing::warn!(
                same_bytes,
                "the outcome of a batch is unknown; it is sent again with the names of map version {}, but it was made \
                 with those of version {}: Elven may have a record under both names",
                self.rules.names.version.unwrap_or_default(),
                leaf.map_version.unwrap_or_default()
            );
        } else {
            tracing::warn!(same_bytes, "the outcome of a batch is unknown; it is sent again");
        }
    }
}
