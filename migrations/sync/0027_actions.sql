-- What people do to entities is recorded however they do it: by command or by SQL. One row of sync_actions per statement
-- and entity, in the transaction of the statement.

-- It has the rights of its owner, so that a role that may only write to entities cannot write to sync_actions.
create function elven_sync.record_entity_changes() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as
$$
declare
    -- What the session says about itself, and where it comes from.
    by_client constant text := concat_ws(' from ', coalesce(nullif(current_setting('application_name'), ''), 'a session'),
                                         host(inet_client_addr()));
begin
    if tg_op = 'INSERT' then
        insert into elven_sync.sync_actions (client, action, entity_id, details)
        select by_client, 'entity_add', n.entity_id, to_jsonb(n) - 'entity_id' from new_rows n order by n.entity_id;
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
                    when to_jsonb(o) - 'paused' <> to_jsonb(n) - 'paused' then 'entity_set'
                    when n.paused then 'entity_pause'
                    else 'entity_resume' end,
               coalesce(n.entity_id, o.entity_id),
               case when o.entity_id is null then to_jsonb(n) - 'entity_id'
                    when n.entity_id is null then to_jsonb(o) - 'entity_id'
                    else (select jsonb_object_agg(was.key, jsonb_build_object('before', was.value, 'now', now.value))
                            from jsonb_each(to_jsonb(o)) was join jsonb_each(to_jsonb(n)) now using (key)
                           where was.value <> now.value) end
          from old_rows o full join new_rows n using (entity_id)
         where to_jsonb(o) is distinct from to_jsonb(n)
         order by 3;
    end if;
    return null;
end
$$;

create trigger record_added after insert on elven_sync.entities
    referencing new table as new_rows
    for each statement execute function elven_sync.record_entity_changes();
create trigger record_changed after update on elven_sync.entities
    referencing old table as old_rows new table as new_rows
    for each statement execute function elven_sync.record_entity_changes();
create trigger record_removed after delete on elven_sync.entities
    referencing old table as old_rows
    for each statement execute function elven_sync.record_entity_changes();
create trigger record_truncated before truncate on elven_sync.entities
    for each statement execute function elven_sync.record_entity_changes();

-- Also for a role with session_replication_role = replica.
alter table elven_sync.entities enable always trigger record_added;
alter table elven_sync.entities enable always trigger record_changed;
alter table elven_sync.entities enable always trigger record_removed;
alter table elven_sync.entities enable always trigger record_truncated;
alter table elven_sync.entities enable always trigger entity_registered;

comment on function elven_sync.record_entity_changes() is
    'Records changes of entities in sync_actions.';
comment on table elven_sync.sync_actions is
    'What people did: who, when, what and why. Through a role that several people use, the person is unknown: actor is the role.';
comment on column elven_sync.sync_actions.actor is
    'The database role that was logged in (session_user).';
comment on column elven_sync.sync_actions.client is
    'The process of elven-sync (host, process id and start), or the application name and address of a session that changed entities. A claim, not a proof.';
comment on column elven_sync.sync_actions.action is
    'entity_add, entity_set, entity_pause, entity_resume, entity_remove: the row of the entity was changed, by command or by SQL; from_now: the rows that the ledger had are skipped; rewind; rebind (after pg_upgrade); rebind_mapping; rebind_journal; resolve: errors were closed; backfill: a run began on it; backfill_cancel; prune.';
comment on column elven_sync.sync_actions.entity_id is 'The entity. NULL: all entities, or several.';
comment on column elven_sync.sync_actions.details is
    'The changes: columns before and now, the row of sync_passes (pass_id), watermarks, mappings, the range of a backfill, the number of errors.';
comment on trigger record_added on elven_sync.entities is 'Records registrations in sync_actions.';
comment on trigger record_changed on elven_sync.entities is 'Records changes of entities in sync_actions.';
comment on trigger record_removed on elven_sync.entities is 'Records removals of entities in sync_actions.';
comment on trigger record_truncated on elven_sync.entities is 'Records the removal of all entities in sync_actions.';
