//! The lanes that a transaction of the group commit writes to: they are locked and checked, and their cursors are
//! moved.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::super::cursor_columns::{at, xid};
use super::super::digests::{Digest, running_after};
use super::super::{Counters, CursorAdvance, JournalError, OpenWork, RequestCounts, WorkKind};
use super::write::WriteRequest;
use crate::database::Transaction;
use crate::ledger::instant_us;
use crate::watermark::{At, Cursor};

/// A lane that the transaction has locked, and the changes that the transaction makes to it.
#[derive(Debug, Default)]
pub struct LockedLane {
    /// The owner of the lease. `None`: no worker has it.
    pub owner: Option<String>,
    /// The epoch of the lease.
    pub epoch: i64,
    /// The open pass.
    pub pass: Option<WorkPosition>,
    /// The backfill to which the requests belong, if its lane is unfinished and the lease was taken for a backfill.
    pub backfill: Option<WorkPosition>,
    /// Less than half of the lease time is left.
    pub is_aging: bool,
    /// Another worker waits for the lease, or the backfill was cancelled.
    pub is_wanted: bool,
    /// The cursor after the transaction, if it moves.
    pub moved_to: Option<Cursor>,
    /// What the transaction adds to the counters of the pass or the backfill.
    pub counted: Counters,
    /// The records of all work that were accepted.
    pub uploaded: i64,
    /// The requests of all work that were answered.
    pub requests: RequestCounts,
    /// The transaction renews the lease.
    pub renewed: bool,
    /// The batches that the cursor moves over.
    pub passed: Vec<i64>,
    /// The running digest after the transaction, if it changes.
    pub chained: Option<[u8; 32]>,
}

/// The position of a pass or a backfill.
#[derive(Debug)]
pub struct WorkPosition {
    /// The pass or the backfill.
    pub id: i64,
    /// Its cursor.
    pub cursor: Option<Cursor>,
    /// The end of the last announced batch.
    pub announced: Option<Cursor>,
    /// The running digest of the batches that the cursor has passed. `None`: of none.
    pub running: Option<[u8; 32]>,
}

impl LockedLane {
    /// Returns the position of the pass or backfill to which a request belongs. `None`: it belongs to a retry.
    ///
    /// # Errors
    /// The lane has another lease than the request, or the pass or backfill of the request is not open.
    fn position(&mut self, request: &WriteRequest) -> Result<Option<&mut WorkPosition>, JournalError> {
        let OpenWork { lease, work, .. } = &request.pass;
        if self.owner.as_ref() != Some(&lease.owner) || self.epoch != lease.epoch {
            return Err(JournalError::LeaseLost);
        }
        let (position, id) = match *work {
            WorkKind::Pass(pass_id) => (&mut self.pass, pass_id),
            WorkKind::Backfill(backfill_id) => (&mut self.backfill, backfill_id),
            WorkKind::Retry => return Ok(None),
        };
        position.as_mut().filter(|position| position.id == id).ok_or(JournalError::LeaseLost).map(Some)
    }

    /// Checks that a request comes from the holder of the lease, and that its pass or backfill, if it has one, is open.
    ///
    /// # Errors
    /// It does not.
    pub fn check_lease(&mut self, request: &WriteRequest) -> Result<(), JournalError> {
        self.position(request).map(drop)
    }

    /// Checks that lease and pass are those of the request, that the cursor is at the position from which the request
    /// moves it, that a new batch begins where the batch before it ends, and that a pass that is closed ends where its
    /// last batch does. Notes the changes that the request makes to the lane.
    ///
    /// A failover that loses the last transactions may keep lease and pass and lose announced batches. A batch
    /// announced after the lost ones would leave a gap, and recovery would count the rows in the gap as processed; a
    /// pass that is closed without them would count all their rows as processed.
    pub fn check(&mut self, request: &WriteRequest) -> Result<(), JournalError> {
        let moved_to = self.moved_to.take();
        self.moved_to = match self.position(request)? {
            Some(position) => position.moved_by(request, moved_to)?,
            None => moved_to,
        };
        if let Some(advance) = request.advance() {
            self.passed.extend(&advance.batch_ids);
        }
        self.renewed |= self.is_aging;
        if let Some(answer) = request.answer() {
            self.uploaded += answer.counted.rows_uploaded;
            self.requests += RequestCounts::of(&answer.answered);
            if request.pass.work != WorkKind::Retry {
                self.counted += &answer.counted;
            }
        }
        if self.is_wanted && request.pass.work.pass_id().is_none() {
            request.pass.unwanted.send_replace(true);
        }
        Ok(())
    }

