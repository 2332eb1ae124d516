//! Leases: taking, checking, requesting and releasing them.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::lane::StateRow;
use super::lease_check::{commit_if_held, hold};
use super::{Fence, Journal, JournalError, Lane, Lease, NewPass};
use crate::wall_clock;
use crate::watermark::Snapshot;

/// The result of an attempt to lease an entity.
#[derive(Debug)]
pub enum Take {
    /// The lease was taken; the state of the entity.
    Taken(Lease, Box<Lane>),
    /// Another worker has it. If `seen` changes between two attempts, that worker is alive.
    Held {
        /// The state of the lease as text.
        seen: String,
        /// Who has the lease.
        holder: Holder,
    },
}

/// Who has a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// No worker: it is just being released or taken, another worker waits for it, or its row is locked.
    Nobody,
    /// A run, or a command of a person.
    Run,
    /// A backfill or a retry, which releases the lease after a slice.
    Backfill,
}

/// The purpose of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// For new rows, or a command of a person.
    Run,
    /// For a slice of a backfill; not taken while another worker waits for the entity.
    Backfill,
    /// For a slice of a retry. `yields`: not taken while another worker waits for the entity.
    Retry {
        /// Another worker that waits comes first.
        yields: bool,
    },
}

impl Purpose {
    /// `sync_state.lease_kind`.
    fn kind(self) -> Option<&'static str> {
        match self {
            Self::Run => None,
            Self::Backfill => Some("backfill"),
            Self::Retry { .. } => Some("retry"),
        }
    }

    /// For how long the wish of another worker comes first.
    fn yields_for(self) -> Duration {
        match self {
            Self::Run | Self::Backfill | Self::Retry { yields: true } => WANTED_FOR,
            Self::Retry { yields: false } => Duration::ZERO,
        }
    }
}

/// A pass that was opened together with a lease, and its target.
pub type Opened = (i64, Snapshot);

/// The outcome of an attempt to take a lease and to open a pass with it.
pub type Taken = (Take, Option<Opened>);

/// How long backfills leave an entity to a worker that waits for it. The worker tries several times a second.
const WANTED_FOR: Duration = Duration::from_secs(2);

/// The remaining time of a lease, measured on this machine.
#[derive(Clone, Copy, Debug)]
pub struct Lasts {
    /// The time before the query, by the monotonic clock.
    begun: Instant,
    /// The same by the wall clock, which also advances while the machine is suspended.
    at: DateTime<Utc>,
    /// The remaining time of the lease in the answer of the database.
    left: Duration,
}

impl Lasts {
    /// Returns the remaining time of a lease that was asked for at `begun` and `at`.
    pub fn new(begun: Instant, at: DateTime<Utc>, left: Duration) -> Self {
        Self { begun, at, left }
    }

    /// Returns whether the lease has certainly not expired yet.
    pub fn is_sure(&self) -> bool {
        let elapsed = (wall_clock::now() - self.at).abs().to_std().unwrap_or(Duration::MAX);
        self.begun.elapsed().max(elapsed) < self.left
    }
}

impl Journal {
    /// Leases an entity, unless another worker has it.
    ///
    /// An expired lease is taken over only after the API refuses everything that its holder may still send: after the
    /// time for which a signature is valid.
    pub async fn take(&self, entity_id: &str) -> Result<Take, JournalError> {
        Ok(self.take_and_open(entity_id, None, Purpose::Run).await?.0)
    }

    /// Leases an entity and, in the same transaction, opens a pass if one is wanted and the entity is still in the
    /// expected state.
    pub async fn take_and_open(
        &self,
        entity_id: &str,
        opening: Option<NewPass<'_>>,
        purpose: Purpose,
    ) -> Result<Taken, JournalError> {
        match self.database.retry(|| self.take_if_free(entity_id, opening, purpose)).await? {
            Some(taken) => Ok(taken),
            None => Ok((self.held(entity_id).await?, None)),
        }
    }

