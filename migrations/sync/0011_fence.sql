-- The fence behind attempts whose answer was lost: the network may deliver such a request late, after newer values.
alter table elven_sync.sync_state add column fence_until timestamptz;

comment on column elven_sync.sync_state.fence_until is
    'Until then a request of this entity whose answer was lost may still arrive at the API, so nothing is sent but the '
    'batch of that request, unchanged; other rows stay pending. Written when the lease is released: the time at which the '
    'signature of the request is older than [api] signature_window and 3 s. NULL or past: nothing is waited for.';
