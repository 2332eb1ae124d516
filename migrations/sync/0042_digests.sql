-- Digests of the journal. Each batch that is done has a leaf, the hash of what is recorded about it. The leaves of a pass
-- or a backfill are chained as the cursor moves, and each change of a watermark adds a link to the chain of its entity.
-- A print commits to all chains at once; whoever keeps one outside the database can prove later that nothing before it was
-- changed. All hashes are SHA-256, built in since PostgreSQL 11.
--
-- elven-sync makes leaves and running digests itself, so that a trigger that changes what it writes is found. The functions
-- below make the same ones, for everybody who wants to check without elven-sync.

alter table elven_sync.sync_batches
    add column rejected_kinds text,
    add column leaf bytea check (length(leaf) = 32);

alter table elven_sync.sync_state
    add column running bytea check (length(running) = 32),
    add column head bytea check (length(head) = 32),
    add column links bigint not null default 0,
    add column printed bigint not null default 0,
    add column folded bigint not null default 0,
    add constraint sync_state_links_check check (links >= 0 and (links = 0) = (head is null));

alter table elven_sync.sync_backfill_lanes
    add column running bytea check (length(running) = 32),
    add column closed boolean not null default false;
update elven_sync.sync_backfill_lanes set closed = true where finished_at is not null;

-- A rewind names the open pass that it gives up, whose batches its link commits to.
alter table elven_sync.sync_passes add column given_up bigint;

alter table elven_sync.sync_actions add column link bigint;
create index sync_actions_unlinked on elven_sync.sync_actions (action_id) where link is null;

create table elven_sync.sync_links (
    entity_id text        not null,
    link      bigint      not null check (link > 0),
    kind      text        not null check (kind in ('adopted', 'pass', 'rewind', 'rebind', 'from_now', 'backfill',
                                                   'backfill_cancel', 'retry', 'actions')),
    ref       bigint,
    at        timestamptz not null,
    digest    bytea       not null check (length(digest) = 32),
    printed   boolean     not null default false,
    primary key (entity_id, link)
);
create index sync_links_ref on elven_sync.sync_links (ref, kind);

create table elven_sync.sync_prints (
    print_id          bigint      primary key,
    at                timestamptz not null,
    previous          bytea       check (length(previous) = 32),
    system_identifier bigint      not null,
    heads             jsonb       not null,
    root              bytea       not null check (length(root) = 32)
);

-- Each field with its length before it, so that no two lists of fields give the same bytes.
create function elven_sync.framed(variadic fields bytea[]) returns bytea
    language sql immutable parallel safe
as $$
    select coalesce(string_agg(case when field is null then '\xffffffff'::bytea
                                    else int4send(length(field)) || field end, ''::bytea order by place), ''::bytea)
      from unnest(fields) with ordinality f (field, place)
$$;

create function elven_sync.framed_texts(variadic fields text[]) returns bytea
    language sql stable parallel safe
as $$
    select coalesce(string_agg(case when bytes is null then '\xffffffff'::bytea
                                    else int4send(length(bytes)) || bytes end, ''::bytea order by place), ''::bytea)
      from unnest(fields) with ordinality f (field, place) cross join lateral (select convert_to(field, 'UTF8') as bytes) b
$$;

create function elven_sync.microseconds(instant timestamptz) returns text
    language sql immutable parallel safe
as $$
    select round((extract(epoch from instant) * 1000000)::numeric)::text
$$;

create function elven_sync.leaf(batch elven_sync.sync_batches) returns bytea
    language sql stable parallel safe
