//! Dry runs: what a run or a backfill would do, without sending or recording anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::backfill::superseding::SupersedingRows;
use super::backfill::with_shared_names;
use super::batcher::{BatchLimits, Batcher};
use super::foreseen::{Foreseen, Foresight};
use super::lane_worker::Target;
use super::record_rules::record_rules;
use super::report::Unregistered;
use super::worker::progress;
use super::{BackfillError, Ended, EntityReport, RunError, RunReport, Worker};
use crate::batch::{Batch, RecordRules};
use crate::elven::List;
use crate::journal::{Asked, Counters, Entity, KnownName, Lane, MapHistory, RunStatus};
use crate::ledger::{self, LedgerError, PassRead, ProbeResult, Range};
use crate::watermark::Cursor;

/// What a backfill would do.
#[derive(Debug, Default, Serialize)]
pub struct DryRunReport {
    /// Totals.
    #[serde(flatten)]
    pub counters: Counters,
    /// One report for each entity.
    pub entities: Vec<EntityReport>,
    /// The number of batches, including batches without records to send.
    pub batches: i64,
    /// The record with the earliest instant, in the JSON that would be sent.
    pub first_record: Option<String>,
    /// The record with the latest instant.
    pub last_record: Option<String>,
    /// How long the backfill takes at `requests_per_second`. `None`: no limit is set.
    #[serde(skip)]
    pub at_rate: Option<Duration>,
    /// Accounts and currencies that no row has, in sentences.
    pub notes: Vec<String>,
    /// What would be set aside, and what the API does not know.
    pub foreseen: Foreseen,
    #[serde(skip)]
    first_at: Option<i64>,
    #[serde(skip)]
    last_at: Option<i64>,
}

impl Worker {
    /// Reads and aligns what a backfill would send, and changes nothing.
    pub async fn rehearse_backfill(&self, asked: &Asked) -> Result<DryRunReport, BackfillError> {
        let ranges = self.ranges(asked).await?;
        let notes = self.notes_of_filters(&ranges).await?;
        let rehearsal = self.rehearse_ranges(ranges.into_iter().map(|range| (range, None)).collect()).await?;
        Ok(DryRunReport { notes, ..rehearsal })
    }

    /// Reads and aligns what the rest of an unfinished backfill would send, and changes nothing.
    pub async fn rehearse_rest(&self, backfill_id: i64) -> Result<DryRunReport, BackfillError> {
        let lanes = self.journal.backfill_lanes(backfill_id).await?;
        if lanes.is_empty() {
            return Err(BackfillError::Refused(format!(
                "there is no backfill {backfill_id}; hint: elven-sync backfill list"
            )));
        }
        let left = lanes.into_iter().filter(|lane| !lane.is_finished);
        self.rehearse_ranges(left.map(|lane| (lane.range, lane.cursor)).collect()).await
    }

    async fn rehearse_ranges(
        &self,
        ranges: Vec<(Range, Option<Cursor>)>,
    ) -> Result<DryRunReport, BackfillError> {
        let entities = Entity::list(&self.database).await?;
        let of_range = |entity: &Entity| ranges.iter().any(|(range, _)| range.entity_id == entity.entity_id);
        let selected: Vec<Entity> = entities.iter().filter(|entity| of_range(entity)).cloned().collect();
        let ids: Vec<String> = ranges.iter().map(|(range, _)| range.entity_id.clone()).collect();
        self.refuse_other_journals(&ids).await?;
        let (targets, unusable) = self.targets(&selected).map_err(RunError::from)?;
        let targets = self.with_names(&targets.iter().collect::<Vec<_>>()).await?;
        let mut rehearsal = DryRunReport::default();
        let mut foresight = self.foresight(&selected).await?;
        let mut requests: BTreeMap<&str, i64> = BTreeMap::new();
        for (range, cursor) in ranges {
            let Some(target) = targets.iter().find(|target| target.entity_id == range.entity_id) else {
                continue;
            };
            let before = rehearsal.counters.requests;
            match self.rehearse_range(&mut rehearsal, &mut foresight, target, range, cursor).await {
                Err(RunError::Ledger(problem)) if problem.is_about_rows() => {
                    rehearsal
                        .entities
                        .push(EntityReport::failed(&target.entity_id, problem.in_words_of_entity()));
                }
                rehearsed => rehearsed?,
            }
            *requests.entry(&target.session.credential.name).or_default() +=
                rehearsal.counters.requests - before;
        }
        for (entity_id, problem) in unusable {
            rehearsal.entities.push(EntityReport::failed(&entity_id, problem.message));
        }
        rehearsal.foreseen = foresight.end();
        // Each credential has a rate of its own.
        let most = u32::try_from(requests.into_values().max().unwrap_or(0)).unwrap_or(u32::MAX);
        let rate = self.settings.api.requests_per_second;
        rehearsal.at_rate = rate.map(|rate| Duration::from_secs(most.into()) / rate.max(1));
        Ok(rehearsal)
    }

