-- What the soak test sees of the database: every version of a row, every lease, every request that was
-- announced, and whatever was written that may not be. Kept in the transactions that do it, so that it is
-- committed, lost and rolled back with them. A process names itself in soak.process, as WORKER-NUMBER.

create schema soak;

-- Balances are drawn from here: no two versions have the same.
create sequence soak.version;

create table soak.versions (
    id bigint, entity_id text, entity_account_id text, currency text, captured_at timestamptz, balance numeric,
    change_xid xid8);

create function soak.keep_versions() returns trigger language plpgsql as $$
begin
    insert into soak.versions
    select id, entity_id, entity_account_id, currency, captured_at, balance, change_xid from written;
    return null;
end $$;
create trigger keep_inserted after insert on ledger.balance_snapshots
    referencing new table as written for each statement execute function soak.keep_versions();
create trigger keep_updated after update on ledger.balance_snapshots
    referencing new table as written for each statement execute function soak.keep_versions();

create table soak.complaints (at timestamptz default clock_timestamp(), process text, what text);

create table soak.takes (
    entity_id text, epoch bigint, process text, took_over boolean, at timestamptz default clock_timestamp());
create index on soak.takes (entity_id, epoch);

create table soak.sends (
    batch_id bigint, attempt integer, body_sha256 text, process text, written_by xid8,
    at timestamptz default clock_timestamp());
create index on soak.sends (batch_id);

create function soak.process() returns text language sql stable as $$
    select coalesce(current_setting('soak.process', true), 'nobody')
$$;

create function soak.complain(what text, of text, old_row text, new_row text) returns void language sql as $$
    insert into soak.complaints (process, what)
    values (soak.process(), format('%s: %s; before: %s; now: %s', of, what, old_row, new_row))
$$;

-- Whether all that was in one snapshot is in the other.
create function soak.is_within(one pg_snapshot, other pg_snapshot) returns boolean language sql immutable as $$
    select one is null or (other is not null and pg_snapshot_xmax(one) <= pg_snapshot_xmax(other)
                           and not exists (select from pg_snapshot_xip(other) x where pg_visible_in_snapshot(x, one)))
$$;

-- Whether the process that writes was given a lease.
create function soak.was_given(entity text, lease bigint) returns boolean language sql volatile as $$
    select exists (select from soak.takes t
                    where t.entity_id = entity and t.epoch = lease and t.process = soak.process())
$$;

-- Whether it was given the lease as it stands.
create function soak.has_lease(entity text) returns boolean language sql volatile as $$
    select exists (select from elven_sync.sync_state s
                    where s.entity_id = entity and s.lease_owner is not null
                      and soak.was_given(s.entity_id, s.lease_epoch))
$$;

create function soak.watch_state() returns trigger language plpgsql as $$
declare
    wrong text[] := '{}';
begin
    if tg_op = 'DELETE' then
        perform soak.complain('a state was deleted', old.entity_id, old::text, '');
        return null;
    end if;
    if new.lease_epoch > old.lease_epoch then
        insert into soak.takes values (new.entity_id, new.lease_epoch, soak.process(), old.lease_owner is not null);
        if old.lease_expires_at + interval '300 ms' > clock_timestamp() then
            wrong := wrong || 'taken before the lease had run out'::text;
        end if;
    elsif new.lease_epoch < old.lease_epoch then
        wrong := wrong || 'the epoch went back'::text;
    end if;
    if (new.settled::text, new.pass_id, new.target::text, new.cursor_xid, new.cursor_id, new.rows_uploaded)
        is distinct from
       (old.settled::text, old.pass_id, old.target::text, old.cursor_xid, old.cursor_id, old.rows_uploaded) then
        -- As it stood: the last pass is closed together with giving it back; but for a pass that is opened together with
        -- taking it.
        if new.lease_epoch = old.lease_epoch + 1 and new.lease_owner is not null and old.pass_id is null then
            if (new.settled::text, new.cursor_xid, new.cursor_id, new.rows_uploaded)
                is distinct from (old.settled::text, old.cursor_xid, old.cursor_id, old.rows_uploaded) then
                wrong := wrong || 'moved while the lease was taken'::text;
            end if;
        elsif old.lease_owner is null or new.lease_epoch <> old.lease_epoch
           or not soak.was_given(new.entity_id, old.lease_epoch) then
            wrong := wrong || 'moved without the lease'::text;
        end if;
        if not soak.is_within(old.settled, new.settled) then
            wrong := wrong || 'the watermark went back'::text;
        end if;
        if new.rows_uploaded < old.rows_uploaded then
            wrong := wrong || 'the count went back'::text;
        end if;
        if new.pass_id = old.pass_id then
            if new.target::text <> old.target::text or new.settled::text is distinct from old.settled::text then
                wrong := wrong || 'the pass became another'::text;
            end if;
            if old.cursor_xid is not null
               and (new.cursor_xid, new.cursor_id::bigint) >= (old.cursor_xid, old.cursor_id::bigint) is not true then
                wrong := wrong || 'the cursor went back'::text;
            end if;
        elsif new.settled::text is distinct from coalesce(old.target, old.settled)::text
              or (old.pass_id is not null and new.pass_id is not null) then
            wrong := wrong || 'the passes do not chain'::text;
        end if;
    end if;
    if wrong <> '{}' then
        perform soak.complain(array_to_string(wrong, ', '), new.entity_id, old::text, new::text);
    end if;
    return null;