as $$
    select sha256(
        elven_sync.framed_texts('elven-sync leaf 1', batch.batch_id::text, batch.entity_id, batch.pass_id::text,
            batch.backfill_id::text, batch.parent_id::text, batch.before_xid::text, elven_sync.microseconds(batch.before_at),
            batch.before_id, batch.last_xid::text, elven_sync.microseconds(batch.last_at), batch.last_id)
        || elven_sync.framed(batch.row_ids, batch.rejected_ids)
        || elven_sync.framed_texts(batch.rejected_kinds, batch.rows_read::text, batch.row_count::text,
            batch.rows_rejected::text, batch.rows_superseded::text, batch.rows_beyond_double::text, batch.body_bytes::text,
            batch.body_sha256, batch.status, batch.http_status::text, batch.attempts::text, batch.ambiguous::text,
            batch.timezone, batch.zone_rules, batch.map_version::text, batch.api_version::text, batch.source_id)
        || case when batch.status = 'split' then
               coalesce((select string_agg(part.leaf, ''::bytea order by part.batch_id)
                           from elven_sync.sync_batches part where part.parent_id = batch.batch_id), ''::bytea)
           else ''::bytea end)
$$;

create function elven_sync.chained(running bytea, leaf bytea) returns bytea
    language sql immutable parallel safe
as $$
    select case when leaf is null then running else sha256(coalesce(running, ''::bytea) || leaf) end
$$;

create aggregate elven_sync.chain(bytea) (sfunc = elven_sync.chained, stype = bytea);

create function elven_sync.link_digest(link_kind text, link bigint, head bytea, at timestamptz, ref bigint, fields text[],
                                       running bytea) returns bytea
    language sql stable parallel safe
as $$
    select sha256(elven_sync.framed_texts('elven-sync link 1', link_kind, link::text)
                  || elven_sync.framed(head)
                  || elven_sync.framed_texts(elven_sync.microseconds(at), ref::text)
                  || elven_sync.framed_texts(variadic fields)
                  || elven_sync.framed(running))
$$;

create function elven_sync.add_link(entity text, link_kind text, link_ref bigint, fields text[], chained_leaves bytea)
    returns bigint
    language sql volatile
as $$
    with now (at) as materialized (select clock_timestamp()),
         moved as (
             update elven_sync.sync_state s
                set links = s.links + 1,
                    head = elven_sync.link_digest(link_kind, s.links + 1, s.head, now.at, link_ref, fields, chained_leaves)
               from now where s.entity_id = entity
          returning s.links, s.head, now.at)
    insert into elven_sync.sync_links (entity_id, link, kind, ref, at, digest)
    select entity, links, link_kind, link_ref, at, head from moved
 returning link
$$;

create function elven_sync.action_digest(action elven_sync.sync_actions) returns bytea
    language sql stable parallel safe
as $$
    select sha256(elven_sync.framed_texts('elven-sync action 1', action.action_id::text,
                      elven_sync.microseconds(action.at), action.actor, action.client, action.action, action.entity_id,
                      action.reason, action.details::text))
$$;

-- The state of an entity that was removed and is registered again continues its chain.
create function elven_sync.continue_chain() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if new.links = 0 then
        select l.link, l.digest, l.link into new.links, new.head, new.folded
          from elven_sync.sync_links l where l.entity_id = new.entity_id order by l.link desc limit 1;
        new.links := coalesce(new.links, 0);
        new.folded := coalesce(new.folded, 0);
    end if;
    return new;
end
$$;
create trigger continue_chain before insert on elven_sync.sync_state
    for each row execute function elven_sync.continue_chain();

-- What a link commits to besides its number: the fields of the row that it names, and the chained leaves.
create function elven_sync.link_contents(link elven_sync.sync_links, out fields text[], out running bytea)
    language plpgsql stable
