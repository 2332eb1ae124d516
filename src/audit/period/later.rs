//! Rows that no batch of their pass uploaded: rows that were set aside, skipped at registration, or read by a pass that was
//! pruned. What came later decides: a backfill, a retry, or who settled their errors.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::collector::{Collector, MadeBy, newest_rivals, winners_in};
use super::outcome::{Evidence, Judged, Outcome};
use super::waiting::{Touched, Undecided, Why};
use crate::audit::verify::RulesOfBatch;
use crate::batch::{Batch, unpack_ids};
use crate::database::Transaction;
use crate::journal::BatchState;
use crate::journal::period::{self as records, LooseBatch, NewestError};
use crate::ledger::Row;
use crate::sync::RunError;
use crate::watermark::LedgerId;

/// The words of a resolution before and after the row that was sent instead (`journal::Resolution::superseded`).
const SUPERSEDED_BY: (&str, &str) = ("superseded by row ", " of the same account, currency and second");

/// A later batch that uploaded rows, with its body if that can be made again.
struct Later {
    batch: LooseBatch,
    made: Option<Box<Batch>>,
    winners: HashMap<LedgerId, LedgerId>,
    /// Rows of the batch have changed since, or were deleted.
    is_changed: bool,
    rows: usize,
}

impl Collector<'_> {
    /// Judges the undecided rows.
    pub(super) async fn decide(&mut self, transaction: &mut Transaction) -> Result<(), RunError> {
        let undecided = std::mem::take(&mut self.state.undecided);
        if undecided.is_empty() {
            return Ok(());
        }
        let (sent_in, mut later) = self.later_batches(transaction, &undecided).await?;
        for later in later.values_mut() {
            self.make(transaction, later).await?;
        }
        let ids: HashSet<String> = undecided.iter().map(|row| row.row.id.to_string()).collect();
        let ids: Vec<String> = ids.into_iter().collect();
        let errors = records::newest_errors(transaction, &self.range.entity_id, &ids).await?;
        let mut without_winner = Vec::new();
        for Undecided { row, why } in undecided {
            let sent_in = sent_in.get(&row.id).and_then(|batch_id| later.get_mut(batch_id));
            if let Some(sent_in) = sent_in.filter(|later| why.is_before(&later.batch)) {
                sent_in.rows += 1;
                self.judge_later(&row, sent_in);
                continue;
            }
            let error = errors.get(&row.id.to_string()).cloned();
            match judged_by_error(why, error.clone()) {
                Some(judged) => self.judge(&row, &judged),
                None => without_winner.extend(error.map(|error| (row, why, error))),
            }
        }
        self.judge_released(transaction, without_winner).await?;
        for Later { batch, made, is_changed, rows, .. } in later.into_values() {
            let body = later_evidence(made.is_some(), is_changed);
            self.state.touched.push(Touched { batch_id: batch.batch_id, rows, body: Some(body) });
        }
        Ok(())
    }

    /// Finds the newest accepted batch of a backfill or a retry that lists each of these rows and did not set it aside.
    async fn later_batches(
        &self,
        transaction: &mut Transaction,
        undecided: &[Undecided],
    ) -> Result<(HashMap<LedgerId, i64>, BTreeMap<i64, Later>), RunError> {
        let wanted: HashSet<&LedgerId> = undecided.iter().map(|row| &row.row.id).collect();
        let mut sent_in: HashMap<LedgerId, i64> = HashMap::new();
        let mut later: BTreeMap<i64, Later> = BTreeMap::new();
        let mut behind = 0;
        loop {
            let page = records::loose_batches(transaction, &self.range.entity_id, behind, false).await?;
            let Some(last) = page.last() else { break };
            behind = last.batch_id;
            for batch in page.into_iter().filter(|batch| batch.state == BatchState::Accepted) {
                let set_aside: HashSet<LedgerId> = set_aside(&batch).into_iter().collect();
                let ids = unpack_ids(&batch.row_ids).unwrap_or_default();
                let mut sent =
                    ids.into_iter().filter(|id| wanted.contains(id) && !set_aside.contains(id)).peekable();
                if sent.peek().is_none() {
                    continue;
                }
                sent_in.extend(sent.map(|id| (id, batch.batch_id)));
                let (winners, is_changed) = (HashMap::new(), false);
                later.insert(batch.batch_id, Later { batch, made: None, winners, is_changed, rows: 0 });
            }
        }
        let relied: HashSet<i64> = sent_in.values().copied().collect();
        later.retain(|batch_id, _| relied.contains(batch_id));
        Ok((sent_in, later))
    }

    /// Makes the body of a later batch again. Another hash than the recorded one proves nothing: the batch may have left
    /// out rows that rivals outside it supersede.
    async fn make(&mut self, transaction: &mut Transaction, later: &mut Later) -> Result<(), RunError> {
        let batch = &later.batch;
        let made_by = MadeBy {
            zone: RulesOfBatch {
                timezone: batch.timezone.as_deref(),
                zone_rules: batch.zone_rules.as_deref(),
                tzdata: &batch.tzdata,
            },
            map_version: batch.map_version,
            api_version: batch.api_version,
            source_id: batch.source_id.as_deref(),
        };
        let Some(rules) = self.rules(transaction, made_by).await? else { return Ok(()) };
        let set_aside: HashSet<LedgerId> = set_aside(batch).into_iter().collect();
        let mut ids = unpack_ids(&batch.row_ids).unwrap_or_default();
        ids.retain(|id| !set_aside.contains(id));
        let texts: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let found = self.ledger()?.rows_with_ids_in(transaction, &self.range.entity_id, &texts).await?;
        let mut of_id: HashMap<LedgerId, Row> = found.into_iter().map(|row| (row.id.clone(), row)).collect();
        let rows: Vec<Row> = ids.iter().filter_map(|id| of_id.remove(id)).collect();
        later.is_changed = rows.len() != ids.len();
        if rows.is_empty() || later.is_changed {
            return Ok(());
        }
        let made = Batch::build(None, rows, &rules);
        if made.body_sha256 == batch.body_sha256 {
            later.winners = winners_in(&made);
            later.made = Some(Box::new(made));
        }
        Ok(())
    }

    /// Judges a row that a later batch uploaded.
    fn judge_later(&mut self, row: &Row, later: &Later) {
        let batch_id = Some(later.batch.batch_id);
        if let Some(winner) = later.winners.get(&row.id) {
            return self.judge(row, &Judged::superseded(winner.to_string(), batch_id));
        }
        let evidence = later_evidence(later.made.is_some(), later.is_changed);
        if let Some(made) = &later.made {
            let place = made.records.iter().find(|&&place| made.rows[place].id == row.id);
            if let Some(&place) = place {
                self.audit.totals.add_record(made.sent_names(place), row);
            }
        }
        self.judge(row, &Judged::uploaded(evidence, batch_id));
    }

    /// Judges rows whose error the connector resolved, although no batch is recorded that sent them: a rival was uploaded
    /// instead, or the batch was pruned.
    async fn judge_released(
        &mut self,
        transaction: &mut Transaction,
        rows: Vec<(Row, Why, NewestError)>,
    ) -> Result<(), RunError> {
        if rows.is_empty() {
            return Ok(());
        }
        let rules = self.present_rules(transaction).await?;
        let alone: Vec<Row> = rows.iter().map(|(row, ..)| row.clone()).collect();
        let rivals = self.rivals(transaction, &rules, &alone).await?;
        let winners = newest_rivals(&alone, &rivals, &rules);
        for (row, _, error) in rows {
            let resolution = error.resolution.clone().unwrap_or_default();
            let judged = if let Some(winner) = winners.get(&row.id) {
                Judged::superseded(winner.to_string(), None)
            } else {
                let why = format!(
                    "error {} is resolved ({resolution}), but no batch that sent the row is recorded",
                    error.error_id
                );
                Judged::new(Outcome::Unaccounted, why)
            };
            self.judge(&row, &judged.with_error(error));
        }
        Ok(())
    }
}

