-- The alerts OpenErrors and NearRejectionBound began when the oldest of the open errors was first seen, so their since
-- moved each time that the oldest error was resolved. Now the time at which the condition began is recorded.
--
-- The alert GuardBroken ended as soon as the trigger was repaired, although no run reads the rows that were written
-- without it. Now the time without the trigger is recorded, and the alert ends when verify has found these rows stamped.

-- Refuses triggers on other tables. A role that may execute a trigger function could make a trigger of it on a table of
-- its own, whose types have casts that run its functions with the rights of the owner.
create function elven_sync.refuse_other_tables(table_id oid, variadic tables regclass[]) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as
$$
begin
    if table_id <> all (tables::oid[]) then
        raise exception 'this function is only for triggers of %', array_to_string(tables, ', ');
    end if;
end
$$;

-- Records since when an entity has rows that are set aside, and since when so many were refused that the entity is near
-- max_rejections. One call per statement, whoever makes it. It has the rights of its owner, so that a role that may
-- only resolve errors cannot write to sync_facts.
create function elven_sync.note_set_aside() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as
$$
declare
    near bigint;
    changed record;
    is_open boolean;
    is_begun boolean;
    rejected bigint;
begin
    perform elven_sync.refuse_other_tables(tg_relid, 'elven_sync.sync_errors');
    -- Most statements change no row, or none of a ledger row: a run resolves the errors of each lane that is up to date.
    if not exists (select from changed_rows where ledger_id is not null or ledger_ids is not null) then
        return null;
    end if;
    -- Errors are recorded whatever happened to the facts.
    if pg_catalog.to_regclass('elven_sync.sync_facts') is null then
        return null;
    end if;
    near := ceil(0.8 * coalesce((select (f.value ->> 'max_rejections')::bigint from elven_sync.sync_facts f
                                  where f.name = 'limits' and f.entity_id is null), 100));
    for changed in
        select entity_id, min(error_id) as first_id, min(first_seen_at) as seen_at,
               count(*) filter (where kind = 'rejected_row' and resolved_at is null) as rejected
          from changed_rows where ledger_id is not null or ledger_ids is not null
         group by entity_id order by entity_id
    loop
        is_open := exists (select from elven_sync.sync_errors x
                            where x.entity_id = changed.entity_id and x.resolved_at is null
                              and (x.ledger_id is not null or x.ledger_ids is not null));
        is_begun := is_open and tg_op = 'INSERT'
            and not exists (select from elven_sync.sync_errors x
                             where x.entity_id = changed.entity_id and x.resolved_at is null
                               and (x.ledger_id is not null or x.ledger_ids is not null)
                               and x.error_id < changed.first_id);
        perform elven_sync.note_begun('rows_set_aside', changed.entity_id, is_open,
                                      case when is_begun then changed.seen_at end);
        rejected := (select count(*) from (select from elven_sync.sync_errors x
                                            where x.entity_id = changed.entity_id and x.resolved_at is null
                                              and x.kind = 'rejected_row'
                                            limit near + changed.rejected) counted);
        is_begun := tg_op = 'INSERT' and rejected >= near and rejected - changed.rejected < near;
        perform elven_sync.note_begun('near_rejection_bound', changed.entity_id, rejected >= near,
                                      case when is_begun then clock_timestamp() end);
    end loop;
    return null;
end
$$;

-- Records that a condition of an entity holds, or that it has ended. begun_at: it began now, whatever was recorded.
create function elven_sync.note_begun(fact text, entity text, holds boolean, begun_at timestamptz) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as
$$
begin
    if not holds then
        delete from elven_sync.sync_facts f where f.name = fact and f.entity_id = entity;
    elsif begun_at is not null then
        insert into elven_sync.sync_facts as f (name, entity_id, since, value)
        values (fact, entity, begun_at, '{}')
        on conflict (name, coalesce(entity_id, '')) do update
           set since = excluded.since, checked_at = excluded.checked_at;
    elsif not exists (select from elven_sync.sync_facts f where f.name = fact and f.entity_id = entity) then
        -- The triggers did not see the beginning: it is what the view has shown until now.
        insert into elven_sync.sync_facts (name, entity_id, since, value)
        select fact, entity, min(x.first_seen_at), '{}' from elven_sync.sync_errors x
         where x.entity_id = entity and x.resolved_at is null
           and case fact when 'near_rejection_bound' then x.kind = 'rejected_row'
                         else x.ledger_id is not null or x.ledger_ids is not null end
        having count(*) > 0
        on conflict (name, coalesce(entity_id, '')) do nothing;
    end if;
