-- Watermarks that can be moved, checked and read elsewhere: rewind, rebind, --from-now, standbys.

-- A row of sync_passes is now any change of a watermark, from settled to target.
alter table elven_sync.sync_passes
    drop constraint sync_passes_kind_check,
    add constraint sync_passes_kind_check check (kind in ('pass', 'rewind', 'rebind', 'from_now'));

-- The seal of a row: the transaction that wrote it last. PostgreSQL keeps the same number in xmin, as
-- part of the stored row; a copy of the data files (pg_upgrade) has both, a dump only the first. Rows
-- that were there before have none.
alter table elven_sync.sync_passes add column written_by xid8;
alter table elven_sync.sync_passes alter column written_by set default pg_current_xact_id();

-- Raises an error unless the snapshot of the calling statement has the row of this pass. STABLE, so
-- that it looks with that very snapshot.
create function elven_sync.require_pass(pass bigint, passes_target text) returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp as
$$
begin
    if exists (select from elven_sync.sync_passes p
                where p.pass_id = pass and p.target::text = passes_target) then
        return true;
    end if;
    raise exception using
        errcode = 'EL001',
        message = pg_catalog.format('pass %s has not been replayed on this server yet', pass);
end
$$;

comment on table elven_sync.sync_passes is
    'One row per change of an entity''s watermark, from settled to target: a pass, which later runs finish after a crash; or a rewind, a rebind, a start from now.';
comment on column elven_sync.sync_passes.kind is
    'pass; rewind: moved back by a person; rebind: accepted after pg_upgrade; from_now: what was there at registration is skipped.';
comment on column elven_sync.sync_passes.settled is 'The watermark before. NULL: none yet.';
comment on column elven_sync.sync_passes.target is
    'The watermark after: the snapshot taken when the pass began. NULL: rewound to the start.';
comment on column elven_sync.sync_passes.written_by is
    'The transaction that wrote this row last. Equal to its xmin in the cluster where it was written, and after pg_upgrade; not in a restored dump.';
comment on function elven_sync.require_pass(bigint, text) is
    'Raises EL001 unless the calling statement sees the pass: the proof that a standby has replayed all that the pass is about.';
comment on column elven_sync.sync_passes.run_id is 'The run that began it. NULL: a person moved the watermark.';
comment on column elven_sync.sync_passes.finished_at is 'When it was through. NULL: open, or given up by a rewind.';
comment on column elven_sync.sync_state.lease_epoch is
    'Counts the leases given out; every write of a worker names the one it holds, and itself, so that a worker that lost its lease can move nothing.';