/// Judges a row by its newest error. `None`: the connector resolved the error, and it has to be found out why.
fn judged_by_error(why: Why, error: Option<NewestError>) -> Option<Judged> {
    let Some(error) = error else {
        return Some(match why {
            Why::SetAside(batch_id) => {
                let why = format!("batch {batch_id} set it aside, but it has no error in sync_errors");
                Judged::new(Outcome::Unaccounted, why).by_batch(Some(batch_id))
            }
            Why::FromNow(_) => Judged::new(Outcome::NotSynced, "skipped at registration with --from-now"),
            Why::Pruned => Judged::uploaded(Evidence::Folded, None),
        });
    };
    let Some(resolution) = &error.resolution else {
        let said = format!("error {}, {}: {}", error.error_id, error.kind, error.cause);
        let judged = Judged::new(Outcome::SetAside, said);
        return Some(judged.by_batch(why.batch_id()).with_error(error));
    };
    if error.dismissed {
        let why = format!("error {} was closed by hand: {resolution}", error.error_id);
        return Some(Judged::new(Outcome::NotSynced, why).with_error(error));
    }
    match why {
        Why::FromNow(_) => {
            return Some(Judged::new(Outcome::NotSynced, "skipped at registration with --from-now"));
        }
        Why::Pruned => return Some(Judged::uploaded(Evidence::Folded, None)),
        Why::SetAside(_) => {}
    }
    let (before, after) = SUPERSEDED_BY;
    if let Some(winner) = resolution.strip_prefix(before).and_then(|rest| rest.strip_suffix(after)) {
        return Some(Judged::superseded(winner, None).with_error(error));
    }
    // The words of `Delivery::why_resolved`; the batch of the retry was pruned.
    let is_uploaded = resolution.ends_with("uploaded") || resolution.starts_with("uploaded ");
    is_uploaded.then(|| Judged::uploaded(Evidence::Folded, None).with_error(error))
}

/// The rows of a batch that it set aside.
fn set_aside(batch: &LooseBatch) -> Vec<LedgerId> {
    match &batch.rejected_ids {
        Some(packed) => unpack_ids(packed).unwrap_or_default(),
        None if batch.rows_rejected > 0 && batch.row_count == 0 => {
            unpack_ids(&batch.row_ids).unwrap_or_default()
        }
        None => Vec::new(),
    }
}

fn later_evidence(is_made: bool, is_changed: bool) -> Evidence {
    match (is_made, is_changed) {
        (true, _) => Evidence::Proven,
        (false, true) => Evidence::ChangedSince,
        (false, false) => Evidence::NotProvable,
    }
}