end
$$;

-- What a run has observed of the trigger, and the time in which the trigger was broken, by transactions: no transaction
-- from gap_from on had begun when a run last saw it intact, none from gap_seen on when a run first saw it broken, and none
-- from gap_until on when a run saw it intact again. Nothing is known where no run saw it intact, or where the observation
-- before is of another ledger.
create function elven_sync.with_guard_gap(before jsonb, now jsonb, now_since timestamptz)
    returns jsonb language sql stable
    set search_path = pg_catalog, pg_temp
as
$$
    select case when w.gap_from is null then now else
           now || jsonb_strip_nulls(jsonb_build_object(
               'gap_from', w.gap_from,
               'gap_seen', coalesce(before -> 'gap_seen', now -> 'next_xid'),
               'gap_until', case when elven_sync.is_bad(now) then null
                                 when elven_sync.is_bad(before) then now -> 'next_xid'
                                 else before -> 'gap_until' end,
               'gap_since', coalesce(before -> 'gap_since', to_jsonb(now_since)))) end
      from (select case when before -> 'ledger' <> now -> 'ledger' then null
                        else coalesce(before -> 'gap_from',
                                      case when elven_sync.is_bad(now) and not elven_sync.is_bad(before)
                                           then before -> 'next_xid' end) end as gap_from) w
$$;

-- The value of a fact after another observation. verify: it stays known whether a sample was enough to find a problem.
create function elven_sync.merged_fact(name text, before jsonb, before_since timestamptz, now jsonb,
                                       now_since timestamptz)
    returns jsonb language sql stable
    set search_path = pg_catalog, pg_temp
as
$$
    select case name
               when 'ledger_files' then now || jsonb_build_object('before', before - 'before')
               when 'guard' then elven_sync.with_guard_gap(before, now, now_since)
               when 'verify' then case when elven_sync.is_bad(before) and elven_sync.is_bad(now)
                                       then now || jsonb_build_object('deep', before -> 'deep')
                                       else now end
               else now end
$$;

-- Whether verify of a sample leaves a finding of all bodies (deep) as it is: it may not have looked at that body.
create function elven_sync.outlasts(name text, before jsonb, now jsonb) returns boolean
    language sql immutable
    set search_path = pg_catalog, pg_temp
as
$$
    select name = 'verify' and elven_sync.is_bad(before) and not elven_sync.is_bad(now)
       and coalesce(before -> 'deep' = 'true'::jsonb, false) and not coalesce(now -> 'deep' = 'true'::jsonb, false)
$$;

-- A time that is not in the future. A clock that was ahead, and was put back, has left times that say nothing. (A
-- transaction may see what others have written after its own beginning.)
create function elven_sync.past(instant timestamptz) returns timestamptz
    language sql stable parallel safe
as
$$
    select case when instant <= now() + interval '5 minutes' then instant end
$$;

create trigger set_aside_added after insert on elven_sync.sync_errors
    referencing new table as changed_rows
    for each statement execute function elven_sync.note_set_aside();
create trigger set_aside_changed after update on elven_sync.sync_errors
    referencing new table as changed_rows
    for each statement execute function elven_sync.note_set_aside();
create trigger set_aside_removed after delete on elven_sync.sync_errors
    referencing old table as changed_rows
    for each statement execute function elven_sync.note_set_aside();

insert into elven_sync.sync_facts (name, entity_id, since, value)
select 'rows_set_aside', x.entity_id, min(x.first_seen_at), '{}'
  from elven_sync.sync_errors x
 where x.resolved_at is null and (x.ledger_id is not null or x.ledger_ids is not null)
 group by x.entity_id;

-- A paused entity is not polled, so it is not stale as soon as it is resumed.
alter table elven_sync.entities add column resumed_at timestamptz;

create function elven_sync.note_resumed() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as
$$
begin
    new.resumed_at := clock_timestamp();
    return new;
end
$$;

create trigger note_resumed before update on elven_sync.entities
    for each row when (old.paused and not new.paused) execute function elven_sync.note_resumed();

