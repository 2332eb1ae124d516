//! Judges the rows of a period while `verify` reads their batches.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::batches::Touched;
use super::later::{Undecided, Why};
use super::outcome::{AuditedRow, Evidence, Judged, Outcome};
use super::report::{EntityAudit, EvidenceSink};
use crate::align::{Clock, Zone, Zones};
use crate::audit::verify::{BatchListener, Beginning, Body, CheckedLeaf, ReadBatch, XidSpan, rules_of};
use crate::batch::{Batch, RecordForm, RecordRules, key_hash, unpack_ids};
use crate::database::Transaction;
use crate::journal::audit::{Change, JournalBatch};
use crate::journal::{BatchState, JournalError, Lane, MapHistory};
use crate::ledger::{Ledger, Population, Range, Row, instant_us};
use crate::sync::RunError;
use crate::watermark::{Cursor, LedgerId, Order};

/// The most rows that wait to be judged together.
const UNDECIDED_MAX: usize = 20_000;

/// The most batches whose records are read together.
const TOUCHED_MAX: usize = 500;

/// Judges the rows of a period of an entity.
pub(super) struct Collector<'a> {
    pub(super) zones: &'a Zones,
    pub(super) zone: &'a Zone,
    pub(super) range: &'a Range,
    pub(super) evidence: &'a mut dyn EvidenceSink,
    pub(super) audit: EntityAudit,
    pub(super) state: State,
}

/// What belongs to one attempt of the check.
pub(super) struct State {
    clock: Clock,
    ledger: Option<Ledger>,
    pub(super) lane: Lane,
    pub(super) others: Vec<Change>,
    /// The watermark belongs to this ledger.
    pub(super) fits: bool,
    population: Population,
    maps: Option<MapHistory>,
    pub(super) undecided: Vec<Undecided>,
    pub(super) touched: Vec<Touched>,
    /// The split batches that are reported already.
    pub(super) split: BTreeSet<i64>,
}

impl State {
    fn new(zone: &Zone) -> Self {
        Self {
            clock: Clock::of(zone),
            ledger: None,
            lane: Lane::default(),
            others: Vec::new(),
            fits: false,
            population: Population { rows: 0, xids: None },
            maps: None,
            undecided: Vec::new(),
            touched: Vec::new(),
            split: BTreeSet::new(),
        }
    }
}

impl<'a> Collector<'a> {
    pub(super) fn new(
        zones: &'a Zones,
        zone: &'a Zone,
        range: &'a Range,
        evidence: &'a mut dyn EvidenceSink,
    ) -> Self {
        Self { zones, zone, range, evidence, audit: EntityAudit::default(), state: State::new(zone) }
    }

    /// Returns the audit. Rows that were not read to the end, because the database cannot read one of them, are
    /// unaccounted.
    pub(super) fn into_audit(mut self) -> EntityAudit {
        let counted: i64 =
            Outcome::ALL.iter().map(|outcome| self.audit.totals.of_outcome(*outcome).rows).sum();
        self.audit.rows_nowhere = (self.audit.rows - counted).max(0);
        self.audit
    }

    pub(super) fn ledger(&self) -> Result<Ledger, RunError> {
        let closed = || JournalError::from(sqlx::Error::PoolClosed);
        Ok(self.state.ledger.clone().ok_or_else(closed)?)
    }

