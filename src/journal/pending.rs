//! Queries and updates for many entities at once.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::problem::resolve_of_lanes;
use super::{Journal, JournalError, Lane};
use crate::ledger::Pending;

/// The result of a poll: a check of entities for pending rows.
#[derive(Debug)]
pub struct Poll<'a> {
    /// The time of the states that the poll began with, by the clock of the database.
    pub polled_at: Option<DateTime<Utc>>,
    /// The entities without pending rows, each with the state that the poll began with.
    pub idle: Vec<(&'a str, &'a Lane)>,
    /// The entities with pending rows.
    pub pending: Vec<(&'a str, &'a Lane)>,
    /// The mapping in use.
    pub mapping: &'a str,
}

impl Journal {
    /// Records a poll of entities: those in `pending` have pending rows, and those in `idle` have none: they are up to
    /// date. The run notes the time of its poll, also if it polled no readable entity.
    ///
    /// Entities leased by another run are not marked as up to date, because that run records its own success. Entities
    /// leased by a backfill are marked, because a backfill does not record it, and so are entities whose lease
    /// expired, because their worker died. An entity that was leased after its state was read is left as it is: its
    /// worker has recorded something newer, e.g. a failure. What a later poll or count has found about pending rows
    /// stays. The mapping is recorded for a watermark that an earlier version moved without it. Rows are locked in one
    /// order, so that two workers cannot wait for each other; the row of the run is that of this worker, which writes
    /// nothing else to it meanwhile.
    pub async fn note_poll(&self, run_id: i64, poll: &Poll<'_>) -> Result<(), JournalError> {
        let polled = || poll.idle.iter().chain(&poll.pending);
        let entity_ids: Vec<String> = polled().map(|(entity_id, _)| (*entity_id).to_owned()).collect();
        let epochs: Vec<i64> = polled().map(|(_, lane)| lane.lease_epoch).collect();
        let are_idle: Vec<bool> = (0..entity_ids.len()).map(|index| index < poll.idle.len()).collect();
        let note_poll = || async {
            let mut transaction = self.database.begin().await?;
            let noted = sqlx::query!(
                r#"with run as (
                       update elven_sync.sync_runs set polled_at = coalesce($4, clock_timestamp())
                        where run_id = $5 and worker = $6),
                   polled as (
                       select now.entity_id, seen.is_idle,
                              -- A time in the future was recorded by a clock that was put back since.
                              coalesce(now.checked_at <= $4 or now.checked_at > clock_timestamp(), true) as is_newest,
                              coalesce(now.pending_since <= $4 or now.pending_since > clock_timestamp(), true)
                                  as has_no_newer_rows,
                              now.lease_owner is null or now.lease_expires_at < clock_timestamp()
                                  or now.lease_kind is not null as is_free
                         from elven_sync.sync_state now
                         join unnest($1::text[], $3::bigint[], $7::boolean[]) seen (entity_id, lease_epoch, is_idle)
                           on now.entity_id = seen.entity_id and now.lease_epoch = seen.lease_epoch
                        where seen.is_idle or now.pending_since is null
                        order by now.entity_id for update of now skip locked),
                   pending as (
                       update elven_sync.sync_state s set pending_since = coalesce($4, clock_timestamp())
                         from polled p where s.entity_id = p.entity_id and not p.is_idle and p.is_newest)
                   update elven_sync.sync_state s
                      set pending_rows = case when i.is_newest then 0 else s.pending_rows end,
                          oldest_pending_at = case when i.is_newest then null else s.oldest_pending_at end,
                          pending_since = case when i.is_newest and i.has_no_newer_rows then null
                                               else s.pending_since end,
                          checked_at = case when i.is_newest then coalesce($4, clock_timestamp()) else s.checked_at end,
                          last_success_at = case when i.is_free then clock_timestamp() else last_success_at end,
                          last_error = case when i.is_free then null else last_error end,
                          consecutive_failures = case when i.is_free then 0 else consecutive_failures end,
                          mapping = case when s.settled is null then s.mapping
                                         else coalesce(s.mapping, $2::text::jsonb) end
                     from polled i
                    where s.entity_id = i.entity_id and i.is_idle
                returning s.entity_id, i.is_free as "is_free!""#,
                &entity_ids,
                poll.mapping,
                &epochs,
                poll.polled_at,
                run_id,
                self.worker,
                &are_idle
            )
            .fetch_all(&mut transaction)
            .await?;
            let idle: Vec<String> =
                noted.into_iter().filter(|noted| noted.is_free).map(|noted| noted.entity_id).collect();
            resolve_of_lanes(&mut transaction, &idle).await?;
            transaction.commit().await?;
            Ok(())
        };
        self.database.retry(note_poll).await
    }

    /// Records the pending rows of these entities, unless a later count is recorded already. `seen`: the states that
    /// the count began with. An entity that was leased since may have rows that the count did not see.
    pub async fn note_pending(
        &self,
        pending: &[Pending],
        seen: &BTreeMap<String, Lane>,
    ) -> Result<(), JournalError> {
        let counted_at = seen.values().filter_map(|lane| lane.read_at).min();
        let epochs: Vec<i64> =
            pending.iter().map(|p| seen.get(&p.entity_id).map_or(0, |lane| lane.lease_epoch)).collect();
        let ids: Vec<String> = pending.iter().map(|p| p.entity_id.clone()).collect();
        let rows: Vec<i64> = pending.iter().map(|p| p.rows).collect();
        let oldest: Vec<Option<DateTime<Utc>>> = pending.iter().map(|p| p.oldest_at).collect();
        self.database
            .execute(|| {
                sqlx::query!(
                    "update elven_sync.sync_state s
                        set pending_rows = p.rows, oldest_pending_at = p.oldest_at,
                            checked_at = coalesce($4, clock_timestamp()),
                            pending_since = case when p.rows > 0 then coalesce(s.pending_since, $4, clock_timestamp())
                                                 when s.lease_epoch = p.lease_epoch
                                                      and coalesce(s.pending_since <= $4 or s.pending_since > clock_timestamp(), true)
                                                 then null
                                                 else s.pending_since end
                       from unnest($1::text[], $2::bigint[], $3::timestamptz[], $5::bigint[])
                            p (entity_id, rows, oldest_at, lease_epoch)
                      where s.entity_id = p.entity_id and coalesce(s.checked_at <= $4 or s.checked_at > clock_timestamp(), true)
                        and s.entity_id in (select entity_id from elven_sync.sync_state
                                             where entity_id = any ($1) order by entity_id for update skip locked)",
                    &ids,
                    &rows,
                    &oldest as &[Option<DateTime<Utc>>],
                    counted_at,
                    &epochs
                )
            })
            .await?;
        Ok(())
    }

    /// Returns those of these entities of which the API accepted no record yet, or has refused rows that are set aside.
    pub async fn without_good_upload(&self, entity_ids: &[String]) -> Result<Vec<String>, JournalError> {
        Ok(self
            .database
            .retry(|| {
                sqlx::query_scalar!(
                    r#"select entity_id as "entity_id!"
                         from unnest($1::text[]) asked (entity_id) left join elven_sync.sync_state s using (entity_id)
                        where coalesce(s.rows_uploaded, 0) = 0
                           or exists (select from elven_sync.sync_errors e
                                       where e.entity_id = asked.entity_id and e.kind = 'rejected_row'
                                         and e.resolved_at is null)"#,
                    entity_ids
                )
                .fetch_all(&self.database)
            })
            .await?)
    }

    /// Returns for each of these entities the smallest body that was too large for the API, if there was one. Only the
    /// last day counts, because limits may be raised later. A refusal does not count either if a body of the same
    /// credential that is not smaller was accepted after the last refusal, among the last 10,000 batches.
    pub async fn too_large(&self, entity_ids: &[String]) -> Result<BTreeMap<String, usize>, JournalError> {
        let refused = self
            .database
            .retry(|| {
                sqlx::query!(
                    r#"with refused as (
                           select b.entity_id, e.credential, b.body_bytes, b.finished_at
                             from elven_sync.sync_batches b join elven_sync.entities e using (entity_id)
                            where b.entity_id = any ($1) and b.http_status = 413
                              and b.finished_at > clock_timestamp() - interval '1 day'),
                       refused_last as (
                           select credential, max(finished_at) as at from refused group by credential),
                       accepted as (
                           select e.credential, max(b.body_bytes) as body_bytes
                             from elven_sync.sync_batches b join elven_sync.entities e using (entity_id)
                             join refused_last r on r.credential = e.credential and b.finished_at > r.at
                            where b.status = 'accepted' and b.row_count > 0
                              and b.batch_id > (select max(batch_id) - 10000 from elven_sync.sync_batches)
                              and exists (select from refused)
                            group by e.credential)
                       select r.entity_id as "entity_id!", min(r.body_bytes) as "body_bytes!"
                         from refused r left join accepted a using (credential)
                        where r.body_bytes > coalesce(a.body_bytes, 0)
                        group by r.entity_id"#,
                    entity_ids
                )
                .fetch_all(&self.database)
            })
            .await?;
        let bytes = |bytes: i32| usize::try_from(bytes).unwrap_or(0);
        Ok(refused.into_iter().map(|refused| (refused.entity_id, bytes(refused.body_bytes))).collect())
    }
}
