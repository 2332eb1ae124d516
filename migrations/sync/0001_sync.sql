-- The tables of elven-sync, next to the ledger.
--
-- They live in the ledger's own database on purpose: watermark and ledger then share one write-ahead
-- log, and a crash, a restore or a failover that loses the tail takes both back together. The words
-- an operator needs are in the comments at the end, so that \d+ shows them.

create table elven_sync.entities (
    entity_id  text primary key check (btrim(entity_id) <> ''),
    timezone   text not null,
    -- A name that the configuration knows. Keys and secrets are never stored in the database.
    credential text not null default 'default' check (btrim(credential) <> ''),
    paused     boolean not null default false,
    created_at timestamptz not null default now()
);

create table elven_sync.sync_state (
    -- No foreign key: an entity that is deleted and registered again goes on where it was.
    entity_id            text primary key,
    settled              pg_snapshot,
    pass_id              bigint,
    target               pg_snapshot,
    cursor_xid           xid8,
    cursor_id            text,
    system_identifier    bigint,
    ledger_table         text,
    rows_uploaded        bigint not null default 0,
    pending_rows         bigint not null default 0,
    oldest_pending_at    timestamptz,
    checked_at           timestamptz,
    last_success_at      timestamptz,
    last_error           text,
    consecutive_failures integer not null default 0,
    not_before           timestamptz,
    lease_owner          text,
    lease_epoch          bigint not null default 0,
    lease_expires_at     timestamptz,
    -- A pass is open, with its target, or it is not; only an open one has a cursor.
    check ((pass_id is null) = (target is null)),
    check ((cursor_xid is null) = (cursor_id is null)),
    check (cursor_xid is null or target is not null),
    check ((lease_owner is null) = (lease_expires_at is null))
);

create table elven_sync.sync_runs (
    run_id          bigint generated always as identity primary key,
    kind            text not null default 'incremental' check (kind in ('incremental', 'backfill', 'retry')),
    status          text not null default 'running'
                    check (status in ('running', 'succeeded', 'incomplete', 'failed', 'interrupted')),
    worker          text not null,
    version         text not null,
    tzdata          text not null,
    started_at      timestamptz not null default clock_timestamp(),
    finished_at     timestamptz,
    alive_until     timestamptz not null,
    rows_read       bigint not null default 0,
    rows_uploaded   bigint not null default 0,
    rows_rejected   bigint not null default 0,
    rows_superseded bigint not null default 0,
    requests        bigint not null default 0,
    retries         bigint not null default 0,
    bytes_sent      bigint not null default 0,
    error           text,
    check ((status = 'running') = (finished_at is null))
);
-- The next run looks for runs that never finished.
create index sync_runs_running on elven_sync.sync_runs (alive_until) where status = 'running';

create table elven_sync.sync_passes (
    pass_id     bigint generated always as identity primary key,
    entity_id   text not null,
    run_id      bigint references elven_sync.sync_runs,
    kind        text not null default 'pass' check (kind in ('pass', 'rewind')),
    settled     pg_snapshot,
    target      pg_snapshot,
    started_at  timestamptz not null default clock_timestamp(),
    finished_at timestamptz
);
create index sync_passes_entity on elven_sync.sync_passes (entity_id, pass_id);

create table elven_sync.sync_backfills (
    backfill_id     bigint generated always as identity primary key,
    range_from      text not null,
    range_to        text not null,
    entities        text[],
    accounts        text[],
    currencies      text[],
    status          text not null default 'running'
                    check (status in ('running', 'succeeded', 'incomplete', 'failed', 'interrupted', 'cancelled')),
    cursor          jsonb not null default '{}',
    rows_read       bigint not null default 0,
    rows_uploaded   bigint not null default 0,
    rows_rejected   bigint not null default 0,
    rows_superseded bigint not null default 0,
    started_at      timestamptz not null default clock_timestamp(),
    finished_at     timestamptz,
    error           text
);

