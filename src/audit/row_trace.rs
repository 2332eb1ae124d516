//! The trace of a ledger row: which batch sent it, or why it was not sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::key_search::require_registered;
use super::row_verdict::Verdict;
use super::verify::chain::{self, Chain, Link};
use crate::batch::{Batch, RecordForm, RecordRules};
use crate::config::Settings;
use crate::database::Database;
use crate::journal::audit::{self as records, Change};
use crate::journal::row_history::{self, BatchOfRow};
use crate::journal::{
    Entity, Health, JournalError, Lane, MapHistory, RecordedError, check_schema, guard_gap, registering,
};
use crate::ledger::{Ledger, Row};
use crate::sync::RunError;
use crate::text::{quoted_argument, quoted_option};
use crate::watermark::{LedgerId, Snapshot};

/// The trace of a row of an entity.
#[derive(Clone, Debug, Serialize)]
pub struct RowReport {
    /// The entity.
    pub entity_id: String,
    /// The row in the ledger as JSON; several rows if the id is not unique.
    pub rows: Vec<serde_json::Value>,
    /// The transaction that wrote its present version.
    pub change_xid: Option<u64>,
    /// The batches that list this or an earlier version of the row, in order.
    pub carried: Vec<BatchOfRow>,
    /// Its errors, newest first.
    pub errors: Vec<RecordedError>,
    /// The record of its present version as it was sent, as JSON. `None`: it was not uploaded, or the zone rules of
    /// that time are no longer in use.
    pub sent: Option<String>,
    /// Its state.
    pub verdict: Verdict,
    /// The state as a sentence.
    pub says: String,
}

impl RowReport {
    /// Says that the row may have changed while the trigger was broken: then it looks as if its present version had been
    /// sent.
    fn doubt(&mut self) {
        if self.sent.take().is_some() {
            self.says += "; the trigger of the ledger was broken, so the row may have been changed since; \
                          hint: elven-sync verify";
        }
    }
}

/// The facts about an entity that the trace of its rows needs.
struct Known<'a> {
    settings: &'a Settings,
    entity: Option<&'a Entity>,
    last_error: Option<&'a str>,
    lane: Lane,
    chain: Chain,
    maps: MapHistory,
}

/// Traces a row, for each entity that has it in the ledger or in the journal.
pub async fn of_row(
    settings: &Settings,
    database: &Database,
    written: &str,
    only: Option<&str>,
) -> Result<Vec<RowReport>, RunError> {
    check_schema(database).await?;
    let ledger = Ledger::open(database.clone(), None, settings).await?;
    let mut reports = traced(settings, database, &ledger, written, only).await?;
    if guard_gap(database, &ledger).await?.is_some() {
        reports.iter_mut().for_each(RowReport::doubt);
    }
    Ok(reports)
}