create or replace view elven_sync.sync_health as
select e.entity_id,
       e.timezone,
       case
           when e.paused then 'paused'
           when coalesce(s.consecutive_failures, 0) > 0 then 'failing'
           when greatest(elven_sync.past(coalesce(s.pending_since, s.checked_at)), e.created_at, e.resumed_at)
                < now() - e.freshness then 'stale'
           when x.rows_set_aside > 0 then 'incomplete'
           when s.checked_at is null or s.pending_rows > 0 or s.pending_since is not null then 'behind'
           else 'ok'
       end as status,
       coalesce(s.pending_rows, 0) as pending_rows,
       s.oldest_pending_at,
       s.checked_at,
       s.last_success_at,
       s.last_error,
       coalesce(x.open_errors, 0) as open_errors,
       e.freshness,
       s.pending_since
  from elven_sync.entities e
  left join elven_sync.sync_state s using (entity_id)
  left join (select entity_id, count(*) as open_errors, count(coalesce(ledger_id, name)) as rows_set_aside
               from elven_sync.sync_errors where resolved_at is null group by entity_id) x using (entity_id);

-- The open errors are read once, and grouped before anything else, however many there are. No branch calls a function
-- that looks at the server: a role that may only read the tables sees the same alerts, and so does a copy of the
-- database. What changes with time is compared with now(); what a run saw, with the time at which it saw it.
create or replace view elven_sync.alerts as
with entity as (
    select e.entity_id, e.paused, e.freshness, e.created_at, e.resumed_at, s.checked_at, s.pending_since, s.last_success_at,
           s.last_error, s.not_before,
           coalesce(s.consecutive_failures, 0) > 0 as is_failing,
           greatest(elven_sync.past(coalesce(s.pending_since, s.checked_at)), e.created_at, e.resumed_at)
               as fresh_at
      from elven_sync.entities e left join elven_sync.sync_state s using (entity_id)),
error_kind as (
    select entity_id, kind, ledger_id is not null or ledger_ids is not null as is_of_rows,
           count(*) as errors, sum(coalesce(rows, 1)) as rows, min(first_seen_at) as since
      from elven_sync.sync_errors
     where resolved_at is null and kind <> 'unregistered_entity'
     group by 1, 2, 3),
lane_error as (
    select entity_id,
           min(since) filter (where kind <> 'throttled') as failing_since,
           bool_or(kind not in ('throttled', 'unavailable')) as needs_a_person,
           min(since) filter (where kind = 'throttled') as throttled_since
      from error_kind where not is_of_rows group by entity_id),
fact as (
    select name, entity_id, since, value, checked_at from elven_sync.sync_facts
     where name in ('clock', 'oldest_writer', 'guard', 'tzdata', 'limits', 'verify', 'config', 'webhook')),
begun as (
    select name, entity_id, since from elven_sync.sync_facts
     where name in ('rows_set_aside', 'near_rejection_bound'))
select 'NoPoll' as name, 'critical' as severity, null::text as entity_id, p.since,
       format('no run has checked the ledger for new rows since %s%s', elven_sync.utc(p.since),
              '; the last run ended with: '
              || (select coalesce(r.error, r.status) from elven_sync.sync_runs r
                   where r.kind = 'incremental' and r.status <> 'running' order by r.run_id desc limit 1)) as message,
       'elven-sync run' as hint
  from (select coalesce(greatest(max(elven_sync.past(e.checked_at)), max(elven_sync.past(e.pending_since)),
                                 (select max(r.polled_at) from elven_sync.sync_runs r
                                   where r.polled_at <= now() + interval '5 minutes'), max(e.resumed_at)),
                        min(e.created_at)) as since,
               min(e.freshness) as freshness
          from entity e where not e.paused having count(*) > 0) p
 where p.since < now() - p.freshness
   and not exists (select from elven_sync.sync_runs r
                    where r.status = 'running' and r.kind = 'incremental' and r.alive_until > now())
union all
select 'Stale', 'critical', e.entity_id, e.fresh_at,
       case when e.pending_since is null
            then format('no run has checked the entity for new rows since %s', elven_sync.utc(e.fresh_at))
            else format('rows are pending since %s', elven_sync.utc(e.fresh_at)) end
       || format('; the freshness of the entity is %s', e.freshness),
       'elven-sync run' || coalesce(' --entity ' || elven_sync.quoted_entity(e.entity_id), '')
  from entity e
 where not e.paused and e.fresh_at < now() - e.freshness
