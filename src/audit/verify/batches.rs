//! The check of the batches of a pass: their intervals touch, each batch is done, and its counts add up.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::chain::{Link, Stage};
use super::checker::Checker;
use super::finding::Finding;
use crate::batch::unpack_ids;
use crate::database::Transaction;
use crate::journal::BatchState;
use crate::journal::JournalError;
use crate::journal::audit::{self as records, JournalBatch};
use crate::sync::watermark_check::start_over;
use crate::watermark::{At, Cursor, LedgerId};

/// The number of parts of a batch that was split.
const PARTS: usize = 2;

/// Parts, by the batch that was split into them.
pub(super) type Parts = BTreeMap<i64, Vec<JournalBatch>>;

/// Reads the parts of these batches, and the parts of those parts.
pub(super) async fn parts(
    transaction: &mut Transaction,
    roots: &[JournalBatch],
) -> Result<Parts, JournalError> {
    let batch_ids: Vec<i64> = roots.iter().map(|root| root.batch_id).collect();
    let mut parts = Parts::new();
    if batch_ids.is_empty() {
        return Ok(parts);
    }
    for part in records::parts_of(transaction, &batch_ids).await? {
        parts.entry(part.parent_id.unwrap_or_default()).or_default().push(part);
    }
    Ok(parts)
}

/// The state of the check of the batches of a pass, in order.
pub(super) struct Walk<'a> {
    link: &'a Link,
    /// The end of the last batch.
    at: Option<Cursor>,
    /// The cursor of an open pass is reached, or is at the start.
    is_behind_cursor: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn of(link: &'a Link) -> Self {
        Self { link, at: None, is_behind_cursor: link.stage == Stage::Open(None) }
    }
}

/// The rows that a batch claims for its interval, to be compared with the ledger.
pub(super) struct Claim<'a> {
    pub link: &'a Link,
    pub after: Option<Cursor>,
    pub until: Option<Cursor>,
    /// The whole batch. `None`: the interval after the last batch, in which there may be no row.
    pub batch_id: Option<i64>,
    /// The ids of the rows, each with the number of rows that have it: rows may share an id.
    pub ids: HashMap<LedgerId, u32>,
    /// The number of rows.
    pub rows: usize,
    /// The rows are processed; otherwise they are pending.
    pub is_done: bool,
    /// The batches or parts that were sent or set aside.
    pub leaves: Vec<Leaf>,
    /// The bodies of the leaves are rebuilt.
    pub is_sampled: bool,
}

/// A batch or a part that was not split, and its rows.
pub(crate) struct Leaf {
    pub batch: JournalBatch,
    pub ids: Vec<LedgerId>,
}

