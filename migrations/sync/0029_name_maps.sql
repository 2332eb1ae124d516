-- The ledger's names of accounts and currencies that have other names at Elven. The tables hold the maps in force;
-- map_history holds each map from its addition to its removal, so that the body of an old batch can be made again.

create sequence elven_sync.map_version_seq;

create table elven_sync.account_map (
    entity_id         text collate "C" not null check (entity_id <> '*'),
    ledger_account    text collate "C" not null check (ledger_account ~ '\S' and ledger_account !~ '[[:cntrl:]]' and length(ledger_account) <= 1000),
    entity_account_id text collate "C" not null check (entity_account_id ~ '\S' and entity_account_id !~ '[[:cntrl:]]' and length(entity_account_id) <= 1000),
    shared            boolean not null default false,
    map_version       bigint not null,
    primary key (entity_id, ledger_account)
);

create table elven_sync.currency_map (
    entity_id       text collate "C" not null default '*',
    ledger_currency text collate "C" not null check (ledger_currency ~ '\S' and ledger_currency !~ '[[:cntrl:]]' and length(ledger_currency) <= 1000),
    currency        text collate "C" not null check (currency ~ '\S' and currency !~ '[[:cntrl:]]' and length(currency) <= 1000),
    shared          boolean not null default false,
    kind            text check (kind in ('symbol', 'asset_id')),
    map_version     bigint not null,
    primary key (entity_id, ledger_currency)
);

create table elven_sync.map_history (
    map_version   bigint primary key,
    map           text not null check (map in ('account', 'currency')),
    entity_id     text collate "C" not null,
    ledger_name   text collate "C" not null,
    elven_name    text collate "C" not null,
    shared        boolean not null,
    currency_kind text,
    added_at      timestamptz not null default now(),
    removed_in    bigint,
    removed_at    timestamptz
);

create index map_history_entity on elven_sync.map_history (entity_id);
create unique index map_history_name on elven_sync.map_history (map, entity_id, ledger_name) where removed_in is null;
create index map_history_target on elven_sync.map_history (map, elven_name) where removed_in is null;

-- Version numbers are given under a lock that is held to the end of the transaction. So maps become visible in the
-- order of their versions, and the maps of a version never change.
create function elven_sync.next_map_version() returns bigint
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as
$$
begin
    lock table elven_sync.map_history in share row exclusive mode;
    return nextval('elven_sync.map_version_seq');
end
$$;

create function elven_sync.assign_map_version() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as
$$
begin
    new.map_version := elven_sync.next_map_version();
    return new;
end
$$;

-- Refuses maps by which the balances of two accounts or currencies would be mixed.
create function elven_sync.check_maps() returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as
$$
declare
    mixed record;
begin
    -- A map of the entity takes precedence over one of all entities ('*').
    select a.map, a.elven_name, a.ledger_name as one, b.ledger_name as other,
           case when a.entity_id = '*' then b.entity_id else a.entity_id end as entity_id
      into mixed
      from elven_sync.map_history a
      join elven_sync.map_history b
        on b.map = a.map and b.elven_name = a.elven_name and b.ledger_name > a.ledger_name
           and (b.entity_id = a.entity_id or '*' in (a.entity_id, b.entity_id))
     where a.removed_in is null and b.removed_in is null and not (a.shared and b.shared)
       and not exists (select from elven_sync.map_history o
                        where o.removed_in is null and o.map = a.map and a.entity_id <> b.entity_id
                          and ((a.entity_id = '*' and o.entity_id = b.entity_id and o.ledger_name = a.ledger_name)
                               or (b.entity_id = '*' and o.entity_id = a.entity_id and o.ledger_name = b.ledger_name)))
     order by a.map_version desc limit 1;
    if found then
        raise exception using
            errcode = 'integrity_constraint_violation',
            message = format('two names of the ledger would be one %s at Elven: %L and %L are both mapped to %L%s',
                             mixed.map, mixed.one, mixed.other, mixed.elven_name,
                             case mixed.entity_id when '*' then '' else format(' for entity %L', mixed.entity_id) end),
            hint = 'a map is one to one, so that no balance replaces another; if both names mean the same, map both as shared';
    end if;
    select a.elven_name, a.entity_id as one, b.entity_id as other, e.credential
      into mixed
      from elven_sync.map_history a
      join elven_sync.map_history b
        on b.map = a.map and b.elven_name = a.elven_name and b.entity_id > a.entity_id
      join elven_sync.entities e on e.entity_id = a.entity_id
      join elven_sync.entities f on f.entity_id = b.entity_id and f.credential = e.credential
     where a.removed_in is null and b.removed_in is null and a.map = 'account'
     order by a.map_version desc limit 1;
    if found then
        raise exception using
            errcode = 'integrity_constraint_violation',
            message = format('account %L at Elven would be fed by two entities of credential %L: %L and %L',
                             mixed.elven_name, mixed.credential, mixed.one, mixed.other),
            hint = 'an account belongs to one entity';
    end if;
