-- Backfills: ranges of captured_at that are uploaded again, in slices of the leases that runs use.

-- Who has the lease, and whether a run waits for it: a backfill makes room.
alter table elven_sync.sync_state
    add column lease_kind text check (lease_kind in ('backfill')),
    add column lease_wanted_at timestamptz,
    add constraint sync_state_lease_kind_check1 check (lease_kind is null or lease_owner is not null);

-- What a backfill is as a whole. How far it is stands with its lanes.
alter table elven_sync.sync_backfills
    drop column cursor,
    add column rows_total bigint not null default 0,
    add column run_id bigint references elven_sync.sync_runs;
create index sync_backfills_unfinished on elven_sync.sync_backfills (backfill_id)
    where status not in ('succeeded', 'cancelled');

create table elven_sync.sync_backfill_lanes (
    backfill_id     bigint not null references elven_sync.sync_backfills,
    entity_id       text not null,
    -- The range, resolved once: a later change of the entity's time zone does not move it.
    range_from      timestamptz not null,
    range_to        timestamptz not null,
    cursor_at       timestamptz,
    cursor_id       text,
    rows_total      bigint not null default 0,
    rows_read       bigint not null default 0,
    rows_uploaded   bigint not null default 0,
    rows_rejected   bigint not null default 0,
    rows_superseded bigint not null default 0,
    finished_at     timestamptz,
    primary key (backfill_id, entity_id),
    check (range_from < range_to),
    check ((cursor_at is null) = (cursor_id is null))
);

-- A batch lies in one of two orders: (change_xid, id) in a pass, (captured_at, id) in a backfill.
alter table elven_sync.sync_batches
    add column before_at timestamptz,
    add column last_at timestamptz,
    alter column last_xid drop not null,
    add constraint sync_batches_order_check check (
        (last_xid is null) <> (last_at is null)
        and (last_at is not null) = (backfill_id is not null)
        and (before_at is null or last_at is not null)
        and (before_xid is null or last_xid is not null)
        and (pass_id is null or backfill_id is null));
create index sync_batches_backfill on elven_sync.sync_batches (backfill_id, entity_id, batch_id)
    where backfill_id is not null;

comment on column elven_sync.sync_state.lease_kind is
    'backfill: a backfill has the lease, for a second or two at a time. NULL: a run, a retry, or nobody.';
comment on column elven_sync.sync_state.lease_wanted_at is
    'When a run last found the lease with a backfill and wanted it: the backfill then makes room. NULL: nobody waits.';

comment on column elven_sync.sync_batches.before_at is
    'In a backfill: captured_at of the row behind which its interval begins. NULL: at the start of the range.';
comment on column elven_sync.sync_batches.last_at is
    'In a backfill: where its interval ends, captured_at of its last row.';
comment on column elven_sync.sync_batches.before_id is 'Id of the row behind which its interval begins.';
comment on column elven_sync.sync_batches.last_xid is
    'Where its interval ends: change_xid of its last row. NULL in a backfill.';
comment on column elven_sync.sync_batches.backfill_id is
    'The backfill it belongs to; such batches have no pass, and lie in the order (captured_at, id).';
comment on column elven_sync.sync_batches.rows_superseded is
    'Rows of the interval not sent because a newer row of the same account, currency and second was; in a backfill also one outside of the batch.';

comment on table elven_sync.sync_backfills is
    'One row per backfill: a range of captured_at that is uploaded again on request. How far it is, per entity: sync_backfill_lanes.';
comment on column elven_sync.sync_backfills.backfill_id is 'Identifies the backfill.';
comment on column elven_sync.sync_backfills.status is
    'As in sync_runs: running; succeeded; incomplete: rows were set aside or an entity failed; failed; interrupted; and cancelled by a person.';
comment on column elven_sync.sync_backfills.rows_total is
    'Ledger rows in the range when it was asked for; rows_read grows up to about that.';
comment on column elven_sync.sync_backfills.run_id is 'The run that works on it, or did so last.';

comment on table elven_sync.sync_backfill_lanes is
    'One row per entity of a backfill: its range in instants, and how far it is.';
comment on column elven_sync.sync_backfill_lanes.backfill_id is 'The backfill.';
comment on column elven_sync.sync_backfill_lanes.entity_id is 'The entity.';
comment on column elven_sync.sync_backfill_lanes.range_from is
    'First instant of the range: a date is the start of that day in the time zone that the entity had then.';
comment on column elven_sync.sync_backfill_lanes.range_to is 'End of the range, itself not included.';
comment on column elven_sync.sync_backfill_lanes.cursor_at is
    'captured_at of the last row dealt with: all up to there is done. NULL: none yet.';
comment on column elven_sync.sync_backfill_lanes.cursor_id is 'Id of the last row dealt with, as text.';
comment on column elven_sync.sync_backfill_lanes.rows_total is
    'Ledger rows in the range when it was asked for.';
comment on column elven_sync.sync_backfill_lanes.rows_read is 'Ledger rows dealt with.';
comment on column elven_sync.sync_backfill_lanes.rows_uploaded is 'Records that the API accepted.';
comment on column elven_sync.sync_backfill_lanes.rows_rejected is 'Rows set aside in sync_errors.';
comment on column elven_sync.sync_backfill_lanes.rows_superseded is
    'Rows not sent because a newer row of the same account, currency and second was, or is to be.';
comment on column elven_sync.sync_backfill_lanes.finished_at is
    'When all of the range was dealt with. NULL: it can be gone on with.';
