//! What must hold at every step, and what must hold in the end.

use std::collections::BTreeMap;

use elven_sync::journal::{HeldRows, Kind, Problem};

use super::api::is_poison;
use super::journal::BatchRow;
use super::ledger::entity_name;
use super::world::{State, Version};

/// The cursor has passed no batch without a recorded answer.
pub fn of_cursor(state: &mut State, entity_id: &str) {
    let Some(lane) = state.tables.lanes.get(entity_id) else { return };
    let (Some((pass_id, _)), Some(cursor)) = (&lane.open, &lane.cursor) else { return };
    let place = |cursor: &elven_sync::watermark::Cursor| (cursor.xid(), cursor.id.parse::<i64>().unwrap());
    let is_passed =
        |batch: &&BatchRow| batch.pass_id == Some(*pass_id) && place(&batch.last) <= place(cursor);
    let open = state.tables.batches.iter().filter(is_passed).find(|batch| batch.state().is_open());
    if let Some(batch) = open {
        let what =
            format!("the cursor of {entity_id} has passed batch {}, which has no answer", batch.batch_id);
        state.violated(what);
    }
}

/// The leaves of a pass that is closed are chained in the order of its batches, each once: no batch is left out, whatever
/// was in flight together, lost, or recovered by another worker.
pub fn of_chain(state: &mut State, pass_id: i64) {
    let roots = state.tables.of_pass(pass_id).filter(|batch| batch.parent_id.is_none());
    let roots: Vec<i64> = roots.map(|batch| batch.batch_id).collect();
    let chained = state.tables.chained.get(&pass_id).cloned().unwrap_or_default();
    if chained != roots {
        state.violated(format!("pass {pass_id} has the batches {roots:?}, and its chain has {chained:?}"));
    }
}

/// No row that the API would accept is set aside, and none before the credential is proven in the run.
pub fn of_set_aside(state: &mut State, run_id: i64, problems: &[Problem]) {
    if state.is_api_arbitrary {
        return;
    }
    for problem in problems.iter().filter(|problem| problem.kind == Kind::RejectedRow) {
        let id: i64 = problem.ledger_id.as_ref().unwrap().parse().unwrap();
        let is_good = |version: &&Version| !version.is_bad() && !is_poison(version.balance);
        let versions = || state.versions.iter().filter(|version| version.id == id);
        if versions().filter(is_good).count() == versions().count() {
            state.violated(format!(
                "row {id} is set aside in run {run_id}, but the API refuses none of its versions"
            ));
        }
    }
}

/// No row is held whose account the API knows.
pub fn of_held(state: &mut State, run_id: i64, held: &[HeldRows]) {
    if state.is_api_arbitrary {
        return;
    }
    for id in held.iter().flat_map(|held| &held.ids) {
        let id: i64 = id.to_string().parse().unwrap();
        if !state.versions.iter().any(|version| version.id == id && version.is_bad()) {
            state.violated(format!("row {id} is held in run {run_id}, but the API knows its names"));
        }
    }
}

/// Once all trouble is over: every row version is uploaded, superseded or set aside, and no batch is open.
pub fn of_end(state: &State, entities: usize) -> Result<(), String> {
    for entity in 0..entities {
        let entity_id = entity_name(entity);
        let rows: Vec<&Version> = state.current.values().filter(|row| row.entity == entity).collect();
        let lane = state.tables.lanes.get(&entity_id).cloned().unwrap_or_default();
        if lane.open.is_some() {
            return Err(format!("{entity_id} is stuck: its pass is open; last error: {:?}", lane.last_error));
        }
        let is_settled =
            |row: &&&Version| lane.settled.as_ref().is_some_and(|settled| settled.contains(row.xid));
        if let Some(row) = rows.iter().find(|row| !is_settled(row)) {
            return Err(format!(
                "{entity_id} is stuck: row {} is pending; last error: {:?}",
                row.id, lane.last_error
            ));
        }
        of_records(state, &entity_id, &rows)?;
    }
    let of_passes = || state.tables.batches.iter().filter(|batch| batch.pass_id.is_some());
    let is_twice = |batch: &&BatchRow| state.api.bodies.get(&batch.sha256).is_some_and(|count| *count > 1);
    let is_same = |batch: &BatchRow| {
        state.tables.batches.iter().filter(|other| other.sha256 == batch.sha256).count() > 1
    };
    let unmarked =
        of_passes().filter(is_twice).find(|batch| !batch.ambiguous && batch.row_count > 0 && !is_same(batch));
    if let Some(batch) = unmarked.filter(|_| state.failovers == 0) {
        return Err(format!("batch {} was imported twice, and is not marked as ambiguous", batch.batch_id));
    }
    let open = state.tables.batches.iter().find(|batch| batch.pass_id.is_some() && batch.state().is_open());
    open.map_or(Ok(()), |batch| Err(format!("batch {} is open: {:?}", batch.batch_id, batch.state())))
}

/// The API has of each key the row that was processed last, unless it was set aside.
fn of_records(state: &State, entity_id: &str, rows: &[&Version]) -> Result<(), String> {
    // All entities of the simulation have accounts of their own.
    let mut by_key: BTreeMap<_, Vec<&Version>> = BTreeMap::new();
    for row in rows {
        by_key.entry(row.key()).or_default().push(row);
    }
    for ((account, second), mut rows) in by_key {
        let is_set_aside = |row: &Version| state.tables.errors.contains_key(&(entity_id.to_owned(), row.id));
        for row in &rows {
            let is_refused = row.is_bad() || is_poison(row.balance);
            if is_set_aside(row) && !is_refused {
                return Err(format!("row {} is set aside, but the API would accept it", row.id));
            }
        }
        rows.retain(|row| !is_set_aside(row));
        let batch_of = |row: &Version| {
            let batches = state.tables.batches.iter().filter(|batch| batch.entity_id == entity_id);
            let of_row = batches.filter(|batch| batch.pass_id.is_some() && batch.ids.contains(&row.id));
            of_row.map(|batch| root(state, batch)).max()
        };
        if let Some(row) = rows.iter().find(|row| batch_of(row).is_none()) {
            return Err(format!("row {} is lost: no batch has it", row.id));
        }
        let Some(newest) = rows.iter().max_by_key(|row| (batch_of(row), row.captured_at_us, row.id)) else {
            continue;
        };
        let datetime = chrono::DateTime::from_timestamp(second + 946_684_800, 0).unwrap();
        let key = (account, datetime.format("%Y-%m-%d %H:%M:%S").to_string());
        let found = state.api.records.get(&key);
        if found != Some(&newest.balance) {
            let expected = newest.balance;
            return Err(format!("the API has {found:?} of {key:?}; row {} has {expected}", newest.id));
        }
    }
    Ok(())
}

/// The batch that was read, of which a batch is a part.
fn root(state: &State, batch: &BatchRow) -> i64 {
    let mut batch = batch;
    while let Some(parent_id) = batch.parent_id {
        batch = state.tables.batches.iter().find(|parent| parent.batch_id == parent_id).unwrap();
    }
    batch.batch_id
}
