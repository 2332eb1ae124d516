-- A retry takes the lease in slices, as a backfill does, and releases it for a worker that waits.
alter table elven_sync.sync_state
    drop constraint sync_state_lease_kind_check,
    add constraint sync_state_lease_kind_check check (lease_kind in ('backfill', 'retry'));

comment on column elven_sync.sync_state.lease_kind is
    'backfill or retry: the lease is held for a slice, and released within a moment when another worker waits for the entity. NULL: a run holds the lease, or nobody.';
comment on column elven_sync.sync_state.lease_wanted_at is
    'When another worker last asked the backfill or retry that holds the lease to release it. NULL: no worker waits for it.';