create table elven_sync.sync_batches (
    batch_id        bigint generated always as identity primary key,
    parent_id       bigint references elven_sync.sync_batches,
    run_id          bigint not null references elven_sync.sync_runs,
    pass_id         bigint references elven_sync.sync_passes,
    backfill_id     bigint references elven_sync.sync_backfills,
    entity_id       text not null,
    before_xid      xid8,
    before_id       text,
    last_xid        xid8 not null,
    last_id         text not null,
    row_ids         bytea not null,
    rows_read       integer not null,
    row_count       integer not null,
    rows_rejected   integer not null default 0,
    rows_superseded integer not null default 0,
    body_bytes      integer not null,
    body_sha256     text not null,
    status          text not null default 'sending'
                    check (status in ('sending', 'accepted', 'rejected', 'split', 'unknown')),
    attempts        integer not null default 1,
    ambiguous       boolean not null default false,
    http_status     integer,
    duration_ms     bigint,
    error           text,
    created_at      timestamptz not null default clock_timestamp(),
    finished_at     timestamptz,
    check (row_count between 0 and 1000),
    -- Nothing falls out between reading and sending.
    check (rows_read = row_count + rows_rejected + rows_superseded)
);
create index sync_batches_pass on elven_sync.sync_batches (pass_id, batch_id);
create index sync_batches_run on elven_sync.sync_batches (run_id, batch_id);

create table elven_sync.sync_errors (
    error_id      bigint generated always as identity primary key,
    run_id        bigint references elven_sync.sync_runs,
    batch_id      bigint references elven_sync.sync_batches,
    entity_id     text not null,
    ledger_id     text,
    kind          text not null check (kind in (
                      'invalid_row', 'rejected_row', 'auth', 'config', 'rejected_batch', 'throttled',
                      'unavailable', 'timezone', 'unregistered_entity', 'watermark')),
    http_status   integer,
    api_code      text,
    message       text not null,
    record        jsonb,
    occurrences   integer not null default 1,
    first_seen_at timestamptz not null default clock_timestamp(),
    last_seen_at  timestamptz not null default clock_timestamp(),
    resolved_at   timestamptz,
    resolution    text,
    check ((resolved_at is null) = (resolution is null)),
    check ((kind in ('invalid_row', 'rejected_row')) = (ledger_id is not null))
);
-- One open row per problem: repeats count its occurrences.
create unique index sync_errors_open on elven_sync.sync_errors (entity_id, kind, coalesce(ledger_id, ''))
    where resolved_at is null;

-- Registering an entity, by command or by INSERT, gives it a state and answers the rows that waited for it.
create function elven_sync.entity_registered() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp as
$$
begin
    insert into elven_sync.sync_state (entity_id) values (new.entity_id) on conflict do nothing;
    update elven_sync.sync_errors
       set resolved_at = pg_catalog.clock_timestamp(), resolution = 'the entity was registered'
     where entity_id = new.entity_id and kind = 'unregistered_entity' and resolved_at is null;
    return null;
end
$$;

create trigger entity_registered
    after insert or update of entity_id on elven_sync.entities
    for each row execute function elven_sync.entity_registered();

-- sync_batches.row_ids, readable: the ids of the ledger rows that a batch dealt with, in order.
-- The first byte says how they are stored: 1 = whole numbers, each as the difference to the one
-- before, zigzag, in groups of 7 bits with the lowest first (1 or 2 bytes a row where ids are close);
-- 2 = text, each behind its length in bytes in the same groups.
create function elven_sync.batch_row_ids(batch bigint) returns setof text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp as
$$
declare
    ids      bytea := (select b.row_ids from elven_sync.sync_batches b where b.batch_id = batch);
    size     integer := coalesce(length(ids), 0);
    at       integer := 1;
    previous numeric := 0;
    shift    numeric;
    number   numeric;
    byte     integer;
begin
    while at < size loop
        number := 0;
        shift := 1;
        loop
            byte := get_byte(ids, at);
            at := at + 1;
            number := number + (byte & 127) * shift;
            shift := shift * 128;
            exit when byte < 128;
        end loop;
        if get_byte(ids, 0) = 1 then
            previous := previous + case when number % 2 = 0 then div(number, 2) else -div(number + 1, 2) end;
            return next previous::bigint::text;
        else
            return next convert_from(substring(ids from at + 1 for number::integer), 'UTF8');
            at := at + number::integer;
        end if;
    end loop;
end
$$;

create view elven_sync.sync_health as
select e.entity_id,
       e.timezone,
       case
           when e.paused then 'paused'
           when coalesce(s.consecutive_failures, 0) > 0 then 'failing'
           when s.checked_at is null or s.pending_rows > 0 then 'behind'
           else 'ok'
       end as status,
       coalesce(s.pending_rows, 0) as pending_rows,
       s.oldest_pending_at,
       s.checked_at,
       s.last_success_at,
       s.last_error,
       (select count(*) from elven_sync.sync_errors x
         where x.entity_id = e.entity_id and x.resolved_at is null) as open_errors
  from elven_sync.entities e
  left join elven_sync.sync_state s using (entity_id);

