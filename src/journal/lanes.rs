//! Lanes: lease, watermark and pass of an entity.

use std::collections::BTreeMap;
use std::time::Duration;

use super::group::Stopped;
use super::steps::hold;
use super::{Journal, JournalError, Problem, errors};
use crate::database::Transaction;
use crate::ledger::Progress;
use crate::watermark::{Cursor, NotASnapshot, Snapshot};

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
}

/// A pass that is open under a lease. Every write of it names both.
#[derive(Clone, Debug)]
pub struct OpenPass {
    /// The lease.
    pub lease: Lease,
    /// The pass.
    pub pass_id: i64,
    pub(super) stopped: Stopped,
}

impl OpenPass {
    /// A pass that was opened, or found open, under the lease.
    pub fn new(lease: Lease, pass_id: i64) -> Self {
        Self { lease, pass_id, stopped: Stopped::default() }
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
}

impl Opening<'_> {
    /// Says whether an entity is where it was seen, without an open pass.
    fn fits(&self, lane: &Lane) -> bool {
        let Lane { settled, open, system_identifier, ledger_table, .. } = lane;
        let seen = self.seen;
        open.is_none()
            && (settled, system_identifier, ledger_table)
                == (&seen.settled, &seen.system_identifier, &seen.ledger_table)
    }
}

/// What trying to lease an entity gave.
#[derive(Debug)]
pub enum Take {
    /// It is ours, in this state.
    Taken(Lease, Box<Lane>),
    /// Another worker has it. Two looks at a lease that differ in `seen` show that it is alive.
    Held {
        /// The lease as it stood.
        seen: String,
    },
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
    /// How long the API has asked not to be called.
    pub not_before: Option<Duration>,
    /// It has rows set aside, whose errors an upload may resolve. Of use under the lease alone, so asked for with it.
    pub has_rows_set_aside: bool,
}

/// A row of `sync_state` as it comes.
pub(super) struct StateRow {
    pub entity_id: String,
    pub lease_epoch: i64,
    pub settled: Option<String>,
    pub pass_id: Option<i64>,
    pub target: Option<String>,
    pub cursor_xid: Option<String>,
    pub cursor_id: Option<String>,
    pub system_identifier: Option<i64>,
    pub ledger_table: Option<String>,
    pub not_before_s: Option<f64>,
    pub has_rows_set_aside: bool,
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
            not_before: self.not_before_s.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            has_rows_set_aside: self.has_rows_set_aside,
        })
    }
}

impl Lane {
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
    /// The states of these entities; one that was never run has the default.
    pub async fn lanes(&self, entity_ids: &[String]) -> Result<BTreeMap<String, Lane>, JournalError> {
        let rows = self.database.again(|| sqlx::query_as!(
            StateRow,
            r#"select e.entity_id as "entity_id!", coalesce(s.lease_epoch, 0) as "lease_epoch!", s.settled::text, s.pass_id, s.target::text,
                      s.cursor_xid::text, s.cursor_id, s.system_identifier, s.ledger_table as "ledger_table?",
                      extract(epoch from s.not_before - clock_timestamp())::float8 as not_before_s,
                      false as "has_rows_set_aside!"
                 from unnest($1::text[]) e (entity_id) left join elven_sync.sync_state s using (entity_id)"#,
            entity_ids
        ).fetch_all(&self.database)).await?;
        rows.into_iter().map(|row| Ok((row.entity_id.clone(), row.into_lane()?))).collect()
    }

    /// Leases an entity, unless another worker has it.
    ///
    /// A lease that ran out is taken over once the API refuses whatever its holder may still send: after
    /// the window in which a signature is good.
    pub async fn take(&self, entity_id: &str) -> Result<Take, JournalError> {
        Ok(self.take_and_open(entity_id, None).await?.0)
    }

