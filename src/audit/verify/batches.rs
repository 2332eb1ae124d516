//! The batches of a pass: their intervals touch, each is done, and what it says of itself adds up.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::chain::{Link, Stage};
use super::checker::Checker;
use super::finding::Finding;
use crate::batch::unpack_ids;
use crate::database::Transaction;
use crate::journal::BatchState;
use crate::journal::JournalError;
use crate::journal::audit::{self as records, JournalBatch};
use crate::watermark::{At, Cursor, LedgerId};

/// The parts of a batch that was split.
const PARTS: usize = 2;

/// Parts, by the batch that they are parts of.
pub(super) type Parts = BTreeMap<i64, Vec<JournalBatch>>;

/// The parts of these batches, and theirs.
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

/// A way through the batches of a pass.
pub(super) struct Walk<'a> {
    link: &'a Link,
    /// Where the last batch ended.
    at: Option<Cursor>,
    /// The cursor of an open pass has been met, or is at the start.
    is_behind_cursor: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn of(link: &'a Link) -> Self {
        Self { link, at: None, is_behind_cursor: link.stage == Stage::Open(None) }
    }
}

/// What a batch says of an interval, to be compared with the ledger.
pub(super) struct Claim<'a> {
    pub link: &'a Link,
    pub after: Option<Cursor>,
    pub until: Option<Cursor>,
    /// The whole batch. `None`: there is none, nor may there be a row.
    pub batch_id: Option<i64>,
    /// How often the ledger may hold each row there: rows may share an id.
    pub ids: HashMap<LedgerId, u32>,
    /// Rows in all.
    pub rows: usize,
    /// Its rows are dealt with. Else they wait.
    pub is_done: bool,
    /// The batches, or parts, that were sent or set aside.
    pub leaves: Vec<Leaf>,
    /// Their bodies are made again.
    pub is_sampled: bool,
}

/// A batch, or a part, that was not split, and its rows.
pub(super) struct Leaf {
    pub batch: JournalBatch,
    pub ids: Vec<LedgerId>,
}

impl Checker<'_> {
    /// Goes over batches of a pass that follow each other, and adds what they claim.
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
                            "batch {batch_id} begins {}, but what is before it in the pass ends {}: a batch was removed or \
                             altered, and what rows lie between is not known; hint: restore it from a backup, or \
                             `elven-sync entity rewind` uploads again",
                            place(root.before.as_ref()),
                            place(walk.at.as_ref())
                        ),
                    )
                    .of_pass(walk.link.pass_id)
                    .of_batch(Some(batch_id)),
                );
            }
            let leaves = self.leaves(root, parts);
            let is_done = leaves.iter().all(|leaf| leaf.batch.state.is_done());
            if !is_done && !walk.is_behind_cursor {
                self.report.find(
                    Finding::new(
                        "unfinished",
                        format!(
                            "the watermark is past batch {batch_id}, but it, or a part of it, has no answer: its status was \
                             altered, or the watermark moved; hint: `elven-sync entity rewind` uploads again"
                        ),
                    )
                    .of_pass(walk.link.pass_id)
                    .of_batch(Some(batch_id)),
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

    /// The end of a pass: its last batch ends where it was closed, and behind that there is no row.
    pub(super) fn end<'a>(&mut self, walk: Walk<'a>, claims: &mut Vec<Claim<'a>>) {
        let Walk { link, at, is_behind_cursor } = walk;
        let closed = match &link.stage {
            // What is behind the last batch waits.
            Stage::Open(_) if is_behind_cursor => return,
            Stage::Open(_) => {
                let message = "no batch of the open pass ends where its cursor is: the cursor was moved by hand, or a \
                               batch removed; hint: `elven-sync entity rewind` uploads again";
                self.report.find(Finding::new("gap", message).of_pass(link.pass_id));
                return;
            }
            Stage::Closed(last) => last,
        };
        if closed.is_some() && *closed != at {
            let message = format!(
                "the pass was closed {}, but its last batch ends {}: a batch was removed or altered; hint: restore it \
                 from a backup, or `elven-sync entity rewind` uploads again",
                place(closed.as_ref()),
                place(at.as_ref())
            );
            self.report.find(Finding::new("gap", message).of_pass(link.pass_id));
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

    /// What became of a batch in the end: itself, or the parts of its parts; each checked by itself.
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
                    "batch {} is `{}` and has {} parts that are to hold its rows: a part was removed or altered, or its \
                     status was; hint: restore it from a backup, or `elven-sync entity rewind` uploads again",
                    node.batch_id,
                    node.status,
                    parts.len()
                );
                self.report
                    .find(Finding::new("parts", message).of_pass(node.pass_id).of_batch(Some(node.batch_id)));
            }
            if parts.is_empty() {
                leaves.push(Leaf { ids, batch: node });
            } else {
                nodes.extend(parts.iter().cloned());
            }
        }
        leaves
    }

    /// The rows of a batch, of which what it says of itself has to add up.
    fn ids(&mut self, batch: &JournalBatch) -> Vec<LedgerId> {
        let listed = unpack_ids(&batch.row_ids);
        let rejected = batch.rejected_ids.as_deref().map(unpack_ids);
        let number = |count: i32| usize::try_from(count).ok();
        let wrong = if batch.entity_id != self.entity_id {
            Some("is another entity's than its pass")
        } else if listed.is_none() || rejected == Some(None) {
            Some("has a list of rows that cannot be read")
        } else if listed.as_ref().map(Vec::len) != number(batch.rows_read) {
            Some("lists more or fewer rows than it has read (rows_read)")
        } else if batch.rows_read != batch.row_count + batch.rows_rejected + batch.rows_superseded {
            Some("has read rows that were neither sent nor set aside nor superseded")
        } else if let Some(Some(rejected)) = &rejected
            && Some(rejected.len()) != number(batch.rows_rejected)
        {
            Some("lists more or fewer rows as set aside than it counts (rows_rejected)")
        } else if let (Some(listed), Some(Some(rejected))) = (&listed, &rejected)
            && !rejected.is_empty()
            && !is_part(rejected, listed)
        {
            Some("lists rows as set aside that it has not read")
        } else {
            None
        };
        if let Some(wrong) = wrong {
            let message = format!(
                "batch {} {wrong}: its row in sync_batches was altered; hint: restore it from a backup, or `elven-sync \
                 entity rewind` uploads again",
                batch.batch_id
            );
            self.report
                .find(Finding::new("counts", message).of_pass(batch.pass_id).of_batch(Some(batch.batch_id)));
        }
        listed.unwrap_or_default()
    }
}

/// All of these rows are among the others.
fn is_part(rows: &[LedgerId], of: &[LedgerId]) -> bool {
    let of: HashSet<&LedgerId> = of.iter().collect();
    rows.iter().all(|row| of.contains(row))
}

fn place(cursor: Option<&Cursor>) -> String {
    match cursor {
        Some(Cursor { at: At::Xid(xid), id }) => format!("behind row {id} of transaction {xid}"),
        Some(Cursor { at: At::Instant(_), id }) => format!("behind row {id}"),
        None => "at its start".to_owned(),
    }
}