impl Checker<'_> {
    /// Checks successive batches of a pass, and adds their claims.
    pub(super) fn go_over<'a>(
        &mut self,
        walk: &mut Walk<'a>,
        roots: Vec<JournalBatch>,
        parts: &Parts,
        claims: &mut Vec<Claim<'a>>,
    ) {
        for root in roots {
            let (batch_id, last) = (root.batch_id, root.last.clone());
            if root.before != walk.at {
                self.report.find(
                    Finding::new(
                        "gap",
                        format!(
                            "batch {batch_id} begins {}, but the part of the pass before it ends {}: a batch was \
                             removed or altered, and the rows between are unknown; hint: restore it from a backup, \
                             or {}",
                            place(root.before.as_ref()),
                            place(walk.at.as_ref()),
                            start_over(self.entity_id)
                        ),
                    )
                    .of_pass(walk.link.pass_id)
                    .of_batch(Some(batch_id))
                    .mended_by_rewind(),
                );
            }
            let leaves = self.leaves(root, parts);
            let is_done = leaves.iter().all(|leaf| leaf.batch.state.is_done());
            if !is_done && !walk.is_behind_cursor {
                self.report.find(
                    Finding::new(
                        "unfinished",
                        format!(
                            "the watermark is past batch {batch_id}, but this batch or a part of it has no answer: its \
                             status was altered, or the watermark was moved; hint: {}",
                            start_over(self.entity_id)
                        ),
                    )
                    .of_pass(walk.link.pass_id)
                    .of_batch(Some(batch_id))
                    .mended_by_rewind(),
                );
            }
            let mut ids = HashMap::new();
            for id in leaves.iter().flat_map(|leaf| &leaf.ids) {
                *ids.entry(id.clone()).or_insert(0) += 1;
            }
            claims.push(Claim {
                link: walk.link,
                after: walk.at.take(),
                until: Some(last.clone()),
                batch_id: Some(batch_id),
                rows: leaves.iter().map(|leaf| leaf.ids.len()).sum(),
                ids,
                is_done: is_done && !walk.is_behind_cursor,
                leaves,
                is_sampled: self.sample.takes_next(),
            });
            if matches!(&walk.link.stage, Stage::Open(Some(cursor)) if *cursor == last) {
                walk.is_behind_cursor = true;
            }
            walk.at = Some(last);
        }
    }

    /// Checks the end of a pass: its last batch ends where the pass was closed, and no row comes after it.
    pub(super) fn end<'a>(&mut self, walk: Walk<'a>, claims: &mut Vec<Claim<'a>>) {
        let Walk { link, at, is_behind_cursor } = walk;
        if link.is_open() {
            self.recorded_to.clone_from(&at);
        }
        let closed = match &link.stage {
            // The rows after the last batch are pending.
            Stage::Open(_) if is_behind_cursor => return,
            Stage::Open(_) => {
                let message = format!(
                    "no batch of the open pass ends at its cursor: the cursor was moved by hand, or a batch was \
                     removed; hint: {}",
                    start_over(self.entity_id)
                );
                self.report.find(Finding::new("gap", message).of_pass(link.pass_id).mended_by_rewind());
                return;
            }
            Stage::Closed(last) => last,
        };
        if closed.is_some() && *closed != at {
            let message = format!(
                "the pass was closed {}, but its last batch ends {}: a batch was removed or altered; hint: restore it \
                 from a backup, or {}",
                place(closed.as_ref()),
                place(at.as_ref()),
                start_over(self.entity_id)
            );
            self.report.find(Finding::new("gap", message).of_pass(link.pass_id).mended_by_rewind());
        }
        claims.push(Claim {
            link,
            after: at,
            until: None,
            batch_id: None,
            ids: HashMap::new(),
            rows: 0,
            is_done: true,
            leaves: Vec::new(),
            is_sampled: false,
        });
    }

    /// Returns the leaves of a batch: the batch itself, or its parts that were not split again. Each is checked.
    fn leaves(&mut self, root: JournalBatch, parts: &Parts) -> Vec<Leaf> {
        let mut leaves = Vec::new();
        let mut nodes = vec![root];
        while let Some(node) = nodes.pop() {
            let ids = self.ids(&node);
            let parts = parts.get(&node.batch_id).map_or(&[][..], Vec::as_slice);
            let expected = if node.state == BatchState::Split { PARTS } else { 0 };
            let own: HashSet<&LedgerId> =
                if parts.is_empty() { HashSet::new() } else { ids.iter().collect() };
            let fits = |part: &JournalBatch| {
                part.last == node.last
                    && unpack_ids(&part.row_ids).is_some_and(|ids| ids.iter().all(|id| own.contains(id)))
            };
            if parts.len() != expected || !parts.iter().all(fits) {
                let message = format!(
                    "batch {} is `{}` and has {} parts, which do not hold its rows: a part or the status was altered, \
                     or a part was removed; hint: restore it from a backup, or {}",
                    node.batch_id,
                    node.status,
                    parts.len(),
                    start_over(self.entity_id)
                );
                let finding = Finding::new("parts", message).of_pass(node.pass_id);
                self.report.find(finding.of_batch(Some(node.batch_id)).mended_by_rewind());
            }
            if parts.is_empty() {
                leaves.push(Leaf { ids, batch: node });
            } else {
                nodes.extend(parts.iter().cloned());
            }
        }
        leaves
    }

    /// Returns the rows of a batch, and checks that its lists and counts agree.
    fn ids(&mut self, batch: &JournalBatch) -> Vec<LedgerId> {
        let listed = unpack_ids(&batch.row_ids);
        let rejected = batch.rejected_ids.as_deref().map(unpack_ids);
        let number = |count: i32| usize::try_from(count).ok();
        let wrong = if batch.entity_id != self.entity_id {
            Some("belongs to another entity than its pass")
        } else if listed.is_none() || rejected == Some(None) {
            Some("has a list of rows that cannot be read")
        } else if listed.as_ref().map(Vec::len) != number(batch.rows_read) {
            Some("lists more or fewer rows than it read (rows_read)")
        } else if batch.rows_read != batch.row_count + batch.rows_rejected + batch.rows_superseded {
            Some("read rows that were not sent, set aside or superseded")
        } else if let Some(Some(rejected)) = &rejected
            && Some(rejected.len()) != number(batch.rows_rejected)
        {
            Some("lists more or fewer rows as set aside than it counts (rows_rejected)")
        } else if let (Some(listed), Some(Some(rejected))) = (&listed, &rejected)
            && !rejected.is_empty()
            && !is_part(rejected, listed)
        {
            Some("lists rows as set aside that it did not read")
        } else {
            None
        };
        if let Some(wrong) = wrong {
            let message = format!(
                "batch {} {wrong}: its row in sync_batches was altered; hint: restore it from a backup, or {}",
                batch.batch_id,
                start_over(self.entity_id)
            );
            let finding = Finding::new("counts", message).of_pass(batch.pass_id);
            self.report.find(finding.of_batch(Some(batch.batch_id)).mended_by_rewind());
        }
        listed.unwrap_or_default()
    }
}

/// Returns whether all `rows` are in `of`.
fn is_part(rows: &[LedgerId], of: &[LedgerId]) -> bool {
    let of: HashSet<&LedgerId> = of.iter().collect();
    rows.iter().all(|row| of.contains(row))
}

fn place(cursor: Option<&Cursor>) -> String {
    match cursor {
        Some(Cursor { at: At::Xid(xid), id }) => format!("after row {id} of transaction {xid}"),
        Some(Cursor { at: At::Instant(_), id }) => format!("after row {id}"),
        None => "at its start".to_owned(),
    }
}