union all
select 'Paused', 'warning', e.entity_id, p.since,
       format('the entity is paused since %s, and its rows stay pending', elven_sync.utc(p.since)),
       coalesce('elven-sync entity resume ' || elven_sync.quoted_entity(e.entity_id), 'elven-sync entity list')
  from entity e
 cross join lateral (
       select coalesce((select a.at from elven_sync.sync_actions a
                         where a.entity_id = e.entity_id
                           and (a.action = 'entity_pause'
                                or a.action = 'entity_add' and a.details -> 'paused' = 'true'::jsonb
                                or a.action = 'entity_set' and a.details -> 'paused' -> 'now' = 'true'::jsonb)
                         order by a.action_id desc limit 1), e.created_at) as since) p
 where e.paused and p.since < now() - interval '7 days'
union all
select 'Failing', case when l.needs_a_person or l.failing_since is null then 'critical' else 'warning' end,
       e.entity_id, coalesce(l.failing_since, e.last_success_at, e.created_at),
       format('the last attempt failed: %s', coalesce(split_part(e.last_error, '; hint: ', 1), '(no message)')),
       'elven-sync errors list' || coalesce(' --entity ' || elven_sync.quoted_entity(e.entity_id), '')
  from entity e left join lane_error l using (entity_id)
 where not e.paused and e.is_failing and (l.failing_since is not null or l.throttled_since is null)
union all
select 'Throttled', 'warning', e.entity_id, l.throttled_since,
       'rate limited by the API'
       || case when e.not_before > now() then format('; nothing is sent before %s', elven_sync.utc(e.not_before))
               else '' end,
       'elven-sync errors list' || coalesce(' --entity ' || elven_sync.quoted_entity(e.entity_id), '')
  from entity e join lane_error l using (entity_id)
 where not e.paused and e.is_failing and l.throttled_since is not null
union all
select 'OpenErrors', 'warning', x.entity_id, coalesce(min(g.since), min(x.since)),
       format('%s set aside: %s',
              case sum(x.rows) when 1 then '1 row is' else sum(x.rows) || ' rows are' end,
              string_agg(x.rows || ' ' || x.kind, ', ' order by x.kind)),
       'elven-sync errors list' || coalesce(' --entity ' || elven_sync.quoted_entity(x.entity_id), '')
  from error_kind x
  left join begun g on g.name = 'rows_set_aside' and g.entity_id = x.entity_id
 where x.is_of_rows group by x.entity_id
union all
select 'NearRejectionBound', 'warning', x.entity_id, coalesce(g.since, x.since),
       format('%s rows that the API refused are set aside; at %s the entity stops', x.errors, b.bound),
       'elven-sync errors list --kind rejected_row'
       || coalesce(' --entity ' || elven_sync.quoted_entity(x.entity_id), '')
  from error_kind x
 cross join (select coalesce((select (f.value ->> 'max_rejections')::bigint from fact f
                               where f.name = 'limits' and f.entity_id is null), 100) as bound) b
  left join begun g on g.name = 'near_rejection_bound' and g.entity_id = x.entity_id
 where x.is_of_rows and x.kind = 'rejected_row' and x.errors >= 0.8 * b.bound
union all
select 'UnknownOutcome', 'warning', b.entity_id, min(b.created_at),
       format('the outcome of %s is unknown, so Elven may have the rows or not; the next run sends them again, unless '
              '[sync] on_ambiguous is "hold"',
              case count(*) when 1 then '1 batch' else count(*) || ' batches' end),
       'elven-sync run' || coalesce(' --entity ' || elven_sync.quoted_entity(b.entity_id), '')
  from elven_sync.sync_batches b
 where elven_sync.is_open(b.status, b.row_count) and b.status = 'unknown'
   and exists (select from elven_sync.entities e where e.entity_id = b.entity_id)
 group by b.entity_id
union all
select 'Unregistered', 'warning', x.entity_id, x.first_seen_at, split_part(x.message, '; hint: ', 1),
       case when x.entity_id = '*' then 'elven-sync errors list --rows --kind unregistered_entity'
            else coalesce('elven-sync entity add ' || elven_sync.quoted_entity(x.entity_id) || ' --timezone ZONE',
                          'elven-sync errors list --rows --kind unregistered_entity') end
  from elven_sync.sync_errors x
 where x.kind = 'unregistered_entity' and x.resolved_at is null
