//! Checks that a watermark belongs to the database, the ledger and the mapping in use.

use std::collections::BTreeMap;

use super::lane_worker::LaneWorker;
use crate::journal::{Kind, Lane, Problem, SealState};
use crate::ledger::{Changes, LaneLedger, ProbeResult, belongs_to};
use crate::text::quoted_argument;

/// A watermark does not fit: to continue would skip rows without notice.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WatermarkMismatch(String);

impl From<WatermarkMismatch> for Problem {
    fn from(mismatch: WatermarkMismatch) -> Self {
        Problem::of_lane(Kind::Watermark, mismatch.0)
    }
}

impl LaneWorker {
    /// Refuses a watermark that does not belong to this cluster, this ledger table, this mapping or the history of this
    /// database. Each message has a hint.
    pub(crate) fn check_watermark(
        &self,
        entity_id: &str,
        lane: &Lane,
        probed: &ProbeResult,
    ) -> Result<(), WatermarkMismatch> {
        check_watermark(&*self.ledger, entity_id, lane, probed)
    }

    /// Refuses a journal that this cluster did not write, or that was written under another mapping. Unlike
    /// [`Self::check_watermark`], it needs no probe.
    pub(crate) fn check_journal(&self, entity_id: &str, lane: &Lane) -> Result<(), WatermarkMismatch> {
        check_seal(entity_id, lane)?;
        check_position(entity_id, lane)?;
        check_mapping(&*self.ledger, entity_id, lane)
    }
}

/// Keeps the lanes whose watermark was moved under the mapping in use. For the others, rows that are read now say
/// nothing.
pub(crate) fn readable(ledger: &dyn LaneLedger, mut lanes: BTreeMap<String, Lane>) -> BTreeMap<String, Lane> {
    lanes.retain(|_, lane| is_at_start(lane) || changes(ledger, lane).is_none());
    lanes
}

/// Returns the entities whose watermark is refused because the mapping changed, each with the message.
pub(crate) fn refused(ledger: &dyn LaneLedger, lanes: &BTreeMap<String, Lane>) -> BTreeMap<String, String> {
    let refused = lanes.iter().filter(|(_, lane)| !is_at_start(lane)).filter_map(|(entity_id, lane)| {
        let changes = changes(ledger, lane);
        let message =
            || format!("{}; hint: {}", mapping_changed(entity_id, &changes), correct_or_rebind(entity_id));
        (!changes.is_none()).then(|| (entity_id.clone(), message()))
    });
    refused.collect()
}

/// Whether some watermark was moved under the mapping in use, or no watermark is bound yet. Then the entity ids of this
/// mapping can be trusted.
pub(crate) fn is_accepted(ledger: &dyn LaneLedger, lanes: &BTreeMap<String, Lane>) -> bool {
    let mut bound = lanes.values().filter(|lane| !is_at_start(lane)).peekable();
    bound.peek().is_none() || bound.any(|lane| changes(ledger, lane).is_none())
}

/// Whether no row was read yet, or all rows are to be read again. Then the next pass binds to the ledger in use.
fn is_at_start(lane: &Lane) -> bool {
    lane.settled.is_none() && lane.open.is_none()
}

/// The same as [`LaneWorker::check_watermark`], for a caller without a worker.
pub(crate) fn check_watermark(
    ledger: &dyn LaneLedger,
    entity_id: &str,
    lane: &Lane,
    probed: &ProbeResult,
) -> Result<(), WatermarkMismatch> {
    let refuse = |what: String| Err(WatermarkMismatch(what));
    let table = ledger.name();
    if lane.system_identifier.is_some_and(|identifier| identifier != probed.system_identifier) {
        let entity = quoted_argument(entity_id);
        return refuse(format!(
            "the watermark of `{entity_id}` belongs to another PostgreSQL cluster, whose transaction ids mean \
             nothing here; hint: after pg_upgrade, `elven-sync entity rebind {entity}`; after a move to another server \
             with ledger and journal, `elven-sync entity rebind --journal --reason 'moved' {entity}`, which proves \
             that nothing is skipped; otherwise {}",
            start_over(entity_id)
        ));
    }
    check_seal(entity_id, lane)?;
    if !is_at_start(lane) {
        check_mapping(ledger, entity_id, lane)?;
    }
    if let Some(before) = lane.ledger_table.as_deref().filter(|before| *before != table) {
        return refuse(format!(
            "the watermark of `{entity_id}` belongs to the ledger table {before}, but {table} is configured; hint: \
             correct [ledger] table (an entity has one table; a view can join several), or {}",
            start_over(entity_id)
        ));
    }
    let snapshots = [lane.settled.as_ref(), lane.open.as_ref().map(|(_, target)| target)];
    if snapshots.into_iter().flatten().any(|snapshot| snapshot.xmax() > probed.target.xmax()) {
        return refuse(format!(
            "the watermark of `{entity_id}` contains transactions that have not happened yet in this database; was its \
             write-ahead log reset? hint: {}",
            start_over(entity_id)
        ));
    }
    check_position(entity_id, lane)?;
    let news = probed.new_rows(entity_id);
    if news.from_the_future || news.unstamped {
        let what = if news.unstamped { "is NULL" } else { "has not been given out yet in this database" };
        return refuse(format!(
            "the ledger has rows of `{entity_id}` whose change_xid {what}; hint: `elven-sync attach` \
             installs the trigger that sets it; then update the rows that are there, e.g. update {table} set <a \
             column> = <itself> where <it is one of these>"
        ));
    }
    Ok(())
}