    /// The same, and opens a pass in that transaction if one is wanted and the entity still is where it was seen.
    pub async fn take_and_open(
        &self,
        entity_id: &str,
        opening: Option<Opening<'_>>,
    ) -> Result<(Take, Option<(i64, Snapshot)>), JournalError> {
        let take = || async {
            let mut transaction = self.database.begin().await?;
            let row = sqlx::query_as!(
                StateRow,
                r#"update elven_sync.sync_state s
                      set lease_owner = $2, lease_epoch = lease_epoch + 1,
                          lease_expires_at = clock_timestamp() + make_interval(secs => $3)
                    where entity_id = (select entity_id from elven_sync.sync_state
                                        where entity_id = $1
                                          and (lease_owner is null
                                               or lease_expires_at + make_interval(secs => $4) < clock_timestamp())
                                          for update skip locked)
                returning entity_id, lease_epoch, settled::text, pass_id, target::text, cursor_xid::text, cursor_id,
                          system_identifier, ledger_table,
                          extract(epoch from not_before - clock_timestamp())::float8 as not_before_s,
                          exists (select from elven_sync.sync_errors e
                                   where e.entity_id = s.entity_id and e.ledger_id is not null
                                     and e.resolved_at is null) as "has_rows_set_aside!""#,
                entity_id,
                self.worker,
                self.lease_seconds(),
                self.signature_window.as_secs_f64()
            )
            .fetch_optional(&mut transaction)
            .await?;
            let Some(row) = row else {
                transaction.rollback().await?;
                return Ok(None);
            };
            let lease = Lease {
                entity_id: row.entity_id.clone(),
                owner: self.worker.clone(),
                epoch: row.lease_epoch,
            };
            let lane = row.into_lane()?;
            let opened = match opening.filter(|opening| opening.fits(&lane)) {
                Some(opening) => open(&mut transaction, &lease, opening).await?,
                None => None,
            };
            transaction.commit().await?;
            Ok::<_, JournalError>(Some((Take::Taken(lease, Box::new(lane)), opened)))
        };
        if let Some(taken) = self.database.again(take).await? {
            return Ok(taken);
        }
        let look = || {
            sqlx::query_scalar!(
                r#"select concat_ws(' ', lease_owner, lease_epoch, lease_expires_at) as "seen!"
                     from elven_sync.sync_state where entity_id = $1"#,
                entity_id
            )
            .fetch_optional(&self.database)
        };
        let seen = self.database.again(look).await?;
        if seen.is_none() {
            // An entity without a state would be waited for in vain.
            self.database
                .execute(|| {
                    sqlx::query!(
                        "insert into elven_sync.sync_state (entity_id) values ($1) on conflict do nothing",
                        entity_id
                    )
                })
                .await?;
        }
        Ok((Take::Held { seen: seen.unwrap_or_default() }, None))
    }

    /// Checks that a lease is ours, before something is sent under it.
    pub async fn check_lease(&self, lease: &Lease) -> Result<(), JournalError> {
        let check_lease = || async {
            let mut transaction = self.database.begin().await?;
            let held = hold(&mut transaction, lease, None, self.lease_seconds()).await?;
            commit_if_held(transaction, held).await
        };
        self.database.again(check_lease).await
    }

    /// Gives a lease back, so that nobody has to wait for it to run out.
    pub async fn release(&self, lease: &Lease) -> Result<(), JournalError> {
        self.database
            .execute(|| {
                sqlx::query!(
                    "update elven_sync.sync_state set lease_owner = null, lease_expires_at = null
                      where entity_id = $1 and lease_epoch = $2 and lease_owner = $3",
                    lease.entity_id,
                    lease.epoch,
                    lease.owner
                )
            })
            .await?;
        Ok(())
    }

    /// Opens a pass: its row, and its target in the state. Returns both.
    ///
    /// The target is taken in the transaction that records it. So a server that knows of the pass is one
    /// whose transactions the target speaks of, also after a failover between looking for news and this.
    pub async fn open_pass(
        &self,
        lease: &Lease,
        opening: Opening<'_>,
    ) -> Result<(i64, Snapshot), JournalError> {
        let open_pass = || async {
            let mut transaction = self.database.begin().await?;
            let opened = open(&mut transaction, lease, opening).await?;
            commit_if_held(transaction, u64::from(opened.is_some())).await?;
            opened.ok_or(JournalError::LeaseLost)
        };
        self.database.again(open_pass).await
    }