async fn traced(
    settings: &Settings,
    database: &Database,
    ledger: &Ledger,
    written: &str,
    only: Option<&str>,
) -> Result<Vec<RowReport>, RunError> {
    let entities = Entity::list(database).await?;
    let health = Health::list(database).await?;
    let id = ledger.id(written).await?;
    let mut holders = holders(ledger, &entities, &id).await?;
    holders.retain(|entity_id, _| only.is_none_or(|only| only == entity_id));
    let query = || async {
        let mut transaction = database.begin_snapshot().await.map_err(JournalError::from)?;
        let carried = row_history::carried(&mut transaction, &id, only).await?;
        let errors = row_history::errors_of(&mut transaction, &id, only, &carried).await?;
        let mut concerned: BTreeSet<String> = holders.keys().cloned().collect();
        concerned.extend(carried.iter().map(|batch| batch.entity_id.clone()));
        concerned.extend(errors.iter().map(|error| error.entity_id.clone()));
        let mut found = Vec::new();
        for entity_id in concerned {
            let lane = records::lane(&mut transaction, &entity_id).await?;
            let changes = records::changes(&mut transaction, &entity_id).await?;
            let chain = chain::follow(&entity_id, changes, &lane);
            let maps = MapHistory::read_in(&mut transaction, &entity_id).await?;
            found.push((entity_id, chain, lane, maps));
        }
        transaction.commit().await.map_err(JournalError::from)?;
        Ok::<_, RunError>((carried, errors, found))
    };
    let (carried, errors, found) = database.retry(query).await?;
    if found.is_empty() {
        require_registered(&entities, only)?;
    }
    let mut reports = Vec::new();
    for (entity_id, chain, lane, maps) in found {
        let rows = match ledger.rows_with_id(&entity_id, &id.to_string()).await {
            Err(problem) if problem.is_about_rows() => Err(problem.in_words_of_entity()),
            rows => Ok(rows?),
        };
        let of_entity = |health: &&Health| health.entity_id == entity_id;
        let known = Known {
            settings,
            entity: entities.iter().find(|entity| entity.entity_id == entity_id),
            last_error: health.iter().find(of_entity).and_then(|health| health.last_error.as_deref()),
            lane,
            chain,
            maps,
        };
        let carried: Vec<BatchOfRow> = carried.iter().filter(|b| b.entity_id == entity_id).cloned().collect();
        let errors: Vec<RecordedError> =
            errors.iter().filter(|error| error.entity_id == entity_id).cloned().collect();
        let (verdict, says) = match &rows {
            Ok(rows) => {
                let found = Found { rows, carried: &carried, errors: &errors };
                judge(ledger, &entity_id, &known, found).await?
            }
            Err(why) => (Verdict::Unreadable, format!("cannot be read: {why}")),
        };
        let rows = rows.unwrap_or_default();
        let sent = if verdict == Verdict::Uploaded { sent(&known, &rows, &carried) } else { None };
        reports.push(RowReport {
            sent,
            change_xid: rows.iter().map(|row| row.xid).max().or_else(|| holders.get(&entity_id).copied()?),
            rows: rows.iter().map(Row::to_json).collect(),
            entity_id,
            carried,
            errors,
            verdict,
            says,
        });
    }
    Ok(reports)
}

/// Returns the entities that have rows with an id, each with the transaction that wrote the newest of them. `None`:
/// these rows cannot be read.
///
/// If the rows of an entity cannot be read, the ledger is queried for each registered entity alone.
async fn holders(
    ledger: &Ledger,
    entities: &[Entity],
    id: &LedgerId,
) -> Result<BTreeMap<String, Option<u64>>, RunError> {
    match ledger.holders(id).await {
        Err(problem) if problem.is_about_rows() => {}
        holders => return Ok(holders?.into_iter().map(|(entity_id, xid)| (entity_id, Some(xid))).collect()),
    }
    let mut holders = BTreeMap::new();
    for Entity { entity_id, .. } in entities {
        let xid = match ledger.rows_with_id(entity_id, &id.to_string()).await {
            Err(problem) if problem.is_about_rows() => None,
            rows => match rows?.iter().map(|row| row.xid).max() {
                None => continue,
                newest => newest,
            },
        };
        holders.insert(entity_id.clone(), xid);
    }
    Ok(holders)
}

type Said = (Verdict, String);

/// What ledger and journal have of a row.
struct Found<'a> {
    /// The versions in the ledger; several if the id is not unique.
    rows: &'a [Row],
    carried: &'a [BatchOfRow],
    errors: &'a [RecordedError],
}

