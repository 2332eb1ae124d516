-- Proof that nothing was skipped, and a journal that does not grow for ever.

-- Which rows a batch has set aside: with that their rows in sync_errors can be asked for one by one.
alter table elven_sync.sync_batches add column rejected_ids bytea;

-- The zone its body was made with: entities.timezone may change later, and the body would be another one.
alter table elven_sync.sync_batches add column timezone text;

-- Where a pass ended, so that it is noticed when its last batch is gone although the rows of that have changed since.
alter table elven_sync.sync_passes
    add column last_xid xid8,
    add column last_id text,
    add constraint sync_passes_last_check check ((last_xid is null) = (last_id is null));

-- Passes that were folded into one: their batches are gone, and the chain of watermarks stays whole.
alter table elven_sync.sync_passes
    drop constraint sync_passes_kind_check,
    add constraint sync_passes_kind_check check (kind in ('pass', 'rewind', 'rebind', 'from_now', 'pruned'));

create table elven_sync.sync_pruned (
    entity_id       text primary key,
    passes          bigint not null default 0,
    batches         bigint not null default 0,
    rows_read       bigint not null default 0,
    rows_uploaded   bigint not null default 0,
    rows_rejected   bigint not null default 0,
    rows_superseded bigint not null default 0,
    requests        bigint not null default 0,
    bytes_sent      bigint not null default 0,
    errors          bigint not null default 0,
    until           timestamptz not null
);

-- The rows that were set aside are looked for in sync_errors by their ids, resolved ones too.
create index sync_errors_row on elven_sync.sync_errors (entity_id, ledger_id) where ledger_id is not null;

-- The parts of a batch; and, when something is pruned, whether anything still refers to it.
create index sync_batches_parent on elven_sync.sync_batches (parent_id) where parent_id is not null;
create index sync_batches_loose on elven_sync.sync_batches (entity_id, batch_id) where pass_id is null;
create index sync_batches_rejected on elven_sync.sync_batches (entity_id, batch_id) where rows_rejected > 0;
create index sync_errors_batch on elven_sync.sync_errors (batch_id) where batch_id is not null;
create index sync_errors_run on elven_sync.sync_errors (run_id) where run_id is not null;
create index sync_passes_run on elven_sync.sync_passes (run_id) where run_id is not null;

-- What may be pruned. "Open" is an error that nobody has resolved, or that a person has
-- dismissed: that goes on saying of its row that it is not to be sent.

-- Passes of an entity that were through before a time, without open errors; but never the newest change of its watermark.
create function elven_sync.passes_through(entity text, before timestamptz) returns setof bigint
    language sql stable
    set search_path = pg_catalog, pg_temp as
$$
    select p.pass_id from elven_sync.sync_passes p
     where p.entity_id = entity and p.kind = 'pass' and p.finished_at < before
       and p.pass_id < (select max(n.pass_id) from elven_sync.sync_passes n where n.entity_id = entity)
       and p.pass_id not in (select b.pass_id from elven_sync.sync_errors e join elven_sync.sync_batches b using (batch_id)
                              where e.entity_id = entity and (e.resolved_at is null or e.dismissed) and b.pass_id is not null)
$$;

-- Passes of an entity that a rewind gave up, which ended before a time, without open errors.
create function elven_sync.passes_given_up(entity text, before timestamptz) returns setof bigint
    language sql stable
    set search_path = pg_catalog, pg_temp as
$$
    select p.pass_id from elven_sync.sync_passes p
     where p.entity_id = entity and p.kind = 'pass' and p.finished_at is null
       and p.pass_id is distinct from (select s.pass_id from elven_sync.sync_state s where s.entity_id = entity)
       and exists (select from elven_sync.sync_passes r
                    where r.entity_id = entity and r.kind = 'rewind' and r.pass_id > p.pass_id and r.finished_at < before)
       and not exists (select from elven_sync.sync_errors e join elven_sync.sync_batches b using (batch_id)
                        where e.entity_id = entity and (e.resolved_at is null or e.dismissed) and b.pass_id = p.pass_id)
$$;

-- Batches of an entity outside of any pass: retries that were answered, and backfills that have ended, without open
-- errors.
create function elven_sync.batches_loose(entity text, before timestamptz) returns setof bigint
    language sql stable
    set search_path = pg_catalog, pg_temp as
$$
    with open_matter as (
        select e.batch_id, b.backfill_id
          from elven_sync.sync_errors e join elven_sync.sync_batches b using (batch_id)
         where e.entity_id = entity and (e.resolved_at is null or e.dismissed))
    select b.batch_id from elven_sync.sync_batches b
     where b.entity_id = entity and b.pass_id is null
       and case when b.backfill_id is null
                then b.status in ('accepted', 'rejected') and b.finished_at < before
                     and not exists (select from open_matter o where o.batch_id = b.batch_id)
                else b.backfill_id in (select f.backfill_id from elven_sync.sync_backfills f
                                        where f.finished_at < before
                                          and (f.status = 'cancelled'
                                               or not exists (select from elven_sync.sync_backfill_lanes l
                                                               where l.backfill_id = f.backfill_id
                                                                 and l.finished_at is null)))
                     and not exists (select from open_matter o where o.backfill_id = b.backfill_id)
           end
$$;

comment on function elven_sync.passes_through(text, timestamptz) is
    'Passes of an entity that were through before a time, and that may be pruned.';
comment on function elven_sync.passes_given_up(text, timestamptz) is
    'Passes of an entity that a rewind gave up before a time, and that may be pruned.';
comment on function elven_sync.batches_loose(text, timestamptz) is
    'Batches of an entity of retries and ended backfills from before a time, which may be pruned.';

comment on column elven_sync.sync_batches.rejected_ids is
    'Ids of the rows that are set aside by it, packed as row_ids. NULL: none, or from before version 0006 of the schema.';
comment on column elven_sync.sync_batches.timezone is
    'The time zone that its body was made with. NULL: from before version 0006 of the schema.';
comment on column elven_sync.sync_passes.last_xid is
    'change_xid of the last row that it dealt with, noted when it was closed. NULL: none, or from before version 0006 of the schema.';
comment on column elven_sync.sync_passes.last_id is 'Id of the last row that it dealt with, as text.';
comment on column elven_sync.sync_passes.kind is
    'pass; rewind: moved back by a person; rebind: accepted after pg_upgrade; from_now: what was there at registration is skipped; pruned: passes that were folded into one, whose batches are gone.';

comment on table elven_sync.sync_pruned is
    'One row per entity of whose journal something was pruned: what the batches were about that are gone.';
comment on column elven_sync.sync_pruned.entity_id is 'The entity.';
comment on column elven_sync.sync_pruned.passes is 'Passes that were folded or removed.';
comment on column elven_sync.sync_pruned.batches is 'Batches that are gone, parts and retries included.';
comment on column elven_sync.sync_pruned.rows_read is 'Ledger rows that they dealt with.';
comment on column elven_sync.sync_pruned.rows_uploaded is 'Records of theirs that the API accepted.';
comment on column elven_sync.sync_pruned.rows_rejected is 'Rows that they set aside.';
comment on column elven_sync.sync_pruned.rows_superseded is
    'Rows that they did not send because a newer row of the same account, currency and second was.';
comment on column elven_sync.sync_pruned.requests is 'How often they were sent, or were about to be.';
comment on column elven_sync.sync_pruned.bytes_sent is 'Bytes of bodies in these requests.';
comment on column elven_sync.sync_pruned.errors is 'Resolved errors that are gone.';
comment on column elven_sync.sync_pruned.until is 'What had ended before this time was pruned.';