/// Refuses a watermark whose newest change this cluster did not write: its transaction ids may mean other transactions
/// here.
pub(crate) fn check_seal(entity_id: &str, lane: &Lane) -> Result<(), WatermarkMismatch> {
    match lane.seal {
        SealState::Whole | SealState::Elsewhere => Ok(()),
        SealState::Broken => Err(WatermarkMismatch(format!(
            "this cluster did not write the journal of `{entity_id}`: the newest row of its watermark in \
             elven_sync.sync_passes was copied or altered, so its transaction ids may mean other transactions here; \
             hint: {}, or `elven-sync entity rebind --journal --reason 'journal copied' {}` accepts the journal \
             after it was proven against the ledger",
            start_over(entity_id),
            quoted_argument(entity_id)
        ))),
        SealState::Missing => Err(WatermarkMismatch(format!(
            "the watermark of `{entity_id}` has no row in elven_sync.sync_passes, so nothing proves that this cluster \
             wrote it; hint: restore the rows from a backup of the whole database, or {}",
            start_over(entity_id)
        ))),
    }
}

/// Refuses a watermark that differs from its newest recorded change.
fn check_position(entity_id: &str, lane: &Lane) -> Result<(), WatermarkMismatch> {
    if lane.seal != SealState::Elsewhere {
        return Ok(());
    }
    Err(WatermarkMismatch(format!(
        "the watermark of `{entity_id}` in elven_sync.sync_state is not where its newest change in \
         elven_sync.sync_passes says: one of the two was altered or copied; hint: {}",
        start_over(entity_id)
    )))
}

/// Refuses a watermark that was moved under another mapping.
fn check_mapping(ledger: &dyn LaneLedger, entity_id: &str, lane: &Lane) -> Result<(), WatermarkMismatch> {
    let changes = changes(ledger, lane);
    if changes.is_none() || lane.mapping.is_none() {
        return Ok(());
    }
    Err(WatermarkMismatch(format!(
        "{}; hint: {}",
        mapping_changed(entity_id, &changes),
        correct_or_rebind(entity_id)
    )))
}

/// Returns a lane as if it were bound to this cluster and to the mapping in use.
pub(crate) fn as_if_bound(ledger: &dyn LaneLedger, probed: &ProbeResult, lane: &Lane) -> Lane {
    Lane {
        system_identifier: lane.system_identifier.map(|_| probed.system_identifier),
        ledger_table: lane.ledger_table.as_ref().map(|_| ledger.name().to_owned()),
        mapping: Some(ledger.mapping_json().clone().into()),
        seal: if lane.seal == SealState::Broken { SealState::Whole } else { lane.seal },
        ..lane.clone()
    }
}

/// Returns how the mapping differs from the one under which the watermark was moved. For an old watermark only the
/// table is known.
pub(crate) fn changes(ledger: &dyn LaneLedger, lane: &Lane) -> Changes {
    let table = ledger.name();
    match (&lane.mapping, &lane.ledger_table) {
        (Some(recorded), _) if **recorded == **ledger.mapping_json() => Changes::default(),
        (Some(recorded), _) => ledger.mapping().changes_since(recorded),
        (None, Some(before)) if before != table => {
            Changes { said: vec![belongs_to(before, table)], values: true, identity: true }
        }
        _ => Changes::default(),
    }
}

/// Returns the sentence about the differences of the mapping.
pub(crate) fn mapping_changed(entity_id: &str, changes: &Changes) -> String {
    format!("the ledger mapping of `{entity_id}` changed: {}", changes.sentence())
}

fn correct_or_rebind(entity_id: &str) -> String {
    format!(
        "correct [ledger] if that is a mistake (an entity has one table; a view can join several), or accept it with \
         `elven-sync entity rebind --mapping --reason 'mapping changed' {}`",
        quoted_argument(entity_id)
    )
}

pub(crate) fn start_over(entity_id: &str) -> String {
    format!("`elven-sync entity rewind {}` uploads everything again", quoted_argument(entity_id))
}
