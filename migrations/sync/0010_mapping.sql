-- What the ledger's columns were when the journal was written, whether this cluster has written the journal, and what
-- people did about either.

-- NULL: recorded by the next run. No row of sync_passes is touched here: each carries the seal of its transaction.
alter table elven_sync.sync_state add column mapping jsonb;

-- What people did. It is written in the transaction that does it.
create table elven_sync.sync_actions (
    action_id bigint generated always as identity primary key,
    at        timestamptz not null default clock_timestamp(),
    actor     text not null default session_user,
    client    text,
    action    text not null,
    entity_id text,
    reason    text,
    details   jsonb not null default '{}'
);
create index sync_actions_entity on elven_sync.sync_actions (entity_id, action_id) where entity_id is not null;

-- The state of each entity beside its seal. One statement reads both, with one snapshot: a state and its newest change are
-- written in one transaction.
--
-- `between` and not `=`, and limits: each row is found by the order of its index, however many rows PostgreSQL expects.
create view elven_sync.sync_watermarks as
select s.entity_id, s.settled, s.pass_id, s.target, s.cursor_xid, s.cursor_id, s.system_identifier, s.ledger_table,
       s.mapping, s.not_before, s.lease_epoch,
       case
         when n.pass_id is null
              then case when s.settled is null and s.pass_id is null then 'none' else 'missing' end
         when n.stored_xid <> mod(n.written_by::text::numeric, 4294967296)::bigint then 'broken'
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
       select p.pass_id, p.kind, p.written_by, p.xmin::text::bigint as stored_xid, p.settled, p.target,
              p.kind = 'pass' and p.finished_at is null as is_open
         from elven_sync.sync_passes p where p.entity_id between s.entity_id and s.entity_id
        order by p.entity_id desc, p.pass_id desc limit 1) n on true
  left join lateral (
       select p.pass_id, p.settled, p.target, p.kind = 'pass' and p.finished_at is null as is_open
         from elven_sync.sync_passes p
        where n.kind = 'rebind' and p.entity_id between s.entity_id and s.entity_id and p.kind <> 'rebind'
        order by p.entity_id desc, p.pass_id desc limit 1) c on true;

-- Each worker that moves a watermark asks this in the statement that moves it, for one entity, in PL/pgSQL: that keeps the
-- plan, which takes longer to make than to use.
create function elven_sync.seals(entities text[]) returns table (entity text, seal text)
    language plpgsql stable rows 10
    set search_path = pg_catalog, pg_temp
    -- One plan is good for any number of entities.
    set plan_cache_mode = force_generic_plan
as
$$
begin
    return query
    select w.entity_id, w.seal
      from unnest(entities) asked (entity_id)
     cross join lateral (
           select w.entity_id, w.seal from elven_sync.sync_watermarks w
            where w.entity_id between asked.entity_id and asked.entity_id
            order by w.entity_id limit 1) w;
end
$$;

comment on column elven_sync.sync_state.mapping is
    'How the ledger was read when the watermark was last moved: the relation (oid:name), the column in each role (number:type:name), entity, captured_at_zone, balance_scale and the version of the API. Another mapping is refused until entity rebind --mapping or entity rewind. NULL: not recorded yet; the next run does so.';
comment on table elven_sync.sync_actions is
    'What people did with elven-sync, one row per action: who, when, what and why.';
comment on column elven_sync.sync_actions.action_id is 'Identifies the action.';
comment on column elven_sync.sync_actions.at is 'When it was done.';
comment on column elven_sync.sync_actions.actor is 'The database role that was logged in (session_user).';
comment on column elven_sync.sync_actions.client is
    'The program as it describes itself: host, process and start. A claim, not a proof.';
comment on column elven_sync.sync_actions.action is
    'What was done: rewind; rebind (after pg_upgrade); rebind_mapping; rebind_journal.';
comment on column elven_sync.sync_actions.entity_id is 'The entity. NULL: it concerns no single one.';
comment on column elven_sync.sync_actions.reason is 'Why, as given by --reason.';
comment on column elven_sync.sync_actions.details is
    'What was changed: the row of sync_passes (pass_id), watermarks, the mapping before and after.';
comment on function elven_sync.seals(text[]) is
    'Of each of these entities whether this cluster wrote the newest change of its watermark, and sync_state is where that says: whole; broken: the row was copied or altered; elsewhere: sync_state was altered; missing: the changes are gone; none: there is no watermark yet. A row without written_by (before version 0002 of the schema) counts as whole.';
comment on column elven_sync.sync_passes.kind is
    'pass; rewind: moved back by a person; rebind: another cluster (pg_upgrade), mapping or journal was accepted, and the watermark not moved; from_now: what was there at registration is skipped; pruned: passes that were folded into one, whose batches are gone.';
comment on view elven_sync.sync_watermarks is
    'The watermark of each entity with its seal, which says whether this cluster wrote the newest change of the watermark.';
comment on column elven_sync.sync_watermarks.entity_id is 'The entity.';
comment on column elven_sync.sync_watermarks.settled is 'The rows of these transactions have been processed. NULL: of no transaction yet.';
comment on column elven_sync.sync_watermarks.pass_id is 'The open pass. NULL: none is open.';
comment on column elven_sync.sync_watermarks.target is 'What the open pass is to process.';
comment on column elven_sync.sync_watermarks.cursor_xid is 'change_xid of the last row that the open pass has processed.';
comment on column elven_sync.sync_watermarks.cursor_id is 'Id of that row.';
comment on column elven_sync.sync_watermarks.system_identifier is 'The PostgreSQL cluster that the watermark belongs to.';
comment on column elven_sync.sync_watermarks.ledger_table is 'The ledger table that it belongs to.';
comment on column elven_sync.sync_watermarks.mapping is 'How the ledger was read when the watermark was last moved.';
comment on column elven_sync.sync_watermarks.not_before is 'The API asked not to be called before this time.';
comment on column elven_sync.sync_watermarks.lease_epoch is 'Number of the newest lease.';
comment on column elven_sync.sync_watermarks.seal is 'whole: this cluster wrote the newest row of sync_passes, and sync_state is where that says. broken: the row was copied or altered. elsewhere: sync_state was altered. missing: there is no such row. none: there is no watermark yet.';
