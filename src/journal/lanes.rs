//! Lanes: lease, watermark and pass of an entity.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::batches::Doing;
use super::group::{Closing, Handed, Stopped, Unwritten, Writing};
use super::texts::storable_one;
use super::{Fence, Journal, JournalError, Problem, Sealed, errors};
use crate::database::Transaction;
use crate::ledger::Progress;
use crate::watermark::{Cursor, NotASnapshot, Snapshot, Xid};

/// A lease on an entity. Every write of the lane names it.
///
/// By its owner as well: after a failover that loses the tail, epochs are given out again.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The entity.
    pub entity_id: String,
    /// The worker.
    pub owner: String,
    /// Which of the leases given out on it.
    pub epoch: i64,
    /// What was sent and may still arrive, which is written down when the lease is given back.
    pub fence: Fence,
}

/// What a lane goes through, and what its batches belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// A pass.
    Pass(i64),
    /// The entity's lane of a backfill.
    Backfill(i64),
}

impl Course {
    /// The pass, if it is one.
    pub fn pass_id(self) -> Option<i64> {
        if let Course::Pass(pass_id) = self { Some(pass_id) } else { None }
    }

    /// The backfill, if it is one.
    pub fn backfill_id(self) -> Option<i64> {
        if let Course::Backfill(backfill_id) = self { Some(backfill_id) } else { None }
    }
}

/// A pass, or an entity's lane of a backfill, that is open under a lease. Every write of it names both.
#[derive(Clone, Debug)]
pub struct OpenPass {
    /// The lease.
    pub lease: Lease,
    /// What is open.
    pub course: Course,
    pub(super) stopped: Stopped,
    pub(super) unwritten: Unwritten,
    pub(super) unwanted: watch::Sender<bool>,
}

impl OpenPass {
    /// What was opened, or found open, under the lease.
    pub fn new(lease: Lease, course: Course) -> Self {
        Self {
            lease,
            course,
            stopped: Stopped::default(),
            unwritten: Unwritten::default(),
            unwanted: watch::Sender::new(false),
        }
    }

    /// Turns true once a backfill ought to give the lease back: somebody waits for it, or the backfill was cancelled.
    pub fn unwanted(&self) -> watch::Receiver<bool> {
        self.unwanted.subscribe()
    }
}

/// A pass to be opened.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// The run.
    pub run_id: i64,
    /// Where the entity was seen: the pass begins behind that.
    pub seen: &'a Lane,
    /// The ledger's table.
    pub ledger_table: &'a str,
    /// Its oid: by that name there has to be this table still.
    pub relation: i64,
    /// How it is read, as JSON.
    pub mapping: &'a str,
}

/// How a ledger was read, as the JSON of `sync_state.mapping`. Two texts of the same JSON are equal.
#[derive(Clone, Debug)]
pub struct RecordedMapping(Arc<str>);

impl<T: Into<Arc<str>>> From<T> for RecordedMapping {
    fn from(json: T) -> Self {
        Self(json.into())
    }
}

