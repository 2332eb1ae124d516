//! Listens to `verify`: judges the rows of each batch by the batch itself, as far as that decides.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::collector::{Collector, MadeBy, newest_rivals, winners_in};
use super::outcome::{Evidence, Judged, Outcome};
use super::waiting::{Touched, Undecided, Why};
use crate::audit::verify::{BatchListener, Beginning, Body, CheckedLeaf, ReadBatch, XidSpan};
use crate::batch::unpack_ids;
use crate::database::Transaction;
use crate::journal::BatchState;
use crate::journal::audit::JournalBatch;
use crate::ledger::Row;
use crate::sync::RunError;
use crate::watermark::{Cursor, LedgerId};

/// The most rows that wait to be judged together.
const UNDECIDED_MAX: usize = 20_000;

/// The most batches whose records are read together.
const TOUCHED_MAX: usize = 500;

impl Collector<'_> {
    /// Judges the rows of the period that a batch lists.
    async fn judge_leaf(
        &mut self,
        transaction: &mut Transaction,
        CheckedLeaf { leaf, body }: CheckedLeaf,
        rows: Vec<Row>,
    ) -> Result<(), RunError> {
        let batch = &leaf.batch;
        let batch_id = Some(batch.batch_id);
        let evidence = evidence(&body);
        self.state.touched.push(Touched { batch_id: batch.batch_id, rows: rows.len(), body: evidence });
        let is_answered =
            matches!(batch.state, BatchState::Accepted | BatchState::SetAside | BatchState::Retryable);
        let set_aside = SetAsideRows::of(batch);
        let mut sent = Vec::with_capacity(rows.len());
        for row in rows {
            if is_answered && set_aside.has(&row.id) {
                self.state.undecided.push(Undecided { row, why: Why::SetAside(batch.batch_id) });
            } else if batch.state != BatchState::Accepted {
                let why = format!("it is in batch {}, which is `{}`", batch.batch_id, batch.status);
                self.judge(&row, &Judged::new(Outcome::Pending, why).by_batch(batch_id));
            } else {
                sent.push(row);
            }
        }
        let ids = &leaf.ids;
        let winners = match &body {
            _ if batch.rows_superseded == 0 || sent.is_empty() => HashMap::new(),
            Body::Proven(made) => winners_in(made),
            _ => self.winners(transaction, batch, ids, &sent).await?,
        };
        let evidence = evidence.unwrap_or(Evidence::NotProvable);
        for row in &sent {
            let judged = match winners.get(&row.id) {
                Some(winner) => Judged::superseded(winner.to_string(), batch_id),
                None => Judged::uploaded(evidence, batch_id),
            };
            self.judge(row, &judged);
        }
        if let Body::Proven(made) = &body {
            for &place in &made.records {
                if self.contains(&made.rows[place]) {
                    self.audit.totals.add_record(made.sent_names(place), &made.rows[place]);
                }
            }
        }
        Ok(())
    }

    /// Returns the newer rivals of rows of a batch whose body cannot be made again, as far as they can still be
    /// identified: rows of the batch that the ledger still has with the same key.
    async fn winners(
        &mut self,
        transaction: &mut Transaction,
        batch: &JournalBatch,
        ids: &[LedgerId],
        rows: &[Row],
    ) -> Result<HashMap<LedgerId, LedgerId>, RunError> {
        let Some(rules) = self.rules(transaction, MadeBy::of(batch)).await? else {
            return Ok(HashMap::new());
        };
        let ids: HashSet<&LedgerId> = ids.iter().collect();
        let mut rivals = self.rivals(transaction, &rules, rows).await?;
        rivals.retain(|rival| ids.contains(&rival.id));
        Ok(newest_rivals(rows, &rivals, &rules))
    }

    /// Judges what has come together.
    async fn judge_collected(&mut self, transaction: &mut Transaction) -> Result<(), RunError> {
        if self.state.undecided.len() >= UNDECIDED_MAX {
            self.decide(transaction).await?;
        }
        if self.state.touched.len() >= TOUCHED_MAX {
            self.describe(transaction).await?;
        }
        Ok(())
    }
}

