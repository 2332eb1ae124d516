-- Health: an entity of which rows are set aside is not ok.

-- The open errors are counted once for all entities: asked for entity by entity, the planner may read all of them for
-- each, where it expects most of them to be of one entity.
create or replace view elven_sync.sync_health as
select e.entity_id,
       e.timezone,
       case
           when e.paused then 'paused'
           when coalesce(s.consecutive_failures, 0) > 0 then 'failing'
           when x.rows_set_aside > 0 then 'incomplete'
           when s.checked_at is null or s.pending_rows > 0 then 'behind'
           else 'ok'
       end as status,
       coalesce(s.pending_rows, 0) as pending_rows,
       s.oldest_pending_at,
       s.checked_at,
       s.last_success_at,
       s.last_error,
       coalesce(x.open_errors, 0) as open_errors
  from elven_sync.entities e
  left join elven_sync.sync_state s using (entity_id)
  left join (select entity_id, count(*) as open_errors, count(ledger_id) as rows_set_aside
               from elven_sync.sync_errors where resolved_at is null group by entity_id) x using (entity_id);

comment on column elven_sync.sync_health.status is
    'The first that holds: paused; failing: the last attempt failed; incomplete: rows are set aside and open in sync_errors; behind: rows are pending, or no run has looked yet; ok.';

comment on table elven_sync.sync_commits is
    'One row per recent transaction of the connector that wrote something. A worker whose connection broke over a commit looks here whether it was done. Of no other use: a run removes its own rows every few seconds, and rows of other processes after three hours.';
