-- Requests by outcome, per entity. Metrics need counters that only grow; sync_batches and sync_runs are pruned, and to
-- sum them for each scrape would read the whole history. The row of the entity is written with each answer anyway.

alter table elven_sync.sync_state
    add column requests_accepted  bigint not null default 0,
    add column requests_refused   bigint not null default 0,
    add column requests_throttled bigint not null default 0,
    add column requests_unknown   bigint not null default 0;

comment on column elven_sync.sync_state.requests_accepted is
    'Uploads of this entity that the API accepted, counted since the column was added. It only grows.';
comment on column elven_sync.sync_state.requests_refused is
    'Uploads of this entity that the API or a proxy refused, counted since the column was added. It only grows.';
comment on column elven_sync.sync_state.requests_throttled is
    'Uploads of this entity that the API did not take at that time (HTTP 408, 425, 429, 503), counted since the column was added. It only grows.';
comment on column elven_sync.sync_state.requests_unknown is
    'Uploads of this entity whose outcome was unknown when they ended, counted since the column was added. It only grows.';
