-- The statement that takes a lease asks whether rows of the entity are set aside. Its snapshot may be older than the last
-- commit of the worker that had the lease, which may have set rows aside: a worker that was frozen for longer than its
-- lease goes on while another one takes over. A volatile function reads with a snapshot of its own.

create function elven_sync.has_rows_set_aside(entity text) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as
$$
begin
    return exists (select from elven_sync.sync_errors e
                    where e.entity_id = entity and e.ledger_id is not null and e.resolved_at is null);
end
$$;

comment on function elven_sync.has_rows_set_aside(text) is
    'Whether rows of an entity are set aside, at the moment of the call and not of the statement.';