    /// Moves the running digest over the batches that the cursor moves over.
    pub(super) fn chain(&mut self, leaves: &BTreeMap<i64, Digest>) {
        let position = self.backfill.as_ref().or(self.pass.as_ref());
        if let (Some(position), false) = (position, self.passed.is_empty()) {
            self.chained = running_after(position.running, &self.passed, leaves);
        }
    }

    fn is_changed(&self) -> bool {
        let counts = self.counted.rows_read > 0 || self.uploaded > 0 || !self.requests.is_zero();
        self.moved_to.is_some() || counts || self.renewed
    }
}

impl WorkPosition {
    /// Checks that a request begins where the work is. Returns where the transaction moves the cursor. `moved_to`:
    /// where earlier requests of the transaction move it.
    fn moved_by(
        &mut self,
        request: &WriteRequest,
        moved_to: Option<Cursor>,
    ) -> Result<Option<Cursor>, JournalError> {
        if let Some(contents) = request.contents() {
            if self.announced != contents.before {
                return Err(JournalError::LeaseLost);
            }
            self.announced = Some(contents.last.clone());
        }
        let mut cursor = moved_to.clone().or_else(|| self.cursor.clone());
        let mut target = moved_to;
        if let Some(CursorAdvance { before, last, .. }) = request.advance() {
            if cursor != *before {
                return Err(JournalError::LeaseLost);
            }
            if !request.pass.running.is_last(self.running.as_ref()) {
                return Err(JournalError::Refused(format!(
                    "the running digest of entity `{}` is not the one that was written last, so nothing is recorded \
                     for the entity; was elven_sync changed by hand? hint: `elven-sync verify`",
                    request.entity_id()
                )));
            }
            target = Some(last.clone());
            cursor.clone_from(&target);
        }
        if request.closing().is_some_and(|closing| cursor != closing.last) {
            return Err(JournalError::LeaseLost);
        }
        Ok(target)
    }
}

fn digest(bytes: Vec<u8>) -> Result<Digest, sqlx::Error> {
    bytes.try_into().map_err(|_| sqlx::Error::Decode("a digest has 32 bytes".into()))
}

/// Locks the lanes of requests, except for lanes that another transaction has locked, because a worker that is stopped
/// must not delay other lanes.
///
/// The query for the last batch of a pass uses `between`. With `=` the planner could drop `pass_id` from the sort order
/// and scan all batches backwards by `batch_id`, which takes long if the pass has no batch yet.
///
/// # Errors
/// The row of one of the lanes does not exist any more, so no worker has its lease.
pub(super) async fn lock(
    transaction: &mut Transaction,
    requests: &[WriteRequest],
    lease: Duration,
) -> Result<BTreeMap<String, LockedLane>, JournalError> {
    let ids: BTreeSet<&str> = requests.iter().map(WriteRequest::entity_id).collect();
    let ids: Vec<String> = ids.into_iter().map(str::to_owned).collect();
    let rows = sqlx::query!(
        r#"select s.entity_id, s.lease_owner, s.lease_epoch, s.pass_id, s.cursor_xid::text, s.cursor_id, s.running,
                  coalesce(s.lease_expires_at < clock_timestamp() + make_interval(secs => $2), false) as "is_aging!",
                  s.lease_wanted_at is not null as "is_wanted!",
                  announced.last_xid::text as "last_xid?", announced.last_id as "last_id?"
             from elven_sync.sync_state s
             left join lateral (select b.last_xid, b.last_id from elven_sync.sync_batches b
                                 where b.pass_id between s.pass_id and s.pass_id and b.parent_id is null
                                 order by b.pass_id desc, b.batch_id desc limit 1) announced on true
            where s.entity_id = any ($1) order by s.entity_id for update of s skip locked"#,
        &ids,
        (lease / 2).as_secs_f64()
    )
    .fetch_all(&mut *transaction)
    .await?;
    let mut lanes = BTreeMap::new();
    for row in rows {
        let cursor =
            |xid, id| Cursor::from_columns(xid, id).map_err(|problem| sqlx::Error::Decode(problem.into()));
        let (current, announced) =
            (cursor(row.cursor_xid, row.cursor_id)?, cursor(row.last_xid, row.last_id)?);
        let running = row.running.map(digest).transpose()?;
        lanes.insert(
            row.entity_id,
            LockedLane {
                owner: row.lease_owner,
                epoch: row.lease_epoch,
                pass: row.pass_id.map(|id| WorkPosition { id, cursor: current, announced, running }),
                is_aging: row.is_aging,
                is_wanted: row.is_wanted,
                ..LockedLane::default()
            },
        );
    }
    if lanes.len() < ids.len() {
        let existing = sqlx::query_scalar!(
            r#"select count(*) as "count!" from elven_sync.sync_state where entity_id = any ($1)"#,
            &ids
        )
        .fetch_one(&mut *transaction)
        .await?;
        if usize::try_from(existing).is_ok_and(|existing| existing < ids.len()) {
            return Err(JournalError::LeaseLost);
        }
    }
    add_backfills(transaction, requests, &mut lanes).await?;
    Ok(lanes)
}