    async fn rehearse_range(
        &self,
        rehearsal: &mut DryRunReport,
        foresight: &mut Foresight,
        target: &Target,
        range: Range,
        mut cursor: Option<Cursor>,
    ) -> Result<(), RunError> {
        let range = Arc::new(with_shared_names(range, &target.rules.names));
        let pages = self.ledger.range(range.clone(), cursor.clone(), None, self.page_rows());
        let rivals = Arc::new(SupersedingRows::new(self.clone(), range));
        let start = self.invalid_start(&target.entity_id);
        let mut rows = Batcher::of(Box::new(pages), Some(rivals), start);
        let limits =
            BatchLimits { records: self.settings.sync.batch_rows, bytes: self.settings.sync.batch_bytes };
        let mut report = EntityReport::idle(&target.entity_id);
        loop {
            let batch = match rows.next_batch(cursor, &target.rules, limits).await {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                // This error would stop the lane.
                Err(RunError::Ledger(LedgerError::Shape(message))) => {
                    report.ended = Ended::Failed(message);
                    break;
                }
                Err(problem) => return Err(problem),
            };
            report.count(&batch);
            rehearsal.add(&batch);
            foresight.look(&target.entity_id, &batch);
            cursor = Some(batch.last);
        }
        report.rows_pending = Some(report.rows_read);
        rehearsal.entities.push(report);
        Ok(())
    }
}

impl DryRunReport {
    /// Whether a person should look: rows would be set aside, or a lane would fail.
    pub fn needs_a_person(&self) -> bool {
        self.foreseen.needs_a_person() || self.entities.iter().any(|entity| entity.failure().is_some())
    }

    fn add(&mut self, batch: &Batch) {
        self.counters.rehearse(batch);
        self.batches += 1;
        for &row in &batch.records {
            let at = batch.rows[row].captured_at_us;
            if self.first_at.is_none() || at < self.first_at {
                self.first_at = at;
                self.first_record = Some(batch.record(row));
            }
            if self.last_at.is_none() || at >= self.last_at {
                self.last_at = at;
                self.last_record = None;
            }
        }
        if self.last_record.is_none()
            && let Some(&last) = batch.records.iter().max_by_key(|&&row| batch.rows[row].captured_at_us)
        {
            self.last_record = Some(batch.record(last));
        }
    }
}

impl Worker {
    /// Reads and aligns what a run would send, and changes nothing.
    pub async fn dry_run(&self, only: &[String]) -> Result<RunReport, RunError> {
        let selected = self.select(only).await?;
        let ids: Vec<String> = selected.iter().map(|entity| entity.entity_id.clone()).collect();
        let lanes = self.journal.lanes(&ids, &self.mapping).await?;
        let probed = self.ledger.probe(&progress(&lanes)).await?;
        let mut maps = MapHistory::read(&self.database, &ids).await?;
        let mut foresight = self.foresight(&selected).await?;
        let mut entities = Vec::new();
        let mut counters = crate::journal::Counters::default();
        for entity in &selected {
            let lane = lanes.get(&entity.entity_id).cloned().unwrap_or_default();
            let checked = self.rules_to_rehearse(entity, &lane, &probed);
            let report = match checked {
                Ok(rules) => {
                    let names = Arc::new(maps.names(&entity.entity_id));
                    let rules = RecordRules { names, ..rules };
                    let entity_id = &entity.entity_id;
                    let mut see = |batch: &Batch| {
                        counters.rehearse(batch);
                        foresight.look(entity_id, batch);
                    };
                    self.rehearse(entity_id, &rules, &lane, &probed, &mut see).await?
                }
                Err(problem) => EntityReport::failed(&entity.entity_id, problem),
            };
            entities.push(report);
        }
        let unregistered =
            if only.is_empty() { self.unregistered(&lanes).await? } else { Unregistered::default() };
        let foreseen = foresight.end();
        let status = match unregistered.status(&entities, false) {
            RunStatus::Succeeded if foreseen.needs_a_person() => RunStatus::Incomplete,
            status => status,
        };
        Ok(RunReport {
            run_id: None,
            status,
            counters,
            entities,
            entities_left_out: unregistered.left_out.len(),
            unregistered: unregistered.entity_ids,
            unregistered_unknown: unregistered.unknown,
            notes: Vec::new(),
            foreseen: Some(foreseen),
            print: None,
        })
    }

