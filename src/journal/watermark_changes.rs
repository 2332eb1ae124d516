//! Changes of watermarks by a person: a registration from now on, a rewind, a rebind. Each leaves a row in
//! `sync_passes`.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::actions::{Action, client_name};
use super::lease_check::commit_if_held;
use super::leaves::{GivenUp, seal_rest};
use super::links::add_link;
use super::{Entity, Journal, JournalError, Lease};
use crate::database::Database;
use crate::watermark::Snapshot;

/// The result of a registration that skips the existing rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromNow {
    /// The entity is registered; its watermark begins now.
    Begun,
    /// The entity was already registered; nothing was changed.
    Registered,
    /// The entity was registered and synced earlier and has a watermark; nothing was changed.
    HasWatermark,
}

/// An earlier watermark of an entity.
#[derive(Debug, Default)]
pub struct PastWatermark {
    /// The watermark. `None`: the start.
    pub settled: Option<Snapshot>,
    /// The number of rows that were processed since then and not accepted: superseded, or set aside and still open.
    pub not_accepted_since: i64,
    /// The rows that a later registration from now on skipped.
    pub skipped_since: Option<Snapshot>,
    /// The watermark at that instant was pruned, like all that ended before this time.
    pub pruned_until: Option<DateTime<Utc>>,
}

/// The declaration of a person about a watermark that stays where it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rebound<'a> {
    /// The action, as in `sync_actions.action`.
    pub action: &'a str,
    /// The new cluster of the watermark, if it changes.
    pub system_identifier: Option<i64>,
    /// The new table of the ledger and its mapping, if they change.
    pub ledger: Option<(&'a str, &'a str)>,
    /// The new mapping may send other values.
    pub values: bool,
    /// The reason, if one was given.
    pub reason: Option<&'a str>,
}

/// Unfinished work of an entity, besides its pass.
#[derive(Debug, Default)]
pub struct UnfinishedWork {
    /// An unfinished backfill.
    pub backfill_id: Option<i64>,
    /// A batch of a retry with an unknown outcome, of which a row is still set aside.
    pub batch_id: Option<i64>,
}

/// Whether the journal was written in this cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterMatch {
    /// The rows of the journal are in the cluster that wrote them, or in one that was upgraded from it.
    Same,
    /// They were copied, as by restoring a dump.
    Restored,
    /// There is no row to tell it from.
    Unknown,
}

impl Entity {
    /// Registers an entity with a watermark: rows of transactions that have ended by now count as processed.
    ///
    /// The snapshot is taken in the transaction that records it, as for a pass. The snapshot does not contain this
    /// transaction, which writes nothing to the ledger.
    pub async fn add_from_now(
        database: &Database,
        entity: &Entity,
        ledger_table: &str,
        mapping: &str,
        reason: Option<&str>,
    ) -> Result<FromNow, JournalError> {
        let add_from_now = || async {
            let mut transaction = database.begin().await?;
            let now = sqlx::query!(
                r#"select pg_current_snapshot()::text as "target!", system_identifier as "system_identifier!"
                     from pg_control_system()"#
            )
            .fetch_one(&mut transaction)
            .await?;
            if !Self::insert(&mut transaction, entity).await? {
                return Ok(FromNow::Registered);
            }
            // The trigger `entity_registered` has created the state, unless there was an earlier one.
            let begun = sqlx::query!(
                "update elven_sync.sync_state
                    set settled = $2::text::pg_snapshot, system_identifier = $3, ledger_table = $4,
                        mapping = $5::text::jsonb
                  where entity_id = $1 and settled is null and pass_id is null",
                entity.entity_id,
                now.target,
                now.system_identifier,
                ledger_table,
                mapping
            )
            .execute(&mut transaction)
            .await?;
            if begun.rows_affected() == 0 {
                return Ok(FromNow::HasWatermark);
            }
            let pass_id = sqlx::query_scalar!(
                "insert into elven_sync.sync_passes (entity_id, kind, target, finished_at)
                 values ($1, 'from_now', $2::text::pg_snapshot, clock_timestamp()) returning pass_id",
                entity.entity_id,
                now.target
            )
            .fetch_one(&mut transaction)
            .await?;
            add_link(&mut transaction, &entity.entity_id, "from_now", pass_id).await?;
            let details = json!({ "pass_id": pass_id, "to": now.target });
            let entity_id = Some(entity.entity_id.as_str());
            let action = Action { what: "from_now", entity_id, reason, details: &details };
            action.record(&mut transaction, &client_name()).await?;
            transaction.commit().await?;
            Ok(FromNow::Begun)
        };
        database.retry(add_from_now).await
    }
}