/// Finds the state of the present version of a row.
async fn judge(
    ledger: &Ledger,
    entity_id: &str,
    known: &Known<'_>,
    found: Found<'_>,
) -> Result<Said, RunError> {
    let Found { rows, carried, errors } = found;
    let Some(row) = rows.iter().max_by_key(|row| row.xid) else {
        let last = carried.iter().rfind(|batch| batch.status == "accepted" && !batch.set_aside);
        let says = match last {
            Some(batch) => {
                format!("was deleted from the ledger; its last version was uploaded {}", sent_in(batch))
            }
            None => "was deleted from the ledger; no version of it was uploaded".to_owned(),
        };
        return Ok((Verdict::Deleted, says));
    };
    let covers = |link: &&Link| {
        link.target.contains(row.xid)
            && !link.settled.as_ref().is_some_and(|settled| settled.contains(row.xid))
    };
    let Some(link) = known.chain.links.iter().rfind(covers) else {
        let said = not_in_a_pass(entity_id, known, row);
        let since = covering(known, row).and_then(|change| change.finished_at);
        let sent_later = |batch: &&BatchOfRow| is_sent_later(batch) && Some(batch.created_at) >= since;
        return match carried.iter().rfind(sent_later).filter(|_| said.0 == Verdict::Skipped) {
            Some(later) => later_upload(ledger, entity_id, known, row, later).await,
            None => Ok(said),
        };
    };
    let leaf = carried.iter().rfind(|batch| batch.pass_id == Some(link.pass_id) && batch.status != "split");
    let Some(leaf) = leaf else {
        return Ok(if link.is_open() {
            pending(
                known,
                &format!("it belongs to pass {}, which is open and has not read it yet", link.pass_id),
            )
        } else {
            let says = format!(
                "belongs to the closed pass {}, and no batch of the pass lists it; update the row in the ledger to \
                 upload it; hint: elven-sync verify {}",
                link.pass_id,
                quoted_option("--entity", entity_id)
            );
            (Verdict::Missing, says)
        });
    };
    if leaf.set_aside && matches!(leaf.status.as_str(), "accepted" | "rejected") {
        let later = carried.iter().rfind(|batch| batch.batch_id > leaf.batch_id && is_sent_later(batch));
        return match later {
            Some(later) => later_upload(ledger, entity_id, known, row, later).await,
            None => Ok(set_aside(leaf, errors)),
        };
    }
    if leaf.status != "accepted" {
        let says = format!("it is in batch {}, which is `{}`", leaf.batch_id, leaf.status);
        return Ok(pending(known, &says));
    }
    if leaf.has_superseded
        && let Some(newer) = superseded_by(ledger, entity_id, known, row, leaf).await?
    {
        return Ok((Verdict::Superseded, superseded(&newer, leaf)));
    }
    // A backfill or a retry sent it once more.
    let last = carried.iter().rfind(|batch| batch.status == "accepted" && !batch.set_aside);
    let again = last.filter(|last| last.batch_id > leaf.batch_id);
    let again = again.map_or_else(String::new, |last| format!("; and again {}", sent_in(last)));
    Ok((Verdict::Uploaded, format!("was uploaded {}{again}", sent_in(leaf))))
}

/// Finds the state of a row version that no pass of the journal includes.
fn not_in_a_pass(entity_id: &str, known: &Known<'_>, row: &Row) -> Said {
    if known.lane.settled.as_ref().is_some_and(|settled| settled.contains(row.xid)) {
        return match covering(known, row).map(|change| change.kind.as_str()) {
            Some("from_now") => (
                Verdict::Skipped,
                "was skipped, since it was in the ledger when the entity was registered with --from-now; update it in \
                 the ledger to upload it"
                    .to_owned(),
            ),
            Some(_) => (
                Verdict::Pruned,
                "was processed by a pass whose batches were pruned from the journal".to_owned(),
            ),
            None => (
                Verdict::Missing,
                format!(
                    "is within the watermark, but no pass of the journal includes it; hint: elven-sync verify {}",
                    quoted_option("--entity", entity_id)
                ),
            ),
        };
    }
    let why = match &known.lane.settled {
        _ if known.entity.is_none() => {
            format!("its entity is not registered; hint: {}", registering(entity_id))
        }
        Some(settled) if settled.xmax() > row.xid => {
            format!("transaction {} was open when the last pass began; the next pass includes it", row.xid)
        }
        _ => "it was written after the last pass began; the next pass includes it".to_owned(),
    };
    pending(known, &why)
}

fn pending(known: &Known<'_>, why: &str) -> Said {
    let mut says = format!("is pending: {why}");
    if let Some(entity) = known.entity.filter(|entity| entity.paused) {
        let hint = format!("elven-sync entity resume {}", quoted_argument(&entity.entity_id));
        says = format!("{says}; the entity is paused; hint: {hint}");
    } else if let Some(error) = known.last_error {
        says = format!("{says}; the entity has stopped: {error}");
    }
    (Verdict::Pending, says)
}

/// Whether a batch of a backfill or a retry sent its rows, as far as it did not set them aside.
fn is_sent_later(batch: &BatchOfRow) -> bool {
    batch.pass_id.is_none() && batch.status == "accepted" && !batch.set_aside
}

/// Returns the change of the watermark that covers a row version, apart from passes.
fn covering<'k>(known: &'k Known<'_>, row: &Row) -> Option<&'k Change> {
    let has = |watermark: Option<&Snapshot>| watermark.is_some_and(|watermark| watermark.contains(row.xid));
    let covers = |change: &&Change| has(change.target.as_ref()) && !has(change.settled.as_ref());
    known.chain.others.iter().find(covers)
}

