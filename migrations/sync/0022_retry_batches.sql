-- A retry sends rows in batches, and splits a batch that the API refuses. The parts and the batches that were split are
-- pruned together with the other batches of retries.
create or replace function elven_sync.batches_loose(entity text, before timestamptz) returns setof bigint
    language sql stable
    set search_path = pg_catalog, pg_temp as
$$
    with recursive open_matter as (
        select e.batch_id, b.backfill_id
          from elven_sync.sync_errors e join elven_sync.sync_batches b using (batch_id)
         where e.entity_id = entity and (e.resolved_at is null or e.dismissed)),
    -- A batch that is kept keeps the batch that it is a part of.
    kept as (
        select b.batch_id, b.parent_id from elven_sync.sync_batches b
         where b.entity_id = entity and b.pass_id is null and b.backfill_id is null
           and (b.status not in ('accepted', 'rejected', 'split') or b.finished_at is null or b.finished_at >= before
                or exists (select from open_matter o where o.batch_id = b.batch_id))
        union
        select w.batch_id, w.parent_id from kept k join elven_sync.sync_batches w on w.batch_id = k.parent_id)
    select b.batch_id from elven_sync.sync_batches b
     where b.entity_id = entity and b.pass_id is null
       and case when b.backfill_id is null
                then b.batch_id not in (select k.batch_id from kept k)
                else b.backfill_id in (select f.backfill_id from elven_sync.sync_backfills f
                                        where f.finished_at < before
                                          and (f.status = 'cancelled'
                                               or not exists (select from elven_sync.sync_backfill_lanes l
                                                               where l.backfill_id = f.backfill_id
                                                                 and l.finished_at is null)))
                     and not exists (select from open_matter o where o.backfill_id = b.backfill_id)
           end
$$;

comment on function elven_sync.batches_loose(text, timestamptz) is
    'Batches of an entity of retries and ended backfills from before a time, which may be pruned.';