impl Journal {
    /// Returns the watermark that an entity had at an instant; `None` means the start.
    pub async fn earlier(
        &self,
        entity_id: &str,
        at: Option<DateTime<Utc>>,
    ) -> Result<PastWatermark, JournalError> {
        let pass = self
            .database
            .retry(|| {
                sqlx::query!(
                    "select pass_id, target::text from elven_sync.sync_passes
                      where entity_id = $1 and finished_at <= $2 order by finished_at desc, pass_id desc limit 1",
                    entity_id,
                    at
                )
                .fetch_optional(&self.database)
            })
            .await?;
        let pruned_until = self
            .database
            .retry(|| {
                sqlx::query_scalar!(
                    "select case when kind = 'pruned' and started_at <= $2 then finished_at end
                       from elven_sync.sync_passes
                      where entity_id = $1 and finished_at > $2 order by finished_at, pass_id limit 1",
                    entity_id,
                    at
                )
                .fetch_optional(&self.database)
            })
            .await?
            .flatten();
        let (pass_id, target) = pass.map_or((0, None), |pass| (pass.pass_id, pass.target));
        let settled = target.map(|text| text.parse::<Snapshot>()).transpose();
        let settled = settled.map_err(|problem| sqlx::Error::Decode(problem.into()))?;
        let not_accepted_since = self
            .database
            .retry(|| {
                sqlx::query_scalar!(
                    r#"select (select coalesce(sum(rows_superseded), 0) from elven_sync.sync_batches
                        where entity_id = $1 and pass_id > $2 and status = 'accepted')::bigint
                    + (select coalesce(sum(rows_superseded), 0) from elven_sync.sync_pruned
                        where entity_id = $1 and $2 = 0)::bigint
                    + (select coalesce(sum(coalesce(e.rows, 1)), 0)::bigint from elven_sync.sync_errors e
                         left join elven_sync.sync_batches b using (batch_id)
                        where e.entity_id = $1 and coalesce(e.ledger_id, e.name) is not null
                          and (e.resolved_at is null or e.dismissed)
                          and coalesce(b.pass_id > $2, true)) as "rows!""#,
                    entity_id,
                    pass_id
                )
                .fetch_one(&self.database)
            })
            .await?;
        let skipped = self
            .database
            .retry(|| {
                sqlx::query_scalar!(
                    r#"select target::text as "target!" from elven_sync.sync_passes
                        where entity_id = $1 and pass_id > $2 and kind = 'from_now' order by pass_id desc limit 1"#,
                    entity_id,
                    pass_id
                )
                .fetch_optional(&self.database)
            })
            .await?;
        let skipped_since = skipped.map(|text| text.parse::<Snapshot>()).transpose();
        let skipped_since = skipped_since.map_err(|problem| sqlx::Error::Decode(problem.into()))?;
        Ok(PastWatermark { settled, not_accepted_since, skipped_since, pruned_until })
    }

    /// Moves a watermark back, to the start with `None`. An open pass is given up. After a rewind to the start the
    /// ledger is read with this `mapping`.
    pub async fn rewind(
        &self,
        lease: &Lease,
        to: Option<&Snapshot>,
        mapping: &str,
        reason: Option<&str>,
    ) -> Result<(), JournalError> {
        let to = to.map(ToString::to_string);
        let rewind = || async {
            let mut transaction = self.database.begin().await?;
            let before = sqlx::query!(
                "select settled::text, pass_id from elven_sync.sync_state where entity_id = $1 for update",
                lease.entity_id
            )
            .fetch_one(&mut transaction)
            .await?;
            // After a rewind to the start, the next pass records cluster and table again.
            let done = sqlx::query!(
                "update elven_sync.sync_state
                    set settled = $3::text::pg_snapshot, pass_id = null, target = null, cursor_xid = null,
                    cursor_id = null, running = null,
                        system_identifier = case when $3::text is null then null else system_identifier end,
                        ledger_table = case when $3::text is null then null else ledger_table end,
                        mapping = case when $3::text is null then $5::text::jsonb else mapping end
                  where entity_id = $1 and lease_epoch = $2 and lease_owner = $4",
                lease.entity_id,
                lease.epoch,
                to,
                lease.owner,
                mapping
            )
            .execute(&mut transaction)
            .await?;
            sqlx::query!(
                "update elven_sync.sync_batches
                    set status = 'unknown', finished_at = clock_timestamp(),
                        error = 'the entity was rewound before the outcome was known; its rows are sent again'
                  where pass_id = $1 and status in ('sending', 'unknown')",
                before.pass_id
            )
            .execute(&mut transaction)
            .await?;
            if let Some(pass_id) = before.pass_id {
                seal_rest(&mut transaction, GivenUp::Pass(pass_id)).await?;
            }
            let pass_id = sqlx::query_scalar!(
                "insert into elven_sync.sync_passes (entity_id, kind, settled, target, finished_at, given_up)
                 values ($1, 'rewind', $2::text::pg_snapshot, $3::text::pg_snapshot, clock_timestamp(), $4)
              returning pass_id",
                lease.entity_id,
                before.settled,
                to,
                before.pass_id
            )
            .fetch_one(&mut transaction)
            .await?;
            add_link(&mut transaction, &lease.entity_id, "rewind", pass_id).await?;
            let details = json!({ "pass_id": pass_id, "from": before.settled, "to": to });
            let entity_id = Some(lease.entity_id.as_str());
            let action = Action { what: "rewind", entity_id, reason, details: &details };
            action.record(&mut transaction, &self.worker).await?;
            commit_if_held(transaction, done.rows_affected()).await
        };
        self.database.retry(rewind).await
    }

    /// Returns whether the newest pass of an entity was written in this cluster, or in the cluster from which it was
    /// upgraded: then its `written_by` equals its system column `xmin`.
    pub async fn seal(&self, entity_id: &str) -> Result<ClusterMatch, JournalError> {
        let whole = self
            .database
            .retry(|| {
                sqlx::query_scalar!(
                    "select xmin = written_by::xid as whole
                       from elven_sync.sync_passes where entity_id = $1 order by pass_id desc limit 1",
                    entity_id
                )
                .fetch_optional(&self.database)
            })
            .await?;
        Ok(match whole.flatten() {
            Some(true) => ClusterMatch::Same,
            Some(false) => ClusterMatch::Restored,
            None => ClusterMatch::Unknown,
        })
    }

    /// Declares that the watermark of an entity belongs to this cluster, this ledger and this journal.
    pub async fn rebind(&self, lease: &Lease, rebound: Rebound<'_>) -> Result<(), JournalError> {
        let (ledger_table, mapping) = rebound.ledger.unzip();
        let rebind = || async {
            let mut transaction = self.database.begin().await?;
            let before = sqlx::query!(
                "select system_identifier, mapping from elven_sync.sync_state where entity_id = $1 for update",
                lease.entity_id
            )
            .fetch_one(&mut transaction)
            .await?;
            let done = sqlx::query!(
                "update elven_sync.sync_state
                    set system_identifier = coalesce($3, system_identifier), ledger_table = coalesce($5, ledger_table),
                        mapping = coalesce($6::text::jsonb, mapping)
                  where entity_id = $1 and lease_epoch = $2 and lease_owner = $4",
                lease.entity_id,
                lease.epoch,
                rebound.system_identifier,
                lease.owner,
                ledger_table,
                mapping
            )
            .execute(&mut transaction)
            .await?;
            let pass_id = sqlx::query_scalar!(
                "insert into elven_sync.sync_passes (entity_id, kind, settled, target, finished_at)
                 select entity_id, 'rebind', settled, settled, clock_timestamp()
                   from elven_sync.sync_state where entity_id = $1
              returning pass_id",
                lease.entity_id
            )
            .fetch_one(&mut transaction)
            .await?;
            add_link(&mut transaction, &lease.entity_id, "rebind", pass_id).await?;
            let mut details = json!({ "pass_id": pass_id });
            if let Some(identifier) = rebound.system_identifier {
                details["system_identifier"] =
                    json!({ "before": before.system_identifier, "now": identifier });
            }
            if let Some(mapping) = mapping {
                let now: Value = serde_json::from_str(mapping).unwrap_or_default();
                details["mapping"] = json!({ "before": before.mapping, "now": now });
                details["values"] = rebound.values.into();
            }
            let action = Action {
                what: rebound.action,
                entity_id: Some(&lease.entity_id),
                reason: rebound.reason,
                details: &details,
            };
            action.record(&mut transaction, &self.worker).await?;
            commit_if_held(transaction, done.rows_affected()).await
        };
        self.database.retry(rebind).await
    }

    /// Returns the unfinished work of an entity besides its pass: its rows were read with the mapping of that time.
    pub async fn open_work(&self, entity_id: &str) -> Result<UnfinishedWork, JournalError> {
        let open = || {
            sqlx::query_as!(
                UnfinishedWork,
                "select (select min(l.backfill_id) from elven_sync.sync_backfill_lanes l
                           join elven_sync.sync_backfills b using (backfill_id)
                          where l.entity_id = $1 and l.finished_at is null
                            and b.status not in ('succeeded', 'cancelled')) as backfill_id,
                        (select min(u.batch_id) from elven_sync.sync_batches u
                          where u.entity_id = $1 and u.pass_id is null and u.backfill_id is null
                            and u.status in ('sending', 'unknown')
                            and exists (select from elven_sync.batch_row_ids(u.batch_id) id
                                          join (select e.ledger_id from elven_sync.sync_errors e
                                                 where e.entity_id = $1 and e.resolved_at is null
                                                union all
                                                select elven_sync.error_row_ids(e.error_id)
                                                  from elven_sync.sync_errors e
                                                 where e.entity_id = $1 and e.resolved_at is null
                                                   and e.ledger_ids is not null) e on e.ledger_id = id)) as batch_id",
                entity_id
            )
            .fetch_one(&self.database)
        };
        Ok(self.database.retry(open).await?)
    }
}