as $$
begin
    case link.kind
    when 'adopted', 'pass', 'rewind', 'rebind', 'from_now' then
        select array[p.settled::text, p.target::text, p.last_xid::text, p.last_id, p.given_up::text]
          into fields from elven_sync.sync_passes p where p.pass_id = link.ref and p.entity_id = link.entity_id;
        select elven_sync.chain(b.leaf order by b.batch_id) into running
          from elven_sync.sync_batches b
          join elven_sync.sync_passes p on p.pass_id = link.ref
         where b.pass_id = case link.kind when 'pass' then link.ref when 'rewind' then p.given_up end
           and b.parent_id is null;
    when 'backfill', 'backfill_cancel' then
        select array[elven_sync.microseconds(l.range_from), elven_sync.microseconds(l.range_to),
                     elven_sync.microseconds(l.cursor_at), l.cursor_id]
          into fields from elven_sync.sync_backfill_lanes l
         where l.backfill_id = link.ref and l.entity_id = link.entity_id;
        select elven_sync.chain(b.leaf order by b.batch_id) into running
          from elven_sync.sync_batches b
         where b.backfill_id = link.ref and b.entity_id = link.entity_id and b.parent_id is null;
    when 'retry' then
        fields := '{}';
        select elven_sync.chain(b.leaf order by b.batch_id) into running
          from elven_sync.sync_batches b
         where b.entity_id = link.entity_id and b.pass_id is null and b.backfill_id is null and b.parent_id is null
           and b.batch_id <= link.ref
           and b.batch_id > coalesce((select max(l.ref) from elven_sync.sync_links l
                                       where l.entity_id = link.entity_id and l.kind = 'retry'
                                         and l.link < link.link), 0);
    when 'actions' then
        fields := '{}';
        select elven_sync.chain(elven_sync.action_digest(a) order by a.action_id) into running
          from elven_sync.sync_actions a where a.link = link.link;
    end case;
end
$$;

create function elven_sync.link_to(entity text, link_kind text, link_ref bigint) returns bigint
    language sql volatile
as $$
    select elven_sync.add_link(entity, link_kind, link_ref, contents.fields, contents.running)
      from elven_sync.sync_state s
     cross join lateral elven_sync.link_contents(
         row(entity, s.links + 1, link_kind, link_ref, now(), ''::bytea, false)::elven_sync.sync_links) contents
     where s.entity_id = entity
$$;

create function elven_sync.verify_links(entity text)
    returns table (link bigint, kind text, ref bigint, at timestamptz, digest bytea, expected bytea)
    language sql stable
as $$
    select l.link, l.kind, l.ref, l.at, l.digest,
           elven_sync.link_digest(l.kind, l.link, before.digest, l.at, l.ref, contents.fields, contents.running)
      from elven_sync.sync_links l
      left join elven_sync.sync_links before on before.entity_id = l.entity_id and before.link = l.link - 1
     cross join lateral elven_sync.link_contents(l) contents
     where l.entity_id = entity
     order by l.link
$$;

comment on column elven_sync.sync_batches.rejected_kinds is
    'Why the rows of rejected_ids are set aside, in the same order: the kind of error, its API code after a slash, and the number of rows in a row that have them. NULL: no row is.';
comment on column elven_sync.sync_batches.leaf is
    'SHA-256 of what is recorded about the batch when all its rows are done: see the function leaf. NULL: it is not done, or an earlier version finished it.';
comment on column elven_sync.sync_state.running is
    'The running digest of the open pass: the chained leaves of the batches that the cursor has passed. NULL: it has passed none.';
comment on column elven_sync.sync_state.head is 'The digest of the last link of the entity (sync_links).';
comment on column elven_sync.sync_state.links is 'The number of links of the entity (sync_links).';
comment on column elven_sync.sync_state.printed is 'The number of links when the last print was made (sync_prints).';
comment on column elven_sync.sync_state.folded is
    'The last link about which nothing can be proven any more, because prune has removed what it covers. 0: none.';
comment on column elven_sync.sync_backfill_lanes.running is
    'The running digest: the chained leaves of the batches that the cursor has passed. NULL: it has passed none, or the lane was cancelled.';
comment on column elven_sync.sync_backfill_lanes.closed is
    'The lane has its link (sync_links), or was finished by an earlier version: nothing is recorded for it any more.';
comment on column elven_sync.sync_passes.given_up is 'Of a rewind: the open pass that it gave up.';
comment on column elven_sync.sync_actions.link is
    'The link of the chain of actions that covers it (sync_links of entity *). NULL: the next run adds it.';
comment on index elven_sync.sync_actions_unlinked is 'The actions that no link covers yet.';
comment on table elven_sync.sync_links is
    'The chain of digests of each entity: one link for each change of its watermark, and for the end of a backfill or of a slice of a retry. The entity * has the chain of what people did (sync_actions). elven-sync only adds rows.';
