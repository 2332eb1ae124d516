//! Retention: deletes old records and keeps their totals, in durable steps.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::database::Database;
use crate::fault_point::{Step, around};
use crate::journal::prune::{self, PrunableErrors, PruneError, Pruned, Pruner, ROWS_PER_TRANSACTION};
use crate::journal::{JournalError, SealState};

/// The records of an entity that were pruned, or would be.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PrunedEntity {
    /// The entity.
    pub entity_id: String,
    /// Passes.
    pub passes: u64,
    /// Batches.
    pub batches: u64,
    /// Resolved errors; in a dry run an upper limit.
    pub errors: u64,
    /// Another session kept the entity locked, so it was not pruned to the end.
    pub busy: bool,
    /// This cluster did not write the journal of the entity, which is not pruned.
    pub foreign: bool,
}

/// The records that were pruned, or would be.
#[derive(Clone, Debug, Serialize)]
pub struct PruneReport {
    /// Records that ended before this time are pruned.
    pub before: DateTime<Utc>,
    /// The entities with records to prune.
    pub entities: Vec<PrunedEntity>,
    /// Runs that no record refers to any more; not counted in a dry run.
    pub runs: u64,
}

/// Prunes the records that ended longer ago than `older_than`, or counts them.
pub async fn prune(
    database: &Database,
    older_than: Duration,
    rehearse: bool,
) -> Result<PruneReport, JournalError> {
    let (before, ids) = prune::scope(database, older_than).await?;
    let mut entities = Vec::new();
    let mut is_recorded = rehearse;
    for entity_id in ids {
        let lane = Pruner { database, entity_id: &entity_id, before };
        let would_go = lane.would_go().await?;
        let prune::WouldGo { passes, batches, errors } = would_go;
        if passes + batches + errors == 0 {
            continue;
        }
        let foreign = lane.seal().await? != SealState::Whole;
        let mut pruned =
            PrunedEntity { entity_id: entity_id.clone(), passes, batches, errors, busy: false, foreign };
        if foreign {
            (pruned.passes, pruned.batches, pruned.errors) = (0, 0, 0);
        } else if !rehearse {
            if !std::mem::replace(&mut is_recorded, true) {
                prune::record_action(database, before).await?;
            }
            (pruned.passes, pruned.batches, pruned.errors) = (0, 0, 0);
            match entity(lane, &mut pruned).await {
                Ok(()) => {}
                Err(PruneError::Busy) => pruned.busy = true,
                Err(PruneError::Journal(problem)) => return Err(problem),
            }
        }
        if pruned.busy || foreign || pruned.passes + pruned.batches + pruned.errors > 0 {
            entities.push(pruned);
        }
    }
    let runs = if rehearse { 0 } else { around(Step::Prune, prune::prune_runs(database, before)).await? };
    if !rehearse {
        // Each of the steps left a row in `sync_commits`.
        database.forget_commits().await;
    }
    Ok(PruneReport { before, entities, runs })
}

/// Does all steps for one entity, in an order in which each step leaves a journal that `verify` can prove.
async fn entity(lane: Pruner<'_>, pruned: &mut PrunedEntity) -> Result<(), PruneError> {
    let mut given_up = 0;
    let steps = async {
        let (through, loose) = (lane.passes_through().await?, lane.loose_batches().await?);
        around(Step::Prune, lane.fold_links(&through, &loose)).await?;
        each(&through, async |ids| lane.declare(ids).await, &mut pruned.passes).await?;
        for group in lane.groups().await? {
            all(async || lane.remove_batches(&group).await, &mut pruned.batches).await?;
        }
        each(&loose, async |ids| lane.remove_loose_batches(ids).await, &mut pruned.batches).await?;
        all(async || lane.remove_given_up().await, &mut given_up).await?;
        let mut errors = PrunableErrors::default();
        while let Some(removed) = around(Step::Prune, lane.remove_errors(&mut errors)).await? {
            pruned.errors += removed;
        }
        let mut from = 0;
        while let Some(next) = around(Step::Prune, lane.fold(from)).await? {
            from = next;
        }
        Ok(())
    };
    let stopped = steps.await;
    pruned.passes += given_up;
    stopped
}

/// Repeats a step until it removes nothing more, and counts the removed rows.
async fn all(step: impl AsyncFn() -> Pruned, count: &mut u64) -> Result<(), PruneError> {
    loop {
        match around(Step::Prune, step()).await? {
            0 => return Ok(()),
            rows => *count += rows,
        }
    }
}

/// Does a step for each thousand of a list, which is read once, and a last step for none. Counts the removed rows.
async fn each(ids: &[i64], step: impl AsyncFn(&[i64]) -> Pruned, count: &mut u64) -> Result<(), PruneError> {
    for ids in ids.chunks(ROWS_PER_TRANSACTION).chain([&[][..]]) {
        *count += around(Step::Prune, step(ids)).await?;
    }
    Ok(())
}
