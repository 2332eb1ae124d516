-- Held rows are found by their ids. Without these indexes, each batch reads all errors of its entity that hold rows.

alter table elven_sync.sync_errors add column id_hashes integer[];

create function elven_sync.id_hash(id text) returns integer
    language sql immutable strict parallel safe
    set search_path = pg_catalog, pg_temp as
$$
    select ('x' || substr(encode(sha256(convert_to(id, 'UTF8')), 'hex'), 1, 8))::bit(32)::integer
$$;

update elven_sync.sync_errors e
   set first_id = i.first_id,
       last_id = i.last_id,
       id_hashes = i.hashes
  from (select h.error_id,
               min(case when u.is_number then u.id::bigint end) as first_id,
               max(case when u.is_number then u.id::bigint end) as last_id,
               array_agg(elven_sync.id_hash(u.id)) filter (where not u.is_number) as hashes
          from elven_sync.sync_errors h
         cross join lateral (select p.id, p.id ~ '^(0|-?[1-9][0-9]{0,17})$' as is_number
                               from elven_sync.unpacked_ids(h.ledger_ids) p (id)) u
         where h.ledger_ids is not null
         group by h.error_id) i
 where e.error_id = i.error_id and (i.hashes is not null or e.first_id is null);

create index sync_errors_held_numbers on elven_sync.sync_errors (entity_id, last_id, first_id)
    where resolved_at is null and ledger_ids is not null;
-- With a list of pending entries, each search would read that list.
create index sync_errors_held_texts on elven_sync.sync_errors using gin (id_hashes) with (fastupdate = off);

-- The errors of an entity that may hold a row whose id is a number between `first` and `last`, or has one of these hashes.
--
-- The conditions inside `case` leave the planner no index but the one on the hashes: to compare the lists of all errors
-- one by one takes seconds.
create function elven_sync.errors_holding(entity text, first bigint, last bigint, hashes integer[])
    returns setof bigint
    language plpgsql stable rows 10
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off as
$$
begin
    return query
        select e.error_id from elven_sync.sync_errors e
         where e.entity_id = entity and e.last_id >= first and e.first_id <= last
           and e.resolved_at is null and e.ledger_ids is not null
         union all
        select e.error_id from elven_sync.sync_errors e
         where e.id_hashes && hashes
           and case when e.entity_id = entity then e.resolved_at is null and e.ledger_ids is not null end;
end
$$;

comment on column elven_sync.sync_errors.id_hashes is
    'The hash (function id_hash) of each of ledger_ids that is not a whole number of at most 18 digits, as long as rows are held. NULL: there is none.';
comment on column elven_sync.sync_errors.first_id is
    'The smallest of those ledger_ids that are whole numbers of at most 18 digits. NULL: none is.';
comment on column elven_sync.sync_errors.last_id is
    'The greatest of those ledger_ids that are whole numbers of at most 18 digits. NULL: none is.';
comment on index elven_sync.sync_errors_held_numbers is 'Finds the errors that may hold rows whose ids are numbers.';
comment on index elven_sync.sync_errors_held_texts is 'Finds the errors that may hold rows whose ids are texts.';
comment on function elven_sync.id_hash(text) is
    'The first four bytes of the SHA-256 of an id, as in sync_errors.id_hashes.';
comment on function elven_sync.errors_holding(text, bigint, bigint, integer[]) is
    'The errors of an entity that may hold one of some rows.';
