-- The status page shows the batches of the last day. Without an index by the time of the answer, it would have to read
-- the whole journal.

-- An update that gives a batch its answer never was a HOT update, because other indexes depend on the status. So this
-- index costs one entry per answer and nothing else.
create index sync_batches_answered on elven_sync.sync_batches (finished_at) where finished_at is not null;

comment on index elven_sync.sync_batches_answered is 'Finds the batches of the last day, for the status page.';
