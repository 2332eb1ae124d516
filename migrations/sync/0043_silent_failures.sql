-- A run that waited for a lock of another session was silent. Now it is an alert.
--
-- A run that failed before it began left no row in sync_runs, so the tables showed the run before it, which may have
-- succeeded. Now it leaves a row with the status failed, and the failure of the last run is an alert.

-- After the end of an alert, the first hour was waited out whatever began, so a warning that had ended hid a critical
-- alert. Now it is known what was told as critical.

alter table elven_sync.sync_notifications add column critical_subjects text[] not null default '{}';

-- As before, and ten times as fast: a bounded repetition makes a regular expression slow.
create or replace function elven_sync.quoted_entity(entity_id text) returns text
    language sql immutable parallel safe
as
$$
    select case when length(entity_id) <= 40 and entity_id collate "C" ~ '^[A-Za-z0-9_.@/:][A-Za-z0-9_.@/:-]*$'
                then '''' || entity_id || '''' end
$$;

-- As before, without a call of a function for each error that has the id of its row, or that concerns no row.
create or replace view elven_sync.error_causes as
select g.entity_id, g.kind, g.api_code, g.cause, g.rows, g.first_seen_at, g.last_seen_at, g.example_ledger_id,
       -- Of held rows it is recorded: a name in the text may have any characters.
       coalesce(g.hint, elven_sync.error_hint(g.entity_id, g.kind, g.api_code, g.cause,
                                              g.example_ledger_id is not null)) as hint
  from (select entity_id, kind, api_code, coalesce(cause, message) as cause, sum(coalesce(rows, 1))::bigint as rows,
               min(first_seen_at) as first_seen_at, max(last_seen_at) as last_seen_at,
               min(case when ledger_ids is null then coalesce(ledger_id, first_id::text)
                        else elven_sync.example_row(e) end) as example_ledger_id, min(hint) as hint
          from elven_sync.sync_errors e
         where resolved_at is null
         group by 1, 2, 3, 4) g;

-- As before, with more branches.
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
     where name in ('clock', 'oldest_writer', 'guard', 'tzdata', 'limits', 'verify', 'config', 'webhook',
                    'lock_wait')),
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
-- Where entities are failing, they say why. A run that fails before its poll, or although none of them fails, is about
-- the installation.
select 'RunFailed', 'critical', null, f.since,
       'the last run failed: ' || coalesce(replace(r.error, '; hint: ', '; remedy: '), '(no message)'),
       'elven-sync check'
  from (select r.run_id, r.status, r.error, r.polled_at from elven_sync.sync_runs r
         where r.kind = 'incremental' and r.status <> 'running' order by r.run_id desc limit 1) r
 cross join lateral (
       select min(b.finished_at) as since from elven_sync.sync_runs b
        where b.kind = 'incremental' and b.status = 'failed'
          and b.run_id > coalesce((select o.run_id from elven_sync.sync_runs o
                                    where o.kind = 'incremental' and o.status not in ('failed', 'running')
                                    order by o.run_id desc limit 1), 0)) f
 where r.status = 'failed'
   and (r.polled_at is null
        or exists (select from entity) and not exists (select from entity e where e.is_failing))
union all
-- What waits records it again each minute, so an older fact is that of a process that has ended.
select 'LockWait', 'warning', null, f.since,
       format('a statement of elven-sync waits: %s, as of %s', f.value ->> 'message', elven_sync.utc(f.checked_at)),
       'elven-sync check'
  from fact f
 where f.name = 'lock_wait' and elven_sync.is_bad(f.value) and f.checked_at > now() - interval '3 minutes'
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

comment on column elven_sync.sync_facts.name is
    'The subject of the fact. clock: how far the clock of this machine is ahead of the API''s. oldest_writer: the'
    ' oldest open transaction that has written to the ledger; since: when it began. guard: whether a trigger '
    'stamps each row of the ledger; gap_from, gap_until: the transactions by which rows may have been written without '
    'it, until verify has found none. ledger_files: the tables that the ledger consists of, and their files; '
    'before: those before the last change. server: timeline of the database server, which a promotion changes. '
    'tzdata: version of the zone rules. limits: settings that alerts are '
    'measured by. verify: the result of verify, of all entities or of one. config: whether the configuration can '
    'be used. lock_wait: whether a statement waits for a lock of another session. webhook: whether alerts can be '
    'delivered. zone_rules: the zone rules in use for an entity, and what was'
    ' reported when they changed. server_zone_rules: registered time zones for which the rules of the '
    'database server differ. zone_rules_compared: a digest of the entities, zones and rules that were compared '
    'last; runs repeat the same comparison once an hour. maps_compared: the version of the maps of an entity that'
    ' was compared with the ledger. rows_set_aside, near_rejection_bound: since when the alerts OpenErrors and'
    ' NearRejectionBound of an entity hold.';
comment on column elven_sync.sync_notifications.critical_subjects is
    'All entities that were told as critical since the alert was last quiet for an hour; the hint of an alert that '
    'concerns no entity. Within the hour after an end, only a critical alert of another one is told.';
