-- Freshness and alerts: an entity that no run has polled, or whose rows stay pending, is stale; and one view has every
-- condition that needs attention, so that one SELECT is a complete monitor.

-- The longest freshness keeps now() - freshness in range, whatever a person enters.
alter table elven_sync.entities
    add column freshness interval not null default '1 hour'
        check (freshness between interval '1 second' and interval '366 days');

alter table elven_sync.sync_state add column pending_since timestamptz;

alter table elven_sync.sync_runs add column polled_at timestamptz;

create index sync_runs_polled on elven_sync.sync_runs (polled_at) where polled_at is not null;

-- pending_since is the time of a poll, too: an entity with pending rows is as fresh as the first poll that found them.
create or replace view elven_sync.sync_health as
select e.entity_id,
       e.timezone,
       case
           when e.paused then 'paused'
           when coalesce(s.consecutive_failures, 0) > 0 then 'failing'
           when greatest(coalesce(s.pending_since, s.checked_at), e.created_at) < now() - e.freshness then 'stale'
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

-- PostgreSQL inlines the three functions, because they set nothing: thousands of alerts call them.

-- A time in messages, the same in each session.
create function elven_sync.utc(instant timestamptz) returns text
    language sql stable parallel safe
as
$$
    select to_char(instant at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"')
$$;

-- A hint is pasted into a shell. So it names only an entity that needs no escapes.
create function elven_sync.quoted_entity(entity_id text) returns text
    language sql immutable parallel safe
as
$$
    select case when entity_id collate "C" ~ '^[A-Za-z0-9_.@/:][A-Za-z0-9_.@/:-]{0,39}$'
                then '''' || entity_id || '''' end
$$;

-- Whether the statement of a fact holds. A fact without one is only a value.
create function elven_sync.is_bad(value jsonb) returns boolean
    language sql immutable parallel safe
as
$$
    select coalesce(value -> 'ok' = 'false'::jsonb, false)
$$;

-- The open errors are read once, and grouped before anything else, however many there are. No branch calls a function
-- that looks at the server: a role that may only read the tables sees the same alerts, and so does a copy of the
-- database. What changes with time is compared with now(); what a run saw, with the time at which it saw it.
create view elven_sync.alerts as
with entity as (
    select e.entity_id, e.paused, e.freshness, e.created_at, s.checked_at, s.pending_since, s.last_success_at,
           s.last_error, s.not_before,
           coalesce(s.consecutive_failures, 0) > 0 as is_failing,
           greatest(coalesce(s.pending_since, s.checked_at), e.created_at) as fresh_at
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
     where name in ('clock', 'oldest_writer', 'guard', 'tzdata', 'limits', 'verify', 'config', 'webhook'))
select 'NoPoll' as name, 'critical' as severity, null::text as entity_id, p.since,
       format('no run has checked the ledger for new rows since %s%s', elven_sync.utc(p.since),
              '; the last run ended with: '
              || (select coalesce(r.error, r.status) from elven_sync.sync_runs r
                   where r.kind = 'incremental' and r.status <> 'running' order by r.run_id desc limit 1)) as message,
       'elven-sync run' as hint
  from (select coalesce(greatest(max(e.checked_at), max(e.pending_since),
                                 (select max(r.polled_at) from elven_sync.sync_runs r
                                   where r.polled_at is not null)),
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
       'the API asked to send later'
       || case when e.not_before > now() then format('; nothing is sent before %s', elven_sync.utc(e.not_before))
               else '' end,
       'elven-sync errors list' || coalesce(' --entity ' || elven_sync.quoted_entity(e.entity_id), '')
  from entity e join lane_error l using (entity_id)
 where not e.paused and e.is_failing and l.throttled_since is not null
union all
select 'OpenErrors', 'warning', x.entity_id, min(x.since),
       format('%s set aside: %s',
              case sum(x.rows) when 1 then '1 row is' else sum(x.rows) || ' rows are' end,
              string_agg(x.rows || ' ' || x.kind, ', ' order by x.kind)),
       'elven-sync errors list' || coalesce(' --entity ' || elven_sync.quoted_entity(x.entity_id), '')
  from error_kind x where x.is_of_rows group by x.entity_id
union all
select 'NearRejectionBound', 'warning', x.entity_id, x.since,
       format('%s rows that the API refused are set aside; at %s the entity stops', x.errors, b.bound),
       'elven-sync errors list --kind rejected_row'
       || coalesce(' --entity ' || elven_sync.quoted_entity(x.entity_id), '')
  from error_kind x
 cross join (select coalesce((select (f.value ->> 'max_rejections')::bigint from fact f
                               where f.name = 'limits' and f.entity_id is null), 100) as bound) b
 where x.is_of_rows and x.kind = 'rejected_row' and x.errors >= 0.8 * b.bound
union all
select 'UnknownOutcome', 'warning', b.entity_id, min(b.created_at),
       format('the outcome of %s is unknown, so Elven may have the rows or not; the next run sends them again',
              case count(*) when 1 then '1 batch' else count(*) || ' batches' end),
       'elven-sync run' || coalesce(' --entity ' || elven_sync.quoted_entity(b.entity_id), '')
  from elven_sync.sync_batches b
 where elven_sync.is_open(b.status, b.row_count) and b.status = 'unknown'
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
       format('backfill %s is %s%s', b.backfill_id, b.status, ': ' || split_part(b.error, '; hint: ', 1)),
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
       format('transaction %s has written to the ledger and is open since %s (pid %s), as of %s; its rows are uploaded '
              'after it commits', f.value ->> 'transaction', elven_sync.utc(f.since),
              coalesce(f.value ->> 'pid', 'none: it is prepared'), elven_sync.utc(f.checked_at)),
       'elven-sync status'
  from fact f
 where f.name = 'oldest_writer' and f.value ? 'transaction' and f.since < f.checked_at - interval '15 minutes'
union all
select 'GuardBroken', 'critical', null, f.since,
       format('rows may be skipped: %s, as of %s',
              coalesce(f.value ->> 'message', 'the trigger of the ledger is not whole'),
              elven_sync.utc(f.checked_at)),
       'elven-sync attach --dry-run'
  from fact f where f.name = 'guard' and elven_sync.is_bad(f.value)
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
       'elven-sync verify' || coalesce(' --entity ' || elven_sync.quoted_entity(f.entity_id), '')
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

comment on column elven_sync.entities.freshness is
    'How old the last poll, and the first poll that found rows which are still pending, may be before the entity '
    'is stale. Longer than the schedule of the runs.';
comment on column elven_sync.sync_state.pending_since is
    'Time of the poll that first found rows pending since the entity was last caught up. NULL: no rows are '
    'pending, as of the last poll.';
comment on column elven_sync.sync_state.pending_rows is
    'Pending ledger rows, as of checked_at. A poll that finds new rows does not count them; the end of a run '
    'does.';
comment on column elven_sync.sync_state.checked_at is
    'When the pending rows were last known: the time of a poll that found none, of the pass that was last closed,'
    ' or of the last count. NULL: never yet.';
comment on column elven_sync.sync_runs.polled_at is
    'When the run polled its entities: checked each of them for pending rows. NULL: not yet, or no run for new '
    'rows.';
comment on index elven_sync.sync_runs_polled is 'Finds the last poll.';

comment on table elven_sync.sync_facts is
    'Facts that only a run or a command can observe, one row per name and entity: the last value, since when it '
    'holds, and as of when. A value with "ok" states whether a condition holds, and since says since when it is '
    'so. Written when the value changes, and at most once a minute otherwise.';
comment on column elven_sync.sync_facts.name is
    'The subject of the fact. clock: how far the clock of this machine is ahead of the API''s. oldest_writer: the'
    ' oldest open transaction that has written to the ledger; since: when it began. guard: whether a trigger '
    'stamps each row of the ledger. ledger_files: the tables that the ledger consists of, and their files; '
    'before: those before the last change. server: timeline of the database server, which a promotion changes. '
    'tzdata: version of the zone rules. limits: settings that alerts are '
    'measured by. verify: the result of verify, of all entities or of one. config: whether the configuration can '
    'be used. webhook: whether alerts can be delivered. zone_rules: the zone rules in use for an entity, and what'
    ' was reported when they changed. server_zone_rules: registered time zones for which the rules of the '
    'database server differ. zone_rules_compared: a digest of the entities, zones and rules that were compared '
    'last; runs repeat the same comparison once an hour. maps_compared: the version of the maps of an entity that'
    ' was compared with the ledger.';
comment on column elven_sync.sync_facts.since is
    'When the value was found first; with "ok" in the value, since when "ok" is as it is.';
comment on column elven_sync.sync_facts.checked_at is
    'As of when the fact is known. Facts about zone rules and maps are written only when they change.';

comment on view elven_sync.sync_health is
    'One row per entity, for dashboards. pending_rows and oldest_pending_at are as of checked_at. What needs '
    'attention is in the view alerts.';
comment on column elven_sync.sync_health.status is
    'The first that holds: paused; failing: the last attempt failed; stale: the last poll (before the first poll:'
    ' the registration) or pending_since is older than freshness; incomplete: rows are set aside and open in '
    'sync_errors; behind: rows are pending, or no run has polled the entity yet; ok.';
comment on column elven_sync.sync_health.checked_at is
    'When the pending rows were last known. NULL: no run has polled the entity yet.';
comment on column elven_sync.sync_health.freshness is
    'How old poll and pending rows may be before the entity is stale.';
comment on column elven_sync.sync_health.pending_since is
    'Time of the poll that first found the rows that are pending. NULL: no rows are pending, as of the last poll.';

comment on view elven_sync.alerts is
    'One row per condition that needs attention now; empty when there is none. It reads tables alone, so it is '
    'right also when no elven-sync process runs, and a role that may only read sees all of it. docs/operating.md '
    'has each alert.';
comment on column elven_sync.alerts.name is 'The alert: an anchor of docs/operating.md, in lower case.';
comment on column elven_sync.alerts.severity is
    'critical: balances at Elven are or may become wrong or old until a person acts; warning: a person should '
    'look.';
comment on column elven_sync.alerts.entity_id is 'The entity. NULL: the installation.';
comment on column elven_sync.alerts.since is
    'Since when the condition holds, or for a lack of polls or of verify the last one. Unchanged until the '
    'condition ends.';
comment on column elven_sync.alerts.message is
    'What is wrong. "as of" a time: what a run saw then, because only a run can see it.';
comment on column elven_sync.alerts.hint is 'The command to begin with.';

comment on function elven_sync.utc(timestamptz) is 'A time in UTC, to the second, for messages.';
comment on function elven_sync.quoted_entity(text) is
    'The id of an entity in quotes, for a shell. NULL: the id has other characters than letters, digits and '
    '_.@/:-, or is long.';
comment on function elven_sync.is_bad(jsonb) is 'Whether the value of a fact says that something is not in order.';