    /// Prepares to collect what a dry run over these entities foresees.
    async fn foresight(&self, entities: &[Entity]) -> Result<Foresight, RunError> {
        let accounts = KnownName::all(&self.database, List::Accounts).await?;
        let currencies = KnownName::all(&self.database, List::Currencies).await?;
        let unusable = |name: &str| self.settings.credential(name).err().map(|problem| problem.to_string());
        Ok(Foresight::of(entities, [accounts, currencies], unusable))
    }

    /// Returns the rules for the records of an entity, apart from its names, or why a run would not work on it.
    fn rules_to_rehearse(
        &self,
        entity: &Entity,
        lane: &Lane,
        probed: &ledger::ProbeResult,
    ) -> Result<RecordRules, String> {
        let zone = self.settings.zones.get(&entity.timezone).map_err(|problem| problem.to_string())?;
        if let Some(unreadable) = probed.unreadable.get(&entity.entity_id) {
            return Err(unreadable.message.clone());
        }
        self.check_watermark(&entity.entity_id, lane, probed).map_err(|mismatch| mismatch.to_string())?;
        record_rules(&self.settings, entity, zone)
    }

    /// Reports what a run would do for an entity. `see` is called with each batch.
    pub(super) async fn rehearse(
        &self,
        entity_id: &str,
        rules: &RecordRules,
        lane: &Lane,
        probed: &ProbeResult,
        see: &mut (dyn FnMut(&Batch) + Send),
    ) -> Result<EntityReport, RunError> {
        let mut report = EntityReport::idle(entity_id);
        let target = lane.open.as_ref().map_or(&probed.target, |(_, target)| target);
        let page_rows = self.page_rows();
        let (settled, after) = (lane.settled.as_ref(), lane.cursor.clone());
        // Read from the primary: a standby is used only if it has replayed a recorded pass, and a dry run records none.
        let reading = PassRead { entity_id, pass_id: None, settled, target, after, until: None, page_rows };
        let pass = match self.ledger.pass(reading).await {
            Err(problem) if problem.is_about_rows() => {
                return Ok(EntityReport::failed(entity_id, problem.in_words_of_entity()));
            }
            pass => pass?,
        };
        let mut rows = Batcher::of(Box::new(pass), None, self.invalid_start(entity_id));
        let mut before = lane.cursor.clone();
        let limits =
            BatchLimits { records: self.settings.sync.batch_rows, bytes: self.settings.sync.batch_bytes };
        loop {
            match rows.next_batch(before, rules, limits).await {
                Ok(Some(batch)) => {
                    report.count(&batch);
                    see(&batch);
                    before = Some(batch.last);
                }
                Ok(None) => break,
                // This error would stop the lane.
                Err(RunError::Ledger(LedgerError::Shape(message))) => {
                    report.ended = Ended::Failed(message);
                    break;
                }
                // The dry run continues with the other entities.
                Err(RunError::Ledger(problem)) if problem.is_about_rows() => {
                    report.ended = Ended::Failed(problem.in_words_of_entity());
                    break;
                }
                Err(problem) => return Err(problem),
            }
        }
        report.rows_pending = if report.ended == Ended::Done { Some(report.rows_read) } else { None };
        Ok(report)
    }
}