comment on column elven_sync.sync_links.entity_id is 'The entity, or * for the chain of actions.';
comment on column elven_sync.sync_links.link is 'The number of the link in its chain, from 1.';
comment on column elven_sync.sync_links.kind is
    'What happened: adopted (the journal is older than the chain), pass, rewind, rebind, from_now (see sync_passes), backfill, backfill_cancel, retry, actions.';
comment on column elven_sync.sync_links.ref is
    'The pass_id, the backfill_id, the last batch_id of the retries, or the last action_id.';
comment on column elven_sync.sync_links.at is 'When the link was added.';
comment on column elven_sync.sync_links.digest is
    'SHA-256 of the link before it, of what happened and of the leaves of the batches: see the functions link_contents and link_digest.';
comment on column elven_sync.sync_links.printed is
    'A print names the link (sync_prints), so prune keeps it.';
comment on index elven_sync.sync_links_ref is 'The link of a pass, a backfill or a batch of a retry.';
comment on table elven_sync.sync_prints is
    'Prints: each commits to all chains of the moment. Whoever keeps print_id and root outside the database can prove later that nothing before it was changed: elven-sync verify --against FILE.';
comment on column elven_sync.sync_prints.print_id is 'The number of the print.';
comment on column elven_sync.sync_prints.at is 'When it was made.';
comment on column elven_sync.sync_prints.previous is 'The root of the print before it.';
comment on column elven_sync.sync_prints.system_identifier is 'The PostgreSQL cluster.';
comment on column elven_sync.sync_prints.heads is
    'What has changed since the print before it: for each chain its number of links and the digest of the last one, and for open work its cursor and running digest.';
comment on column elven_sync.sync_prints.root is
    'SHA-256 of all other columns; through previous, also of all prints before it.';
comment on function elven_sync.framed(bytea[]) is
    'The fields, each with its length before it (4 bytes; ffffffff for NULL), so that no two lists give the same bytes.';
comment on function elven_sync.framed_texts(text[]) is 'The same for texts in UTF-8.';
comment on function elven_sync.microseconds(timestamptz) is 'The microseconds from 1970-01-01 UTC to an instant, as text.';
comment on function elven_sync.leaf(elven_sync.sync_batches) is
    'The leaf of a batch, made from what is recorded; that of a split batch also from the leaves of its parts. It equals the column leaf of a batch that nobody has changed.';
comment on function elven_sync.chained(bytea, bytea) is 'The running digest after one more leaf.';
comment on aggregate elven_sync.chain(bytea) is 'The running digest of leaves in an order: chain(leaf order by batch_id).';
comment on function elven_sync.link_digest(text, bigint, bytea, timestamptz, bigint, text[], bytea) is
    'The digest of a link: of its kind and number, the digest of the link before it, its time, what it refers to, the fields of that, and the running digest.';
comment on function elven_sync.link_contents(elven_sync.sync_links) is
    'What a link commits to besides its own columns: the fields of the row that it refers to, and the chained leaves of its batches.';
comment on function elven_sync.add_link(text, text, bigint, text[], bytea) is
    'Adds a link to the chain of an entity. elven-sync calls it in the transaction of the event, under the lease of the entity.';
comment on function elven_sync.link_to(text, text, bigint) is
    'Adds a link whose contents are read from the rows that it refers to.';
comment on function elven_sync.continue_chain() is
    'Lets the state of an entity that was removed and is registered again continue its chain; what is before it counts as folded.';
comment on trigger continue_chain on elven_sync.sync_state is 'Continues the chain of digests.';
comment on function elven_sync.action_digest(elven_sync.sync_actions) is 'SHA-256 of an action.';
comment on function elven_sync.verify_links(text) is
    'The links of an entity (* for actions), each with the digest that today''s rows give: a link whose digest is not the expected one was changed, or something that it covers. A link whose link before it, batches or pass were removed by prune cannot be checked so.';