    /// The period, apart from the borrow of the collector.
    fn range(&self) -> &'a Range {
        self.range
    }

    pub(super) fn contains(&self, row: &Row) -> bool {
        let Range { from, to, .. } = self.range;
        row.captured_at_us.is_some_and(|at| (instant_us(*from)..instant_us(*to)).contains(&at))
    }

    /// Counts a row, and gives it to the sink.
    pub(super) fn judge(&mut self, row: &Row, judged: &Judged) {
        self.audit.totals.add(row, judged.outcome, judged.evidence);
        let local = row.captured_at_us.and_then(|at| self.state.clock.at(at).ok());
        let row = AuditedRow { entity_id: &self.range.entity_id, row, local, judged };
        if judged.outcome != Outcome::Uploaded {
            self.audit.name(&row);
        }
        self.evidence.row(&row);
    }

    /// Returns the rules of the records of a batch. `None`: the rules of that time are not known any more.
    pub(super) async fn rules(
        &mut self,
        transaction: &mut Transaction,
        made: MadeBy<'_>,
    ) -> Result<Option<RecordRules>, RunError> {
        let Some(zone) = rules_of(transaction, self.zones, made.zone).await? else { return Ok(None) };
        let entity_id = &self.range().entity_id;
        let names = self.maps(transaction).await?.names_at(entity_id, made.map_version).into();
        let kind = self.ledger()?.mapping().currency_kind.unwrap_or_default();
        let form = RecordForm::recorded(made.api_version, made.source_id, kind);
        Ok(form.map(|form| RecordRules { zone, names, form }))
    }

    /// Returns the rules of the keys of records as they are now.
    pub(super) async fn present_rules(
        &mut self,
        transaction: &mut Transaction,
    ) -> Result<RecordRules, RunError> {
        let entity_id = &self.range().entity_id;
        let names = self.maps(transaction).await?.names(entity_id).into();
        Ok(RecordRules { names, ..self.zone.clone().into() })
    }

    async fn maps(&mut self, transaction: &mut Transaction) -> Result<&mut MapHistory, RunError> {
        let entity_id = &self.range().entity_id;
        Ok(match &mut self.state.maps {
            Some(maps) => maps,
            unread => unread.insert(MapHistory::read_in(transaction, entity_id).await?),
        })
    }

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

    /// Returns the rows of the ledger that may have the key of one of these rows.
    pub(super) async fn rivals(
        &self,
        transaction: &mut Transaction,
        rules: &RecordRules,
        rows: &[Row],
    ) -> Result<Vec<Row>, RunError> {
        let entity_id = &self.range().entity_id;
        Ok(self.ledger()?.rivals_in(transaction, entity_id, rows, &rules.names).await?)
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
        Beginning { ledger, lane, others, fits }: Beginning<'_>,
    ) -> Result<(), RunError> {
        self.evidence.begin(&self.range.entity_id);
        let Range { entity_id, from, to, .. } = self.range;
        self.audit =
            EntityAudit { entity_id: entity_id.clone(), from: *from, to: *to, ..EntityAudit::default() };
        self.state = State {
            ledger: Some(ledger.clone()),
            lane: lane.clone(),
            others: others.to_vec(),
            fits,
            population: ledger.population(transaction, self.range).await?,
            ..State::new(self.zone)
        };
        self.audit.rows = self.state.population.rows;
        Ok(())
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

/// What a batch records of the making of its body, besides its rows.
#[derive(Clone, Copy)]
pub(super) struct MadeBy<'a> {
    pub zone: crate::audit::verify::RulesOfBatch<'a>,
    pub map_version: Option<i64>,
    pub api_version: Option<i32>,
    pub source_id: Option<&'a str>,
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

/// Returns the superseded rows of a batch, each with the row that was sent instead.
pub(super) fn winners_in(made: &Batch) -> HashMap<LedgerId, LedgerId> {
    let pairs = made.superseded_rows().into_iter();
    pairs.map(|(loser, winner)| (loser.id.clone(), winner.id.clone())).collect()
}

/// Returns for each of these rows that has a newer rival its newest rival.
pub(super) fn newest_rivals(
    rows: &[Row],
    rivals: &[Row],
    rules: &RecordRules,
) -> HashMap<LedgerId, LedgerId> {
    let mut aligner = rules.aligner();
    let mut of_key: HashMap<u64, Vec<&Row>> = HashMap::new();
    for rival in rivals {
        if let Some(key) = key_hash(rival, &mut aligner) {
            of_key.entry(key).or_default().push(rival);
        }
    }
    let mut found = HashMap::new();
    for row in rows {
        let Some(same_key) = key_hash(row, &mut aligner).and_then(|key| of_key.get(&key)) else { continue };
        if same_key.iter().all(|rival| rival.id == row.id) {
            continue;
        }
        let alone = Batch::build(None, vec![row.clone()], rules);
        let newer = alone.superseded_by(same_key.iter().copied().filter(|rival| rival.id != row.id));
        if let Some(newest) = newer.into_iter().max_by_key(|rival| (rival.captured_at_us, &rival.id)) {
            found.insert(row.id.clone(), newest.id.clone());
        }
    }
    found
}

/// Returns the cursor of a page behind its last row.
pub(super) fn behind(rows: &[Row]) -> Option<Cursor> {
    rows.last().map(|row| row.cursor(Order::CapturedAt))
}
