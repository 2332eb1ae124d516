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

-- Each worker that reads or moves a watermark asks this in the statement that it asks for the watermark with. STABLE, so
-- that it looks with the snapshot of that statement: a state and its newest change are written in one transaction. One call
-- for many entities, since a call costs more than an entity; in PL/pgSQL, which keeps the plan.
--
-- `between` and not `=`, and limits: each row is found by the order of its index, however many rows PostgreSQL expects.
create function elven_sync.seals(entities text[]) returns table (entity text, seal text)
    language plpgsql stable rows 10
    set search_path = pg_catalog, pg_temp
    -- One plan is good for any number of entities, and to make it takes longer than to use it for one.
    set plan_cache_mode = force_generic_plan
as
$$
begin
    return query
    select s.entity_id,
           case
             when n.pass_id is null
                  then case when s.settled is null and s.pass_id is null then 'none' else 'missing' end
             when n.stored_xid <> mod(n.written_by::text::numeric, 4294967296)::bigint then 'broken'
             -- At the start there is no watermark that could be elsewhere: everything is read again.
             when s.settled is null and s.pass_id is null then 'whole'
             -- A rebind moves nothing, and may come while a pass is open: the change before it says where the state is.
             when case when coalesce(c.is_open, n.is_open)
                       then s.pass_id = coalesce(c.pass_id, n.pass_id)
                            and s.target::text = coalesce(c.target, n.target)
                            and s.settled::text is not distinct from
                                case when c.pass_id is null then n.settled else c.settled end
                       else s.pass_id is null
                            and s.settled::text is not distinct from
                                case when c.pass_id is null then n.target else c.target end
                  end
                  then 'whole'
             else 'elsewhere'
           end
      from unnest(entities) asked (entity_id)
     cross join lateral (
           select * from elven_sync.sync_state s where s.entity_id between asked.entity_id and asked.entity_id
            order by s.entity_id limit 1) s
      left join lateral (
           select p.pass_id, p.kind, p.written_by, p.xmin::text::bigint as stored_xid, p.settled::text, p.target::text,
                  p.kind = 'pass' and p.finished_at is null as is_open
             from elven_sync.sync_passes p where p.entity_id between s.entity_id and s.entity_id
            order by p.entity_id desc, p.pass_id desc limit 1) n on true
      left join lateral (
           select p.pass_id, p.settled::text, p.target::text, p.kind = 'pass' and p.finished_at is null as is_open
             from elven_sync.sync_passes p
            where n.kind = 'rebind' and p.entity_id between s.entity_id and s.entity_id and p.kind <> 'rebind'
            order by p.entity_id desc, p.pass_id desc limit 1) c on true;
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