impl BatchListener for Collector<'_> {
    fn span(&self) -> Option<XidSpan> {
        // An empty span: no row, no batch.
        let (first, last) = self.state.population.xids.unwrap_or((1, 0));
        Some(first..=last)
    }

    async fn begin(
        &mut self,
        transaction: &mut Transaction,
        beginning: Beginning<'_>,
    ) -> Result<(), RunError> {
        self.start(transaction, beginning).await
    }

    async fn read(
        &mut self,
        transaction: &mut Transaction,
        ReadBatch { link, mut leaves, rows }: ReadBatch<'_>,
    ) -> Result<(), RunError> {
        let rows: Vec<Row> = rows.into_iter().filter(|row| self.contains(row)).collect();
        if rows.is_empty() {
            return Ok(());
        }
        // The last batch that lists a row counts.
        leaves.sort_by_key(|leaf| leaf.leaf.batch.batch_id);
        let mut leaf_of: HashMap<LedgerId, usize> = HashMap::new();
        for (place, leaf) in leaves.iter().enumerate() {
            leaf_of.extend(leaf.leaf.ids.iter().map(|id| (id.clone(), place)));
        }
        let mut of_leaf: BTreeMap<usize, Vec<Row>> = BTreeMap::new();
        for row in rows {
            if let Some(place) = leaf_of.get(&row.id) {
                of_leaf.entry(*place).or_default().push(row);
                continue;
            }
            let judged = if link.is_open() {
                let why =
                    format!("it belongs to pass {}, which is open and has not read it yet", link.pass_id);
                Judged::new(Outcome::Pending, why)
            } else {
                let why = format!(
                    "it belongs to the closed pass {}, and no batch of the pass lists it",
                    link.pass_id
                );
                Judged::new(Outcome::Unaccounted, why)
            };
            self.judge(&row, &judged);
        }
        for (place, leaf) in leaves.into_iter().enumerate() {
            if let Some(rows) = of_leaf.remove(&place) {
                self.judge_leaf(transaction, leaf, rows).await?;
            }
        }
        self.judge_collected(transaction).await
    }

    async fn end(
        &mut self,
        transaction: &mut Transaction,
        recorded_to: Option<Cursor>,
    ) -> Result<(), RunError> {
        self.decide(transaction).await?;
        if self.state.fits {
            self.judge_rest(transaction, recorded_to.as_ref()).await?;
        }
        self.describe(transaction).await?;
        self.read_exceptions(transaction).await?;
        self.read_open_batches(transaction).await
    }
}

impl<'a> MadeBy<'a> {
    fn of(batch: &'a JournalBatch) -> Self {
        Self {
            zone: batch.rules(),
            map_version: batch.map_version,
            api_version: batch.api_version,
            source_id: batch.source_id.as_deref(),
        }
    }
}

/// The rows of a batch that it set aside.
enum SetAsideRows {
    All,
    These(HashSet<LedgerId>),
}

impl SetAsideRows {
    fn of(batch: &JournalBatch) -> Self {
        match &batch.rejected_ids {
            Some(packed) => Self::These(unpack_ids(packed).unwrap_or_default().into_iter().collect()),
            // From before these ids were recorded.
            None if batch.rows_rejected > 0 && batch.row_count == 0 => Self::All,
            None => Self::These(HashSet::new()),
        }
    }

    fn has(&self, id: &LedgerId) -> bool {
        match self {
            Self::All => true,
            Self::These(ids) => ids.contains(id),
        }
    }
}

fn evidence(body: &Body) -> Option<Evidence> {
    Some(match body {
        Body::Empty => return None,
        Body::Proven(_) => Evidence::Proven,
        Body::Changed => Evidence::ChangedSince,
        Body::NotProvable => Evidence::NotProvable,
        Body::Other => Evidence::Differs,
    })
}
