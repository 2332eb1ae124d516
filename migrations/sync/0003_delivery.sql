-- Delivery: parts of a batch, outcomes that stay unknown, and bodies that are too large.

-- Runs in which the batch ended without an answer that tells whether it arrived.
alter table elven_sync.sync_batches add column unknown_runs integer not null default 0;

-- A part of a split batch is recorded before its turn comes.
alter table elven_sync.sync_batches alter column attempts set default 0;

-- A person's word resolved it, and nothing was sent.
alter table elven_sync.sync_errors add column dismissed boolean not null default false;

-- Records whose amount has more digits than a double holds: sent exactly, but a reader may round them.
alter table elven_sync.sync_batches add column rows_beyond_double integer not null default 0;
alter table elven_sync.sync_runs add column rows_beyond_double bigint not null default 0;

-- The smallest body that the API has refused for its size is asked for when a run begins.
create index sync_batches_too_large on elven_sync.sync_batches (entity_id, finished_at) where http_status = 413;

-- Batches whose outcome is unknown, for whoever wants to look them up at Elven.
create index sync_batches_unknown on elven_sync.sync_batches (entity_id, batch_id) where status = 'unknown' or ambiguous;

comment on column elven_sync.sync_batches.parent_id is
    'The batch that this one is a part of: that was refused, and its parts were sent instead.';
comment on column elven_sync.sync_batches.before_xid is
    'change_xid of the row behind which its interval begins; for a part, that of the whole. NULL: at the start of the pass.';
comment on column elven_sync.sync_batches.row_count is
    'Records in the body; 0 also when they were set aside, or when nothing was left to send.';
comment on column elven_sync.sync_batches.status is
    'sending: recorded, no answer yet; accepted; rejected: refused, not delivered, or set aside; split: its parts were sent instead; unknown: no answer tells whether it arrived.';
comment on column elven_sync.sync_batches.attempts is 'How often it was sent, or was about to be. 0: its turn has not come.';
comment on column elven_sync.sync_batches.unknown_runs is
    'Runs in which it ended without an answer that tells whether it arrived; after three of them each run tries it once.';
comment on column elven_sync.sync_batches.rows_beyond_double is
    'Records whose amount a reader would round that takes JSON numbers for doubles (IEEE 754 binary64); they were sent exactly.';
comment on column elven_sync.sync_runs.rows_beyond_double is
    'Records accepted whose amount a reader would round that takes JSON numbers for doubles; they were sent exactly.';
comment on column elven_sync.sync_errors.dismissed is 'True: resolved by a person''s word; nothing was sent.';
