-- Held rows: rows that are set aside because the API does not know their account or currency. There may be millions of
-- them for one name, so all rows of a batch and a name share one row of sync_errors.

alter table elven_sync.sync_errors
    add column name text,
    add column rows integer,
    add column ledger_ids bytea,
    add column released_ids bytea,
    -- The range of the ids, if they are numbers: with it, an upload finds the errors that may hold its rows.
    add column first_id bigint,
    add column last_id bigint,
    add column not_before timestamptz,
    add column ledger_names text[],
    add column hint text,
    drop constraint sync_errors_kind_check,
    add constraint sync_errors_kind_check check (kind in (
        'invalid_row', 'rejected_row', 'unknown_account', 'unknown_currency', 'auth', 'config', 'rejected_batch',
        'throttled', 'unavailable', 'timezone', 'unregistered_entity', 'watermark', 'ledger')),
    add constraint sync_errors_held_check check (
        (kind in ('unknown_account', 'unknown_currency')) = (ledger_ids is not null)
        and (ledger_ids is null) = (rows is null) and (ledger_ids is null) = (name is null));

-- One open row per problem; but one per batch and name of held rows.
drop index elven_sync.sync_errors_open;
create unique index sync_errors_open
    on elven_sync.sync_errors (entity_id, kind, coalesce(ledger_id, ''),
                               (case when ledger_ids is null then 0 else error_id end))
    where resolved_at is null;
create index sync_errors_held on elven_sync.sync_errors (entity_id, error_id)
    where resolved_at is null and ledger_ids is not null;

-- Ids as sync_batches.row_ids has them, readable.
create function elven_sync.unpacked_ids(packed bytea) returns setof text
    language plpgsql immutable parallel safe
    set search_path = pg_catalog, pg_temp as
$$
declare
    size     integer := coalesce(length(packed), 0);
    at       integer := 1;
    previous numeric := 0;
    shift    numeric;
    number   numeric;
    byte     integer;
begin
    while at < size loop
        number := 0;
        shift := 1;
        loop
            byte := get_byte(packed, at);
            at := at + 1;
            number := number + (byte & 127) * shift;
            shift := shift * 128;
            exit when byte < 128;
        end loop;
        if get_byte(packed, 0) = 1 then
            previous := previous + case when number % 2 = 0 then div(number, 2) else -div(number + 1, 2) end;
            return next previous::bigint::text;
        else
            return next convert_from(substring(packed from at + 1 for number::integer), 'UTF8');
            at := at + number::integer;
        end if;
    end loop;
end
$$;

create function elven_sync.error_row_ids(error bigint) returns setof text
    language sql stable
    set search_path = pg_catalog, pg_temp as
$$
    select e.ledger_id from elven_sync.sync_errors e where e.error_id = error and e.ledger_id is not null
    union all
    (select h.id
      from (select i.id, i.place, r.ids as released
              from elven_sync.sync_errors e
             cross join lateral unnest(array(select elven_sync.unpacked_ids(e.ledger_ids)))
                   with ordinality i (id, place)
             cross join lateral (select array(select elven_sync.unpacked_ids(e.released_ids)) as ids
                                  where e.resolved_at is null
                                 union all select null where e.resolved_at is not null) r
             where e.error_id = error) h
     where h.released is null or h.id <> all (h.released)
     order by h.place)
$$;

create or replace function elven_sync.has_rows_set_aside(entity text) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as
$$
begin
    return exists (select from elven_sync.sync_errors e
                    where e.entity_id = entity and e.ledger_id is not null and e.resolved_at is null)
        or exists (select from elven_sync.sync_errors e
                    where e.entity_id = entity and e.ledger_ids is not null and e.resolved_at is null);
end
$$;

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
  left join (select entity_id, count(*) as open_errors, count(coalesce(ledger_id, name)) as rows_set_aside
               from elven_sync.sync_errors where resolved_at is null group by entity_id) x using (entity_id);