    /// Closes a pass that is through: its target becomes the watermark. With `ends` the entity is up to date with
    /// that, as by [`Journal::lane_succeeded`], in the same transaction: it is by far the most frequent end.
    pub async fn close_pass(&self, pass: &OpenPass, ends: bool) -> Result<(), JournalError> {
        let close_pass = || async {
            let mut transaction = self.database.begin().await?;
            let done = sqlx::query!(
                "with lane as (
                    update elven_sync.sync_state
                       set settled = target, pass_id = null, target = null, cursor_xid = null, cursor_id = null,
                           last_success_at = case when $5 then clock_timestamp() else last_success_at end,
                           last_error = case when $5 then null else last_error end,
                           consecutive_failures = case when $5 then 0 else consecutive_failures end,
                           lease_owner = case when $5 then null else lease_owner end,
                           lease_expires_at = case when $5 then null else lease_expires_at end
                     where entity_id = $1 and lease_epoch = $2 and lease_owner = $3 and pass_id = $4
                       and not exists (select from elven_sync.sync_batches b
                                        where b.pass_id = $4
                                          and (b.status in ('sending', 'unknown')
                                               or (b.status = 'rejected' and b.row_count > 0)))
                 returning pass_id)
                 update elven_sync.sync_passes p
                    set finished_at = clock_timestamp(), written_by = pg_current_xact_id(),
                        last_xid = s.cursor_xid, last_id = s.cursor_id
                   from (select cursor_xid, cursor_id from elven_sync.sync_state where entity_id = $1) s
                  where p.pass_id = $4 and exists (select from lane)",
                pass.lease.entity_id,
                pass.lease.epoch,
                pass.lease.owner,
                pass.pass_id,
                ends
            )
            .execute(&mut transaction)
            .await?;
            if done.rows_affected() == 0 && is_open(&mut transaction, pass).await? {
                transaction.rollback().await?;
                return Err(JournalError::Unfinished(pass.pass_id));
            }
            if ends {
                errors::resolve_of_lanes(&mut transaction, std::slice::from_ref(&pass.lease.entity_id))
                    .await?;
            }
            commit_if_held(transaction, done.rows_affected()).await
        };
        self.database.again(close_pass).await
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
            let done = sqlx::query!(
                "update elven_sync.sync_state
                    set last_error = $4, consecutive_failures = consecutive_failures + 1,
                        not_before = greatest(not_before, clock_timestamp() + make_interval(secs => $5)),
                        lease_owner = null, lease_expires_at = null
                  where entity_id = $1 and lease_epoch = $2 and lease_owner = $3",
                lease.entity_id,
                lease.epoch,
                lease.owner,
                problem.message,
                not_before.map(|pause| pause.as_secs_f64())
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
                        lease_owner = null, lease_expires_at = null
                  where entity_id = $1 and lease_epoch = $2 and lease_owner = $3",
                lease.entity_id,
                lease.epoch,
                lease.owner
            )
            .execute(&mut transaction)
            .await?;
            errors::resolve_of_lanes(&mut transaction, std::slice::from_ref(&lease.entity_id)).await?;
            commit_if_held(transaction, done.rows_affected()).await
        };
        self.database.again(lane_succeeded).await
    }
}

/// Opens a pass by a lease, behind where the entity is. `None` when it is not there, or not the lease's any more, or when
/// this is another cluster than the one it was seen in.
async fn open(
    transaction: &mut Transaction,
    lease: &Lease,
    opening: Opening<'_>,
) -> Result<Option<(i64, Snapshot)>, sqlx::Error> {
    let settled = opening.seen.settled.as_ref().map(ToString::to_string);
    let pass = sqlx::query!(
        r#"insert into elven_sync.sync_passes (entity_id, run_id, settled, target)
           values ($1, $2, $3::text::pg_snapshot, pg_current_snapshot())
        returning pass_id, target::text as "target!""#,
        lease.entity_id,
        opening.run_id,
        settled
    )
    .fetch_one(&mut *transaction)
    .await?;
    let done = sqlx::query!(
        "update elven_sync.sync_state
            set pass_id = $4, target = $5::text::pg_snapshot, ledger_table = $6,
                system_identifier = (select system_identifier from pg_control_system())
          where entity_id = $1 and lease_epoch = $2 and lease_owner = $3 and pass_id is null
            and settled::text is not distinct from $7
            and (system_identifier is null
                 or system_identifier = (select system_identifier from pg_control_system()))",
        lease.entity_id,
        lease.epoch,
        lease.owner,
        pass.pass_id,
        pass.target,
        opening.ledger_table,
        settled
    )
    .execute(&mut *transaction)
    .await?;
    let target = pass.target.parse().map_err(|problem: NotASnapshot| sqlx::Error::Decode(problem.into()))?;
    Ok((done.rows_affected() == 1).then_some((pass.pass_id, target)))
}

/// Says whether the pass is still open, and the lease ours.
async fn is_open(transaction: &mut Transaction, pass: &OpenPass) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select exists (select from elven_sync.sync_state
                           where entity_id = $1 and lease_epoch = $2 and lease_owner = $3 and pass_id = $4) as "open!""#,
        pass.lease.entity_id,
        pass.lease.epoch,
        pass.lease.owner,
        pass.pass_id
    )
    .fetch_one(transaction)
    .await
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