    /// Takes the lease if it is free. `None`: another worker has the lease, or has its row locked.
    ///
    /// A pass is opened because a poll has found pending rows: at the time of the state that was seen, unless a poll
    /// before that has found some.
    ///
    /// The target is the snapshot of the start of the statement, so it is newer than the watermark that was seen
    /// before.
    async fn take_if_free(
        &self,
        entity_id: &str,
        opening: Option<NewPass<'_>>,
        purpose: Purpose,
    ) -> Result<Option<Taken>, JournalError> {
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
                     where entity_id = $1 and (lease_owner is null
                            or lease_expires_at + make_interval(secs => $4) < clock_timestamp())
                       and ($5::text is null or lease_wanted_at is null
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
                      lease_kind = $5::text, lease_wanted_at = null,
                      pass_id = coalesce(o.pass_id, s.pass_id), target = coalesce(o.target, s.target),
                      pending_since = case when o.pass_id is null then s.pending_since else coalesce(s.pending_since, $15) end,
                      ledger_table = case when o.pass_id is null then s.ledger_table else $11 end,
                      mapping = case when o.pass_id is null then s.mapping else $13::text::jsonb end,
                      system_identifier = case when o.pass_id is null then s.system_identifier
                                               else (select system_identifier from cluster) end
                 from free left join opened o on true
                where s.entity_id = free.entity_id
            returning s.entity_id, s.lease_epoch, s.settled::text, s.pass_id, s.target::text, s.cursor_xid::text,
                      s.cursor_id, s.system_identifier, s.ledger_table, clock_timestamp() as "read_at!",
                      s.mapping::text, (select seal from cluster) as seal, o.pass_id is not null as "is_opened!",
                      extract(epoch from s.not_before - clock_timestamp())::float8 as not_before_s,
                      extract(epoch from s.fence_until - clock_timestamp())::float8 as fence_s,
                      elven_sync.has_rows_set_aside(s.entity_id) as "has_rows_set_aside!""#,
            entity_id,
            self.worker,
            self.lease_seconds(),
            self.signature_window.as_secs_f64(),
            purpose.kind(),
            purpose.yields_for().as_secs_f64(),
            opening.map(|opening| opening.run_id),
            settled,
            seen.and_then(|seen| seen.system_identifier),
            seen.and_then(|seen| seen.ledger_table.as_deref()),
            opening.map(|opening| opening.ledger_table),
            seen.and_then(|seen| seen.mapping.as_deref()),
            opening.map(|opening| opening.mapping),
            opening.map(|opening| opening.relation),
            seen.and_then(|seen| seen.read_at)
        )
        .fetch_optional(&mut transaction)
        .await?;
        let Some(row) = row else {
            transaction.rollback().await?;
            return Ok(None);
        };
        let (lease, is_opened, mut lane) = (self.lease_of(&row), row.is_opened, row.into_lane()?);
        let opened = if is_opened { lane.open.take() } else { None };
        transaction.commit().await?;
        Ok(Some((Take::Taken(lease, Box::new(lane)), opened)))
    }

    /// Returns the lease for a state that was just read, with the fence that earlier leases left.
    fn lease_of(&self, row: &StateRow) -> Lease {
        let fenced = row.fence_s.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let fence = Fence::new(self.signature_window, fenced);
        Lease { entity_id: row.entity_id.clone(), owner: self.worker.clone(), epoch: row.lease_epoch, fence }
    }

    /// Returns who has the lease of an entity that could not be taken.
    async fn held(&self, entity_id: &str) -> Result<Take, JournalError> {
        let query = || {
            sqlx::query!(
                r#"select concat_ws(' ', lease_owner, lease_epoch, lease_expires_at) as "seen!",
                          coalesce(lease_expires_at + make_interval(secs => $2) >= clock_timestamp(), false)
                              as "is_held!",
                          lease_kind is not null as "by_backfill!"
                     from elven_sync.sync_state where entity_id = $1"#,
                entity_id,
                self.signature_window.as_secs_f64()
            )
            .fetch_optional(&self.database)
        };
        let seen = self.database.retry(query).await?;
        if seen.is_none() {
            // Without a state, the entity could never be leased.
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

    /// Records that a worker waits for an entity which a backfill has, so that the backfill releases it.
    pub async fn want(&self, entity_id: &str) -> Result<(), JournalError> {
        self.database
            .execute(|| {
                sqlx::query!(
                    "update elven_sync.sync_state set lease_wanted_at = clock_timestamp()
                      where entity_id = $1 and lease_kind is not null",
                    entity_id
                )
            })
            .await?;
        Ok(())
    }

    /// Checks that this worker still has a lease before something is sent under it, and renews the lease if it has
    /// expired. Returns how long it lasts.
    pub async fn check_lease(&self, lease: &Lease) -> Result<Lasts, JournalError> {
        let check_lease = || async {
            let (begun, at) = (Instant::now(), wall_clock::now());
            let mut transaction = self.database.begin().await?;
            let held = hold(&mut transaction, lease, self.lease_seconds()).await?;
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
            Ok(Lasts::new(begun, at, left.unwrap_or_default()))
        };
        self.database.retry(check_lease).await
    }

    /// Releases a lease, so that no worker has to wait until it expires, and records until when its attempts may still
    /// arrive.
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