create or replace function elven_sync.error_hint(entity_id text, kind text, api_code text, cause text, is_row boolean)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp as
$$
    select case
               when is_row then
                   'elven-sync errors retry' || o.of_entity || ' --cause '
                   || elven_sync.cause_id(entity_id, kind, api_code, cause)
               when m.hint is not null and length(m.hint) <= 160 then m.hint
               when kind = 'unregistered_entity' then
                   'elven-sync errors list --rows --cause ' || elven_sync.cause_id(entity_id, kind, api_code, cause)
               else 'elven-sync run' || o.of_entity
           end
      from (select case when entity_id collate "C" ~ '^[A-Za-z0-9_.@/:][A-Za-z0-9_.@/:-]{0,39}$'
                        then ' --entity ''' || entity_id || '''' else '' end as of_entity) o,
           (select case when kind in ('unregistered_entity', 'watermark', 'config')
                        then substring(cause collate "C" from '; hint: (?:.* )?(elven-sync (?:entity|backfill) [^;,]*)')
                   end as hint) m
$$;

create function elven_sync.example_row(error elven_sync.sync_errors) returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp as
$$
    select coalesce(error.ledger_id, error.first_id::text,
                    (select i.id from elven_sync.unpacked_ids(error.ledger_ids) i (id) limit 1))
$$;

create or replace view elven_sync.error_causes as
select g.entity_id, g.kind, g.api_code, g.cause, g.rows, g.first_seen_at, g.last_seen_at, g.example_ledger_id,
       -- Of held rows it is recorded: a name in the text may have any characters.
       coalesce(g.hint, elven_sync.error_hint(g.entity_id, g.kind, g.api_code, g.cause,
                                              g.example_ledger_id is not null)) as hint
  from (select entity_id, kind, api_code, coalesce(cause, message) as cause, sum(coalesce(rows, 1))::bigint as rows,
               min(first_seen_at) as first_seen_at, max(last_seen_at) as last_seen_at,
               min(elven_sync.example_row(e)) as example_ledger_id, min(hint) as hint
          from elven_sync.sync_errors e
         where resolved_at is null
         group by 1, 2, 3, 4) g;

comment on column elven_sync.sync_errors.kind is
    'invalid_row, rejected_row: a row was set aside. unknown_account, unknown_currency: rows are held, because the API does not know the name; they are sent automatically once the name is mapped or it lists the name. auth, config, rejected_batch, throttled, unavailable, timezone, watermark, ledger (the database could not read the entity''s rows): the entity stopped where it is. unregistered_entity: rows wait for an entity to be registered.';
comment on column elven_sync.sync_errors.name is
    'The account or currency that the API does not know, as it was sent. NULL: no rows are held.';
comment on column elven_sync.sync_errors.rows is
    'Rows that are held; of a resolved error, the rows that it was about. NULL: a single row, or none.';
comment on column elven_sync.sync_errors.ledger_ids is
    'The rows of the batch that were held because of the name, packed as in sync_batches.row_ids. Read them with error_row_ids.';
comment on column elven_sync.sync_errors.released_ids is
    'Those of ledger_ids that are not held any more: uploaded, superseded, deleted, or set aside for another reason.';
comment on column elven_sync.sync_errors.first_id is 'The smallest of ledger_ids. NULL: they are no numbers.';
comment on column elven_sync.sync_errors.last_id is 'The greatest of ledger_ids. NULL: they are no numbers.';
comment on column elven_sync.sync_errors.not_before is
    'Held rows that were sent again and refused again are not sent again automatically before this time. No row of their name is.';
comment on column elven_sync.sync_errors.ledger_names is
    'The names of the held rows in the ledger. When a map gives one of them another name, the rows are sent again. NULL: no rows are held.';
comment on column elven_sync.sync_errors.hint is
    'The command that settles the error, if it is known. NULL: see error_causes.hint.';
comment on index elven_sync.sync_errors_open is
    'At most one open error for each problem of an entity or row; held rows have one per batch and name.';
comment on index elven_sync.sync_errors_held is 'Finds the errors that hold rows of an entity.';
comment on function elven_sync.unpacked_ids(bytea) is
    'The ids in a packed list, as sync_batches.row_ids and sync_errors.ledger_ids are.';
comment on function elven_sync.error_row_ids(bigint) is
    'The ledger rows of an error: the row, or the rows that are held; of a resolved error, all that it was about.';
comment on function elven_sync.example_row(elven_sync.sync_errors) is
    'One of the ledger rows of an error. NULL: it concerns no row.';
comment on table elven_sync.known_accounts is
    'The accounts that the API listed for each credential when `elven-sync reference pull`, or a run after a refusal, '
    'last read the list to its end. A run reads it when a batch is refused, and when rows are held.';
comment on table elven_sync.known_currencies is
    'The currencies that the API listed for each credential when `elven-sync reference pull`, or a run after a refusal, '
    'last read the list to its end. A run reads it when a batch is refused, and when rows are held.';