impl Deref for RecordedMapping {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl PartialEq for RecordedMapping {
    fn eq(&self, other: &Self) -> bool {
        let parsed = |mapping: &Self| serde_json::from_str::<serde_json::Value>(mapping).ok();
        self.0 == other.0 || parsed(self).is_some_and(|this| Some(this) == parsed(other))
    }
}

/// The state of an entity.
#[derive(Clone, Debug, Default)]
pub struct Lane {
    /// The watermark.
    pub settled: Option<Snapshot>,
    /// The open pass and its target.
    pub open: Option<(i64, Snapshot)>,
    /// Where the open pass is.
    pub cursor: Option<Cursor>,
    /// The cluster that the watermark speaks of.
    pub system_identifier: Option<i64>,
    /// The table that it speaks of.
    pub ledger_table: Option<String>,
    /// How the ledger was read. `None`: that was not recorded yet.
    pub mapping: Option<RecordedMapping>,
    /// Whether this cluster wrote the newest change of the watermark.
    pub seal: Sealed,
    /// How long the API has asked not to be called.
    pub not_before: Option<Duration>,
    /// It has rows set aside, whose errors an upload may resolve. Of use under the lease alone, so asked for with it.
    pub has_rows_set_aside: bool,
}

/// A row of `sync_state` as it comes.
pub(super) struct StateRow {
    pub(super) entity_id: String,
    pub(super) lease_epoch: i64,
    pub(super) settled: Option<String>,
    pub(super) pass_id: Option<i64>,
    pub(super) target: Option<String>,
    pub(super) cursor_xid: Option<String>,
    pub(super) cursor_id: Option<String>,
    pub(super) system_identifier: Option<i64>,
    pub(super) ledger_table: Option<String>,
    pub(super) mapping: Option<String>,
    pub(super) seal: Option<String>,
    pub(super) not_before_s: Option<f64>,
    pub(super) fence_s: Option<f64>,
    pub(super) has_rows_set_aside: bool,
    /// The pass was opened just now.
    pub(super) is_opened: bool,
}

impl StateRow {
    pub(super) fn into_lane(self) -> Result<Lane, JournalError> {
        let snapshot = |text: Option<String>| text.map(|text| text.parse::<Snapshot>()).transpose();
        let decode = |problem: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(problem);
        let settled = snapshot(self.settled).map_err(|problem| decode(problem.into()))?;
        let target = snapshot(self.target).map_err(|problem| decode(problem.into()))?;
        let cursor = Cursor::from_columns(self.cursor_xid, self.cursor_id)
            .map_err(|problem| decode(problem.into()))?;
        Ok(Lane {
            settled,
            open: self.pass_id.zip(target),
            cursor,
            system_identifier: self.system_identifier,
            ledger_table: self.ledger_table,
            mapping: self.mapping.map(RecordedMapping::from),
            seal: Sealed::from_column(self.seal.as_deref()),
            not_before: self.not_before_s.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            has_rows_set_aside: self.has_rows_set_aside,
        })
    }
}

impl Lane {
    /// Says whether the watermark is where another look has seen it, and bound to the same.
    pub fn is_where(&self, seen: &Lane) -> bool {
        (&self.settled, &self.open, &self.cursor) == (&seen.settled, &seen.open, &seen.cursor)
            && (self.system_identifier, &self.ledger_table, &self.mapping, self.seal)
                == (seen.system_identifier, &seen.ledger_table, &seen.mapping, seen.seal)
    }

    /// Says whether the watermark or the open pass is past all rows of a transaction.
    pub fn is_past(&self, xid: Xid) -> bool {
        let by_pass = || {
            let (_, target) = self.open.as_ref()?;
            let reached = self.cursor.as_ref()?.xid()?;
            Some(target.contains(xid) && xid < reached)
        };
        self.settled.as_ref().is_some_and(|settled| settled.contains(xid)) || by_pass().unwrap_or(false)
    }

