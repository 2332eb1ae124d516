-- Commits: by which a worker whose connection broke over a commit learns whether it was done.

-- PostgreSQL's own word for it, pg_xact_status, speaks of an id that is given out again after a crash or a failover
-- which has lost the transaction: it may then tell of another one.
create table elven_sync.sync_commits (
    process  bigint not null,
    number   bigint not null,
    begun_at timestamptz not null default clock_timestamp(),
    primary key (process, number)
);

comment on table elven_sync.sync_commits is
    'One row per recent transaction of the connector that wrote something. A worker whose connection broke over a commit looks here whether it was done. Of no other use; removed when a run ends, or after some hours.';
comment on column elven_sync.sync_commits.process is 'Which process: a number that it drew when it began.';
comment on column elven_sync.sync_commits.number is 'Which of the transactions of that process.';
comment on column elven_sync.sync_commits.begun_at is 'When the transaction began.';
