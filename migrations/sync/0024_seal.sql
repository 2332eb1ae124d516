-- The seal compares transaction ids as such, without the way over text and numeric, which took half of the time of the
-- view: every run reads it for each entity.

create or replace view elven_sync.sync_watermarks as
select s.entity_id, s.settled, s.pass_id, s.target, s.cursor_xid, s.cursor_id, s.system_identifier, s.ledger_table,
       s.mapping, s.not_before, s.lease_epoch,
       case
         when n.pass_id is null
              then case when s.settled is null and s.pass_id is null then 'none' else 'missing' end
         when n.stored_xid <> n.written_by::xid then 'broken'
         -- At the start there is no watermark that could be elsewhere: everything is read again.
         when s.settled is null and s.pass_id is null then 'whole'
         -- A rebind moves nothing, and may come while a pass is open: the change before it says where the state is.
         when case when coalesce(c.is_open, n.is_open)
                   then s.pass_id = coalesce(c.pass_id, n.pass_id)
                        and s.target::text = coalesce(c.target, n.target)::text
                        and s.settled::text is not distinct from
                            case when c.pass_id is null then n.settled else c.settled end::text
                   else s.pass_id is null
                        and s.settled::text is not distinct from
                            case when c.pass_id is null then n.target else c.target end::text
              end
              then 'whole'
         else 'elsewhere'
       end as seal
  from elven_sync.sync_state s
  left join lateral (
       select p.pass_id, p.kind, p.written_by, p.xmin as stored_xid, p.settled, p.target,
              p.kind = 'pass' and p.finished_at is null as is_open
         from elven_sync.sync_passes p where p.entity_id between s.entity_id and s.entity_id
        order by p.entity_id desc, p.pass_id desc limit 1) n on true
  left join lateral (
       select p.pass_id, p.settled, p.target, p.kind = 'pass' and p.finished_at is null as is_open
         from elven_sync.sync_passes p
        where n.kind = 'rebind' and p.entity_id between s.entity_id and s.entity_id and p.kind <> 'rebind'
        order by p.entity_id desc, p.pass_id desc limit 1) c on true;
