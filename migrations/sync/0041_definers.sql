-- A role that may execute a trigger function can make a trigger of it on a table of its own, and the function then has the
-- rights of its owner. The row type of such a table may have a cast that calls a function of that role. So a role that
-- could only read became the owner of the schema. Now each function with the rights of its owner refuses every table
-- but its own, before it looks at a row. The functions that these call have the rights of who calls them.

create or replace function elven_sync.record_entity_changes() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as
$$
declare
    -- What the session says about itself, and where it comes from.
    by_client constant text := concat_ws(' from ', coalesce(nullif(current_setting('application_name'), ''), 'a session'),
                                         host(inet_client_addr()));
begin
    perform elven_sync.refuse_other_tables(tg_relid, 'elven_sync.entities');
    if tg_op = 'INSERT' then
        insert into elven_sync.sync_actions (client, action, entity_id, details)
        select by_client, 'entity_add', n.entity_id, to_jsonb(n) - '{entity_id,resumed_at}'::text[]
          from new_rows n order by n.entity_id;
    elsif tg_op = 'DELETE' then
        insert into elven_sync.sync_actions (client, action, entity_id, details)
        select by_client, 'entity_remove', o.entity_id, to_jsonb(o) - 'entity_id' from old_rows o order by o.entity_id;
    elsif tg_op = 'TRUNCATE' then
        insert into elven_sync.sync_actions (client, action, entity_id, details)
        select by_client, 'entity_remove', e.entity_id, to_jsonb(e) - 'entity_id'
          from elven_sync.entities e order by e.entity_id;
    else
        insert into elven_sync.sync_actions (client, action, entity_id, details)
        select by_client,
               case when o.entity_id is null then 'entity_add'
                    when n.entity_id is null then 'entity_remove'
                    when to_jsonb(o) - '{paused,resumed_at}'::text[]
                         <> to_jsonb(n) - '{paused,resumed_at}'::text[] then 'entity_set'
                    when n.paused then 'entity_pause'
                    else 'entity_resume' end,
               coalesce(n.entity_id, o.entity_id),
               case when o.entity_id is null then to_jsonb(n) - 'entity_id'
                    when n.entity_id is null then to_jsonb(o) - 'entity_id'
                    else (select jsonb_object_agg(was.key, jsonb_build_object('before', was.value, 'now', now.value))
                            from jsonb_each(to_jsonb(o)) was join jsonb_each(to_jsonb(n)) now using (key)
                           where was.value <> now.value and was.key <> 'resumed_at') end
          from old_rows o full join new_rows n using (entity_id)
         where to_jsonb(o) - 'resumed_at' is distinct from to_jsonb(n) - 'resumed_at'
         order by 3;
    end if;
    return null;
end
$$;

create or replace function elven_sync.assign_map_version() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as
$$
begin
    perform elven_sync.refuse_other_tables(tg_relid, 'elven_sync.account_map', 'elven_sync.currency_map');
    new.map_version := elven_sync.next_map_version();
    return new;
end
$$;

create or replace function elven_sync.record_map_changes() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as
$$
declare
    of_map constant text := case tg_table_name when 'account_map' then 'account' else 'currency' end;
    by_client constant text := concat_ws(' from ', coalesce(nullif(current_setting('application_name'), ''), 'a session'),
                                         host(inet_client_addr()));
    version bigint;
    gone bigint[];
begin
    perform elven_sync.refuse_other_tables(tg_relid, 'elven_sync.account_map', 'elven_sync.currency_map');
    -- With an older snapshot, the check would miss the maps of other sessions.
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        raise exception using
            errcode = 'feature_not_supported',
            message = format('elven_sync.%s is changed only in transactions with isolation level read committed', tg_table_name),
            hint = 'begin isolation level read committed';
    end if;
    if tg_op = 'INSERT' then
        insert into elven_sync.map_history (map_version, map, entity_id, ledger_name, elven_name, shared, currency_kind)
        select n.map_version, of_map, n.entity_id, coalesce(j ->> 'ledger_account', j ->> 'ledger_currency'),
               coalesce(j ->> 'entity_account_id', j ->> 'currency'), n.shared, j ->> 'kind'
          from new_rows n, to_jsonb(n) j;
        insert into elven_sync.sync_actions (client, action, entity_id, details)
        select by_client, 'map', nullif(h.entity_id, '*'),
               jsonb_build_object('map', of_map, 'names', jsonb_object_agg(h.ledger_name, h.elven_name),
                                  'shared', bool_or(h.shared), 'map_version', max(h.map_version))
          from elven_sync.map_history h join new_rows n using (map_version)
         group by h.entity_id order by h.entity_id;
    else
        if tg_op = 'DELETE' then
            gone := array(select o.map_version from old_rows o);
        else
            gone := array(select h.map_version from elven_sync.map_history h
                           where h.map = of_map and h.removed_in is null);
        end if;
        if gone = '{}' then
            return null;
        end if;
        version := elven_sync.next_map_version();
        with removed as (
            update elven_sync.map_history h set removed_in = version, removed_at = now()
             where h.map_version = any (gone)
            returning h.entity_id, h.ledger_name, h.elven_name)
        insert into elven_sync.sync_actions (client, action, entity_id, details)
        select by_client, 'map_remove', nullif(entity_id, '*'),
               jsonb_build_object('map', of_map, 'names', jsonb_object_agg(ledger_name, elven_name),
                                  'map_version', version)
          from removed group by entity_id order by entity_id;
    end if;
    perform elven_sync.check_maps();
    return null;
end
$$;

create or replace function elven_sync.check_maps_of_entities() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as
$$
begin
    perform elven_sync.refuse_other_tables(tg_relid, 'elven_sync.entities');
    -- Together with a map that is not committed yet, the entities could feed one account.
    lock table elven_sync.map_history in share row exclusive mode;
    perform elven_sync.check_maps();
    return null;
end
$$;

create or replace function elven_sync.next_map_version() returns bigint
    language plpgsql
    set search_path = pg_catalog, pg_temp
as
$$
begin
    lock table elven_sync.map_history in share row exclusive mode;
    return nextval('elven_sync.map_version_seq');
end
$$;

alter function elven_sync.check_maps() security invoker;
