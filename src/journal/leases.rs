//! Leases: who may work on an entity, and who waits for it.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::lane::StateRow;
use super::lease_check::{commit_if_held, hold};
use super::{Fence, Journal, JournalError, Lane, Lease, NewPass};
use crate::watermark::Snapshot;

/// What trying to lease an entity gave.
#[derive(Debug)]
pub enum Take {
    /// It is ours, in this state.
    Taken(Lease, Box<Lane>),
    /// Another worker has it. Two looks at a lease that differ in `seen` show that it is alive.
    Held {
        /// The lease as it stood.
        seen: String,
        /// For what it was taken.
        holder: Holder,
    },
}

/// Who has a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// It is being given back or taken just now, or its row is locked.
    Nobody,
    /// A run, a retry, or a person's command.
    Run,
    /// A backfill, which makes room for the others.
    Backfill,
}

/// For what an entity is leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// For what is new, for errors again, or by a person.
    Run,
    /// For a slice of a backfill: not while anybody else waits for it.
    Backfill,
}

/// A pass that was opened with a lease, and its target.
type Opened = (i64, Snapshot);

/// How long an entity that somebody waits for is left to him by backfills. He looks several times a second.
const WANTED_FOR: Duration = Duration::from_secs(2);

/// How long a lease lasts, as this machine knows it.
#[derive(Clone, Copy, Debug)]
pub struct Lasts {
    /// Before the database was asked.
    begun: Instant,
    /// The same by the clock of this machine, which goes on while the machine is suspended.
    at: DateTime<Utc>,
    /// How long the lease lasted when the database answered.
    left: Duration,
}

impl Lasts {
    /// Says whether the lease has certainly not run out yet.
    pub fn is_sure(&self) -> bool {
        let elapsed = (Utc::now() - self.at).abs().to_std().unwrap_or(Duration::MAX);
        self.begun.elapsed().max(elapsed) < self.left
    }
}

impl Journal {
    /// Leases an entity, unless another worker has it.
    ///
    /// A lease that ran out is taken over once the API refuses whatever its holder may still send: after
    /// the window in which a signature is good.
    pub async fn take(&self, entity_id: &str) -> Result<Take, JournalError> {
        Ok(self.take_and_open(entity_id, None, Purpose::Run).await?.0)
    }

    /// The same for a slice of a backfill, unless somebody else waits for the entity.
    pub async fn take_for_backfill(&self, entity_id: &str) -> Result<Take, JournalError> {
        Ok(self.take_and_open(entity_id, None, Purpose::Backfill).await?.0)
    }

    /// The same, and opens a pass in that transaction if one is wanted and the entity still is where it was seen.
    pub async fn take_and_open(
        &self,
        entity_id: &str,
        opening: Option<NewPass<'_>>,
        purpose: Purpose,
    ) -> Result<(Take, Option<Opened>), JournalError> {
        let of_backfill = purpose == Purpose::Backfill;
        match self.database.retry(|| self.take_if_free(entity_id, opening, of_backfill)).await? {
            Some(taken) => Ok(taken),
            None => Ok((self.held(entity_id).await?, None)),
        }
    }