comment on schema elven_sync is
    'What elven-sync knows and did: who is synced, how far, which requests, what failed. Start with the view sync_health.';

comment on table elven_sync.entities is
    'Who is synced and how. A row inserted here by SQL registers an entity as well as the command does.';
comment on column elven_sync.entities.entity_id is 'The entity, spelled as in the ledger.';
comment on column elven_sync.entities.timezone is
    'IANA time zone that the entity keeps its books in, e.g. Europe/Zurich. Changing it leaves what was uploaded before as it was.';
comment on column elven_sync.entities.credential is
    'Name of the credential in the configuration; an API key belongs to one entity at Elven. Never a key or a secret.';
comment on column elven_sync.entities.paused is 'True: left alone by runs; its rows stay pending.';
comment on column elven_sync.entities.created_at is 'When the entity was registered.';

comment on table elven_sync.sync_state is
    'One row per entity: watermark, progress and lease. Written by elven-sync alone; changing it by hand breaks the proof that nothing was skipped.';
comment on column elven_sync.sync_state.entity_id is 'The entity.';
comment on column elven_sync.sync_state.settled is
    'The watermark: ledger rows of every transaction in this snapshot have been dealt with. NULL: none yet.';
comment on column elven_sync.sync_state.pass_id is 'The pass that is open, if one is.';
comment on column elven_sync.sync_state.target is
    'The snapshot taken when the open pass began; settled becomes this when the pass is through.';
comment on column elven_sync.sync_state.cursor_xid is
    'change_xid of the last row dealt with in the open pass. NULL: none yet.';
comment on column elven_sync.sync_state.cursor_id is 'Id of the last row dealt with in the open pass, as text.';
comment on column elven_sync.sync_state.system_identifier is
    'The cluster whose transactions the watermark speaks of; in another cluster they mean nothing and the lane is refused.';
comment on column elven_sync.sync_state.ledger_table is
    'The ledger table or view that the watermark speaks of; with another one the lane is refused.';
comment on column elven_sync.sync_state.rows_uploaded is 'Records that the API accepted for this entity, ever.';
comment on column elven_sync.sync_state.pending_rows is 'Ledger rows that wait to be uploaded, as of checked_at.';
comment on column elven_sync.sync_state.oldest_pending_at is
    'The oldest captured_at among the pending rows, as of checked_at.';
comment on column elven_sync.sync_state.checked_at is 'When a run last looked at the ledger for this entity.';
comment on column elven_sync.sync_state.last_success_at is
    'When the entity was last brought up to date without a failure.';
comment on column elven_sync.sync_state.last_error is
    'Why the last attempt failed; NULL after a success. More in sync_errors.';
comment on column elven_sync.sync_state.consecutive_failures is 'Failed attempts since the last success.';
comment on column elven_sync.sync_state.not_before is
    'The API asked not to be called for this entity before this time.';
comment on column elven_sync.sync_state.lease_owner is 'The worker that works on the entity now. NULL: nobody.';
comment on column elven_sync.sync_state.lease_epoch is
    'Counts the leases given out; every write of a worker names the one it holds, so that a worker that lost its lease can move nothing.';
comment on column elven_sync.sync_state.lease_expires_at is
    'When the lease ends unless renewed, by the clock of the database.';

comment on table elven_sync.sync_runs is 'One row per run of the connector.';
comment on column elven_sync.sync_runs.run_id is 'Identifies the run.';
comment on column elven_sync.sync_runs.kind is 'incremental (new rows), backfill (a range again) or retry (errors again).';
comment on column elven_sync.sync_runs.status is
    'running; succeeded: all done; incomplete: a person should look; failed: could not work; interrupted: stopped by a signal or a crash.';
comment on column elven_sync.sync_runs.worker is 'The process that ran: host, process id and start time.';
comment on column elven_sync.sync_runs.version is 'Version of elven-sync.';
comment on column elven_sync.sync_runs.tzdata is 'Version of the IANA time zone rules that were applied.';
comment on column elven_sync.sync_runs.started_at is 'When the run began.';
comment on column elven_sync.sync_runs.finished_at is
    'When it ended, or was found to have ended without saying so. NULL: still running.';
comment on column elven_sync.sync_runs.alive_until is
    'A sign of life, renewed while the process runs. Past: it was killed, and the next run marks it interrupted.';