end
$$;

create function elven_sync.record_map_changes() returns trigger
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

create function elven_sync.refuse_map_update() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as
$$
begin
    raise exception using
        errcode = 'feature_not_supported',
        message = format('a row of elven_sync.%s is never updated: earlier batches were made with it', tg_table_name),
        hint = 'delete the row and insert another in one transaction, or use elven-sync map';
end
$$;

create function elven_sync.check_maps_of_entities() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as
$$
begin
    -- Together with a map that is not committed yet, the entities could feed one account.
    lock table elven_sync.map_history in share row exclusive mode;
    perform elven_sync.check_maps();
    return null;
end
$$;

-- A session with session_replication_role = replica, e.g. a subscription, fires none of these. It copies rows with
-- their versions; a row without a version is refused.
create trigger map_versioned before insert on elven_sync.account_map
    for each row execute function elven_sync.assign_map_version();
create trigger map_versioned before insert on elven_sync.currency_map
    for each row execute function elven_sync.assign_map_version();
create trigger map_added after insert on elven_sync.account_map
    referencing new table as new_rows
    for each statement execute function elven_sync.record_map_changes();
create trigger map_added after insert on elven_sync.currency_map
    referencing new table as new_rows
    for each statement execute function elven_sync.record_map_changes();
create trigger map_removed after delete on elven_sync.account_map
    referencing old table as old_rows
    for each statement execute function elven_sync.record_map_changes();
create trigger map_removed after delete on elven_sync.currency_map
    referencing old table as old_rows
    for each statement execute function elven_sync.record_map_changes();
create trigger map_truncated before truncate on elven_sync.account_map
    for each statement execute function elven_sync.record_map_changes();
create trigger map_truncated before truncate on elven_sync.currency_map
    for each statement execute function elven_sync.record_map_changes();
create trigger map_fixed before update on elven_sync.account_map
    for each statement execute function elven_sync.refuse_map_update();
create trigger map_fixed before update on elven_sync.currency_map
    for each statement execute function elven_sync.refuse_map_update();
create trigger maps_fit after insert or update on elven_sync.entities
    for each statement execute function elven_sync.check_maps_of_entities();

alter table elven_sync.sync_batches add column map_version bigint;

comment on sequence elven_sync.map_version_seq is 'Numbers the versions of the maps.';
comment on table elven_sync.account_map is
    'The ledger''s names of accounts that have another name at Elven. A name without a row is sent as it is. Insert and delete rows here, or use elven-sync map; a row is never updated. A new map resends nothing that was accepted.';
comment on column elven_sync.account_map.entity_id is 'The entity.';
comment on column elven_sync.account_map.ledger_account is 'The account as the ledger spells it, letter case included.';
comment on column elven_sync.account_map.entity_account_id is 'Id of the account at Elven (entityAccountId).';
comment on column elven_sync.account_map.shared is
    'Whether other names of the ledger may mean the same account at Elven, e.g. an account that was renamed. Each of them has to be shared.';
comment on column elven_sync.account_map.map_version is 'The version of the maps since which it is in force. Given by a trigger.';
comment on table elven_sync.currency_map is
    'The ledger''s names of currencies that have another name at Elven. A name without a row is sent as it is. Insert and delete rows here, or use elven-sync map; a row is never updated. A new map resends nothing that was accepted.';
