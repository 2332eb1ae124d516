//! The state of the audit of an entity, and what its parts share.

use std::collections::{BTreeSet, HashMap};

use super::outcome::{AuditedRow, Judged, Outcome};
use super::report::{EntityAudit, EvidenceSink};
use super::waiting::{Touched, Undecided};
use crate::align::{Clock, Zone, Zones};
use crate::audit::verify::{Beginning, RulesOfBatch, rules_of};
use crate::batch::{Batch, RecordForm, RecordRules, key_hash};
use crate::database::Transaction;
use crate::journal::audit::Change;
use crate::journal::{JournalError, Lane, MapHistory};
use crate::ledger::{Ledger, Population, Range, Row, instant_us};
use crate::sync::RunError;
use crate::watermark::{Cursor, LedgerId, Order};

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
    pub(super) population: Population,
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

    /// Begins, perhaps once more after the connection was lost.
    pub(super) async fn start(
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
}

/// What a batch records of the making of its body, besides its rows.
#[derive(Clone, Copy)]
pub(super) struct MadeBy<'a> {
    pub zone: RulesOfBatch<'a>,
    pub map_version: Option<i64>,
    pub api_version: Option<i32>,
    pub source_id: Option<&'a str>,
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