/// Adds the positions of the backfills of requests to the locked lanes. These rows need no lock of their own, because
/// only the holder of the lease writes them.
async fn add_backfills(
    transaction: &mut Transaction,
    requests: &[WriteRequest],
    lanes: &mut BTreeMap<String, LockedLane>,
) -> Result<(), JournalError> {
    let backfills: BTreeSet<(&str, i64)> = requests
        .iter()
        .filter_map(|request| Some((request.entity_id(), request.pass.work.backfill_id()?)))
        .filter(|(entity_id, _)| lanes.contains_key(*entity_id))
        .collect();
    if backfills.is_empty() {
        return Ok(());
    }
    let (entity_ids, backfill_ids): (Vec<String>, Vec<i64>) =
        backfills.into_iter().map(|(entity_id, backfill_id)| (entity_id.to_owned(), backfill_id)).unzip();
    let rows = sqlx::query!(
        r#"select l.entity_id, l.backfill_id, l.cursor_at, l.cursor_id, l.running, b.status = 'cancelled' as "is_cancelled!",
                  announced.last_at as "last_at?", announced.last_id as "last_id?"
             from unnest($1::text[], $2::bigint[]) e (entity_id, backfill_id)
             join elven_sync.sync_state s on s.entity_id = e.entity_id and s.lease_kind = 'backfill'
             join elven_sync.sync_backfills b on b.backfill_id = e.backfill_id
             join elven_sync.sync_backfill_lanes l
               on l.backfill_id = e.backfill_id and l.entity_id = e.entity_id and l.finished_at is null
              and not l.closed
             left join lateral (select a.last_at, a.last_id from elven_sync.sync_batches a
                                 where a.backfill_id = e.backfill_id
                                   and a.entity_id between e.entity_id and e.entity_id and a.parent_id is null
                                 order by a.entity_id desc, a.batch_id desc limit 1) announced on true"#,
        &entity_ids,
        &backfill_ids
    )
    .fetch_all(transaction)
    .await?;
    for row in rows {
        let cursor = |at: Option<DateTime<Utc>>, id: Option<String>| {
            at.zip(id).map(|(at, id)| Cursor { at: At::Instant(instant_us(at)), id })
        };
        let running = row.running.map(digest).transpose()?;
        if let Some(lane) = lanes.get_mut(&row.entity_id) {
            lane.is_wanted |= row.is_cancelled;
            lane.backfill = Some(WorkPosition {
                id: row.backfill_id,
                cursor: cursor(row.cursor_at, row.cursor_id),
                announced: cursor(row.last_at, row.last_id),
                running,
            });
        }
    }
    Ok(())
}

