//! The writes of lanes that the group commit writes: what they check, and what they change.

use tokio::time::Instant;

use elven_sync::journal::{
    Answer, BatchState, Consequence, JournalError, JournalWrite, LockedLane, WorkKind, WorkPosition,
    WriteRequest, Written,
};

use super::super::invariants;
use super::super::world::{LEASE, Sabotage, State, World};
use super::tables::{BatchRow, ids_of, note_fence};

pub(super) fn describe(request: &WriteRequest) -> String {
    let what = match &request.writing {
        JournalWrite::Announcement(record) => format!("announce {:?}", ids_of(&record.row_ids)),
        JournalWrite::Repetition(again) => format!("announce batch {} again", again.batch_id),
        JournalWrite::Answer(answer) => {
            let Answer { answered, advance, consequence, .. } = &**answer;
            let consequence = match consequence {
                Consequence::None => "",
                Consequence::Parts { .. } => ", two parts",
                Consequence::SetAside { .. } => ", set aside",
            };
            let moved = advance.as_ref().map(|advance| &advance.last);
            format!("batch {} {}{consequence}, cursor {moved:?}", answered.batch_id, answered.status)
        }
        JournalWrite::Emptying(emptying) => format!("batch {} is empty", emptying.batch_id),
        JournalWrite::Recovery => "recover".to_owned(),
        JournalWrite::Conclusions(_) => "conclude errors".to_owned(),
        JournalWrite::UnknownRun(batch_id) => format!("batch {batch_id} stays unknown"),
        JournalWrite::PassClosing(_) => "close the pass".to_owned(),
        JournalWrite::Passage(_) => "pass over batches".to_owned(),
    };
    format!("{} {what}", request.entity_id())
}

/// What the transaction of the group commit does for one request.
pub(super) fn apply(
    world: &World,
    state: &mut State,
    request: &WriteRequest,
) -> Result<Written, JournalError> {
    let entity_id = request.entity_id().to_owned();
    let row = state.tables.lane(&entity_id).clone();
    let announced = |pass_id| {
        let roots = state.tables.of_pass(pass_id).filter(|batch| batch.parent_id.is_none());
        roots.last().map(|batch| batch.last.clone())
    };
    let position = row.open.as_ref().map(|(id, _)| {
        let announced = announced(*id);
        WorkPosition { id: *id, cursor: row.cursor.clone(), announced, running: None }
    });
    let mut locked = LockedLane {
        owner: row.owner,
        epoch: row.epoch,
        pass: position,
        is_aging: row.expires_at.is_some_and(|at| at < Instant::now() + LEASE / 2),
        ..LockedLane::default()
    };
    if world.is(Sabotage::LeaseNotChecked) {
        locked.owner = Some(request.pass.lease.owner.clone());
        locked.epoch = request.pass.lease.epoch;
    }
    let is_answered =
        |id: &i64| state.tables.batches.iter().any(|batch| batch.batch_id == *id && !batch.state().is_open());
    if !request.relies_on().iter().all(is_answered) && !world.is(Sabotage::LostAnswersIgnored) {
        return Err(JournalError::LeaseLost);
    }
    locked.check_lease(request)?;
    if let Some(Answer { consequence: Consequence::SetAside { refused, rejections_max, .. }, .. }) =
        request.answer()
    {
        let mut rejected = state.tables.rejected(&entity_id);
        rejected.extend(refused.iter().map(|id| id.parse::<i64>().unwrap()));
        if rejected.len() > *rejections_max {
            return Ok(Written::TooManyRejections);
        }
    }
    locked.check(request)?;
    let written = apply_to_batches(world, state, request)?;
    if let Some(pass_id) = request.pass.work.pass_id() {
        state.tables.chained.entry(pass_id).or_default().extend(&locked.passed);
        if request.closing().is_some() {
            invariants::of_chain(state, pass_id);
        }
    }
    let lane = state.tables.lane(&entity_id);
    if let Some(cursor) = locked.moved_to {
        lane.cursor = Some(cursor);
    }
    if locked.renewed {
        lane.expires_at = Some(Instant::now() + LEASE);
    }
    if let Some(closing) = request.closing() {
        lane.settled = lane.open.take().map(|(_, target)| target);
        lane.cursor = None;
        let is_fenced = note_fence(world, lane, &request.pass.lease.fence);
        if closing.ends {
            (lane.owner, lane.expires_at, lane.last_error) = (None, None, None);
        }
        state.keeps_fence(is_fenced);
    }
    invariants::of_cursor(state, &entity_id);
    Ok(written)
}