    /// How far the entity is, for the ledger.
    pub fn progress(&self, entity_id: &str) -> Progress {
        Progress {
            entity_id: entity_id.to_owned(),
            settled: self.settled.clone(),
            target: self.open.as_ref().map(|(_, target)| target.clone()),
            cursor: self.cursor.clone(),
        }
    }
}

impl Journal {
    /// The states of these entities; one that was never run has the default. `mapping` is the one in use, which nearly all
    /// have: its text is neither made nor read once more for each.
    pub async fn lanes(
        &self,
        entity_ids: &[String],
        mapping: &Arc<str>,
    ) -> Result<BTreeMap<String, Lane>, JournalError> {
        let rows = self.database.again(|| sqlx::query_as!(
            StateRow,
            r#"select e.entity_id as "entity_id!", coalesce(s.lease_epoch, 0) as "lease_epoch!", s.settled::text as "settled?",
                      s.pass_id as "pass_id?", s.target::text as "target?", s.cursor_xid::text as "cursor_xid?",
                      s.cursor_id as "cursor_id?", s.system_identifier as "system_identifier?",
                      s.ledger_table as "ledger_table?", case when s.mapping = m.in_use then '' else s.mapping::text end as "mapping?",
                      s.seal as "seal?",
                      extract(epoch from s.not_before - clock_timestamp())::float8 as not_before_s,
                      null::float8 as fence_s, false as "has_rows_set_aside!", false as "is_opened!"
                 from unnest($1::text[]) e (entity_id) left join elven_sync.sync_watermarks s using (entity_id)
                cross join (select $2::text::jsonb as in_use offset 0) m"#,
            entity_ids,
            &**mapping
        ).fetch_all(&self.database)).await?;
        let in_use = RecordedMapping(mapping.clone());
        let lane = |row: StateRow| {
            let mut lane = row.into_lane()?;
            if lane.mapping.as_ref().is_some_and(|mapping| mapping.0.is_empty()) {
                lane.mapping = Some(in_use.clone());
            }
            Ok::<_, JournalError>(lane)
        };
        rows.into_iter().map(|row| Ok((row.entity_id.clone(), lane(row)?))).collect()
    }

    /// Opens a pass by a lease, behind where the entity is: its row, and its target in the state. Returns both. (Most are
    /// opened with the lease: see [`Journal::take_and_open`]. This is for one that follows another under the same lease.)
    ///
    /// The target is taken in the transaction that records it. So a server that knows of the pass is one
    /// whose transactions the target speaks of, also after a failover between looking for news and this.
    ///
    /// # Errors
    /// The entity is not there, or not the lease's any more, or this is another cluster, another table or another journal
    /// than the one it was seen in.
    pub async fn open_pass(
        &self,
        lease: &Lease,
        opening: Opening<'_>,
    ) -> Result<(i64, Snapshot), JournalError> {
        let settled = opening.seen.settled.as_ref().map(ToString::to_string);
        let open_pass = || async {
            let mut transaction = self.database.begin().await?;
            let pass = sqlx::query!(
                r#"insert into elven_sync.sync_passes (entity_id, run_id, settled, target)
                   select $1, $2, $3::text::pg_snapshot, pg_current_snapshot()
                    where exists (select from elven_sync.seals(array[$1::text]) where seal in ('whole', 'none'))
                      and to_regclass($4)::oid::bigint = $5
                returning pass_id, target::text as "target!""#,
                lease.entity_id,
                opening.run_id,
                settled,
                opening.ledger_table,
                opening.relation
            )
            .fetch_optional(&mut transaction)
            .await?;
            let Some(pass) = pass else {
                transaction.rollback().await?;
                return Err(JournalError::LeaseLost);
            };
            let done = sqlx::query!(
                "update elven_sync.sync_state
                    set pass_id = $4, target = $5::text::pg_snapshot, ledger_table = $6, mapping = $8::text::jsonb,
                        system_identifier = (select system_identifier from pg_control_system())
                  where entity_id = $1 and lease_epoch = $2 and lease_owner = $3 and pass_id is null
                    and settled::text is not distinct from $7
                    and mapping is not distinct from $9::text::jsonb
                    and (system_identifier is null
                         or system_identifier = (select system_identifier from pg_control_system()))",
                lease.entity_id,
                lease.epoch,
                lease.owner,
                pass.pass_id,
                pass.target,
                opening.ledger_table,
                settled,
                opening.mapping,
                opening.seen.mapping.as_deref()
            )
            .execute(&mut transaction)
            .await?;
            let target: Snapshot =
                pass.target.parse().map_err(|problem: NotASnapshot| sqlx::Error::Decode(problem.into()))?;
            commit_if_held(transaction, done.rows_affected()).await?;
            Ok((pass.pass_id, target))
        };
        self.database.again(open_pass).await
    }

