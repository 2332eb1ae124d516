-- The one definition in SQL of an open batch. PostgreSQL inlines it, so that the index serves each statement that asks it:
-- to open, close or resume a pass costs the same however many batches it has.
create function elven_sync.is_open(status text, row_count integer) returns boolean
    language sql immutable parallel safe
as $$
    select status in ('sending', 'unknown') or (status = 'rejected' and row_count > 0)
$$;

create index sync_batches_open on elven_sync.sync_batches (entity_id, batch_id)
 where elven_sync.is_open(status, row_count);

comment on function elven_sync.is_open(text, integer) is
    'Whether a batch with this status and row_count is open: some of its rows have no final outcome yet. A rejected batch with rows is sent again; without rows, all of them are set aside.';
comment on index elven_sync.sync_batches_open is 'The open batches of an entity.';