fn apply_to_batches(
    world: &World,
    state: &mut State,
    request: &WriteRequest,
) -> Result<Written, JournalError> {
    let (tables, entity_id) = (&mut state.tables, request.entity_id());
    let of = (request.run_id, request.pass.work.pass_id());
    match &request.writing {
        JournalWrite::Announcement(record) => {
            // A row of a retry whose outcome is unknown may be imported twice.
            let is_unknown = |batch: &BatchRow| batch.is_of_retry(entity_id) && batch.status == "unknown";
            let ids = ids_of(&record.row_ids);
            let ambiguous = request.pass.work == WorkKind::Retry
                && tables
                    .batches
                    .iter()
                    .any(|batch| is_unknown(batch) && batch.ids.iter().any(|id| ids.contains(id)));
            let batch = tables.insert(of, entity_id, None, record);
            batch.ambiguous = ambiguous;
            Ok(Written::Batch(batch.batch_id))
        }
        JournalWrite::Repetition(again) => {
            let batch = tables.batch(again.batch_id, entity_id)?;
            if batch.last != again.record.last {
                return Err(JournalError::LeaseLost);
            }
            (batch.status, batch.run_id) = ("sending", request.run_id);
            batch.attempts += 1;
            batch.ambiguous |= again.lost;
            batch.rewrite(&again.record);
            Ok(Written::Batch(again.batch_id))
        }
        JournalWrite::Emptying(emptying) => {
            let batch = tables.batch(emptying.batch_id, entity_id)?;
            batch.ambiguous |= batch.status == "unknown";
            (batch.status, batch.row_count, batch.ids) = ("accepted", 0, Vec::new());
            Ok(Written::Batch(emptying.batch_id))
        }
        JournalWrite::Recovery => {
            let pass_id = request.pass.work.pass_id();
            let is_of_work = |batch: &&mut BatchRow| batch.pass_id == pass_id && batch.entity_id == entity_id;
            let sending = tables.batches.iter_mut().filter(is_of_work);
            for batch in sending.filter(|batch| batch.state() == BatchState::Sending && batch.row_count > 0) {
                batch.status = if world.is(Sabotage::SendingForgotten) { "rejected" } else { "unknown" };
            }
            Ok(Written::Work)
        }
        JournalWrite::UnknownRun(batch_id) => {
            if let Ok(batch) = tables.batch(*batch_id, entity_id) {
                batch.unknown_runs += i32::from(batch.status == "unknown");
            }
            Ok(Written::Batch(*batch_id))
        }
        JournalWrite::Conclusions(_) | JournalWrite::Passage(_) => Ok(Written::Work),
        JournalWrite::PassClosing(_) => {
            let pass_id = request.pass.work.pass_id().unwrap_or_default();
            let is_open = tables.of_pass(pass_id).any(|batch| batch.state().is_open());
            if is_open {
                return Err(JournalError::Unfinished(pass_id));
            }
            Ok(Written::Work)
        }
        JournalWrite::Answer(answer) => apply_answer(state, request, answer),
    }
}

fn apply_answer(state: &mut State, request: &WriteRequest, answer: &Answer) -> Result<Written, JournalError> {
    let (tables, entity_id) = (&mut state.tables, request.entity_id());
    let of = (request.run_id, request.pass.work.pass_id());
    let answered = &answer.answered;
    let batch = tables.batch(answered.batch_id, entity_id)?;
    let contents = &answered.contents;
    let is_same = answer.is_rewritten || batch.sha256 == contents.body_sha256;
    if batch.last != contents.last || !is_same {
        return Err(JournalError::LeaseLost);
    }
    if answer.is_rewritten {
        batch.ambiguous |= batch.status == "unknown";
        batch.rewrite(contents);
    }
    if let Consequence::SetAside { rejected_ids, .. } = &answer.consequence {
        (batch.row_count, batch.set_aside) = (0, ids_of(rejected_ids));
    }
    batch.status = batch.status_after(answered.status);
    batch.attempts -= i32::from(answered.withdrawn);
    let run_id = batch.run_id;
    let written = match &answer.consequence {
        Consequence::Parts { parts, ambiguous } => {
            let ids = parts.each_ref().map(|part| {
                let part = tables.insert(of, entity_id, Some(answered.batch_id), part);
                part.ambiguous = *ambiguous;
                part.batch_id
            });
            Written::Parts(ids)
        }
        Consequence::None | Consequence::SetAside { .. } => Written::Batch(answered.batch_id),
    };
    tables.record(entity_id, &answer.problems);
    tables.hold(entity_id, answered.batch_id, &answer.held);
    for id in &answer.resolves {
        tables.errors.remove(&(entity_id.to_owned(), id.ledger_id.parse().unwrap()));
    }
    invariants::of_set_aside(state, run_id, &answer.problems);
    invariants::of_held(state, run_id, &answer.held);
    Ok(written)
}