    /// Records how the ledger is read, where an earlier version has not.
    pub async fn fill_mapping(&self, lease: &Lease, mapping: &str) -> Result<(), JournalError> {
        let done = self
            .database
            .execute(|| {
                sqlx::query!(
                    "update elven_sync.sync_state set mapping = coalesce(mapping, $4::text::jsonb)
                      where entity_id = $1 and lease_epoch = $2 and lease_owner = $3",
                    lease.entity_id,
                    lease.epoch,
                    lease.owner,
                    mapping
                )
            })
            .await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(JournalError::LeaseLost) }
    }

    /// Hands in that a pass is through, whose last batch ends at `last`: its target becomes the watermark. With `ends` the
    /// entity is up to date with that, as by [`Journal::lane_succeeded`], in the same transaction.
    pub fn close_pass(&self, doing: Doing<'_>, last: Option<Cursor>, ends: bool) -> Handed {
        self.group.hand_in(doing, Writing::Closing(Closing { last, ends }))
    }

    /// Records that a lane stopped where it is, why, and how long the API asked not to be called; and gives its lease
    /// back.
    pub async fn lane_failed(
        &self,
        lease: &Lease,
        run_id: i64,
        problem: &Problem,
        not_before: Option<Duration>,
    ) -> Result<(), JournalError> {
        let lane_failed = || async {
            let mut transaction = self.database.begin().await?;
            let message = storable_one(&mut transaction, Some(&problem.message)).await?;
            let done = sqlx::query!(
                "update elven_sync.sync_state
                    set last_error = $4, consecutive_failures = consecutive_failures + 1,
                        not_before = greatest(not_before, clock_timestamp() + make_interval(secs => $5)),
                        fence_until = greatest(fence_until, clock_timestamp() + make_interval(secs => $6)),
                        lease_owner = null, lease_expires_at = null, lease_kind = null
                  where entity_id = $1 and lease_epoch = $2 and lease_owner = $3",
                lease.entity_id,
                lease.epoch,
                lease.owner,
                message,
                not_before.map(|pause| pause.as_secs_f64()),
                lease.fence.seconds_left()
            )
            .execute(&mut transaction)
            .await?;
            errors::record(&mut transaction, run_id, &lease.entity_id, std::slice::from_ref(problem)).await?;
            commit_if_held(transaction, done.rows_affected()).await
        };
        self.database.again(lane_failed).await
    }

    /// Records that the entity of a lease is up to date, which resolves the errors that concern its lane; and gives the
    /// lease back.
    pub async fn lane_succeeded(&self, lease: &Lease) -> Result<(), JournalError> {
        let lane_succeeded = || async {
            let mut transaction = self.database.begin().await?;
            let done = sqlx::query!(
                "update elven_sync.sync_state
                    set last_success_at = clock_timestamp(), last_error = null, consecutive_failures = 0,
                        fence_until = greatest(fence_until, clock_timestamp() + make_interval(secs => $4)),
                        lease_owner = null, lease_expires_at = null
                  where entity_id = $1 and lease_epoch = $2 and lease_owner = $3",
                lease.entity_id,
                lease.epoch,
                lease.owner,
                lease.fence.seconds_left()
            )
            .execute(&mut transaction)
            .await?;
            errors::resolve_of_lanes(&mut transaction, std::slice::from_ref(&lease.entity_id)).await?;
            commit_if_held(transaction, done.rows_affected()).await
        };
        self.database.again(lane_succeeded).await
    }
}

/// Commits when the fenced statement found its row, and rolls everything back when it did not.
pub(super) async fn commit_if_held(transaction: Transaction, rows_affected: u64) -> Result<(), JournalError> {
    if rows_affected == 1 {
        transaction.commit().await?;
        Ok(())
    } else {
        transaction.rollback().await?;
        Err(JournalError::LeaseLost)
    }
}