union all
select 'BackfillStopped', 'warning', null, coalesce(b.finished_at, b.started_at),
       format('backfill %s %s%s', b.backfill_id,
              case b.status when 'failed' then 'failed' when 'interrupted' then 'was interrupted'
                            else 'stopped before its end' end,
              ': ' || split_part(b.error, '; hint: ', 1)),
       replace('elven-sync backfill --resume N', 'N', b.backfill_id::text)
  from elven_sync.sync_backfills b
 where b.status in ('failed', 'interrupted')
    or b.status = 'incomplete'
       and exists (select from elven_sync.sync_backfill_lanes l
                    where l.backfill_id = b.backfill_id and l.finished_at is null)
union all
select 'ClockSkew', 'warning', null, f.since,
       format('the clock of the machine that runs elven-sync is %s s %s the API''s, as of %s',
              abs((f.value ->> 'ahead_s')::numeric),
              case when (f.value ->> 'ahead_s')::numeric < 0 then 'behind' else 'ahead of' end,
              elven_sync.utc(f.checked_at)),
       'timedatectl status'
  from fact f where f.name = 'clock' and elven_sync.is_bad(f.value)
union all
select 'OldWriter', 'warning', null, f.since,
       format('transaction %s has written to the ledger and is open since %s (%s), as of %s; its rows are uploaded '
              'after it commits', f.value ->> 'transaction', elven_sync.utc(f.since),
              coalesce('pid ' || (f.value ->> 'pid'), format('prepared as %L', f.value ->> 'prepared_as')),
              elven_sync.utc(f.checked_at)),
       'elven-sync status'
  from fact f
 where f.name = 'oldest_writer' and f.value ? 'transaction' and f.since < f.checked_at - interval '15 minutes'
union all
select 'GuardBroken', 'critical', null, coalesce((f.value ->> 'gap_since')::timestamptz, f.since),
       case when elven_sync.is_bad(f.value)
            then coalesce(f.value ->> 'message', 'rows may be skipped: the trigger of the ledger is not whole')
            else format('the trigger of the ledger was broken until %s, and rows that were written in the meantime may be '
                        'skipped', elven_sync.utc(f.since)) end
       || format(', as of %s', elven_sync.utc(f.checked_at)),
       case when elven_sync.is_bad(f.value) then 'elven-sync attach --dry-run' else 'elven-sync verify' end
  from fact f where f.name = 'guard' and (elven_sync.is_bad(f.value) or f.value ? 'gap_from')
union all
select 'GuardBroken', 'critical', null, g.since,
       format('runs poll the ledger, the last one on %s, but none has recorded since %s whether each row is stamped',
              elven_sync.utc(g.polled_at), elven_sync.utc(g.since)),
       'elven-sync check --only database'
  from (select (select max(r.polled_at) from elven_sync.sync_runs r
                 where r.polled_at <= now() + interval '5 minutes') as polled_at,
               coalesce((select elven_sync.past(f.checked_at) from fact f where f.name = 'guard'),
                        (select min(r.polled_at) from elven_sync.sync_runs r where r.polled_at is not null)) as since,
               exists (select from fact f where f.name = 'guard'
                          and (elven_sync.is_bad(f.value) or f.value ? 'gap_from')) as is_reported) g
 where not g.is_reported and g.since < g.polled_at - interval '1 hour'
union all
select 'ZoneRulesOld', 'warning', null, z.since,
       format('the time zone rules are of version %s, so changes of the law since then are not known', z.version),
       'elven-sync --version'
  from (select f.value ->> 'version' as version,
               -- A release has a year and no date. So they are old when the year after that year is over.
               make_timestamptz((f.value ->> 'year')::integer + 2, 1, 1, 0, 0, 0, 'UTC') as since
          from fact f where f.name = 'tzdata' and f.value ->> 'year' ~ '^[12][0-9]{3}$') z
 where z.since < now()
union all
select 'VerifyFailed', 'critical', f.entity_id, f.since,
       format('verify found %s on %s', case f.value ->> 'findings' when '1' then '1 problem'
                                            else (f.value ->> 'findings') || ' problems' end,
              elven_sync.utc(f.checked_at)),
       'elven-sync verify' || case when f.value -> 'deep' = 'true'::jsonb then ' --deep' else '' end
       || coalesce(' --entity ' || elven_sync.quoted_entity(f.entity_id), '')
  from fact f where f.name = 'verify' and f.entity_id is not null and elven_sync.is_bad(f.value)