    /// `None`: somebody else has the lease, or the row locked.
    ///
    /// The target is of the snapshot in which the statement began: a watermark that is the one which was seen is older.
    async fn take_if_free(
        &self,
        entity_id: &str,
        opening: Option<NewPass<'_>>,
        of_backfill: bool,
    ) -> Result<Option<(Take, Option<Opened>)>, JournalError> {
        let seen = opening.map(|opening| opening.seen);
        let settled = seen.and_then(|seen| seen.settled.as_ref()).map(ToString::to_string);
        let mut transaction = self.database.begin().await?;
        let row = sqlx::query_as!(
            StateRow,
            r#"with cluster as materialized (
                    select c.system_identifier, z.seal
                      from pg_control_system() c left join elven_sync.seals(array[$1::text]) z on true),
                    free as (
                    select s.* from elven_sync.sync_state s
                     where entity_id = $1
                       and (lease_owner is null
                            or lease_expires_at + make_interval(secs => $4) < clock_timestamp())
                       and (not $5 or lease_wanted_at is null
                            or lease_wanted_at + make_interval(secs => $6) < clock_timestamp())
                       for update skip locked),
                    opened as (
                    insert into elven_sync.sync_passes (entity_id, run_id, settled, target)
                    select entity_id, $7, settled, pg_current_snapshot() from free
                     where $7::bigint is not null and pass_id is null and settled::text is not distinct from $8
                       and system_identifier is not distinct from $9 and ledger_table is not distinct from $10
                       and mapping is not distinct from $12::text::jsonb and to_regclass($11)::oid::bigint = $14
                       and (select seal in ('whole', 'none') from cluster)
                       and (system_identifier is null or system_identifier = (select system_identifier from cluster))
                 returning pass_id, target)
               update elven_sync.sync_state s
                  set lease_owner = $2, lease_epoch = s.lease_epoch + 1,
                      lease_expires_at = clock_timestamp() + make_interval(secs => $3),
                      lease_kind = case when $5 then 'backfill' end, lease_wanted_at = null,
                      pass_id = coalesce(o.pass_id, s.pass_id), target = coalesce(o.target, s.target),
                      ledger_table = case when o.pass_id is null then s.ledger_table else $11 end,
                      mapping = case when o.pass_id is null then s.mapping else $13::text::jsonb end,
                      system_identifier = case when o.pass_id is null then s.system_identifier
                                               else (select system_identifier from cluster) end
                 from free left join opened o on true
                where s.entity_id = free.entity_id
            returning s.entity_id, s.lease_epoch, s.settled::text, s.pass_id, s.target::text, s.cursor_xid::text,
                      s.cursor_id, s.system_identifier, s.ledger_table, s.mapping::text, (select seal from cluster) as seal,
                      extract(epoch from s.not_before - clock_timestamp())::float8 as not_before_s,
                      extract(epoch from s.fence_until - clock_timestamp())::float8 as fence_s,
                      exists (select from elven_sync.sync_errors e where e.entity_id = s.entity_id and e.ledger_id is not null
                                 and e.resolved_at is null) as "has_rows_set_aside!", o.pass_id is not null as "is_opened!""#,
            entity_id,
            self.worker,
            self.lease_seconds(),
            self.signature_window.as_secs_f64(),
            of_backfill,
            WANTED_FOR.as_secs_f64(),
            opening.map(|opening| opening.run_id),
            settled,
            seen.and_then(|seen| seen.system_identifier),
            seen.and_then(|seen| seen.ledger_table.as_deref()),
            opening.map(|opening| opening.ledger_table),
            seen.and_then(|seen| seen.mapping.as_deref()),
            opening.map(|opening| opening.mapping),
            opening.map(|opening| opening.relation)
        )
        .fetch_optional(&mut transaction)
        .await?;
        let Some(row) = row else {
            transaction.rollback().await?;
            return Ok(None);
        };
        let lease = self.lease_of(&row);
        let (is_opened, mut lane) = (row.is_opened, row.into_lane()?);
        let opened = if is_opened { lane.open.take() } else { None };
        transaction.commit().await?;
        Ok(Some((Take::Taken(lease, Box::new(lane)), opened)))
    }

    /// The lease that was taken with a state, fenced by what earlier ones have left behind.
    fn lease_of(&self, row: &StateRow) -> Lease {
        let fenced = row.fence_s.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let fence = Fence::new(self.signature_window, fenced);
        Lease { entity_id: row.entity_id.clone(), owner: self.worker.clone(), epoch: row.lease_epoch, fence }
    }

    /// Who has the lease of an entity that could not be taken.
    async fn held(&self, entity_id: &str) -> Result<Take, JournalError> {
        let look = || {
            sqlx::query!(
                r#"select concat_ws(' ', lease_owner, lease_epoch, lease_expires_at) as "seen!",
                          lease_owner is not null as "is_held!", lease_kind is not null as "by_backfill!"
                     from elven_sync.sync_state where entity_id = $1"#,
                entity_id
            )
            .fetch_optional(&self.database)
        };
        let seen = self.database.retry(look).await?;
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
        let held = seen.map(|held| {
            let holder = match (held.is_held, held.by_backfill) {
                (false, _) => Holder::Nobody,
                (true, true) => Holder::Backfill,
                (true, false) => Holder::Run,
            };
            (held.seen, holder)
        });
        let (seen, holder) = held.unwrap_or((String::new(), Holder::Nobody));
        Ok(Take::Held { seen, holder })
    }

    /// Says that an entity is wanted which a backfill has, so that it makes room.
    pub async fn want(&self, entity_id: &str) -> Result<(), JournalError> {
        self.database
            .execute(|| {
                sqlx::query!(
                    "update elven_sync.sync_state set lease_wanted_at = clock_timestamp()
                      where entity_id = $1 and lease_kind = 'backfill'",
                    entity_id
                )
            })
            .await?;
        Ok(())
    }

    /// Checks that a lease is ours, before something is sent under it. Returns how long it lasts.
    pub async fn check_lease(&self, lease: &Lease) -> Result<Lasts, JournalError> {
        let check_lease = || async {
            let (begun, at) = (Instant::now(), Utc::now());
            let mut transaction = self.database.begin().await?;
            let held = hold(&mut transaction, lease, None, self.lease_seconds()).await?;
            let left_s = sqlx::query_scalar!(
                r#"select extract(epoch from lease_expires_at - clock_timestamp())::float8 as left_s
                     from elven_sync.sync_state where entity_id = $1"#,
                lease.entity_id
            )
            .fetch_optional(&mut transaction)
            .await?
            .flatten();
            commit_if_held(transaction, held).await?;
            let left = left_s.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            Ok(Lasts { begun, at, left: left.unwrap_or_default() })
        };
        self.database.retry(check_lease).await
    }

    /// Gives a lease back, so that nobody has to wait for it to run out, and notes what may still arrive of it.
    pub async fn release(&self, lease: &Lease) -> Result<(), JournalError> {
        self.database
            .execute(|| {
                sqlx::query!(
                    "update elven_sync.sync_state
                        set lease_owner = null, lease_expires_at = null, lease_kind = null,
                            fence_until = greatest(fence_until, clock_timestamp() + make_interval(secs => $4))
                      where entity_id = $1 and lease_epoch = $2 and lease_owner = $3",
                    lease.entity_id,
                    lease.epoch,
                    lease.owner,
                    lease.fence.seconds_left()
                )
            })
            .await?;
        Ok(())
    }
}