comment on column elven_sync.sync_runs.rows_read is 'Ledger rows dealt with.';
comment on column elven_sync.sync_runs.rows_uploaded is 'Records that the API accepted.';
comment on column elven_sync.sync_runs.rows_rejected is 'Rows set aside in sync_errors.';
comment on column elven_sync.sync_runs.rows_superseded is
    'Rows not sent because a newer row of the same account, currency and second was.';
comment on column elven_sync.sync_runs.requests is 'Uploads sent, repeated ones included.';
comment on column elven_sync.sync_runs.retries is 'Uploads among them that repeated an earlier one.';
comment on column elven_sync.sync_runs.bytes_sent is 'Bytes of request bodies sent, repeated ones included.';
comment on column elven_sync.sync_runs.error is 'What went wrong, in a sentence.';

comment on table elven_sync.sync_passes is
    'One row per pass of an entity: the rows of the transactions in target and not in settled. A pass survives crashes; later runs finish it.';
comment on column elven_sync.sync_passes.pass_id is 'Identifies the pass.';
comment on column elven_sync.sync_passes.entity_id is 'The entity.';
comment on column elven_sync.sync_passes.run_id is 'The run that began it.';
comment on column elven_sync.sync_passes.kind is 'pass, or rewind: the watermark was moved back on request.';
comment on column elven_sync.sync_passes.settled is
    'The watermark when the pass began: the target of the pass before. NULL: from the start of the ledger.';
comment on column elven_sync.sync_passes.target is 'The snapshot taken when the pass began; the watermark after it.';
comment on column elven_sync.sync_passes.started_at is 'When it began.';
comment on column elven_sync.sync_passes.finished_at is 'When it was through. NULL: open.';

comment on table elven_sync.sync_batches is
    'One row per batch, written before it is sent. The intervals of the batches of a pass touch; batch_row_ids(batch_id) lists its ledger rows.';
comment on column elven_sync.sync_batches.batch_id is 'Identifies the batch.';
comment on column elven_sync.sync_batches.parent_id is 'The batch that this one is a part of, when it was split.';
comment on column elven_sync.sync_batches.run_id is 'The run that sent it last.';
comment on column elven_sync.sync_batches.pass_id is 'The pass it belongs to. NULL: a backfill or a retry.';
comment on column elven_sync.sync_batches.backfill_id is 'The backfill it belongs to.';
comment on column elven_sync.sync_batches.entity_id is 'The entity.';
comment on column elven_sync.sync_batches.before_xid is
    'Where its interval begins: change_xid of the row before its first. NULL: the start of the pass.';
comment on column elven_sync.sync_batches.before_id is 'Where its interval begins: id of the row before its first.';
comment on column elven_sync.sync_batches.last_xid is 'Where its interval ends: change_xid of its last row.';
comment on column elven_sync.sync_batches.last_id is 'Where its interval ends: id of its last row.';
comment on column elven_sync.sync_batches.row_ids is
    'Ids of the ledger rows it dealt with, packed; select elven_sync.batch_row_ids(batch_id) reads them.';
comment on column elven_sync.sync_batches.rows_read is 'Ledger rows in its interval: sent, set aside or superseded.';
comment on column elven_sync.sync_batches.row_count is 'Records in the body. 0: nothing was left to send and no request was made.';
comment on column elven_sync.sync_batches.rows_rejected is 'Rows of the interval set aside in sync_errors.';
comment on column elven_sync.sync_batches.rows_superseded is
    'Rows of the interval not sent because a newer row of the same account, currency and second was.';
comment on column elven_sync.sync_batches.body_bytes is 'Size of the request body.';
comment on column elven_sync.sync_batches.body_sha256 is 'SHA-256 of the request body, in hex.';
comment on column elven_sync.sync_batches.status is
    'sending; accepted; rejected: refused as a whole; split: its parts were sent instead; unknown: no answer tells whether it arrived.';
comment on column elven_sync.sync_batches.attempts is 'How often it was sent, or was about to be.';
comment on column elven_sync.sync_batches.ambiguous is
    'True: the outcome of an attempt was unknown and the same bytes were sent again, so Elven may hold it twice.';
comment on column elven_sync.sync_batches.http_status is 'Status of the last answer. NULL: none came.';
comment on column elven_sync.sync_batches.duration_ms is 'From sending to the last answer, in milliseconds.';
comment on column elven_sync.sync_batches.error is 'What was wrong with the last answer.';
comment on column elven_sync.sync_batches.created_at is 'When it was recorded, just before it was sent first.';
comment on column elven_sync.sync_batches.finished_at is 'When its answer was recorded.';