union all
select 'VerifyOld', 'warning', f.entity_id, f.checked_at,
       format('the last verify was on %s', elven_sync.utc(f.checked_at)),
       'elven-sync verify' || coalesce(' --entity ' || elven_sync.quoted_entity(f.entity_id), '')
  from fact f
 where f.name = 'verify' and f.checked_at < now() - interval '8 days'
   -- Where all entities are verified together, that is one alert.
   and (f.entity_id is null
        or exists (select from entity e where e.entity_id = f.entity_id)
           and not exists (select from fact w where w.name = 'verify' and w.entity_id is null))
union all
select 'ConfigBroken', 'warning', null, f.since,
       format('the configuration cannot be used, and the one before stays in use: %s', f.value ->> 'message'),
       'elven-sync check --only configuration'
  from fact f where f.name = 'config' and elven_sync.is_bad(f.value)
union all
select 'WebhookFailing', 'warning', null, f.since,
       format('alerts cannot be delivered to the webhook: %s', f.value ->> 'message'),
       'elven-sync status'
  from fact f where f.name = 'webhook' and elven_sync.is_bad(f.value);

comment on function elven_sync.refuse_other_tables(oid, regclass[]) is
    'Refuses the call of a trigger function for a table that it is not made for.';
comment on function elven_sync.note_set_aside() is
    'Records in sync_facts since when an entity has rows that are set aside (rows_set_aside), and since when the rows '
    'that the API refused are near max_rejections (near_rejection_bound).';
comment on function elven_sync.note_begun(text, text, boolean, timestamptz) is
    'Records in sync_facts that a condition of an entity holds, or that it has ended.';
comment on column elven_sync.sync_facts.name is
    'The subject of the fact. clock: how far the clock of this machine is ahead of the API''s. oldest_writer: the'
    ' oldest open transaction that has written to the ledger; since: when it began. guard: whether a trigger '
    'stamps each row of the ledger; gap_from, gap_until: the transactions by which rows may have been written without '
    'it, until verify has found none. ledger_files: the tables that the ledger consists of, and their files; '
    'before: those before the last change. server: timeline of the database server, which a promotion changes. '
    'tzdata: version of the zone rules. limits: settings that alerts are '
    'measured by. verify: the result of verify, of all entities or of one. config: whether the configuration can '
    'be used. webhook: whether alerts can be delivered. zone_rules: the zone rules in use for an entity, and what'
    ' was reported when they changed. server_zone_rules: registered time zones for which the rules of the '
    'database server differ. zone_rules_compared: a digest of the entities, zones and rules that were compared '
    'last; runs repeat the same comparison once an hour. maps_compared: the version of the maps of an entity that'
    ' was compared with the ledger. rows_set_aside, near_rejection_bound: since when the alerts OpenErrors and'
    ' NearRejectionBound of an entity hold.';
comment on function elven_sync.with_guard_gap(jsonb, jsonb, timestamptz) is
    'The value of the fact guard, with the time in which the trigger was broken: gap_from and gap_until are '
    'transaction ids.';
comment on trigger set_aside_added on elven_sync.sync_errors is 'Records since when rows are set aside.';
comment on trigger set_aside_changed on elven_sync.sync_errors is 'Records when no row is set aside any more.';
comment on trigger set_aside_removed on elven_sync.sync_errors is 'Records when no row is set aside any more.';
comment on function elven_sync.merged_fact(text, jsonb, timestamptz, jsonb, timestamptz) is
    'The value of a fact after another observation, with what is kept of the value before.';
comment on function elven_sync.outlasts(text, jsonb, jsonb) is
    'Whether a finding of verify --deep stays, because the later verify looked at a sample only.';
comment on function elven_sync.past(timestamptz) is
    'A time, unless it is in the future: then the clock of the database was ahead when it was recorded.';
comment on function elven_sync.note_resumed() is 'Records when an entity was resumed.';
comment on trigger note_resumed on elven_sync.entities is 'Records when an entity was resumed.';
comment on column elven_sync.entities.resumed_at is
    'When the entity was last resumed. It is not stale before its freshness has passed since then. NULL: never.';