comment on column elven_sync.currency_map.entity_id is
    'The entity, or * for all entities. The map of an entity takes precedence.';
comment on column elven_sync.currency_map.ledger_currency is 'The currency as the ledger spells it, letter case included.';
comment on column elven_sync.currency_map.currency is 'The currency as Elven spells it, letter case included.';
comment on column elven_sync.currency_map.shared is
    'Whether other names of the ledger may mean the same currency at Elven. Each of them has to be shared.';
comment on column elven_sync.currency_map.kind is
    'For version 4 of the API: whether currency is a symbol or an asset_id. NULL: as the configuration says.';
comment on column elven_sync.currency_map.map_version is 'The version of the maps since which it is in force. Given by a trigger.';
comment on table elven_sync.map_history is
    'Each map of account_map and currency_map, from the version that added it to the version that removed it. Batches name the version they were made with (sync_batches.map_version).';
comment on column elven_sync.map_history.map_version is 'The version that added the map.';
comment on column elven_sync.map_history.map is 'account or currency.';
comment on column elven_sync.map_history.entity_id is 'The entity, or * for all entities.';
comment on column elven_sync.map_history.ledger_name is 'The name as the ledger spells it.';
comment on column elven_sync.map_history.elven_name is 'The name at Elven.';
comment on column elven_sync.map_history.shared is 'Whether other names of the ledger may have the same name at Elven.';
comment on column elven_sync.map_history.currency_kind is 'currency_map.kind.';
comment on column elven_sync.map_history.added_at is 'When the map was added.';
comment on column elven_sync.map_history.removed_in is 'The version that removed the map. NULL: it is in force.';
comment on column elven_sync.map_history.removed_at is 'When the map was removed. NULL: it is in force.';
comment on index elven_sync.map_history_entity is 'The maps of an entity, as a run reads them.';
comment on index elven_sync.map_history_name is 'A name of the ledger has at most one map in force.';
comment on index elven_sync.map_history_target is 'Finds two names with one name at Elven.';
comment on function elven_sync.next_map_version() is
    'Locks the maps until the end of the transaction, and returns the next version.';
comment on function elven_sync.assign_map_version() is 'Gives a new map its version.';
comment on function elven_sync.check_maps() is
    'Refuses maps by which the balances of two accounts or currencies would be mixed.';
comment on function elven_sync.record_map_changes() is 'Records changes of maps in map_history and sync_actions, and checks them.';
comment on function elven_sync.refuse_map_update() is 'Refuses to update a map.';
comment on function elven_sync.check_maps_of_entities() is 'Checks the maps when the credentials of entities change.';
comment on trigger map_versioned on elven_sync.account_map is 'Gives a new map its version.';
comment on trigger map_versioned on elven_sync.currency_map is 'Gives a new map its version.';
comment on trigger map_added on elven_sync.account_map is 'Records new maps, and checks them.';
comment on trigger map_added on elven_sync.currency_map is 'Records new maps, and checks them.';
comment on trigger map_removed on elven_sync.account_map is 'Records removed maps, and checks those left.';
comment on trigger map_removed on elven_sync.currency_map is 'Records removed maps, and checks those left.';
comment on trigger map_truncated on elven_sync.account_map is 'Records the removal of all maps.';
comment on trigger map_truncated on elven_sync.currency_map is 'Records the removal of all maps.';
comment on trigger map_fixed on elven_sync.account_map is 'Refuses to update a map.';
comment on trigger map_fixed on elven_sync.currency_map is 'Refuses to update a map.';
comment on trigger maps_fit on elven_sync.entities is 'Checks the maps when the credentials of entities change.';
comment on column elven_sync.sync_batches.map_version is
    'The version of the maps by which the names in its body were made. NULL: no map was in force for the entity.';
comment on column elven_sync.sync_actions.action is
    'entity_add, entity_set, entity_pause, entity_resume, entity_remove: the row of the entity was changed, by command or by SQL; map, map_remove: maps of names were added or removed, by command or by SQL; from_now: the rows that the ledger had are skipped; rewind; rebind (after pg_upgrade); rebind_mapping; rebind_journal; resolve: errors were closed; backfill: a run began on it; backfill_cancel; prune.';
