//! Queries and updates for many entities at once.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::problem::resolve_of_lanes;
use super::{Journal, JournalError, Lane};
use crate::ledger::Pending;

impl Journal {
    /// Records that entities without new rows have no pending rows: they are up to date.
    ///
    /// Entities leased by another run are not marked as up to date, because that run records its own success. Entities
    /// leased by a backfill are marked, because a backfill does not record it, and so are entities whose lease
    /// expired, because their worker died. An entity that was leased after its state was read is left as it is: its
    /// worker has recorded something newer, e.g. a failure. The mapping is recorded for a watermark that an earlier
    /// version moved without it. Rows are locked in one order, so that two workers cannot wait for each other.
    pub async fn found_idle(&self, idle: &[(&str, &Lane)], mapping: &str) -> Result<(), JournalError> {
        let entity_ids: Vec<String> = idle.iter().map(|(entity_id, _)| (*entity_id).to_owned()).collect();
        let epochs: Vec<i64> = idle.iter().map(|(_, lane)| lane.lease_epoch).collect();
        let read_at = idle.iter().filter_map(|(_, lane)| lane.read_at).min();
        let found_idle = || async {
            let mut transaction = self.database.begin().await?;
            let noted = sqlx::query!(
                r#"update elven_sync.sync_state s
                      set pending_rows = 0, oldest_pending_at = null,
                          checked_at = greatest(s.checked_at, coalesce($4, clock_timestamp())),
                          last_success_at = case when i.is_free then clock_timestamp() else last_success_at end,
                          last_error = case when i.is_free then null else last_error end,
                          consecutive_failures = case when i.is_free then 0 else consecutive_failures end,
                          mapping = case when s.settled is null then s.mapping
                                         else coalesce(s.mapping, $2::text::jsonb) end
                     from (select now.entity_id, now.lease_owner is null or now.lease_expires_at < clock_timestamp()
                                                 or now.lease_kind is not null as is_free
                             from elven_sync.sync_state now
                             join unnest($1::text[], $3::bigint[]) seen (entity_id, lease_epoch)
                               on now.entity_id = seen.entity_id and now.lease_epoch = seen.lease_epoch
                            order by now.entity_id for update of now skip locked) i
                    where s.entity_id = i.entity_id
                returning s.entity_id, i.is_free as "is_free!""#,
                &entity_ids,
                mapping,
                &epochs,
                read_at
            )
            .fetch_all(&mut transaction)
            .await?;
            let idle: Vec<String> =
                noted.into_iter().filter(|noted| noted.is_free).map(|noted| noted.entity_id).collect();
            resolve_of_lanes(&mut transaction, &idle).await?;
            transaction.commit().await?;
            Ok(())
        };
        self.database.retry(found_idle).await
    }

    /// Records the pending rows of these entities, unless a later count is recorded already. `counted_at`: the time of
    /// the states that the count began with, by the clock of the database.
    pub async fn note_pending(
        &self,
        pending: &[Pending],
        counted_at: Option<DateTime<Utc>>,
    ) -> Result<(), JournalError> {
        let ids: Vec<String> = pending.iter().map(|p| p.entity_id.clone()).collect();
        let rows: Vec<i64> = pending.iter().map(|p| p.rows).collect();
        let oldest: Vec<Option<DateTime<Utc>>> = pending.iter().map(|p| p.oldest_at).collect();
        self.database
            .execute(|| {
                sqlx::query!(
                    "update elven_sync.sync_state s
                        set pending_rows = p.rows, oldest_pending_at = p.oldest_at,
                            checked_at = coalesce($4, clock_timestamp())
                       from unnest($1::text[], $2::bigint[], $3::timestamptz[]) p (entity_id, rows, oldest_at)
                      where s.entity_id = p.entity_id and coalesce(s.checked_at <= $4, true)
                        and s.entity_id in (select entity_id from elven_sync.sync_state
                                             where entity_id = any ($1) order by entity_id for update skip locked)",
                    &ids,
                    &rows,
                    &oldest as &[Option<DateTime<Utc>>],
                    counted_at
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