comment on table elven_sync.sync_errors is
    'One row per problem that needs a person, or that was set aside; repeats of one problem count as occurrences.';
comment on column elven_sync.sync_errors.error_id is 'Identifies the error.';
comment on column elven_sync.sync_errors.run_id is 'The run that saw it last.';
comment on column elven_sync.sync_errors.batch_id is 'The batch it came up in last, if any.';
comment on column elven_sync.sync_errors.entity_id is 'The entity.';
comment on column elven_sync.sync_errors.ledger_id is 'The ledger row, as text. NULL: it concerns no single row.';
comment on column elven_sync.sync_errors.kind is
    'invalid_row, rejected_row: a row was set aside. auth, config, rejected_batch, throttled, unavailable, timezone, watermark: the entity stopped where it is. unregistered_entity: rows wait for an entity to be registered.';
comment on column elven_sync.sync_errors.http_status is 'Status of the answer, if one came.';
comment on column elven_sync.sync_errors.api_code is 'Code in the answer of the API, if any.';
comment on column elven_sync.sync_errors.message is 'What happened and what to do about it.';
comment on column elven_sync.sync_errors.record is 'The row as it would have been sent.';
comment on column elven_sync.sync_errors.occurrences is 'How often it was seen.';
comment on column elven_sync.sync_errors.first_seen_at is 'When it was seen first.';
comment on column elven_sync.sync_errors.last_seen_at is 'When it was seen last.';
comment on column elven_sync.sync_errors.resolved_at is 'When it was resolved. NULL: open.';
comment on column elven_sync.sync_errors.resolution is 'What resolved it.';

comment on table elven_sync.sync_backfills is
    'One row per backfill: a range of captured_at that is uploaded again on request.';
comment on column elven_sync.sync_backfills.backfill_id is 'Identifies the backfill.';
comment on column elven_sync.sync_backfills.range_from is 'First instant or day of the range, as it was asked for.';
comment on column elven_sync.sync_backfills.range_to is 'End of the range, itself not included, as it was asked for.';
comment on column elven_sync.sync_backfills.entities is 'Only these entities. NULL: all.';
comment on column elven_sync.sync_backfills.accounts is 'Only these accounts. NULL: all.';
comment on column elven_sync.sync_backfills.currencies is 'Only these currencies. NULL: all.';
comment on column elven_sync.sync_backfills.status is 'As in sync_runs, and cancelled.';
comment on column elven_sync.sync_backfills.cursor is 'How far it is: per entity, captured_at and id of the last row dealt with.';
comment on column elven_sync.sync_backfills.rows_read is 'Ledger rows dealt with.';
comment on column elven_sync.sync_backfills.rows_uploaded is 'Records that the API accepted.';
comment on column elven_sync.sync_backfills.rows_rejected is 'Rows set aside in sync_errors.';
comment on column elven_sync.sync_backfills.rows_superseded is
    'Rows not sent because a newer row of the same account, currency and second was.';
comment on column elven_sync.sync_backfills.started_at is 'When it was asked for.';
comment on column elven_sync.sync_backfills.finished_at is 'When it ended. NULL: unfinished.';
comment on column elven_sync.sync_backfills.error is 'What went wrong, in a sentence.';

comment on view elven_sync.sync_health is
    'One row per entity, for dashboards and alerts. pending_rows and oldest_pending_at are as of checked_at.';
comment on column elven_sync.sync_health.entity_id is 'The entity.';
comment on column elven_sync.sync_health.timezone is 'Its time zone.';
comment on column elven_sync.sync_health.status is
    'paused; failing: the last attempt failed; behind: rows wait; ok.';
comment on column elven_sync.sync_health.pending_rows is 'Ledger rows that wait to be uploaded, as of checked_at.';
comment on column elven_sync.sync_health.oldest_pending_at is
    'The oldest captured_at among them, as of checked_at.';
comment on column elven_sync.sync_health.checked_at is 'When a run last looked. NULL: never yet. Alert when this grows old.';
comment on column elven_sync.sync_health.last_success_at is 'When the entity was last brought up to date.';
comment on column elven_sync.sync_health.last_error is 'Why the last attempt failed; NULL after a success.';
comment on column elven_sync.sync_health.open_errors is 'Unresolved rows in sync_errors.';
comment on function elven_sync.batch_row_ids(bigint) is
    'The ids of the ledger rows that a batch dealt with, in order.';
comment on function elven_sync.entity_registered() is
    'Gives a registered entity its state and resolves the errors that waited for its registration.';
