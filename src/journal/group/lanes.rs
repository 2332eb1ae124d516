//! The lanes that a group writes to: locked, checked, moved.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::batches::Advance;
use super::super::{JournalError, OpenPass};
use super::Entry;
use crate::database::Transaction;
use crate::watermark::Cursor;

/// A lane, locked by the transaction, and what the transaction does to it.
#[derive(Debug)]
pub(super) struct Locked {
    owner: Option<String>,
    epoch: i64,
    pass_id: Option<i64>,
    cursor: Option<Cursor>,
    /// Where the batch ends that was announced last in the pass.
    announced: Option<Cursor>,
    is_aging: bool,
    moved_to: Option<Cursor>,
    uploaded: i64,
    renewed: bool,
}

impl Locked {
    /// Makes sure that lease and pass are those of the entry, that the cursor stands where it moves from and that a batch
    /// begins where the one before it ends, and notes what it does.
    ///
    /// A failover that loses the tail may leave lease and pass and take batches that were announced: one behind those
    /// would leave a gap, which recovery takes for done.
    pub(super) fn admit(&mut self, entry: &Entry) -> Result<(), JournalError> {
        let OpenPass { lease, pass_id, .. } = &entry.pass;
        let is_held = self.owner.as_ref() == Some(&lease.owner) && self.epoch == lease.epoch;
        if !is_held || self.pass_id != Some(*pass_id) {
            return Err(JournalError::LeaseLost);
        }
        if let Some(contents) = entry.contents() {
            if self.announced != contents.before {
                return Err(JournalError::LeaseLost);
            }
            self.announced = Some(contents.last.clone());
        }
        self.renewed |= self.is_aging;
        if let Some(answer) = entry.answer() {
            self.uploaded += answer.counted.rows_uploaded;
            if let Some(Advance { before, last }) = &answer.advance {
                if self.moved_to.as_ref().or(self.cursor.as_ref()) != before.as_ref() {
                    return Err(JournalError::LeaseLost);
                }
                self.moved_to = Some(last.clone());
            }
        }
        Ok(())
    }

    fn is_changed(&self) -> bool {
        self.moved_to.is_some() || self.uploaded > 0 || self.renewed
    }
}

/// Locks the lanes of entries, but for those that somebody else has locked: who stands still is no reason for others
/// to wait. One that is not there any more is nobody's.
pub(super) async fn lock(
    transaction: &mut Transaction,
    entries: &[Entry],
    lease: Duration,
) -> Result<BTreeMap<String, Locked>, JournalError> {
    let ids: BTreeSet<&str> = entries.iter().map(Entry::entity_id).collect();
    let ids: Vec<String> = ids.into_iter().map(str::to_owned).collect();
    let rows = sqlx::query!(
        r#"select s.entity_id, s.lease_owner, s.lease_epoch, s.pass_id, s.cursor_xid::text, s.cursor_id,
                  coalesce(s.lease_expires_at < clock_timestamp() + make_interval(secs => $2), false) as "is_aging!",
                  announced.last_xid::text as "last_xid?", announced.last_id as "last_id?"
             from elven_sync.sync_state s
             left join lateral (select b.last_xid, b.last_id from elven_sync.sync_batches b
                                 where b.pass_id = s.pass_id and b.parent_id is null
                                 order by b.batch_id desc limit 1) announced on true
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
        lanes.insert(
            row.entity_id,
            Locked {
                owner: row.lease_owner,
                epoch: row.lease_epoch,
                pass_id: row.pass_id,
                cursor: cursor(row.cursor_xid, row.cursor_id)?,
                announced: cursor(row.last_xid, row.last_id)?,
                is_aging: row.is_aging,
                moved_to: None,
                uploaded: 0,
                renewed: false,
            },
        );
    }
    if lanes.len() < ids.len() {
        let there = sqlx::query_scalar!(
            r#"select count(*) as "count!" from elven_sync.sync_state where entity_id = any ($1)"#,
            &ids
        )
        .fetch_one(&mut *transaction)
        .await?;
        if usize::try_from(there).is_ok_and(|there| there < ids.len()) {
            return Err(JournalError::LeaseLost);
        }
    }
    Ok(lanes)
}

/// Moves the cursors, and gives leases their time again that are half over, or that ran out and that nobody took: what is
/// sent from now on is sent under a lease, and whoever takes over waits from then. (The renewal that comes round by itself
/// passes over lanes that are locked, as those are that are written to all the time.)
pub(super) async fn move_lanes(
    transaction: &mut Transaction,
    lanes: &BTreeMap<String, Locked>,
    lease: Duration,
) -> Result<(), sqlx::Error> {
    let moved: Vec<(&String, &Locked)> = lanes.iter().filter(|(_, lane)| lane.is_changed()).collect();
    if moved.is_empty() {
        return Ok(());
    }
    let ids: Vec<String> = moved.iter().map(|(entity_id, _)| (*entity_id).clone()).collect();
    let cursor = |lane: &Locked| lane.moved_to.clone();
    let xids: Vec<_> = moved.iter().map(|(_, lane)| cursor(lane).map(|c| c.xid.to_string())).collect();
    let row_ids: Vec<_> = moved.iter().map(|(_, lane)| cursor(lane).map(|c| c.id)).collect();
    let uploaded: Vec<_> = moved.iter().map(|(_, lane)| lane.uploaded).collect();
    let renewed: Vec<_> = moved.iter().map(|(_, lane)| lane.renewed).collect();
    sqlx::query!(
        "update elven_sync.sync_state s
            set cursor_xid = coalesce(m.cursor_xid::xid8, s.cursor_xid),
                cursor_id = coalesce(m.cursor_id, s.cursor_id), rows_uploaded = s.rows_uploaded + m.uploaded,
                lease_expires_at = case when m.renewed then clock_timestamp() + make_interval(secs => $6)
                                        else s.lease_expires_at end
           from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::boolean[])
                m (entity_id, cursor_xid, cursor_id, uploaded, renewed)
          where s.entity_id = m.entity_id",
        &ids,
        &xids as &[Option<String>],
        &row_ids as &[Option<String>],
        &uploaded,
        &renewed,
        lease.as_secs_f64()
    )
    .execute(transaction)
    .await?;
    Ok(())
}