/// Says what became of a row that its pass did not upload, and that a backfill or a retry lists.
async fn later_upload(
    ledger: &Ledger,
    entity_id: &str,
    known: &Known<'_>,
    row: &Row,
    later: &BatchOfRow,
) -> Result<Said, RunError> {
    if later.has_superseded
        && let Some(newer) = superseded_by(ledger, entity_id, known, row, later).await?
    {
        return Ok((Verdict::Superseded, superseded(&newer, later)));
    }
    let says = match later.backfill_id {
        Some(_) => format!("was not uploaded by its pass, and was uploaded later {}", sent_in(later)),
        None => format!("was set aside by its pass, and uploaded later {}", sent_in(later)),
    };
    Ok((Verdict::Uploaded, says))
}

fn superseded(newer: &LedgerId, batch: &BatchOfRow) -> String {
    format!(
        "was superseded by row {newer} of the same account, currency and second, which was sent {}",
        sent_in(batch)
    )
}

fn set_aside(leaf: &BatchOfRow, errors: &[RecordedError]) -> Said {
    match errors.first() {
        Some(RecordedError { error_id, resolution: Some(resolution), .. }) => {
            let says = format!(
                "was set aside by batch {}; error {error_id} is resolved: {resolution}",
                leaf.batch_id
            );
            (Verdict::Resolved, says)
        }
        Some(error) => {
            let says = format!(
                "was set aside by batch {}, error {}: {}",
                leaf.batch_id, error.error_id, error.message
            );
            (Verdict::SetAside, says)
        }
        None => {
            let says = format!(
                "was set aside by batch {}, but has no error in sync_errors; update it in the ledger to upload it",
                leaf.batch_id
            );
            (Verdict::Missing, says)
        }
    }
}

/// Returns the record of an uploaded row as it was sent, as JSON.
fn sent(known: &Known<'_>, rows: &[Row], carried: &[BatchOfRow]) -> Option<String> {
    let batch = carried.iter().rfind(|batch| batch.status == "accepted" && !batch.set_aside)?;
    let [row] = rows else { return None };
    let zone = batch.timezone.as_deref().or(known.entity.map(|entity| entity.timezone.as_str()))?;
    let zone = known.settings.zones.get(zone).ok()?;
    if batch.zone_rules.as_ref().is_some_and(|rules| !zone.follows(rules)) {
        return None;
    }
    let names = known.maps.names_at(&batch.entity_id, batch.map_version).into();
    let form = RecordForm::recorded(
        batch.api_version,
        batch.source_id.as_deref(),
        known.settings.ledger.currency_kind,
    )?;
    let rebuilt = Batch::build(None, vec![row.clone()], &RecordRules { zone, names, form });
    rebuilt.records.first().map(|record| rebuilt.record(*record))
}

/// Returns the row of a batch that was sent instead of this row, if it can still be identified.
async fn superseded_by(
    ledger: &Ledger,
    entity_id: &str,
    known: &Known<'_>,
    row: &Row,
    leaf: &BatchOfRow,
) -> Result<Option<LedgerId>, RunError> {
    let zone = leaf.timezone.as_deref().or(known.entity.map(|entity| entity.timezone.as_str()));
    let Some(zone) = zone.and_then(|name| known.settings.zones.get(name).ok()) else { return Ok(None) };
    let names = Arc::new(known.maps.names_at(entity_id, leaf.map_version));
    let batch = Batch::build(None, vec![row.clone()], &RecordRules { names: names.clone(), ..zone.into() });
    let rivals = match ledger.rivals(entity_id, row, &names).await {
        Err(problem) if problem.is_about_rows() => return Ok(None),
        rivals => rivals?,
    };
    let newer = rivals.iter().filter(|rival| leaf.ids.contains(&rival.id));
    // Of several newer rivals, the newest was sent.
    let newest = newer
        .filter(|rival| batch.is_superseded_by(rival))
        .max_by_key(|rival| (rival.captured_at_us, &rival.id));
    Ok(newest.map(|rival| rival.id.clone()))
}

/// Names the batch that sent a row, its run and its time.
fn sent_in(batch: &BatchOfRow) -> String {
    let when = batch.finished_at.unwrap_or(batch.created_at).format("%Y-%m-%d %H:%M:%SZ");
    let twice = if batch.ambiguous { ", and may have been imported more than once" } else { "" };
    format!("in batch {} of run {} on {when}{twice}", batch.batch_id, batch.run_id)
}
