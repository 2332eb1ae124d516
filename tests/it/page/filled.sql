insert into elven_sync.entities (entity_id, timezone, paused, created_at) values
    ('northwind-holding', 'Europe/Berlin', false, now() - interval '90 days'),
    ('acme-treasury', 'America/New_York', false, now() - interval '80 days'),
    ('globex', 'Asia/Tokyo', false, now() - interval '70 days'),
    ('initech', 'Europe/London', false, now() - interval '60 days'),
    ('umbrella', 'UTC', false, now() - interval '50 days'),
    ('stark industries', 'America/Los_Angeles', false, now() - interval '40 days'),
    ('wayne/ventures', 'UTC', false, now() - interval '30 days'),
    ('hooli', 'UTC', true, now() - interval '20 days');
update elven_sync.sync_state s
   set checked_at = now() - interval '20 s', last_success_at = now() - interval '20 s', rows_uploaded = 120345;
update elven_sync.sync_state
   set pending_rows = 4210, oldest_pending_at = now() - interval '3 hours', pending_since = now() - interval '10 min',
       last_success_at = now() - interval '2 hours', consecutive_failures = 7,
       last_error = 'the API refused credential `default` (HTTP 401): "signature for 918273.45 is wrong" (code 40105); hint: check the key'
 where entity_id = 'globex';
update elven_sync.sync_state
   set pending_rows = 812, oldest_pending_at = now() - interval '30 hours', pending_since = now() - interval '2 hours',
       last_success_at = now() - interval '26 hours'
 where entity_id = 'initech';
update elven_sync.sync_state
   set pending_rows = 37, oldest_pending_at = now() - interval '4 min', pending_since = now() - interval '1 min'
 where entity_id = 'umbrella';

insert into elven_sync.sync_runs (kind, status, worker, version, tzdata, started_at, finished_at, alive_until, polled_at,
                                  rows_read, rows_uploaded, rows_rejected, rows_superseded, requests, retries, error)
select 'incremental',
       case when n % 41 = 0 then 'failed' when n % 17 = 0 then 'incomplete' else 'succeeded' end,
       'host 4711 1700000000', '0.2.0', '2026b bundled', at, at + interval '3 s', at + interval '30 s',
       at + interval '1 s', n * 5, n * 4, n % 3, n % 7, n % 11, n % 2,
       case when n % 41 = 0 then 'all entities failed: "balance 7654321.99 is too large"' end
  from (select n, now() - make_interval(secs => 60 * (1500 - n)) as at from generate_series(1, 1499) n) r
 order by n;
insert into elven_sync.sync_runs (kind, status, worker, version, tzdata, alive_until, started_at, rows_read)
values ('backfill', 'running', 'host 4712 1700000000', '0.2.0', '2026b bundled', now() + interval '1 hour',
        now() - interval '25 min', 60000);

insert into elven_sync.sync_passes (entity_id, kind, settled, target, started_at, finished_at, run_id)
select entity_id, 'pass', '1:1:', '5:5:', now() - make_interval(hours => n), now() - make_interval(hours => n), n
  from elven_sync.entities cross join generate_series(1, 12) n where not paused order by n desc;
insert into elven_sync.sync_batches (run_id, pass_id, entity_id, last_xid, last_id, row_ids, rows_read, row_count,
                                     rows_rejected, rows_superseded, body_bytes, body_sha256, status, attempts,
                                     http_status, duration_ms, error, created_at, finished_at, ambiguous)
select 1 + n, p.pass_id, e.entity_id, '5', n::text, '', row_count + rejected + n % 4, row_count, rejected, n % 4, 1000,
       repeat('a', 64), status, 1 + n % 2, http_status, 20 + (n * n) % 380 + case when n % 31 = 0 then 2000 else 0 end,
       case when status <> 'accepted' then 'the API refused it (HTTP 400): "amount 55443322.11 of acc-7"' end,
       at - interval '1 s', at, n % 53 = 0
  from (select n, now() - make_interval(secs => n * 173) as at,
               case when n % 23 = 0 then 0 else 40 + (n * 37) % 400 + case when n between 180 and 320 then 420 else 0 end
               end as row_count,
               case when n % 23 = 0 then 3 when n % 19 = 0 then 1 else 0 end as rejected,
               case when n % 23 = 0 then 'rejected' when n % 29 = 0 then 'unknown' else 'accepted' end as status,
               case when n % 23 = 0 then 400 when n % 58 = 0 then null when n % 29 = 0 then 502 else 200 end as http_status,
               (array['northwind-holding', 'acme-treasury', 'globex', 'initech', 'umbrella', 'stark industries',
                      'wayne/ventures'])[1 + (n * n + n / 3) % 7] as entity_id
          from generate_series(0, 560) n) e
 cross join lateral (select max(pass_id) as pass_id from elven_sync.sync_passes p where p.entity_id = e.entity_id) p
 order by n desc;
update elven_sync.sync_batches set status = 'accepted', http_status = 200, error = null
 where status = 'unknown' and batch_id % 5 > 0;

insert into elven_sync.sync_errors (entity_id, kind, ledger_id, message, cause, http_status, api_code, record,
                                    first_seen_at, last_seen_at)
select 'stark industries', 'rejected_row', n::text,
       format('the API refused it (HTTP 400): "account acc-%s holds %s" (code 40011)', n, 1000.5 + n),
       'the API refused it (HTTP 400): "account <account> holds <amount>" (code 40011)', 400, '40011',
       jsonb_build_object('entityAccountId', 'acc-' || n, 'balance', (1000.5 + n)::text),
       now() - interval '5 hours', now() - interval '2 hours'
  from generate_series(1, 12) n;
insert into elven_sync.sync_errors (entity_id, kind, ledger_id, message, first_seen_at, last_seen_at)
select 'stark industries', 'invalid_row', n::text, 'currency is blank', now() - interval '3 hours',
       now() - interval '1 hour'
  from generate_series(101, 103) n;
insert into elven_sync.sync_errors (entity_id, kind, message, http_status, api_code, first_seen_at, last_seen_at)
values ('globex', 'auth',
        'the API refused credential `default` (HTTP 401): "signature for 918273.45 is wrong" (code 40105); hint: check the key',
        401, '40105', now() - interval '2 hours', now() - interval '1 min');
insert into elven_sync.sync_errors (entity_id, kind, ledger_id, message, resolved_at, resolution)
values ('acme-treasury', 'invalid_row', '7', 'currency is blank', now(), 'uploaded');

insert into elven_sync.sync_backfills (range_from, range_to, entities, accounts, status, rows_read, rows_uploaded,
                                       rows_rejected, started_at, rows_total, run_id)
select '2026-01-01', '2026-07-01', array['acme-treasury', 'northwind-holding'], array['a1', 'a2', 'a3', 'a4', 'a5', 'a6', 'a7'],
        'running', 61000, 60500, 12, now() - interval '25 min', 250000, max(run_id) from elven_sync.sync_runs;
insert into elven_sync.sync_backfill_lanes (backfill_id, entity_id, range_from, range_to, rows_total, finished_at)
select max(backfill_id), e, '2026-01-01Z', '2026-07-01Z', 125000, case when e = 'acme-treasury' then now() end
  from elven_sync.sync_backfills cross join unnest(array['acme-treasury', 'northwind-holding']) e group by e;
insert into elven_sync.sync_facts (name, value, since, checked_at)
values ('verify', '{"ok": true, "findings": 0, "deep": true}', now() - interval '20 days', now() - interval '9 hours');