/// Moves the cursors, and renews leases of which less than half is left, or that expired and were not taken: requests
/// from now on are sent under a valid lease, and a worker that takes over waits from this renewal on. (The periodic
/// renewal skips lanes that are locked, and a lane that is written to all the time often is.)
pub(super) async fn move_lanes(
    transaction: &mut Transaction,
    lanes: &BTreeMap<String, LockedLane>,
    lease: Duration,
) -> Result<(), sqlx::Error> {
    let moved: Vec<(&String, &LockedLane)> = lanes.iter().filter(|(_, lane)| lane.is_changed()).collect();
    if moved.is_empty() {
        return Ok(());
    }
    let ids: Vec<String> = moved.iter().map(|(entity_id, _)| (*entity_id).clone()).collect();
    let cursor = |lane: &LockedLane| lane.moved_to.clone().filter(|cursor| cursor.xid().is_some());
    let xids: Vec<_> = moved.iter().map(|(_, lane)| cursor(lane).as_ref().and_then(xid)).collect();
    let row_ids: Vec<_> = moved.iter().map(|(_, lane)| cursor(lane).map(|c| c.id)).collect();
    let running: Vec<_> =
        moved.iter().map(|(_, lane)| lane.chained.filter(|_| cursor(lane).is_some())).collect();
    let running: Vec<_> = running.into_iter().map(|running| running.map(Vec::from)).collect();
    let uploaded: Vec<_> = moved.iter().map(|(_, lane)| lane.uploaded).collect();
    let renewed: Vec<_> = moved.iter().map(|(_, lane)| lane.renewed).collect();
    let requests = |of: fn(&RequestCounts) -> i64| -> Vec<i64> {
        moved.iter().map(|(_, lane)| of(&lane.requests)).collect()
    };
    sqlx::query!(
        "update elven_sync.sync_state s
            set cursor_xid = coalesce(m.cursor_xid::xid8, s.cursor_xid),
                cursor_id = coalesce(m.cursor_id, s.cursor_id), rows_uploaded = s.rows_uploaded + m.uploaded,
                lease_expires_at = case when m.renewed then clock_timestamp() + make_interval(secs => $6)
                                        else s.lease_expires_at end,
                requests_accepted = s.requests_accepted + m.accepted,
                requests_refused = s.requests_refused + m.refused,
                requests_throttled = s.requests_throttled + m.throttled,
                requests_unknown = s.requests_unknown + m.unknown, running = coalesce(m.running, s.running)
           from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::boolean[], $7::bigint[], $8::bigint[],
                       $9::bigint[], $10::bigint[], $11::bytea[])
                m (entity_id, cursor_xid, cursor_id, uploaded, renewed, accepted, refused, throttled, unknown, running)
          where s.entity_id = m.entity_id",
        &ids,
        &xids as &[Option<String>],
        &row_ids as &[Option<String>],
        &uploaded,
        &renewed,
        lease.as_secs_f64(),
        &requests(|requests| requests.accepted),
        &requests(|requests| requests.refused),
        &requests(|requests| requests.throttled),
        &requests(|requests| requests.unknown),
        &running as &[Option<Vec<u8>>]
    )
    .execute(&mut *transaction)
    .await?;
    move_backfills(transaction, lanes).await
}

/// Moves the cursors of backfills, and adds to the counters of their lanes.
async fn move_backfills(
    transaction: &mut Transaction,
    lanes: &BTreeMap<String, LockedLane>,
) -> Result<(), sqlx::Error> {
    let moved: Vec<(&String, &LockedLane, &WorkPosition)> = lanes
        .iter()
        .filter(|(_, lane)| lane.is_changed())
        .filter_map(|(id, lane)| Some((id, lane, lane.backfill.as_ref()?)))
        .collect();
    if moved.is_empty() {
        return Ok(());
    }
    let ids: Vec<String> = moved.iter().map(|(entity_id, ..)| (*entity_id).clone()).collect();
    let backfills: Vec<i64> = moved.iter().map(|(.., position)| position.id).collect();
    let ats: Vec<_> = moved.iter().map(|(_, lane, _)| lane.moved_to.as_ref().and_then(at)).collect();
    let row_ids: Vec<_> =
        moved.iter().map(|(_, lane, _)| lane.moved_to.as_ref().map(|cursor| cursor.id.clone())).collect();
    let running: Vec<_> = moved.iter().map(|(_, lane, _)| lane.chained.map(Vec::from)).collect();
    let counted = |of: fn(&Counters) -> i64| -> Vec<i64> {
        moved.iter().map(|(_, lane, _)| of(&lane.counted)).collect()
    };
    sqlx::query!(
        "update elven_sync.sync_backfill_lanes l
            set cursor_at = coalesce(m.cursor_at, l.cursor_at), cursor_id = coalesce(m.cursor_id, l.cursor_id),
                rows_read = l.rows_read + m.rows_read, rows_uploaded = l.rows_uploaded + m.rows_uploaded,
                rows_rejected = l.rows_rejected + m.rows_rejected,
                rows_superseded = l.rows_superseded + m.rows_superseded, running = coalesce(m.running, l.running)
           from unnest($1::text[], $2::bigint[], $3::timestamptz[], $4::text[], $5::bigint[], $6::bigint[],
                       $7::bigint[], $8::bigint[], $9::bytea[])
                m (entity_id, backfill_id, cursor_at, cursor_id, rows_read, rows_uploaded, rows_rejected,
                   rows_superseded, running)
          where l.backfill_id = m.backfill_id and l.entity_id = m.entity_id",
        &ids,
        &backfills,
        &ats as &[Option<DateTime<Utc>>],
        &row_ids as &[Option<String>],
        &counted(|counters| counters.rows_read),
        &counted(|counters| counters.rows_uploaded),
        &counted(|counters| counters.rows_rejected),
        &counted(|counters| counters.rows_superseded),
        &running as &[Option<Vec<u8>>]
    )
    .execute(transaction)
    .await?;
    Ok(())
}
