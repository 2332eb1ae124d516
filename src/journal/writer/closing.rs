//! Closing of passes: their targets become the watermarks.

use super::super::JournalError;
use super::super::problem::resolve_of_lanes;
use super::write::PassClosing;
use super::write::WriteRequest;
use crate::database::Transaction;

/// Closes passes of lanes that are locked and were checked, if all their batches are done. A lane that ends with its
/// pass is up to date: its errors are resolved, and its lease is released. Most passes end so.
///
/// The pass adds a link to the chain of its entity. Its batches are not read for it: the running digest has their leaves.
///
/// The entity is caught up as of the beginning of the pass, when its target was taken. What a count has found since then
/// stays: some of these rows may be behind the target, and such rows cannot have been found before the pass began.
///
/// # Errors
/// A batch of one of the passes is open.
pub(super) async fn close(
    transaction: &mut Transaction,
    closings: &[(&WriteRequest, &PassClosing)],
) -> Result<(), JournalError> {
    let passes: Vec<(&str, i64, bool)> = closings
        .iter()
        .filter_map(|(request, closing)| {
            Some((request.entity_id(), request.pass.work.pass_id()?, closing.ends))
        })
        .collect();
    let Some((_, first, _)) = passes.first() else { return Ok(()) };
    let entity_ids: Vec<String> = passes.iter().map(|(entity_id, ..)| (*entity_id).to_owned()).collect();
    let pass_ids: Vec<i64> = passes.iter().map(|(_, pass_id, _)| *pass_id).collect();
    let ends: Vec<bool> = passes.iter().map(|(.., ends)| *ends).collect();
    let of_passes = closings.iter().filter(|(request, _)| request.pass.work.pass_id().is_some());
    let fences: Vec<_> = of_passes.map(|(request, _)| request.pass.lease.fence.seconds_left()).collect();
    // The subquery for open batches has the order of the index, as in `lock`, and refers to the locked row `s`. With
    // `c`, PostgreSQL would run it before it finds that row, and scan all open batches for each pass.
    let closed = sqlx::query!(
        "with closing as (select c.*, clock_timestamp() as at,
                                 (select p.started_at from elven_sync.sync_passes p
                                   where p.pass_id = c.pass_id) as started_at
                            from unnest($1::text[], $2::bigint[], $3::boolean[], $4::float8[])
                                 c (entity_id, pass_id, ends, fence)),
              lane as (
                  update elven_sync.sync_state s
                     set settled = target, pass_id = null, target = null, cursor_xid = null, cursor_id = null,
                         links = s.links + 1, running = null,
                         head = elven_sync.link_digest(
                             'pass', s.links + 1, s.head, c.at, s.pass_id,
                             array[s.settled::text, s.target::text, s.cursor_xid::text, s.cursor_id, null], s.running),
                         pending_rows = case when s.checked_at > c.started_at then s.pending_rows else 0 end,
                         oldest_pending_at = case when s.checked_at > c.started_at then s.oldest_pending_at end,
                         pending_since = case when s.checked_at > c.started_at and s.pending_rows > 0
                                              then greatest(s.pending_since, c.started_at) end,
                         checked_at = case when s.checked_at between c.started_at and clock_timestamp()
                                           then s.checked_at else c.started_at end,
                         last_success_at = case when c.ends then clock_timestamp() else last_success_at end,
                         last_error = case when c.ends then null else last_error end,
                         consecutive_failures = case when c.ends then 0 else consecutive_failures end,
                         lease_owner = case when c.ends then null else lease_owner end,
                         lease_expires_at = case when c.ends then null else lease_expires_at end,
                         fence_until = greatest(fence_until, clock_timestamp() + make_interval(secs => c.fence))
                    from closing c
                   where s.entity_id = c.entity_id and s.pass_id = c.pass_id
                     and (select true from elven_sync.sync_batches b
                           where b.entity_id between s.entity_id and s.entity_id
                             and elven_sync.is_open(b.status, b.row_count) and b.pass_id = s.pass_id
                           order by b.entity_id, b.batch_id limit 1) is null
               returning c.pass_id, s.entity_id, s.links, s.head, c.at),
              linked as (
                  insert into elven_sync.sync_links (entity_id, link, kind, ref, at, digest)
                  select entity_id, links, 'pass', pass_id, at, head from lane)
         update elven_sync.sync_passes p
            set finished_at = clock_timestamp(), written_by = pg_current_xact_id(),
                last_xid = s.cursor_xid, last_id = s.cursor_id
           from closing c join elven_sync.sync_state s using (entity_id)
          where p.pass_id = c.pass_id and c.pass_id in (select pass_id from lane)",
        &entity_ids,
        &pass_ids,
        &ends,
        &fences as &[Option<f64>]
    )
    .execute(&mut *transaction)
    .await?;
    if closed.rows_affected() != passes.len() as u64 {
        // Of several passes it is unknown which one. Each of them is then written by itself.
        return Err(JournalError::Unfinished(*first));
    }
    let up_to_date = passes.iter().filter(|(.., ends)| *ends);
    let up_to_date: Vec<String> = up_to_date.map(|(entity_id, ..)| (*entity_id).to_owned()).collect();
    if !up_to_date.is_empty() {
        resolve_of_lanes(transaction, &up_to_date).await?;
    }
    Ok(())
}
