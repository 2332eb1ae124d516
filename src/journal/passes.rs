//! Passes of a lane: opening them, and the result of a lane.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::lane::StateRow;
use super::lease_check::commit_if_held;
use super::problem::{record, record_each, resolve_of_lanes};
use super::storable_text::{storable, storable_one};
use super::{Journal, JournalError, Lane, Lease, NewPass, Problem, RecordedMapping};
use crate::watermark::{NotASnapshot, Snapshot};

impl Journal {
    /// Returns the states of these entities; an entity that was never synced has the default state. `mapping` is the
    /// mapping in use. Nearly all entities have it, so its text is neither sent nor parsed again for each of them.
    pub async fn lanes(
        &self,
        entity_ids: &[String],
        mapping: &Arc<str>,
    ) -> Result<BTreeMap<String, Lane>, JournalError> {
        let rows = self.database.retry(|| sqlx::query_as!(
            StateRow,
            r#"select e.entity_id as "entity_id!", coalesce(s.lease_epoch, 0) as "lease_epoch!",
                      s.settled::text as "settled?",
                      s.pass_id as "pass_id?", s.target::text as "target?", s.cursor_xid::text as "cursor_xid?",
                      s.cursor_id as "cursor_id?", s.system_identifier as "system_identifier?",
                      s.ledger_table as "ledger_table?",
                      case when s.mapping = m.in_use then '' else s.mapping::text end as "mapping?",
                      s.seal as "seal?",
                      clock_timestamp() as "read_at!",
                      extract(epoch from s.not_before - clock_timestamp())::float8 as not_before_s,
                      null::float8 as fence_s, false as "has_rows_set_aside!", false as "is_opened!"
                 from unnest($1::text[]) e (entity_id) left join elven_sync.sync_watermarks s using (entity_id)
                cross join (select $2::text::jsonb as in_use offset 0) m"#,
            entity_ids,
            &**mapping
        ).fetch_all(&self.database)).await?;
        let in_use = RecordedMapping::from(mapping.clone());
        let lane = |row: StateRow| {
            let mut lane = row.into_lane()?;
            if lane.mapping.as_ref().is_some_and(|mapping| mapping.is_empty()) {
                lane.mapping = Some(in_use.clone());
            }
            Ok::<_, JournalError>(lane)
        };
        rows.into_iter().map(|row| Ok((row.entity_id.clone(), lane(row)?))).collect()
    }

    /// Opens a pass under a lease, after the entity's watermark: inserts its row, and sets its target in the state.
    /// Returns both. (Most passes are opened together with the lease: see [`Journal::take_and_open`]. This function
    /// opens a pass that follows another one under the same lease.)
    ///
    /// The target is taken in the transaction that records it. So any server that has the row of the pass also knows
    /// the transactions of the target, even after a failover between the probe and this call.
    ///
    /// # Errors
    /// The entity is missing, the lease was lost, or the cluster, the table or the journal is not the one that the
    /// probe saw.
    pub async fn open_pass(
        &self,
        lease: &Lease,
        opening: NewPass<'_>,
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
                        pending_since = coalesce(pending_since, clock_timestamp()),
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
        self.database.retry(open_pass).await
    }

    /// Records the mapping where an earlier version of elven-sync has not recorded it.
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

    /// Records that a lane stopped, why, and how long the API asked not to be called. Releases its lease.
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
            record(&mut transaction, run_id, &lease.entity_id, std::slice::from_ref(problem)).await?;
            commit_if_held(transaction, done.rows_affected()).await
        };
        self.database.retry(lane_failed).await
    }

    /// Records problems that keep entities from being worked on, in one transaction for all of them: the entities are
    /// not leased for it. The state of an entity whose row is locked, or that another worker has leased, stays as it
    /// is.
    ///
    /// The lease epoch is advanced, as by a lane that fails under a lease, so that a worker that looked at the entity
    /// before does not take it to be up to date.
    pub async fn lanes_failed(
        &self,
        run_id: i64,
        problems: &[(String, Problem)],
    ) -> Result<(), JournalError> {
        let entity_ids: Vec<String> = problems.iter().map(|(entity_id, _)| entity_id.clone()).collect();
        let lanes_failed = || async {
            let mut transaction = self.database.begin().await?;
            let mut messages: Vec<Option<String>> =
                problems.iter().map(|(_, problem)| Some(problem.message.clone())).collect();
            storable(&mut transaction, [&mut messages]).await?;
            sqlx::query!(
                "update elven_sync.sync_state s
                    set last_error = f.message, consecutive_failures = s.consecutive_failures + 1,
                        lease_epoch = s.lease_epoch + case when free.is_own then 0 else 1 end,
                        lease_owner = case when free.is_own then s.lease_owner end,
                        lease_expires_at = case when free.is_own then s.lease_expires_at end,
                        lease_kind = case when free.is_own then s.lease_kind end
                   from unnest($1::text[], $2::text[]) f (entity_id, message)
                   join (select entity_id, lease_owner is not distinct from $4::text as is_own
                           from elven_sync.sync_state
                          where entity_id = any ($1)
                            and (lease_owner is null or lease_owner = $4
                                 or lease_expires_at + make_interval(secs => $3) < clock_timestamp())
                          order by entity_id for update skip locked) free using (entity_id)
                  where s.entity_id = f.entity_id",
                &entity_ids,
                &messages as &[Option<String>],
                self.signature_window.as_secs_f64(),
                self.worker
            )
            .execute(&mut transaction)
            .await?;
            let each: Vec<(&str, &Problem)> =
                problems.iter().map(|(entity_id, problem)| (entity_id.as_str(), problem)).collect();
            record_each(&mut transaction, run_id, &each).await?;
            transaction.commit().await?;
            Ok(())
        };
        if problems.is_empty() {
            return Ok(());
        }
        self.database.retry(lanes_failed).await
    }

    /// Records that the entity of a lease is up to date, which resolves the errors of its lane. Releases the lease.
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
            resolve_of_lanes(&mut transaction, std::slice::from_ref(&lease.entity_id)).await?;
            commit_if_held(transaction, done.rows_affected()).await
        };
        self.database.retry(lane_succeeded).await
    }
}