end $$;
create trigger watch_state after update or delete on elven_sync.sync_state
    for each row execute function soak.watch_state();

create function soak.watch_passes() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' or old.finished_at is not null
       or (new.entity_id, new.settled::text, new.target::text)
          is distinct from (old.entity_id, old.settled::text, old.target::text) then
        perform soak.complain('a pass was altered', old.entity_id, old::text, new::text);
    end if;
    return null;
end $$;
create trigger watch_passes after update or delete on elven_sync.sync_passes
    for each row execute function soak.watch_passes();

-- One that was announced and then not sent is withdrawn: that was no attempt.
create function soak.watch_batches() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' then
        perform soak.complain('a batch was deleted', old.entity_id, (old.batch_id, old.status)::text, '');
        return null;
    elsif tg_op = 'UPDATE' then
        -- A refusal that was recorded before is recorded with the rows that are set aside, by two updates.
        if old.status in ('accepted', 'split')
           or (old.status = 'rejected' and old.row_count = 0
               and (new.status, new.row_count, new.rows_rejected, new.rejected_ids, new.body_sha256)
                   is distinct from (old.status, old.row_count, old.rows_rejected, old.rejected_ids, old.body_sha256))
           or new.attempts < old.attempts
                  - (old.status = 'sending' and new.status in ('rejected', 'unknown', 'split') and new.http_status is null)::integer
           or (old.ambiguous and not new.ambiguous) then
            perform soak.complain('a batch that was done was written again, or what is known of it went back',
                                  old.entity_id, old::text, new::text);
        end if;
        if new.attempts = old.attempts then
            -- Rows may have changed since the last attempt, and then the body is another.
            update soak.sends set body_sha256 = new.body_sha256
             where batch_id = new.batch_id and attempt = new.attempts and written_by = pg_current_xact_id();
            if new.status = 'unknown' then
                return null; -- says nothing that is not so
            end if;
        end if;
    end if;
    if not soak.has_lease(new.entity_id) then
        perform soak.complain('a batch was written without the lease', new.entity_id, '', new::text);
    end if;
    if new.attempts > 0 and (tg_op = 'INSERT' or new.attempts > old.attempts) then
        insert into soak.sends values
            (new.batch_id, new.attempts, new.body_sha256, soak.process(), pg_current_xact_id());
    end if;
    return null;
end $$;
create trigger watch_batches after insert or update or delete on elven_sync.sync_batches
    for each row execute function soak.watch_batches();

-- Holds a worker at a place that is named: `announcing`, while it commits that a batch is about to be sent, so
-- that one which is stopped there finds, when it goes on, that it may send; or `settling`, before it commits
-- what was answered, with all locks that it takes for that.
create table soak.gates (worker text, place text);
create function soak.wait_at_gate() returns trigger language plpgsql as $$
begin
    if exists (select from soak.gates where (worker, place) = (split_part(soak.process(), '-', 1), tg_argv[0])) then
        perform pg_advisory_lock_shared(1);
        perform pg_advisory_unlock_shared(1);
    end if;
    return null;
end $$;
create constraint trigger wait_at_gate after insert or update of attempts on elven_sync.sync_batches
    deferrable initially deferred for each row execute function soak.wait_at_gate('announcing');
create trigger wait_at_gate after update of requests on elven_sync.sync_runs
    for each row execute function soak.wait_at_gate('settling');
